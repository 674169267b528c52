"""A pool of workers that may die at any moment, without any engine.

States of a worker, and what moves it on:

    STARTING --Ready--> IDLE <--all items answered / submit--> BUSY
    IDLE, BUSY --Lost--> SUSPECT --Ready (it answers a ping)--> IDLE or BUSY
    STARTING, SUSPECT --Dead--> replaced by a new worker in the same slot

A worker that has failed a call gets no further item before it has answered a ping: a dead worker
would else fail the whole queue within seconds. A call that fails with its worker is charged to the
item only if the item had been started; items that waited behind it go back unharmed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from actstore.errors import InputError, WorkerError
from actstore.runtime.events import (
    Draining,
    Event,
    RunFinished,
    RunStarted,
    WorkerLost,
    WorkerStarted,
)
from actstore.runtime.execute import ATTEMPTS, Backlog, Outcome, Stop, WorkItem, one_line

__all__ = ["Backend", "Dead", "Done", "Limits", "Lost", "Pool", "Raised", "Ready", "Reply", "State"]


# --- what a backend answers -------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """The worker has started, or has answered a ping."""

    worker: int


@dataclass(frozen=True)
class Dead:
    """The worker could not start, or is gone for good."""

    worker: int
    error: Exception


@dataclass(frozen=True)
class Done:
    """The call gave a receipt after `seconds` of work."""

    worker: int
    ticket: int
    receipt: Any
    seconds: float


@dataclass(frozen=True)
class Raised:
    """The work raised; the worker is well."""

    worker: int
    ticket: int
    error: Exception


@dataclass(frozen=True)
class Lost:
    """The worker could not be reached; `started` says whether it was at work on this call."""

    worker: int
    ticket: int
    error: Exception
    started: bool


Reply = Ready | Dead | Done | Raised | Lost


class Backend(Protocol):
    """Workers, addressed by numbers that the pool chooses and never uses again.

    Every `start` and `ping` is answered by one Ready or Dead, every `submit` by one Done, Raised
    or Lost, whatever happens to the worker. A worker runs its calls in order, one at a time.
    """

    def start(self, worker: int) -> None:
        """Begin to make a worker."""

    def submit(self, worker: int, ticket: int, item: WorkItem) -> None:
        """Give `item` to a worker that is ready."""

    def ping(self, worker: int) -> None:
        """Ask whether the worker can be reached; may be answered late, when it can again."""

    def discard(self, worker: int) -> None:
        """End the worker at once, whatever it does; needs no answer."""

    def poll(self, timeout: float) -> Sequence[Reply]:
        """The answers that have come in; waits up to `timeout` seconds for the first."""
        ...


# --- the pool ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """When to stop trying."""

    depth: int = 2
    """calls given to a worker at once, so that it need not wait for the driver in between"""
    attempts: int = ATTEMPTS
    """failures of an item before it is quarantined"""
    starts: int = 3
    """failures to start in a row before a slot is given up"""
    losses: int = 20
    """workers lost in a row, without one item done, before the run is given up (at least three
    times the pool: a cluster may lose all its machines at once)"""
    start_seconds: float = 900.0
    """silence before the run is given up while no worker is at work"""
    stall_seconds: float = 6 * 3600.0
    """silence before the run is given up while workers are at work"""
    poll_seconds: float = 0.2
    """how soon a signal is noticed"""


class State(Enum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    SUSPECT = "suspect"


@dataclass
class _Worker:
    slot: int
    began: float
    state: State = State.STARTING
    tickets: set[int] = field(default_factory=set)
    suspected: int = -1
    """last ticket issued when it was last suspected: losses up to it are known about"""


class Pool:
    """Runs `items` once on `size` workers of `backend`; `run` is called once.

    `clock` gives seconds. `stop` may be changed by a signal handler at any time.
    """

    def __init__(
        self,
        items: Sequence[WorkItem],
        backend: Backend,
        *,
        size: int,
        on_event: Callable[[Event], None],
        limits: Limits | None = None,
        stop: Stop | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert size >= 1
        self._limits = limits or Limits()
        self._backlog = Backlog(items, on_event, self._limits.attempts)
        self._cost = sum(item.cost for item in items)
        self._backend = backend
        self._size = size
        self._on_event = on_event
        self._stop = stop or Stop()
        self._clock = clock
        self._workers: dict[int, _Worker] = {}
        self._calls: dict[int, WorkItem] = {}
        self._failed_starts = [0] * size
        self._losses = 0
        self._cause: Exception | None = None
        self._tickets = 0
        self._started = 0
        self._heard = 0.0

    def run(self) -> Outcome:
        """Run to the end.

        InputError from a worker is raised as it is; WorkerError if workers cannot be started or
        kept alive, or are silent for too long. Workers are ended in any case.
        """
        began = self._heard = self._clock()
        self._on_event(RunStarted(self._backlog.open, self._cost, self._size))
        draining = False
        try:
            while self._unfinished() and not self._stop.hard:
                if not self._stop.drain:
                    self._staff()
                    self._feed()
                elif not draining:
                    draining = True
                    self._on_event(Draining(len(self._calls)))
                for reply in self._backend.poll(self._limits.poll_seconds):
                    self._heard = self._clock()
                    self._handle(reply)
                self._watch()
        finally:
            for worker in self._workers:
                self._backend.discard(worker)
        outcome = self._backlog.outcome(interrupted=self._stop.drain)
        self._on_event(
            RunFinished(
                len(outcome.done),
                len(outcome.quarantined),
                outcome.interrupted,
                self._clock() - began,
            )
        )
        return outcome

    def states(self) -> list[State]:
        """The state of every present worker, oldest first."""
        return [worker.state for worker in self._workers.values()]

    def _unfinished(self) -> bool:
        return bool(self._calls) or (bool(self._backlog.open) and not self._stop.drain)

    # --- giving ------------------------------------------------------------------------------

    def _staff(self) -> None:
        """Start workers in free slots, as long as there are items for them."""
        taken = {worker.slot for worker in self._workers.values()}
        for slot, failed in enumerate(self._failed_starts):
            if len(self._workers) >= min(self._size, self._backlog.open):
                return
            if slot not in taken and failed < self._limits.starts:
                self._started += 1
                self._workers[self._started] = _Worker(slot, self._clock())
                self._backend.start(self._started)
        if not self._workers:
            self._give_up("no worker could be started")

    def _feed(self) -> None:
        """Give one item to every ready worker, then a second one, and so on to the full depth.

        The last items of a run are not given out ahead: they would wait behind another item
        while a worker that is soon free has nothing to do.
        """
        ready = [
            (number, worker)
            for number, worker in self._workers.items()
            if worker.state in (State.IDLE, State.BUSY)
        ]
        for depth in range(self._limits.depth):
            for number, worker in ready:
                enough = len(self._backlog) >= (self._size if depth else 1)
                if enough and len(worker.tickets) == depth:
                    self._tickets += 1
                    item = self._calls[self._tickets] = self._backlog.pop()
                    worker.tickets.add(self._tickets)
                    worker.state = State.BUSY
                    self._backend.submit(number, self._tickets, item)

    # --- taking ------------------------------------------------------------------------------

    def _handle(self, reply: Reply) -> None:
        if isinstance(reply, Ready):
            self._ready(reply)
        elif isinstance(reply, Dead):
            self._dead(reply)
        else:
            self._answered(reply)

    def _ready(self, reply: Ready) -> None:
        worker = self._workers[reply.worker]
        if worker.state is State.STARTING:
            self._on_event(WorkerStarted(reply.worker, self._clock() - worker.began))
        elif worker.state is State.SUSPECT:
            self._on_event(WorkerStarted(reply.worker, 0.0))
        self._failed_starts[worker.slot] = 0
        worker.state = State.BUSY if worker.tickets else State.IDLE

    def _dead(self, reply: Dead) -> None:
        if isinstance(reply.error, InputError):
            raise reply.error
        worker = self._workers.pop(reply.worker)
        self._backend.discard(reply.worker)
        if worker.state is State.STARTING:
            self._failed_starts[worker.slot] += 1
            self._lose(reply.worker, reply.error)
            # The same everywhere: no use in trying every slot to its limit.
            failed = self._failed_starts
            if min(failed) and sum(failed) >= self._limits.starts and not self._anyone_ready():
                self._give_up("no worker could be started")

    def _answered(self, reply: Done | Raised | Lost) -> None:
        item = self._calls.pop(reply.ticket)
        worker = self._workers.get(reply.worker)
        if worker is not None:
            worker.tickets.discard(reply.ticket)
            if worker.state is State.BUSY and not worker.tickets:
                worker.state = State.IDLE
        if isinstance(reply, Done):
            self._losses = 0
            self._backlog.finish(item, reply.receipt, reply.seconds)
            return
        if isinstance(reply.error, InputError):
            raise reply.error
        if isinstance(reply, Raised) or reply.started:
            self._backlog.charge(item, reply.error)
        else:
            self._backlog.give_back(item)
        if isinstance(reply, Lost) and worker is not None:
            self._suspect(worker, reply)

    def _suspect(self, worker: _Worker, reply: Lost) -> None:
        known = reply.ticket <= worker.suspected
        if known or worker.state not in (State.IDLE, State.BUSY):
            return
        worker.state = State.SUSPECT
        worker.suspected = self._tickets
        self._backend.ping(reply.worker)
        self._lose(reply.worker, reply.error)

    # --- giving up ---------------------------------------------------------------------------

    def _lose(self, number: int, error: Exception) -> None:
        self._cause = error
        self._losses += 1
        self._on_event(WorkerLost(number, one_line(error)))
        if self._losses >= max(self._limits.losses, 3 * self._size):
            self._give_up(f"{self._losses} workers were lost in a row without one item done")

    def _anyone_ready(self) -> bool:
        return any(worker.state is not State.STARTING for worker in self._workers.values())

    def _watch(self) -> None:
        silent = self._clock() - self._heard
        if any(worker.state is State.BUSY for worker in self._workers.values()):
            if silent > self._limits.stall_seconds:
                keys = ", ".join(item.key for item in self._calls.values())
                raise WorkerError(
                    f"nothing heard for {silent:.0f} s from workers at work on {keys}: they hang"
                )
        elif silent > self._limits.start_seconds:
            raise WorkerError(
                f"no worker was ready within {silent:.0f} s: ask for fewer or smaller workers, or "
                "for more machines"
            )

    def _give_up(self, reason: str) -> None:
        assert self._cause is not None, "given up only after a loss"
        raise WorkerError(f"{reason}: {one_line(self._cause)}") from self._cause
