"""What an owner keeps of one task, from submission until its results need it no longer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal._core.wire.messages import TaskTemplate

if TYPE_CHECKING:
    from .entries import Entry

#: States of a record.
WAITING, QUEUED, PUSHED, FINISHED = 0, 1, 2, 3


class TaskRecord:
    """One task or actor call as its owner sees it. Written on the I/O thread once it was submitted."""

    __slots__ = (
        "args", "attempt", "cancelled", "deps", "former_nodes", "generator", "held", "lease", "name", "node_id", "parent", "retries",
        "returns", "shape", "state", "stored_args", "task_id", "template", "unready",
    )  # fmt: skip

    def __init__(
        self, task_id: bytes, template: TaskTemplate, args: bytes, returns: list[Entry], parent: bytes = b"", name: str = ""
    ) -> None:
        self.task_id = task_id
        self.template = template
        #: The template's, with the node where large arguments lie once that is known.
        self.shape = template.shape
        self.args = args
        #: Entries of the returns, in order; the record keeps them reachable after the table let them go.
        self.returns = returns
        self.parent = parent
        self.name = name
        self.state = WAITING
        #: Entries of top-level references; pinned until the task is done.
        self.deps: list[Entry] = _NONE
        #: Entries of references nested in the arguments; pinned until the task is done.
        self.held: list[Entry] = _NONE
        #: The last of ``deps`` holds the serialized arguments.
        self.stored_args = False
        self.retries = template.max_retries
        self.attempt = 0
        self.unready = 0
        self.cancelled = False
        #: The lease (tasks) it was pushed to.
        self.lease: Any = None
        #: Where it was sent last; and where earlier attempts ran, which may have stored results before they failed.
        self.node_id = b""
        self.former_nodes: tuple[bytes, ...] = ()
        #: Streaming tasks: the consumer's state.
        self.generator: Any = None

    def next_attempt(self) -> None:
        """The last one has failed, or its results are lost."""
        self.attempt += 1
        if self.node_id and self.node_id not in self.former_nodes:
            self.former_nodes = (*self.former_nodes, self.node_id)

    @property
    def display_name(self) -> str:
        return self.name or self.template.name


_NONE: list[Entry] = []
