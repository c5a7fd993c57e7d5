"""However a program is started, its functions, classes and modules reach the workers, and its end is the end of its session.

Each program is a real one in a process of its own; it must print ``ok`` as its last line, and end with status 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(90)]

REPOSITORY = Path(__file__).parents[2]
SECONDS = 60

#: Uses what a program may use: a function and a class of its own, a class as argument and result, another module beside it.
PROGRAM = """
import os
import shoal

class Point:
    def __init__(self, x):
        self.x = x
    def __eq__(self, other):
        return type(other) is type(self) and other.x == self.x

@shoal.remote
def moved(point, by=1):
    assert type(point) is Point
    return Point(point.x + by), os.getpid()

@shoal.remote
class Track:
    def __init__(self):
        self.points = []
    def add(self, point):
        self.points.append(point)
        return self.points

def use_shoal():
    shoal.init(num_cpus=2, object_store_memory=100 << 20)
    try:
        point, pid = shoal.get(moved.remote(Point(1)), timeout=30)
        assert pid != os.getpid()
        assert point == Point(2), point
        track = Track.remote()
        assert shoal.get(track.add.remote(shoal.put(point)), timeout=30) == [Point(2)]
        assert shoal.get([moved.remote(Point(i)) for i in range(20)], timeout=30)[19][0] == Point(20)
    finally:
        shoal.shutdown()
"""
RUN = "\nuse_shoal()\nprint('ok')\n"
GUARDED = "\nif __name__ == '__main__':\n    use_shoal()\n    print('ok')\n"
#: As above, with a module of the program's own beside it.
WITH_A_MODULE = (
    PROGRAM
    + """
from companion import Shape, area
@shoal.remote
def area_of(shape):
    import companion
    assert type(shape) is companion.Shape
    return area(shape), Shape(7)
def use_companion():
    shoal.init(num_cpus=1, object_store_memory=100 << 20)
    assert shoal.get(area_of.remote(Shape(3)), timeout=30) == (9, Shape(7))
    assert shoal.get(shoal.remote(area).remote(Shape(4)), timeout=30) == 16
    shoal.shutdown()
"""
)
COMPANION = """
from dataclasses import dataclass
@dataclass
class Shape:
    side: int
def area(shape):
    return shape.side ** 2
"""


def run(*command, text=None, cwd=None, path=(), check=True):
    """Run a program whose interpreter finds shoal; it must end well, in good time, with "ok"."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *map(str, path)])}
    done = subprocess.run(
        list(map(str, command)), input=text, capture_output=True, text=True, timeout=SECONDS, cwd=cwd, env=environment, check=False
    )
    if check:
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1:] == ["ok"], (done.stdout, done.stderr)
    return done


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)


@pytest.mark.parametrize("end", [RUN, GUARDED], ids=["bare", "guarded"])
def test_script(tmp_path, end):
    """Without the guard nothing runs twice: workers never run the driver's script."""
    write(tmp_path, prog="print('begins')" + PROGRAM + end)
    assert run(sys.executable, tmp_path / "prog.py").stdout.split() == ["begins", "ok"]


def test_command_line_argument():
    run(sys.executable, "-c", PROGRAM + RUN)


def test_standard_input(tmp_path):
    run(sys.executable, text=PROGRAM + RUN, cwd=tmp_path)
    run(sys.executable, "-", text=PROGRAM + RUN, cwd=tmp_path)


@pytest.mark.parametrize("flags", [["-O"], ["-OO"], ["-P"], ["-B", "-u"], ["-X", "dev"], ["-X", "utf8"], ["-W", "error"]], ids=" ".join)
def test_interpreter_options(tmp_path, flags):
    write(tmp_path, prog=PROGRAM.replace("assert ", "assert not __debug__ or ") + RUN)
    done = run(sys.executable, *flags, tmp_path / "prog.py")
    assert "Warning" not in done.stderr


def test_options_that_change_code_hold_in_workers():
    code = """
        import sys, shoal
        @shoal.remote
        def flags():
            return sys.flags.optimize, sys.flags.dont_write_bytecode, __debug__, bool(flags.__doc__)
        shoal.init(num_cpus=1, object_store_memory=100 << 20)
        assert_equal = shoal.get(flags.remote())
        print("ok" if assert_equal == (1, 1, False, False) else assert_equal)
    """
    run(sys.executable, "-O", "-B", "-c", textwrap.dedent(code))


def test_isolated_mode(tmp_path):
    """-I ignores PYTHONPATH and the script's folder; the program says itself where shoal is, and so it is found by head and workers."""
    write(tmp_path, prog=f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n" + PROGRAM + RUN)
    run(sys.executable, "-I", tmp_path / "prog.py", cwd=tmp_path)


def test_module_beside_the_script(tmp_path):
    write(tmp_path, prog=WITH_A_MODULE + "\nuse_companion()" + RUN, companion=COMPANION)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, tmp_path / "prog.py", cwd=elsewhere)
    run(sys.executable, "-P", tmp_path / "prog.py", cwd=elsewhere, path=[tmp_path])


def test_relative_script_after_chdir(tmp_path):
    """``__file__`` is made absolute when the interpreter starts; a relative entry of ``sys.path`` is not, and must not be taken anew."""
    (tmp_path / "code").mkdir()
    (tmp_path / "data").mkdir()
    leave = f"\nimport os\nos.chdir({str(tmp_path / 'data')!r})\nuse_companion()"
    write(tmp_path / "code", prog=WITH_A_MODULE + leave + RUN, companion=COMPANION)
    run(sys.executable, "code/prog.py", cwd=tmp_path)
    run(sys.executable, "prog.py", cwd=tmp_path / "code")


