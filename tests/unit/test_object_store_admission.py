"""Who gets room, in pages of one arena."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoal._core.object_store.admission import Admission, Blocked, Dropped, Granted, RoomRequest, Spill
from shoal._core.object_store.allocation import PAGE_BYTES as PAGE


class Room:
    """An admission with names for keys and pages for sizes."""

    def __init__(self, pages=16, batch=2):
        self.admission: Admission[str] = Admission(pages * PAGE, batch * PAGE)
        self.requests: dict[str, RoomRequest[str]] = {}

    def ask(self, key, pages, patient=True):
        self.requests[key] = RoomRequest(key, pages * PAGE, patient)
        self.admission.ask(self.requests[key])
        return self.advance()

    def advance(self):
        actions = self.admission.advance()
        self.admission.check()
        return [self.brief(action) for action in actions]

    @staticmethod
    def brief(action):
        match action:
            case Granted(request, _):
                return f"+{request.key}"
            case Dropped(key):
                return f"-{key}"
            case Spill(keys):
                return "spill " + " ".join(keys)
            case Blocked(request):
                return f"!{request.key}"

    def evictable(self, key, state="dirty"):
        self.admission.policy.add(key, self.admission.allocator.size_of(self.admission._ranges[key]), state)


@pytest.fixture
def room():
    return Room()


def fill(room, count, pages, state=None):
    for i in range(count):
        assert room.ask(f"o{i}", pages) == [f"+o{i}"]
        if state:
            room.evictable(f"o{i}", state)


def test_clean_copies_make_room_at_once(room):
    fill(room, 4, 4, "clean")
    assert room.ask("new", 6) == ["-o0", "-o1", "+new"]


def test_only_copies_are_written_first(room):
    fill(room, 8, 2, "dirty")
    assert room.ask("new", 2) == ["spill o0", "spill o1"]
    room.admission.spilled(["o0"])
    # Two batches are kept ready, so the next one is on its way.
    assert room.advance() == ["-o0", "+new", "spill o2"]


def test_the_oldest_comes_first_while_the_disk_works(room):
    fill(room, 8, 2, "dirty")
    assert room.ask("large", 8) == ["spill o0", "spill o1"]
    assert room.ask("small", 1) == []
    room.admission.spilled(["o0"])
    assert room.advance() == ["spill o2"]


def test_a_creation_that_waits_for_readers_lets_others_pass(room):
    fill(room, 3, 4)
    assert room.ask("large", 8) == []
    assert room.ask("small", 2) == ["+small"]
    room.admission.release("o1")
    room.admission.release("o2")
    assert room.advance() == ["+large"]


def test_a_restore_does_not_wait_for_readers(room):
    fill(room, 4, 4)
    assert room.ask("restore", 4, patient=False) == ["!restore"]
    assert room.advance() == []


def test_a_full_disk_is_not_waited_for(room):
    fill(room, 4, 4, "dirty")
    room.admission.spillable = False
    assert room.ask("new", 4) == []
    assert room.admission.needs_disk(4 * PAGE)
    assert not room.admission.needs_disk(17 * PAGE)
    room.admission.spillable = True
    assert room.advance() == ["spill o0"]


def test_holes_between_readers_are_widened(room):
    fill(room, 8, 2)
    for key in ("o2", "o4", "o5"):
        room.evictable(key, "clean")
    # o4 and o5 are neighbours; o2 leaves in vain because it is older.
    assert room.ask("new", 4) == ["-o2", "-o4", "-o5", "+new"]


def test_a_withdrawn_request_gets_nothing(room):
    fill(room, 4, 4)
    room.ask("new", 4)
    assert room.admission.withdraw(room.requests["new"])
    assert not room.admission.withdraw(room.requests["new"])
    room.admission.release("o0")
    assert room.advance() == []


class AdmissionMachine(RuleBasedStateMachine):
    """Whatever happens, everything patient gets its room once the readers are gone, and the disk and the rest are done."""

    def __init__(self):
        super().__init__()
        self.admission: Admission[int] = Admission(16 * PAGE, 3 * PAGE)
        self.made = 0
        self.waiting: dict[int, RoomRequest[int]] = {}
        self.read: dict[int, int] = {}  # key -> pages
        self.idle: dict[int, int] = {}
        self.spilling: list[list[int]] = []
        self.clean: set[int] = set()

    def advance(self):
        while actions := self.admission.advance():
            for action in actions:
                match action:
                    case Granted(request, _):
                        del self.waiting[request.key]
                        self.read[request.key] = request.nbytes // PAGE
                    case Dropped(key):
                        assert key in self.clean
                        del self.idle[key]
                    case Spill(keys):
                        assert keys
                        assert not self.clean.intersection(keys)
                        self.spilling.append(keys)
                    case Blocked(request):
                        assert not request.patient
                        del self.waiting[request.key]

    @rule(pages=st.integers(1, 16), patient=st.booleans())
    def ask(self, pages, patient):
        self.made += 1
        self.waiting[self.made] = RoomRequest(self.made, pages * PAGE, patient)
        self.admission.ask(self.waiting[self.made])
        self.advance()

    @rule(data=st.data())
    def stop_reading(self, data):
        if self.read:
            key = data.draw(st.sampled_from(sorted(self.read)))
            self.idle[key] = self.read.pop(key)
            spilling = any(key in batch for batch in self.spilling)
            self.admission.policy.add(key, self.idle[key] * PAGE, "clean" if key in self.clean else "cleaning" if spilling else "dirty")
            self.advance()

    @rule(data=st.data())
    def start_reading(self, data):
        if self.idle:
            key = data.draw(st.sampled_from(sorted(self.idle)))
            self.read[key] = self.idle.pop(key)
            self.admission.policy.remove(key)
            self.advance()

    @rule(works=st.booleans())
    def disk_is_done(self, works):
        if self.spilling:
            batch = self.spilling.pop(0)
            if works:
                self.clean |= set(batch)
                self.admission.spilled(batch)
            else:
                self.admission.not_spilled(batch)
            self.advance()

    @invariant()
    def holds(self):
        self.admission.check()
        assert self.admission.allocator.used_bytes == (sum(self.read.values()) + sum(self.idle.values())) * PAGE

    def teardown(self):
        for _ in range(1000):
            if not self.waiting:
                break
            for key in list(self.read):
                self.idle[key] = self.read.pop(key)
                spilling = any(key in batch for batch in self.spilling)
                self.admission.policy.add(key, self.idle[key] * PAGE, "clean" if key in self.clean else "cleaning" if spilling else "dirty")
            self.advance()
            self.disk_is_done(True)
        assert not self.waiting


TestAdmission = AdmissionMachine.TestCase
