"""The configuration file: what is accepted, and how every mistake is told."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from cli.config import schema
from cli.config.daemons import agent_config, controller_config
from cli.config.document import DOCUMENT, load, parse
from cli.config.resolve import resolve, resolved_path, to_plain
from cli.config.schema import ConfigError

TOP = Path(__file__).resolve().parents[2]
QUICKSTART = TOP / "configs" / "quickstart.yaml"

GOOD = """
agents:
  - name: a
    roles: [mapper]
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "c.yaml")
    return str(caught.value).splitlines()


def test_the_shipped_files_are_good() -> None:
    for path in (TOP / "configs").glob("*.yaml"):
        assert load(path).agents


@pytest.mark.claim(14, 15)
def test_defaults_are_filled_in() -> None:
    document = parse(GOOD, "c.yaml")
    assert document.controller["lease"] == 10 * 10**9
    assert document.values["segment_size"] == 1 << 20
    assert document.agents[0]["listen"] == ("127.0.0.1", 0)
    assert document.containers == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GiB", 4 << 30),
        ("512", 512),
        ("512B", 512),
        ("1 PiB", 1 << 50),
        ("0", 0),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert schema.parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "4G", "4.5GiB", "-1", "GiB", "1e3", "4 gib", "９"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(schema.BadValueError):
        schema.parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("10s", 10**10), ("1.5s", 1_500_000_000), ("250ms", 250_000_000), ("2m", 12 * 10**10)]
)
def test_durations(text: str, expected: int) -> None:
    assert schema.parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "10", "s", "ten", "1.s", "-1s", "1d"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(schema.BadValueError):
        schema.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:4420", ("::1", 4420)), ("host:1", ("host", 1))]
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert schema.parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "127.0.0.1", ":1", "a:65536", "::1:5", "a b:1", "a:1/x"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(schema.BadValueError):
        schema.parse_address(text)


def test_errors_name_file_line_key_and_what_was_expected() -> None:
    text = GOOD + "controller:\n  lease: ten\n"
    expected = "a duration like 10s, 1.5s or 250ms (units: ns us ms s m h)"
    assert problems(text) == [f"c.yaml:6:10: controller.lease: expected {expected}, found 'ten'"]


