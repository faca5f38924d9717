"""Every limit of a target in one place; each has a defined refusal."""

from __future__ import annotations

from dataclasses import dataclass

from fabric.nvme_tcp.receive import RECEIVE_BYTES
from fabric.nvme_tcp.spec import ADMIN_IN_CAPSULE_BYTES, PAGE_BYTES

SECOND_NS = 1_000_000_000


@dataclass(slots=True)
class TransportLimits:
    """Sizes in bytes, depths in commands, counts.

    max_queue_depth: SQSIZE + 1 of a queue (Connect is refused beyond); max_admin_depth: of the admin queue;
    max_io_queues: per controller; in_capsule_data_size: of I/O queues (admin: 8 KiB); max_io_size: MDTS and
    MAXH2CDATA; c2h_success: leave out the completion of a successful read where the host disabled SQ flow control;
    write_buffer_size: host data requested by R2T and not yet executed, per queue; output_size: answers made before
    they must be sent; setup_timeout_ns: from TCP connection to Connect; keep_alive_grain_ms: KAS, rounded up to it.
    """

    max_queue_depth: int = 128
    max_admin_depth: int = 128
    max_io_queues: int = 126
    max_connections: int = 1024
    in_capsule_data_size: int = 4096
    max_io_size: int = 1 << 20
    c2h_success: bool = True
    write_buffer_size: int = 8 << 20
    output_size: int = 4 << 20
    setup_timeout_ns: int = 30 * SECOND_NS
    keep_alive_grain_ms: int = 100

    def __post_init__(self) -> None:
        whole_pages = self.max_io_size % PAGE_BYTES == 0 and self.max_io_size & (self.max_io_size - 1) == 0
        if not PAGE_BYTES <= self.max_io_size <= 1 << 30 or not whole_pages:
            raise ValueError("max_io_size is a power of two from 4096")
        if not 0 <= self.in_capsule_data_size <= RECEIVE_BYTES // 4 or self.in_capsule_data_size % 16:
            raise ValueError(f"in_capsule_data_size is a multiple of 16 of at most {RECEIVE_BYTES // 4}")
        if not 2 <= self.max_queue_depth <= 65536 or not 2 <= self.max_admin_depth <= 4096:
            raise ValueError("a queue has 2 to 65536 entries, an admin queue at most 4096")
        if not 1 <= self.max_io_queues <= 65535:
            raise ValueError("a controller has 1 to 65535 I/O queues")

    @property
    def mdts(self) -> int:
        """MDTS: a power of two in pages."""
        return (self.max_io_size // PAGE_BYTES).bit_length() - 1

    def in_capsule(self, qid: int) -> int:
        """Bytes of data that a capsule on this queue may carry."""
        return self.in_capsule_data_size if qid else max(ADMIN_IN_CAPSULE_BYTES, self.in_capsule_data_size)
