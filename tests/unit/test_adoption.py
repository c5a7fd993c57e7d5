"""Objects whose owner is gone: who keeps them alive, and when they are free."""

from __future__ import annotations

from shoal._core.node_agent.adoption import Adoption
from shoal._core.wire.messages import STORED, Address, ObjectRefInfo, OwnedObject, Value

A, B = (Address(name, b"", "") for name in (b"a", b"b"))
STORED_VALUE = Value(STORED, b"", 10)


def owned(name: bytes, *borrowers: tuple[Address, int], inside: tuple[bytes, ...] = ()) -> OwnedObject:
    return OwnedObject(name, Value(STORED, b"", 10, [ObjectRefInfo(one, A) for one in inside]), list(borrowers))


def freed(adopted: list[object]) -> list[bytes]:
    return [one.object_id for one in adopted]  # type: ignore[attr-defined]


def test_an_object_lives_while_anybody_borrows_it() -> None:
    adoption = Adoption(5.0)
    adoption.adopt([owned(b"o", (A, 1), (B, 1))], {b"a", b"b"}, 0.0)
    assert adoption.add_borrower(b"o", b"a", 1, full=True)
    assert freed(adoption.remove_borrower(b"o", b"a", 1)) == []
    assert adoption.tick(100.0, {b"a", b"b"}) == []
    assert freed(adoption.borrower_lost(b"b")) == [b"o"]


def test_a_borrowers_full_count_and_the_owners_word_make_the_larger_one() -> None:
    for handed_over, own in ((3, 2), (2, 3)):
        adoption = Adoption(5.0)
        adoption.adopt([owned(b"o", (A, handed_over))], {b"a"}, 0.0)
        adoption.add_borrower(b"o", b"a", own, full=True)
        assert adoption.remove_borrower(b"o", b"a", 2) == []
        assert freed(adoption.remove_borrower(b"o", b"a", 1)) == [b"o"]


def test_later_registrations_add_up() -> None:
    adoption = Adoption(5.0)
    adoption.adopt([owned(b"o", (A, 1))], {b"a"}, 0.0)
    adoption.add_borrower(b"o", b"a", 1, full=False)
    adoption.add_borrower(b"o", b"a", 1, full=False)
    assert adoption.remove_borrower(b"o", b"a", 2) == []
    assert freed(adoption.remove_borrower(b"o", b"a", 1)) == [b"o"]


def test_borrowers_that_never_appear_are_forgotten_after_the_grace() -> None:
    adoption = Adoption(5.0)
    adoption.adopt([owned(b"o", (A, 1))], set(), 0.0)
    assert adoption.tick(4.0, set()) == []
    assert freed(adoption.tick(5.0, set())) == [b"o"]


def test_stored_objects_of_a_killed_owner_have_a_grace() -> None:
    adoption = Adoption(5.0)
    for name in (b"asked", b"held", b"unknown"):
        adoption.adopt_stored(name, STORED_VALUE, 0.0)
    adoption.get(b"asked", 4.0)
    adoption.add_borrower(b"held", b"a", 1, full=True)
    adoption.check()
    assert freed(adoption.tick(5.0, {b"a"})) == [b"unknown"]
    assert freed(adoption.tick(9.0, {b"a"})) == [b"asked"]
    assert b"held" in adoption


def test_containers_keep_what_is_inside() -> None:
    adoption = Adoption(5.0)
    adoption.adopt([owned(b"inner"), owned(b"outer", (A, 1), inside=(b"inner",))], {b"a"}, 0.0)
    adoption.tick(10.0, {b"a"})
    adoption.check()
    assert b"inner" in adoption
    assert freed(adoption.remove_borrower(b"outer", b"a", 1)) == [b"outer", b"inner"]


def test_a_reference_pickled_elsewhere_is_for_ever() -> None:
    adoption = Adoption(5.0)
    adoption.adopt([owned(b"o")], set(), 0.0)
    adoption.pin_forever(b"o")
    assert adoption.tick(100.0, set()) == []


def test_unknown_objects_cannot_be_borrowed() -> None:
    adoption = Adoption(5.0)
    assert not adoption.add_borrower(b"o", b"a", 1, full=True)
    assert adoption.get(b"o", 0.0) is None
    assert adoption.remove_borrower(b"o", b"a", 1) == []
