"""The order of leaving, against a slow model: one list in order of last use."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoal._core.object_store.eviction import EvictionPolicy

keys = st.integers(0, 9)


class EvictionMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.policy: EvictionPolicy[int] = EvictionPolicy()
        #: (key, nbytes, state), least recently used (within a state) first.
        self.model: list[tuple[int, int, str]] = []

    def of(self, state):
        return [(key, nbytes) for key, nbytes, s in self.model if s == state]

    def drop(self, key):
        self.model = [item for item in self.model if item[0] != key]

    @rule(key=keys, nbytes=st.integers(1, 5), state=st.sampled_from(["dirty", "clean"]))
    def add(self, key, nbytes, state):
        self.policy.add(key, nbytes, state)
        self.drop(key)
        self.model.append((key, nbytes, state))

    @rule(key=keys)
    def remove(self, key):
        known = any(item[0] == key for item in self.model)
        assert self.policy.remove(key) == known
        self.drop(key)

    @rule(limit=st.integers(0, 12))
    def spill(self, limit):
        expected, total = [], 0
        for key, nbytes in self.of("dirty"):
            if expected and total + nbytes > limit:
                break
            expected.append((key, nbytes))
            total += nbytes
        assert self.policy.pick_spills(limit) == [key for key, _ in expected]
        for key, nbytes in expected:
            self.drop(key)
            self.model.append((key, nbytes, "cleaning"))

    @rule(key=keys)
    def cleaned(self, key):
        self.policy.cleaned(key)
        for item in self.of("cleaning"):
            if item[0] == key:
                self.drop(key)
                self.model.append((*item, "clean"))

    @rule(data=st.data())
    def not_cleaned(self, data):
        batch = [key for key, _ in self.of("cleaning")][: data.draw(st.integers(0, 3))]
        items = [item for item in self.of("cleaning") if item[0] in batch]
        self.policy.not_cleaned(batch)
        for key in batch:
            self.drop(key)
        self.model = [(key, nbytes, "dirty") for key, nbytes in items] + self.model

    @rule()
    def pick_drop(self):
        clean = self.of("clean")
        picked = self.policy.pick_drop()
        assert picked == (clean[0][0] if clean else None)
        if clean:
            self.drop(picked)

    @invariant()
    def agrees(self):
        self.policy.check()
        figures = self.policy.statistics()
        for state in ("dirty", "cleaning", "clean"):
            assert getattr(figures, f"{state}_objects") == len(self.of(state))
            assert getattr(figures, f"{state}_bytes") == sum(nbytes for _, nbytes in self.of(state))
        for key, _, state in self.model:
            assert self.policy.state_of(key) == state


TestEviction = EvictionMachine.TestCase
