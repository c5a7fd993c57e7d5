"""The protocol: every message that one process of shoal sends to another.

Messages are msgpack arrays that start with an integer tag, so that a client in another language can speak them. Nothing here is
pickled; pickled values appear only as opaque ``bytes`` (``data``, ``args``, ``error``).

A message with a field ``rid`` is a request or the reply to one: the reply carries the request's number. Every request may be
answered by ``Failed`` instead of its own reply.

Who talks to whom (A -> B: A opened the connection; both may send):

    worker, driver -> node agent       leases, object store, life and death of processes
    worker, driver -> control store    jobs, functions, actors, placement groups, key-values
    node agent -> control store        resources, actor placement, bundles
    owner -> executor                  tasks and actor calls; results come back on the same connection
    borrower -> owner                  values and reference counts

Append fields at the end only, with a default. Never reuse a tag.
"""

from __future__ import annotations

from typing import Any

import msgspec

from shoal._base.version import RELEASE


class Message(msgspec.Struct, array_like=True, gc=False):
    """Base of all messages. ``gc=False``: messages are trees, so the cycle collector need not visit them."""


# --- records that travel inside messages -----------------------------------------------------------------------------------


class Address(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a process listens: which process, on which node, and the transport address (``unix:PATH``, ``tcp:HOST:PORT``)."""

    worker_id: bytes
    node_id: bytes
    address: str


class ObjectRefInfo(msgspec.Struct, array_like=True, gc=False):
    """A reference on the wire: the object and the process that owns it."""

    object_id: bytes
    owner: Address


#: How a value travels: inside the message, in the object store of a node, or as the error that stands in its place.
#: LOST (in TaskDone only): arguments could not be read where they were said to be; ``refs`` names them, and the task did not run.
INLINE, STORED, FAILED, LOST = 0, 1, 2, 3


class Value(msgspec.Struct, array_like=True, gc=False):
    """The value of one object. ``refs`` are the references pickled inside it, which live as long as it does."""

    kind: int
    data: bytes = b""  # INLINE: serialized value. FAILED: serialized exception. LOST: the nodes' ids, one per reference
    nbytes: int = 0
    refs: list[ObjectRefInfo] = []
    node_id: bytes = b""  # STORED: where the primary copy lies
    kept: bool = False  # STORED: there it was already, from an earlier run of the task, and the bytes are that one's


class Shape(msgspec.Struct, array_like=True, frozen=True):
    """What tasks must have in common to share a lease. Resource amounts are fixed-point, 1/10000."""

    job_id: bytes
    resources: tuple[tuple[str, int], ...] = ()  # sorted by name
    strategy: tuple[Any, ...] = ()  # see scheduling.strategies; () is the default policy
    runtime_env: str = ""  # canonical JSON, "" for none
    placement_group: bytes = b""
    bundle_index: int = -1
    label_selector: tuple[tuple[str, str], ...] = ()
    #: Resources needed to be placed, where they differ from those held (an actor with no options: placed by 1 CPU, holds 0).
    placement_resources: tuple[tuple[str, int], ...] | None = None
    #: Node where large arguments lie; b"" when it does not matter.
    near: bytes = b""


class TaskTemplate(msgspec.Struct, array_like=True):
    """What all calls of one remote function with the same options share; sent once per connection."""

    function_id: bytes
    name: str  # shown to users
    function_name: str  # "module.qualname"
    shape: Shape
    num_returns: int = 1  # -1 streaming, -2 dynamic
    max_retries: int = 3  # -1 for ever
    retry_exceptions: bytes = b""  # b"" no, b"*" all, else pickled tuple of classes
    max_calls: int = 0
    backpressure: int = -1
    # actor calls only
    actor_id: bytes = b""
    method: str = ""
    concurrency_group: str = ""
    #: Children of the task go into its placement group too.
    capture_child_tasks: bool = False


class ActorSpec(msgspec.Struct, array_like=True):
    """All that is needed to start an actor, again and again."""

    actor_id: bytes
    job_id: bytes
    owner: Address
    class_id: bytes  # a function id: the pickled class
    class_name: str
    args: bytes
    deps: list[Dep]
    shape: Shape
    name: str = ""
    namespace: str = ""
    detached: bool = False
    max_restarts: int = 0
    max_task_retries: int = 0
    max_concurrency: int = 1
    max_pending_calls: int = -1
    is_async: bool = False
    concurrency_groups: dict[str, int] = {}
    out_of_order: bool = False
    handle: bytes = b""  # description from which any process builds a handle
    capture_child_tasks: bool = False
    #: The arguments were too large for a message: the last dep is an object that holds them.
    stored_args: bool = False


class Dep(msgspec.Struct, array_like=True, gc=False):
    """A top-level reference among the arguments; the executor replaces it by its value."""

    object_id: bytes
    owner: Address | None = None
    #: Filled by the submitter when the value is ready and small; None: the executor maps it from the object store.
    value: bytes | None = None
    #: In the object store: where the primary copy lies, and its size.
    node_id: bytes = b""
    nbytes: int = 0


#: A kind of ``Cause``: its node leaves in good order. Such a death counts against no budget of retries or restarts.
DRAINED = "drained"


class Cause(msgspec.Struct, array_like=True, gc=False):
    """Why something died: facts for the message that the user reads."""

    kind: str  # "worker_exit", "oom", "killed", "exit_actor", "init_failed", "owner_died", "node_died", DRAINED, "out_of_scope", ...
    message: str = ""
    exit_code: int | None = None
    signal: int | None = None
    pid: int = 0
    node_id: bytes = b""
    log_tail: list[str] = []
    error: bytes = b""  # serialized exception, for init_failed
    #: Task id that the worker wrote last into its progress file: tasks pushed after it were never started.
    started: bytes = b""


class Once(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Names a request whose effect must not be repeated when it is sent again: the control store remembers its answer."""

    client: bytes
    number: int
    #: The client has the answers to all its requests before this one: nobody needs them any more.
    oldest: int


# --- any connection ---------------------------------------------------------------------------------------------------------


class Ack(Message, tag=1):
    rid: int


class Failed(Message, tag=2):
    """The request cannot be met. ``kind`` is a class name of ``shoal.exceptions`` or a builtin such as ``ValueError``."""

    rid: int
    kind: str
    message: str
    detail: bytes = b""


class CancelRequest(Message, tag=3):
    """The sender no longer waits for the reply to its request ``request``."""

    request: int


class Ping(Message, tag=4):
    """Are you there? To the control store also: have you made durable what I sent before?"""

    rid: int


# --- process <-> node agent: life --------------------------------------------------------------------------------------------


class IssueCertificate(Message, tag=5):
    """Node that joins to control store, at its reception: sign this request (PEM). LookupError: there is no authority."""

    rid: int
    request: bytes


class CertificateIssued(Message, tag=6):
    """The node's certificate and that of the cluster's authority (PEM)."""

    rid: int
    certificate: bytes
    authority: bytes


class RotateToken(Message, tag=7):
    """Take this token from now on, and accept the one before it, too: a client to the control store, which tells all node agents.

    Answered when every process of the receiver's uses it, or was told.
    """

    rid: int
    token: bytes


class TokenChanged(Message, tag=8):
    """Node agent to the processes of its node: the token is this one from now on."""

    token: bytes


class RegisterProcess(Message, tag=10):
    """First message of a worker or driver to its node agent."""

    rid: int
    worker_id: bytes
    pid: int
    address: str
    job_id: bytes = b""  # drivers only
    log_to_driver: bool = False  # drivers only: send LogLines
    #: The process's own node, when it registers with the agent of another one to ask for leases there.
    node_id: bytes = b""


class Registered(Message, tag=11):
    rid: int
    node_id: bytes
    session_dir: str
    control_store: str  # transport address
    arena_path: str  # openable by the same user, e.g. /proc/PID/fd/N
    arena_bytes: int
    settings: bytes = b""  # msgpack of the Settings record, so that all processes of a session agree
    endpoint: str = ""  # where other nodes reach this one; "": it is alone
    heirs: dict[bytes, bytes] = {}  # as NodeRecord.heir, of nodes that have left, or are about to


class ProcessExiting(Message, tag=12):
    """An orderly end is under way (max_calls reached, exit_actor, job over): not a crash.

    To the node agent: nothing new for this process; ``unfinished``: what it submitted runs to its end first, however long. To those who
    call it or borrow from it: close this connection, behind everything you have sent; the node agent answers for its objects now.
    """

    cause: Cause
    unfinished: bool = False


class StopProcess(Message, tag=13):
    """Node agent to worker: finish (``graceful``) or leave now."""

    graceful: bool
    cause: Cause


class LogLines(Message, tag=14):
    job_id: bytes
    pid: int
    name: str  # task or actor name, repr of the actor where it has one
    is_error: bool
    lines: list[str]
    ip: str = ""


class NameProcess(Message, tag=15):
    """Worker to node agent: show my log lines under this name from now on."""

    name: str


class FlushLogs(Message, tag=17):
    """Driver to node agent: send what the job's workers have printed so far, then Ack. Asked before the driver leaves."""

    rid: int
    job_id: bytes


class Dial(Message, tag=18):
    """Process to its node agent: connect me to this process of another node, or to that node's agent (``worker_id`` is its node id)."""

    rid: int
    address: Address


class SocketReady(Message, tag=19):
    """The connected socket, on which the handshake is next, is handed over for this ticket."""

    rid: int
    ticket: bytes


class TakeSocket(Message, tag=29):
    """Node agent to process: somebody of another node has connected to you; fetch the socket with this ticket, and greet it."""

    ticket: bytes


class CallBack(Message, tag=163):
    """Node agent to control store, and on to the agent of ``node_id``: dial a node with this ticket, and be the server of what follows.

    Acked when it is done. Failed: "LookupError": the target is not there; "ConnectionError": the node where they meet cannot be dialled
    from there, or takes no more; "NodeDiedError": the node that is to dial is not connected.
    """

    rid: int
    node_id: bytes
    #: Whom at that node the caller wants, as in a preamble.
    target: bytes
    #: What the one who dials says in the place of a target; good for once.
    ticket: bytes
    #: Node where the two meet: the caller's own, or a third one, which the caller dials, too.
    meet: bytes
    #: Its endpoint, from the control store.
    endpoint: str = ""


class ExpectPair(Message, tag=164):
    """Control store to node agent: two will come with this ticket; join them. Acked. Failed("ConnectionError"): there are too many."""

    rid: int
    ticket: bytes


class KillProcess(Message, tag=16):
    """Owner to node agent: kill this worker now (forced cancel, cancel that did not come through)."""

    worker_id: bytes
    cause: Cause


# --- process <-> node agent: leases ------------------------------------------------------------------------------------------


class RequestLease(Message, tag=20):
    rid: int
    shape: Shape
    backlog: int = 1  # tasks of this shape waiting at the owner
    retriable: bool = True
    name: str = ""  # for the infeasible warning
    #: Node agents that have passed it on before.
    hops: int = 0


class Backlog(Message, tag=176):
    """Owner to node agent: so many tasks wait for what request ``request`` asks for. Sent when the number has doubled or halved."""

    request: int
    tasks: int


class LeaseGranted(Message, tag=21):
    rid: int
    lease_id: int
    worker: Address
    pid: int
    resource_ids: dict[str, list[int]] = {}  # "GPU": [0, 2]
    placement_group: bytes = b""
    bundle_index: int = -1


class ReturnLease(Message, tag=22):
    lease_id: int
    worker_failed: bool = False


class LeaseWanted(Message, tag=23):
    """Node agent to owner: others wait; return this lease as soon as what was pushed is done."""

    lease_id: int


class WorkerDied(Message, tag=24):
    """Node agent to the holder of the worker's lease, with the real exit status."""

    worker_id: bytes
    lease_id: int
    cause: Cause


class WorkerBlocked(Message, tag=25):
    """The worker waits inside ``get`` or ``wait``: its CPUs are free meanwhile."""

    worker_id: bytes


class WorkerUnblocked(Message, tag=26):
    worker_id: bytes


class LeaseInfeasible(Message, tag=27):
    """No node can ever meet the shape as things stand; the request stays queued."""

    rid: int
    message: str


class LeaseSpilled(Message, tag=28):
    """Answer to RequestLease: ask the agent of this node instead."""

    rid: int
    node_id: bytes


# --- process <-> node agent: object store -------------------------------------------------------------------------------------


class CreateObject(Message, tag=30):
    rid: int
    object_id: bytes
    nbytes: int
    owner: Address


class ObjectCreated(Message, tag=31):
    """Write to ``offset`` of the arena. ``path``: the object did not fit; write to this file instead."""

    rid: int
    offset: int
    path: str = ""


class SealObject(Message, tag=32):
    """Complete; the creator's write access ends and the primary copy is pinned until ``FreeObjects``."""

    object_id: bytes
    refs: list[ObjectRefInfo] = []


class AbortObject(Message, tag=33):
    object_id: bytes


class PinObjects(Message, tag=34):
    """Make the objects readable (restore or pull them if need be) and keep them in place for this connection."""

    rid: int
    object_ids: list[bytes]
    #: One (node of the primary copy, bytes) per object; empty: all are of this node.
    sources: list[tuple[bytes, int]] = []
    #: Whose turn it is when much is to be fetched from other nodes.
    urgency: int = 0  # 0: somebody is blocked in get, 1: arguments of a task, 2: ahead of need


class ObjectsPinned(Message, tag=35):
    """One (offset, nbytes) per object asked; offset -1: lost; -2: read ``paths[i]`` instead (an object larger than the store).

    A PinObjects that is cancelled is answered all the same, with what it has got so far.
    """

    rid: int
    places: list[tuple[int, int]]
    paths: list[str] = []
    #: (index, kind, message) of those that are not lost, but for whose copy this node has no room.
    refused: list[tuple[int, str, str]] = []


class UnpinObjects(Message, tag=36):
    object_ids: list[bytes]


class FreeObjects(Message, tag=37):
    """The owner holds no reference any more. To the node of the primary copy, whose agent tells those that have other copies."""

    object_ids: list[bytes]
    #: Drop it if what is there is a copy: alone between agents, when the primary is gone.
    copies: bool = True
    #: Drop it if it is there as the primary copy: alone when that is another one (another attempt's, or it has moved).
    primaries: bool = True


class PrimaryCopy(msgspec.Struct, array_like=True, gc=False):
    """A stored object, as the node of its primary copy knows it."""

    object_id: bytes
    nbytes: int
    owner: Address
    refs: list[ObjectRefInfo] = []


class TakeOver(Message, tag=165):
    """Node agent to node agent: I (``source``) leave the cluster; make these primary copies yours, and tell their owners."""

    rid: int
    source: bytes
    copies: list[PrimaryCopy]


class TakenOver(Message, tag=166):
    """Those that lie here now."""

    rid: int
    object_ids: list[bytes]


class ObjectsMoved(Message, tag=167):
    """New holder to the agent of the owner's node to the owner: these (id, bytes) lie on ``node_id`` now; free those on ``source``."""

    owner: Address
    source: bytes
    node_id: bytes
    objects: list[tuple[bytes, int]]


class WatchProcess(Message, tag=173):
    """To the agent of a process's node: ``node_id`` has objects of it, or lends it adopted ones; send ListOwned there when it has ended.

    Sent by that node, and by the process itself.
    """

    rid: int
    process: bytes
    node_id: bytes
    #: What the ids of its objects have in common; b"" if none lies there.
    maker: bytes


class ListOwned(Message, tag=174):
    """This process has ended. Which primary copies of it lie with you?"""

    rid: int
    owner: bytes


class OwnedList(Message, tag=175):
    rid: int
    objects: list[PrimaryCopy]


class NameHeir(Message, tag=171):
    """Agent of a node that leaves to the control store: who answers for my objects when I have left. Acked when others can be told."""

    rid: int
    node_id: bytes
    heir: bytes


class ObjectsSpilled(Message, tag=168):
    """Agent of ``node_id`` to the agent of the owner's node to the owner: these (id, URL) can be read there when that node has died."""

    owner: Address
    node_id: bytes
    objects: list[tuple[bytes, str]]


class SweepSpilled(Message, tag=169):
    """Control store to node agent: delete what a dead node has spilled and nobody holds; answered by what is left."""

    rid: int
    directory: str


class ListHeldFiles(Message, tag=170):
    """Node agent to node agent: in which files of this dead node's directory do objects of yours lie?"""

    rid: int
    directory: str


class HeldFiles(Message, tag=172):
    rid: int
    files: list[str]


class OwnedObject(msgspec.Struct, array_like=True, gc=False):
    object_id: bytes
    value: Value
    borrowers: list[tuple[Address, int]]


class AdoptObjects(Message, tag=38):
    """An owner that ends in good order hands to its node agent what others still hold; an agent whose node leaves, to another node's agent.

    A process has registered its agent with the owners of what is inside. The agent of another node does that itself before it answers.
    """

    rid: int
    objects: list[OwnedObject]
    #: The node that leaves; the objects are the receiver's if that names it as its heir.
    testator: bytes = b""


class PromoteCopy(Message, tag=39):
    """An owner to the agent of a node that may have a copy: the primary copy is gone, yours is it from now on. Acked if it is complete."""

    rid: int
    object_id: bytes
    owner: Address
    refs: list[ObjectRefInfo] = []
    #: Or take what the dead node has spilled: where it lies, "" if nowhere, and its size.
    spilled: str = ""
    nbytes: int = 0


# --- borrower <-> owner --------------------------------------------------------------------------------------------------------


#: Refusal of a read by an owner that leaves: its node agent has the object, or the agent of the node that ``Failed.detail`` names.
OWNER_LEFT = "OwnerLeft"


class GetObject(Message, tag=50):
    """Tell the value when it is ready. References inside it are registered for ``borrower`` before the answer leaves."""

    rid: int
    object_id: bytes
    borrower: Address


class ObjectValue(Message, tag=51):
    rid: int
    value: Value


class AddBorrower(Message, tag=52):
    """``borrower`` holds ``count`` more registrations of the object. Acked only while the object lives."""

    rid: int
    object_id: bytes
    borrower: Address
    count: int = 1
    #: All that the borrower has, told to the successor of an owner that was lost: not in addition to what that owner handed over.
    full: bool = False


class RemoveBorrower(Message, tag=53):
    object_id: bytes
    borrower: Address
    count: int


class ReportLost(Message, tag=54):
    """The object store of that node could not produce the object: find another copy, or compute it again.

    Old news, if its owner knows of another place by now.
    """

    object_id: bytes
    node_id: bytes


class PinForever(Message, tag=55):
    """The reference was pickled outside of shoal; nobody can count it any more."""

    object_id: bytes


# --- owner <-> executor ----------------------------------------------------------------------------------------------------------


class DefineTemplate(Message, tag=60):
    """``index`` means ``template`` in later PushTask messages of this connection."""

    index: int
    template: TaskTemplate


class BeginLease(Message, tag=61):
    lease_id: int
    owner: Address
    job_id: bytes
    resource_ids: dict[str, list[int]] = {}
    placement_group: bytes = b""
    bundle_index: int = -1


class PushTask(Message, tag=62):
    task_id: bytes
    template: int
    args: bytes
    deps: list[Dep] = []
    attempt: int = 0
    parent: bytes = b""  # task id of the submitting task, for recursive cancel
    name: str = ""
    #: The arguments were too large for a message: the last dep is an object that holds them.
    stored_args: bool = False


class TaskDone(Message, tag=63):
    task_id: bytes
    results: list[Value]  # one per return; one FAILED for all when the task raised
    duration_us: int = 0
    #: The task raised and the template's retry_exceptions says that it may run again.
    retry: bool = False
    #: Streaming: number of items that were sent.
    num_items: int = 0
    exiting: bool = False  # the worker takes no more tasks (max_calls)


class GeneratorItem(Message, tag=64):
    task_id: bytes
    index: int
    value: Value
    attempt: int = 0


class GeneratorConsumed(Message, tag=65):
    """The consumer has taken items up to ``count``; ``dropped``: it will take no more."""

    task_id: bytes
    count: int
    dropped: bool = False


class HandBack(Message, tag=66):
    """Executor to owner: these pushed tasks were not started and will not be."""

    task_ids: list[bytes]
    #: From an actor that moves to another node: send no more, and say so with AskHandBack behind what you have sent.
    moves: bool = False


class AskHandBack(Message, tag=67):
    """Owner to executor: hand back whatever is not started."""

    lease_id: int


class CancelTask(Message, tag=68):
    task_id: bytes
    force: bool
    recursive: bool


# --- process <-> control store: jobs, functions, key-values, nodes ------------------------------------------------------------------


class RegisterJob(Message, tag=80):
    """The same driver again gets the same job again, or Failed if that job is over, or its release and the cluster's do not go together."""

    rid: int
    driver: Address
    pid: int
    namespace: str
    entrypoint: str
    config: JobConfigRecord
    release: str = RELEASE


class JobConfigRecord(msgspec.Struct, array_like=True):
    """What every worker of the job needs before the first task."""

    env: dict[str, str]
    cwd: str
    sys_path: list[str]
    namespace: str = ""
    runtime_env: str = ""
    logging: str = ""  # JSON of LoggingConfig
    metadata: dict[str, str] = {}
    default_actor_lifetime: str = "non_detached"
    main_path: str = ""


class JobRegistered(Message, tag=81):
    rid: int
    job_id: bytes


class GetJob(Message, tag=82):
    rid: int
    job_id: bytes


class JobInfo(Message, tag=83):
    rid: int
    job_id: bytes
    config: JobConfigRecord


class JobFinished(Message, tag=84):
    """Driver to control store in good order; control store to node agents always: end the job's workers."""

    job_id: bytes


class WorkComes(Message, tag=177):
    """Control store to node agents: a job begins, or ran when the node joined, so that workers may be asked for."""


class PutFunction(Message, tag=85):
    function_id: bytes
    job_id: bytes
    blob: bytes


class GetFunction(Message, tag=86):
    """Answered when the function has arrived."""

    rid: int
    function_id: bytes


class FunctionBlob(Message, tag=87):
    rid: int
    blob: bytes


class KvPut(Message, tag=88):
    rid: int
    namespace: str
    key: bytes
    value: bytes
    overwrite: bool = True
    once: Once | None = None


class KvGet(Message, tag=89):
    rid: int
    namespace: str
    key: bytes


class KvValue(Message, tag=90):
    rid: int
    value: bytes | None  # KvPut: b"1" if added, b"" if it was there; KvDelete: likewise


class KvDelete(Message, tag=91):
    rid: int
    namespace: str
    key: bytes
    once: Once | None = None


class KvKeys(Message, tag=92):
    rid: int
    namespace: str
    prefix: bytes


class KvKeyList(Message, tag=93):
    rid: int
    keys: list[bytes]


class NodeRecord(msgspec.Struct, array_like=True):
    node_id: bytes
    address: str  # of the node agent
    hostname: str
    ip: str
    total: dict[str, int]  # fixed-point
    available: dict[str, int]
    labels: dict[str, str]
    alive: bool = True
    death_reason: str = ""
    name: str = ""
    #: Where other nodes reach it, ``tcp:HOST:PORT``; "": nowhere.
    endpoint: str = ""
    #: Why it leaves the cluster; "": it does not.
    draining: str = ""
    #: When it leaves at the latest, in seconds since the epoch; 0: it does not.
    leaves_at: float = 0.0
    #: Node whose agent answers, when this one has left, for what this one's agent did.
    heir: bytes = b""
    #: Whether the control store can connect to its endpoint; if not, others have it call back.
    reachable: bool = True
    #: The address from which the control store sees it come; "": it has not said.
    seen_at: str = ""
    #: Where it spills objects, if that outlives it: a URL, and its own directory below it; "": on its disk.
    spill_url: str = ""
    spill_directory: str = ""

    @property
    def takes_work(self) -> bool:
        """Whether anything new may be placed there."""
        return self.alive and not self.draining


class RegisterNode(Message, tag=94):
    """Acked. Failed("NodeDiedError"): the node was declared dead; it ends what it has and joins under a new id.

    Failed("ConnectionError"): its release and the cluster's do not go together.
    """

    rid: int
    node: NodeRecord
    #: It was registered before: it comes back, to this control store or to its successor.
    known: bool = False
    #: What it holds: (actor, incarnation), bundles by group, jobs. It is told to end what is not wanted any more.
    actors: list[tuple[bytes, int]] = []
    groups: dict[bytes, list[int]] = {}
    jobs: list[bytes] = []
    release: str = RELEASE


class Demand(msgspec.Struct, array_like=True, frozen=True):
    """Tasks and actors of one shape that wait for resources; ``resources`` are sorted by name, fixed-point."""

    resources: tuple[tuple[str, int], ...]
    count: int
    label_selector: tuple[tuple[str, str], ...] = ()


class GroupDemand(msgspec.Struct, array_like=True, frozen=True):
    """Placement groups of one kind that wait: the bundles that each of them still needs."""

    bundles: list[tuple[tuple[str, int], ...]]
    strategy: str
    count: int


class NodeResources(Message, tag=95):
    """Node agent to control store: what changed; at most a few times a second. None: as before."""

    node_id: bytes
    available: dict[str, int] | None
    total: dict[str, int] | None = None
    #: What waits here for resources, the largest counts of at most some tens of shapes.
    demands: list[Demand] | None = None


class ListNodes(Message, tag=96):
    """``fresh``: the control store asks each node agent before it answers, so that the figures are of now."""

    rid: int
    fresh: bool = True
    #: Tell, too, what waits for resources.
    demands: bool = False


class NodeList(Message, tag=97):
    rid: int
    nodes: list[NodeRecord]
    #: What waits for resources: in the cluster, or at the node that answers.
    demands: list[Demand] = []
    groups: list[GroupDemand] = []


class NodesChanged(Message, tag=99):
    """Control store to node agent: nodes that are new, have died, or have another total than before; all of them at first.

    Node agent to its processes: nodes that have died.
    """

    nodes: list[NodeRecord]
    #: These are all that live.
    whole: bool = False


class ControlStores(Message, tag=100):
    """Control store to node agent, and on to the processes of its node: where to look for it, if it is lost: here or at a standby's."""

    addresses: list[str]


class NodesUsed(Message, tag=154):
    """Control store to node agent: what is free on the other nodes, where that has changed."""

    #: A list of (node id, amounts that differ from the node's total), encoded once for all agents.
    figures: msgspec.Raw
    #: Seconds until the next word, at the earliest.
    pause_s: float


class ReportResources(Message, tag=98):
    """Control store to node agent; answered by NodeList with one entry."""

    rid: int


#: Why a node is drained.
DRAIN_IDLE, DRAIN_PREEMPTION = "idle termination", "preemption"


def describe_drain(reason: str, text: str) -> str:
    """Return how a drain is told to people (``NodeRecord.draining``)."""
    return f"{reason}: {text}" if text else reason


class DrainNode(Message, tag=160):
    """Anybody to control store: let this node leave in good order, within ``deadline_s`` seconds. Acked when it has begun.

    Asked again, it can only bring the deadline forward. Failed("ValueError"): there is no such node. Failed("RuntimeError"): DRAIN_IDLE was
    asked for, and it is not idle. DRAIN_PREEMPTION is never refused.
    """

    rid: int
    node_id: bytes
    reason: str
    text: str  # for people
    deadline_s: float


class Drain(Message, tag=161):
    """Control store to node agent: the same; the agent's answer decides."""

    rid: int
    reason: str
    text: str
    deadline_s: float
    #: The deadline in seconds since the epoch, for people.
    leaves_at: float


class NodeDrained(Message, tag=162):
    """Node agent to control store: nothing is left here that must stay; I end when you have acked this."""

    rid: int
    node_id: bytes
    #: As ``NodeRecord.draining``: this may be handled before the agent's answer to Drain.
    why: str


# --- process <-> control store: actors -----------------------------------------------------------------------------------------------


class CreateActor(Message, tag=110):
    """Acked once durable. Failed("ActorAlreadyExistsError") when the name is taken."""

    rid: int
    spec: ActorSpec
    #: Given: it is dead from the start (an argument of its constructor failed), so that every holder of a handle learns why.
    failed: Cause | None = None


ACTOR_PENDING, ACTOR_ALIVE, ACTOR_RESTARTING, ACTOR_DEAD = "PENDING", "ALIVE", "RESTARTING", "DEAD"


class SubscribeActor(Message, tag=111):
    """Answered by one ActorUpdate at once and one after every change."""

    actor_id: bytes


class UnsubscribeActor(Message, tag=112):
    actor_id: bytes


class ActorUpdate(Message, tag=113):
    actor_id: bytes
    state: str
    incarnation: int = 0
    address: Address | None = None
    cause: Cause | None = None
    restarts_left: int = 0


class KillActor(Message, tag=114):
    rid: int
    actor_id: bytes
    no_restart: bool
    once: Once | None = None


class ActorOutOfScope(Message, tag=115):
    """From the owner: no handle is left. The actor ends after the calls it has."""

    actor_id: bytes


class GetNamedActor(Message, tag=116):
    rid: int
    name: str
    namespace: str


class NamedActor(Message, tag=117):
    rid: int
    spec: ActorSpec


class ListNamedActors(Message, tag=118):
    rid: int
    namespace: str
    all_namespaces: bool


class NamedActorList(Message, tag=119):
    rid: int
    names: list[tuple[str, str]]  # (namespace, name)


class StartActor(Message, tag=120):
    """Control store to node agent: lease a worker for the shape and make it the actor.

    ``movable``: other nodes have bundles for it, too. Failed("NoRoom") when it would have to wait for the end of other actors.
    """

    rid: int
    spec: ActorSpec
    incarnation: int
    movable: bool = False


class BecomeActor(Message, tag=121):
    """Node agent to the chosen worker."""

    rid: int
    spec: ActorSpec
    incarnation: int
    resource_ids: dict[str, list[int]] = {}
    placement_group: bytes = b""
    bundle_index: int = -1


class ActorStarted(Message, tag=122):
    """Worker to node agent to control store. ``cause`` is set when ``__init__`` raised (init_failed) or the worker died."""

    rid: int
    address: Address | None
    cause: Cause | None = None


class ActorWorkerDied(Message, tag=123):
    """Node agent to control store."""

    actor_id: bytes
    incarnation: int
    cause: Cause


class StopActor(Message, tag=124):
    """Control store to node agent. ``graceful``: after the calls it has; otherwise SIGKILL."""

    actor_id: bytes
    graceful: bool
    cause: Cause


class CancelActorStart(Message, tag=125):
    """Control store to node agent: the actor is not wanted any more."""

    actor_id: bytes


class GetActor(Message, tag=126):
    """By id, for runtime context and restored handles; answered by NamedActor."""

    rid: int
    actor_id: bytes


# --- placement groups -------------------------------------------------------------------------------------------------------------------


class PlacementGroupSpec(msgspec.Struct, array_like=True):
    placement_group_id: bytes
    job_id: bytes
    bundles: list[dict[str, int]]  # fixed-point
    strategy: str
    name: str = ""
    detached: bool = False
    creator_actor: bytes = b""
    bundle_label_selector: list[dict[str, str]] = []
    namespace: str = ""
    #: STRICT_PACK: this node, if it has room.
    target_node: bytes = b""


class CreatePlacementGroup(Message, tag=140):
    rid: int
    spec: PlacementGroupSpec


class RemovePlacementGroup(Message, tag=141):
    rid: int
    placement_group_id: bytes


class WaitPlacementGroup(Message, tag=142):
    """Acked when all bundles are committed; Failed("TaskPlacementGroupRemoved") when removed before."""

    rid: int
    placement_group_id: bytes


class PlacementGroupRecord(msgspec.Struct, array_like=True):
    spec: PlacementGroupSpec
    state: str  # PENDING PREPARED CREATED REMOVED RESCHEDULING
    nodes: list[bytes]  # per bundle; b"" while not placed
    created_at: float = 0.0


class GetPlacementGroup(Message, tag=143):
    """By id, or by name within a namespace when the id is empty."""

    rid: int
    placement_group_id: bytes
    name: str = ""
    namespace: str = ""


class ListPlacementGroups(Message, tag=144):
    rid: int


class PlacementGroupList(Message, tag=145):
    rid: int
    groups: list[PlacementGroupRecord]


class PrepareBundles(Message, tag=146):
    """Control store to node agent, first phase. Acked when reserved, Failed when it does not fit now."""

    rid: int
    placement_group_id: bytes
    bundles: dict[int, dict[str, int]]


class CommitBundles(Message, tag=147):
    rid: int
    placement_group_id: bytes


class ReleaseBundles(Message, tag=148):
    """Give the reservation back; workers inside are killed. Acked when the resources are free again."""

    rid: int
    placement_group_id: bytes
    #: There is no such group any more: what waits for it, and what comes, is refused. Else its bundles go elsewhere.
    removed: bool = True


class ClusterChanged(Message, tag=149):
    """Node agent to control store: resources came free; pending actors and groups may fit now."""

    node_id: bytes


class WatchGroup(Message, tag=152):
    """Node agent to control store: tell me where the group's bundles lie, now and after every change, until it is removed."""

    placement_group_id: bytes


class GroupChanged(Message, tag=153):
    """Control store to node agent. ``state`` REMOVED: nothing more comes."""

    placement_group_id: bytes
    state: str
    #: Per bundle: what it holds, and its node; b"" while it has none.
    bundles: list[dict[str, int]] = []
    nodes: list[bytes] = []


class Watch(Message, tag=150):
    """Subscribe to a channel of published changes from ``after`` on ("nodes", "jobs", "actors")."""

    rid: int
    channel: str
    after: int = 0


class Published(Message, tag=151):
    channel: str
    sequence: int
    key: bytes
    payload: bytes


AnyMessage = (
    Ack | Failed | CancelRequest | Ping | IssueCertificate | CertificateIssued | RotateToken | TokenChanged
    | RegisterProcess | Registered | ProcessExiting | StopProcess | LogLines | NameProcess | FlushLogs | KillProcess
    | Dial | SocketReady | TakeSocket | CallBack | ExpectPair | LeaseSpilled | NodesChanged | NodesUsed | ControlStores
    | RequestLease | Backlog | LeaseGranted | ReturnLease | LeaseWanted | WorkerDied | WorkerBlocked | WorkerUnblocked | LeaseInfeasible
    | CreateObject | ObjectCreated | SealObject | AbortObject | PinObjects | ObjectsPinned | UnpinObjects | FreeObjects | AdoptObjects
    | PromoteCopy
    | GetObject | ObjectValue | AddBorrower | RemoveBorrower | ReportLost | PinForever
    | DefineTemplate | BeginLease | PushTask | TaskDone | GeneratorItem | GeneratorConsumed | HandBack | AskHandBack | CancelTask
    | RegisterJob | JobRegistered | GetJob | JobInfo | JobFinished | WorkComes | PutFunction | GetFunction | FunctionBlob
    | KvPut | KvGet | KvValue | KvDelete | KvKeys | KvKeyList
    | RegisterNode | NodeResources | ListNodes | NodeList | ReportResources | DrainNode | Drain | NodeDrained
    | TakeOver | TakenOver | ObjectsMoved | ObjectsSpilled | SweepSpilled | ListHeldFiles | HeldFiles | NameHeir
    | WatchProcess | ListOwned | OwnedList
    | CreateActor | SubscribeActor | UnsubscribeActor | ActorUpdate | KillActor | ActorOutOfScope | GetNamedActor | NamedActor
    | ListNamedActors | NamedActorList | StartActor | BecomeActor | ActorStarted | ActorWorkerDied | StopActor | CancelActorStart | GetActor
    | CreatePlacementGroup | RemovePlacementGroup | WaitPlacementGroup | GetPlacementGroup | ListPlacementGroups | PlacementGroupList
    | PrepareBundles | CommitBundles | ReleaseBundles | ClusterChanged | WatchGroup | GroupChanged | Watch | Published
)  # fmt: skip

#: Messages that answer a request of the receiver's. All other messages with a ``rid`` ask something.
REPLY_TYPES: frozenset[type[Message]] = frozenset({
    Ack, Failed, CertificateIssued, Registered, LeaseGranted, LeaseSpilled, SocketReady, TakenOver, OwnedList,
    ObjectCreated, ObjectsPinned, ObjectValue, JobRegistered, JobInfo, FunctionBlob, KvValue,
    KvKeyList, NodeList, HeldFiles, NamedActor, NamedActorList, ActorStarted, PlacementGroupList,
})  # fmt: skip
