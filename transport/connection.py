"""What every transport gives: an ordered byte stream with backpressure both ways and bounded queues.

Callbacks of one connection never nest in each other's `start`; `on_closed` comes once and is the last one. Nothing is
delivered between `pause` and `resume`, nor before `start`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transport.tls import TlsContext

Buffer = bytes | bytearray | memoryview
OnData = Callable[[Buffer], None]
OnClosed = Callable[[Exception | None], None]
OnWritable = Callable[[bool], None]


class TransportError(Exception):
    """What a transport can say; the text says what to do."""


class ConnectFailed(TransportError):
    """No connection could be made: refused, timed out, or not who it should be."""


class ConnectionLost(TransportError):
    """The connection ended without its proper end, or is written to after the end."""


class WriteQueueFull(TransportError):
    """The peer does not read and `write_max_bytes` are queued: nothing was written. End the connection."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one connection: bytes queued for writing, and of one listener: how many, and how long a handshake takes."""

    write_high_bytes: int = 4 << 20
    write_low_bytes: int = 1 << 20
    write_max_bytes: int = 128 << 20
    read_chunk_bytes: int = 256 << 10
    handshake_timeout_s: float = 10.0
    close_timeout_s: float = 5.0
    half_open_max: int = 64
    connections_max: int = 1024


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end. `identity`: what its certificate proved, `segmap:agent:NAME`; empty without TLS.

    `serial` and `not_after_s` (seconds since 1970) are that certificate's; 0 without TLS.
    """

    address: str
    identity: str = ""
    serial: int = 0
    not_after_s: float = 0.0


class Connection(ABC):
    """An open connection. The buffer given to `on_data` is valid only during the call."""

    peer: Peer

    @abstractmethod
    def start(self, on_data: OnData, on_closed: OnClosed, on_writable: OnWritable | None = None) -> None:
        """Begin to read. `on_closed(None)`: the peer ended it properly, or we did. Once per connection.

        `on_writable(False)`: more than write_high_bytes are queued; `on_writable(True)`: below write_low_bytes again.
        """

    @abstractmethod
    def write(self, buffers: Sequence[Buffer]) -> None:
        """Queue the buffers, in order; never waits. Raises WriteQueueFull or ConnectionLost, then took nothing."""

    @abstractmethod
    def pause(self) -> None:
        """Stop reading: no more `on_data`."""

    @abstractmethod
    def resume(self) -> None:
        """Go on reading."""

    @abstractmethod
    def close(self) -> None:
        """Write what is queued, then end; received bytes are dropped. Again: no effect.

        `on_closed` follows once the peer has ended too, or did not within `close_timeout_s`.
        """

    @abstractmethod
    def abort(self) -> None:
        """End at once, queued bytes are dropped. `on_closed` follows."""

    @property
    @abstractmethod
    def write_bytes(self) -> int:
        """Queued for writing."""

    @property
    @abstractmethod
    def write_room(self) -> int:
        """How many bytes `write` would take now without WriteQueueFull."""

    @property
    @abstractmethod
    def writable(self) -> bool:
        """False between `on_writable(False)` and `on_writable(True)`, and after the end."""


class Listener(ABC):
    """Accepts connections until `close`."""

    @abstractmethod
    def replace_tls(self, context: TlsContext) -> None:
        """New connections use this; those that are there go on as they are."""

    @property
    @abstractmethod
    def port(self) -> int:
        """The TCP port that is listened on; 0 for a Unix socket."""

    @property
    @abstractmethod
    def connections(self) -> int:
        """Accepted and not ended, half-open ones included."""

    @abstractmethod
    def close(self) -> None:
        """Listen no more. What was accepted goes on."""

    @abstractmethod
    def close_all(self) -> None:
        """End every accepted connection, at once; half-open ones too."""

    @abstractmethod
    async def wait_closed(self) -> None:
        """Until every accepted connection has ended."""


def size_of(buffers: Sequence[Buffer]) -> int:
    """Bytes in all buffers."""
    return sum([buffer.nbytes if isinstance(buffer, memoryview) else len(buffer) for buffer in buffers])
