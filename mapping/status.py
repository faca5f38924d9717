"""How a request ended: one number space for the channel, the engine and the controller."""

from enum import IntEnum


class Status(IntEnum):
    """Result of a command, a fault or an I/O. `OK` is the only success; the values are on the wire (u32)."""

    OK = 0
    BAD_MESSAGE = 1
    BAD_VERSION = 2
    NOT_ADMITTED = 3
    STALE_TERM = 4
    STALE_INCARNATION = 5
    STALE_EPOCH = 6
    SEQUENCE_OLD = 7
    SEQUENCE_GAP = 8
    NO_TABLE = 9
    EXISTS = 10
    NOT_FOUND = 11
    NO_CONTAINER = 12
    OUT_OF_RANGE = 13
    FORBIDDEN = 14
    LEASE_EXPIRED = 15
    BARRIER_TIMEOUT = 16
    BUSY = 17
    NO_SPACE = 18
    IO_ERROR = 19
    LABEL_MISMATCH = 20
    FOREIGN_DATA = 21
    UNSUPPORTED = 22
    LIMIT = 23
    CANCELLED = 24
    INTERNAL = 25
    NOT_FENCED = 26
    WRITE_PROTECTED = 27
    TIMEOUT = 28
    UNAUTHORIZED = 29
