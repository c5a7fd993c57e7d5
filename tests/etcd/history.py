"""What a test did to a control store and what it was told: a record, and its judge. Pure.

One writer per key, who writes 1, 2, 3, ... into it. Whatever dies meanwhile:

- a read begun after the answer to write n returns n or a later one, which somebody has begun to write
- ids handed out are handed out once
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Register:
    """One key. ``acknowledged`` <= what is in it <= ``begun``."""

    begun: int = 0
    acknowledged: int = 0
    unknown: int = 0

    def begin(self) -> int:
        """Return what to write now."""
        self.begun += 1
        return self.begun

    def acknowledge(self, value: int) -> None:
        self.acknowledged = value


@dataclass
class History:
    registers: dict[bytes, Register] = field(default_factory=dict)
    jobs: list[bytes] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    reads: int = 0

    def register(self, key: bytes) -> Register:
        return self.registers.setdefault(key, Register())

    def floor(self, key: bytes) -> int:
        """Return what a read that begins now returns at least."""
        return self.register(key).acknowledged

    def read(self, key: bytes, floor: int, value: bytes | None) -> None:
        """A read that began when ``floor`` was the least has this answer."""
        found = int(value or 0)
        self.reads += 1
        if not floor <= found <= self.register(key).begun:
            self.violations.append(f"{key!r} was read as {found}; {floor} was acknowledged before, {self.register(key).begun} begun")

    def job(self, job_id: bytes) -> None:
        if job_id in self.jobs:
            self.violations.append(f"job {job_id.hex()} was handed out twice")
        self.jobs.append(job_id)

    def check(self) -> None:
        assert not self.violations, self.violations

    def __str__(self) -> str:
        registers = self.registers.values()
        return (
            f"{sum(one.begun for one in registers)} writes, {sum(one.unknown for one in registers)} of unknown outcome, "
            f"{self.reads} reads, {len(self.jobs)} jobs"
        )
