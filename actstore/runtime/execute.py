"""What the work is, what came of it, and the rules that every executor shares.

An item is run until it succeeds, or has failed `ATTEMPTS` times and is quarantined; the run
then goes on without it. Exactly-once is the store's business: an executor may run an item more
than once, so the work must be idempotent.
"""

from __future__ import annotations

import heapq
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

from actstore.errors import ActstoreError, InputError, WorkerError
from actstore.runtime.events import (
    Draining,
    Event,
    ItemDone,
    ItemQuarantined,
    ItemRetried,
    RunFinished,
    RunStarted,
    WorkerStarted,
)

__all__ = [
    "ATTEMPTS",
    "Backlog",
    "Executor",
    "Outcome",
    "SerialExecutor",
    "Stop",
    "WorkItem",
    "WorkerFactory",
    "ignore",
    "one_line",
    "stop_on_signals",
]

ATTEMPTS = 3


@dataclass(frozen=True)
class WorkItem:
    """One schedulable piece of work.

    `key` is unique in a run; `cost` is any number that grows with the time needed (tokens, say);
    `payload` is picklable data for the worker.
    """

    key: str
    cost: float
    payload: Any


WorkerFactory = Callable[[], Callable[[Any], Any]]
"""Picklable; called once in each worker process. Its result maps a payload to a receipt, which is
small plain data. A receipt may have `counters`, as an attribute or as a key of a mapping: names
such as `tokens` or `bytes` to numbers, which the progress display adds up."""


@dataclass(frozen=True)
class Outcome:
    """What became of the items. A key in neither mapping was left over by an interruption."""

    done: dict[str, Any] = field(default_factory=dict)
    """key -> receipt"""
    quarantined: dict[str, str] = field(default_factory=dict)
    """key -> last error, one line"""
    interrupted: bool = False


class Executor(Protocol):
    """Runs items to their end; also a context manager that owns what it started."""

    def execute(
        self,
        items: Sequence[WorkItem],
        factory: WorkerFactory,
        *,
        on_event: Callable[[Event], None],
    ) -> Outcome:
        """Run every item once or more.

        An InputError from the factory or from the work stops the run and is raised here as it
        is; WorkerError is raised if workers cannot be started or kept alive. The first SIGINT or
        SIGTERM lets running items finish, the second does not wait for them.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def ignore(event: Event) -> None:
    """An `on_event` for callers that show nothing."""


def one_line(error: BaseException, *, place: bool = False, limit: int = 400) -> str:
    """`error` as one line; the class is named unless the message is one of ours.

    `place` adds the file and line that raised it, for errors that nobody has foreseen.
    """
    text = " ".join(str(error).split())
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if isinstance(error, ActstoreError):
        return text
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__) if place else []
    return f"{text} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else text


# --- interruption -----------------------------------------------------------------------------


@dataclass
class Stop:
    """How far an interruption has gone."""

    drain: bool = False
    """start nothing new, let running items finish"""
    hard: bool = False
    """do not wait for them either"""


@contextmanager
def stop_on_signals(*, raise_hard: bool = False) -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a `Stop` inside the block; handlers are put back after it.

    The first signal sets `drain`, the second `hard` (and, with `raise_hard`, interrupts the code
    that is running by KeyboardInterrupt). A signal that is ignored on entry, as under nohup,
    stays ignored. Outside the main thread, where Python allows no handlers, nothing is installed.
    """
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.hard = stop.drain
        stop.drain = True
        if stop.hard and raise_hard:
            raise KeyboardInterrupt

    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


# --- the rules --------------------------------------------------------------------------------


