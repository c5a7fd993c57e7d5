"""Write the table of benchmark results into a page, between its two markers.

    python scripts/bench_table.py README.md

Reads benchmarks/results/*.json. The page holds `<!-- benchmarks -->` and `<!-- /benchmarks -->`; what stands between them is replaced.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from harness import machine_line  # noqa: E402
from rows import ROWS  # noqa: E402

BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
PEERS = {"shoal": "shoal", "ray": "Ray 2.60", "dask": "dask.distributed", "loky": "loky", "pool": "process pool"}


def main(page: Path) -> int:
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((BENCHMARKS / "results").glob("*.json"))]
    if not records:
        print("No results yet: run `make bench`.")
        return 1
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        print(f"{page} has no markers {BEGIN} and {END}; the table was not written.")
        return 1
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    page.write_text(f"{before}{BEGIN}\n{table(records)}\n{END}{after}", encoding="utf-8")
    return 0


def table(records: list[dict]) -> str:
    medians = {metric: found for record in records for metric, found in record["medians"].items()}
    limits = {metric: found["limit"] for metric, found in medians.items() if "limit" in found}
    shown = [system for system in PEERS if any(system in found for found in medians.values())]
    lines = [
        f"Medians of {min(record['runs'] for record in records)} runs on {machine_line(records[0]['machine'])}. "
        "Ratio: how many times better than Ray in the same run. Limit: the same shape with no runtime (`benchmarks/bare_limits.py`).",
        "",
        "| | unit | " + " | ".join(PEERS[system] for system in shown) + " | ratio | limit |",
        "|---|---|" + "---:|" * (len(shown) + 2),
    ]
    if any(record["scale"] != 1 for record in records):
        lines.insert(0, "**Not at full size: a smoke test.**\n")
    for metric, row in ROWS.items():
        found = medians.get(metric)
        if found and "limit" not in found:
            cells = [number(found.get(system)) for system in shown]
            lines.append(
                f"| {row.title} | {row.unit} | " + " | ".join(cells) + f" | {row.ratio_text(found)} | {number(limits.get(row.limit))} |"
            )
    return "\n".join(lines)


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
