"""Functions and classes on their way to the workers: pickled once per job, named by their content.

A remote function that mentions itself (or a class that makes instances of itself) contains itself when it is pickled. The copy inside
must know the name under which the whole is stored, or each worker would export the function anew; but that name is a hash of the
whole. So the copy is pickled with a placeholder, the name is the hash of the bytes with the placeholder, and then the name is
written over it.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from shoal._base.ids import FUNCTION_BYTES
from shoal._base.references import ObjectRef
from shoal._base.runtime import Runtime
from shoal._core.serialization import pickle_function
from shoal._core.wire.messages import TaskTemplate

from .options import frozen

#: Random, so that no user data contains it by accident; the length of a FunctionId.
_PLACEHOLDER = b"\x00shoal:this-function\x00\xf3\x9c\x17\xd2\x5a\x88\xe1\x40"[:FUNCTION_BYTES]
assert len(_PLACEHOLDER) == FUNCTION_BYTES

#: Sets of options of one function that are remembered: programs use few, but some make new ones without end.
TEMPLATES_KEPT = 64

#: The session (its directory's name) and the job within which a FunctionId is good.
Job = tuple[str, bytes]


class Export:
    """One function or class and the name under which it was exported. Shared by all that differ in options alone."""

    __slots__ = ("_templates", "_templates_for", "function_id", "job", "target")

    def __init__(self, target: Any) -> None:
        self.target = target
        self.function_id = b""
        self.job: Job | None = None
        self._templates: dict[Any, TaskTemplate] = {}
        self._templates_for: Runtime | None = None

    def template(self, runtime: Runtime, options: Mapping[str, Any], make: Callable[[], TaskTemplate]) -> TaskTemplate:
        """Return the template for these options, the same object for equal ones: each is sent to each worker once and kept there."""
        key = frozen(options)
        if key is None:
            return make()
        if self._templates_for is not runtime or len(self._templates) >= TEMPLATES_KEPT:
            self._templates, self._templates_for = {}, runtime
        template = self._templates.get(key)
        if template is None:
            template = self._templates[key] = make()
        return template

    def ensure(self, runtime: Runtime) -> bytes:
        """Return the FunctionId for the runtime's job; pickles and exports at the first call. Idempotent.

        Raises:
            TypeError: the function holds something that cannot be pickled.
        """
        job = job_of(runtime)
        if self.job != job:
            blob, own_id, refs = self._pickle(job)
            self.function_id = runtime.export(blob, own_id) if own_id else runtime.export(blob)
            self.job = job
            if refs:
                _keep(job, refs)
        return self.function_id

    def _pickle(self, job: Job) -> tuple[bytes, bytes, list[ObjectRef[Any]]]:
        """Return (bytes, name, references inside); the name is empty unless the bytes contain it."""
        stack = _exporting.stack
        depth = len(stack)
        try:
            stack.append((self, job))
            blob, refs = pickle_function(self.target)
        finally:
            del stack[depth:]
        if _PLACEHOLDER not in blob:
            return blob, b"", refs
        own_id = hashlib.blake2b(blob, digest_size=FUNCTION_BYTES).digest()
        return blob.replace(_PLACEHOLDER, own_id), own_id, refs

    def __getstate__(self) -> tuple[Any, bytes, Job | None]:
        if _exporting.stack and _exporting.stack[-1][0] is self:
            return self.target, _PLACEHOLDER, _exporting.stack[-1][1]
        return self.target, self.function_id, self.job

    def __setstate__(self, state: tuple[Any, bytes, Job | None]) -> None:
        self.target, self.function_id, self.job = state
        self._templates, self._templates_for = {}, None


class _Exporting(threading.local):
    """What the calling thread is pickling, outermost first."""

    def __init__(self) -> None:
        self.stack: list[tuple[Export, Job]] = []


_exporting = _Exporting()


#: References inside exported functions: any worker may unpickle the function until the job ends, so they live as long.
_captured: dict[Job, list[ObjectRef[Any]]] = {}


def _keep(job: Job, refs: list[ObjectRef[Any]]) -> None:
    for ended in _captured.keys() - {job}:
        _captured.pop(ended, None)
    _captured.setdefault(job, []).extend(refs)


def job_of(runtime: Runtime) -> Job:
    return os.path.basename(runtime.session_dir), runtime.job_id
