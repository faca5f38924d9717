"""One cluster for all tests that leave it whole: what they kill comes back, and their disks are deleted again."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.cluster.cluster import Cluster, cluster


class Stage:
    """`run(play)` plays on the cluster, which must be whole before and after."""

    def __init__(self, runner: asyncio.Runner, made: Cluster) -> None:
        self._runner = runner
        self._made = made

    def run(self, play: Callable[[Cluster], Coroutine[Any, Any, None]]) -> None:
        try:
            self._runner.run(self._made.until(self._made.all_admitted))
            self._runner.run(play(self._made))
        except BaseException:
            self._made.show_logs()
            raise


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    """A container host with two files, mapping agents a and b."""
    directory = Path("/tmp") / f"segmap-{uuid.uuid4().hex[:12]}"
    directory.mkdir(mode=0o700)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        life = cluster(directory, containers_in_memory=False)
        made = runner.run(life.__aenter__())
        try:
            yield Stage(runner, made)
        finally:
            runner.run(life.__aexit__(None, None, None))
            shutil.rmtree(directory, ignore_errors=True)
