"""Numbers of the NVMe standards that both roles use: opcodes, status codes, identifiers, limits.

Base Specification: figures for opcodes, status values, features, log pages, CNS values and controller properties;
NVM Command Set Specification: I/O opcodes; TCP Transport Specification: PDU types and fatal error statuses.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

DISCOVERY_NQN: Final = "nqn.2014-08.org.nvmexpress.discovery"
NQN_BYTES_MAX: Final = 223
NSID_ALL: Final = 0xFFFFFFFF
CNTLID_DYNAMIC: Final = 0xFFFF
CNTLID_STATIC_ANY: Final = 0xFFFE
CNTLID_MAX: Final = 0xFFEF
VERSION: Final = 0x00010400
IDENTIFY_BYTES: Final = 4096
PAGE_BYTES: Final = 4096
SQE_BYTES: Final = 64
CQE_BYTES: Final = 16
CONNECT_DATA_BYTES: Final = 1024
ADMIN_IN_CAPSULE_BYTES: Final = 8192
DATASET_RANGES_MAX: Final = 256
DATASET_RANGE_BYTES: Final = 16
CHANGED_NAMESPACES_MAX: Final = 1024


class Opcode(IntEnum):
    """I/O commands, and Abort, which also reaches the owner."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09


class AdminOpcode(IntEnum):
    GET_LOG_PAGE = 0x02
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    KEEP_ALIVE = 0x18


FABRICS_OPCODE: Final = 0x7F


class FabricsType(IntEnum):
    PROPERTY_SET = 0x00
    CONNECT = 0x01
    PROPERTY_GET = 0x04


def _specific(code: int) -> int:
    return 0x100 | code


def _media(code: int) -> int:
    return 0x200 | code


def _path(code: int) -> int:
    return 0x300 | code


DNR: Final = 0x4000  # do not retry
STATUS_MASK: Final = 0x7FF  # status code type and status code


class Status(IntEnum):
    """Status code type << 8 | status code, as in the completion's status field without the phase bit."""

    SUCCESS = 0x00
    INVALID_OPCODE = 0x01
    INVALID_FIELD = 0x02
    COMMAND_ID_CONFLICT = 0x03
    DATA_TRANSFER_ERROR = 0x04
    INTERNAL_ERROR = 0x06
    ABORTED_BY_REQUEST = 0x07
    ABORTED_SQ_DELETION = 0x08
    INVALID_NAMESPACE = 0x0B
    COMMAND_SEQUENCE_ERROR = 0x0C
    DATA_SGL_LENGTH_INVALID = 0x0F
    SGL_TYPE_INVALID = 0x11
    INVALID_SGL_OFFSET = 0x16
    HOST_IDENTIFIER_FORMAT = 0x18
    KEEP_ALIVE_EXPIRED = 0x19
    KEEP_ALIVE_INVALID = 0x1A
    NAMESPACE_WRITE_PROTECTED = 0x20
    TRANSIENT_TRANSPORT_ERROR = 0x22
    LBA_OUT_OF_RANGE = 0x80
    CAPACITY_EXCEEDED = 0x81
    NAMESPACE_NOT_READY = 0x82
    INVALID_QUEUE_IDENTIFIER = _specific(0x01)
    ABORT_LIMIT_EXCEEDED = _specific(0x03)
    ASYNC_EVENT_LIMIT_EXCEEDED = _specific(0x05)
    INVALID_LOG_PAGE = _specific(0x09)
    FEATURE_NOT_SAVEABLE = _specific(0x0D)
    FEATURE_NOT_CHANGEABLE = _specific(0x0E)
    CONNECT_INCOMPATIBLE_FORMAT = _specific(0x80)
    CONNECT_CONTROLLER_BUSY = _specific(0x81)
    CONNECT_INVALID_PARAMETERS = _specific(0x82)
    CONNECT_INVALID_HOST = _specific(0x84)
    WRITE_FAULT = _media(0x80)
    UNRECOVERED_READ_ERROR = _media(0x81)
    COMPARE_FAILURE = _media(0x85)
    INTERNAL_PATH_ERROR = _path(0x00)
    CONTROLLER_PATH_ERROR = _path(0x60)
    HOST_PATH_ERROR = _path(0x70)
    ABORTED_BY_HOST = _path(0x71)


