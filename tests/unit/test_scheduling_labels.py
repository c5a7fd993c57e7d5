from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal._core.scheduling.labels import check_labels, matches, parse_selector

VALUES = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,5}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize(
    ("condition", "label", "holds"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", None, False),
        ("!a", "b", True),
        ("!a", "a", False),
        ("!a", None, True),
        ("in(a, b)", "b", True),
        ("in(a,b)", "c", False),
        ("in(a)", None, False),
        ("!in(a, b)", "c", True),
        ("!in(a, b)", "a", False),
        ("!in(a, b)", None, True),
        ("*", "anything", True),
        ("*", None, False),
        ("!*", None, True),
        ("!*", "anything", False),
    ],
)
def test_conditions(condition: str, label: str | None, holds: bool) -> None:
    assert matches((("zone", condition),), {} if label is None else {"zone": label}) is holds


def test_all_conditions_must_hold() -> None:
    selector = parse_selector({"zone": "a", "kind": "!gpu"})
    assert matches(selector, {"zone": "a"})
    assert not matches(selector, {"zone": "a", "kind": "gpu"})
    assert matches((), {})


@pytest.mark.parametrize("key", ["", "-a", "a-", "a" * 64, "a/b/c", "UPPER.prefix/a", "/a", "a b"])
def test_malformed_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)label key"):
        parse_selector({key: "v"})


@pytest.mark.parametrize("condition", ["a b", "in()", "!in( )", "in(a", "-a", "!", "a" * 64, "in(a,,b)", "in(a, b!)"])
def test_malformed_conditions_are_refused(condition: str) -> None:
    with pytest.raises(ValueError, match="zone"):
        parse_selector({"zone": condition})


@pytest.mark.parametrize("selector", ["zone=a", {"zone": 1}, {1: "a"}])
def test_wrong_types_are_refused(selector: object) -> None:
    with pytest.raises(TypeError):
        parse_selector(selector)  # type: ignore[arg-type]


def test_reserved_labels_belong_to_the_runtime() -> None:
    with pytest.raises(ValueError, match=r"ray\.io"):
        check_labels({"ray.io/node-id": "x"})
    assert check_labels({"ray.io/node-id": "x"}, allow_reserved=True)
    assert check_labels({"example.com/rack": "r-1", "zone": ""}) == {"example.com/rack": "r-1", "zone": ""}


@given(VALUES, st.lists(VALUES, min_size=1, max_size=4))
def test_a_negated_condition_is_the_opposite(value: str, values: list[str]) -> None:
    inside = f"in({', '.join(values)})"
    labels = {"zone": value}
    assert matches(parse_selector({"zone": inside}), labels) == (value in values)
    assert matches(parse_selector({"zone": "!" + inside}), labels) == (value not in values)
