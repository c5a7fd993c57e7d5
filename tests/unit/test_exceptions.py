"""The tree of errors: names, bases, texts, pickling."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys

import pytest

from shoal import exceptions
from shoal._core.serialization import actor_died, describe_cause, error_named, serialize_error, worker_crashed
from shoal._core.wire.messages import Cause
from shoal.exceptions import RAY_EXCEPTION_TYPES, RayError, RayTaskError

NAMES = """
RayError RayTaskError UnserializableException TaskCancelledError WorkerCrashedError RayActorError ActorDiedError
ActorUnavailableError GetTimeoutError ObjectLostError ObjectFetchTimedOutError ReferenceCountingAssertionError ObjectFreedError
OwnerDiedError ObjectReconstructionFailedError ObjectStoreFullError OutOfDiskError OutOfMemoryError NodeDiedError
LocalRayletDiedError RaySystemError RpcError RuntimeEnvSetupError TaskUnschedulableError ActorUnschedulableError
TaskPlacementGroupRemoved ActorPlacementGroupRemoved PendingCallsLimitExceeded AsyncioActorExit ObjectRefStreamEndOfStreamError
StreamingGeneratorReplayInconsistentError OufOfBandObjectRefSerializationException PlasmaObjectNotAvailable
ActorAlreadyExistsError ActorHandleNotFoundError CrossLanguageError AuthenticationError UserCodeException RayChannelError
RayChannelTimeoutError RayCgraphCapacityExceeded RayDirectTransportError
"""

INSTANCES = [
    RayTaskError("f", "Traceback...", ValueError("x"), pid=1, ip="1.2.3.4"),
    exceptions.TaskCancelledError("ab12"),
    exceptions.RayActorError("ab", "text", True, True),
    exceptions.ActorDiedError("it is dead", actor_id="ab"),
    exceptions.ActorDiedError(RayTaskError("A.__init__", "Traceback...", ValueError("x"))),
    exceptions.ActorUnavailableError("restarting", b"\x01\x02"),
    exceptions.GetTimeoutError("too late"),
    exceptions.ObjectLostError("ff", b"address", "file.py:1"),
    exceptions.ReferenceCountingAssertionError("ff", None, ""),
    exceptions.ObjectReconstructionFailedError("ff", reason="put", reason_message="It was made by put."),
    exceptions.OutOfMemoryError("too much"),
    exceptions.RaySystemError("oops", "traceback"),
    exceptions.RpcError("gone", 14),
    exceptions.RuntimeEnvSetupError("no pip"),
    exceptions.TaskUnschedulableError("no such node"),
    exceptions.ActorAlreadyExistsError("taken"),
    exceptions.PendingCallsLimitExceeded(),
]


def test_every_name_is_there():
    assert set(NAMES.split()) <= set(exceptions.__all__)
    assert {cls.__name__ for cls in RAY_EXCEPTION_TYPES} == set(NAMES.split())


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("GetTimeoutError", TimeoutError),
        ("RayChannelTimeoutError", TimeoutError),
        ("RayChannelTimeoutError", exceptions.RayChannelError),
        ("ReferenceCountingAssertionError", AssertionError),
        ("OwnerDiedError", exceptions.ObjectLostError),
        ("ObjectReconstructionFailedError", exceptions.ObjectLostError),
        ("ActorDiedError", exceptions.RayActorError),
        ("ActorUnavailableError", exceptions.RayActorError),
        ("ActorAlreadyExistsError", ValueError),
        ("ActorHandleNotFoundError", ValueError),
    ],
)
def test_bases(name, base):
    assert issubclass(getattr(exceptions, name), base)
    assert issubclass(getattr(exceptions, name), RayError)


@pytest.mark.parametrize(
    "cls", [cls for cls in RAY_EXCEPTION_TYPES if cls not in (RayTaskError,) and not issubclass(cls, exceptions.ObjectLostError)]
)
def test_each_class_takes_a_text(cls):
    error = cls(error_message="text") if cls is exceptions.TaskCancelledError else cls("text")
    if cls is exceptions.RayActorError:
        error = cls(error_msg="text")
    assert "text" in str(error)


@pytest.mark.parametrize("cls", [cls for cls in RAY_EXCEPTION_TYPES if issubclass(cls, exceptions.ObjectLostError)])
def test_lost_objects_take_a_text_in_place_of_an_address(cls):
    error = cls("ab12", "because of this")
    assert "ab12" in str(error)
    assert "because of this" in str(error)
    assert "ab12" in str(cls("ab12"))


@pytest.mark.parametrize("error", INSTANCES, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling_with_cause_and_notes(error):
    try:
        try:
            {}["k"]
        except KeyError as key_error:
            error.add_note("a note")
            raise error from key_error
    except RayError as raised:
        back = pickle.loads(pickle.dumps(raised))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.args == error.args or isinstance(error, RayTaskError)
    assert {key: repr(value) for key, value in vars(back).items()} == {key: repr(value) for key, value in vars(error).items()}
    assert isinstance(back.__cause__, KeyError)
    assert back.__notes__ == ["a note"]
    error.__dict__.pop("__notes__")


# --- RayTaskError(TheirClass) -----------------------------------------------------------------------------------------------------


def dual(cause, **facts):
    return RayTaskError("mod.f", "Traceback (most recent call last):\nE: x\n", cause, pid=7, ip="10.0.0.1", **facts).as_instanceof_cause()


class TwoArguments(Exception):
    code = 0

    def __init__(self, a, b):
        super().__init__(a)
        self.b = b
        self.code = 5

    def double(self):
        return self.b * 2

    @property
    def described(self):
        return f"b is {self.b}"


class Slotted(Exception):
    __slots__ = ("__hidden", "detail")

    def __init__(self, detail):
        self.detail = detail
        self.__hidden = 1

    def hidden(self):
        return self.__hidden


class OwnBase(BaseException):
    pass


class Final(Exception):
    def __init_subclass__(cls):
        raise TypeError("do not subclass")


def test_the_error_is_of_both_classes():
    error = dual(ValueError("x"))
    assert type(error).__name__ == "RayTaskError(ValueError)"
    assert isinstance(error, ValueError)
    assert isinstance(error, RayTaskError)
    assert error.args == (error.cause,)
    assert isinstance(error.cause, ValueError)
    assert error.as_instanceof_cause() is error


def test_attributes_methods_and_properties_of_the_users_class():
    error = dual(TwoArguments(1, 2))
    assert (error.b, error.code, error.double(), error.described) == (2, 5, 4, "b is 2")
    assert (dual(Slotted("d")).detail, dual(Slotted("d")).hidden()) == ("d", 1)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        error.nothing_like_it  # noqa: B018
    assert error.pid == 7


def test_built_in_errors_keep_their_fields():
    os_error = dual(FileNotFoundError(2, "no such file", "/tmp/x"))
    assert (os_error.errno, os_error.filename) == (2, "/tmp/x")
    assert dual(SystemExit(3)).code == 3
    assert dual(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why")).reason == "why"
    assert dual(StopIteration(4)).value == 4


@pytest.mark.parametrize(
    "cause", [KeyboardInterrupt(), SystemExit(1), OwnBase("x"), GeneratorExit()], ids=lambda cause: type(cause).__name__
)
def test_base_exceptions_are_caught_by_both_names(cause):
    with pytest.raises(type(cause)):
        raise dual(cause)
    with pytest.raises(RayTaskError):
        raise dual(cause)


def test_groups():
    error = dual(ExceptionGroup("g", [ValueError(1), TypeError(2)]))
    assert isinstance(error, ExceptionGroup)
    assert [type(member) for member in error.exceptions] == [ValueError, TypeError]
    seen = []
    try:
        raise error
    except* ValueError as group:
        seen += group.exceptions
    except* TypeError as group:
        seen += group.exceptions
    assert [str(member) for member in seen] == ["1", "2"]


def test_a_group_with_a_base_exception():
    error = dual(BaseExceptionGroup("g", [KeyboardInterrupt(), ValueError(1)]))
    assert isinstance(error, BaseExceptionGroup)
    assert isinstance(error.exceptions[0], KeyboardInterrupt)
    assert isinstance(pickle.loads(pickle.dumps(error)), BaseExceptionGroup)


def test_a_class_that_cannot_be_subclassed_stays_plain_with_a_warning(caplog):
    error = dual(Final("x"))
    assert type(error) is RayTaskError
    assert isinstance(error.cause, Final)
    assert "cannot be made (do not subclass)" in caplog.text


@pytest.mark.parametrize(
    "cause",
    [
        ValueError("x"),
        TwoArguments(1, 2),
        Slotted("d"),
        OwnBase(),
        SystemExit(3),
        OSError(2, "a", "b"),
        ExceptionGroup("g", [TwoArguments(1, 2)]),
    ],
    ids=lambda cause: type(cause).__name__,
)
def test_the_error_survives_pickling(cause):
    error = dual(cause)
    error.__cause__ = TwoArguments(3, 4)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert repr(back.cause) == repr(cause)
    assert back.__cause__.b == 4


def test_the_text_is_the_users_traceback_then_where_it_ran():
    text = str(dual(ValueError("x"), attempt=2, max_attempts=4, actor_repr="A(1)"))
    assert text == ("Traceback (most recent call last):\nE: x\n    in task mod.f of actor A(1) (pid=7, ip=10.0.0.1), attempt 2 of 4")


def test_classes_are_made_once_and_not_kept_for_ever():
    assert type(dual(ValueError(1))) is type(dual(ValueError(2)))
    from shoal.exceptions import _dual_class

    for _ in range(1000):
        dual(type("Dynamic", (Exception,), {})("x"))
    assert _dual_class.cache_info().currsize <= 256
    _dual_class.cache_clear()
    gc.collect()
    assert not [cls for cls in Exception.__subclasses__() if cls.__name__ == "Dynamic"]


def test_the_module_needs_the_standard_library_only():
    code = "import sys; import importlib.util as u; s = u.spec_from_file_location('e', sys.argv[1]); m = u.module_from_spec(s)\n"
    code += "sys.modules['e'] = m; s.loader.exec_module(m)\n"
    code += "print([n for n in sys.modules if n.split('.')[0] in ('shoal', 'cloudpickle', 'msgspec', 'numpy')])"
    done = subprocess.run([sys.executable, "-S", "-c", code, exceptions.__file__], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- from facts to texts ----------------------------------------------------------------------------------------------------------


def test_a_crash_tells_signal_hint_and_log():
    cause = Cause("worker_exit", signal=11, pid=42, log_tail=[f"line {i}" for i in range(100)])
    text = str(worker_crashed(cause, task_name="mod.f", attempt=4, max_attempts=4))
    assert "The worker died while it ran task mod.f, attempt 4 of 4." in text
    assert "Its process (pid 42) was ended by signal 11 (SIGSEGV)" in text
    assert "    line 99" in text
    assert "line 79\n" not in text
    assert "max_retries" in text


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (Cause("worker_exit", exit_code=3, pid=5), "ended with exit code 3"),
        (Cause("worker_exit", exit_code=0), "left without an error"),
        (Cause("worker_exit", signal=63), "signal 63"),
        (Cause("worker_exit"), "nobody saw how"),
        (Cause("worker_exit", message="The disk melted"), "The disk melted."),
    ],
)
def test_every_way_to_die_has_words(cause, expected):
    assert expected in describe_cause(cause)


def test_the_kind_decides_the_class():
    assert type(worker_crashed(Cause("oom", "It used 3 GiB of 4 GiB"), task_name="f")) is exceptions.OutOfMemoryError
    assert type(worker_crashed(Cause("node_died", node_id=b"\xab"), task_name="f")) is exceptions.NodeDiedError
    assert type(worker_crashed(Cause("worker_exit"), task_name="f")) is exceptions.WorkerCrashedError


def test_a_dead_actor_tells_who_it_was():
    error = actor_died(Cause("killed", pid=5), actor_id="ab12", class_name="mod.A", name="n", namespace="ns", ip="10.0.0.1")
    for part in ("class_name: mod.A", "actor_id: ab12", "pid: 5", "name: n", "namespace: ns", "ip: 10.0.0.1", "shoal.kill()"):
        assert part in str(error)
    assert error.actor_id == "ab12"
    assert not error.actor_init_failed


def test_an_actor_whose_init_raised():
    try:
        raise TwoArguments(1, 2)
    except TwoArguments as raised:
        blob = serialize_error(raised, function_name="A.__init__", pid=1, ip="i", attempt=1, max_attempts=1)
    error = actor_died(Cause("init_failed", error=blob), actor_id="ab", class_name="A")
    assert error.actor_init_failed
    assert "raise TwoArguments(1, 2)" in str(error)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ValueError", ValueError),
        ("ActorAlreadyExistsError", exceptions.ActorAlreadyExistsError),
        ("OwnerDiedError", exceptions.OwnerDiedError),
        ("TaskCancelledError", exceptions.TaskCancelledError),
        ("RayActorError", exceptions.RayActorError),
        ("ActorDiedError", exceptions.ActorDiedError),
        ("print", exceptions.RaySystemError),
    ],
)
def test_a_failed_request_names_its_error(kind, expected):
    error = error_named(kind, "the text", "ab")
    assert type(error) is expected
    assert "the text" in str(error)
