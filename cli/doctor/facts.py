"""What the machine is like, read from /proc, /sys and by starting `segmap_tgt --version`. Nothing is changed."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cli.doctor.needs import Needs
from spdk_rpc.find import SpdkNotFound, find_segmap_tgt, find_spdk
from transport import pki

VERSION_S = 10.0
NVME_CLASS = "0x0108"


@dataclass(frozen=True, slots=True)
class HugePages:
    """Pages of one size: how many are reserved, how many of them are not in use."""

    size_kib: int
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class PciDisk:
    """A NVMe controller: its driver in the kernel (empty: none), its IOMMU group, whether we may open that."""

    driver: str
    group: str
    may_open: bool


@dataclass(frozen=True, slots=True)
class Program:
    """A program that was looked for: where it is and what version it says, or why not."""

    path: str = ""
    version: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class FileFact:
    """A file or device: `kind` is file, device, other or missing; `room_bytes` is free where a missing one goes."""

    kind: str
    usable: bool
    size_bytes: int = 0
    room_bytes: int = 0
    used_by: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """One reading. Limits of -1 are unlimited; what could not be read is empty or 0."""

    system: str = "Linux"
    machine: str = "x86_64"
    bits: int = 64
    byte_order: str = "little"
    python: tuple[int, int] = (3, 11)
    superuser: bool = False
    cores: frozenset[int] = frozenset()
    clocksource: str = ""
    open_files: int = 0
    locked_bytes: int = 0
    huge_pages: tuple[HugePages, ...] = ()
    huge_mount: str = ""
    huge_mount_writable: bool = False
    aio_room: int = 0
    spdk: Program = Program()
    module: Program = Program()
    disks: dict[str, PciDisk] = field(default_factory=dict)
    files: dict[Path, FileFact] = field(default_factory=dict)
    directories: dict[Path, str] = field(default_factory=dict)
    """What is wrong with a private directory, or nothing."""
    foreign_hosts: frozenset[str] = frozenset()
    """Addresses to listen on that this machine does not have."""
    certificates: dict[str, datetime] = field(default_factory=dict)
    certificate_problem: str = ""


def gather(needs: Needs, root: Path = Path("/")) -> Facts:
    """Everything that `checks` wants to know, for these needs. `root`: where /proc, /sys and /dev are."""
    certificates, problem = certificates_of(needs.pki)
    mount, writable = huge_mount(root)
    return Facts(
        system=platform.system(),
        machine=platform.machine(),
        bits=64 if sys.maxsize > 1 << 32 else 32,
        byte_order=sys.byteorder,
        python=sys.version_info[:2],
        superuser=os.geteuid() == 0,
        cores=frozenset(os.sched_getaffinity(0)),
        clocksource=text_of(root / "sys/devices/system/clocksource/clocksource0/current_clocksource"),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        locked_bytes=resource.getrlimit(resource.RLIMIT_MEMLOCK)[1],
        huge_pages=huge_pages(root),
        huge_mount=mount,
        huge_mount_writable=writable,
        aio_room=number_of(root / "proc/sys/fs/aio-max-nr") - number_of(root / "proc/sys/fs/aio-nr"),
        spdk=installed_spdk(),
        module=our_target(),
        disks=pci_disks(root),
        files={item.file: file_fact(item.file, root) for item in needs.storage},
        directories={path: directory_problem(path) for path in needs.private_dirs},
        foreign_hosts=frozenset(host for host in needs.listens.values() if not may_listen(host)),
        certificates=certificates,
        certificate_problem=problem,
    )


def text_of(path: Path) -> str:
    """A small file's text, stripped; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def number_of(path: Path) -> int:
    text = text_of(path)
    return int(text) if text.isdigit() else 0


def huge_pages(root: Path) -> tuple[HugePages, ...]:
    """Every size that the kernel knows, smallest first."""
    sizes = []
    for place in (root / "sys/kernel/mm/hugepages").glob("hugepages-*kB"):
        size = int(place.name.removeprefix("hugepages-").removesuffix("kB"))
        sizes.append(HugePages(size, number_of(place / "nr_hugepages"), number_of(place / "free_hugepages")))
    return tuple(sorted(sizes, key=lambda one: one.size_kib))


