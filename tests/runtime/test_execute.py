"""The shared rules, the serial executor, and interruption by signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.errors import DamagedStoreError, ResourceError, UnsupportedModelError, WorkerError
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
from actstore.runtime.execute import (
    Backlog,
    Executor,
    Outcome,
    SerialExecutor,
    WorkItem,
    ignore,
    one_line,
    stop_on_signals,
)


def make_items(count: int) -> list[WorkItem]:
    return [WorkItem(f"item{i}", 1.0, i) for i in range(count)]


def press(number: int = signal.SIGINT) -> None:
    """Send ourselves a signal and let Python run its handler."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


# --- the serial executor ------------------------------------------------------------------------


def test_receipts_by_key() -> None:
    executor: Executor = SerialExecutor()
    with executor:
        outcome = executor.execute(make_items(3), lambda: lambda n: n * n, on_event=ignore)
    assert outcome == Outcome({"item0": 0, "item1": 1, "item2": 4}, {}, False)


def test_nothing_to_do_does_not_even_call_the_factory() -> None:
    def factory() -> Callable[[Any], Any]:
        raise AssertionError

    assert SerialExecutor().execute([], factory) == Outcome()


def test_longest_first_and_failed_ones_last() -> None:
    order: list[str] = []

    def work(payload: str) -> None:
        order.append(payload)
        if payload == "long" and order.count("long") == 1:
            raise ValueError

    items = [WorkItem(key, cost, key) for key, cost in [("a", 1), ("long", 9), ("b", 1), ("c", 2)]]
    outcome = SerialExecutor().execute(items, lambda: work)
    assert order == ["long", "c", "a", "b", "long"]
    assert set(outcome.done) == {"a", "b", "c", "long"}


def test_three_failures_quarantine_an_item_and_the_run_goes_on() -> None:
    calls: Counter[int] = Counter()

    def work(n: int) -> int:
        calls[n] += 1
        if n == 1:
            raise ValueError(f"bad row {n}\nof the\ttable")
        return n

    events: list[Event] = []
    outcome = SerialExecutor().execute(make_items(3), lambda: work, on_event=events.append)
    assert calls == {0: 1, 1: 3, 2: 1}
    assert outcome.done == {"item0": 0, "item2": 2}
    error = outcome.quarantined["item1"]
    assert error.startswith("ValueError: bad row 1 of the table (test_execute.py:")
    assert [type(event) for event in events] == [
        RunStarted,
        WorkerStarted,
        ItemDone,
        ItemRetried,
        ItemDone,
        ItemRetried,
        ItemQuarantined,
        RunFinished,
    ]
    assert [e.attempt for e in events if isinstance(e, ItemRetried)] == [1, 2]
    last = events[-1]
    assert isinstance(last, RunFinished)
    assert (last.done, last.quarantined, last.interrupted) == (2, 1, False)


def test_an_input_error_stops_the_run_as_it_is() -> None:
    calls = []

    def work(n: int) -> None:
        calls.append(n)
        raise ResourceError("no space left on /data: free 3 GB")

    with pytest.raises(ResourceError, match="^no space left on /data: free 3 GB$"):
        SerialExecutor().execute(make_items(5), lambda: work)
    assert calls == [0]


def test_errors_of_the_factory() -> None:
    def unsupported() -> Callable[[Any], Any]:
        raise UnsupportedModelError("model X has no known hook points")

    def broken() -> Callable[[Any], Any]:
        raise OSError("weights are missing")

    with pytest.raises(UnsupportedModelError, match="^model X has"):
        SerialExecutor().execute(make_items(1), unsupported)
    with pytest.raises(WorkerError, match="^the worker could not be set up: OSError: weights are"):
        SerialExecutor().execute(make_items(1), broken)


@dataclass(frozen=True)
class Counted:
    counters: dict[str, int]


@pytest.mark.parametrize(
    ("receipt", "counters"),
    [
        ({"counters": {"tokens": 7}}, {"tokens": 7}),
        (Counted({"bytes": 9}), {"bytes": 9}),
        ({"other": 1}, {}),
        (None, {}),
        (Counted(None), {}),  # type: ignore[arg-type]
    ],
)
def test_counters_of_a_receipt(receipt: Any, counters: dict[str, float]) -> None:
    events: list[Event] = []
    SerialExecutor().execute(make_items(1), lambda: lambda n: receipt, on_event=events.append)
    (done,) = (event for event in events if isinstance(event, ItemDone))
    assert done.counters == counters


