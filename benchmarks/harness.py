"""Run one claim for shoal and for its peers, in turn, and print them side by side.

A benchmark file declares one function per system and hands them to `main`:

    parent                                      child (a fresh interpreter for each system and each round)
    for round in 1..RUNS:
        for system in systems:  ── starts ──▶   SYSTEMS[system](recorder)  ── one JSON line per measurement ──▶ parent
    median of the rounds, ratio to Ray, the bare limit  ──▶  table on the screen, benchmarks/results/<file>.json

The rounds alternate, so that a change of the machine's mood meets all systems alike. Ray runs in the interpreter of `.venv-ray`,
everything else in the parent's own. Environment variables: RUNS (3), SCALE (1; 0.01 is a smoke test), ONLY (parts of the names of
measurements), SYSTEMS (which to run). A run that was narrowed by the last two shows its results and does not store them.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rows import ROWS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
RAY_PYTHON = Path(os.environ.get("RAY_PYTHON", HERE.parent / ".venv-ray" / "bin" / "python"))
RUNS = int(os.environ.get("RUNS", "3"))
SCALE = float(os.environ.get("SCALE", "1"))
ONLY = [word for word in os.environ.get("ONLY", "").split(",") if word]
SYSTEMS = [word for word in os.environ.get("SYSTEMS", "").split(",") if word]
CHILD_LIMIT_S = 900
#: What a system needs to be there, beside the interpreter.
MODULES = {"shoal": "shoal", "ray": "ray", "dask": "distributed", "loky": "joblib"}


class Recorder:
    """Takes measurements in the child and writes each as one line of JSON. `system` is also the module's name for shoal and ray."""

    def __init__(self, system: str) -> None:
        self.system = system

    def load(self, module: str = "") -> Any:
        return importlib.import_module(self.system + module)

    def init(self, num_cpus: int = 2, **options: Any) -> Any:
        """The runtime under test, up and with its workers warm."""
        runtime = self.load()
        address = {"address": "local"} if self.system == "ray" else {}
        runtime.init(num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR", **address, **options)
        return runtime

    def wanted(self, *metrics: str) -> bool:
        return not ONLY or any(word in metric for word in ONLY for metric in metrics)

    def emit(self, metric: str, value: float) -> None:
        if metric not in ROWS:
            raise KeyError(f"{metric} is not in rows.py")
        print("@" + json.dumps({"metric": metric, "value": float(value)}), flush=True)

    def rate(self, metric: str, work: Callable[[], Any], amount: float, *, repeat: int = 3, warmup: int = 1) -> None:
        """The median rate of `repeat` runs of `work`, each of which does `amount`."""
        if not self.wanted(metric):
            return
        for _ in range(warmup):
            work()
        self.emit(metric, amount / statistics.median(seconds(work) for _ in range(repeat)))

    def one_at_a_time(self, metric: str, work: Callable[[], Any], count: int) -> None:
        """Calls a second when each waits for the one before: the inverse of the mean, as a user's loop would see it."""
        self.rate(metric, lambda: repeat(work, count), count, warmup=0 if count <= 3 else 1)


def repeat(work: Callable[[], Any], count: int) -> None:
    for _ in range(count):
        work()


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def scaled(amount: float, least: int = 2) -> int:
    return max(least, int(amount * SCALE))


def family(pid: int) -> set[int]:
    """`pid` and every process below it."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            pass
    found, size = {pid}, 0
    while len(found) > size:
        size = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found


def pss_bytes(pids: Iterable[int]) -> int:
    """Memory of some processes, pages that they share counted once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
        except (OSError, StopIteration):
            pass
    return total


def main(file: str, claim: str, systems: dict[str, Callable[[Recorder], None]]) -> None:
    """The body of every benchmark file."""
    if len(sys.argv) == 3 and sys.argv[1] == "--child":
        systems[sys.argv[2]](Recorder(sys.argv[2]))
        return
    name = Path(file).stem
    chosen = [system for system in systems if (not SYSTEMS or system in SYSTEMS) and _present(system)]
    print(f"\n{name}: {claim}\n{machine_line(machine())}; {RUNS} runs, scale {SCALE}")
    absent = [system for system in systems if system not in chosen]
    if absent:
        print("left out: " + ", ".join(absent))
    rounds: dict[str, dict[str, list[float]]] = {}
    for _ in range(RUNS):
        for system in chosen:
            for metric, value in _child(Path(file), system):
                rounds.setdefault(metric, {}).setdefault(system, []).append(value)
    medians = {metric: {system: statistics.median(values) for system, values in found.items()} for metric, found in rounds.items()}
    _print_table(medians, chosen)
    if not ONLY and not SYSTEMS:
        RESULTS.mkdir(exist_ok=True)
        record = {"file": name, "claim": claim, "machine": machine(), "runs": RUNS, "scale": SCALE, "medians": medians, "all": rounds}
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    memory = 0.0
    try:
        info = Path("/proc/cpuinfo").read_text()
        cpu = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), cpu)
        memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0))
    return {"cpu": cpu, "cores": cores, "memory_gib": round(memory), "system": platform.system(), "python": platform.python_version()}


def machine_line(record: dict[str, Any]) -> str:
    return f"{record['cores']} cores of {record['cpu']}, {record['memory_gib']} GiB, {record['system']}, Python {record['python']}"


def _present(system: str) -> bool:
    if system == "ray":
        return RAY_PYTHON.exists()
    return system not in MODULES or importlib.util.find_spec(MODULES[system]) is not None


def _child(file: Path, system: str) -> list[tuple[str, float]]:
    """One round of one system. What it printed beside its measurements is shown only when it failed."""
    python = str(RAY_PYTHON) if system == "ray" else sys.executable
    environment = dict(os.environ, RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    with tempfile.TemporaryFile("w+") as output:
        try:
            code = subprocess.run(
                [python, str(file), "--child", system],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=CHILD_LIMIT_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
        output.seek(0)
        lines = output.read().splitlines()
    found = [json.loads(line[1:]) for line in lines if line.startswith('@{"metric"')]
    if code:
        reason = f"exit code {code}" if code != -1 else f"no end within {CHILD_LIMIT_S} s"
        print(f"  {system}: {reason}; the last lines were:")
        print("\n".join("    " + line for line in lines[-15:]))
    return [(entry["metric"], entry["value"]) for entry in found]


def _print_table(medians: dict[str, dict[str, float]], systems: list[str]) -> None:
    shown = [system for system in systems if system != "limit"]
    print(f"  {'':<58}{'unit':<7}" + "".join(f"{system:>12}" for system in shown) + f"{'to Ray':>9}{'limit':>12}")
    limits = {metric: found["limit"] for metric, found in medians.items() if "limit" in found}
    limits |= stored_limits()
    for metric, found in medians.items():
        row = ROWS[metric]
        cells = "".join(f"{_number(found.get(system)):>12}" for system in shown)
        limit = limits.get(row.limit) if row.limit else limits.get(metric)
        print(f"  {row.title:<58}{row.unit:<7}{cells}{row.ratio_text(found):>9}{_number(limit):>12}")


def stored_limits() -> dict[str, float]:
    """What bare_limits.py measured on this machine, if it has run."""
    path = RESULTS / "bare_limits.json"
    if not path.exists():
        return {}
    return {metric: found["limit"] for metric, found in json.loads(path.read_text())["medians"].items()}


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
