"""Where the bundles of placement groups lie that are not, or not all, on this node.

Learned from the control store when a request first asks for such a group, and told again whenever that changes, until the group is removed.
"""

from __future__ import annotations

from collections.abc import Mapping

from shoal._core.scheduling.resources import fits
from shoal._core.wire.messages import GroupChanged


class GroupView:
    """All and only groups that this node has asked about."""

    def __init__(self) -> None:
        #: None: asked, and not answered yet.
        self._groups: dict[bytes, GroupChanged | None] = {}

    def ask(self, group: bytes) -> bool:
        """Whether the control store is to be asked: it was not yet."""
        if group in self._groups:
            return False
        self._groups[group] = None
        return True

    def learn(self, news: GroupChanged) -> None:
        self._groups[news.placement_group_id] = news

    def forget(self, group: bytes) -> None:
        self._groups.pop(group, None)

    def ring(self, group: bytes, index: int, need: Mapping[str, int]) -> list[bytes]:
        """Return the nodes with a bundle that could hold ``need``, in the order of bundles; ``index`` -1 means any bundle."""
        known = self._groups.get(group)
        if known is None:
            return []
        places = zip(known.bundles, known.nodes, strict=True)
        wanted = (node for at, (bundle, node) in enumerate(places) if node and index in (-1, at) and fits(need, bundle))
        return list(dict.fromkeys(wanted))
