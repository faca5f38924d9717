"""Backup, check and restore on a real cluster: under load, after a crash, with agents that know more than the store."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cluster.cluster import MIB, TOP, Cluster, cluster
from tests.cluster.conftest import Stage
from tests.cluster.test_disk import disk, pattern, run

SIZE = 64 * MIB


async def segmap(made: Cluster, *words: str) -> tuple[int, Any]:
    """The command with --json: exit status and document."""
    socket = str(made.directory / "api.sock")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", *words, "--json"),
        cwd=TOP,
        env={"SEGMAP_API": socket, "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    text, errors = await process.communicate()
    print(errors.decode())
    assert process.returncode is not None
    return process.returncode, json.loads(text)


def test_check_and_backup_while_hosts_write_and_after_a_crash(stage: Stage) -> None:
    async def play(made: Cluster) -> None:
        backup = made.directory / "loaded.backup"
        async with disk(made) as (at_a, at_b, _):
            over = asyncio.Event()

            async def load() -> int:
                written = 0
                while not over.is_set():
                    for host, at in ((at_a, 20 + written % 20), (at_b, 50 + written % 20)):
                        await host.write(1, at * MIB + written % 7 * 4096, pattern(written, 4096))
                    written += 1
                return written

            loading = asyncio.create_task(load())
            assert await segmap(made, "check") == (0, await _latest(made))
            status, answer = await segmap(made, "store", "backup", str(backup))
            assert (status, answer["state"]) == (0, "done")
            made.controller.kill()
            made.controller.start()
            await made.until(made.all_admitted)
            await made.until(lambda: _attached(made))
            status, found = await segmap(made, "check")
            assert (status, found["findings"]) == (0, [])
            over.set()
            assert await loading > 10
        status, verified = await segmap(made, "store", "verify", str(backup))
        assert (status, verified["findings"], verified["frozen"]) == (0, [], "")
        status, _ = await segmap(made, "store", "verify", str(made.directory / "store.db"))
        assert status == 5, "the controller has it open"

    stage.run(play)


async def _latest(made: Cluster) -> Any:
    answer = await made.call("cluster.check", run=1)
    assert answer["state"] == "done"
    assert answer["counts"]["agent_entries"] == 512
    return answer


def test_a_restored_store_waits_for_reconciliation_and_loses_only_what_came_after(runtime_dir: Path) -> None:
    async def play() -> None:
        settings = {"lease_duration_s": 20.0, "renew_interval_s": 2.0}
        async with cluster(runtime_dir, containers_in_memory=False, **settings) as made:
            await made.disk("d", SIZE, ["a", "b"])
            at_a, at_b = await made.connect("d", "a"), await made.connect("d", "b")
            old, late = pattern(1, MIB), pattern(2, MIB)
            await at_a.write(1, 0, old)
            status, _ = await segmap(made, "store", "backup", str(runtime_dir / "backup"))
            assert status == 0
            await at_a.write(1, 40 * MIB, late)
            await asyncio.to_thread(made.controller.stop)
            words = ["store", "restore", str(runtime_dir / "backup"), str(runtime_dir / "store.db")]
            assert (await segmap(made, *words))[0] == 5
            status, restored = await segmap(made, *words, "--force")
            assert (status, restored["generation"], restored["frozen"]) == (0, 2, True)
            made.controller.start()
            await made.until(made.all_admitted)
            await made.until(lambda: _attached(made))
            assert bytes(await at_a.read(1, 0, MIB)) == bytes(await at_b.read(1, 0, MIB)) == old
            waiting = asyncio.create_task(at_b.write(1, 50 * MIB, old))
            await made.until(lambda: _waits(made))
            status, found = await segmap(made, "check", "--reconcile")
            assert (status, found["lifted"]) == (1, False)
            assert any("agent a, vdisk d segment 40" in finding["text"] for finding in found["findings"]), found
            assert not waiting.done()
            status, found = await segmap(made, "check", "--reconcile", "--discard")
            assert (status, found["lifted"], found["counts"]["labels_renewed"]) == (0, True, 2), found
            await asyncio.wait_for(waiting, 20)
            assert bytes(await at_a.read(1, 50 * MIB, MIB)) == old
            assert bytes(await at_a.read(1, 40 * MIB, MIB)) == bytes(MIB), (
                "what came after the backup is lost, not mixed"
            )
            await at_a.write(1, 40 * MIB, late[:4096])
            assert bytes(await at_b.read(1, 40 * MIB, MIB)) == late[:4096].ljust(MIB, b"\0"), (
                "it is zeroed before it is used"
            )
            status, found = await segmap(made, "check")
            assert (status, found["findings"]) == (0, [])

    run(play())


async def _attached(made: Cluster) -> bool:
    containers = (await made.call("container.list"))["containers"]
    return all(set(container["attached_at"]) == {"a", "b"} for container in containers)


async def _waits(made: Cluster) -> bool:
    status = await made.call("cluster.status")
    told = any("segmap check --reconcile" in alarm["text"] for alarm in status["alarms"])
    return told and status["faults"]["waiting_for_space"] > 0
