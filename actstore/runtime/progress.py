"""Ways to show the events of a run: live on a terminal, as plain lines, as JSON lines.

The driver alone shows: workers send counters with their receipts. Every display, and the
`events.jsonl` writer, is a context manager that is called with each event.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, Self

from actstore.errors import InputError
from actstore.runtime.events import (
    Draining,
    Event,
    ItemQuarantined,
    ItemRetried,
    RunFinished,
    RunStarted,
    Stage,
    Tally,
    WorkerLost,
    bytes_text,
    count_text,
    plural,
    time_text,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["EventLog", "Mode", "Sink", "fan_out", "make_display"]


class Sink:
    """Takes events; this one shows nothing."""

    def __call__(self, event: Event) -> None:
        """Take note of `event`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release what is held."""


def fan_out(*sinks: Callable[[Event], None]) -> Callable[[Event], None]:
    """One `on_event` that passes every event to all of `sinks`, in order."""

    def send(event: Event) -> None:
        for sink in sinks:
            sink(event)

    return send


def _problem(event: Event) -> str | None:
    """Events that people are told of at once."""
    if isinstance(event, ItemRetried):
        return f"{event.key} failed ({event.attempt}), will run again: {event.error}"
    if isinstance(event, ItemQuarantined):
        return f"{event.key} quarantined after {event.attempts} attempts: {event.error}"
    if isinstance(event, WorkerLost):
        return f"worker {event.worker} lost: {event.error}"
    if isinstance(event, Draining):
        return (
            f"stopping: {plural(event.running, 'running item')} to finish first (again: stop now)"
        )
    return None


def _summary(tally: Tally, event: RunFinished) -> str:
    text = f"{event.done} done in {time_text(event.seconds)}"
    if event.quarantined:
        text += f", {event.quarantined} quarantined"
    if event.interrupted:
        text += ", interrupted"
    counters = [
        bytes_text(n) if name == "bytes" else f"{count_text(n)} {name}"
        for name, n in tally.counters.items()
    ]
    return " · ".join([text, *counters])


class _Plain(Sink):
    """For log files: a line per stage and per problem, else one every 30 s, then a summary."""

    EVERY_SECONDS = 30.0

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._tally = Tally(clock)
        self._last = clock()

    def __call__(self, event: Event) -> None:
        self._tally(event)
        problem = _problem(event)
        if isinstance(event, Stage):
            self._say("started")
        elif isinstance(event, RunStarted):
            self._say(f"{plural(event.items, 'item')}, {plural(event.workers, 'worker')}")
        elif isinstance(event, RunFinished):
            self._say(_summary(self._tally, event))
        elif problem is not None:
            self._say(problem)
        elif self._clock() - self._last >= self.EVERY_SECONDS:
            self._say(self._tally.line())
            self._last = self._clock()

    def _say(self, text: str) -> None:
        name = self._tally.stage
        print(f"{name}: {text}" if name else text, file=self._stream, flush=True)


class _Rich(Sink):
    """For a terminal: one live line on stderr, problems above it. stdout is left alone."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._escape = escape
        self._tally = Tally()
        self._progress: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}", markup=False),
            TimeElapsedColumn(),
            console=Console(file=stream),
            redirect_stdout=False,
            redirect_stderr=False,
            refresh_per_second=4,
        )
        self._task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        self._tally(event)
        tally = self._tally
        if isinstance(event, Stage) or self._task is None:
            if self._task is not None:
                self._progress.stop_task(self._task)
            self._task = self._progress.add_task(tally.stage, total=None, line="")
        problem = _problem(event)
        if problem is not None:
            name = f"{tally.stage}: " if tally.stage else ""
            self._progress.console.print(self._escape(name + problem), highlight=False)
        line = _summary(tally, event) if isinstance(event, RunFinished) else tally.line()
        total = tally.cost_total or None
        self._progress.update(self._task, completed=tally.cost_done, total=total, line=line)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()


class _Json(Sink):
    """One JSON object per event: `event`, `time` (Unix seconds), `stage`, `done`, `total`, then
    the event's own fields."""

    def __init__(self, stream: IO[str], wall: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._wall = wall
        self._tally = Tally()

    def __call__(self, event: Event) -> None:
        self._tally(event)
        record: dict[str, Any] = {
            "event": re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower(),
            "time": round(self._wall(), 3),
            "stage": self._tally.stage,
            "done": self._tally.done,
            "total": self._tally.total,
        }
        # A finished run's own `done` says the same.
        record |= {name: value for name, value in asdict(event).items() if name not in record}
        print(json.dumps(record), file=self._stream, flush=True)


class EventLog(_Json):
    """Appends every event to the file `path` as JSON lines, for tools that read along."""

    def __init__(self, path: Path | str, wall: Callable[[], float] = time.time) -> None:
        super().__init__(open(path, "a", encoding="utf-8"), wall)  # noqa: SIM115

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()


Mode = Literal["auto", "rich", "plain", "json", "none"]


def make_display(mode: Mode = "auto", stream: IO[str] | None = None) -> Sink:
    """The display called `mode` on `stream` (stderr unless given).

    `auto` is `rich` on a terminal that can draw, and `plain` otherwise: in a pipe, with
    TERM=dumb, or under CI. InputError if there is no such mode.
    """
    stream = sys.stderr if stream is None else stream
    if mode == "auto":
        capable = os.environ.get("TERM") != "dumb" and not os.environ.get("CI")
        mode = "rich" if stream.isatty() and capable else "plain"
    if mode == "rich":
        return _Rich(stream)
    if mode == "plain":
        return _Plain(stream)
    if mode == "json":
        return _Json(stream)
    if mode == "none":
        return Sink()
    raise InputError(f"progress mode {mode!r} is unknown: use auto, rich, plain, json or none")
