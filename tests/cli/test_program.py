"""The command table, its parser, its errors, against a served API."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.commands import COMMANDS, GROUPS
from cli.commands.access import detail_text
from cli.exit_codes import MEANING, ExitCode
from cli.program import build_parser, main
from controller.api.server import ApiServer
from tests.api.shelf import Shelf


def with_api(runtime_dir: Path, body: Callable[[Shelf, str], None]) -> None:
    """Runs ``body`` in a thread beside a served API."""

    async def run() -> None:
        shelf = Shelf()
        path = runtime_dir / "api.sock"
        api = ApiServer(shelf.call, path)
        await api.start()
        try:
            await asyncio.to_thread(body, shelf, str(path))
        finally:
            await api.stop()

    asyncio.run(run())


def test_words_are_unique_and_groups_known() -> None:
    assert len({command.words for command in COMMANDS}) == len(COMMANDS)
    assert {command.words[0] for command in COMMANDS if len(command.words) == 2} == GROUPS.keys()
    assert MEANING.keys() == set(ExitCode)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    words = list(command.words)  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as caught:
        build_parser(words).parse_args([*words, "--help"])
    assert caught.value.code == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["nothing"], ["vdisk"], ["vdisk", "create"], ["status", "--bogus"]])
def test_wrong_usage_is_one_line_and_a_hint(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == ExitCode.USAGE
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[1].startswith("hint: `segmap")
    assert main([*words, "--json"]) == ExitCode.USAGE
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["hint"]) == ("usage", lines[1].removeprefix("hint: "))


def test_output_that_is_closed_is_no_defect() -> None:
    answer = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m cli version >&-"], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stderr) == (0, "")


def test_an_audit_entry_says_what_was_asked() -> None:
    detail = {"arguments": {"name": "w", "agents": ["a", "b"], "hosts": [], "any_host": True, "size_bytes": 0}}
    assert detail_text({**detail, "request_id": "1", "outcome": "done"}) == "name=w agents=a,b any_host=True"
    assert detail_text({**detail, "outcome": "busy"}) == "name=w agents=a,b any_host=True outcome=busy"


def test_errors_of_the_controller_become_exit_codes(runtime_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def body(shelf: Shelf, api: str) -> None:
        assert main(["vdisk", "show", "d", "--api", api]) == ExitCode.NOT_FOUND
        assert capsys.readouterr().err == "segmap vdisk show: no vdisk 'd'\n"
        assert main(["vdisk", "show", "d", "--api", api, "--json"]) == ExitCode.NOT_FOUND
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "not_found"

    with_api(runtime_dir, body)


def test_arguments_reach_the_operation(runtime_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def body(shelf: Shelf, api: str) -> None:
        words = ["vdisk", "present", "d", "--agent", "a", "--agent", "b", "--host", "nqn.x:1", "--read-only"]
        main([*words, "--api", api, "--json"])
        name, arguments, _ = shelf.calls[0]
        assert name == "vdisk.present"
        assert arguments == {
            "name": "d",
            "agents": ["a", "b"],
            "hosts": ["nqn.x:1"],
            "read_only": True,
            "any_host": False,
        }
        main(["vdisk", "explain", "d", "1GiB", "--api", api, "--json"])
        assert shelf.calls[1][1] == {"name": "d", "offset": 1 << 30}

    with_api(runtime_dir, body)


def test_no_controller(runtime_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--api", str(runtime_dir / "none.sock")]) == ExitCode.UNREACHABLE
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("segmap status: no controller") and err[1].startswith("hint: ")
    assert main(["status", "--api", "what is this"]) == ExitCode.USAGE


def test_the_environment_says_where_the_api_is(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(shelf: Shelf, api: str) -> None:
        monkeypatch.setenv("SEGMAP_API", api)
        assert main(["vdisk", "list", "--json"]) == ExitCode.DONE
        assert json.loads(capsys.readouterr().out) == {"vdisks": []}

    with_api(runtime_dir, body)


def test_config_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("agents: [{name: a, roles: [mapper], speed: 1}]\n")
    assert main(["config", "check", str(path)]) == ExitCode.USAGE
    assert f"{path}:1:37: agents[0]: unknown key 'speed'" in capsys.readouterr().err
    assert main(["config", "check", str(path), "--json"]) == ExitCode.USAGE
    problem = json.loads(capsys.readouterr().out)["problems"][0]
    assert (problem["line"], problem["column"], problem["key"]) == (1, 37, "agents[0]")
    path.write_text("agents: [{name: a, roles: [mapper]}]\n")
    assert main(["config", "check", str(path)]) == ExitCode.DONE


def test_the_daemons_say_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["controller"]) == ExitCode.USAGE
    assert main(["agent", "--config", "/nonexistent.yaml"]) == ExitCode.USAGE
    assert "cannot be read" in capsys.readouterr().err
