"""NVMe/TCP PDU layouts, their builders, and digests (TCP Transport Specification, clause 3.6; digests 3.3.1).

Every PDU starts with the 8-byte common header: type, flags, header length, data offset, PDU length. All integers are
little-endian. Header and data digests are CRC32C. `PduError` is what a peer's malformed PDU becomes: it names the
fatal error status and the place, and ends the connection.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from google_crc32c import value as crc32c

from fabric.nvme_tcp.spec import (
    FLAG_DDGST,
    FLAG_HDGST,
    FLAG_LAST,
    FLAG_SUCCESS,
    FatalError,
    PduType,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

COMMON: Final = Struct("<BBBBI")
COMMON_BYTES: Final = 8
IC: Final = Struct("<BBBBIHBBI112x")  # common, PFV, alignment, digests, MAXR2T or MAXH2CDATA
IC_BYTES: Final = 128
TERM: Final = Struct("<BBBBIHI10x")  # common, FES, FEI
TERM_BYTES: Final = 24
TERM_DATA_MAX: Final = 128
DATA: Final = Struct("<BBBBIHHII4x")  # common, CCCID, TTAG (reserved in C2HData), DATAO, DATAL; R2T: R2TO, R2TL
DATA_BYTES: Final = 24
RESPONSE: Final = Struct("<BBBBIIIHHHH")  # common, DW0, DW1, SQHD, SQID, CID, status << 1
RESPONSE_BYTES: Final = 24
CAPSULE_BYTES: Final = 72
DIGEST_BYTES: Final = 4
DIGEST: Final = Struct("<I")
HEADER_BYTES: Final[dict[int, int]] = {
    PduType.IC_REQ: IC_BYTES,
    PduType.IC_RESP: IC_BYTES,
    PduType.H2C_TERM_REQ: TERM_BYTES,
    PduType.C2H_TERM_REQ: TERM_BYTES,
    PduType.CAPSULE_CMD: CAPSULE_BYTES,
    PduType.CAPSULE_RESP: RESPONSE_BYTES,
    PduType.H2C_DATA: DATA_BYTES,
    PduType.C2H_DATA: DATA_BYTES,
    PduType.R2T: DATA_BYTES,
}
ALIGNMENT_MAX: Final = 31  # HPDA and CPDA, 0's based dwords
MAXH2CDATA_MIN: Final = 4096

# Places of header fields, for FEI.
AT_TYPE: Final = 0
AT_FLAGS: Final = 1
AT_HLEN: Final = 2
AT_PDO: Final = 3
AT_PLEN: Final = 4
AT_PFV: Final = 8
AT_ALIGNMENT: Final = 10
AT_MAXH2CDATA: Final = 12
AT_CCCID: Final = 8
AT_TTAG: Final = 10
AT_DATAO: Final = 12
AT_DATAL: Final = 16
AT_RESPONSE_CID: Final = 20


class PduError(Exception):
    """A PDU that ends the connection: fatal error status, further information (usually an offset), what was wrong."""

    def __init__(self, fes: FatalError, fei: int, reason: str) -> None:
        super().__init__(f"{reason} (FES {fes.value:02x}h, FEI {fei:x}h)")
        self.fes = fes
        self.fei = fei


def refuse_field(at: int, reason: str) -> NoReturn:
    """Raise: the field at this offset of the header is wrong."""
    raise PduError(FatalError.INVALID_HEADER_FIELD, at, reason)


def digest(data: Buffer) -> int:
    """CRC32C of one contiguous buffer."""
    return int(crc32c(data if isinstance(data, bytes) else bytes(data)))


def check_header_digest(header: bytes, received: int) -> None:
    """Raise a fatal error, which names the received digest, unless it is that of `header`."""
    if digest(header) != received:
        raise PduError(FatalError.HEADER_DIGEST_ERROR, received, "header digest is wrong")


class Sender(NamedTuple):
    """The PDUs that one side may send: all, the two that frame a connection, and those with data."""

    kinds: frozenset[int]
    initialize: int
    terminate: int
    always_data: int
    perhaps_data: int = -1


HOST: Final = Sender(
    frozenset({PduType.IC_REQ, PduType.H2C_TERM_REQ, PduType.CAPSULE_CMD, PduType.H2C_DATA}),
    PduType.IC_REQ,
    PduType.H2C_TERM_REQ,
    PduType.H2C_DATA,
    PduType.CAPSULE_CMD,
)
CONTROLLER: Final = Sender(
    frozenset({PduType.IC_RESP, PduType.C2H_TERM_REQ, PduType.CAPSULE_RESP, PduType.C2H_DATA, PduType.R2T}),
    PduType.IC_RESP,
    PduType.C2H_TERM_REQ,
    PduType.C2H_DATA,
)


class Framing:
    """How PDUs are laid out on one connection, as negotiated: digests and the receiver's data alignment."""

    __slots__ = ("alignment", "data_digest", "header_digest", "plain")

    def __init__(self, header_digest: bool = False, data_digest: bool = False, alignment: int = 0) -> None:
        self.header_digest = header_digest
        self.data_digest = data_digest
        self.alignment = (alignment + 1) * 4  # bytes; of the field's 0's based dwords
        # No digests and no padding: the fast paths apply.
        self.plain = not (header_digest or data_digest) and alignment == 0

    def data_offset(self, header_bytes: int) -> int:
        """PDO: where data starts behind a header of this length."""
        start = header_bytes + (DIGEST_BYTES if self.header_digest else 0)
        return -(-start // self.alignment) * self.alignment

    def check_common(
        self, sender: Sender, initialized: bool, kind: int, flags: int, hlen: int, pdo: int, plen: int
    ) -> int:
        """The length of the data in a PDU with this common header.

        Raises PduError for a header that cannot be, so that nothing is awaited in vain.
        """
        if kind not in sender.kinds:
            refuse_field(AT_TYPE, f"PDU type {kind:02x}h")
        if kind != sender.terminate and (kind == sender.initialize) == initialized:
            raise PduError(FatalError.PDU_SEQUENCE_ERROR, 0, f"PDU type {kind:02x}h at this time")
        if hlen != HEADER_BYTES[kind]:
            refuse_field(AT_HLEN, f"header length {hlen}")
        if kind in (sender.initialize, sender.terminate):
            top = hlen if kind == sender.initialize else hlen + TERM_DATA_MAX
            if not hlen <= plen <= top:
                refuse_field(AT_PLEN, f"PDU length {plen}")
            return 0
        start = hlen + (DIGEST_BYTES if self.header_digest else 0)
        if bool(flags & FLAG_HDGST) != self.header_digest:
            refuse_field(AT_FLAGS, "header digest flag")
        if plen == start and kind != sender.always_data:
            return 0
        return self._check_data(start, flags, pdo, plen, kind in (sender.always_data, sender.perhaps_data))

    def _check_data(self, start: int, flags: int, pdo: int, plen: int, expected: bool) -> int:
        digest_bytes = DIGEST_BYTES if self.data_digest else 0
        if not expected or plen <= start + digest_bytes:
            refuse_field(AT_PLEN, f"PDU length {plen}")
        if not start <= pdo <= (ALIGNMENT_MAX + 1) * 4 or pdo % 4:
            refuse_field(AT_PDO, f"data offset {pdo}")
        if pdo + digest_bytes >= plen:
            refuse_field(AT_PLEN, f"PDU length {plen}")
        if bool(flags & FLAG_DDGST) != self.data_digest:
            refuse_field(AT_FLAGS, "data digest flag")
        return plen - pdo - digest_bytes

    def encode(self, kind: int, flags: int, header_rest: bytes, data: Buffer | None = None) -> list[Buffer]:
        """One PDU as buffers: common header + rest, digest, padding; the data untouched; its digest."""
        header_bytes = COMMON_BYTES + len(header_rest)
        length = 0 if data is None else memoryview(data).nbytes
        if not length:
            pdo, plen = 0, header_bytes + (DIGEST_BYTES if self.header_digest else 0)
        else:
            pdo = self.data_offset(header_bytes)
            plen = pdo + length + (DIGEST_BYTES if self.data_digest else 0)
            flags |= FLAG_DDGST if self.data_digest else 0
        flags |= FLAG_HDGST if self.header_digest else 0
        header = COMMON.pack(kind, flags, header_bytes, pdo, plen) + header_rest
        if self.header_digest:
            header += DIGEST.pack(digest(header))
        if data is None or not length:
            return [header]
        parts: list[Buffer] = [header.ljust(pdo, b"\0"), data]
        if self.data_digest:
            parts.append(DIGEST.pack(digest(data)))
        return parts


def ic_request(alignment: int, header_digest: bool, data_digest: bool, r2t_max: int) -> bytes:
    """ICReq: host data alignment (0's based dwords), wanted digests, MAXR2T (0's based here too)."""
    flags = int(header_digest) | int(data_digest) << 1
    return IC.pack(PduType.IC_REQ, 0, IC_BYTES, 0, IC_BYTES, 0, alignment, flags, r2t_max)


def ic_response(alignment: int, header_digest: bool, data_digest: bool, h2c_data_max: int) -> bytes:
    """ICResp: controller data alignment, digests in use, MAXH2CDATA in bytes."""
    flags = int(header_digest) | int(data_digest) << 1
    return IC.pack(PduType.IC_RESP, 0, IC_BYTES, 0, IC_BYTES, 0, alignment, flags, h2c_data_max)


def term_request(kind: PduType, error: PduError, header: bytes) -> bytes:
    """H2CTermReq or C2HTermReq: never digested; carries the start of the PDU that caused it."""
    cause = header[:TERM_DATA_MAX]
    return TERM.pack(kind, 0, TERM_BYTES, 0, TERM_BYTES + len(cause), error.fes, error.fei) + cause


_DATA_REST: Final = Struct("<HHII4x")
_RESPONSE_REST: Final = Struct("<IIHHHH")


def data_pdu(
    framing: Framing, kind: PduType, cid: int, tag: int, offset: int, data: Buffer, *, last: bool, success: bool = False
) -> list[Buffer]:
    """H2CData (tag = TTAG) or C2HData (tag = 0) with its data."""
    flags = (FLAG_LAST if last else 0) | (FLAG_SUCCESS if success else 0)
    return framing.encode(kind, flags, _DATA_REST.pack(cid, tag, offset, memoryview(data).nbytes), data)


def r2t_pdu(framing: Framing, cid: int, tag: int, offset: int, length: int) -> bytes:
    (part,) = framing.encode(PduType.R2T, 0, _DATA_REST.pack(cid, tag, offset, length))
    return bytes(part)


def response_pdu(framing: Framing, result: int, head: int, queue: int, cid: int, status: int) -> bytes:
    """CapsuleResp: 64-bit command-specific result, SQHD, queue, command, status without phase bit."""
    rest = _RESPONSE_REST.pack(result & 0xFFFFFFFF, result >> 32, head, queue, cid, status << 1)
    (part,) = framing.encode(PduType.CAPSULE_RESP, 0, rest)
    return bytes(part)
