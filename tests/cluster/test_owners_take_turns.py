"""Owners that always have work share the CPUs: nobody waits for the others to run out of it."""

from __future__ import annotations

import pytest

import shoal

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(90)]

OWNERS = 6
ROUNDS = 5
TASKS = 50


@shoal.remote
def double(number):
    return 2 * number


@shoal.remote(num_cpus=0)
class Board:
    """Who has done how many rounds."""

    def __init__(self):
        self.rounds = [0] * OWNERS

    def note(self, number):
        """Count a round; return whether all have done theirs."""
        self.rounds[number] += 1
        return min(self.rounds) >= ROUNDS


@shoal.remote(num_cpus=0)
class Owner:
    def work_until_all_have(self, number, board):
        """Always have tasks waiting: a lease that becomes idle would be given back without being asked for."""
        rounds, batches, all_have = 0, [submit(), submit()], None
        while all_have is None or not shoal.get(all_have):
            batches.append(submit())
            assert shoal.get(batches.pop(0)) == [2 * n for n in range(TASKS)]
            rounds, all_have = rounds + 1, board.note.remote(number)
        for batch in batches:
            shoal.get(batch)
        return rounds


def submit():
    return [double.remote(number) for number in range(TASKS)]


def test_owners_with_endless_work_take_turns(fresh_session):
    fresh_session(num_cpus=2)
    board = Board.remote()
    owners = [Owner.remote() for _ in range(OWNERS)]
    # They stop together, so that one who is never served keeps all of them at work.
    rounds = shoal.get([owner.work_until_all_have.remote(number, board) for number, owner in enumerate(owners)], timeout=60)
    assert min(rounds) >= ROUNDS
