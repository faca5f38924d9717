"""Submission queue entries: 64 bytes in a command capsule, the same for all opcodes up to command dword 10.

Base Specification, common command format; fabrics commands put their type in the byte of the NSID and their
parameters in dwords 10 to 13.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Final

from fabric.nvme_tcp.spec import (
    CONNECT_DATA_BYTES,
    FABRICS_OPCODE,
    NQN_BYTES_MAX,
    PSDT_SGL,
    SGL_IN_CAPSULE,
    SGL_TRANSPORT,
    FabricsType,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SQE: Final = Struct("<BBHI8x8xQI3xB6I")
_CONNECT_DATA: Final = Struct("<16sH238x256s256s256x")
_RANGE: Final = Struct("<IIQ")


@dataclass(slots=True)
class Sqe:
    """One command as it travels: opcode, flags (FUSE, PSDT), identifier, namespace, SGL descriptor, dwords 10 to 15."""

    opcode: int
    nsid: int = 0
    cdw10: int = 0
    cdw11: int = 0
    cdw12: int = 0
    cdw13: int = 0
    cdw14: int = 0
    cdw15: int = 0
    cid: int = 0
    flags: int = PSDT_SGL
    sgl_address: int = 0
    sgl_length: int = 0
    sgl_type: int = SGL_TRANSPORT

    def pack(self) -> bytes:
        return _SQE.pack(
            self.opcode,
            self.flags,
            self.cid,
            self.nsid,
            self.sgl_address,
            self.sgl_length,
            self.sgl_type,
            self.cdw10,
            self.cdw11,
            self.cdw12,
            self.cdw13,
            self.cdw14,
            self.cdw15,
        )

    @property
    def fabrics_type(self) -> int:
        return self.nsid & 0xFF

    @property
    def slba(self) -> int:
        return self.cdw10 | self.cdw11 << 32

    @property
    def takes_host_data(self) -> bool:
        """Data goes from host to controller (bits 1:0 of the opcode, or of the fabrics type)."""
        kind = self.fabrics_type if self.opcode == FABRICS_OPCODE else self.opcode
        return kind & 3 == 1


def unpack_sqe(data: Buffer, offset: int = 0) -> Sqe:
    """The 64 bytes at `offset`."""
    opcode, flags, cid, nsid, address, length, kind, c10, c11, c12, c13, c14, c15 = _SQE.unpack_from(data, offset)
    return Sqe(opcode, nsid, c10, c11, c12, c13, c14, c15, cid, flags, address, length, kind)


def connect_sqe(qid: int, sqsize: int, *, disable_flow_control: bool, keep_alive_ms: int) -> Sqe:
    """Connect (data in the capsule). `sqsize` is 0's based."""
    return Sqe(
        FABRICS_OPCODE,
        FabricsType.CONNECT,
        cdw10=qid << 16,
        cdw11=sqsize | (4 if disable_flow_control else 0) << 16,
        cdw12=keep_alive_ms,
        sgl_length=CONNECT_DATA_BYTES,
        sgl_type=SGL_IN_CAPSULE,
    )


def connect_data(hostid: bytes, cntlid: int, subnqn: str, hostnqn: str) -> bytes:
    return _CONNECT_DATA.pack(hostid, cntlid, subnqn.encode(), hostnqn.encode())


def parse_connect_data(data: Buffer) -> tuple[bytes, int, bytes, bytes]:
    """(host id, controller id, subsystem NQN field, host NQN field); the NQNs are 256 bytes, not yet checked."""
    hostid, cntlid, subnqn, hostnqn = _CONNECT_DATA.unpack_from(data)
    return hostid, cntlid, subnqn, hostnqn


def nqn_of(field: bytes) -> str | None:
    """The NQN in a 256-byte field, maybe empty, or None if it is not terminated, too long or not UTF-8."""
    name, zero, _ = field.partition(b"\0")
    if not zero or len(name) > NQN_BYTES_MAX:
        return None
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None


def pack_ranges(ranges: list[tuple[int, int]]) -> bytes:
    """Dataset Management ranges from (first block, blocks)."""
    return b"".join(_RANGE.pack(0, count, start) for start, count in ranges)


def unpack_ranges(data: Buffer, count: int) -> list[tuple[int, int]]:
    """`count` (first block, blocks)."""
    return [(start, length) for _, length, start in (_RANGE.unpack_from(data, n * 16) for n in range(count))]
