"""From nothing to an open session and back: target, data plane, controller, lease; each loss at each moment."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core import Phase
from agent.core import effects as e
from agent.core.supply import BACKOFF_MAX_NS, FAILURES_MAX, STABLE_NS, Life
from channel.messages import (
    Admit,
    AgentEvent,
    CreateTable,
    Epoch,
    Export,
    Hello,
    LeaseGrant,
    LeaseRenew,
    TableSlots,
    TableStatus,
)
from channel.values import EventKind, Header, Roles, TableSequence
from mapping.plane import numbered
from mapping.status import Status
from spdk_rpc.methods.bdev_nvme import Path
from tests.agent.driver import CLUSTER, INSTANCE, MACHINE, SECOND, Driver, config, notice, of, sent


def greeted() -> Driver:
    """HELLO has been sent."""
    driver = Driver()
    driver.start()
    driver.plane_up()
    driver.step(e.SessionUp())
    return driver


def test_everything_begins_with_the_target() -> None:
    driver = Driver()
    assert driver.step(e.Started()) == [e.StartTarget()]
    made = driver.step(e.TargetStarted(b"t" * 16, False))
    assert e.ConnectDataPlane(0) in made and driver.target.transports == ["TCP"]
    assert not of(e.ConnectController, made), "there is nothing to tell a controller before the data plane is up"
    assert driver.plane_up() == [e.Ready(), e.ConnectController(0)]


def test_hello_says_where_the_data_plane_stands() -> None:
    driver = Driver()
    driver.plane_header = Header(4, 6, 9)
    driver.plane_tables = [(1 << 32 | 1, 17)]
    driver.start()
    driver.plane_up()
    made = driver.step(e.SessionUp())
    assert isinstance(of(e.SendDataPlane, made)[0].message, TableStatus)
    (effect,) = of(e.SendController, made)
    hello = effect.message
    assert isinstance(hello, Hello)
    assert (hello.instance, hello.name, hello.roles) == (INSTANCE, "a", int(Roles.MAPPER))
    assert hello.machine == MACHINE
    assert list(hello.tables) == [TableSequence(1 << 32 | 1, 17)]
    assert effect.header == Header(4, 6, 9)


def test_welcome_admits_the_data_plane_and_asks_for_the_lease() -> None:
    driver = greeted()
    made = driver.welcome(term=5, incarnation=7)
    (admit,) = of(e.SendDataPlane, made)
    assert admit.message == Admit(CLUSTER, 10 * SECOND, 30 * SECOND, 20 * SECOND)
    assert admit.header[:2] == (5, 7)
    (renew,) = of(e.SendController, made)
    assert renew == e.SendController(LeaseRenew(driver.now), Header(5, 7, 1))
    assert driver.core.phase is Phase.OPEN


@pytest.mark.parametrize("welcomed", [9, 0], ids=["numbered", "by a controller that does not number"])
def test_the_data_plane_numbers_the_session_and_all_that_follows_bears_it(welcomed: int) -> None:
    driver = Driver()
    driver.plane_session = 9
    driver.start()
    driver.plane_up()
    made = driver.step(e.SessionUp())
    (status,) = of(e.SendDataPlane, made)
    assert status.header.sequence == 1, "it begins a session"
    assert of(e.SendController, made)[0].header == Header(0, 0, 1, sequence=9)
    made = driver.welcome(session=welcomed)
    assert of(e.SendDataPlane, made)[0].header.sequence == welcomed, "ADMIT"
    assert of(e.SendController, made)[0].header == Header(5, 7, 1), "what goes up bears the epoch alone"
    made = driver.command(CreateTable(b"v" * 16, b"n" * 16, 64, 1 << 20, 512, 0, "disk", [1]), 1 << 32 | 1)
    (slots,) = [effect for effect in of(e.SendDataPlane, made) if isinstance(effect.message, TableSlots)]
    assert slots.header == Header(5, 7, numbered(1, welcomed), 1 << 32 | 1)


def test_an_older_data_plane_gives_no_number() -> None:
    """It answers with the stamps of the request."""
    driver = greeted()
    assert of(e.SendController, driver.effects)[-1].header.sequence == 0


def test_the_lease_is_renewed_in_time_with_the_time_of_asking() -> None:
    driver = Driver().open()
    began = driver.now
    for _ in range(3):
        driver.advance(3)
        driver.step(e.FromController(notice(LeaseGrant(driver.now, 10 * SECOND))))
    times = [message.sent_ns for message in sent(LeaseRenew, driver.effects)]
    assert times == [began + 3 * SECOND, began + 6 * SECOND, began + 9 * SECOND]


def test_a_grant_goes_on_as_it_is() -> None:
    driver = Driver().open()
    grant = notice(LeaseGrant(1, 2))
    assert driver.step(e.FromController(grant)) == [e.RelayDataPlane(grant)]


def test_a_silent_controller_is_left() -> None:
    driver = Driver().open()
    made = driver.advance(10)
    assert of(e.CloseController, made) and of(e.ConnectController, made)
    assert driver.core.phase is Phase.CONNECTING


def test_a_speaking_controller_is_not_left() -> None:
    driver = Driver().open()
    for _ in range(5):
        made = driver.advance(9)
        assert not of(e.CloseController, made)
        driver.step(e.FromController(notice(LeaseGrant(1, 2))))


@pytest.mark.parametrize("phase", [Phase.LEARNING, Phase.ADMITTING])
def test_a_silent_data_plane_ends_the_attempt(phase: Phase) -> None:
    driver = Driver()
    driver.plane_answers = phase is Phase.ADMITTING
    driver.start()
    driver.plane_up()
    driver.step(e.SessionUp())
    if phase is Phase.ADMITTING:
        driver.plane_answers = False
        driver.welcome()
    assert driver.core.phase is phase
    made = driver.advance(16)
    assert of(e.CloseController, made) and of(e.Alarm, made) and of(e.ConnectController, made)


def test_a_welcome_may_take_its_time_but_not_for_ever() -> None:
    driver = greeted()
    assert not of(e.CloseController, driver.advance(100))
    assert of(e.CloseController, driver.advance(30))


def test_a_new_epoch_is_known_and_passed_on() -> None:
    driver = Driver().open()
    epoch = notice(Epoch(Status.LEASE_EXPIRED), Header(5, 7, 2))
    relayed, renewal = driver.step(e.FromDataPlane(epoch))
    assert relayed == e.RelayController(epoch)
    assert isinstance(renewal, e.SendController), "I/O waits for a lease: it is asked for at once"
    assert isinstance(renewal.message, LeaseRenew)
    assert renewal.header.epoch == 2
    driver.advance(3)
    assert of(e.SendController, driver.effects)[-1].header.epoch == 2


def test_an_epoch_that_began_while_hello_waited_is_told_after_the_welcome() -> None:
    driver = greeted()
    assert driver.step(e.FromDataPlane(notice(Epoch(Status.LEASE_EXPIRED), Header(5, 7, 2)))) == []
    made = driver.welcome()
    first = of(e.SendController, made)[0]
    assert first.message == Epoch(Status.LEASE_EXPIRED) and first.header == Header(5, 7, 2)


def test_a_lost_session_is_followed_by_another_with_growing_pauses() -> None:
    driver = Driver().open()
    made = driver.step(e.SessionDown("gone"))
    delays = [of(e.ConnectController, made)[0].delay_ns]
    for _ in range(8):
        made = driver.step(e.SessionDown("refused"))
        delays.append(of(e.ConnectController, made)[0].delay_ns)
    assert delays[0] == SECOND // 10, "never at once: a controller that hangs up must not be called without a pause"
    assert delays[1] == SECOND // 5 and delays[-1] == SECOND // 2 and delays == sorted(delays), "hosts wait for it"


def test_a_session_that_opened_starts_the_pauses_anew() -> None:
    driver = Driver().open()
    for _ in range(5):
        driver.step(e.SessionDown("refused"))
    driver.step(e.SessionUp())
    driver.welcome()
    assert of(e.ConnectController, driver.step(e.SessionDown("gone")))[0].delay_ns == SECOND // 10


def test_a_fenced_incarnation_restarts_its_data_plane() -> None:
    driver = greeted()
    made = driver.step(e.SessionDown("fenced", Status.STALE_INCARNATION))
    assert of(e.StopTarget, made) and not of(e.ConnectController, made)
    assert driver.step(e.DataPlaneDown("killed")) == []
    made = driver.step(e.TargetExited("ended"))
    assert of(e.StartTarget, made), "at once: it is no failure"
    driver.step(e.TargetStarted(b"u" * 16, False))
    assert of(e.ConnectController, driver.plane_up(b"j" * 16))
    made = driver.step(e.SessionUp())
    assert sent(Hello, made)[0].instance == b"j" * 16


def test_a_data_plane_of_another_incarnation_is_restarted() -> None:
    driver = greeted()
    driver.plane_statuses[Admit] = Status.STALE_INCARNATION
    made = driver.welcome()
    assert of(e.StopTarget, made) and of(e.CloseController, made)


@pytest.mark.parametrize("status", [Status.STALE_TERM, Status.BAD_MESSAGE, Status.INTERNAL])
def test_any_other_refusal_of_admit_ends_the_session_only(status: Status) -> None:
    driver = greeted()
    driver.plane_statuses[Admit] = status
    made = driver.welcome()
    assert of(e.CloseController, made) and of(e.ConnectController, made) and not of(e.StopTarget, made)


def test_only_hello_can_tell_that_we_are_fenced() -> None:
    driver = Driver().open()
    made = driver.step(e.SessionDown("bye", Status.STALE_INCARNATION))
    assert not of(e.StopTarget, made) and of(e.ConnectController, made)


def test_a_lost_data_plane_ends_the_session_until_it_is_back() -> None:
    driver = Driver().open()
    made = driver.step(e.DataPlaneDown("reset"))
    assert of(e.CloseController, made) and of(e.ConnectDataPlane, made) and not of(e.ConnectController, made)
    delays = [of(e.ConnectDataPlane, driver.step(e.DataPlaneDown("no")))[0].delay_ns for _ in range(8)]
    assert delays == sorted(delays) and delays[-1] == SECOND // 2
    assert of(e.ConnectController, driver.plane_up())


def test_a_dead_target_ends_the_session_and_comes_back_with_a_new_instance() -> None:
    driver = Driver().open()
    made = driver.step(e.TargetExited("signal 9"))
    assert of(e.CloseController, made) and of(e.CloseDataPlane, made) and of(e.Alarm, made)
    made = driver.advance(0.2)
    assert of(e.StartTarget, made)
    driver.target.transports.clear()
    driver.step(e.TargetStarted(b"u" * 16, False))
    assert driver.target.transports, "the new target is built up like the first"
    driver.plane_up(b"j" * 16)
    made = driver.step(e.SessionUp())
    assert sent(Hello, made)[0].instance == b"j" * 16
    told = sent(AgentEvent, driver.welcome())
    assert [event.kind for event in told] == [EventKind.TARGET_RESTARTED]


def test_a_silent_target_is_replaced_and_the_controller_is_told() -> None:
    driver = Driver().open()
    made = driver.step(e.TargetSilent("no answer in time"))
    assert of(e.CloseController, made) and of(e.Alarm, made) and of(e.StopTarget, made)
    made = driver.step(e.TargetExited("killed"))
    assert of(e.StartTarget, made), "at once"
    driver.step(e.TargetStarted(b"u" * 16, False))
    driver.plane_up(b"j" * 16)
    driver.step(e.SessionUp())
    (told,) = sent(AgentEvent, driver.welcome())
    assert told.kind is EventKind.TARGET_RESTARTED and "does not answer" in told.detail


def test_silence_of_a_target_that_is_ended_already_means_nothing() -> None:
    driver = Driver().open()
    driver.step(e.TargetSilent("no answer in time"))
    assert driver.step(e.TargetSilent("no answer in time")) == []
    driver.step(e.TargetExited("killed"))
    assert driver.step(e.TargetSilent("no answer in time")) == []


def test_lost_containers_are_told_once_and_when_they_are_back() -> None:
    driver = Driver().open()
    where = Path("enabled", "TCP", "IPv4", "127.0.0.1", "1", "nqn.c", "nqn.h", 1)
    driver.target.controllers = {"container4": replace(where, state="reconnect_is_delayed"), "other": where}
    told = sent(AgentEvent, driver.advance(2.5))
    assert [(event.kind, event.slot) for event in told] == [(EventKind.CONTAINER_LOST, 4)]
    driver.target.controllers["container4"] = where
    told = sent(AgentEvent, driver.advance(2.5))
    assert [(event.kind, event.slot) for event in told] == [(EventKind.CONTAINER_BACK, 4)]


def test_a_target_that_keeps_dying_is_given_up() -> None:
    driver = Driver()
    driver.step(e.Started())
    waits = []
    for count in range(1, FAILURES_MAX + 1):
        made = driver.step(e.TargetExited("crash"))
        if count == FAILURES_MAX:
            assert of(e.GiveUp, made) and driver.core.supply.life is Life.GIVEN_UP
            break
        began = driver.now
        assert not of(e.StartTarget, made)
        assert driver.core.supply.wake_ns is not None
        driver.now = driver.core.supply.wake_ns
        assert of(e.StartTarget, driver.step(e.Tick()))
        waits.append(driver.now - began)
    assert waits == sorted(waits) and waits[-1] == BACKOFF_MAX_NS
    assert driver.advance(3600) == []


def test_a_target_that_lived_long_enough_has_its_failures_forgiven() -> None:
    driver = Driver()
    driver.step(e.Started())
    for _ in range(FAILURES_MAX - 1):
        driver.step(e.TargetExited("crash"))
        assert driver.core.supply.wake_ns is not None
        driver.now = driver.core.supply.wake_ns
        driver.step(e.Tick())
    driver.step(e.TargetStarted(b"t" * 16, False))
    driver.now += STABLE_NS
    assert not of(e.GiveUp, driver.step(e.TargetExited("crash")))
    assert driver.core.supply.failures == 0


def test_a_dead_data_plane_is_started_again_at_once_but_not_again_and_again() -> None:
    driver = Driver()
    driver.start()
    rests = []
    for _ in range(4):
        driver.step(e.TargetExited("crash"))
        wake_ns = driver.core.supply.wake_ns
        assert wake_ns is not None
        rests.append(wake_ns - driver.now)
        driver.now = wake_ns
        assert of(e.StartTarget, driver.step(e.Tick()))
        driver.step(e.TargetStarted(b"t" * 16, False))
    assert rests == [0, SECOND // 10, SECOND // 5, SECOND * 2 // 5]


def test_an_exporter_greets_without_a_data_plane() -> None:
    driver = Driver(config("exporter"))
    made = driver.start()
    assert of(e.ConnectController, made) and not of(e.ConnectDataPlane, made)
    made = driver.step(e.SessionUp())
    hello = sent(Hello, made)[0]
    assert (hello.instance, hello.roles, list(hello.tables)) == (b"t" * 16, int(Roles.EXPORTER), [])
    made = driver.welcome()
    assert not of(e.SendDataPlane, made)
    assert sent(LeaseRenew, made) and [export.name for export in sent(Export, made)] == [""]
    assert driver.step(e.FromController(notice(LeaseGrant(1, 2)))) == []


def test_a_session_that_comes_up_too_late_is_closed() -> None:
    driver = Driver()
    driver.start()
    driver.plane_up()
    driver.step(e.TargetExited("crash"))
    assert of(e.CloseController, driver.step(e.SessionUp()))
    assert driver.core.phase is Phase.DOWN


def test_nothing_is_due_when_nothing_waits() -> None:
    driver = Driver()
    driver.start()
    assert driver.core.next_deadline() is None
    assert driver.step(e.Tick()) == []
