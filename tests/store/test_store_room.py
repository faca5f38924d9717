"""Room in the write-ahead log: made ahead, never over what the log holds, and not missed when there is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from controller.store.room import SPARE_BYTES, STEP_BYTES, LogRoom
from controller.store.sqlite import SqliteStore
from tests.store.places import contents
from tests.store.test_store_sqlite import many_faults


def test_it_is_made_behind_the_end_and_only_when_needed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"frames" * 1000)
    room = LogRoom(path)
    room.ensure(1)
    assert path.read_bytes() == b"frames" * 1000 + bytes(STEP_BYTES)
    path.write_bytes(b"")
    room.ensure((STEP_BYTES - SPARE_BYTES) // 4120)
    assert path.stat().st_size == 0, "there is room enough for so many pages: the file need not be looked at"
    room.ensure(STEP_BYTES // 4096)
    assert path.stat().st_size == 2 * STEP_BYTES
    assert not any(path.read_bytes())


def test_a_crashed_store_with_room_in_its_log_is_read_back_whole(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "store.db")
    term = store.new_term()
    for number in range(30):
        store.commit([many_faults(number)], term)
        if number == 15:
            while store.fold():
                pass
    (tmp_path / "crashed").mkdir()
    for name in ("store.db", "store.db-wal"):
        shutil.copy(tmp_path / name, tmp_path / "crashed" / name)
    log = (tmp_path / "crashed" / "store.db-wal").read_bytes()
    assert len(log) >= STEP_BYTES and not any(log[-SPARE_BYTES // 4 :])
    again = SqliteStore.open(tmp_path / "crashed" / "store.db")
    assert contents(again.load().image) == contents(store.load().image)
    again.close()
    store.close()
    assert not (tmp_path / "store.db-wal").exists()


def test_no_room_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    room = LogRoom(tmp_path / "missing")
    room.ensure(1)
    room.ensure(1)
    assert len(caplog.records) == 1, "said once a step, not at every commit"
