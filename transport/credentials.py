"""The certificate of a process, loaded again when its files change; revocations; and expiry, said long before.

`context` is for new connections; those that are open go on with what they have. New files that cannot be used (a key
and a certificate that do not belong together yet) leave the old ones in place, and are told as `problem`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from transport import pki, revocation
from transport.connection import TransportError
from transport.tls import TlsContext

WARNING_DAYS: Final = 30
ALARM_DAYS: Final = 7
Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Expiry:
    """A certificate that ends soon, or has. `severity`: warning or alarm."""

    severity: str
    subject: str
    text: str


def expiry(subject: str, not_after: datetime, now: datetime) -> Expiry | None:
    """What to say about a certificate; None while it is valid for long."""
    days = (not_after - now).total_seconds() / 86400
    if days > WARNING_DAYS:
        return None
    severity = "alarm" if days <= ALARM_DAYS else "warning"
    when = f"{not_after:%Y-%m-%d %H:%M} UTC"
    text = (
        f"expires on {when}, in {int(days)} days" if days > 0 else f"has EXPIRED on {when}: no new connection with it"
    )
    return Expiry(severity, subject, f"the certificate of {subject} {text}; `segmap pki rotate` makes a new one")


class Credentials:
    """`make(ca, certificate, key)` builds the context. Raises TransportError if the files cannot be used at all."""

    def __init__(
        self, files: pki.Files, make: Callable[[Path, Path, Path], TlsContext], now: pki.Now = pki.utc_now
    ) -> None:
        self.problem = ""
        self.revoked: frozenset[int] = frozenset()
        self._files = files
        self._make = make
        self._now = now
        self._revoked_path = files.ca.with_name(revocation.REVOKED)
        self._stamps = self._look()
        self._load()

    def _look(self) -> list[Stamp]:
        return [_stamp(path) for path in (self._files.ca, self._files.certificate, self._files.key, self._revoked_path)]

    def _load(self) -> None:
        revoked = revocation.serials(self._revoked_path)
        context = self._make(self._files.ca, self._files.certificate, self._files.key)
        self._infos = [pki.inspect(self._files.certificate), pki.inspect(self._files.ca)]
        context.revoked = revoked
        self.context, self.revoked = context, revoked
        self.problem = ""

    def refresh(self, force: bool = False) -> bool:
        """Load what has changed; True if it is in use now. If it cannot be, `problem` says why, and nothing changes."""
        stamps = self._look()
        if stamps == self._stamps and not force and not self.problem:
            return False
        self._stamps = stamps
        try:
            self._load()
        except TransportError as error:
            self.problem = str(error)
            return False
        return True

    def expiries(self) -> list[Expiry]:
        """Of our own certificate, and of the authority's."""
        names = (self._infos[0].identity or "this process", "the authority")
        found = [expiry(name, info.not_after, self._now()) for name, info in zip(names, self._infos, strict=True)]
        return [item for item in found if item is not None]


def _stamp(path: Path) -> Stamp:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
