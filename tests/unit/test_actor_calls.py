"""Calls and words of the control store in; what is sent and what fails out."""

from __future__ import annotations

from shoal._core.wire.messages import ACTOR_ALIVE, ACTOR_DEAD, ACTOR_RESTARTING, DRAINED, ActorUpdate, Address, Cause, Shape, TaskTemplate
from shoal._core.worker.actor_calls import BATCH, ActorCalls
from shoal._core.worker.records import TaskRecord

ACTOR = b"a" * 16
FIRST, SECOND = Address(b"w1", b"n", "unix:1"), Address(b"w2", b"n", "unix:2")


class Shell:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.failed: list[tuple[bytes, str]] = []
        self.connecting: list[Address] = []

    def connect_actor(self, calls: ActorCalls, address: Address) -> None:
        self.connecting.append(address)
        calls.channel = object()
        calls.connected()
        calls.pump()

    def send_calls(self, calls: ActorCalls, records: list[TaskRecord]) -> None:
        self.sent += [record.task_id for record in records]

    def fail_call(self, record: TaskRecord, error: str, cause: Cause | None) -> None:
        self.failed.append((record.task_id, error))


def make(*, out_of_order: bool = False) -> tuple[ActorCalls, Shell]:
    shell = Shell()
    return ActorCalls(ACTOR, shell, out_of_order=out_of_order), shell


def call(name: bytes, *, retries: int = 0, unready: int = 0) -> TaskRecord:
    record = TaskRecord(name, TaskTemplate(b"f", "A.m", "A.m", Shape(b"job0"), max_retries=retries, actor_id=ACTOR), b"", [])
    record.unready = unready
    return record


def submit(calls: ActorCalls, *records: TaskRecord) -> None:
    for record in records:
        calls.submit(record)
    calls.pump()


def alive(incarnation: int = 0, address: Address = FIRST) -> ActorUpdate:
    return ActorUpdate(ACTOR, ACTOR_ALIVE, incarnation, address)


def test_calls_wait_for_the_actor_and_leave_in_order():
    calls, shell = make()
    submit(calls, call(b"1"), call(b"2"))
    assert shell.sent == []
    calls.updated(alive())
    assert shell.sent == [b"1", b"2"]
    calls.check()


def test_a_call_whose_argument_is_late_holds_up_those_behind_it():
    calls, shell = make()
    calls.updated(alive())
    late = call(b"1", unready=1)
    submit(calls, late, call(b"2"))
    assert shell.sent == []
    late.unready = 0
    calls.pump()
    assert shell.sent == [b"1", b"2"]


def test_an_actor_without_order_gets_what_is_ready():
    calls, shell = make(out_of_order=True)
    calls.updated(alive())
    submit(calls, call(b"1", unready=1), call(b"2"))
    assert shell.sent == [b"2"]


def test_a_crash_fails_calls_without_retries_and_resends_the_others_in_order():
    calls, shell = make()
    calls.updated(alive())
    submit(calls, call(b"1"), call(b"2", retries=1), call(b"3", retries=-1))
    calls.disconnected()
    assert shell.failed == []
    calls.updated(ActorUpdate(ACTOR, ACTOR_RESTARTING, 1))
    assert shell.failed == [(b"1", "ActorUnavailableError")]
    submit(calls, call(b"4"))
    calls.updated(alive(1, SECOND))
    assert shell.sent[3:] == [b"2", b"3", b"4"]
    calls.check()


def test_the_word_may_come_before_the_connection_breaks():
    calls, shell = make()
    calls.updated(alive())
    submit(calls, call(b"1", retries=1))
    calls.updated(alive(1, SECOND))
    assert shell.sent == [b"1", b"1"]
    assert shell.connecting == [FIRST, SECOND]


def test_death_fails_everything_and_every_later_call():
    calls, shell = make()
    calls.updated(alive())
    submit(calls, call(b"1", retries=-1))
    calls.disconnected()
    calls.updated(ActorUpdate(ACTOR, ACTOR_DEAD, 0, cause=Cause("killed")))
    submit(calls, call(b"2"))
    assert shell.failed == [(b"1", "ActorDiedError"), (b"2", "ActorDiedError")]
    calls.check()


def test_an_old_word_is_ignored():
    calls, shell = make()
    calls.updated(alive(2, SECOND))
    calls.updated(ActorUpdate(ACTOR, ACTOR_RESTARTING, 1))
    submit(calls, call(b"1"))
    assert shell.sent == [b"1"]


# --- an actor that moves to another node


def moved() -> ActorUpdate:
    return ActorUpdate(ACTOR, ACTOR_RESTARTING, 1, cause=Cause(DRAINED))


def test_calls_that_are_handed_back_go_to_the_next_incarnation_in_order_and_cost_no_retry():
    calls, shell = make()
    calls.updated(alive())
    records = [call(name) for name in (b"1", b"2", b"3")]
    submit(calls, *records)
    calls.handed_back([b"2"])
    submit(calls, call(b"4"))
    calls.handed_back([b"3"])
    calls.check()
    assert shell.sent == [b"1", b"2", b"3"], "nothing more is sent to one that leaves"
    assert calls.finished(b"1") is records[0], "it answers what it has begun"
    calls.updated(moved())
    calls.disconnected()
    calls.updated(alive(1, SECOND))
    assert shell.sent[3:] == [b"2", b"3", b"4"]
    assert not shell.failed
    calls.check()


