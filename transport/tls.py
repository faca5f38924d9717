"""TLS 1.3 with mutual certificates, as a byte-stream core over memory BIOs: the same on every transport.

A peer is who its certificate's URI name says (`segmap:controller`, `segmap:agent:NAME`), signed by our authority; host
names play no part. An end of the stream without close_notify is a truncation and is reported as a lost connection.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from transport.connection import (
    Buffer,
    Connection,
    ConnectionLost,
    OnClosed,
    OnData,
    OnWritable,
    TransportError,
    WriteQueueFull,
    size_of,
)

READ_BYTES: Final = 64 << 10
RECORD_BYTES: Final = 16 << 10
RECORD_OVERHEAD_BYTES: Final = 22
JOINED_BYTES_MAX: Final = 256 << 10
URI_PREFIX: Final = "segmap:"


class TlsError(TransportError):
    """The peer's TLS or certificate is not acceptable, or our own files are not usable."""


class TlsContext:
    """Our certificate, the authority, and whom we accept. Made once, used for many connections."""

    def __init__(self, context: ssl.SSLContext, *, server: bool, accept: Callable[[str], str]) -> None:
        self.context = context
        self.is_server = server
        self.accept = accept
        self.revoked: frozenset[int] = frozenset()
        """Serial numbers of certificates that are not accepted."""

    @classmethod
    def server(cls, ca: Path, certificate: Path, key: Path, roles: Collection[str] = ("agent",)) -> TlsContext:
        """Accepts every peer with one of these roles: `agent`, `controller`."""
        allowed = frozenset(roles)

        def accept(identity: str) -> str:
            role = identity.removeprefix(URI_PREFIX).split(":")[0]
            return "" if role in allowed else f"its role is {role}, accepted here: {', '.join(sorted(allowed))}"

        return cls(_context(ssl.PROTOCOL_TLS_SERVER, ca, certificate, key), server=True, accept=accept)

    @classmethod
    def client(cls, ca: Path, certificate: Path, key: Path, expect: str = "segmap:controller") -> TlsContext:
        """Accepts exactly the identity `expect`."""

        def accept(identity: str) -> str:
            return "" if identity == expect else f"it is {identity}, expected {expect}"

        return cls(_context(ssl.PROTOCOL_TLS_CLIENT, ca, certificate, key), server=False, accept=accept)


def _context(protocol: int, ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    try:
        if key.stat().st_mode & 0o077:
            raise TlsError(f"{key}: others can read this private key; chmod 600 it")
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cafile=ca)
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise TlsError(f"TLS files {ca}, {certificate}, {key}: {error}; make them with `segmap pki`") from error
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context


