"""Print how many lines each folder has, the largest files and the longest functions. It informs; it never fails."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("shoal", "tests", "examples", "benchmarks", "scripts")
SHOWN = 3


def main() -> None:
    lines: dict[str, int] = defaultdict(int)
    files: dict[str, int] = defaultdict(int)
    sizes: list[tuple[int, str]] = []
    functions: list[tuple[int, str]] = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            count = text.count("\n")
            package = str(path.parent.relative_to(ROOT))
            lines[package] += count
            files[package] += 1
            if folder == "shoal":
                name = str(path.relative_to(ROOT))
                sizes.append((count, name))
                functions.extend(_functions(text, name))
    print(f"{'folder':<32}{'files':>6}{'lines':>8}")
    for package in sorted(lines):
        print(f"{package:<32}{files[package]:>6}{lines[package]:>8}")
    print(f"{'all':<32}{sum(files.values()):>6}{sum(lines.values()):>8}")
    print("\nlargest files:     " + ", ".join(f"{name} ({count})" for count, name in sorted(sizes, reverse=True)[:SHOWN]))
    print("longest functions: " + ", ".join(f"{name} ({count})" for count, name in sorted(functions, reverse=True)[:SHOWN]))


def _functions(text: str, name: str) -> list[tuple[int, str]]:
    return [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{name}:{node.name}")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


if __name__ == "__main__":
    main()
