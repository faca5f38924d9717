"""What is checked, from facts and needs alone; each finding says what to do.

A finding is *missing* where what is asked for cannot work, a *warning* where it works badly or not for long, *unused*
where something is not there that nothing asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from cli.doctor.facts import Facts, HugePages
from cli.doctor.needs import Needs
from cli.output import size_text

OLDEST_SPDK: Final = (24, 9)
MASKING_SPDK: Final = (26, 1)
"""The first that can be told to refuse reservations."""
NEWEST_SPDK: Final = (26, 9)
"""The newest that the module was tested with."""
OPEN_FILES_MIN: Final = 4096
AIO_EVENTS: Final = 1024
"""Requests of Linux's AIO that a SPDK target sets up for each AIO bdev and core."""
GOOD_CLOCKS: Final = frozenset({"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "xen"})
EXPIRY_WARNING: Final = timedelta(days=30)
MIB_KIB: Final = 1024


class Verdict(StrEnum):
    OK = "ok"
    UNUSED = "unused"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """`found` says what is; `advice` what to do about it."""

    subject: str
    verdict: Verdict
    found: str
    advice: str = ""


def diagnose(facts: Facts, needs: Needs, now: datetime) -> list[Finding]:
    """All findings, in the order in which they are best mended."""
    return [finding for check in CHECKS for finding in check(facts, needs)] + list(certificates(facts, needs, now))


def need(subject: str, wanted: bool, found: str, advice: str) -> Finding:
    """Something that is not there."""
    return Finding(subject, Verdict.MISSING if wanted else Verdict.UNUSED, found, advice)


def platform(facts: Facts, needs: Needs) -> Iterator[Finding]:
    found = f"{facts.system} {facts.machine}, Python {facts.python[0]}.{facts.python[1]}, {len(facts.cores)} cores"
    good = (facts.system, facts.bits, facts.byte_order) == ("Linux", 64, "little")
    if good and facts.python >= (3, 11):
        yield Finding("platform", Verdict.OK, found)
    else:
        yield need("platform", True, found, "segmap needs Linux on a 64-bit little-endian machine, and Python 3.11")


def clock(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Leases are checked against it for every I/O."""
    if facts.clocksource in GOOD_CLOCKS:
        yield Finding("clock", Verdict.OK, facts.clocksource)
    elif facts.clocksource:
        advice = "every I/O reads it: use tsc (clocksource=tsc on the kernel's command line) if it is stable here"
        yield Finding("clock", Verdict.WARNING, f"{facts.clocksource} is slow to read", advice)


def open_files(facts: Facts, needs: Needs) -> Iterator[Finding]:
    if facts.open_files == -1 or facts.open_files >= OPEN_FILES_MIN:
        yield Finding("open files", Verdict.OK, "unlimited" if facts.open_files == -1 else str(facts.open_files))
    else:
        advice = f"every host connection takes one: LimitNOFILE={OPEN_FILES_MIN * 16} in the unit, or ulimit -n"
        yield Finding("open files", Verdict.WARNING, str(facts.open_files), advice)


def spdk(facts: Facts, needs: Needs) -> Iterator[Finding]:
    if facts.spdk.problem:
        yield need("SPDK", needs.stock, "not found", facts.spdk.problem)
        return
    found = f"{facts.spdk.version or 'unknown version'} in {facts.spdk.path}"
    version = tuple(int(part) for part in facts.spdk.version.split(".")[:2] if part.isdigit())
    if not version:
        yield Finding("SPDK", Verdict.WARNING, found, "its headers are not installed: the module cannot be built")
    elif version < OLDEST_SPDK:
        yield need("SPDK", needs.spdk, found, f"segmap needs {dotted(OLDEST_SPDK)} or later")
    elif version < MASKING_SPDK and needs.module:
        advice = f"before {dotted(MASKING_SPDK)} it offers reservations to hosts: do not use them at several agents"
        yield Finding("SPDK", Verdict.WARNING, found, advice)
    elif version > NEWEST_SPDK:
        yield Finding("SPDK", Verdict.WARNING, found, f"newer than {dotted(NEWEST_SPDK)}, the newest that was tested")
    else:
        yield Finding("SPDK", Verdict.OK, found)


def dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]:02}"


def module(facts: Facts, needs: Needs) -> Iterator[Finding]:
    program = facts.module
    if not program.path:
        yield need("segmap_tgt", needs.module, "not found", program.problem)
    elif program.problem:
        advice = "it was built for another SPDK than the one that is installed: make clean native"
        yield need("segmap_tgt", needs.module, f"{program.path} does not start: {program.problem}", advice)
    else:
        yield Finding("segmap_tgt", Verdict.OK, f"{program.path}: {program.version}")


def huge_pages(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Of the size with most memory; SPDK takes any."""
    wanted_mib = needs.huge_mib
    pages = max(facts.huge_pages, key=lambda one: one.size_kib * one.total, default=None)
    if pages is None:
        yield need(
            "huge pages", wanted_mib > 0, "the kernel has none", "use a kernel with hugetlbfs, or huge_pages: false"
        )
        return
    free_mib, total_mib = (pages.size_kib * count // MIB_KIB for count in (pages.free, pages.total))
    found = f"{pages.total} of {size_text(pages.size_kib << 10)} ({total_mib} MiB), {free_mib} MiB free"
    if not wanted_mib:
        yield Finding("huge pages", Verdict.OK if pages.total else Verdict.UNUSED, found)
    elif total_mib < wanted_mib:
        yield need("huge pages", True, f"{found}; {wanted_mib} MiB are needed", how_to_reserve(pages, wanted_mib))
    elif not facts.huge_mount:
        yield need("huge pages", True, f"{found}, but no hugetlbfs", "sudo mount -t hugetlbfs nodev /dev/hugepages")
    elif not facts.huge_mount_writable:
        advice = f"run the target as root, or sudo chown its user {facts.huge_mount}"
        yield need("huge pages", True, f"{facts.huge_mount} is not ours to write", advice)
    elif free_mib < wanted_mib:
        advice = "enough if what uses them is this cluster itself; otherwise: " + how_to_reserve(pages, wanted_mib)
        yield Finding("huge pages", Verdict.WARNING, f"{found}; {wanted_mib} MiB are needed", advice)
    else:
        yield Finding("huge pages", Verdict.OK, f"{found}; {wanted_mib} MiB are needed")


def how_to_reserve(pages: HugePages, wanted_mib: int) -> str:
    count = -(-wanted_mib * MIB_KIB // pages.size_kib)
    return f"sudo sysctl vm.nr_hugepages={count} (for good: a file in /etc/sysctl.d; see configs/systemd)"


def locked_memory(facts: Facts, needs: Needs) -> Iterator[Finding]:
    if not needs.pci or facts.superuser:
        return
    if facts.locked_bytes == -1:
        yield Finding("locked memory", Verdict.OK, "unlimited")
    else:
        advice = "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited: disks are given memory that must not move"
        yield need("locked memory", True, size_text(facts.locked_bytes), advice)


def cores(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Cores that poll are busy all the time: two targets must not share one, and something must be left."""
    owners: dict[int, str] = {}
    for poller in needs.pollers:
        subject = f"cores of {poller.agent}"
        shared = sorted({owners[core] for core in poller.cores if core in owners})
        absent = sorted(poller.cores - facts.cores)
        owners.update(dict.fromkeys(poller.cores, poller.agent))
        told = ", ".join(map(str, sorted(poller.cores)))
        if absent:
            have = ", ".join(map(str, sorted(facts.cores)))
            yield need(subject, True, f"{told}; not here: {', '.join(map(str, absent))}", f"choose from {have}")
        elif shared and poller.core_locks:
            yield need(subject, True, f"{told}, as {', '.join(shared)}", "give each target cores of its own")
        elif shared:
            yield Finding(
                subject, Verdict.WARNING, f"{told}, as {', '.join(shared)}", "both poll: each gets half of it"
            )
        else:
            yield Finding(subject, Verdict.OK, told)
    if owners and owners.keys() >= facts.cores:
        yield Finding("cores", Verdict.WARNING, "all of them poll", "leave one to the daemons and the kernel")


def disks(facts: Facts, needs: Needs) -> Iterator[Finding]:
    for export, address in needs.pci.items():
        subject, disk = f"disk of {export}", facts.disks.get(address)
        if disk is None:
            known = ", ".join(sorted(facts.disks)) or "none"
            yield need(subject, True, f"no NVMe disk at {address}", f"NVMe disks here: {known}")
        elif disk.driver != "vfio-pci":
            advice = (
                "unmount it; then give it to vfio-pci: SPDK's scripts/setup.sh with PCI_ALLOWED, or driverctl"
                f" set-override {address} vfio-pci. Its contents are taken as a container's: mind which disk it is"
            )
            yield need(subject, True, f"{address} belongs to {disk.driver or 'no driver'}", advice)
        elif not disk.may_open:
            advice = f"run the target as root, or sudo chown its user /dev/vfio/{disk.group}"
            yield need(subject, True, f"/dev/vfio/{disk.group or '?'} is not ours to open", advice)
        else:
            yield Finding(subject, Verdict.OK, f"{address}, vfio-pci, group {disk.group}")


def storage(facts: Facts, needs: Needs) -> Iterator[Finding]:
    """Files and block devices behind AIO exports."""
    for item in needs.storage:
        subject, fact = f"storage of {item.export}", facts.files[item.file]
        if fact.kind == "missing" and not item.make_bytes:
            yield need(subject, True, f"{item.file} is not there", "make it, or say its `size`")
        elif fact.kind == "missing" and fact.usable and fact.room_bytes < item.make_bytes:
            found = (
                f"{item.file} is to be made with {size_text(item.make_bytes)}, {size_text(fact.room_bytes)} are free"
            )
            yield Finding(subject, Verdict.WARNING, found, "writes fail once the file system is full")
        elif not fact.usable:
            yield need(subject, True, f"{item.file} is not ours to read and write", "chown it to the target's user")
        elif fact.kind == "other":
            yield need(subject, True, f"{item.file} is neither a file nor a block device", "name another")
        elif fact.used_by:
            yield need(
                subject, True, f"{item.file} is mounted at {fact.used_by}", "unmount it: it would be overwritten"
            )
        else:
            yield Finding(subject, Verdict.OK, f"{item.file} ({'to be made' if fact.kind == 'missing' else fact.kind})")


def aio_requests(facts: Facts, needs: Needs) -> Iterator[Finding]:
    wanted = AIO_EVENTS * len(needs.storage) if needs.stock else 0
    if wanted and facts.aio_room < wanted:
        advice = f"sudo sysctl fs.aio-max-nr={1 << 20} (for good: a file in /etc/sysctl.d)"
        yield need("AIO requests", True, f"{facts.aio_room} left, about {wanted} are needed", advice)


def directories(facts: Facts, needs: Needs) -> Iterator[Finding]:
    for path, problem in facts.directories.items():
        if problem:
            yield need("private directory", True, f"{path} {problem}", f"chown it to segmap's user, chmod 700 {path}")


def addresses(facts: Facts, needs: Needs) -> Iterator[Finding]:
    for who, host in needs.listens.items():
        if host in facts.foreign_hosts:
            advice = "it is no address of this machine: --agent NAME checks only what runs here"
            yield need(f"address of {who}", True, host, advice)


def certificates(facts: Facts, needs: Needs, now: datetime) -> Iterator[Finding]:
    if facts.certificate_problem:
        yield need("certificates", True, facts.certificate_problem, "`segmap pki` makes and shows them")
    for name, not_after in facts.certificates.items():
        advice = f"`segmap pki rotate` makes a new one for {name}"
        if not_after <= now:
            yield need("certificates", True, f"{name} has expired", advice)
        elif not_after - now < EXPIRY_WARNING:
            yield Finding("certificates", Verdict.WARNING, f"{name} expires in {(not_after - now).days} days", advice)


CHECKS: Final[tuple[Callable[[Facts, Needs], Iterator[Finding]], ...]] = (
    platform,
    clock,
    open_files,
    directories,
    addresses,
    spdk,
    module,
    cores,
    huge_pages,
    locked_memory,
    disks,
    storage,
    aio_requests,
)
