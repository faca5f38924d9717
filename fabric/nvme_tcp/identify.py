"""Identify data structures and log pages, as tables that build them (target) and read them (host).

Base Specification: Identify command figures, log page figures, discovery log page; NVM Command Set Specification:
Identify Namespace. Little-endian; identifiers (NGUID, EUI64, UUID) are big-endian byte strings, copied as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from fabric.nvme_tcp.layout import Layout
from fabric.nvme_tcp.spec import CHANGED_NAMESPACES_MAX, DISCOVERY_NQN, IDENTIFY_BYTES

CONTROLLER: Final = Layout(
    IDENTIFY_BYTES,
    {
        "vid": (0, "H"),
        "ssvid": (2, "H"),
        "sn": (4, "20s"),
        "mn": (24, "40s"),
        "fr": (64, "8s"),
        "rab": (72, "B"),
        "ieee": (73, "3s"),
        "cmic": (76, "B"),
        "mdts": (77, "B"),
        "cntlid": (78, "H"),
        "ver": (80, "I"),
        "oaes": (92, "I"),
        "ctratt": (96, "I"),
        "cntrltype": (111, "B"),
        "oacs": (256, "H"),
        "acl": (258, "B"),
        "aerl": (259, "B"),
        "frmw": (260, "B"),
        "lpa": (261, "B"),
        "elpe": (262, "B"),
        "wctemp": (266, "H"),
        "cctemp": (268, "H"),
        "kas": (320, "H"),
        "sqes": (512, "B"),
        "cqes": (513, "B"),
        "maxcmd": (514, "H"),
        "nn": (516, "I"),
        "oncs": (520, "H"),
        "fuses": (522, "H"),
        "vwc": (525, "B"),
        "awun": (526, "H"),
        "awupf": (528, "H"),
        "sgls": (536, "I"),
        "mnan": (540, "I"),
        "subnqn": (768, "256s"),
        "ioccsz": (1792, "I"),
        "iorcsz": (1796, "I"),
        "icdoff": (1800, "H"),
        "fcatt": (1802, "B"),
        "msdbd": (1803, "B"),
        "ofcs": (1804, "H"),
    },
)

NAMESPACE: Final = Layout(
    IDENTIFY_BYTES,
    {
        "nsze": (0, "Q"),
        "ncap": (8, "Q"),
        "nuse": (16, "Q"),
        "nsfeat": (24, "B"),
        "nlbaf": (25, "B"),
        "flbas": (26, "B"),
        "mc": (27, "B"),
        "dps": (29, "B"),
        "nmic": (30, "B"),
        "rescap": (31, "B"),
        "dlfeat": (33, "B"),
        "noiob": (46, "H"),
        "anagrpid": (92, "I"),
        "nsattr": (99, "B"),
        "nguid": (104, "16s"),
        "eui64": (120, "8s"),
        "lbaf0": (128, "I"),
    },
)

NAMESPACE_INDEPENDENT: Final = Layout(
    IDENTIFY_BYTES, {"nsfeat": (0, "B"), "nmic": (1, "B"), "nsattr": (8, "B"), "nstat": (14, "B")}
)

SMART: Final = Layout(
    512,
    {
        "warning": (0, "B"),
        "temperature": (1, "H"),
        "spare": (3, "B"),
        "spare_threshold": (4, "B"),
        "units_read": (32, "Q"),
        "units_written": (48, "Q"),
        "reads": (64, "Q"),
        "writes": (80, "Q"),
        "errors": (176, "Q"),
    },
)

ERROR_ENTRY: Final = Layout(
    64,
    {
        "count": (0, "Q"),
        "sqid": (8, "H"),
        "cid": (10, "H"),
        "status": (12, "H"),
        "location": (14, "H"),
        "lba": (16, "Q"),
        "nsid": (24, "I"),
        "trtype": (29, "B"),
    },
)

DISCOVERY_HEADER: Final = Layout(1024, {"genctr": (0, "Q"), "numrec": (8, "Q"), "recfmt": (16, "H")})
DISCOVERY_ENTRY: Final = Layout(
    1024,
    {
        "trtype": (0, "B"),
        "adrfam": (1, "B"),
        "subtype": (2, "B"),
        "treq": (3, "B"),
        "portid": (4, "H"),
        "cntlid": (6, "H"),
        "asqsz": (8, "H"),
        "eflags": (10, "H"),
        "trsvcid": (32, "32s"),
        "subnqn": (256, "256s"),
        "traddr": (512, "256s"),
        "sectype": (768, "B"),
    },
)
TRTYPE_TCP: Final = 3
ADDRESS_FAMILIES: Final = {"ipv4": 1, "ipv6": 2}
SUBTYPE_NVM: Final = 2
SUBTYPE_DISCOVERY_CURRENT: Final = 3
SECURE_CHANNEL_NOT_REQUIRED: Final = 2

DESCRIPTOR_EUI64: Final = 1
DESCRIPTOR_NGUID: Final = 2
DESCRIPTOR_UUID: Final = 3
DESCRIPTOR_COMMAND_SET: Final = 4


def text(field: str, size: int) -> bytes:
    """ASCII padded with spaces, as in serial number, model, firmware and addresses."""
    return field.encode("ascii", "replace")[:size].ljust(size, b" ")


def identifier_list(ids: Iterable[int], after: int) -> bytes:
    """Namespace list: up to 1024 ids greater than `after`, ascending."""
    chosen = sorted(number for number in ids if number > after)[: IDENTIFY_BYTES // 4]
    return Struct(f"<{len(chosen)}I").pack(*chosen).ljust(IDENTIFY_BYTES, b"\0")


def parse_identifier_list(data: bytes | bytearray | memoryview) -> list[int]:
    """Ids up to the first zero."""
    ids = list(Struct("<1024I").unpack_from(data))
    return ids[: ids.index(0)] if 0 in ids else ids


def descriptors(eui64: bytes, nguid: bytes, uuid: bytes) -> bytes:
    """Namespace Identification Descriptor list: the identifiers that are not zero, and the NVM command set."""
    known = [(DESCRIPTOR_EUI64, eui64), (DESCRIPTOR_NGUID, nguid), (DESCRIPTOR_UUID, uuid)]
    parts = [bytes((kind, len(value), 0, 0)) + value for kind, value in known if any(value)]
    parts.append(bytes((DESCRIPTOR_COMMAND_SET, 1, 0, 0, 0)))
    return b"".join(parts).ljust(IDENTIFY_BYTES, b"\0")


def parse_descriptors(data: bytes | bytearray | memoryview) -> dict[int, bytes]:
    """Identifiers by type. Stops at the first empty or truncated one."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data) and data[at + 1]:
        length = data[at + 1]
        if at + 4 + length > len(data):
            break
        found[data[at]] = bytes(data[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def changed_namespaces(ids: Iterable[int]) -> bytes:
    """Changed Namespace List log page: ids, or one FFFFFFFFh if there are too many."""
    chosen = sorted(ids)
    if len(chosen) > CHANGED_NAMESPACES_MAX:
        chosen = [0xFFFFFFFF]
    return Struct(f"<{len(chosen)}I").pack(*chosen).ljust(CHANGED_NAMESPACES_MAX * 4, b"\0")


@dataclass(frozen=True, slots=True)
class DiscoveryEntry:
    """One way to reach one subsystem."""

    trtype: str
    adrfam: str
    traddr: str
    trsvcid: str
    subnqn: str
    subtype: int = SUBTYPE_NVM
    portid: int = 0

    @property
    def is_discovery(self) -> bool:
        return self.subtype != SUBTYPE_NVM or self.subnqn == DISCOVERY_NQN


def discovery_log(generation: int, entries: Sequence[DiscoveryEntry], admin_queue_size: int) -> bytes:
    """The whole discovery log page."""
    parts = [DISCOVERY_HEADER.build(genctr=generation, numrec=len(entries), recfmt=0)]
    parts += [
        DISCOVERY_ENTRY.build(
            trtype=TRTYPE_TCP,
            adrfam=ADDRESS_FAMILIES[entry.adrfam.lower()],
            subtype=entry.subtype,
            treq=SECURE_CHANNEL_NOT_REQUIRED,
            portid=entry.portid,
            cntlid=0xFFFF,
            asqsz=admin_queue_size,
            trsvcid=text(entry.trsvcid, 32),
            subnqn=entry.subnqn.encode(),
            traddr=text(entry.traddr, 256),
        )
        for entry in entries
    ]
    return b"".join(parts)


def parse_discovery_header(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """(generation, number of records)."""
    fields = DISCOVERY_HEADER.parse(data)
    return int(fields["genctr"]), int(fields["numrec"])


def parse_discovery_entry(data: bytes | bytearray | memoryview) -> DiscoveryEntry:
    """One 1024-byte record; unknown transports and families are given as numbers."""
    fields = DISCOVERY_ENTRY.parse(data)
    families = {number: name for name, number in ADDRESS_FAMILIES.items()}

    def plain(name: str) -> str:
        return bytes(fields[name]).rstrip(b" \0").decode("utf-8", "replace")

    return DiscoveryEntry(
        trtype="tcp" if fields["trtype"] == TRTYPE_TCP else str(fields["trtype"]),
        adrfam=families.get(fields["adrfam"], str(fields["adrfam"])),
        traddr=plain("traddr"),
        trsvcid=plain("trsvcid"),
        subnqn=plain("subnqn"),
        subtype=fields["subtype"],
        portid=fields["portid"],
    )
