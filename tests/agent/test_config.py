"""Everything that can be wrong with a configuration is named, and all of it at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.config import CONTAINERS_MAX, AgentConfig, ConfigError, ContainerConfig, SpdkOptions
from agent.target_process import target_command
from tests.agent.driver import config

GOOD = config("mapper", "exporter", containers=(ContainerConfig("c", "malloc", size_bytes=1 << 20),))


def test_a_good_one() -> None:
    GOOD.check()
    assert GOOD.rpc_path == Path("/nowhere/a-rpc.sock") and GOOD.dataplane_path == Path("/nowhere/a-dp.sock")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": "no spaces"}, "name"),
        ({"roles": frozenset()}, "roles"),
        ({"roles": frozenset({"boss"})}, "roles"),
        ({"controllers": ()}, "controllers"),
        ({"target": "magic"}, "target"),
        ({"target": "spdk", "spdk": SpdkOptions(core_mask="1-2")}, "core_mask"),
        ({"target": "spdk", "spdk": SpdkOptions(memory_mib=128)}, "at least 512"),
        ({"target": "spdk", "containers": (ContainerConfig("c", "nvme", traddr="0000:01:00.0"),)}, "huge_pages"),
        ({"target_lifetime": "short"}, "target_lifetime"),
        ({"roles": frozenset({"mapper"})}, "only an exporter"),
        ({"containers": GOOD.containers * (CONTAINERS_MAX + 1)}, "at most"),
        ({"containers": GOOD.containers * 2}, "names must differ"),
        ({"listen_port": 65536}, "listen_port"),
        ({"rpc_socket": Path("/" + "x" * 107)}, "107 bytes"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        replace(GOOD, **changes).check()


@pytest.mark.parametrize(
    ("container", "named"),
    [
        (ContainerConfig("", "malloc", size_bytes=512), "name"),
        (ContainerConfig("c", "tape"), "kind"),
        (ContainerConfig("c", "malloc", size_bytes=512, block_size=520), "block_size"),
        (ContainerConfig("c", "malloc", size_bytes=513), "multiple"),
        (ContainerConfig("c", "malloc"), "size_bytes"),
        (ContainerConfig("c", "null"), "size_bytes"),
        (ContainerConfig("c", "aio"), "path"),
        (ContainerConfig("c", "bdev"), "bdev"),
        (ContainerConfig("c", "nvme"), "traddr"),
    ],
)
def test_a_wrong_container_is_named(container: ContainerConfig, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        replace(GOOD, containers=(container,)).check()


def test_everything_is_told_at_once() -> None:
    bad: AgentConfig = replace(GOOD, name="", listen_port=-1, target="magic")
    with pytest.raises(ConfigError) as caught:
        bad.check()
    assert all(part in str(caught.value) for part in ("name:", "listen_port:", "target:"))


def test_a_spdk_target_is_told_its_sockets() -> None:
    told = {"target": "spdk", "target_command": ("segmap_tgt", "-m", "0x1")}
    exporter, mapper = config("exporter", **told), config("mapper", **told)
    command = ["segmap_tgt", "-m", "0x1", "-r", str(exporter.rpc_path)]
    assert target_command(exporter) == command
    assert target_command(mapper) == [*command, "--dataplane-socket", str(mapper.dataplane_path)]


def test_a_spdk_target_is_found_where_no_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("segmap_tgt", "bin/spdk_tgt"):
        program = tmp_path / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("SEGMAP_TGT", str(tmp_path / "segmap_tgt"))
    monkeypatch.setenv("SPDK_PREFIX", str(tmp_path))
    options = SpdkOptions(core_mask="[1,2]", memory_mib=2048, huge_pages=True, core_locks=False)
    mapper = target_command(config("mapper", target="spdk", spdk=options))
    assert mapper[0] == str(tmp_path / "segmap_tgt")
    assert mapper[mapper.index("-m") + 1] == "[1,2]" and mapper[mapper.index("-s") + 1] == "2048"
    assert "--no-huge" not in mapper and "--disable-cpumask-locks" in mapper and "--dataplane-socket" in mapper
    memory = (ContainerConfig("c", "malloc", size_bytes=(64 << 20) + 512),)
    exporter = target_command(config("exporter", target="spdk", containers=memory))
    assert exporter[exporter.index("-s") + 1] == str(1024 + 65), "what malloc needs comes on top"
    assert exporter[0] == str(tmp_path / "bin/spdk_tgt")
    assert "--no-huge" in exporter and "--dataplane-socket" not in exporter
