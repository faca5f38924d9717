"""The controller's shell with real sockets, TLS and SQLite: admission, durable faults, restarts, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from channel.messages import LeaseRenew
from ci.fault_load import Agent, Faulter
from controller.api.errors import ApiError
from controller.config import ControllerConfig
from controller.main import run
from controller.shell import ControllerShell
from controller.store.interface import Batch, Committed, StoreFull
from controller.store.sqlite import SqliteStore
from controller.store.writer import CommitterFull, CommitterLimits
from transport import pki

SEGMENTS = 1 << 12


def certificates(directory: Path) -> Path:
    pki.init(directory)
    pki.issue(directory, "controller", "controller")
    for name in ("store", "map", "other"):
        pki.issue(directory, name, "agent")
    return directory


def configuration(directory: Path) -> ControllerConfig:
    files = pki.files(directory / "pki", "controller", "controller")
    return ControllerConfig(directory / "store.db", files.ca, files.certificate, files.key)


@asynccontextmanager
async def running(config: ControllerConfig) -> AsyncIterator[ControllerShell]:
    shell = ControllerShell(config)
    await shell.start()
    try:
        yield shell
    finally:
        await shell.stop()


def in_loop(work: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(work(), 30)  # type: ignore[arg-type]

    asyncio.run(limited())


async def connected(shell: ControllerShell, directory: Path) -> tuple[Agent, Faulter]:
    store, mapper = Agent("store", 2), Faulter("map", SEGMENTS)
    await store.connect(shell.port, directory / "pki", b"s" * 16)
    await mapper.connect(shell.port, directory / "pki", b"m" * 16)
    store.export("disk", 1 << 16)
    while not (await shell.call("agent.show", {"agent": "store"}))["exports"]:
        await asyncio.sleep(0)
    return store, mapper


async def provisioned(shell: ControllerShell, mapper: Faulter) -> dict[str, Any]:
    await shell.call("container.add", {"name": "c", "agent": "store", "export": "disk", "contents": "zeroed"}, "r1")
    vdisk = await shell.call("vdisk.create", {"name": "v", "size_bytes": SEGMENTS << 20}, "r2")
    shown = await shell.call("vdisk.present", {"name": "v", "agents": ["map"], "any_host": True}, "r3")
    assert shown["presentations"][0]["state"] == "presented"
    mapper.table = vdisk["number"] << 32 | mapper.number
    return vdisk


@pytest.mark.claim(1, 26)
def test_faults_are_durable_over_a_restart(tmp_path: Path) -> None:
    certificates(tmp_path / "pki")
    config = configuration(tmp_path)

    async def work() -> None:
        async with running(config) as shell:
            _, mapper = await connected(shell, tmp_path)
            await provisioned(shell, mapper)
            run = await mapper.run(16, 500)
            assert run.answered >= 500
            assert not mapper.failures
            first = await shell.call("vdisk.map", {"name": "v"})
            allocated = (await shell.call("vdisk.show", {"name": "v"}))["allocated_segments"]
            assert allocated >= 500
            term = (await shell.call("cluster.status", {}))["term"]
        async with running(config) as shell:
            status = await shell.call("cluster.status", {})
            assert status["term"] == term + 1
            assert await shell.call("vdisk.map", {"name": "v"}) == first
            assert (await shell.call("vdisk.create", {"name": "v", "size_bytes": SEGMENTS << 20}, "r2"))["number"] == 1
            with pytest.raises(ApiError) as refused:
                await shell.call("vdisk.create", {"name": "w", "size_bytes": 1}, "r2")
            assert refused.value.code == "bad_argument"
            _, mapper = await connected(shell, tmp_path)
            assert mapper.incarnation == 2
            while "Present" not in mapper.requests:
                await asyncio.sleep(0)
            order = [name for name in mapper.requests if name != "ZeroSegments"]
            assert order.index("AttachContainer") < order.index("CreateTable") < order.index("Present")

    in_loop(work)


def test_a_name_that_the_certificate_does_not_have_is_refused(tmp_path: Path) -> None:
    certificates(tmp_path / "pki")

    async def work() -> None:
        async with running(configuration(tmp_path)) as shell:
            impostor = Agent("other", 1)
            connecting = impostor.connect(shell.port, tmp_path / "pki", b"x" * 16)
            impostor.name = "other"
            session_send = impostor.session.send

            def lie(message: Any, header: Any) -> int:
                return session_send(type(message)(1, 1, 1, b"x" * 16, "map", "load"), header)

            impostor.session.send = lie  # type: ignore[method-assign, assignment]
            with pytest.raises(ConnectionError, match="UNAUTHORIZED"):
                await connecting
            assert (await shell.call("agent.list", {}))["agents"] == []

    in_loop(work)


def test_an_unknown_operation_and_a_stopped_controller(tmp_path: Path) -> None:
    certificates(tmp_path / "pki")

    async def work() -> None:
        async with running(configuration(tmp_path)) as shell:
            with pytest.raises(ApiError) as refused:
                await shell.call("vdisk.polish", {})
            assert refused.value.code == "unknown_operation"
            events = await shell.call("events.list", {})
            assert events == {"events": []}
        with pytest.raises(ApiError) as refused:
            await shell.call("cluster.status", {})
        assert refused.value.code == "unavailable"

    in_loop(work)


def test_what_keeps_it_from_starting_is_said_and_leaves_nothing_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(configuration(tmp_path)) == 1
    assert "segmap controller:" in capsys.readouterr().err


class Defect(Exception):
    """What a test makes the core, or a link, raise."""


@pytest.mark.parametrize("where", ["step", "effects"])
def test_a_defect_ends_the_reign_and_the_next_one_goes_on_from_what_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr("controller.shell.RECOVER_S", 0.01)
    certificates(tmp_path / "pki")

    def fail(*_: object) -> None:
        raise Defect

    async def work() -> None:
        async with running(configuration(tmp_path)) as shell:
            _, mapper = await connected(shell, tmp_path)
            await provisioned(shell, mapper)
            run = await mapper.run(16, 100)
            assert run.answered >= 100
            core, (link, *_) = shell._core, shell._links.values()
            assert core is not None
            if where == "step":
                monkeypatch.setattr(core, "step", fail)
            else:
                monkeypatch.setattr(link, "send", fail)
                monkeypatch.setattr(shell, "_execute_rare", fail)
            with pytest.raises(ApiError) as refused:
                await shell.call("vdisk.show", {"name": "v"})
            assert refused.value.code == "unavailable"
            monkeypatch.undo()
            await mapper.ended
            while shell._core is None:
                await asyncio.sleep(0.001)
            assert shell._core.term == core.term + 1
            assert (await shell.call("vdisk.show", {"name": "v"}))["allocated_segments"] >= 100
            await connected(shell, tmp_path)

    in_loop(work)


def test_bytes_hold_it_up_as_commits_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.shell.COMMIT_BYTES_HIGH", 1)
    monkeypatch.setattr("controller.shell.COMMIT_BYTES_LOW", 1)
    certificates(tmp_path / "pki")

    async def work() -> None:
        async with running(configuration(tmp_path)) as shell:
            _, mapper = await connected(shell, tmp_path)
            await provisioned(shell, mapper)
            paused: list[bool] = []
            throttle = shell._throttle

            def observed() -> None:
                throttle()
                paused.append(shell._paused)

            monkeypatch.setattr(shell, "_throttle", observed)
            assert (await mapper.run(16, 500)).answered >= 500
            assert True in paused and paused[-1] is False

    in_loop(work)


def test_a_full_store_stops_neither_leases_nor_reads_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates(tmp_path / "pki")
    full, commit, commits = asyncio.Event(), SqliteStore.commit, 0

    def limited(store: SqliteStore, batches: Sequence[Batch], term: int) -> Committed:
        nonlocal commits
        commits += 1
        if full.is_set():
            raise StoreFull("no space")
        return commit(store, batches, term)

    async def work() -> None:
        async with running(configuration(tmp_path)) as shell:
            _, mapper = await connected(shell, tmp_path)
            await provisioned(shell, mapper)
            await mapper.run(16, 100)
            term = (await shell.call("cluster.status", {}))["term"]
            before = (await shell.call("vdisk.show", {"name": "v"}))["allocated_segments"]
            monkeypatch.setattr(SqliteStore, "commit", limited)
            full.set()
            running_on = asyncio.ensure_future(mapper.run(16, 200))
            while not (alarms := (await shell.call("cluster.status", {}))["alarms"]):
                await asyncio.sleep(0.001)
            assert "full" in {alarm["kind"] for alarm in alarms}
            with pytest.raises(ApiError, match="full"):
                await shell.call("vdisk.create", {"name": "w", "size_bytes": 1})
            grants = mapper.grants
            mapper.session.send(LeaseRenew(1), mapper.header())
            mapper.flush()
            while mapper.grants == grants:
                await asyncio.sleep(0.001)
            assert (await shell.call("vdisk.show", {"name": "v"}))["allocated_segments"] == before
            assert not running_on.done()
            tries = commits
            await asyncio.sleep(0.02)
            assert commits - tries <= 1, "it is not tried in a tight loop"
            full.clear()
            assert (await running_on).answered >= 200
            assert not mapper.failures
            status = await shell.call("cluster.status", {})
            assert (status["term"], status["alarms"]) == (term, [])
            assert (await shell.call("vdisk.show", {"name": "v"}))["allocated_segments"] >= before + 200

    in_loop(work)


def test_a_store_that_has_space_again_before_anybody_has_looked_is_not_full(tmp_path: Path) -> None:
    certificates(tmp_path / "pki")

    async def work() -> None:
        async with running(configuration(tmp_path)) as shell:
            core = shell._core
            assert core is not None
            for error, full in ((StoreFull("no space"), True), (None, False)):
                shell._store_full(StoreFull("no space") if error is None else None)
                shell._store_full(error)
                await shell.call("cluster.status", {})
                assert bool(core.cluster.store_full) is full, "what was told last is so"

    in_loop(work)


def test_a_full_queue_of_commits_holds_everything_up_and_ends_no_reign(tmp_path: Path) -> None:
    certificates(tmp_path / "pki")

    async def work() -> None:
        async with running(configuration(tmp_path)) as shell:
            _, mapper = await connected(shell, tmp_path)
            await provisioned(shell, mapper)
            term = (await shell.call("cluster.status", {}))["term"]
            shell._committer.limits = CommitterLimits(queue_batches_max=1)
            refused, post = 0, shell._committer.post

            def counted(*args: Any) -> None:
                nonlocal refused
                try:
                    post(*args)
                except CommitterFull:
                    refused += 1
                    raise

            shell._committer.post = counted  # type: ignore[method-assign]
            calls = [shell.call("vdisk.create", {"name": f"v{n}", "size_bytes": 1 << 20}, f"q{n}") for n in range(50)]
            numbers = [vdisk["number"] for vdisk in await asyncio.gather(*calls)]
            assert refused and numbers == sorted(set(numbers))
            assert (await mapper.run(16, 200)).answered >= 200
            assert not mapper.failures
            assert (await shell.call("cluster.status", {}))["term"] == term

    in_loop(work)


def test_the_audit_log_is_durable_and_backups_are_made_by_the_shell(tmp_path: Path) -> None:
    certificates(tmp_path / "pki")

    async def work() -> None:
        async with running(configuration(tmp_path)) as shell:
            await shell.audit("uid:0", "vdisk.create", {"outcome": "done"})
            await shell.call("vdisk.create", {"name": "v", "size_bytes": 1 << 20}, "r1")
            await shell.audit("token:ops", "vdisk.delete", {"outcome": "not_found"})
            made = await shell.call("store.backup", {"path": str(tmp_path / "b")}, "r2")
            assert (made["state"], made["pages_done"]) == ("done", made["pages"])
            assert await shell.call("store.backup", {"path": str(tmp_path / "b")}, "r2") == made
            shown = await shell.call("store.show", {})
            assert (shown["backup"], shown["frozen"], shown["generation"]) == (made, "", 1)
            (tmp_path / "there").touch()
            for path, code in (("b", "bad_argument"), (str(tmp_path / "there"), "exists"), ("/none/b", "unavailable")):
                with pytest.raises(ApiError) as refused:
                    await shell.call("store.backup", {"path": path}, "r3")
                assert refused.value.code == code
        async with running(configuration(tmp_path)) as shell:
            entries = (await shell.call("audit.list", {}))["entries"]
            assert [(entry["actor"], entry["action"]) for entry in entries] == [
                ("uid:0", "vdisk.create"),
                ("token:ops", "vdisk.delete"),
            ]
            last = await shell.call("audit.list", {"after": entries[0]["number"], "limit": 5})
            assert last["entries"] == entries[1:]
            run = (await shell.call("cluster.check", {}))["run"]
            while (row := await shell.call("cluster.check", {"run": run}))["state"] != "done":
                await asyncio.sleep(0)
            assert (row["findings"], row["counts"]["records"]) == ([], 1)
            assert not (tmp_path / "store.db.check.part").exists()

    in_loop(work)
