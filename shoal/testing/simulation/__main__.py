"""Run the program of a seed again, and shrink it if it fails; or run a range of seeds.

python -m shoal.testing.simulation 4711                           a session of one node
python -m shoal.testing.simulation 0 10000 --nodes 5 --faults     clusters of three to five nodes, and what may happen to them
"""

from __future__ import annotations

import argparse
import sys
import time

from shoal.testing.simulation.campaign import Mode, run_seed, run_seeds, shrink


def main(arguments: list[str]) -> int:
    """Return the exit status: 0 when no program failed."""
    parser = argparse.ArgumentParser(prog="python -m shoal.testing.simulation", description="Seeded simulations of clusters.")
    parser.add_argument("first", type=int, help="the seed to run, and to shrink if it fails")
    parser.add_argument("end", type=int, nargs="?", help="run all seeds from the first up to this one, exclusive")
    parser.add_argument("--nodes", type=int, default=1, help="most nodes of a cluster: 1, or at least 3")
    parser.add_argument("--faults", action="store_true", help="kill, pause, partition, delay")
    options = parser.parse_args(arguments)
    mode = Mode(options.nodes, options.faults)
    if options.end is None:
        failure = run_seed(options.first, mode)
        if failure is None:
            print(f"seed {options.first}{mode}: clean")
            return 0
        print(f"{failure}\n\nshrinking...", flush=True)
        print(shrink(failure, told=lambda text: print(text, flush=True)))
        return 1
    begin = time.perf_counter()
    done, failures = run_seeds(range(options.first, options.end), mode, stop_after=10)
    for failure in failures:
        print(f"{failure}\n{'-' * 100}")
    seconds = time.perf_counter() - begin
    print(f"{done} programs{mode}, {len(failures)} failed, {seconds:.1f} s, {seconds / max(done, 1) * 1000:.0f} ms each")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