class TlsLayer:
    """One TLS connection: ciphertext in, plaintext out, and the other way round. Raises TlsError for a bad peer."""

    def __init__(self, context: TlsContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._accept = context.accept
        self._revoked = context.revoked
        self._object = context.context.wrap_bio(self._incoming, self._outgoing, server_side=context.is_server)
        self.identity = ""
        self.serial = 0
        self.not_after_s = 0.0
        self.established = False
        self.ended = False
        self._broken: TlsError | None = None

    def receive_ciphertext(self, data: Buffer) -> None:
        """What came from the transport; then ask `read`."""
        self._incoming.write(data)

    def handshake(self) -> bool:
        """One step; True once the peer is known. Then `identity` is who it is."""
        if self.established:
            return True
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise TlsError(f"TLS handshake: {_reason(error)}") from error
        certificate = self._object.getpeercert() or {}
        self.identity = _identity(certificate)
        self.serial = int(str(certificate.get("serialNumber", "0")), 16)
        self.not_after_s = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
        refusal = self._accept(self.identity)
        if self.serial in self._revoked:
            refusal = f"its certificate {self.serial:x} is revoked"
        if refusal:
            raise TlsError(f"TLS peer {self.identity} refused: {refusal}")
        self.established = True
        return True

    def read(self) -> bytes:
        """The plaintext of all records that have come whole, or nothing: more ciphertext is needed, or `ended`.

        What came before a bad record is given out first; the next call raises.
        """
        if self._broken is not None:
            raise self._broken
        pieces: list[bytes] = []
        try:
            while not self.ended and (self._incoming.pending or self._object.pending()):
                piece = self._read_record()
                if not piece:
                    break
                pieces.append(piece)
        except TlsError as error:
            self._broken = error
            if not pieces:
                raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_record(self) -> bytes:
        try:
            data = self._object.read(READ_BYTES)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLZeroReturnError:
            self.ended = True
            return b""
        except ssl.SSLError as error:
            raise TlsError(f"TLS: {_reason(error)}") from error
        if not data:
            self.ended = True
        return data

    def send_plaintext(self, buffers: Sequence[Buffer]) -> None:
        """Encrypt; small buffers share records. The result is in `data_to_send`."""
        if len(buffers) > 1 and size_of(buffers) <= JOINED_BYTES_MAX:
            buffers = (b"".join(buffers),)
        for buffer in buffers:
            if len(buffer):
                self._object.write(buffer)

    def send_end(self) -> None:
        """close_notify; nothing may be sent after it."""
        if self.established:
            try:
                self._object.unwrap()
            except (ssl.SSLError, ValueError):
                pass  # the peer's own close_notify has not come, or the connection is broken: ours is in the BIO

    def data_to_send(self) -> bytes:
        """Ciphertext for the transport, all of it."""
        return self._outgoing.read()


def _reason(error: ssl.SSLError) -> str:
    verify = getattr(error, "verify_message", "")
    return f"certificate refused: {verify}" if verify else (error.reason or str(error)).replace("_", " ").lower()


def _identity(certificate: Mapping[str, object]) -> str:
    names = certificate.get("subjectAltName", ())
    assert isinstance(names, tuple)
    found = [value for kind, value in names if kind == "URI" and value.startswith(URI_PREFIX)]
    if len(found) != 1:
        raise TlsError(f"TLS peer: its certificate has {len(found)} names of the form {URI_PREFIX}ROLE, needs one")
    return str(found[0])


class TlsConnection(Connection):
    """TLS over another connection. `begin` does the handshake; then `ready` or `failed` is called, once.

    A client is ready before the server has seen its certificate: a refusal comes later, with `on_closed`.
    """

    def __init__(
        self,
        lower: Connection,
        context: TlsContext,
        ready: Callable[[Connection], None],
        failed: Callable[[Exception], None],
        call_soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self.peer = lower.peer
        self._call_soon = call_soon
        self._lower = lower
        self._layer = TlsLayer(context)
        self._ready: Callable[[Connection], None] | None = ready
        self._failed = failed
        self._on_data: OnData | None = None
        self._on_closed: OnClosed | None = None
        self._on_writable: OnWritable | None = None
        self._reading = False
        self._delivering = False
        self._closing = False
        self._told = False
        self._end: tuple[Exception | None] | None = None

    def begin(self) -> None:
        """Start the handshake (the client speaks first)."""
        self._lower.start(self._received, self._lower_closed, self._lower_writable)
        self._shake()

    def fail(self, error: Exception) -> None:
        """Give up: before the handshake is done this calls `failed`, later `on_closed`."""
        self._flush()
        self._finish(error)
        self._lower.close()

    # --- the lower connection's side ---------------------------------------------------------------------------------

    def _received(self, data: Buffer) -> None:
        if self._end is not None:
            return
        self._layer.receive_ciphertext(data)
        if self._ready is not None:
            self._shake()
        else:
            self._deliver()

    def _shake(self) -> None:
        try:
            done = self._layer.handshake()
        except TlsError as error:
            self.fail(TlsError(f"{self.peer.address}: {error}"))
            return
        self._flush()
        ready = self._ready
        if done and ready is not None:
            self._ready = None
            layer = self._layer
            self.peer = replace(
                self._lower.peer, identity=layer.identity, serial=layer.serial, not_after_s=layer.not_after_s
            )
            self._lower.pause()
            ready(self)

    def _deliver(self) -> None:
        """Give out plaintext while the owner reads; it may pause, close or write meanwhile."""
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._reading and not self._closing and self._end is None and self._on_data is not None:
                data = self._layer.read()
                if not data:
                    break
                self._on_data(data)
        except TlsError as error:
            self.fail(TlsError(f"{self.peer.address}: {error}"))
        finally:
            self._delivering = False
        if self._layer.ended:
            self.close()
        else:
            self._flush()

    def _lower_closed(self, error: Exception | None) -> None:
        if error is None and not self._closing and not self._layer.ended:
            error = ConnectionLost(f"{self.peer.address}: ended without TLS's end: cut, or the peer refused us")
        self._finish(error)
        self._tell_closed()

    def _lower_writable(self, writable: bool) -> None:
        if self._on_writable is not None and not self._closing:
            self._on_writable(writable)

    def _finish(self, error: Exception | None) -> None:
        if self._end is not None:
            return
        self._end = (error,)
        if self._ready is not None:
            self._ready = None
            self._told = True
            self._failed(error or ConnectionLost(f"{self.peer.address}: ended during the TLS handshake"))

    def _tell_closed(self) -> None:
        if self._told or self._end is None or self._on_closed is None:
            return
        self._told = True
        self._on_data = self._on_writable = None
        self._on_closed(self._end[0])

    def _flush(self) -> None:
        data = self._layer.data_to_send()
        if data:
            try:
                self._lower.write((data,))
            except ConnectionLost:
                pass  # on_closed of the lower connection follows and says why
            except WriteQueueFull as error:
                self._finish(error)
                self._lower.abort()

    # --- the owner's side --------------------------------------------------------------------------------------------

    def start(self, on_data: OnData, on_closed: OnClosed, on_writable: OnWritable | None = None) -> None:
        self._on_data, self._on_closed, self._on_writable = on_data, on_closed, on_writable
        if self._end is not None:
            self._call_soon(self._tell_closed)
        else:
            self._reading = True
            self._call_soon(self._read_on)

    def write(self, buffers: Sequence[Buffer]) -> None:
        if self._closing or self._end is not None:
            raise ConnectionLost(f"{self.peer.address}: written to after the end")
        size = size_of(buffers)
        if size + (size // RECORD_BYTES + len(buffers)) * RECORD_OVERHEAD_BYTES > self._lower.write_room:
            raise WriteQueueFull(f"{self.peer.address} does not read: {self.write_bytes} bytes queued")
        self._layer.send_plaintext(buffers)
        self._lower.write((self._layer.data_to_send(),))

    def pause(self) -> None:
        self._reading = False
        self._lower.pause()

    def resume(self) -> None:
        """Held plaintext is given out first."""
        self._reading = True
        self._read_on()

    def _read_on(self) -> None:
        self._deliver()
        if self._reading and self._end is None:
            self._lower.resume()

    def close(self) -> None:
        if self._closing or self._end is not None:
            return
        self._closing = True
        self._layer.send_end()
        self._flush()
        self._lower.close()

    def abort(self) -> None:
        self._closing = True
        self._lower.abort()

    @property
    def write_bytes(self) -> int:
        return self._lower.write_bytes

    @property
    def write_room(self) -> int:
        return self._lower.write_room

    @property
    def writable(self) -> bool:
        return self._lower.writable and not self._closing