def test_all_errors_are_found_at_once() -> None:
    found = problems("agents:\n  - name: Big\n    roles: [juggler]\n    lissten: 1\n")
    assert [line.split(": ")[0] for line in found] == ["c.yaml:2:11", "c.yaml:3:13", "c.yaml:4:5"]
    assert "did you mean 'listen'?" in found[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty"),
        ("- a\n", "expected a cluster (keys and values), found a list"),
        ("{}", "key 'agents' is missing"),
        ("agents: []", "expected 1 to 255 items, found 0"),
        ("agents: &x [*x]", "aliases"),
        ("a: [", "not YAML"),
        ("a: \x00", "not YAML"),
        ("[" * 40, "nested deeper"),
        (GOOD + "cluster: a\ncluster: b\n", "given twice"),
        (GOOD + "what: 1\n", "unknown key 'what'"),
        (GOOD + "? [1]\n: 2\n", "unknown key"),
        (GOOD + "  - {name: a, roles: [mapper]}\n", "already used by agents[0]"),
        (GOOD + "segment_size: 3MiB\n", "power of two"),
        (GOOD + "controller: {lease: 4s, renew: 3s}\n", "less than half"),
        (GOOD + "controller: {space_deadline: 30s}\n", "shorter than 'park_limit'"),
        (GOOD + "controller: {api_listen: '0.0.0.0:80'}\n", "has no TLS"),
        (GOOD + "containers: [{name: c, export: a/x}]\n", "known: none"),
        (GOOD + "  - {name: b, roles: [mapper], exports: [{name: x, kind: malloc, size: 1MiB}]}\n", "needs exporter"),
        (GOOD + "  - {name: b, roles: [exporter], exports: [{name: x, kind: aio}]}\n", "needs 'file'"),
        (GOOD + "  - {name: b, roles: [exporter], exports: [{name: x, kind: malloc}]}\n", "needs 'size'"),
        (
            GOOD + "  - {name: b, roles: [exporter], exports: [{name: x, kind: bdev, size: 1, bdev: m}]}\n",
            "has no 'size'",
        ),
        (GOOD + "  - {name: b, roles: [mapper], target: adopt}\n", "needs 'rpc_socket'"),
        (GOOD + "  - {name: b, roles: [mapper], target: spdk, spdk: {cores: 1-2}}\n", "'cores' must be a mask"),
        (GOOD + "  - {name: b, roles: [mapper], target: spdk, spdk: {memory: 64MiB}}\n", "at least 512MiB"),
        (
            GOOD
            + "  - {name: b, roles: [exporter], target: spdk, exports: [{name: x, kind: nvme, traddr: '0:1:0.0'}]}\n",
            "huge_pages: true",
        ),
        (GOOD + "  - {name: b, roles: [mapper, mapper]}\n", "already used"),
        ("a" * (schema.DOCUMENT_BYTES_MAX + 1), "longer than"),
    ],
)
def test_mistakes(text: str, expected: str) -> None:
    assert any(expected in line for line in problems(text)), problems(text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml:1:1: cannot be read: No such file"):
        load(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"cluster: \xff\n")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load(tmp_path / "latin.yaml")


def test_an_unknown_agent_is_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no agent is called 'z'; there are: a"):
        parse(GOOD, "c.yaml").agent("z")


@pytest.mark.parametrize("path", sorted((TOP / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_good(path: Path) -> None:
    document = load(path)
    controller_config(document)
    for agent in document.agents:
        agent_config(document, agent["name"]).check()


def test_plain_values_read_back_the_same() -> None:
    document = load(QUICKSTART)
    again = parse(yaml.safe_dump(to_plain(document.values, DOCUMENT)), "again.yaml")
    assert again.values == document.values


def test_ports_are_picked_once_and_kept(tmp_path: Path) -> None:
    fresh = iter(range(20000, 20100))
    wanted: list[int] = []

    def pick(host: str, preferred: int) -> int:
        wanted.append(preferred)
        return preferred or next(fresh)

    first = resolve(load(QUICKSTART, tmp_path), pick)
    assert [first.controller["listen"][1], *(agent["listen"][1] for agent in first.agents)] == [
        20000,
        20001,
        20002,
        20003,
    ]
    assert first.runtime_dir == tmp_path
    second = resolve(load(QUICKSTART, tmp_path), pick)
    assert second.values == first.values
    assert wanted == [0, 0, 0, 0, 20000, 20001, 20002, 20003]
    assert resolved_path(first).is_file()


def test_a_broken_earlier_file_is_replaced(tmp_path: Path) -> None:
    document = load(QUICKSTART, tmp_path)
    resolved_path(document).write_text("not: a cluster\n")
    ports = itertools.count(20000)
    assert resolve(document, lambda host, preferred: preferred or next(ports)).controller["listen"][1] == 20000


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("segment_size: 3000", "1:15: segment_size: "),
        ("containers:\n  - name: c\n    export: s/e", "3:13: containers[0].export: "),
        ("containers: []\ncontroller: {renew: 0s}", "2:21: controller.renew: "),
        ("controller:\n  lease: 1s\n  api_listen: 10.0.0.1:80\n  renew: 100ms", "3:15: controller.api_listen: "),
        ("controller: {listen: 127.0.0.1:5000, api_listen: 127.0.0.1:5000}", "1:50: controller.api_listen: "),
        ("controller: {listen: 127.0.0.1:5000}", "9:13: agents[1].listen: 127.0.0.1:5000 is already used by"),
        ("containers: [{name: c, export: s/tiny}]", "7:59: agents[0].exports[1].size: expected at least two"),
    ],
)
def test_mistakes_between_keys_are_shown_where_they_are(text: str, place: str) -> None:
    agents = """
agents:
  - name: s
    roles: [exporter]
    exports:
      - {name: disk, kind: malloc, size: 64MiB}
      - {name: tiny, kind: malloc, block_size: 512, size: 1MiB}
  - {name: a, roles: [mapper],
    listen: 127.0.0.1:5000}
"""
    with pytest.raises(ConfigError) as caught:
        parse(text + agents, "x.yaml")
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"x.yaml:{place}")


def test_the_daemons_get_what_the_file_says(tmp_path: Path) -> None:
    document = load(QUICKSTART, tmp_path)
    controller = controller_config(document)
    assert (controller.lease_duration_s, controller.renew_interval_s) == (10.0, 3.0)
    assert controller.store_path == tmp_path / "controller.db"
    assert controller.api_socket == tmp_path / "api.sock"
    store = agent_config(document, "store")
    assert store.exports and not store.maps
    assert [(item.name, item.kind, item.size_bytes) for item in store.containers] == [
        ("disk", "aio", 1 << 30),
        ("memory", "malloc", 512 << 20),
    ]
    assert store.containers[0].path == tmp_path / "disk.img"
    store.check()
    agent_config(document, "a").check()
