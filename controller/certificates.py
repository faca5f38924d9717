"""The controller's certificates while it runs: loaded again when they change, alarms before any of them expires.

Its own, the authority's, and those of the agents' present sessions. What is told are changes only.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from controller.config import ControllerConfig
from controller.core.effects import ConditionChanged
from transport import pki
from transport.connection import Peer
from transport.credentials import Credentials, expiry
from transport.tls import TlsContext

KIND = "certificate"


class CertificateWatch:
    """Raises TransportError if the files cannot be used at all."""

    def __init__(self, config: ControllerConfig, now: pki.Now = pki.utc_now) -> None:
        files = pki.Files(config.tls_ca, config.tls_certificate, config.tls_key)
        self._now = now
        self._told: dict[str, tuple[str, str]] = {}
        self._credentials = Credentials(
            files, lambda ca, certificate, key: TlsContext.server(ca, certificate, key, {"agent"}), now
        )

    @property
    def context(self) -> TlsContext:
        """For new connections."""
        return self._credentials.context

    def refresh(self, force: bool) -> bool:
        """Load what has changed; True if it is in use now."""
        return self._credentials.refresh(force)

    def revoked(self, peer: Peer) -> bool:
        """True if the peer's certificate is on the list."""
        return peer.serial in self._credentials.revoked

    def forget(self) -> None:
        """A new reign has been told nothing yet."""
        self._told.clear()

    def changes(self, peers: Iterable[Peer]) -> list[ConditionChanged]:
        """What has become wrong, or right, since it was asked last."""
        found = {item.subject: (item.severity, item.text) for item in self._credentials.expiries()}
        for peer in peers:
            item = expiry(peer.identity, datetime.fromtimestamp(peer.not_after_s, UTC), self._now())
            if item is not None:
                found[item.subject] = (item.severity, item.text)
        if self._credentials.problem:
            text = f"the new TLS files are not used, the old ones are: {self._credentials.problem}"
            found["files"] = ("alarm", text)
        changes = [
            ConditionChanged(KIND, subject, *what) for subject, what in found.items() if self._told.get(subject) != what
        ]
        over = [subject for subject in self._told if subject not in found]
        changes += [
            ConditionChanged(KIND, subject, "info", f"certificates: {subject} is right again") for subject in over
        ]
        self._told = found
        return changes
