"""Optional dependencies: imported where they are used, missed with an error that says what to install."""

from __future__ import annotations

import importlib
from typing import Any

#: What is known to be missing, so that the search for it runs once.
_missing: dict[str, ImportError] = {}


def try_import(module: str, install: str) -> Any:
    """Return the module, or raise an ImportError that names the command which installs it.

    Args:
        module: dotted name, for example "pyarrow.parquet".
        install: what to give to pip, for example "shoal[data]".
    """
    found = _missing.get(module)
    if found is None:
        try:
            return importlib.import_module(module)
        except ImportError as error:
            found = _missing[module] = error
    raise ImportError(f"This needs {module}, which cannot be imported ({found}). Install it with: pip install '{install}'") from found
