"""How busy the machine is with other things than the benchmark."""

import os
import time
from dataclasses import dataclass
from typing import Self

import psutil

__all__ = ["Occupation"]


@dataclass(frozen=True, slots=True)
class Occupation:
    """CPU time used up to a moment, by everybody and by us."""

    wall_s: float
    all_s: float
    own_s: float
    """Of this process and of those that it started and that have ended."""

    @classmethod
    def now(cls) -> Self:
        """The counters of this moment; call it when no process of ours runs any more."""
        cpu, own = psutil.cpu_times(), os.times()
        busy_s = cpu.user + cpu.nice + cpu.system + cpu.irq + cpu.softirq + cpu.steal
        own_s = own.user + own.system + own.children_user + own.children_system
        return cls(time.monotonic(), busy_s, own_s)

    def others_since(self, begun: Self) -> float:
        """Cores that others kept busy on average since ``begun``; never below 0."""
        others_s = (self.all_s - begun.all_s) - (self.own_s - begun.own_s)
        return max(0.0, others_s / (self.wall_s - begun.wall_s))