@given(fails=st.lists(st.integers(0, 4), max_size=10), costs=st.lists(st.floats(0, 9), min_size=10))
def test_every_item_ends_once_whatever_fails(fails: list[int], costs: list[float]) -> None:
    """Item i raises on its first fails[i] runs."""
    runs: Counter[int] = Counter()

    def work(i: int) -> int:
        runs[i] += 1
        if runs[i] <= fails[i]:
            raise ValueError(i)
        return i

    items = [WorkItem(f"item{i}", costs[i], i) for i in range(len(fails))]
    outcome = SerialExecutor().execute(items, lambda: work)
    assert outcome.done == {f"item{i}": i for i, n in enumerate(fails) if n < 3}
    assert set(outcome.quarantined) == {f"item{i}" for i, n in enumerate(fails) if n >= 3}
    assert runs == Counter({i: min(3, n + 1) for i, n in enumerate(fails)})


def test_keys_are_unique() -> None:
    with pytest.raises(AssertionError, match="unique"):
        Backlog([WorkItem("a", 1, 0), WorkItem("a", 1, 1)], ignore)


def test_an_item_given_back_keeps_its_place() -> None:
    backlog = Backlog(make_items(3), ignore)
    item = backlog.pop()
    assert (len(backlog), backlog.open) == (2, 3)
    backlog.give_back(item)
    assert backlog.pop() == item
    backlog.charge(item, ValueError())
    assert backlog.pop().key == "item1"
    assert backlog.open == 3


# --- one line -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\n  b"), "ValueError: a b"),
        (KeyError(), "KeyError"),
        (DamagedStoreError("shard c/0 is damaged"), "shard c/0 is damaged"),
    ],
)
def test_one_line(error: Exception, text: str) -> None:
    assert one_line(error) == text
    assert one_line(error, place=True) == text, "never raised: no place"


def test_one_line_is_short_and_names_the_place() -> None:
    def fail() -> None:
        raise ValueError("x" * 5000)

    with pytest.raises(ValueError, match="xxx") as caught:
        fail()
    text = one_line(caught.value, place=True)
    assert len(text) < 450
    assert "x… (test_execute.py:" in text
    assert one_line(caught.value).endswith("x…")


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_the_running_item_finish(number: int) -> None:
    finished = []

    def work(n: int) -> int:
        if n == 1:
            press(number)
        finished.append(n)
        return n

    events: list[Event] = []
    before = signal.getsignal(number)
    outcome = SerialExecutor().execute(make_items(4), lambda: work, on_event=events.append)
    assert outcome == Outcome({"item0": 0, "item1": 1}, {}, interrupted=True)
    assert finished == [0, 1]
    assert Draining(0) in events
    assert signal.getsignal(number) is before, "handlers are put back"


def test_the_second_signal_does_not_wait() -> None:
    def work(n: int) -> int:
        press()
        press()
        raise AssertionError("not reached")

    outcome = SerialExecutor().execute(make_items(4), lambda: work)
    assert outcome == Outcome({}, {}, interrupted=True)


def test_handlers_are_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work(n: int) -> None:
        raise ResourceError("full")

    with pytest.raises(ResourceError):
        SerialExecutor().execute(make_items(1), lambda: work)
    assert signal.getsignal(signal.SIGTERM) is before


def test_signals_are_counted() -> None:
    with stop_on_signals() as stop:
        assert not stop.drain
        press()
        assert stop.drain
        assert not stop.hard
        press(signal.SIGTERM)
        assert stop.hard


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            press()
        assert not stop.drain
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_no_handler_is_installed() -> None:
    outcomes = []
    before = signal.getsignal(signal.SIGINT)

    def target() -> None:
        with stop_on_signals() as stop:
            outcomes.append((stop.drain, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    assert outcomes == [(False, before)]


def test_engines_are_not_loaded() -> None:
    code = (
        "import sys\n"
        "import actstore.runtime.execute, actstore.runtime.progress, actstore.runtime.pool\n"
        "import actstore.runtime.ray, actstore.runtime.environment\n"
        "print([name for name in ('ray', 'torch', 'rich', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