def status_text(status: int) -> str:
    """`LBA_OUT_OF_RANGE (sct 0h sc 80h, do not retry)`."""
    kind, code = (status >> 8) & 7, status & 0xFF
    try:
        name = Status(status & STATUS_MASK).name
    except ValueError:
        name = "status"
    return f"{name} (sct {kind:x}h sc {code:02x}h{', do not retry' if status & DNR else ''})"


class Cns(IntEnum):
    """What an Identify command asks for."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    NAMESPACE_COMMAND_SET = 0x05
    CONTROLLER_COMMAND_SET = 0x06
    ACTIVE_NAMESPACES_COMMAND_SET = 0x07
    NAMESPACE_INDEPENDENT = 0x08
    COMMAND_SETS = 0x1C


class Feature(IntEnum):
    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENT_CONFIGURATION = 0x0B
    KEEP_ALIVE_TIMER = 0x0F
    HOST_BEHAVIOR = 0x16
    HOST_IDENTIFIER = 0x81


class LogPage(IntEnum):
    SUPPORTED = 0x00
    ERROR = 0x01
    SMART = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACES = 0x04
    COMMAND_EFFECTS = 0x05
    FEATURE_EFFECTS = 0x12
    DISCOVERY = 0x70


class Property(IntEnum):
    """Controller properties by offset; CAP is 8 bytes, the others 4."""

    CAP = 0x00
    VS = 0x08
    CC = 0x14
    CSTS = 0x1C


CC_EN: Final = 1
CC_SHN_SHIFT: Final = 14
CSTS_RDY: Final = 1
CSTS_CFS: Final = 2
CSTS_SHST_COMPLETE: Final = 2 << 2

# Asynchronous events: type | information << 8 | log page << 16
EVENT_NAMESPACES_CHANGED: Final = 0x02 | 0x00 << 8 | LogPage.CHANGED_NAMESPACES << 16
EVENT_DISCOVERY_CHANGED: Final = 0x02 | 0xF0 << 8 | LogPage.DISCOVERY << 16
EVENT_CONFIG_NAMESPACES: Final = 1 << 8
EVENT_CONFIG_DISCOVERY: Final = 1 << 31

# SGL descriptor type << 4 | sub type
SGL_IN_CAPSULE: Final = 0x01  # data block, offset
SGL_TRANSPORT: Final = 0x5A  # transport data block, transport

CONNECT_DISABLE_SQ_FLOW: Final = 1 << 2

FUSE_MASK: Final = 0x03
PSDT_MASK: Final = 0xC0
PSDT_SGL: Final = 0x40
CDW12_FUA: Final = 1 << 30
CDW12_DEALLOCATE: Final = 1 << 25
CDW12_PROTECTION: Final = 0x3C000000  # PRACT and PRCHK: no protection information here
DSM_DEALLOCATE: Final = 1 << 2


class PduType(IntEnum):
    IC_REQ = 0x00
    IC_RESP = 0x01
    H2C_TERM_REQ = 0x02
    C2H_TERM_REQ = 0x03
    CAPSULE_CMD = 0x04
    CAPSULE_RESP = 0x05
    H2C_DATA = 0x06
    C2H_DATA = 0x07
    R2T = 0x09


FLAG_HDGST: Final = 0x01
FLAG_DDGST: Final = 0x02
FLAG_LAST: Final = 0x04
FLAG_SUCCESS: Final = 0x08


class FatalError(IntEnum):
    """FES of the terminate-connection PDUs."""

    INVALID_HEADER_FIELD = 0x01
    PDU_SEQUENCE_ERROR = 0x02
    HEADER_DIGEST_ERROR = 0x03
    DATA_OUT_OF_RANGE = 0x04
    LIMIT_EXCEEDED = 0x05  # data transfer limit (from a controller) or R2T limit (from a host)
    UNSUPPORTED_PARAMETER = 0x06
