"""An upgrade, part by part, under a disk in use: neighbouring versions of the channel work together in every pair."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from tests.cluster.cluster import MIB, cluster
from tests.cluster.test_disk import pattern
from tests.cluster.test_survival import insist

NEXT = "tests.cluster.next_version"
TARGET = (sys.executable, "-m", NEXT, "target")


def test_parts_are_upgraded_one_by_one(runtime_dir: Path) -> None:
    """b's target is of the next version from the start; then come the controller, a's daemon and the exporter's.

    Each time a write at one agent faults, and takes a segment away from the other one: a fault, its answer, and a
    blocking command; and a read there brings it back.
    """

    async def play() -> None:
        settings: dict[str, Any] = {"mapper_settings": {"b": {"target_command": TARGET}}}
        async with cluster(runtime_dir, containers_in_memory=False, **settings) as made:
            await made.disk("v", 64 * MIB, ["a", "b"])
            hosts = {name: await made.connect("v", name) for name in ("a", "b")}
            await exchange(hosts, 0)
            made.controller.stop()
            made.controller.program = NEXT
            made.controller.start()
            await exchange(hosts, 8)
            for at, name in ((16, "a"), (24, "x")):
                await made.until(made.all_admitted)
                made.agents[name].kill()
                made.agents[name].program = NEXT
                made.agents[name].start()
                await exchange(hosts, at)
            await made.until(made.all_admitted)
            found = await made.call("cluster.check")

            async def done() -> Any:
                answer = await made.call("cluster.check", run=found["run"])
                return answer if answer["state"] == "done" else None

            assert not (await made.until(done))["findings"]

    asyncio.run(play())


async def exchange(hosts: dict[str, Any], at: int) -> None:
    """New segments at each agent, from `at` on, seen by the other."""
    for number, (writer, reader) in enumerate((("a", "b"), ("b", "a"))):
        start, data = (at + 4 * number) * MIB, pattern(at + number, MIB)
        old = await insist(lambda reader=reader, start=start: hosts[reader].read(1, start, MIB))
        assert not any(old)
        await insist(lambda writer=writer, start=start, data=data: hosts[writer].write(1, start, data))
        assert await insist(lambda reader=reader, start=start: hosts[reader].read(1, start, MIB)) == data
        again = pattern(at + number + 100, MIB)
        await insist(lambda reader=reader, start=start, again=again: hosts[reader].write(1, start, again))
        assert await insist(lambda writer=writer, start=start: hosts[writer].read(1, start, MIB)) == again
