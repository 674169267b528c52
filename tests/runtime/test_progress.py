"""Counts, rates and ETA under a clock of our own, and what each display writes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.errors import InputError
from actstore.runtime.events import (
    Advanced,
    Draining,
    Event,
    ItemDone,
    ItemQuarantined,
    ItemRetried,
    RunFinished,
    RunStarted,
    Stage,
    Tally,
    WorkerLost,
    WorkerStarted,
    bytes_text,
    count_text,
    plural,
    time_text,
)
from actstore.runtime.progress import EventLog, Sink, _Plain, _Rich, fan_out, make_display

RUN: list[Event] = [
    Stage("extract"),
    RunStarted(3, 30.0, 2),
    WorkerStarted(1, 2.0),
    ItemDone("u1", 10.0, 1.0, {"tokens": 1000, "bytes": 4096}),
    ItemRetried("u2", 1, "ValueError: bad [row]"),
    WorkerLost(1, "worker process died"),
    ItemDone("u3", 10.0, 1.0, {"tokens": 500, "bytes": 4096}),
    ItemQuarantined("u2", 3, "ValueError: bad [row]", 10.0),
    Draining(1),
    RunFinished(2, 1, True, 65.0),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# --- counts -------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_tally_of_a_run() -> None:
    tally = Tally()
    for event in RUN:
        tally(event)
    assert (tally.stage, tally.done, tally.total) == ("extract", 2, 3)
    assert (tally.retries, tally.quarantined, tally.workers, tally.lost) == (1, 1, 0, 1)
    assert tally.counters == {"tokens": 1500, "bytes": 8192}
    assert (tally.cost_done, tally.cost_total) == (20.0, 20.0), "quarantined work is not awaited"


def test_eta_goes_by_cost_and_not_by_items() -> None:
    clock = Clock()
    tally = Tally(clock)
    tally(RunStarted(3, 100.0, 1))
    clock.now += 20
    tally(ItemDone("long", 80.0, 20.0))
    # 80 of 100 in 20 s leave 5 s; one item of three would leave 40.
    assert tally.eta() == pytest.approx(5.0)
    clock.now += 20
    assert tally.eta() == pytest.approx(10.0), "without news, the rate falls"


def test_no_eta_in_the_first_ten_seconds_nor_without_progress() -> None:
    clock = Clock()
    tally = Tally(clock)
    tally(RunStarted(3, 100.0, 1))
    clock.now += 30
    assert tally.eta() is None
    tally(RunStarted(3, 100.0, 1))
    clock.now += 9.9
    tally(ItemDone("a", 50.0, 1.0))
    assert tally.eta() is None
    clock.now += 0.1
    assert tally.eta() == pytest.approx(10.0)


def test_the_rate_is_that_of_the_last_minute() -> None:
    clock = Clock()
    tally = Tally(clock)
    tally(RunStarted(200, 2000.0, 1))
    for _ in range(50):  # slow at first: 1 a second
        clock.now += 10
        tally(ItemDone("a", 10.0, 1.0, {"tokens": 10}))
    for _ in range(70):  # then 10 a second
        clock.now += 1
        tally(ItemDone("a", 10.0, 1.0, {"tokens": 10}))
    assert tally.rates() == {"tokens": pytest.approx(10.0, rel=0.02)}
    assert tally.eta() == pytest.approx(80.0, rel=0.02)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=40))
def test_eta_is_never_negative(steps: list[tuple[float, float]]) -> None:
    clock = Clock()
    tally = Tally(clock)
    tally(RunStarted(len(steps), sum(cost for cost, _ in steps), 1))
    for cost, seconds in steps:
        clock.now += seconds
        tally(ItemDone("a", cost, seconds))
        eta = tally.eta()
        assert eta is None or eta >= 0
        assert tally.line()


def test_stage_without_items() -> None:
    clock = Clock()
    tally = Tally(clock)
    tally(Stage("tokenize", 1000.0, "texts"))
    clock.now += 10
    tally(Advanced(250.0))
    assert tally.line() == "250/1000 texts · ETA 0:30"
    tally(Stage("plan"))
    assert tally.line() == ""
    tally(Advanced(2))
    assert tally.line() == "2"


def test_line_of_a_run() -> None:
    clock = Clock()
    tally = Tally(clock)
    for event in RUN[:-2]:
        tally(event)
        clock.now += 2
    assert tally.line() == (
        "2/3 items · 1500 tokens (107/s) · 8.19 kB · ETA 0:00 · 1 retried · 1 quarantined"
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (2.345, "2.35"),
        (150.4, "150"),
        (9500, "9500"),
        (12345, "12.3k"),
        (999_400, "999k"),
        (999_900, "1M"),
        (4.56e6, "4.56M"),
        (7.8e9, "7.8G"),
    ],
)
def test_count_text(number: float, text: str) -> None:
    assert count_text(number) == text


def test_other_texts() -> None:
    assert [bytes_text(n) for n in (0, 512, 1500, 999_900, 2e9, 3e15)] == [
        "0 B",
        "512 B",
        "1.5 kB",
        "1 MB",
        "2 GB",
        "3e+03 TB",
    ]
    assert [time_text(s) for s in (0, 6.6, 750, 11_100)] == ["0:00", "0:07", "12:30", "3:05:00"]
    assert [plural(n, "item") for n in (0, 1, 2)] == ["0 items", "1 item", "2 items"]


# --- displays -----------------------------------------------------------------------------------


def show(display: Sink, events: list[Event]) -> None:
    with display as sink:
        for event in events:
            sink(event)


def test_plain_lines() -> None:
    stream = io.StringIO()
    show(make_display("plain", stream), RUN)
    assert stream.getvalue().splitlines() == [
        "extract: started",
        "extract: 3 items, 2 workers",
        "extract: u2 failed (1), will run again: ValueError: bad [row]",
        "extract: worker 1 lost: worker process died",
        "extract: u2 quarantined after 3 attempts: ValueError: bad [row]",
        "extract: stopping: 1 running item to finish first (again: stop now)",
        "extract: 2 done in 1:05, 1 quarantined, interrupted · 1500 tokens · 8.19 kB",
    ]


def test_plain_is_silent_for_30_seconds_between_lines() -> None:
    clock = Clock()
    stream = io.StringIO()
    display = _Plain(stream, clock)
    display(RunStarted(1000, 1000.0, 1))
    for _ in range(100):
        clock.now += 1
        display(ItemDone("a", 1.0, 1.0))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "1000 items, 1 worker"
    assert [line.split(" ")[0] for line in lines[1:]] == ["30/1000", "60/1000", "90/1000"]
    assert lines[1].endswith("ETA 16:10")


def test_json_lines() -> None:
    stream = io.StringIO()
    show(make_display("json", stream), RUN)
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [record["event"] for record in records] == [
        "stage",
        "run_started",
        "worker_started",
        "item_done",
        "item_retried",
        "worker_lost",
        "item_done",
        "item_quarantined",
        "draining",
        "run_finished",
    ]
    done = records[3]
    assert (done["stage"], done["done"], done["total"]) == ("extract", 1, 3)
    assert (done["key"], done["counters"]) == ("u1", {"tokens": 1000, "bytes": 4096})
    assert done["time"] > 1.7e9
    assert records[-1]["interrupted"] is True


def test_event_log_appends_and_can_be_read_at_any_time(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for _ in range(2):
        with EventLog(path) as log:
            log(RUN[0])
            log(RUN[1])
            assert json.loads(path.read_text().splitlines()[-1])["event"] == "run_started"
    assert len(path.read_text().splitlines()) == 4


def test_none_shows_nothing() -> None:
    stream = io.StringIO()
    show(make_display("none", stream), RUN)
    assert stream.getvalue() == ""


def test_rich_shows_counts_and_problems_unchanged() -> None:
    stream = Terminal()
    show(_Rich(stream), RUN)
    text = stream.getvalue()
    assert "u2 failed (1), will run again: ValueError: bad [row]" in text
    assert "2 done in 1:05, 1 quarantined, interrupted" in text
    assert "1500 tokens" in text


def test_rich_draws_one_line_for_each_stage() -> None:
    stream = Terminal()
    show(_Rich(stream), [Stage("tokenize", 10, "texts"), Advanced(10), *RUN])
    assert "tokenize" in stream.getvalue()
    assert "10/10 texts" in stream.getvalue()


def test_rich_leaves_stdout_alone() -> None:
    code = (
        "import sys\n"
        "from actstore.runtime.progress import _Rich\n"
        "from actstore.runtime.events import RunStarted\n"
        "with _Rich(sys.stderr) as show:\n"
        "    show(RunStarted(1, 1.0, 1))\n"
        "    print('result')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "result\n"


@pytest.mark.parametrize(
    ("stream", "environment", "kind"),
    [
        (Terminal(), {"TERM": "xterm"}, "_Rich"),
        (Terminal(), {"TERM": "dumb"}, "_Plain"),
        (Terminal(), {"TERM": "xterm", "CI": "true"}, "_Plain"),
        (io.StringIO(), {"TERM": "xterm"}, "_Plain"),
    ],
)
def test_auto(
    stream: io.StringIO,
    environment: dict[str, str],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CI", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert type(make_display("auto", stream)).__name__ == kind


def test_stderr_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    show(make_display("plain"), RUN[:2])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("extract: started\n")


def test_unknown_mode() -> None:
    with pytest.raises(InputError, match="progress mode 'fancy' is unknown: use auto, rich"):
        make_display("fancy")  # type: ignore[arg-type]


def test_fan_out() -> None:
    seen: list[tuple[int, Event]] = []
    send = fan_out(lambda event: seen.append((1, event)), lambda event: seen.append((2, event)))
    send(RUN[0])
    assert seen == [(1, RUN[0]), (2, RUN[0])]
