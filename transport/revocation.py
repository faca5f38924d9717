"""Which certificates the authority has issued, and which of them are revoked: two small files beside `ca.pem`.

`issued.json` is the authority's own book (serial, identity, expiry); `revoked.json` is what every process with our
certificates reads: a list of {serial, identity, not_after}. A missing list means that nothing is revoked; one that
cannot be understood is an error, never an empty list. Entries go once their certificate has expired.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from transport.connection import TransportError
from transport.whole_files import replace_whole

ISSUED: Final = "issued.json"
REVOKED: Final = "revoked.json"
FILE_BYTES_MAX: Final = 16 << 20
FILE_MODE: Final = 0o644


class RevocationError(TransportError):
    """A list cannot be read or written; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Issued:
    """One certificate: its serial number, whose it is, and until when (seconds since 1970)."""

    serial: int
    identity: str
    not_after_s: float


def read(path: Path) -> tuple[Issued, ...]:
    """The list in a file; empty if there is no file. Raises RevocationError."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise RevocationError(f"{path}: more than {FILE_BYTES_MAX} bytes")
        return tuple(_issued(item) for item in json.loads(data))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise RevocationError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RevocationError(f"{path}: no list of certificates: {error}") from error


def _issued(item: Any) -> Issued:
    return Issued(int(item["serial"], 16), str(item["identity"]), float(item["not_after_s"]))


def serials(path: Path) -> frozenset[int]:
    """The serial numbers in a file. Raises RevocationError."""
    return frozenset(item.serial for item in read(path))


def record(directory: Path, issued: Issued, now_s: float) -> None:
    """The authority has issued it. Raises RevocationError."""
    _add(directory / ISSUED, [issued], now_s)


def revoke(directory: Path, identity: str, now_s: float, kept: int = 0) -> tuple[Issued, ...]:
    """Put every certificate of an identity on the list that has not expired, but `kept`; those that are new there.

    Raises RevocationError if there is none.
    """
    known = [item for item in read(directory / ISSUED) if item.identity == identity and item.not_after_s > now_s]
    if not known:
        raise RevocationError(f"{directory / ISSUED}: no valid certificate of {identity} was issued here")
    revoked = serials(directory / REVOKED)
    fresh = [item for item in known if item.serial not in revoked and item.serial != kept]
    _add(directory / REVOKED, fresh, now_s)
    return tuple(fresh)


def _add(path: Path, items: list[Issued], now_s: float) -> None:
    kept = [item for item in read(path) if item.not_after_s > now_s] + items
    rows = [{**asdict(item), "serial": f"{item.serial:x}"} for item in kept]
    try:
        replace_whole(path, json.dumps(rows, indent=1).encode(), FILE_MODE)
    except OSError as error:
        raise RevocationError(f"{path}: {error.strerror}") from error
