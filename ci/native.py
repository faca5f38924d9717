"""Where `make native` finds SPDK: prints the pkg-config directories of the installation, or says what to do.

Run as ``python -m ci.native``; exits 1 if there is no SPDK to build against, or not everything that is needed.
"""

from __future__ import annotations

import shutil
import sys

from spdk_rpc.find import SpdkNotFound, find_spdk

OLDEST = (24, 9, 0)
NEEDED = {"cc": "a C compiler", "pkg-config": "pkg-config"}
APT_LINE = "sudo apt-get install -y gcc make pkg-config"


def complaint() -> str:
    """Empty, or why the module cannot be built here, and what to do."""
    for program, what in NEEDED.items():
        if shutil.which(program) is None:
            return f"make native needs {what} ({program}). On Debian 12: {APT_LINE}"
    try:
        found = find_spdk()
    except SpdkNotFound as error:
        return f"make native: {error}"
    if found.version is None:
        return f"SPDK in {found.prefix} has no headers (include/spdk/version.h): install its development files"
    if found.version < OLDEST:
        version = ".".join(map(str, found.version))
        return f"SPDK in {found.prefix} is {version}; segmap needs {OLDEST[0]}.{OLDEST[1]:02} or later"
    if not found.pkg_config_dirs:
        return f"SPDK in {found.prefix} has no pkg-config files: install it with `make install`"
    return ""


def main() -> int:
    problem = complaint()
    if problem:
        print(problem, file=sys.stderr)
        return 1
    print(":".join(map(str, find_spdk().pkg_config_dirs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
