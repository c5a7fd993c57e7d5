"""What ``init`` returns."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any


class RayContext(Mapping[str, Any]):
    """The session that ``init`` started or found: a context manager whose exit ends it, and a mapping of addresses (deprecated)."""

    def __init__(self, address_info: Mapping[str, Any], version: str, disconnect: Callable[[], None]) -> None:
        #: Addresses and ids of the session, by the names that Ray's users know.
        self.address_info: dict[str, Any] = dict(address_info)
        self.dashboard_url: str = self.address_info.get("webui_url") or ""
        self.python_version = ".".join(map(str, sys.version_info[:3]))
        self.ray_version = version
        self.ray_commit = ""
        self._disconnect = disconnect

    def disconnect(self) -> None:
        """End the session, as ``shoal.shutdown()``."""
        self._disconnect()

    def __enter__(self) -> RayContext:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.disconnect()

    def __getitem__(self, key: str) -> Any:
        warnings.warn(f'context["{key}"] is deprecated. Use context.address_info["{key}"].', DeprecationWarning, stacklevel=2)
        return self.address_info[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __len__(self) -> int:
        return len(self.address_info)

    def __repr__(self) -> str:
        return f"RayContext(dashboard_url={self.dashboard_url!r}, python_version={self.python_version!r}, ray_version={self.ray_version!r})"
