"""Four nodes, two programs, two accidents: one node is killed, the control store is killed, and the answers are right.

Starts a head and three more nodes as separate processes, with the command that users type. Runs the flights of `flights.py` and a shuffle
of 2 GiB across them. In the middle of the flights the control store is killed; the head's node starts it again. In the middle of the
shuffle one node is killed with all that it holds; what is lost is computed again elsewhere. A timeline shows what happened when.

Run it with `make demo-cluster`. It has a token and a directory of its own, and touches no other cluster of yours.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import flights
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import shoal

NODES = 4
CPUS_PER_NODE = 2
#: The shuffle: MAPS parts of ROWS keys each, 8 bytes a key, are sorted into REDUCES ranges.
MAPS, REDUCES, ROWS = 32, 16, 1 << 23
#: A multiplication by an odd number modulo 2**64 gives every key once, in an order that looks like none.
SCATTER = 0x9E3779B97F4A7C15
#: Columns of the timeline.
WIDTH = 72


# --- The shuffle -----------------------------------------------------------------------------------------------------------------------


@shoal.remote(num_returns=REDUCES, max_retries=5)
def scatter(part: int) -> list[np.ndarray]:
    """Make the keys of one part: uint64[ROWS], cut into REDUCES ranges by their first bits."""
    keys = np.arange(part * ROWS, (part + 1) * ROWS, dtype=np.uint64) * np.uint64(SCATTER)
    ranges = (keys >> np.uint64(64 - REDUCES.bit_length() + 1)).astype(np.uint8)
    order = np.argsort(ranges, kind="stable")
    ends = np.cumsum(np.bincount(ranges, minlength=REDUCES))
    return np.split(keys[order], ends[:-1])


@shoal.remote(max_retries=5, scheduling_strategy="SPREAD")
def gather(number: int, *parts: np.ndarray) -> tuple[int, int, int, str]:
    """Check one range: (keys, their sum modulo 2**64, bytes, the node that did it)."""
    count, total = 0, np.uint64(0)
    first = np.uint64(number << (64 - REDUCES.bit_length() + 1))
    for keys in parts:
        assert (keys - first < np.uint64(1 << (64 - REDUCES.bit_length() + 1))).all(), "a key of another range"
        count += len(keys)
        total += keys.sum(dtype=np.uint64)
    return count, int(total), sum(keys.nbytes for keys in parts), shoal.get_runtime_context().get_node_id()


# --- What happened when ----------------------------------------------------------------------------------------------------------------


@dataclass
class Timeline:
    """Spans and moments on lanes, in seconds since the start."""

    began: float = field(default_factory=time.perf_counter)
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    moments: list[tuple[str, float, str]] = field(default_factory=list)

    def now(self) -> float:
        return time.perf_counter() - self.began

    @contextmanager
    def span(self, lane: str):
        start = self.now()
        try:
            yield
        finally:
            self.spans.append((lane, start, self.now()))

    def moment(self, lane: str, what: str) -> None:
        self.moments.append((lane, self.now(), what))

    def table(self) -> Table:
        end = self.now()

        def column(seconds: float) -> int:
            return min(int(seconds / end * WIDTH), WIDTH - 1)

        table = Table(title=f"What happened when: {end:.1f} s from left to right", show_edge=False)
        table.add_column("")
        table.add_column("", no_wrap=True)
        for lane in dict.fromkeys(name for name, *_ in [*self.spans, *self.moments]):
            row = [" "] * WIDTH
            for name, start, stop in self.spans:
                if name == lane:
                    row[column(start) : column(stop) + 1] = "━" * (column(stop) - column(start) + 1)
            for name, when, _ in self.moments:
                if name == lane:
                    row[column(when)] = "✖"
            table.add_row(lane, "".join(row).replace("✖", "[bold red]✖[/]"))
        return table


# --- The cluster -----------------------------------------------------------------------------------------------------------------------


class DemoCluster:
    """A head and more nodes, started from a shell. The environment keeps it apart from other clusters of this user."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.folder = tempfile.mkdtemp(prefix="shoal-demo-", dir="/tmp")
        os.environ.update(HOME=self.folder, SHOAL_TMPDIR=self.folder)
        for name in ("RAY_ADDRESS", "SHOAL_ADDRESS", "SHOAL_AUTH_TOKEN", "RAY_AUTH_TOKEN", "SHOAL_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN_PATH"):
            os.environ.pop(name, None)

    def start(self) -> str:
        """Start all nodes; return the address of the control store."""
        size = ["--num-cpus", str(CPUS_PER_NODE), "--object-store-memory", str(1 << 30)]
        with self.timeline.span("starting"):
            out = self.command("start", "--head", "--port", "0", "--node-name", "node 1", *size)
            address = out.split("--address='")[1].split("'")[0]
            for number in range(2, NODES + 1):
                self.command("start", "--address", address, "--node-name", f"node {number}", *size)
        return address

    def command(self, *arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", "shoal", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"shoal {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def kill(self, lane: str, pid: int) -> None:
        self.timeline.moment(lane, f"killed (SIGKILL, pid {pid})")
        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        self.command("stop")
        shutil.rmtree(self.folder, ignore_errors=True)


def processes(folder: str) -> dict[str, int]:
    """Name of a part -> its pid, as the records of the sessions say."""
    found = {}
    for path in Path(folder).glob("shoal-*/session_*/session.json"):
        record = json.loads(path.read_text())
        name = "control store" if record["part"] == "control store" else record["node_id"]
        found[name] = record["pid"]
    return found


def main() -> None:
    console = Console(width=max(100, Console().width))
    timeline = Timeline()
    cluster = DemoCluster(timeline)
    try:
        address = cluster.start()
        shoal.init(address=address, log_to_driver=False)
        nodes = {node["NodeID"]: node["NodeName"] for node in shoal.nodes()}
        console.print(
            f"{len(nodes)} nodes are up after {timeline.now():.2f} s: {', '.join(sorted(nodes.values()))}, control store {address}"
        )
        run_flights(console, cluster)
        run_shuffle(console, cluster, nodes)
        shoal.shutdown()
        console.print(timeline.table())
        for lane, when, what in timeline.moments:
            console.print(f"{when:6.2f} s  {lane}: {what}")
    finally:
        cluster.close()


def run_flights(console: Console, cluster: DemoCluster) -> None:
    """The flights; in the middle of them the control store is killed."""
    files = flights.load_files()
    header, parts = flights.split(files["flights"])
    with tempfile.TemporaryDirectory() as folder, cluster.timeline.span("flights"):
        accident = (len(parts) // 2, str(Path(folder) / "crashed"))
        progress = flights.Counts.remote()
        airlines, weather = flights.read_airlines.remote(files["airlines"]), flights.read_bad_weather.remote(files["weather"])
        level = [
            flights.join.remote(i, flights.parse.remote(i, header, shoal.put(part), progress), airlines, weather, accident, progress)
            for i, part in enumerate(parts)
        ]
        level[-1:] = [flights.add.remote(0, level[-1], flights.new_sums(), progress)]
        while len(level) > 1:
            pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
            level = [flights.add.remote(i, *pair, progress) if len(pair) == 2 else pair[0] for i, pair in enumerate(pairs)]
        killer = Accident(cluster, "control store", lambda: shoal.get(progress.counts.remote())["join"] > len(parts) // 3)
        with killer:
            result = shoal.get(level[0])
    if result != flights.in_one_process(files):
        sys.exit("The flights' answers differ: this is a bug in shoal.")
    console.print(f"[bold green]Flights: right[/], with a worker killed in part {accident[0]} and the control store killed on the way")


def run_shuffle(console: Console, cluster: DemoCluster, nodes: dict[str, str]) -> None:
    """The shuffle; when half of the parts are made, a node is killed with all that it holds."""
    victim = next(node_id for node_id, name in nodes.items() if name == "node 3")
    begin = time.perf_counter()
    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars, cluster.timeline.span("shuffle"):
        made, checked = bars.add_task("scatter", total=MAPS), bars.add_task("gather", total=REDUCES)
        parts = [scatter.options(scheduling_strategy="SPREAD").remote(part) for part in range(MAPS)]
        ranges = [gather.remote(number, *(part[number] for part in parts)) for number in range(REDUCES)]
        firsts, killed = [part[0] for part in parts], False
        while ranges_left := [one for one in ranges if not shoal.wait([one], timeout=0)[0]]:
            done = len(shoal.wait(firsts, num_returns=MAPS, timeout=0.1, fetch_local=False)[0])
            bars.update(made, completed=done)
            bars.update(checked, completed=REDUCES - len(ranges_left))
            if not killed and done >= MAPS // 2:
                killed = True
                cluster.kill(nodes[victim], processes(cluster.folder)[victim])
        bars.update(checked, completed=REDUCES)
        results = shoal.get(ranges)
    seconds = time.perf_counter() - begin
    count, total, moved = (sum(column) for column in list(zip(*results, strict=True))[:3])
    keys = MAPS * ROWS
    if count != keys or total % (1 << 64) != SCATTER * (keys * (keys - 1) // 2) % (1 << 64):
        sys.exit("The shuffle's answer is wrong: this is a bug in shoal.")
    names = sorted({nodes[node_id] for *_, node_id in results})
    console.print(
        f"[bold green]Shuffle: right[/], {moved / 2**30:.1f} GiB in {seconds:.1f} s ({moved / 2**20 / seconds:,.0f} MiB/s), gathered on "
        f"{', '.join(names)}; {nodes[victim]} was killed in the middle of it"
    )


class Accident:
    """Kills a part as soon as a condition holds, from a thread: the program itself is busy."""

    def __init__(self, cluster: DemoCluster, part: str, condition) -> None:
        self._cluster, self._part, self._condition = cluster, part, condition
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(0.02):
            if self._condition():
                before = processes(self._cluster.folder)[self._part]
                self._cluster.kill(self._part, before)
                while not self._over.wait(0.02):
                    after = processes(self._cluster.folder).get(self._part, before)
                    if after != before:
                        self._cluster.timeline.moment(self._part, f"runs again (pid {after})")
                        return
                return

    def __enter__(self) -> Accident:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


if __name__ == "__main__":
    main()