class Backlog:
    """The items that still have to run, and what became of the others.

    Longest first, so that no long item is left for the end; an item that has failed goes behind
    those that have not, so that one bad item cannot hold up the good ones.
    """

    def __init__(
        self, items: Sequence[WorkItem], on_event: Callable[[Event], None], attempts: int = ATTEMPTS
    ) -> None:
        self._order = {item.key: number for number, item in enumerate(items)}
        assert len(self._order) == len(items), "item keys are unique"
        self._on_event = on_event
        self._attempts = attempts
        self._charged: dict[str, int] = {}
        self._done: dict[str, Any] = {}
        self._quarantined: dict[str, str] = {}
        self._heap: list[tuple[int, float, int, WorkItem]] = []
        for item in items:
            self.give_back(item)

    def __len__(self) -> int:
        """Items waiting, without those handed out by `pop`."""
        return len(self._heap)

    @property
    def open(self) -> int:
        """Items neither done nor quarantined, waiting or running."""
        return len(self._order) - len(self._done) - len(self._quarantined)

    def pop(self) -> WorkItem:
        """The next item to run."""
        return heapq.heappop(self._heap)[-1]

    def give_back(self, item: WorkItem) -> None:
        """`item` has not been run: it waits again, and nothing is held against it."""
        charged = self._charged.get(item.key, 0)
        heapq.heappush(self._heap, (charged, -item.cost, self._order[item.key], item))

    def charge(self, item: WorkItem, error: BaseException) -> None:
        """`item` was started and failed: it waits again, or is quarantined."""
        charged = self._charged[item.key] = self._charged.get(item.key, 0) + 1
        text = one_line(error, place=True)
        if charged < self._attempts:
            self._on_event(ItemRetried(item.key, charged, text))
            self.give_back(item)
        else:
            self._quarantined[item.key] = text
            self._on_event(ItemQuarantined(item.key, charged, text, item.cost))

    def finish(self, item: WorkItem, receipt: Any, seconds: float) -> None:
        """`item` is done."""
        self._done[item.key] = receipt
        self._on_event(ItemDone(item.key, item.cost, seconds, _counters(receipt)))

    def outcome(self, *, interrupted: bool) -> Outcome:
        return Outcome(dict(self._done), dict(self._quarantined), interrupted)


def _counters(receipt: Any) -> dict[str, float]:
    if isinstance(receipt, Mapping):
        counters = receipt.get("counters")
    else:
        counters = getattr(receipt, "counters", None)
    return dict(counters) if isinstance(counters, Mapping) else {}


# --- in this process --------------------------------------------------------------------------


class SerialExecutor:
    """Runs items one after another in this process, by the same rules."""

    def execute(
        self,
        items: Sequence[WorkItem],
        factory: WorkerFactory,
        *,
        on_event: Callable[[Event], None] = ignore,
    ) -> Outcome:
        backlog = Backlog(items, on_event)
        if not items:
            return backlog.outcome(interrupted=False)
        began = time.monotonic()
        on_event(RunStarted(len(items), sum(item.cost for item in items), 1))
        with stop_on_signals(raise_hard=True) as stop:
            try:
                work = _set_up(factory)
                on_event(WorkerStarted(0, time.monotonic() - began))
                while backlog and not stop.drain:
                    _run_one(backlog, work)
                if stop.drain:
                    on_event(Draining(0))
            except KeyboardInterrupt:
                if not stop.hard:
                    raise
        outcome = backlog.outcome(interrupted=stop.drain)
        on_event(
            RunFinished(
                len(outcome.done),
                len(outcome.quarantined),
                outcome.interrupted,
                time.monotonic() - began,
            )
        )
        return outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is held."""


def _set_up(factory: WorkerFactory) -> Callable[[Any], Any]:
    try:
        return factory()
    except InputError:
        raise
    except Exception as error:
        raise WorkerError(
            f"the worker could not be set up: {one_line(error, place=True)}"
        ) from error


def _run_one(backlog: Backlog, work: Callable[[Any], Any]) -> None:
    item = backlog.pop()
    began = time.monotonic()
    try:
        receipt = work(item.payload)
    except InputError:
        raise
    except Exception as error:
        backlog.charge(item, error)
    else:
        backlog.finish(item, receipt, time.monotonic() - began)
