"""Claim: scheduling costs the same per task at 1,000 and 10,000 nodes, and telling the nodes about each other costs what it may."""

from __future__ import annotations

from harness import SCALE, Recorder, main, scaled

#: Ten thousand nodes take minutes: a run of SCALE=1 has a tenth.
SIZES = (scaled(1000, 50), scaled(10_000, 100)) if SCALE >= 10 else (scaled(100, 20), scaled(1000, 50))
TASKS_PER_CPU = 5


def simulated(recorder: Recorder) -> None:
    scale = recorder.load(".testing.simulation.scale")
    for name, nodes in zip(("small", "large"), SIZES, strict=True):
        if not recorder.wanted(f"scale_{name}"):
            continue
        plan = scale.Plan(nodes=nodes, tasks=nodes * 4 * TASKS_PER_CPU, owners=max(1, nodes // 100))
        figures = scale.measure(plan)
        recorder.emit(f"scale_{name}_nodes", nodes)
        recorder.emit(f"scale_{name}_task_cpu", figures.task_cpu_s * 1e6)
        recorder.emit(f"scale_{name}_messages", figures.messages_per_task)
        recorder.emit(f"scale_{name}_lease", figures.lease_s[0] * 1e3)
        recorder.emit(f"scale_{name}_delta_cpu", figures.delta_cpu_s * 1e6 / nodes)
        recorder.emit(f"scale_{name}_delta_bytes", figures.delta_bytes / nodes / nodes)
        recorder.emit(f"scale_{name}_table", figures.table_bytes / nodes)
        recorder.emit(f"scale_{name}_view", figures.view_bytes / nodes)
        recorder.emit(f"scale_{name}_convergence", figures.convergence_s)


if __name__ == "__main__":
    main(__file__, __doc__.splitlines()[0], {"shoal": simulated})
