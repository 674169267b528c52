"""What executors and commands report while they work, and the counts that follow from it."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = [
    "Advanced",
    "Draining",
    "Event",
    "ItemDone",
    "ItemQuarantined",
    "ItemRetried",
    "RunFinished",
    "RunStarted",
    "Stage",
    "Tally",
    "WorkerLost",
    "WorkerStarted",
    "bytes_text",
    "count_text",
    "plural",
    "time_text",
]


@dataclass(frozen=True)
class Stage:
    """A named part of the command begins; `total`, in `unit`, is for stages without items."""

    name: str
    total: float = 0.0
    unit: str = ""


@dataclass(frozen=True)
class Advanced:
    """`amount` more of a stage without items is done."""

    amount: float


@dataclass(frozen=True)
class RunStarted:
    """An executor begins `items` items of summed `cost` on `workers` workers."""

    items: int
    cost: float
    workers: int


@dataclass(frozen=True)
class WorkerStarted:
    worker: int
    seconds: float
    """from the request to readiness"""


@dataclass(frozen=True)
class WorkerLost:
    worker: int
    error: str


@dataclass(frozen=True)
class ItemDone:
    key: str
    cost: float
    seconds: float
    counters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ItemRetried:
    """The item failed for the `attempt`-th time and will run again."""

    key: str
    attempt: int
    error: str


@dataclass(frozen=True)
class ItemQuarantined:
    key: str
    attempts: int
    error: str
    cost: float = 0.0


@dataclass(frozen=True)
class Draining:
    """Interrupted: nothing new starts, `running` items finish."""

    running: int


@dataclass(frozen=True)
class RunFinished:
    done: int
    quarantined: int
    interrupted: bool
    seconds: float


Event = (
    Stage
    | Advanced
    | RunStarted
    | WorkerStarted
    | WorkerLost
    | ItemDone
    | ItemRetried
    | ItemQuarantined
    | Draining
    | RunFinished
)


class Tally:
    """Counts of the present stage, kept up to date by calling it with each event.

    `clock` gives seconds. The ETA comes from the rate of cost over the last minute (and at least
    the last `KEEP` steps), since items differ in size; there is none in the first 10 s.
    """

    SETTLE_SECONDS = 10.0
    WINDOW_SECONDS = 60.0
    KEEP = 8
    ENDLESS_SECONDS = 1e8

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.stage = ""
        self._reset(0.0, 0.0, "")

    def _reset(self, total: float, cost: float, unit: str) -> None:
        self.done, self.total, self.unit = 0.0, total, unit
        self.cost_done, self.cost_total = 0.0, cost
        self.retries = self.quarantined = self.workers = self.lost = 0
        self.counters: Counter[str] = Counter()
        self.since = self._clock()
        self._steps: deque[tuple[float, float, Counter[str]]] = deque()
        self._steps.append((self.since, 0.0, Counter()))

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stage):
            self.stage = event.name
            self._reset(event.total, event.total, event.unit)
        elif isinstance(event, RunStarted):
            self._reset(float(event.items), event.cost, "items")
        elif isinstance(event, Advanced):
            self.done += event.amount
            self._step(event.amount)
        elif isinstance(event, ItemDone):
            self.done += 1
            self.counters.update(event.counters)
            self._step(event.cost)
        elif isinstance(event, ItemRetried):
            self.retries += 1
        elif isinstance(event, ItemQuarantined):
            self.quarantined += 1
            self.cost_total -= event.cost
        elif isinstance(event, WorkerStarted):
            self.workers += 1
        elif isinstance(event, WorkerLost):
            self.workers = max(0, self.workers - 1)
            self.lost += 1

    def _step(self, cost: float) -> None:
        self.cost_done += cost
        now = self._clock()
        self._steps.append((now, self.cost_done, self.counters.copy()))
        while len(self._steps) > self.KEEP and self._steps[0][0] < now - self.WINDOW_SECONDS:
            self._steps.popleft()

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return self._clock() - self.since

    def eta(self) -> float | None:
        """Seconds that are left at the present rate, or None while that is unknown."""
        began, cost, _ = self._steps[0]
        gained = self.cost_done - cost
        if self.seconds < self.SETTLE_SECONDS or gained <= 0 or self.cost_total <= 0:
            return None
        left = max(0.0, self.cost_total - self.cost_done) * (self._clock() - began) / gained
        return left if left < self.ENDLESS_SECONDS else None

    def rates(self) -> dict[str, float]:
        """Every counter per second, over the same stretch as the ETA."""
        began, _, counters = self._steps[0]
        span = max(self._clock() - began, 1e-9)
        return {name: (n - counters[name]) / span for name, n in self.counters.items()}

    def line(self) -> str:
        """One line: what is done, how fast, what is left, what went wrong."""
        parts = []
        if self.total:
            parts.append(f"{count_text(self.done)}/{count_text(self.total)} {self.unit}".rstrip())
        elif self.done:
            parts.append(f"{count_text(self.done)} {self.unit}".rstrip())
        rates = self.rates()
        for name, number in self.counters.items():
            if name == "bytes":
                parts.append(bytes_text(number))
            else:
                parts.append(f"{count_text(number)} {name} ({count_text(rates[name])}/s)")
        eta = self.eta()
        if eta is not None:
            parts.append(f"ETA {time_text(eta)}")
        if self.retries:
            parts.append(f"{self.retries} retried")
        if self.quarantined:
            parts.append(f"{self.quarantined} quarantined")
        if self.workers:
            parts.append(plural(self.workers, "worker"))
        return " · ".join(parts)


def count_text(number: float) -> str:
    """`12`, `9500`, `12.3k`, `4.56M`."""
    if number < 1e4:
        return f"{number:.0f}" if number >= 100 or number % 1 == 0 else f"{number:.3g}"
    for suffix in ("k", "M", "G"):
        number /= 1000
        if number < 999.5:
            return f"{number:.3g}{suffix}"
    return f"{number / 1000:.3g}T"


def bytes_text(number: float) -> str:
    """`512 B`, `1.5 kB`, `2 GB`; units of 1000."""
    for suffix in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {suffix}"
        number /= 1000
    return f"{number:.3g} TB"


def time_text(seconds: float) -> str:
    """`0:07`, `12:30`, `3:05:00`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def plural(number: float, noun: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{count_text(number)} {noun}" + ("" if number == 1 else "s")
