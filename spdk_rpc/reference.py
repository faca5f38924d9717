"""The reference of segmap's own methods: one table, from which docs/rpc.md is made and which the contract tests compare
with every target that has them.

Example results show every member that a result has. Pure data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Parameter:
    """`kind`: of its JSON value. `default`: as text, if it is optional."""

    name: str
    kind: str
    doc: str
    required: bool = False
    default: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a result; of an object in it if the name has a dot."""

    name: str
    doc: str


@dataclass(frozen=True, slots=True)
class Method:
    """`errors`: code, and when."""

    name: str
    doc: str
    parameters: tuple[Parameter, ...]
    result: str
    members: tuple[Member, ...]
    errors: tuple[tuple[int, str], ...]
    params: dict[str, Any]
    example: Any


DECODE: Final = -32603
NAME: Final = "vol0"
UUID: Final = "2f6d2f0a-93f1-4a80-8c7e-61d1f7a1c0de"
TABLE: Final = (7 << 32) | 1
BUCKETS: Final = 24
_NAME: Final = Parameter("name", "string", "Name of the disk", required=True)
_ONLY: Final = Parameter("name", "string", "Only this disk", default="all disks")
_MISSING: Final = (-19, "there is no such disk")
_IDENTITY: Final = {
    "table": TABLE,
    "segment_count": 1024,
    "segment_size": 1 << 20,
    "block_size": 512,
    "read_only": False,
    "reclaim": True,
}
_NO_LATENCY: Final = [0] * BUCKETS