def test_module_of_a_package(tmp_path):
    """With ``-m`` the module is ``__main__``; imported by the package's own ``__main__`` it has its name, and workers import it by that."""
    package = tmp_path / "package"
    package.mkdir()
    inside = WITH_A_MODULE.replace("from companion", "from .companion").replace("import companion", "from package import companion")
    write(package, __init__="", module=inside + "\nif __name__ == '__main__':\n    use_companion()" + GUARDED, companion=COMPANION)
    write(package, __main__="from package import module\nmodule.use_shoal()\nmodule.use_companion()\nprint('ok')\n")
    run(sys.executable, "-m", "package.module", cwd=tmp_path)
    run(sys.executable, "-m", "package", cwd=tmp_path)


def test_zip_application(tmp_path):
    """Functions and classes of ``__main__`` and of the modules in the archive work in the workers."""
    archive = tmp_path / "prog.pyz"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("__main__.py", WITH_A_MODULE + "\nuse_companion()" + RUN)
        file.writestr("companion.py", COMPANION)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, archive, cwd=elsewhere)
    run(sys.executable, "prog.pyz", cwd=tmp_path)


def test_thread_other_than_the_main_one():
    run(sys.executable, "-c", PROGRAM + "\nimport threading\nt = threading.Thread(target=use_shoal)\nt.start()\nt.join()\nprint('ok')\n")


def test_thread_that_the_program_leaves_behind():
    """The session is started in a thread, used in another, and ends with the program, which says nothing of it."""
    code = """
        import threading
        def start():
            shoal.init(num_cpus=1, object_store_memory=100 << 20)
        def use():
            assert shoal.get(moved.remote(Point(1)), timeout=30)[0] == Point(2)
            print("ok")
        for step in (start, use):
            thread = threading.Thread(target=step)
            thread.start()
            thread.join()
    """
    run(sys.executable, "-c", PROGRAM + textwrap.dedent(code))


def test_running_event_loop():
    """As in a notebook: init, get and await inside a coroutine of the main thread."""
    code = """
        import asyncio
        async def main():
            use_shoal()
            shoal.init(num_cpus=1, object_store_memory=100 << 20)
            (point, _), (other, _) = await asyncio.gather(moved.remote(Point(1)), moved.remote(Point(2)))
            assert (point, other) == (Point(2), Point(3))
            shoal.shutdown()
            print("ok")
        asyncio.run(main())
    """
    run(sys.executable, "-c", PROGRAM + textwrap.dedent(code))


def test_interactive_console():
    """Functions typed at a prompt have no file; ``__main__`` has none either."""
    code = """
        import code, sys
        console = code.InteractiveConsole(vars(sys.modules["__main__"]))
        lines = ["import shoal", "@shoal.remote", "def double(x):", "    return 2 * x", "",
                 "class Local:", "    y = 3", "",
                 "found = shoal.get([double.remote(21), double.remote(shoal.put(Local.y))])", "shoal.get(double.remote(x=1))",
                 "shoal.shutdown()"]
        for line in lines:
            more = console.push(line)
        print("ok" if found == [42, 6] and not more else found)
    """
    run(sys.executable, "-c", textwrap.dedent(code))
    prompt = "import shoal\n@shoal.remote\ndef double(x):\n    return 2 * x\n\nprint(shoal.get(double.remote(21)))\nprint('ok')\n"
    assert run(sys.executable, "-i", "-q", text=prompt).stdout.split() == ["42", "ok"]


def test_pytest(tmp_path):
    """A user's test file: functions of a module that pytest imported, with its own import modes."""
    write(tmp_path, test_theirs=WITH_A_MODULE + "\ndef test_all():\n    use_shoal()\n    use_companion()\n", companion=COMPANION)
    for mode in ("prepend", "importlib"):
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", f"--import-mode={mode}", "--rootdir", tmp_path]
        done = run(sys.executable, "-m", "pytest", *options, "test_theirs.py", cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stdout


def test_jupyter_kernel(tmp_path):
    """Cells run on the kernel's loop in its main thread; functions and classes are the notebook's own."""
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    pytest.importorskip("nbclient", reason="nbclient is not installed")
    code = f"""
        import sys
        import nbclient, nbformat
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in {NOTEBOOK!r}])
        nbclient.NotebookClient(notebook, timeout=50, kernel_name="python3").execute()
        texts = [output.get("text", "").strip() for cell in notebook.cells for output in cell.outputs]
        print(texts[-1])
    """
    write(tmp_path, notebook=textwrap.dedent(code))
    home = {"JUPYTER_PREFER_ENV_PATH": "1", "HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "notebook.py")],
        capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path, check=False,
        env={**os.environ, **home, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["ok"], done.stderr


NOTEBOOK = [
    PROGRAM,
    "use_shoal()",
    "shoal.init(num_cpus=2, object_store_memory=100 << 20)",
    "point, _ = await moved.remote(Point(1))\nassert point == Point(2)",
    "@shoal.remote\ndef again(x):\n    return x + 1",
    "@shoal.remote\ndef again(x):\n    return x + 2  # the cell was run again with another body",
    "assert shoal.get(again.remote(1)) == 3",
    "shoal.shutdown()\nprint('ok')",
]
