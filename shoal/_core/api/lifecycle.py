"""``init``, ``shutdown`` and what happens by itself: start on first use, end at interpreter exit, on SIGTERM and after fork.

init -> checks -> local mode ---------------------------------------> install(LocalRuntime)
               -> a node that runs ---> worker.connect_driver -------> install(driver's runtime)
               -> process.start_head -> worker.connect_driver -------> install(driver's runtime)
shutdown -> install(None), runtime.shutdown(), head.stop() if it is ours
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from shoal._base import runtime as holder
from shoal._base.log_config import LoggingConfig
from shoal._base.runtime import Runtime
from shoal._base.settings import read_environment
from shoal._base.version import __version__

from .address import address_is_given, find_node
from .init_arguments import (
    check_keywords,
    check_kinds,
    check_none_given,
    checked_amount,
    checked_bytes,
    checked_node_labels,
    checked_resources,
    checked_spill_place,
    checked_store_bytes,
    checked_text,
    configure_logger,
    logger,
)
from .job import JobConfig, entrypoint, job_record
from .node_overrides import override_node
from .ray_context import RayContext

if TYPE_CHECKING:
    from types import FrameType

    from shoal._base.settings import Settings
    from shoal._core.process.session import SessionRecord
    from shoal._core.process.start import HeadProcess
    from shoal._core.wire.messages import JobConfigRecord


@dataclass
class _Session:
    """What this driver started or joined."""

    runtime: Runtime
    context: RayContext
    #: None in local mode, and in a session that others have started.
    head: HeadProcess | None


_lock = threading.RLock()
_session: _Session | None = None
_hooked = False
#: The signal mask of a thread that is forking.
_fork = threading.local()


def init(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    resources: dict[str, float] | None = None,
    labels: dict[str, str] | None = None,
    object_store_memory: int | None = None,
    local_mode: bool = False,
    ignore_reinit_error: bool = False,
    include_dashboard: bool | None = None,
    dashboard_host: str = "127.0.0.1",
    dashboard_port: int | None = None,
    job_config: JobConfig | None = None,
    configure_logging: bool = True,
    logging_level: int | str | None = None,
    logging_format: str | None = None,
    logging_config: LoggingConfig | None = None,
    log_to_driver: bool | None = None,
    namespace: str | None = None,
    runtime_env: dict[str, Any] | None = None,
    enable_resource_isolation: bool = False,
    cgroup_path: str | None = None,
    system_reserved_cpu: float | None = None,
    system_reserved_memory: int | None = None,
    proxy_server_url: str | None = None,
    **kwargs: Any,
) -> RayContext:
    """Join a cluster, or start a session on this machine; afterwards tasks and actors run in worker processes.

    Blocks until the first task can be submitted. The job ends with ``shutdown()``, at the end of the ``with`` block of the returned
    context, or with this process, however that ends; so does a session that was started here. A cluster that was joined goes on.

    Args:
        address: None: that in RAY_ADDRESS, else the cluster that ``shoal start`` has started on this machine last, else a new session.
            "auto": the same, but one that runs already, another driver's session if need be. "local": a new session.
            "HOST:PORT": the cluster whose control store listens there; a node of it must run on this machine.
        num_cpus: CPUs to hand out; None means those that this process may use.
        num_gpus: GPUs to hand out; None means those that are found.
        resources: other resources by name.
        labels: labels of the node, for ``label_selector``.
        object_store_memory: bytes of shared memory for objects; None means 30 % of the machine's memory.
        local_mode: run everything in this process, call by call, for debugging.
        ignore_reinit_error: return the running session instead of raising when there is one.
        job_config: more settings of the job.
        configure_logging: give the logger "shoal" a handler and ``logging_level``.
        logging_level: of that logger; None means "info", unless RAY_LOGGER_LEVEL says otherwise.
        logging_config: format and level of all log records in driver and workers.
        log_to_driver: show what workers print; None means yes, unless RAY_LOG_TO_DRIVER=0.
        namespace: of named actors; None makes one that no other job has.
        runtime_env: environment of the job's tasks and actors; None means that of ``job_config``, else the JSON in RAY_RUNTIME_ENV.

    Raises:
        RuntimeError: a session runs already; or an unknown keyword.
        ConnectionError: what ``address`` or RAY_ADDRESS asks for cannot be joined; the message says why.
        ValueError: a bad value.
        TypeError: a value of the wrong type.
    """
    global _session
    check_keywords(kwargs, init.__kwdefaults__ or ())
    with _lock:
        if holder._current is not None:
            return _reinit(ignore_reinit_error)
        check_kinds(job_config, logging_config, runtime_env)
        checked_text("namespace", namespace)
        settings = read_environment()
        if configure_logging:
            configure_logger(settings.logger_level if logging_level is None else logging_level, logging_format)
        record = job_record(
            job_config=job_config, namespace=namespace, runtime_env=runtime_env, logging_config=logging_config, environ=os.environ
        )
        node: dict[str, Any] = {
            "num_cpus": checked_amount("num_cpus", num_cpus),
            "num_gpus": checked_amount("num_gpus", num_gpus),
            "resources": checked_resources(resources or {}),
            "labels": checked_node_labels(labels),
            "object_store_bytes": checked_store_bytes(object_store_memory),
            "memory_bytes": checked_bytes("_memory", kwargs.get("_memory")),
            "node_name": checked_text("_node_name", kwargs.get("_node_name")),
            "node_ip": checked_text("_node_ip_address", kwargs.get("_node_ip_address")) or "127.0.0.1",
            "temp_dir": checked_text("_temp_dir", kwargs.get("_temp_dir")),
            "spill_dir": checked_spill_place(kwargs.get("object_spilling_directory"), kwargs.get("_system_config")),
        }
        override_node(node, os.environ)
        if local_mode and address not in (None, "local"):
            raise ValueError(f"local_mode=True runs everything in this process and joins no cluster; leave out address={address!r}.")
        joined = None if local_mode else find_node(address)
        head: HeadProcess | None = None
        runtime: Runtime
        if local_mode:
            from .local_mode import LocalRuntime

            runtime = LocalRuntime(record, settings, node)
        else:
            own_entry = {"worker_entry": kwargs["_worker_entry"]} if kwargs.get("_worker_entry") else {}
            if joined is None:
                from shoal._core.process.options import HeadOptions
                from shoal._core.process.start import start_head

                head = start_head(HeadOptions(**node, **own_entry, settings=settings))
                joined = head.session.read_record()
            else:
                described: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus, "resources": resources, "labels": labels}
                described |= {"object_store_memory": object_store_memory, **own_entry}
                names = ("_system_config", "_node_name", "_memory", "_node_ip_address", "object_spilling_directory")
                described |= {name: kwargs.get(name) for name in names}
                check_none_given(joined, described)
            try:
                runtime = _connect(joined, record, settings, settings.log_to_driver if log_to_driver is None else bool(log_to_driver))
            except BaseException:
                if head is not None:
                    head.stop()
                raise
        context = RayContext(_address_info(runtime, joined), __version__, shutdown)
        _session = _Session(runtime, context, head)
        holder.install(runtime)
        _hook_process_end()
    if logging_config is not None:
        logging_config.apply()
    return context


def shutdown(*, wait_for_processes: bool = False) -> None:
    """End the session: its tasks, actors, objects and processes. Idempotent; runs by itself when the interpreter exits.

    References and handles of the session cannot be used afterwards; remote functions and actor classes can, after the next ``init``.

    Args:
        wait_for_processes: accepted for Ray's sake; it always waits until the session's processes are gone.
    """
    global _session
    with _lock:
        session, _session = _session, None
        if session is None:
            return
        holder.install(None)
        try:
            session.runtime.shutdown()
        finally:
            if session.head is not None:
                session.head.stop()


def is_initialized() -> bool:
    """Tell whether this process belongs to a session. No side effect."""
    return holder._current is not None


def ensure_runtime() -> Runtime:
    """Return the process's runtime; without one, join the cluster in RAY_ADDRESS or start a session, as ``init`` does.

    Raises:
        RuntimeError: in a process forked from one of a session, or with RAY_ENABLE_AUTO_CONNECT=0: it has to call ``init`` itself.
    """
    runtime = holder._current
    if runtime is None:
        if holder.forked:  # a pool of forked children must not become a crowd of sessions that nobody asked for
            raise RuntimeError(holder.FORKED)
        if not read_environment().auto_init:
            raise RuntimeError(
                "shoal has not been started in this process. Call shoal.init() first: RAY_ENABLE_AUTO_CONNECT=0 forbids to start it at its "
                "first use."
            )
        # Not whatever cluster runs on this machine: who did not say that he wants one may not know of it.
        init(None if address_is_given(os.environ) else "local", ignore_reinit_error=True)
        runtime = holder.current()
    return runtime


def _reinit(ignore: bool) -> RayContext:
    if not ignore:
        raise RuntimeError(
            "shoal is initialized in this process already. Call shoal.shutdown() first, or give ignore_reinit_error=True to go on with the "
            "session that runs."
        )
    logger.info("Going on with the session that runs: init() was called before.")
    if _session is not None:
        return _session.context
    return RayContext(_address_info(holder.current(), None), __version__, shutdown)


def _connect(joined: SessionRecord, record: JobConfigRecord, settings: Settings, log_to_driver: bool) -> Runtime:
    """Make this process a driver of the session, or of the cluster that this node belongs to."""
    from shoal._core.process.session import open_session
    from shoal._core.transport import RequestFailed
    from shoal._core.worker.driver import connect_driver

    try:
        return connect_driver(
            agent_address=joined.agent_address,
            control_address=joined.control_address,
            session_dir=joined.session_dir,
            tokens=open_session(joined.session_dir).tokens(),
            job=record,
            settings=settings,
            entrypoint=entrypoint(),
            log_to_driver=log_to_driver,
        )
    except RequestFailed as error:  # the cluster does not take this driver
        raise ConnectionError(error.message) from None


def _address_info(runtime: Runtime, joined: SessionRecord | None) -> dict[str, Any]:
    control_store = runtime.control_address.removeprefix("tcp:")
    agent = joined.agent_address if joined is not None else runtime.address.address
    return {
        "address": control_store,
        "gcs_address": control_store,
        "node_id": runtime.node_id.hex(),
        "node_ip_address": joined.node_ip if joined is not None else "127.0.0.1",
        "object_store_address": agent,
        "raylet_socket_name": agent,
        "redis_address": None,
        "session_dir": runtime.session_dir,
        "webui_url": "",
        "metrics_export_port": None,
        "dashboard_agent_listen_port": None,
    }


def _hook_process_end() -> None:
    """End the session with the interpreter, and let SIGTERM end the interpreter in good order. Once per process."""
    global _hooked
    if not _hooked:
        _hooked = True
        atexit.register(shutdown)
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit_on_sigterm)


def _exit_on_sigterm(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(signum)


def _forget_session() -> None:
    """In a forked child: the session belongs to the parent, whose threads do not exist here."""
    global _session, _lock
    session, _session, _lock = _session, None, threading.RLock()
    if holder._current is not None:
        holder.forked = True
        holder._current.abandon()
        holder.install(None)
    if session is not None and session.head is not None:
        session.head.abandon()
    if signal.getsignal(signal.SIGTERM) is _exit_on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _unblock_sigterm()


def _block_sigterm() -> None:
    """Before a fork. A child that gets SIGTERM dies of it, as it would without us: in its first moments Python drops signals that have a
    handler, and later a child that waits for a lock of another process would not notice one. ``Pool.terminate()`` would wait for ever.
    """
    if signal.getsignal(signal.SIGTERM) is _exit_on_sigterm:
        _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _unblock_sigterm() -> None:
    mask = _fork.__dict__.pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


os.register_at_fork(before=_block_sigterm, after_in_parent=_unblock_sigterm, after_in_child=_forget_session)
