"""Batches made ready: checked against every limit and encoded, before anything is written.

JSON values are stored sealed: a CRC-32 before the text, because the file format does not check what a page holds.
"""

from __future__ import annotations

import json
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from controller.store.interface import (
    BATCH_BYTES_MAX,
    BATCH_IDS_KEPT,
    NAME_LENGTH_MAX,
    U64_MAX,
    VALUE_BYTES_MAX,
    AuditEntry,
    Batch,
    BatchRefused,
    Job,
    JsonValue,
    StoreCorrupt,
)
from controller.store.records import RECORD_BYTES, RecordBuilder, RecordError, all_plain, validate

_I64_MAX: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class EncodedJob:
    """A job with its payload sealed."""

    id: int
    kind: str
    state: str
    progress: int
    total: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class EncodedAudit:
    """An audit entry with its detail sealed."""

    at_ns: int
    actor: str
    action: str
    detail: bytes


@dataclass(frozen=True, slots=True)
class SmallChanges:
    """What one batch changes besides records, in the order in which it is applied."""

    deletes: tuple[tuple[str, str], ...]
    puts: tuple[tuple[str, str, bytes], ...]
    jobs_removed: tuple[int, ...]
    jobs: tuple[EncodedJob, ...]
    audit: tuple[EncodedAudit, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """The fresh batches of a commit, as one log row and small changes."""

    ids: tuple[int, ...]
    batches: bytes
    records: bytes
    changes: tuple[SmallChanges, ...]


def seal(value: JsonValue) -> bytes:
    """Encode a JSON value. Raises BatchRefused if it is none, or too long."""
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise BatchRefused(f"a value is not JSON: {error}") from error
    if len(text) > VALUE_BYTES_MAX:
        raise BatchRefused(f"a value of {len(text)} bytes is longer than {VALUE_BYTES_MAX}")
    return zlib.crc32(text).to_bytes(4, "little") + text


def unseal(sealed: bytes, what: str) -> JsonValue:
    """The value. Raises StoreCorrupt if it is not what was written."""
    if len(sealed) < 4 or zlib.crc32(sealed[4:]).to_bytes(4, "little") != sealed[:4]:
        raise StoreCorrupt(f"the checksum of {what} does not match")
    value: JsonValue = json.loads(sealed[4:])
    return value


def row_check(sequence: int, batches: bytes, records: bytes) -> int:
    """The checksum of a log row."""
    return zlib.crc32(records, zlib.crc32(batches, sequence & 0xFFFFFFFF))


def _name(text: str, what: str) -> str:
    if not isinstance(text, str) or not 0 < len(text) <= NAME_LENGTH_MAX:
        raise BatchRefused(f"{what} must have 1 to {NAME_LENGTH_MAX} characters: {text!r:.80}")
    return text


def _number(value: int, what: str, limit: int = _I64_MAX) -> int:
    if not isinstance(value, int) or not 0 <= value <= limit:
        raise BatchRefused(f"{what} must be in 0..{limit}: {value!r}")
    return value


def _encode_job(job: Job) -> EncodedJob:
    return EncodedJob(
        _number(job.id, "a job id"),
        _name(job.kind, "a job kind"),
        _name(job.state, "a job state"),
        _number(job.progress, "a job's progress"),
        _number(job.total, "a job's total"),
        seal(job.payload),
    )


def decode_job(job: EncodedJob) -> Job:
    """The job of a stored row. Raises StoreCorrupt."""
    return Job(job.id, job.kind, job.state, job.progress, job.total, unseal(job.payload, f"job {job.id}"))


def decode_audit(number: int, row: EncodedAudit) -> AuditEntry:
    """The audit entry of a stored row. Raises StoreCorrupt."""
    return AuditEntry(row.at_ns, row.actor, row.action, unseal(row.detail, f"audit entry {number}"))


def _check_records(fresh: Sequence[Batch]) -> None:
    """Each batch by itself, unless a look at all of them together shows only faults."""
    for batch in fresh:
        if len(batch.records) > BATCH_BYTES_MAX:
            raise BatchRefused(f"{len(batch.records)} bytes of records are more than {BATCH_BYTES_MAX}")
    whole = not any(len(batch.records) % RECORD_BYTES for batch in fresh)
    if whole and all_plain(b"".join([batch.records for batch in fresh])):
        return
    for batch in fresh:
        try:
            validate(batch.records)
        except RecordError as error:
            raise BatchRefused(f"batch {batch.id}: {error}") from error


def _records_of(batch: Batch) -> bytes:
    if not batch.requests:
        return batch.records
    builder = RecordBuilder()
    for incarnation, request_id in batch.requests:
        builder.request(_number(incarnation, "an incarnation", U64_MAX), _number(request_id, "a request id", U64_MAX))
    return batch.records + builder.take()


def _small_changes(batch: Batch) -> SmallChanges | None:
    if not (batch.puts or batch.deletes or batch.jobs or batch.jobs_removed or batch.audit):
        return None
    return SmallChanges(
        tuple((_name(kind, "a kind"), _name(key, "a key")) for kind, key in batch.deletes),
        tuple((_name(kind, "a kind"), _name(key, "a key"), seal(value)) for kind, key, value in batch.puts),
        tuple(_number(job_id, "a job id") for job_id in batch.jobs_removed),
        tuple(map(_encode_job, batch.jobs)),
        tuple(
            EncodedAudit(
                _number(entry.at_ns, "a time"),
                _name(entry.actor, "an actor"),
                _name(entry.action, "an action"),
                seal(entry.detail),
            )
            for entry in batch.audit
        ),
    )


def prepare(fresh: Sequence[Batch]) -> Group:
    """Check and encode batches that are not repeats. Raises BatchRefused."""
    ids = tuple([_number(batch.id, "a batch id", U64_MAX) for batch in fresh])
    _check_records(fresh)
    changes = tuple([change for batch in fresh if (change := _small_changes(batch)) is not None])
    return Group(ids, array("Q", ids).tobytes(), b"".join(map(_records_of, fresh)), changes)


class KnownBatches:
    """The newest BATCH_IDS_KEPT batch ids and the sequence that each was committed with."""

    def __init__(self) -> None:
        self._sequences: OrderedDict[int, int] = OrderedDict()

    def add(self, batch_id: int, sequence: int) -> None:
        """Remember a committed batch, forget the oldest."""
        self._sequences[batch_id] = sequence
        if len(self._sequences) > BATCH_IDS_KEPT:
            self._sequences.popitem(last=False)

    def fresh(self, batches: Sequence[Batch]) -> list[Batch]:
        """Those that were not committed before, each once."""
        known = self._sequences
        seen: dict[int, Batch] = {}
        for batch in batches:
            if batch.id not in known:
                seen.setdefault(batch.id, batch)
        return list(seen.values())

    def sequences(self, batches: Sequence[Batch], newest: int) -> tuple[int, ...]:
        """What each batch was committed with; `newest` for those that are new in this group."""
        known = self._sequences
        return tuple([known.get(batch.id, newest) for batch in batches])
