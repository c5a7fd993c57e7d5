"""`shoal.testing` without a session: its names, what importing it costs, waiting, plain code under a virtual clock."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

import shoal
from shoal import testing
from shoal.testing import plain, run_virtual, wait_for
from shoal.testing.faults import label_of


@shoal.remote
def square(x):
    return x * x


@shoal.remote
class Poller:
    """Asks again after 1, 2, 4... seconds."""

    def __init__(self, answers):
        self.answers = answers

    async def poll(self):
        pause_s = 1.0
        while not self.answers.pop(0):
            await asyncio.sleep(pause_s)
            pause_s *= 2
        return asyncio.get_running_loop().time()


def test_every_public_name_is_there_and_says_where_it_is_found():
    for name in testing.__all__:
        assert getattr(testing, name).__module__ == "shoal.testing", name
    assert dir(testing) == sorted(testing.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Clusters'"):
        testing.Clusters  # noqa: B018


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_loads_nothing_but_shoal():
    new = run_python(
        "import shoal, sys; before = set(sys.modules); import shoal.testing; print(*sorted(set(sys.modules) - before))"
    ).split()
    assert new == ["shoal.testing"]


def test_clusters_and_the_leak_check_need_no_pytest():
    code = "import sys; sys.modules['pytest'] = None; from shoal.testing import fresh_cluster, leak_check, run_virtual, wait_for, plain"
    run_python(code)


@pytest.mark.parametrize("name", ["fixtures", "storage_contract", "transport_contract"])
def test_without_pytest_the_error_says_what_to_install(name):
    printed = run_python(
        f"import sys; sys.modules['pytest'] = None\ntry: import shoal.testing.{name}\nexcept ImportError as error: print(error)"
    )
    assert "pip install 'shoal[test]'" in printed


def test_wait_for_returns_what_was_found_or_names_what_was_not():
    found = iter([[], 0, None, "it"])
    assert wait_for(lambda: next(found)) == "it"
    with pytest.raises(TimeoutError, match=r"the moon did not come true within 0\.01 s"):
        wait_for(lambda: False, 0.01, "the moon")


def test_plain_gives_back_what_the_user_wrote():
    assert plain(square)(3) == 9
    assert plain(square.options(num_cpus=2))(3) == 9
    assert isinstance(plain(Poller)([True]), plain(Poller))
    with pytest.raises(TypeError, match="got int: 3"):
        plain(3)


def test_an_async_actor_runs_under_a_virtual_clock():
    async def main():
        return await plain(Poller)([False] * 10 + [True]).poll()

    assert run_virtual(main()) == 2**10 - 1


def test_functions_are_named_as_the_user_writes_them():
    def inner():
        pass

    assert [label_of(one) for one in ("Counter.add", square, Poller, shoal.remote(inner))] == [
        "Counter.add",
        "square",
        "Poller.__init__",
        "inner",
    ]
    with pytest.raises(TypeError, match="was expected, got 3"):
        label_of(3)
