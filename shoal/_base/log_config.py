"""``LoggingConfig``: how log records of the driver and of all its workers look.

The driver applies it in ``init``; each worker of the job applies it before its first task.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from . import runtime as holder

ENCODINGS = ("TEXT", "JSON")
#: Attributes of logging.LogRecord that can be asked for, besides those that are always shown.
_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}
_ALWAYS = ("asctime", "levelname", "message", "filename", "lineno")


@dataclass
class LoggingConfig:
    """Format and level of the root logger in the driver and its workers.

    Args:
        encoding: "TEXT" or "JSON" (one object per line); both carry job, worker, node, actor and task.
        log_level: as in the ``logging`` module.
        additional_log_standard_attrs: more attributes of ``logging.LogRecord`` to show.

    Raises:
        ValueError: unknown encoding or attribute.
    """

    encoding: str = "TEXT"
    log_level: str = "INFO"
    additional_log_standard_attrs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(f"Invalid encoding type: {self.encoding!r}. Valid are {', '.join(ENCODINGS)}.")
        for name in self.additional_log_standard_attrs:
            if name not in _STANDARD:
                raise ValueError(f"Unknown python logging standard attribute: {name!r}. Valid are {', '.join(sorted(_STANDARD))}.")

    def to_json(self) -> str:
        """Return the settings as text, for workers."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LoggingConfig:
        """Build from what ``to_json`` returned."""
        return cls(**json.loads(text))

    def apply(self) -> None:
        """Replace the handlers of this process's root logger."""
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Formatter(self))
        root = logging.getLogger()
        root.handlers[:] = [handler]
        root.setLevel(self.log_level)


class _Formatter(logging.Formatter):
    """Adds to each record where it was written: job, worker, node, actor, task."""

    def __init__(self, config: LoggingConfig) -> None:
        super().__init__()
        self._json = config.encoding == "JSON"
        self._more = config.additional_log_standard_attrs

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        shown = {name: getattr(record, name, None) for name in dict.fromkeys([*_ALWAYS, *self._more])}
        shown |= _where()
        if record.exc_info:
            shown["exc_text"] = self.formatException(record.exc_info)
        if self._json:
            return json.dumps(shown, default=str)
        return self._as_text(shown)

    def _as_text(self, shown: dict[str, Any]) -> str:
        head = f"{shown.pop('asctime')}\t{shown.pop('levelname')} {shown.pop('filename')}:{shown.pop('lineno')} -- {shown.pop('message')}"
        trace = shown.pop("exc_text", None)
        facts = " ".join(f"{key}={value}" for key, value in shown.items())
        return "\n".join(filter(None, [f"{head} {facts}".rstrip(), trace]))


def _where() -> dict[str, str]:
    runtime = holder.current_or_none()
    if runtime is None:
        return {}
    where = {"job_id": runtime.job_id.hex(), "worker_id": runtime.worker_id.hex(), "node_id": runtime.node_id.hex()}
    context = runtime.task_context()
    if context is not None:
        if context.actor_id:
            where |= {"actor_id": context.actor_id.hex(), "actor_name": context.actor_name}
        where |= {"task_id": context.task_id.hex(), "task_name": context.name, "task_func_name": context.function_name}
    return where
