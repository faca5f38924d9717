#!/usr/bin/env bash
# Makes .venv from requirements.lock (hash-checked) and installs segmap into it, only when something changed.
# Needs python3 >= 3.11 with venv. A C compiler is optional: without one the tests of C code are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
packages="python3-venv python3-dev gcc make"
apt_line="sudo apt-get install -y $packages"

fail() {
    printf '%s\nOn Debian 12 this installs what is needed:\n\n    %s\n\n' "$1" "$apt_line" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "There is no $python here; segmap needs Python 3.11 or newer."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail "$("$python" -V) is too old; segmap needs Python 3.11 or newer (PYTHON=/path/to/python3.11 make ... picks one)."
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$("$python" -V) has no venv module."

# One bootstrap at a time; a second one waits and then finds the work done.
exec 9<ci
flock 9

wanted=$({ cat requirements.lock pyproject.toml ci/bootstrap.sh; } | sha256sum | cut -d' ' -f1)
stamp=.venv/segmap.stamp
if [ -x .venv/bin/segmap ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

if ! command -v cc >/dev/null && ! command -v gcc >/dev/null; then
    printf 'note: no C compiler; tests of C code will be skipped. This installs one:\n\n    %s\n\n' "$apt_line" >&2
fi
echo "bootstrap: making .venv (once; again only when requirements.lock changes)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
rm -f "$stamp"
pip() {
    .venv/bin/python -m pip --quiet --disable-pip-version-check install "$@" >.venv/bootstrap.log 2>&1 \
        || { cat .venv/bootstrap.log >&2; exit 1; }
}
pip --require-hashes -r requirements.lock
pip --no-deps --no-build-isolation --editable .
echo "$wanted" >"$stamp"
