"""What workers of other nodes print. Apart from test_many_nodes.py: its driver would end the one that those tests share."""

from __future__ import annotations

import pytest

import shoal
from shoal.testing import wait_for
from tests.cluster.nodes import many_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


def test_what_workers_of_other_nodes_print_is_shown_by_the_driver(capfd):
    with many_nodes(2, log_to_driver=True) as nodes:

        @shoal.remote
        def speak(number):
            print(f"task {number} speaks")

        @shoal.remote
        class Speaker:
            def speak(self, number):
                print(f"actor {number} speaks")

        speakers = [Speaker.options(**nodes.on(index)).remote() for index in range(2)]
        shoal.get([speaker.speak.remote(index) for index, speaker in enumerate(speakers)], timeout=30)
        shoal.get([speak.options(**nodes.on(index)).remote(index) for index in range(2)], timeout=30)
        seen = []

        def all_seen():
            seen.append(capfd.readouterr().out)
            text = "".join(seen)
            return all(text.count(f"{who} {index} speaks") == 1 for who in ("task", "actor") for index in range(2))

        wait_for(all_seen, 30, "the lines of both nodes, once each")
