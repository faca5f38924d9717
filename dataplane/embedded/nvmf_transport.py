"""The options of the TCP transport: SPDK's names and defaults, and what they mean for fabric.nvme_tcp."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from fabric.nvme_tcp.limits import TransportLimits

IO_SIZE_MIN: Final = 8192
IO_SIZE_MAX: Final = 2 << 20
IN_CAPSULE_MAX: Final = 65536
ADMIN_DEPTH_MIN: Final = 32
ADMIN_DEPTH_MAX: Final = 4096
SOCK_PRIORITY_MAX: Final = 16
_KAS_MS: Final = 100


@dataclass(slots=True)
class TransportOptions:
    """As nvmf_get_transports reports them; those that SPDK alone has a use for are kept and given back."""

    trtype: str = "TCP"
    max_queue_depth: int = 128
    max_io_qpairs_per_ctrlr: int = 127
    in_capsule_data_size: int = 4096
    max_io_size: int = 131072
    max_aq_depth: int = 128
    iobuf_small_cache_size: int = 0xFFFFFFFF
    iobuf_large_cache_size: int = 0xFFFFFFFF
    dif_insert_or_strip: bool = False
    zcopy: bool = False
    c2h_success: bool = True
    sock_priority: int = 0
    abort_timeout_sec: int = 1
    ack_timeout: int = 0
    data_wr_pool_size: int = 0
    disable_command_passthru: bool = False
    kas: int = 100
    min_kato: int = 10000

    def settle(self) -> bool:
        """Put values that SPDK corrects right; False if it refuses them."""
        size = self.max_io_size
        if size & (size - 1) or not IO_SIZE_MIN <= size <= IO_SIZE_MAX or not self.kas or not self.min_kato:
            return False
        grain = self.kas * _KAS_MS
        self.min_kato = -(-self.min_kato // grain) * grain
        self.max_aq_depth = max(self.max_aq_depth, ADMIN_DEPTH_MIN)
        if self.max_aq_depth > ADMIN_DEPTH_MAX:
            self.max_aq_depth = 128
        if self.max_queue_depth < 2:
            self.max_queue_depth = 128
        self.in_capsule_data_size = min(self.in_capsule_data_size, self.max_io_size)
        return True

    def limits(self) -> TransportLimits:
        """What the protocol enforces; in-capsule data in whole 16 bytes, at most IN_CAPSULE_MAX."""
        return TransportLimits(
            max_queue_depth=self.max_queue_depth,
            max_admin_depth=self.max_aq_depth,
            max_io_queues=self.max_io_qpairs_per_ctrlr,
            in_capsule_data_size=min(self.in_capsule_data_size, IN_CAPSULE_MAX) // 16 * 16,
            max_io_size=self.max_io_size,
            c2h_success=self.c2h_success,
            keep_alive_grain_ms=self.kas * _KAS_MS,
        )

    def report(self) -> dict[str, Any]:
        """The object of nvmf_get_transports, and the parameters that make the same transport again."""
        return asdict(self)
