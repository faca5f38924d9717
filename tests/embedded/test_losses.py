"""Which flush has to fail after a loss: never one too few."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataplane.embedded.losses import Begun, LossWatch


def test_a_loss_is_told_once() -> None:
    watch = LossWatch(3)
    for losses, lost in ((3, False), (4, True), (4, False), (6, True), (6, False)):
        assert watch.ended(watch.begin(losses), losses) is lost


def test_a_loss_while_it_runs_is_told_twice() -> None:
    watch = LossWatch(0)
    assert watch.ended(watch.begin(0), 1)
    assert watch.ended(watch.begin(1), 1)
    assert not watch.ended(watch.begin(1), 1)


def test_what_nobody_has_heard_is_told_again() -> None:
    watch = LossWatch(0)
    assert watch.ended(watch.begin(1), 1, heard=False)
    assert watch.ended(watch.begin(1), 1)
    assert not watch.ended(watch.begin(1), 1)


@given(st.lists(st.sampled_from(["write", "begin", "end", "loss"]), max_size=40))
def test_a_flush_that_succeeds_has_lost_nothing(history: list[str]) -> None:
    """Against a cache: writes are in it until a flush that began after them ends well; a loss empties it."""
    watch, losses, written = LossWatch(0), 0, 0
    cached: set[int] = set()
    lost: set[int] = set()
    flushes: list[tuple[Begun, int]] = []
    for step in history:
        if step == "write":
            written += 1
            cached.add(written)
        elif step == "loss":
            losses += 1
            lost |= cached
            cached = set()
        elif step == "begin":
            flushes.append((watch.begin(losses), written))
        elif flushes:
            begun, covers = flushes.pop(0)
            failed = watch.ended(begun, losses)
            untold = {number for number in lost if number <= covers}
            assert failed or not untold
            if failed:
                lost -= untold
            else:
                cached = {number for number in cached if number > covers}
    for _ in range(2):
        failed = watch.ended(watch.begin(losses), losses)
    assert not failed
