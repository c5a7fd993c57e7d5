"""Run the program of a seed again, and shrink it if it fails; or run a range of seeds.

python -m shoal.testing.simulation 4711
python -m shoal.testing.simulation 0 10000
"""

from __future__ import annotations

import sys
import time

from shoal.testing.simulation.campaign import run_seed, run_seeds, shrink


def main(arguments: list[str]) -> int:
    """Return the exit status: 0 when no program failed."""
    first = int(arguments[0])
    if len(arguments) == 1:
        failure = run_seed(first)
        if failure is None:
            print(f"seed {first}: clean")
            return 0
        print(f"{failure}\n\nshrinking...", flush=True)
        print(shrink(failure, told=lambda text: print(text, flush=True)))
        return 1
    begin = time.perf_counter()
    done, failures = run_seeds(range(first, int(arguments[1])), stop_after=10)
    for failure in failures:
        print(f"{failure}\n{'-' * 100}")
    print(f"{done} programs, {len(failures)} failed, {time.perf_counter() - begin:.1f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
