"""What a controller is configured with: one plain value, from the command or a test; times in seconds, sizes in bytes.

`Timing` and `Limits` are what the core needs of it, in nanoseconds and counts. Every bound of the core is named here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

SECOND_NS: Final = 1_000_000_000
DRIFT: Final = 0.01
"""How much any clock (CLOCK_MONOTONIC of a controller, agent or data plane) may gain or lose against true time, as a
fraction: what leases rely on, what the simulation's clocks keep to, and what is watched (controller/core/drift.py)."""
SLOTS_MAX: Final = 4096
AGENTS_MAX: Final = 255
"""Each agent owns 256 controller ids of every subsystem; NVMe has 65,519 of them."""


class ConfigError(ValueError):
    """A setting that cannot work; the text names it and what would."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Nanoseconds. A lease has surely expired `lease_ns` stretched by `drift` plus `margin_ns` after its grant."""

    lease_ns: int = 10 * SECOND_NS
    renew_ns: int = 3 * SECOND_NS
    park_limit_ns: int = 30 * SECOND_NS
    io_deadline_ns: int = 20 * SECOND_NS
    space_deadline_ns: int = 20 * SECOND_NS
    margin_ns: int = SECOND_NS // 2
    drift: float = DRIFT
    retry_ns: int = 2 * SECOND_NS
    command_ns: int = 60 * SECOND_NS
    wait_ns: int = 30 * SECOND_NS

    @property
    def drift_between(self) -> float:
        """How much two clocks may differ in rate."""
        return 2 * self.drift

    @property
    def surely_expired_ns(self) -> int:
        """How long after a grant was made no clock within the drift bound can still hold it valid."""
        return int(self.lease_ns * (1 + self.drift_between)) + self.margin_ns


@dataclass(frozen=True, slots=True)
class Limits:
    """Counts; each has a defined refusal."""

    segment_size: int = 1 << 20
    block_size: int = 512
    zeroed_pool_segments: int = 512
    zero_batch_segments: int = 64
    read_ahead_segments: int = 512
    allocate_ahead_segments: int = 16
    extent_segments: int = 64
    commands_in_flight: int = 128
    faults_waiting_per_agent: int = 262_144
    vdisks: int = 65_536
    vdisk_segments: int = 1 << 36
    requests_kept: int = 4096
    operations_waiting: int = 1024
    events_kept: int = 2000
    map_runs: int = 65_536
    entries_asked: int = 65_536


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """Everything `segmap controller` needs. Port 0 is an ephemeral one, told in `port_file`."""

    store_path: Path
    tls_ca: Path
    tls_certificate: Path
    tls_key: Path
    listen_host: str = "127.0.0.1"
    listen_port: int = 0
    api_socket: Path | None = None
    api_listen: tuple[str, int] | None = None
    api_tokens: Path | None = None
    port_file: Path | None = None
    cluster_name: str = "segmap"
    lease_duration_s: float = 10.0
    renew_interval_s: float = 3.0
    park_limit_s: float = 30.0
    io_deadline_s: float = 20.0
    space_deadline_s: float = 20.0
    drift: float = DRIFT
    lease_margin_s: float = 0.5
    segment_size: int = 1 << 20
    block_size: int = 512
    zeroed_pool_segments: int = 512
    zero_batch_segments: int = 64
    read_ahead_segments: int = 512
    allocate_ahead_segments: int = 16
    sessions_max: int = field(default=1024)

    def __post_init__(self) -> None:
        if not 0 < self.renew_interval_s * 2 < self.lease_duration_s:
            raise ConfigError("renew_interval_s must be less than half of lease_duration_s")
        if not 0 < self.space_deadline_s < self.park_limit_s:
            raise ConfigError("space_deadline_s must be less than park_limit_s: the answer has to come before")
        if not 0 <= self.drift < 0.5:
            raise ConfigError("drift is a fraction of less than one half")
        if self.block_size not in (512, 4096) or self.segment_size % self.block_size:
            raise ConfigError("block_size is 512 or 4096, and segment_size a multiple of it")

    def timing(self) -> Timing:
        """The core's share of the times."""
        return Timing(
            lease_ns=_ns(self.lease_duration_s),
            renew_ns=_ns(self.renew_interval_s),
            park_limit_ns=_ns(self.park_limit_s),
            io_deadline_ns=_ns(self.io_deadline_s),
            space_deadline_ns=_ns(self.space_deadline_s),
            margin_ns=_ns(self.lease_margin_s),
            drift=self.drift,
        )

    def limits(self) -> Limits:
        """The core's share of the sizes and counts."""
        return Limits(
            segment_size=self.segment_size,
            block_size=self.block_size,
            zeroed_pool_segments=self.zeroed_pool_segments,
            zero_batch_segments=self.zero_batch_segments,
            read_ahead_segments=self.read_ahead_segments,
            allocate_ahead_segments=self.allocate_ahead_segments,
        )


def _ns(seconds: float) -> int:
    return int(seconds * SECOND_NS)
