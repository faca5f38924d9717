"""One controller of the target: properties, features, asynchronous events, keep-alive, its queue pairs.

Base Specification: controller properties (CAP, VS, CC, CSTS), features, asynchronous event requests, keep alive.
Dynamic controllers only: one is made by each admin Connect, and ends with its admin connection.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from fabric.nvme_tcp import identify
from fabric.nvme_tcp.spec import (
    CC_EN,
    CC_SHN_SHIFT,
    CSTS_RDY,
    CSTS_SHST_COMPLETE,
    DNR,
    EVENT_CONFIG_DISCOVERY,
    EVENT_CONFIG_NAMESPACES,
    EVENT_DISCOVERY_CHANGED,
    EVENT_NAMESPACES_CHANGED,
    VERSION,
    Feature,
    Property,
    Status,
)

if TYPE_CHECKING:
    from fabric.nvme_tcp.command import Command
    from fabric.nvme_tcp.limits import TransportLimits
    from fabric.nvme_tcp.subsystem import Subsystem
    from fabric.nvme_tcp.target_connection import TargetConnection

ASYNC_EVENTS_MAX: Final = 4
ABORTS_MAX: Final = 4
ERROR_ENTRIES_MAX: Final = 64
_CONFIG_BIT: Final = {
    EVENT_NAMESPACES_CHANGED: EVENT_CONFIG_NAMESPACES,
    EVENT_DISCOVERY_CHANGED: EVENT_CONFIG_DISCOVERY,
}
# Features that are plain 32-bit values here: (default, writable bits)
_PLAIN_FEATURES: Final = {
    Feature.ARBITRATION: (0, 0xFFFFFF07),
    Feature.POWER_MANAGEMENT: (0, 0),
    Feature.TEMPERATURE_THRESHOLD: (0x0157, 0x003FFFFF),
    Feature.ERROR_RECOVERY: (0, 0x0000FFFF),
    Feature.WRITE_ATOMICITY: (0, 1),
}


class Controller:
    """State of one controller. `queues` holds its connected queue pairs by queue id; 0 is the admin queue."""

    def __init__(self, subsystem: Subsystem, cntlid: int, hostnqn: str, hostid: bytes, limits: TransportLimits) -> None:
        self.subsystem = subsystem
        self.cntlid = cntlid
        self.hostnqn = hostnqn
        self.hostid = hostid
        self.limits = limits
        self.queues: dict[int, TargetConnection] = {}
        self.cc = 0
        self.csts = 0
        self.io_queues = limits.max_io_queues
        self.keep_alive_ms = 0
        self.deadline_ns: int | None = None
        self.features: dict[int, int] = {feature: value for feature, (value, _) in _PLAIN_FEATURES.items()}
        self.event_config = 0 if subsystem.is_discovery else EVENT_CONFIG_NAMESPACES
        self.write_cache = True
        self.host_behavior = bytes(512)
        self.event_requests: deque[Command] = deque()
        self.pending_events: list[int] = []
        self.unread_events: set[int] = set()
        self.changed: set[int] = set()
        self.errors: deque[bytes] = deque(maxlen=ERROR_ENTRIES_MAX)
        self.error_count = 0
        self.reads = 0
        self.writes = 0
        self.bytes_read = 0
        self.bytes_written = 0

    @property
    def ready(self) -> bool:
        return bool(self.csts & CSTS_RDY)

    @property
    def cap(self) -> int:
        """CAP: queue entries 0's based, contiguous queues, ready within 15 s, NVM command set."""
        return (self.limits.max_queue_depth - 1) | 1 << 16 | 30 << 24 | 1 << 37

    def get_property(self, offset: int, wide: bool) -> int | None:
        """The value of a property of 4 (or, if `wide`, 8) bytes; None if there is none such."""
        values = {Property.VS: VERSION, Property.CC: self.cc, Property.CSTS: self.csts}
        if wide:
            return self.cap if offset == Property.CAP else None
        return next((value for place, value in values.items() if place == offset), None)

    def set_cc(self, value: int) -> bool:
        """Write CC. True if this was a reset (EN 1 to 0) or shutdown: the I/O queues must go."""
        was, self.cc = self.cc, value
        if value >> CC_SHN_SHIFT & 3 and not was >> CC_SHN_SHIFT & 3:
            self.csts |= CSTS_SHST_COMPLETE
            return True
        if value & CC_EN and not was & CC_EN:
            self.csts = CSTS_RDY
        elif was & CC_EN and not value & CC_EN:
            self._reset()
            return True
        return False

    def _reset(self) -> None:
        self.cc = 0
        self.csts = 0
        self.io_queues = self.limits.max_io_queues
        self.pending_events.clear()
        self.unread_events.clear()
        self.event_config = 0 if self.subsystem.is_discovery else EVENT_CONFIG_NAMESPACES
        for request in self.event_requests:
            request.connection.forget_command(request)
        self.event_requests.clear()

    # Keep alive

    def set_keep_alive(self, timeout_ms: int, now_ns: int) -> None:
        """A new timeout (0: none), rounded up to the grain."""
        grain = self.limits.keep_alive_grain_ms
        self.keep_alive_ms = -(-timeout_ms // grain) * grain
        self.kept_alive(now_ns)

    def kept_alive(self, now_ns: int) -> None:
        self.deadline_ns = now_ns + self.keep_alive_ms * 1_000_000 if self.keep_alive_ms else None

    # Asynchronous events

    def request_event(self, command: Command) -> bool:
        """An Asynchronous Event Request. False if there are too many."""
        if len(self.event_requests) >= ASYNC_EVENTS_MAX:
            return False
        self.event_requests.append(command)
        self._send_events()
        return True

    def raise_event(self, event: int) -> None:
        """Tell the host, unless it does not want to know, or has been told and has not looked yet."""
        if self.event_config & _CONFIG_BIT[event] and event not in self.pending_events:
            self.pending_events.append(event)
            self._send_events()

    def namespace_changed(self, nsid: int) -> None:
        self.changed.add(nsid)
        self.raise_event(EVENT_NAMESPACES_CHANGED)

    def event_read(self, event: int) -> None:
        """The host has read the event's log page: it may be raised again."""
        self.unread_events.discard(event)
        self._send_events()

    def _send_events(self) -> None:
        for event in [event for event in self.pending_events if event not in self.unread_events]:
            if not self.event_requests:
                return
            self.pending_events.remove(event)
            self.unread_events.add(event)
            request = self.event_requests.popleft()
            request.connection.complete(request, 0, result=event)

    # Features

    def get_feature(self, feature: int, cdw11: int) -> tuple[int, int, bytes | None]:
        """(status, result, data) of Get Features, current value."""
        if feature in self.features:
            return 0, self.features[feature], None
        if feature == Feature.NUMBER_OF_QUEUES:
            return 0, (self.io_queues - 1) | (self.io_queues - 1) << 16, None
        if feature == Feature.ASYNC_EVENT_CONFIGURATION:
            return 0, self.event_config, None
        if feature == Feature.KEEP_ALIVE_TIMER:
            return 0, self.keep_alive_ms, None
        if feature == Feature.HOST_BEHAVIOR:
            return 0, 0, self.host_behavior
        if feature == Feature.VOLATILE_WRITE_CACHE and self.has_write_cache:
            return 0, int(self.write_cache), None
        if feature == Feature.HOST_IDENTIFIER:
            if not cdw11 & 1:
                return Status.HOST_IDENTIFIER_FORMAT | DNR, 0, None
            return 0, 0, self.hostid
        return Status.INVALID_FIELD | DNR, 0, None

    def set_feature(self, feature: int, cdw11: int, data: bytes, now_ns: int) -> tuple[int, int]:
        """(status, result) of Set Features."""
        if feature in self.features:
            self.features[feature] = cdw11 & _PLAIN_FEATURES[Feature(feature)][1]
        elif feature == Feature.NUMBER_OF_QUEUES:
            return self._set_queues(cdw11)
        elif feature == Feature.ASYNC_EVENT_CONFIGURATION:
            self.event_config = cdw11
        elif feature == Feature.KEEP_ALIVE_TIMER:
            self.set_keep_alive(cdw11, now_ns)
        elif feature == Feature.HOST_BEHAVIOR and len(data) >= 512:
            self.host_behavior = bytes(data[:512])
        elif feature == Feature.VOLATILE_WRITE_CACHE and self.has_write_cache:
            self.write_cache = bool(cdw11 & 1)
            for queue in self.queues.values():
                queue.refresh_fast_path()
        elif feature == Feature.HOST_IDENTIFIER:
            return Status.COMMAND_SEQUENCE_ERROR | DNR, 0
        else:
            return Status.INVALID_FIELD | DNR, 0
        return 0, 0

    def _set_queues(self, cdw11: int) -> tuple[int, int]:
        submission, completion = (cdw11 & 0xFFFF) + 1, (cdw11 >> 16) + 1
        if submission > 0xFFFF or completion > 0xFFFF:
            return Status.INVALID_FIELD | DNR, 0
        if any(self.queues.keys() - {0}):
            return Status.COMMAND_SEQUENCE_ERROR | DNR, 0
        self.io_queues = min(submission, completion, self.limits.max_io_queues)
        return 0, (self.io_queues - 1) | (self.io_queues - 1) << 16

    @property
    def has_write_cache(self) -> bool:
        return any(namespace.volatile_cache for namespace in self.subsystem.namespaces.values())

    # Bookkeeping

    def record_error(self, command: Command, status: int) -> None:
        """Keep an entry for the Error Information log page."""
        self.error_count += 1
        self.errors.appendleft(
            identify.ERROR_ENTRY.build(
                count=self.error_count,
                sqid=command.connection.qid,
                cid=command.cid,
                status=status << 1,
                location=0xFFFF,
                lba=command.slba,
                nsid=command.nsid,
                trtype=identify.TRTYPE_TCP,
            )
        )
