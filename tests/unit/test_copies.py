"""What an owner guesses of copies on other nodes."""

from __future__ import annotations

from shoal._core.worker.copies import Copies

A, B, C = b"A", b"B", b"C"


def test_the_last_reader_is_the_likeliest_to_have_one():
    copies = Copies()
    for node in (A, B, C):
        copies.told(b"o", A, node)
    assert copies.take(b"o", without=A) == [C, B]
    assert copies.take(b"o", without=A) == []


def test_the_lost_primary_is_no_candidate_even_when_it_was_a_reader_before():
    copies = Copies()
    copies.told(b"o", A, B)
    assert copies.take(b"o", without=B) == []


def test_nothing_is_kept_of_what_is_freed_or_read_where_it_lies():
    copies = Copies()
    copies.told(b"o", A, A)
    copies.told(b"p", A, B)
    copies.forget(b"p")
    assert len(copies) == 0
