from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal._core.scheduling.packing import STRATEGIES, explain_unplaceable, place_bundles
from shoal._core.scheduling.resources import fits, total_of
from shoal._core.wire.messages import NodeRecord


def nodes(*cpus: int, labels: dict[int, str] | None = None) -> list[NodeRecord]:
    zone = labels or {}
    return [
        NodeRecord(b"%d" % i, "", "", "", {"CPU": n * 10_000}, {"CPU": n * 10_000}, {"zone": zone[i]} if i in zone else {})
        for i, n in enumerate(cpus)
    ]


def bundles(*cpus: int) -> list[dict[str, int]]:
    return [{"CPU": n * 10_000} for n in cpus]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("PACK", [b"0", b"0"]), ("SPREAD", [b"0", b"1"]), ("STRICT_PACK", [b"0", b"0"]), ("STRICT_SPREAD", [b"0", b"1"])],
)
def test_the_four_strategies(strategy: str, expected: list[bytes]) -> None:
    assert sorted(place_bundles(bundles(1, 1), strategy, nodes(4, 4)) or []) == expected


def test_pack_takes_one_node_even_if_it_is_not_the_first() -> None:
    assert place_bundles(bundles(2, 2, 2), "PACK", nodes(4, 6)) == [b"1"] * 3


def test_strict_spread_finds_the_matching_that_greed_misses() -> None:
    assert place_bundles(bundles(1, 4), "STRICT_SPREAD", nodes(4, 1)) == [b"1", b"0"]


def test_strict_pack_needs_one_node_for_all() -> None:
    assert place_bundles(bundles(3, 3), "STRICT_PACK", nodes(4, 4)) is None
    assert "6 CPUs" in explain_unplaceable(bundles(3, 3), "STRICT_PACK", nodes(4, 4))


def test_selectors_bind_bundles_to_nodes() -> None:
    cluster = nodes(4, 4, labels={1: "x"})
    assert place_bundles(bundles(1, 1), "PACK", cluster, [{"zone": "x"}, {}]) == [b"1", b"1"]
    assert place_bundles(bundles(1), "PACK", cluster, [{"zone": "y"}]) is None
    assert "zone=y" in explain_unplaceable(bundles(1), "PACK", cluster, [{"zone": "y"}])


def test_a_group_that_lost_a_node_keeps_the_rest() -> None:
    assert place_bundles(bundles(1, 1), "STRICT_SPREAD", nodes(4, 4), taken={0: b"0"}) == [b"0", b"1"]
    assert place_bundles(bundles(1, 1), "STRICT_PACK", nodes(4, 4), taken={1: b"1"}) == [b"1", b"1"]


def test_explanations() -> None:
    assert explain_unplaceable(bundles(1), "PACK", nodes(4)) == ""
    assert "Bundle 0 needs 8 CPUs; the largest node has 4." in explain_unplaceable(bundles(8), "SPREAD", nodes(4))
    assert "STRICT_SPREAD needs 3 nodes" in explain_unplaceable(bundles(1, 1, 1), "STRICT_SPREAD", nodes(4, 4))
    assert "together" in explain_unplaceable(bundles(3, 3), "PACK", nodes(4, 1))


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="STRICT_SPREAD"):
        place_bundles(bundles(1), "TIGHT", nodes(1))


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=5), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from(STRATEGIES)
)
def test_placements_are_sound_and_strict_ones_complete(sizes: list[int], wanted: list[int], strategy: str) -> None:
    cluster, group = nodes(*sizes), bundles(*wanted)
    placed = place_bundles(group, strategy, cluster)
    if placed is None:
        assert not possible(sizes, wanted, strategy)
        return
    assert len(placed) == len(group)
    for one in cluster:
        assert fits(total_of(group[i] for i, at in enumerate(placed) if at == one.node_id), one.available)
    if strategy == "STRICT_PACK":
        assert len(set(placed)) == 1
    if strategy == "STRICT_SPREAD":
        assert max(Counter(placed).values()) == 1


def possible(sizes: list[int], wanted: list[int], strategy: str) -> bool:
    """The slow twin: tries everything (strict strategies), or gives greed the benefit of the doubt."""
    if strategy == "STRICT_PACK":
        return any(sum(wanted) <= size for size in sizes)
    if strategy == "STRICT_SPREAD":
        return any(
            all(need <= sizes[at] for need, at in zip(wanted, order, strict=False))
            for order in permutations(range(len(sizes)), len(wanted))
        )
    return any(sum(wanted) <= size for size in sizes)