def test_a_reply_that_is_still_in_the_socket_of_an_actor_that_has_moved_is_not_missed():
    calls, shell = make()
    calls.updated(alive())
    record = call(b"1")
    submit(calls, record)
    calls.updated(moved())
    assert not shell.failed
    assert calls.finished(b"1") is record
    calls.disconnected()
    calls.check()


def test_a_call_that_a_drain_has_killed_is_sent_again_without_using_up_a_retry():
    calls, shell = make()
    calls.updated(alive())
    retried, once = call(b"1", retries=1), call(b"2")
    submit(calls, retried, once)
    calls.disconnected()
    calls.updated(moved())
    assert retried.retries == 1
    assert shell.failed == [(b"2", "ActorUnavailableError")]


def test_a_word_of_a_move_that_was_long_ago_makes_no_retry_free():
    calls, _ = make()
    calls.updated(moved())
    calls.updated(ActorUpdate(ACTOR, ACTOR_ALIVE, 1, SECOND, cause=Cause(DRAINED)))
    record = call(b"1", retries=1)
    submit(calls, record)
    calls.disconnected()
    calls.reconnected()
    assert record.retries == 0


def test_a_call_that_was_handed_back_can_be_cancelled():
    calls, shell = make()
    calls.updated(alive())
    first, second = call(b"1"), call(b"2")
    submit(calls, first, second)
    calls.handed_back([b"1", b"2"])
    assert calls.remove(first)
    calls.check()
    calls.updated(moved())
    calls.updated(alive(1, SECOND))
    assert shell.sent[2:] == [b"2"]


def test_the_next_incarnation_may_be_heard_of_before_the_last_replies_of_the_one_that_moved_are_read():
    """The sockets are not ordered: on a busy machine a call that had been answered failed with ActorUnavailableError."""
    calls, shell = make()
    calls.updated(alive())
    answered, unanswered, late = call(b"1"), call(b"2", retries=1), call(b"4")
    submit(calls, answered, unanswered, call(b"3"))
    calls.handed_back([b"3"])
    calls.updated(moved())
    calls.updated(ActorUpdate(ACTOR, ACTOR_ALIVE, 1, SECOND, cause=Cause(DRAINED)))
    submit(calls, late)
    assert shell.connecting == [FIRST]
    assert calls.finished(b"1") is answered
    calls.check()
    calls.disconnected()
    assert shell.connecting == [FIRST, SECOND]
    assert shell.sent[3:] == [b"2", b"3", b"4"]
    assert not shell.failed
    assert unanswered.retries == 1
    calls.check()


def test_nobody_waits_for_the_end_of_one_that_has_answered_everything():
    calls, shell = make()
    calls.updated(alive())
    submit(calls, call(b"1"))
    calls.finished(b"1")
    calls.updated(moved())
    calls.updated(ActorUpdate(ACTOR, ACTOR_ALIVE, 1, SECOND, cause=Cause(DRAINED)))
    assert shell.connecting == [FIRST, SECOND]


def test_replies_of_an_actor_that_moved_and_was_then_ended_for_good_are_read():
    calls, shell = make()
    calls.updated(alive())
    records = [call(b"1"), call(b"2")]
    submit(calls, *records)
    calls.handed_back([])
    calls.updated(ActorUpdate(ACTOR, ACTOR_DEAD, 0, cause=Cause("out_of_scope")))
    assert calls.finished(b"1") is records[0]
    calls.disconnected()
    assert shell.failed == [(b"2", "ActorDiedError")]
    calls.check()


def test_however_many_wait_a_turn_sends_a_batch():
    for out_of_order in (False, True):
        calls, shell = make(out_of_order=out_of_order)
        calls.updated(alive())
        names = [b"%06d" % number for number in range(2 * BATCH + 10)]
        for name in names:
            calls.submit(call(name, unready=out_of_order and name == names[3]))
        assert calls.pump()
        assert len(shell.sent) == BATCH
        assert calls.pump()
        assert not calls.pump()
        assert shell.sent == [name for name in names if not (out_of_order and name == names[3])]
        calls.check()


def test_many_that_are_handed_back_in_parts_keep_their_order():
    calls, shell = make()
    names = [b"%06d" % number for number in range(5000)]
    calls.updated(alive())
    for name in names:
        calls.submit(call(name))
    while calls.pump():
        pass
    calls.submit(call(b"new"))
    for start in range(0, 5000, 500):
        calls.handed_back(names[start : start + 500])
    calls.check()
    assert [record.task_id for record in calls.waiting] == [*names, b"new"]
    assert not calls.in_flight
    shell.sent.clear()
    calls.connected()
    while calls.pump():
        pass
    assert shell.sent == [*names, b"new"]
