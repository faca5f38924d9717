"""The tidy rules hold for the whole tree, and each of them can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci import tidy

TOP = Path(__file__).resolve().parent.parent


def rules_broken(path: str, text: str) -> list[str]:
    return [breach.rule for breach in tidy.check(tidy.Source(Path(path), text))]


def test_the_tree_is_tidy() -> None:
    breaches = tidy.check_tree(TOP)
    assert not breaches, "\n".join(str(breach) for breach in breaches)


def test_the_tree_is_really_read() -> None:
    paths = {source.path.as_posix() for source in tidy.sources(TOP)}
    assert {"mapping/__init__.py", "cli/__init__.py", "README.md", "ci/tidy.py", "Makefile", ".ci/run"} <= paths


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mapping/x.py", '"""d."""\nimport channel.session\n'),
        ("channel/x.py", '"""d."""\nfrom transport import tcp\n'),
        ("fabric/x.py", '"""d."""\nfrom transport.tcp import listen\n'),
        ("agent/x.py", '"""d."""\nimport controller\n'),
        ("controller/x.py", '"""d."""\nimport agent.main\n'),
        ("controller/x.py", '"""d."""\ndef f():\n    import cli\n'),
        ("dataplane/embedded/x.py", '"""d."""\nimport agent\n'),
        ("cli/x.py", '"""d."""\nimport tests.conftest\n'),
    ],
)
def test_wrong_import_directions_are_found(path: str, text: str) -> None:
    assert any("must not import" in rule for rule in rules_broken(path, text))


@pytest.mark.parametrize("module", sorted(tidy.IMPURE))
@pytest.mark.parametrize(
    "path", ["mapping/x.py", "fabric/nvme_tcp/x.py", "controller/core/x.py", "agent/core.py", "spdk_rpc/exports.py"]
)
def test_impure_cores_are_found(path: str, module: str) -> None:
    assert rules_broken(path, f'"""d."""\nimport {module}\n') == [f"a core must not import {module}"]


def test_shells_may_be_impure() -> None:
    assert rules_broken("agent/shell.py", '"""d."""\nimport asyncio\nimport time\n') == []


def test_sizes_are_limited() -> None:
    head = '"""d."""\n'
    assert rules_broken("cli/x.py", head + "x = 1\n" * (tidy.FILE_LINES_MAX - 1)) == []
    assert "split by idea" in rules_broken("cli/x.py", head + "x = 1\n" * tidy.FILE_LINES_MAX)[0]
    body = "    x = 1\n" * (tidy.FUNCTION_LINES_MAX - 1)
    assert rules_broken("cli/x.py", head + "def f() -> None:\n" + body) == []
    assert "f has" in rules_broken("cli/x.py", head + "def f() -> None:\n" + body + "    x = 1\n")[0]


@pytest.mark.parametrize("path", ["cli/utils.py", "agent/common/x.py", "cli/manager.py", "tests/helpers.py"])
def test_shapeless_names_are_found(path: str) -> None:
    assert "name the idea" in rules_broken(path, '"""d."""\n')[0]


def test_docstrings_are_wanted() -> None:
    assert rules_broken("cli/x.py", "x = 1\n") == ["a module docstring says purpose and invariants"]


@pytest.mark.parametrize("call", ["time.sl" + "eep(0)", "asyncio.sl" + "eep(0.5)", "asyncio.sl" + "eep(2)"])
def test_sleeping_tests_are_found(call: str) -> None:
    assert "must not sleep" in rules_broken("tests/unit/test_x.py", f"{call}\n")[0]


def test_a_path_that_only_ends_like_a_home_is_none() -> None:
    assert rules_broken("docs/x.md", "see /proc/{pid}/roo" + "t\n") == []


def test_yielding_to_the_loop_is_not_sleeping() -> None:
    assert rules_broken("tests/unit/test_x.py", "async def f() -> None:\n    await asyncio.sl" + "eep(0)\n") == []


@pytest.mark.parametrize("word", ["TO" + "DO", "FIX" + "ME", "/roo" + "t/x", "/wor" + "k/main"])
def test_forbidden_words_are_found(word: str) -> None:
    assert "must not be in the tree" in rules_broken("docs/x.md", f"see {word}\n")[0]


def test_files_that_do_not_parse_are_found() -> None:
    assert "does not parse" in rules_broken("cli/x.py", "def f(:\n")[0]
