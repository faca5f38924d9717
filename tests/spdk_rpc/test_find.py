"""Finding an installed SPDK: the order of places, what counts as one, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from spdk_rpc.commands import embedded_command, spdk_command
from spdk_rpc.find import SpdkNotFound, find_segmap_tgt, find_spdk, prefix_of_flags, read_version

HEADER = "#define SPDK_VERSION_MAJOR\t26\n#define SPDK_VERSION_MINOR\t5\n#define SPDK_VERSION_PATCH\t1\n"


def install(prefix: Path, header: str | None = HEADER) -> Path:
    program = prefix / "bin" / "spdk_tgt"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (prefix / "lib" / "pkgconfig").mkdir(parents=True)
    if header is not None:
        (prefix / "include" / "spdk").mkdir(parents=True)
        (prefix / "include" / "spdk" / "version.h").write_text(header)
    return prefix


def test_order(tmp_path: Path) -> None:
    chosen, told, usual = (install(tmp_path / name) for name in ("chosen", "told", "usual"))
    assert find_spdk({"SPDK_PREFIX": str(chosen)}, lambda: told, [usual]).prefix == chosen
    found = find_spdk({}, lambda: told, [usual])
    assert (found.prefix, found.found_by, found.version) == (told, "pkg-config", (26, 5, 1))
    assert find_spdk({}, lambda: None, [tmp_path / "empty", usual]).prefix == usual
    assert find_spdk({}, lambda: tmp_path / "gone", [usual]).prefix == usual


def test_chosen_prefix_is_never_passed_over(tmp_path: Path) -> None:
    usual = install(tmp_path / "usual")
    with pytest.raises(SpdkNotFound, match=r"SPDK_PREFIX is /nowhere, but there is no /nowhere/bin/spdk_tgt"):
        find_spdk({"SPDK_PREFIX": "/nowhere"}, lambda: None, [usual])


def test_nowhere(tmp_path: Path) -> None:
    with pytest.raises(
        SpdkNotFound, match=r"SPDK is optional.*install your distribution's package.*SPDK_PREFIX"
    ) as caught:
        find_spdk({}, lambda: tmp_path / "told", [tmp_path / "usual"])
    assert str(tmp_path / "told") in str(caught.value)
    assert str(tmp_path / "usual") in str(caught.value)


def test_program_must_be_executable(tmp_path: Path) -> None:
    prefix = install(tmp_path / "x")
    (prefix / "bin" / "spdk_tgt").chmod(0o644)
    with pytest.raises(SpdkNotFound):
        find_spdk({}, lambda: None, [prefix])


def test_programs_and_pkg_config_directories(tmp_path: Path) -> None:
    found = find_spdk({}, lambda: None, [install(tmp_path / "x")])
    assert found.binary("spdk_tgt") == tmp_path / "x" / "bin" / "spdk_tgt"
    assert found.pkg_config_dirs == (tmp_path / "x" / "lib" / "pkgconfig",)
    with pytest.raises(SpdkNotFound, match="has no program bdevperf"):
        found.binary("bdevperf")


def test_version(tmp_path: Path) -> None:
    assert find_spdk({}, lambda: None, [install(tmp_path / "x", header=None)]).version is None
    (tmp_path / "version.h").write_text("#define OTHER 1\n")
    assert read_version(tmp_path / "version.h") is None


@pytest.mark.parametrize(
    ("flags", "prefix"),
    [("-I/opt/x/include \n", "/opt/x"), ("-I/a/dpdk -I/usr/include", "/usr"), ("", None), ("-I/a/headers", None)],
)
def test_prefix_of_flags(flags: str, prefix: str | None) -> None:
    assert prefix_of_flags(flags) == (None if prefix is None else Path(prefix))


def test_our_own_target(tmp_path: Path) -> None:
    chosen, built, other = (tmp_path / name / "segmap_tgt" for name in ("chosen", "built", "other"))
    nowhere = tmp_path / "nowhere"
    for program in (chosen, built, other):
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    assert find_segmap_tgt({"SEGMAP_TGT": str(chosen), "PATH": ""}, built) == chosen
    assert find_segmap_tgt({"PATH": str(other.parent)}, built) == built
    assert find_segmap_tgt({"PATH": str(other.parent)}, nowhere) == other
    with pytest.raises(SpdkNotFound, match=f"SEGMAP_TGT is {nowhere}"):
        find_segmap_tgt({"SEGMAP_TGT": str(nowhere), "PATH": ""}, built)
    with pytest.raises(SpdkNotFound, match="make native"):
        find_segmap_tgt({"PATH": ""}, nowhere)


def test_command_lines(tmp_path: Path) -> None:
    plain = spdk_command("/x/spdk_tgt", tmp_path / "rpc.sock")
    assert plain[:3] == ["/x/spdk_tgt", "-r", str(tmp_path / "rpc.sock")]
    assert {"--no-huge", "--no-pci"} <= set(plain)
    full = spdk_command("t", "s", huge_pages=True, pci=True, core_locks=False, wait_for_rpc=True, dataplane_socket="d")
    assert not {"--no-huge", "--no-pci"} & set(full)
    assert {"--wait-for-rpc", "--disable-cpumask-locks"} <= set(full) and full[-2:] == ["--dataplane-socket", "d"]
    assert embedded_command("r")[-2:] == ["--rpc-socket", "r"]
    assert embedded_command("r", "d")[-2:] == ["--dataplane-socket", "d"]
