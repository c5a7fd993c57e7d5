"""Run the benchmarks: all, or those named. The limits come first, since the others show them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(names: list[str]) -> int:
    known = ["bare_limits", *sorted(path.stem for path in HERE.glob("core_*.py"))]
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"No such benchmark: {', '.join(unknown)}. There are: {', '.join(known)}.")
        return 2
    codes = [subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=False).returncode for name in names or known]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