METHODS: Final = (
    Method(
        "bdev_segmap_create",
        "Make a virtual disk. Its table has no entry yet: I/O waits until a controller has given it some, over the "
        "data plane's socket.",
        (
            Parameter("name", "string", "Name of the new bdev", required=True),
            Parameter("table", "number", "Id of its table, unique at this target", required=True),
            Parameter("segment_count", "number", "Length in segments", required=True),
            Parameter("segment_size", "number", "Bytes of a segment: 4096 to 2^30, whole blocks", default="1048576"),
            Parameter("block_size", "number", "Bytes of a block: 512 or 4096", default="512"),
            Parameter("uuid", "string", "UUID of the bdev", default="a new one"),
            Parameter("slots", "array", "Slots of bound containers that entries may name", default="none"),
            Parameter("read_only", "boolean", "Refuse writes", default="false"),
            Parameter("reclaim", "boolean", "Ask the controller when a whole segment is unmapped", default="true"),
        ),
        "Name of the new bdev",
        (),
        (
            (-17, "a bdev of this name or UUID exists, or a disk with this table"),
            (-22, "the sizes do not go together, or not with those of a container in `slots`"),
            (-2, "a slot is not bound"),
            (-28, "there are as many disks as there can be"),
            (-12, "out of memory"),
        ),
        {"name": NAME, "uuid": UUID, "table": TABLE, "segment_count": 1024, "segment_size": 1 << 20},
        NAME,
    ),
    Method(
        "bdev_segmap_get",
        "Show virtual disks: what they are, and the standing of their tables.",
        (_ONLY,),
        "Array of objects",
        (
            Member("name", "Name of the bdev"),
            Member("uuid", "Its UUID"),
            Member("table", "Id of its table"),
            Member("segment_count", "Length in segments"),
            Member("segment_size", "Bytes of a segment"),
            Member("block_size", "Bytes of a block"),
            Member("read_only", "Whether writes are refused"),
            Member("reclaim", "Whether unmapping a whole segment asks the controller"),
            Member("slots", "Slots of the containers that entries may name; a flush goes to all of them"),
            Member("sequence", "Number of the last change of the table in this epoch"),
            Member("present", "False while the disk is being deleted and I/O that had begun has not ended"),
            Member("suspended", "Whether new I/O waits for the controller to resume"),
        ),
        (_MISSING,),
        {"name": NAME},
        [{"name": NAME, "uuid": UUID, **_IDENTITY, "slots": [], "sequence": 0, "present": True, "suspended": False}],
    ),
    Method(
        "bdev_segmap_get_entries",
        "Show entries of a table, for diagnosis. A number each: bit 0 mapped, 1 NO-WRITE, 2 ZERO, 3 ERROR, bits 4 to "
        "15 the container's slot, 16 to 63 the segment there.",
        (
            _NAME,
            Parameter("start", "number", "First segment", default="0"),
            Parameter("count", "number", "How many, 1 to 65536; cut at the disk's end", default="1024"),
        ),
        "Object",
        (
            Member("name", "Name of the bdev"),
            Member("start", "First segment"),
            Member("entries", "The entries"),
        ),
        (_MISSING, (-34, "`start` is beyond the end, or `count` out of range")),
        {"name": NAME, "start": 1022, "count": 4},
        {"name": NAME, "start": 1022, "entries": [0, 0]},
    ),
    Method(
        "bdev_segmap_get_stats",
        "Show the standing of the data plane, and what its disks have done since they were made. Counters are of "
        "parts: what of a host's I/O lies in one segment.",
        (_ONLY,),
        "Object",
        (
            Member("term", "The controller's, 0 before the first"),
            Member("incarnation", "This data plane's, 0 before it is admitted"),
            Member("epoch", "New after each expiry of the lease"),
            Member("lease_valid", "Whether I/O may begin"),
            Member("lease_left_ns", "For how long"),
            Member("connected", "Whether an agent is connected and has been admitted"),
            Member("bdevs", "An object for each disk"),
            Member("bdevs.name", "Name of the bdev"),
            Member("bdevs.table", "Id of its table"),
            Member("bdevs.sequence", "Number of the last change of the table in this epoch"),
            Member("bdevs.forwarded", "Parts that went to a container"),
            Member("bdevs.zero_reads", "Reads that were answered with zeroes, without a container"),
            Member("bdevs.faults", "Faults that were raised"),
            Member("bdevs.failed", "Parts that have failed"),
            Member("bdevs.dropped", "Parked parts that were dropped: abort, reset, or the park limit"),
            Member("bdevs.parked", "Parts that wait now"),
            Member("bdevs.outstanding_faults", "Faults without an answer now"),
            Member("bdevs.oldest_parked_ns", "How long the part has waited that has waited longest"),
            Member("bdevs.unsettled", "Parts that have failed but may still be done: a connection was lost"),
            Member(
                "bdevs.read_latency",
                f"Container reads by duration, {BUCKETS} counts: less than 1 us, less than 2 us, less than 4 us …, "
                "and all the rest",
            ),
            Member("bdevs.write_latency", "All other container I/O, the same way"),
            Member("bdevs.entries", "The table's entries by state"),
            Member("bdevs.entries.invalid", "Without an entry, or INVALID"),
            Member("bdevs.entries.no_write", "NO-WRITE"),
            Member("bdevs.entries.zero", "ZERO"),
            Member("bdevs.entries.error", "ERROR"),
            Member("bdevs.entries.mapped", "Mapped, without any state"),
        ),
        (_MISSING,),
        {"name": NAME},
        {
            "term": 0,
            "incarnation": 0,
            "epoch": 1,
            "lease_valid": False,
            "lease_left_ns": 0,
            "connected": False,
            "bdevs": [
                {
                    "name": NAME,
                    "table": TABLE,
                    "sequence": 0,
                    "forwarded": 0,
                    "zero_reads": 0,
                    "faults": 0,
                    "failed": 0,
                    "dropped": 0,
                    "parked": 0,
                    "outstanding_faults": 0,
                    "oldest_parked_ns": 0,
                    "unsettled": 0,
                    "read_latency": _NO_LATENCY,
                    "write_latency": _NO_LATENCY,
                    "entries": {"invalid": 1024, "no_write": 0, "zero": 0, "error": 0, "mapped": 0},
                }
            ],
        },
    ),
    Method(
        "bdev_segmap_resize",
        "Change the length of a disk; hosts are told. New segments have no entry.",
        (_NAME, Parameter("segment_count", "number", "New length in segments", required=True)),
        "true",
        (),
        (_MISSING, (-22, "no disk can be so long")),
        {"name": NAME, "segment_count": 2048},
        True,
    ),
    Method(
        "bdev_segmap_delete",
        "Delete a disk, its namespaces and its table. What is parked is dropped. The answer comes when I/O that had "
        "begun has ended; until then the disk is listed, and not `present`.",
        (_NAME,),
        "true",
        (),
        (_MISSING, (-16, "the disk is being deleted already")),
        {"name": NAME},
        True,
    ),
)