def huge_mount(root: Path) -> tuple[str, bool]:
    """The first hugetlbfs, and whether we may write there."""
    for line in text_of(root / "proc/mounts").splitlines():
        words = line.split()
        if len(words) > 2 and words[2] == "hugetlbfs":
            return words[1], os.access(root / words[1].lstrip("/"), os.W_OK | os.X_OK)
    return "", False


def installed_spdk() -> Program:
    try:
        found = find_spdk()
    except SpdkNotFound as error:
        return Program(problem=str(error))
    return Program(str(found.prefix), ".".join(map(str, found.version or ())))


def our_target() -> Program:
    """It is started, to see that it finds its libraries."""
    try:
        path = find_segmap_tgt()
    except SpdkNotFound as error:
        return Program(problem=str(error))
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=VERSION_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Program(str(path), problem=str(error))
    lines = (answer.stdout + answer.stderr).strip().splitlines() or [""]
    if answer.returncode:
        return Program(str(path), problem=lines[-1])
    return Program(str(path), lines[0])


def pci_disks(root: Path) -> dict[str, PciDisk]:
    """NVMe controllers by their PCIe address."""
    disks = {}
    for place in (root / "sys/bus/pci/devices").glob("*"):
        if text_of(place / "class").startswith(NVME_CLASS):
            group = link_name(place / "iommu_group")
            device = root / "dev/vfio" / group
            disks[place.name] = PciDisk(link_name(place / "driver"), group, bool(group) and os.access(device, os.R_OK))
    return disks


def link_name(path: Path) -> str:
    """What a link of /sys points at, by name; empty if it is not there."""
    try:
        return Path(os.readlink(path)).name
    except OSError:
        return ""


def file_fact(path: Path, root: Path) -> FileFact:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        place = nearest(path.parent)
        return FileFact("missing", os.access(place, os.W_OK | os.X_OK), room_bytes=shutil.disk_usage(place).free)
    except OSError:
        return FileFact("missing", False)
    usable = os.access(path, os.R_OK | os.W_OK)
    if stat.S_ISBLK(mode):
        return FileFact("device", usable, used_by=mounted_at(path.resolve(), root))
    if stat.S_ISREG(mode):
        return FileFact("file", usable, path.stat().st_size)
    return FileFact("other", usable)


def nearest(path: Path) -> Path:
    """The directory itself, or the closest one above that exists."""
    return next(place for place in (path, *path.parents) if place.is_dir())


def mounted_at(device: Path, root: Path) -> str:
    """Where a block device, or one of its partitions, is mounted; empty if nowhere."""
    for line in text_of(root / "proc/mounts").splitlines():
        words = line.split()
        if len(words) > 1 and words[0].startswith("/dev/"):
            rest = os.path.realpath(words[0]).removeprefix(str(device))
            if rest != os.path.realpath(words[0]) and (not rest or rest.lstrip("p").isdigit()):
                return words[1]
    return ""


def directory_problem(path: Path) -> str:
    if not path.exists():
        place = nearest(path)
        return "" if os.access(place, os.W_OK | os.X_OK) else f"cannot be made: {place} is not ours to write"
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return "is not ours to read and write"
    return "can be written by others" if path.stat().st_mode & 0o022 else ""


def may_listen(host: str) -> bool:
    """Whether the address is one of this machine's; names that do not resolve are not."""
    try:
        addresses: Iterable[tuple[int, str]] = [
            (family, str(address[0])) for family, *_, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        ]
    except OSError:
        return False
    for family, address in addresses:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, 0))
            except OSError:
                continue
            return True
    return False


def certificates_of(directory: Path | None) -> tuple[dict[str, datetime], str]:
    """When each valid certificate expires, by its file's name; and what is wrong with the directory."""
    if directory is None or not directory.exists():
        return {}, ""
    try:
        shown = pki.show(directory)
    except pki.PkiError as error:
        return {}, str(error)
    return {path.name: info.not_after for path, (info, revoked) in shown.items() if not revoked}, ""
