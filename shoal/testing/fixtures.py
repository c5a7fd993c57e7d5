"""Fixtures for pytest. In the ``conftest.py`` at the top of your tests:

    pytest_plugins = ["shoal.testing.fixtures"]

shoal_cluster   a fresh ``Cluster`` for each test
shoal_session   one ``Cluster`` for all tests of a module: faster; one test sees what another has left in it

Both end with the check that nothing is left. Options of ``fresh_cluster`` come from a marker, on the test or (for the module's) as
``pytestmark``, or from an indirect parameter:

    @pytest.mark.shoal_options(num_cpus=4)
    def test_something(shoal_cluster): ...

    @pytest.mark.parametrize("shoal_cluster", [{"num_cpus": 1}, {"num_cpus": 8}], indirect=True)
    def test_something_else(shoal_cluster): ...
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shoal._base.optional import try_import
from shoal._core.api.lifecycle import is_initialized

from .cluster import Cluster, fresh_cluster

if TYPE_CHECKING:
    import pytest
else:
    pytest = try_import("pytest", "shoal[test]")

__all__: Sequence[str] = ["shoal_cluster", "shoal_session"]


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, for ``--strict-markers``."""
    config.addinivalue_line("markers", "shoal_options(**options): of the session that shoal_cluster or shoal_session starts")


@pytest.fixture
def shoal_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A session of the test's own, which it may harm; see ``shoal.testing.Cluster``."""
    if is_initialized():
        raise RuntimeError(
            "shoal_cluster cannot start a session, because one runs already: shoal_session of the same module (use one of the two in a "
            "module), or a shoal.init() without a shoal.shutdown()."
        )
    with _cluster_for(request) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shoal_session(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """One session for the tests of a module."""
    with _cluster_for(request) as cluster:
        yield cluster


@contextmanager
def _cluster_for(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("shoal_options"))):  # the closest last, so that it wins
        if marker.args:
            raise TypeError(f"shoal_options takes keywords only, got {marker.args!r}.")
        options.update(marker.kwargs)
    options.update(getattr(request, "param", {}))
    with fresh_cluster(**options) as cluster:
        yield cluster
        # The traceback of a failed test holds its variables, and so perhaps arrays over the store: no leak, and one report is enough.
        _drop_last_traceback()


def _drop_last_traceback() -> None:
    for name in ("last_exc", "last_value", "last_traceback", "last_type"):
        sys.__dict__.pop(name, None)
