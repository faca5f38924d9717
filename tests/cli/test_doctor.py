"""`segmap doctor`: each finding from facts alone, facts from a made-up machine, and the command on this one."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli.config.document import parse
from cli.doctor.checks import Finding, Verdict, diagnose
from cli.doctor.facts import Facts, FileFact, HugePages, PciDisk, Program, gather
from cli.doctor.needs import Needs, Poller, Storage, cores_of, needs_of
from cli.exit_codes import ExitCode
from cli.program import main

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DISK = Path("/srv/disk.img")
PCI = "0000:01:00.0"
SITE = """
cluster: site
runtime_dir: {directory}
agents:
  - name: store
    roles: [exporter]
    target: spdk
    listen: 127.0.0.1:0
    spdk: {{cores: '0x6', memory: 1GiB, huge_pages: true}}
    exports:
      - {{name: disk, kind: aio, file: disk.img, size: 1MiB}}
      - {{name: fast, kind: nvme, traddr: 0000:01:00.0}}
      - {{name: memory, kind: malloc, size: 64MiB}}
  - name: a
    roles: [mapper]
    target: spdk
    listen: 192.0.2.1:0
    spdk: {{cores: '[3]'}}
"""

FIT = Facts(
    cores=frozenset(range(4)),
    clocksource="tsc",
    open_files=65536,
    locked_bytes=-1,
    huge_pages=(HugePages(2048, 2048, 2048), HugePages(1 << 20, 0, 0)),
    huge_mount="/dev/hugepages",
    huge_mount_writable=True,
    aio_room=65536,
    spdk=Program("/usr", "26.5.0"),
    module=Program("/usr/bin/segmap_tgt", "SPDK v24.09"),
    disks={PCI: PciDisk("vfio-pci", "7", True)},
    files={DISK: FileFact("file", True, 1 << 20)},
)
SPDK_SITE = Needs(
    stock=True,
    module=True,
    pollers=(
        Poller("store", frozenset({1, 2}), True, 1024, True),
        Poller("a", frozenset({3}), True, 2048, True),
    ),
    storage=(Storage("store/disk", DISK, 0),),
    pci={"store/fast": PCI},
    listens={"agent a": "192.0.2.1"},
)


def bad(facts: Facts, needs: Needs = SPDK_SITE) -> list[Finding]:
    """What is not as it should be."""
    return [one for one in diagnose(facts, needs, NOW) if one.verdict in (Verdict.MISSING, Verdict.WARNING)]


def test_a_fit_machine() -> None:
    assert bad(FIT) == []
    subjects = {one.subject for one in diagnose(FIT, SPDK_SITE, NOW)}
    assert {"SPDK", "segmap_tgt", "huge pages", "cores of a", "disk of store/fast", "storage of store/disk"} <= subjects


def test_nothing_of_spdk_is_missing_where_nothing_asks_for_it() -> None:
    facts = replace(
        FIT, spdk=Program(problem="none"), module=Program(problem="none"), huge_pages=(HugePages(2048, 0, 0),)
    )
    assert bad(facts, Needs()) == []
    assert {one.verdict for one in diagnose(facts, Needs(), NOW) if one.subject == "SPDK"} == {Verdict.UNUSED}


@pytest.mark.parametrize(
    ("facts", "subject", "verdict", "advice"),
    [
        (replace(FIT, byte_order="big"), "platform", "missing", "little-endian"),
        (replace(FIT, python=(3, 10)), "platform", "missing", "Python 3.11"),
        (replace(FIT, clocksource="hpet"), "clock", "warning", "tsc"),
        (replace(FIT, open_files=1024), "open files", "warning", "LimitNOFILE"),
        (replace(FIT, spdk=Program(problem="go and get it")), "SPDK", "missing", "go and get it"),
        (replace(FIT, spdk=Program("/usr", "24.1.0")), "SPDK", "missing", "24.09 or later"),
        (replace(FIT, spdk=Program("/usr", "24.9.0")), "SPDK", "warning", "reservations"),
        (replace(FIT, spdk=Program("/usr", "27.1.0")), "SPDK", "warning", "newest that was tested"),
        (replace(FIT, spdk=Program("/usr")), "SPDK", "warning", "headers"),
        (replace(FIT, module=Program(problem="make native")), "segmap_tgt", "missing", "make native"),
        (
            replace(FIT, module=Program("/x", problem="libspdk_bdev.so.16")),
            "segmap_tgt",
            "missing",
            "clean",
        ),
        (replace(FIT, cores=frozenset({0, 1, 2})), "cores of a", "missing", "choose from 0, 1, 2"),
        (replace(FIT, huge_pages=()), "huge pages", "missing", "huge_pages: false"),
        (replace(FIT, huge_pages=(HugePages(2048, 0, 0),)), "huge pages", "missing", "vm.nr_hugepages=1536"),
        (replace(FIT, huge_pages=(HugePages(2048, 1536, 9),)), "huge pages", "warning", "this cluster itself"),
        (replace(FIT, huge_mount=""), "huge pages", "missing", "mount -t hugetlbfs"),
        (replace(FIT, huge_mount_writable=False), "huge pages", "missing", "chown"),
        (replace(FIT, locked_bytes=1 << 16), "locked memory", "missing", "LimitMEMLOCK"),
        (
            replace(FIT, disks={"0000:02:00.0": PciDisk("nvme", "", False)}),
            "disk of store/fast",
            "missing",
            "0000:02:00.0",
        ),
        (replace(FIT, disks={PCI: PciDisk("nvme", "", False)}), "disk of store/fast", "missing", "vfio-pci"),
        (
            replace(FIT, disks={PCI: PciDisk("vfio-pci", "7", False)}),
            "disk of store/fast",
            "missing",
            "vfio/7",
        ),
        (replace(FIT, files={DISK: FileFact("missing", True)}), "storage of store/disk", "missing", "`size`"),
        (replace(FIT, files={DISK: FileFact("file", False)}), "storage of store/disk", "missing", "chown"),
        (replace(FIT, files={DISK: FileFact("other", True)}), "storage of store/disk", "missing", "another"),
        (
            replace(FIT, files={DISK: FileFact("device", True, 0, 0, "/")}),
            "storage of store/disk",
            "missing",
            "unmount",
        ),
        (replace(FIT, aio_room=100), "AIO requests", "missing", "fs.aio-max-nr"),
        (replace(FIT, directories={DISK: "is not ours"}), "private directory", "missing", "chown"),
        (replace(FIT, foreign_hosts=frozenset({"192.0.2.1"})), "address of agent a", "missing", "--agent"),
        (replace(FIT, certificates={"a.pem": NOW}), "certificates", "missing", "rotate"),
        (replace(FIT, certificates={"a.pem": NOW + timedelta(days=9)}), "certificates", "warning", "rotate"),
        (replace(FIT, certificate_problem="unreadable"), "certificates", "missing", "segmap pki"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said_with_what_to_do(facts: Facts, subject: str, verdict: str, advice: str) -> None:
    (finding,) = bad(facts)
    assert (finding.subject, finding.verdict) == (subject, verdict)
    assert advice in finding.advice, finding


def test_cores_that_two_targets_poll() -> None:
    shared = tuple(replace(poller, cores=frozenset({1})) for poller in SPDK_SITE.pollers)
    (finding,) = bad(FIT, replace(SPDK_SITE, pollers=shared))
    assert (finding.subject, finding.verdict) == ("cores of a", Verdict.MISSING) and "as store" in finding.found
    unlocked = tuple(replace(poller, core_locks=False) for poller in shared)
    (finding,) = bad(FIT, replace(SPDK_SITE, pollers=unlocked))
    assert finding.verdict is Verdict.WARNING
    everywhere = (replace(SPDK_SITE.pollers[0], cores=FIT.cores),)
    (finding,) = bad(FIT, replace(SPDK_SITE, pollers=everywhere))
    assert (finding.subject, finding.verdict) == ("cores", Verdict.WARNING)


def test_a_file_to_be_made_needs_room() -> None:
    needs = replace(SPDK_SITE, storage=(Storage("store/disk", DISK, 1 << 30),))
    assert bad(replace(FIT, files={DISK: FileFact("missing", True, room_bytes=1 << 31)}), needs) == []
    (finding,) = bad(replace(FIT, files={DISK: FileFact("missing", True, room_bytes=1 << 20)}), needs)
    assert finding.verdict is Verdict.WARNING


def test_needs_of_a_configuration(tmp_path: Path) -> None:
    document = parse(SITE.format(directory=tmp_path), "site.yaml")
    needs = needs_of(document)
    assert needs.stock and needs.module and needs.huge_mib == 1024 + 64
    assert [poller.cores for poller in needs.pollers] == [{1, 2}, {3}]
    assert needs.pci == {"store/fast": "0000:01:00.0"} and needs.storage[0].file == tmp_path / "disk.img"
    assert needs.listens.keys() == {"agent store", "agent a", "controller"}
    only = needs_of(document, ["a"])
    assert not only.stock and only.module and only.listens.keys() == {"agent a"} and not only.storage


@pytest.mark.parametrize(
    ("mask", "cores"), [("0x1", {0}), ("0xA", {1, 3}), ("[2]", {2}), ("[0,2]", {0, 2}), ("[1-3,5]", {1, 2, 3, 5})]
)
def test_cores_of_a_mask(mask: str, cores: set[int]) -> None:
    assert cores_of(mask) == cores


def test_facts_of_a_made_up_machine(tmp_path: Path) -> None:
    pages = tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB"
    disk = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    for directory in (pages, disk, tmp_path / "proc/sys/fs", tmp_path / "dev/huge"):
        directory.mkdir(parents=True)
    (pages / "nr_hugepages").write_text("64\n")
    (pages / "free_hugepages").write_text("60\n")
    (disk / "class").write_text("0x010802\n")
    (disk / "driver").symlink_to("/sys/bus/pci/drivers/nvme")
    (tmp_path / "proc/mounts").write_text("hugetlbfs /dev/huge hugetlbfs rw 0 0\n/dev/sdx1 /data ext4 rw 0 0\n")
    (tmp_path / "proc/sys/fs/aio-max-nr").write_text("100\n")
    (tmp_path / "proc/sys/fs/aio-nr").write_text("40\n")
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o777)
    shared.chmod(0o777)
    needs = Needs(
        storage=(Storage("s/new", tmp_path / "new/file", 1), Storage("s/dir", shared, 0)),
        listens={"here": "127.0.0.1", "there": "192.0.2.1", "unknown": "no.such.host.invalid"},
        private_dirs=(shared, tmp_path / "new"),
    )
    facts = gather(needs, tmp_path)
    assert facts.huge_pages == (HugePages(2048, 64, 60),)
    assert (facts.huge_mount, facts.huge_mount_writable, facts.aio_room) == ("/dev/huge", True, 60)
    assert facts.disks == {"0000:01:00.0": PciDisk("nvme", "", False)}
    assert facts.files[tmp_path / "new/file"].kind == "missing" and facts.files[tmp_path / "new/file"].usable
    assert facts.files[shared].kind == "other"
    assert facts.directories == {shared: "can be written by others", tmp_path / "new": ""}
    assert facts.foreign_hosts == {"192.0.2.1", "no.such.host.invalid"}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == ExitCode.DONE
    assert "platform" in capsys.readouterr().out
    site = tmp_path / "site.yaml"
    site.write_text(SITE.format(directory=tmp_path))
    assert main(["doctor", str(site), "--json"]) == ExitCode.DIFFERENT
    document = json.loads(capsys.readouterr().out)
    missing = {one["subject"] for one in document["findings"] if one["verdict"] == "missing"}
    assert not document["fit"] and {"disk of store/fast", "address of agent a"} <= missing
    assert main(["doctor", "--agent", "a"]) == ExitCode.USAGE
    assert main(["doctor", str(site), "--agent", "nobody"]) == ExitCode.USAGE
