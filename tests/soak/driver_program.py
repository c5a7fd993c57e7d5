"""A driver of ``test_8_drivers``: ``driver_program.py SECONDS NUMBER`` prints one line of JSON when its time is over."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import shoal
from tests.soak.measures import check_driver, sample
from tests.soak.mixed_work import MixedWork, Register


def main(seconds: float, number: int) -> None:
    with shoal.init(num_cpus=2, object_store_memory=256 << 20) as context:
        work = MixedWork(number, Register.remote())
        work.run(seconds * 0.1)
        early = sample(context)
        work.run(seconds * 0.9)
        late = sample(context)
        check_driver()
        report = {
            "rounds": work.rounds,
            "slowest": work.slowest,
            "grown": late.grown(early),
            "session_dir": context.address_info["session_dir"],
        }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
