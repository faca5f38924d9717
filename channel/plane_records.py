"""What messages between a daemon and its data plane say, as `mapping.plane` and the engine take and give it.

Every data plane in Python does this: the embedded target's, and the simulation's.
"""

from __future__ import annotations

from channel.messages import FaultAnswer
from channel.values import FaultRecord, Header
from mapping.effects import Fault
from mapping.plane import REPLACE, Answer, Stamp


def stamp_of(header: Header) -> Stamp:
    """What decides whether entries are still to be applied."""
    return Stamp(header.term, header.incarnation, header.epoch, header.sequence)


def record_of(fault: Fault) -> FaultRecord:
    """The fault as MAP_FAULT tells it."""
    return FaultRecord(
        fault.fault_id,
        fault.table,
        fault.segment,
        fault.entry,
        fault.operation,
        fault.kind,
        fault.state,
        fault.offset_blocks,
        fault.length_blocks,
    )


def answers_of(message: FaultAnswer) -> list[Answer]:
    """Each record with the entries it takes."""
    answers = []
    at = 0
    entries = message.entries
    for fault_id, start, count, action, status in message.answers:
        if action == REPLACE:
            answers.append(Answer(fault_id, action, status, start, count, entries[at : at + count]))
            at += count
        else:
            answers.append(Answer(fault_id, action, status, start, count, ()))
    return answers
