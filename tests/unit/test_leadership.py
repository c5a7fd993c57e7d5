"""Who leads, decided with times passed in: random answers, losses and pauses never make two leaders who both believe in it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal._core.control_store.leadership import Campaign, Leadership, Look, Register, Renew, Serve, StepDown

TTL_S = 3.0


def standby(now=0.0):
    one = Leadership()
    assert one.tick(now) == [Register()]
    assert one.tick(now) == [], "one question at a time"
    one.registered(7, TTL_S, now)
    return one


def leader(now=0.0):
    one = standby(now)
    assert one.tick(now) == [Look()]
    assert one.looked(0, 7, now) == [Campaign(7)]
    assert one.campaigned(42) == [Serve(42)]
    assert one.is_current(now)
    return one


def test_a_candidate_leads_when_nobody_does():
    leader().check()


def test_a_standby_waits_while_somebody_leads_and_keeps_its_lease():
    one = standby()
    for step in range(1, 40):
        now = step * 0.25
        (question,) = one.tick(now)
        if question == Renew(7):
            one.renewed(True, now)
        else:
            assert question == Look()
            assert one.looked(99, 99, now) == []
        one.check()
    assert one.state == "standby"
    assert not one.is_current(10.0)


def test_a_candidate_lets_an_older_one_lead():
    """Nodes may not know yet where the younger one is."""
    one = standby()
    one.tick(0.0)
    assert one.looked(0, 6, 0.0) == []
    assert one.tick(0.25) == [Look()]
    assert one.looked(0, 7, 0.25) == [Campaign(7)]


def test_the_slower_of_two_candidates_stands_by():
    one = standby()
    one.tick(0.0)
    one.looked(0, 7, 0.0)
    assert one.campaigned(None) == []
    assert one.state == "standby"
    assert one.tick(0.25) == [Look()]


def test_a_leader_renews_after_a_third_of_its_lease():
    one = leader()
    assert one.tick(0.0) == [Renew(7)], "at once: reading the tables takes time"
    one.renewed(True, 0.0)
    assert one.tick(0.9) == []
    assert one.tick(1.0) == [Renew(7)]
    assert one.tick(1.25) == []
    one.renewed(True, 1.0)
    assert one.is_current(3.9)
    assert not one.is_current(4.0), "it counts from when the renewal was asked for"


def test_a_leader_that_stood_still_for_its_lease_steps_down():
    one = leader()
    assert not one.is_current(100.0)
    (stepped,) = one.tick(100.0)
    assert isinstance(stepped, StepDown)
    assert "3 s" in stepped.why
    assert one.tick(101.0) == []
    assert one.renewed(True, 101.0) == [], "an answer that comes now changes nothing"
    assert not one.is_current(101.0)


def test_a_leader_whose_lease_has_ended_steps_down():
    one = leader()
    one.tick(0.0)
    assert [type(each) for each in one.renewed(False, 0.0)] == [StepDown]
    assert one.refused("again") == []


def test_a_leader_asks_again_when_etcd_does_not_answer():
    one = leader()
    assert one.tick(1.0) == [Renew(7)]
    one.unanswered()
    assert one.tick(1.25) == [Renew(7)]
    one.renewed(True, 1.25)
    assert one.is_current(4.0)


def test_a_standby_whose_lease_has_ended_takes_part_again():
    one = standby()
    assert one.tick(50.0) == [Renew(7)]
    one.renewed(False, 50.0)
    assert one.tick(50.25) == [Register()]
    one.registered(8, TTL_S, 50.25)
    assert one.tick(50.5) == [Look()]


def test_nobody_campaigns_under_a_lease_that_may_have_ended():
    one = standby()
    assert one.tick(0.5) == [Look()]
    assert one.looked(0, 7, 3.5) == []
    assert one.tick(3.5) == [Renew(7)]


class Etcd:
    """What etcd would do: leases by its own clock, which is the true one."""

    def __init__(self):
        self.leases = {}
        self.leader = None
        self.revision = 0
        #: Candidate -> (revision in which it was written down, its lease).
        self.candidates = {}

    def expire(self, now):
        self.leases = {lease: until for lease, until in self.leases.items() if until > now}
        if self.leader is not None and self.leader[0] not in self.leases:
            self.leader = None
        self.candidates = {number: row for number, row in self.candidates.items() if row[1] in self.leases}

    def ask(self, question, number, now):
        self.expire(now)
        self.revision += 1
        match question:
            case Register():
                self.leases[self.revision] = now + TTL_S
                created, _ = self.candidates.get(number, (self.revision, 0))
                self.candidates[number] = created, self.revision
                return self.revision
            case Renew(lease):
                if lease in self.leases:
                    self.leases[lease] = now + TTL_S
                return lease in self.leases
            case Look():
                return self.leader[0] if self.leader is not None else 0, min(self.candidates.values(), default=(0, 0))[1]
            case Campaign(lease):
                if self.leader is None and lease in self.leases:
                    self.leader = (lease, self.revision)
                return self.leader[1] if self.leader is not None and self.leader[0] == lease else None


def tell(one, question, answer, asked_at, now):
    match question:
        case Register():
            return one.registered(answer, TTL_S, asked_at)
        case Renew():
            return one.renewed(answer, asked_at)
        case Look():
            return one.looked(*answer, now)
        case Campaign():
            return one.campaigned(answer)


def act(etcd, candidates, which, now, there=0.0, back=0.0, arrives=True, returns=True):
    """One candidate's turn: return the fencing number if it was elected, and the time afterwards."""
    one, elected = candidates[which], 0
    queue = one.tick(now)
    while queue:
        instruction = queue.pop(0)
        if isinstance(instruction, Serve):
            elected = instruction.fencing
        if isinstance(instruction, (Serve, StepDown)):
            continue
        asked_at = now
        now += there
        answer = etcd.ask(instruction, which, now) if arrives else None
        now += back
        queue += tell(one, instruction, answer, asked_at, now) if arrives and returns else one.unanswered()
    etcd.expire(now)
    one.check()
    return elected, now


#: Per step: which candidate acts, seconds that pass before, after its question left, and after etcd answered; whether question and answer
#: arrive.
STEP = st.tuples(
    st.integers(0, 2), st.sampled_from([0.0, 0.25, 1.0, 3.5]), st.sampled_from([0.0, 0.1, 3.5]), st.sampled_from([0.0, 0.1, 3.5]),
    st.booleans(), st.booleans(),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=80))
def test_never_two_that_may_speak_and_soon_one_that_does(steps):
    etcd, now = Etcd(), 0.0
    candidates = [Leadership() for _ in range(3)]
    fencing = {}

    def turn(which, *how):
        nonlocal now
        elected, now = act(etcd, candidates, which, now, *how)
        if elected:
            assert elected > max(fencing.values(), default=0)
            fencing[which] = elected
        current = [one for one in candidates if one.is_current(now)]
        assert len(current) <= 1
        if current:
            assert etcd.leader is not None
            assert fencing[candidates.index(current[0])] == etcd.leader[1]
        for index, one in enumerate(candidates):
            if one.state == "over":
                candidates[index] = Leadership()  # its process starts anew
        return bool(current)

    for which, before, *how in steps:
        now += before
        turn(which, *how)
    for _ in range(40):  # ten quiet seconds
        now += 0.25
        led = [turn(which) for which in range(3)]
    assert led[-1]
