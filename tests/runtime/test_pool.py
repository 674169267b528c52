"""The pool against scripted workers: no engine, no processes, no waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.errors import UnsupportedModelError, WorkerError
from actstore.runtime.events import (
    Draining,
    Event,
    ItemDone,
    ItemQuarantined,
    RunFinished,
    RunStarted,
    WorkerLost,
    WorkerStarted,
)
from actstore.runtime.execute import Outcome, SerialExecutor, Stop, WorkItem
from actstore.runtime.pool import (
    Dead,
    Done,
    Limits,
    Lost,
    Pool,
    Raised,
    Ready,
    Reply,
    State,
)

PATIENT = Limits(starts=10**6, losses=10**6)
"""Never gives up: fault schedules are finite."""

CRASH = RuntimeError("process died")


@dataclass
class _Actor:
    """A worker as it is, and as the pool may know it."""

    alive: bool = True
    usable: bool = False
    """the pool has heard Ready, and of no loss that it did not know of by then"""
    known: int = -1
    """last ticket given out when it was last pinged"""
    waiting: list[tuple[str, int, WorkItem | None]] = field(default_factory=list)


class FakeBackend:
    """Workers that do one thing per poll, with the faults that `choose` hands out.

    `choose(kind, n)` picks one of `n`: which fault ("start", "run", "ping": 0 is none), whose turn
    it is ("turn"), how many answers stay on the way ("late"), whether they overtake ("reverse").
    """

    def __init__(
        self,
        choose: Callable[[str, int], int] = lambda kind, n: 0,
        *,
        size: int = 2,
        depth: int = 2,
        on_poll: Callable[[], None] = lambda: None,
    ) -> None:
        self.choose = choose
        self.size = size
        self.depth = depth
        self.on_poll = on_poll
        self.actors: dict[int, _Actor] = {}
        self.box: list[Reply] = []
        self.open_calls: dict[int, tuple[int, WorkItem]] = {}
        self.finished: Counter[str] = Counter()
        self.charged: Counter[str] = Counter()
        self.order: list[str] = []
        self.pings = 0
        self.last_ticket = -1
        self.polls = 0
        self.turns: Counter[int] = Counter()

    # what the pool calls

    def start(self, worker: int) -> None:
        assert worker not in self.actors, "numbers are never used again"
        self.actors[worker] = _Actor(waiting=[("start", -1, None)])
        present = [actor for actor in self.actors.values() if actor.alive]
        assert len(present) <= self.size, "the pool grew beyond its size"

    def submit(self, worker: int, ticket: int, item: WorkItem) -> None:
        actor = self.actors[worker]
        assert actor.usable, "given to a worker that had failed a call and not answered since"
        actor.waiting.append(("run", ticket, item))
        self.last_ticket = ticket
        self.open_calls[ticket] = (worker, item)
        of_worker = [number for number, _ in self.open_calls.values() if number == worker]
        assert len(of_worker) <= self.depth, "too many calls on one worker"
        assert len({item.key for _, item in self.open_calls.values()}) == len(self.open_calls)

    def ping(self, worker: int) -> None:
        self.pings += 1
        self.actors[worker].waiting.append(("ping", -1, None))
        self.actors[worker].known = self.last_ticket

    def discard(self, worker: int) -> None:
        actor = self.actors[worker]
        actor.alive = actor.usable = False
        lost = [entry for entry in actor.waiting if entry[0] == "run"]
        actor.waiting = []
        self.box += [Lost(worker, ticket, CRASH, started=False) for _, ticket, _ in lost]

    def poll(self, timeout: float) -> Sequence[Reply]:
        self.polls += 1
        self.on_poll()
        pending = [number for number, actor in self.actors.items() if actor.waiting]
        pending.sort(key=self.turns.__getitem__)
        if pending:
            number = pending[self.choose("turn", len(pending))]
            self.turns[number] = self.polls
            self._act(number)
        if self.choose("reverse", 2):
            self.box.reverse()
        through = len(self.box) - self.choose("late", len(self.box) + 1)
        replies, self.box = self.box[:through], self.box[through:]
        for reply in replies:
            self._deliver(reply)
        return replies

    # what the workers do

    def _act(self, number: int) -> None:
        actor = self.actors[number]
        kind, ticket, item = actor.waiting.pop(0)
        if item is not None:
            self._work(number, actor, ticket, item)
        elif kind == "start" and self.choose("start", 2):
            actor.alive = False
            self.box.append(Dead(number, RuntimeError("no model")))
        elif kind == "ping" and (not actor.alive or self.choose("ping", 2)):
            actor.alive = False
            self.box.append(Dead(number, CRASH))
        else:
            self.box.append(Ready(number))

    def _work(self, number: int, actor: _Actor, ticket: int, item: WorkItem) -> None:
        fault = self.choose("run", 6) if actor.alive else 5
        if fault == 0:
            self.finished[item.key] += 1
            self.box.append(Done(number, ticket, f"receipt of {item.key}", 1.0))
        elif fault == 1:
            self.box.append(Raised(number, ticket, ValueError(item.key)))
        else:
            # 2 dies at work, 3 out of reach but alive, 4 dies one item later (the receipt of this
            # one is lost with it), 5 was dead before it began
            behind = [entry for entry in actor.waiting if entry[0] == "run"]
            actor.waiting = [entry for entry in actor.waiting if entry[0] != "run"]
            failed = [ticket, *(other for _, other, _ in behind)]
            guilty = {2: ticket, 3: ticket, 4: failed[min(1, len(failed) - 1)], 5: None}[fault]
            if fault == 4:
                self.finished[item.key] += 1
            actor.alive = actor.alive and fault == 3
            self.box += [Lost(number, one, CRASH, started=one == guilty) for one in failed]

    def _deliver(self, reply: Reply) -> None:
        actor = self.actors[reply.worker]
        if isinstance(reply, Ready):
            actor.usable = True
        elif isinstance(reply, Lost) and reply.ticket > actor.known:
            actor.usable = False
        if isinstance(reply, Done | Raised | Lost):
            _, item = self.open_calls.pop(reply.ticket)
            self.order.append(item.key)
            if isinstance(reply, Raised) or (isinstance(reply, Lost) and reply.started):
                self.charged[item.key] += 1


def script(**faults: Sequence[int]) -> Callable[[str, int], int]:
    """A `choose` that hands out the listed faults of each kind, then none."""
    queues = {kind: list(values) for kind, values in faults.items()}

    def choose(kind: str, n: int) -> int:
        return queues[kind].pop(0) if queues.get(kind) else 0

    return choose


def make_items(count: int, cost: Callable[[int], float] = lambda i: 1.0) -> list[WorkItem]:
    return [WorkItem(f"item{i}", cost(i), i) for i in range(count)]


def run(
    backend: FakeBackend, items: Sequence[WorkItem], **options: Any
) -> tuple[Outcome, list[Event]]:
    events: list[Event] = []
    pool = Pool(items, backend, size=backend.size, on_event=events.append, **options)
    return pool.run(), events


def kinds(events: Sequence[Event], *of: type) -> list[Event]:
    return [event for event in events if isinstance(event, of)]


# --- the ordinary way ---------------------------------------------------------------------------


def test_every_item_is_done_once_and_reported() -> None:
    backend = FakeBackend()
    outcome, events = run(backend, make_items(7))
    assert outcome == Outcome({f"item{i}": f"receipt of item{i}" for i in range(7)})
    assert backend.finished == Counter({f"item{i}": 1 for i in range(7)})
    assert events[0] == RunStarted(7, 7.0, 2)
    assert len(kinds(events, WorkerStarted)) == 2
    assert sorted(event.key for event in events if isinstance(event, ItemDone)) == sorted(
        outcome.done
    )
    finished = events[-1]
    assert isinstance(finished, RunFinished)
    assert (finished.done, finished.quarantined, finished.interrupted) == (7, 0, False)
    assert not any(actor.alive for actor in backend.actors.values()), "workers are ended"


def test_same_outcome_as_one_after_another() -> None:
    items = make_items(9)
    serial = SerialExecutor().execute(items, lambda: lambda i: f"receipt of item{i}")
    assert run(FakeBackend(), items)[0] == serial


def test_longest_first() -> None:
    backend = FakeBackend(size=1, depth=1)
    run(backend, make_items(5, cost=lambda i: [3, 1, 5, 3, 4][i]), limits=Limits(depth=1))
    assert backend.order == ["item2", "item4", "item0", "item3", "item1"]


def test_no_more_workers_than_items() -> None:
    backend = FakeBackend(size=5)
    run(backend, make_items(2))
    assert len(backend.actors) == 2


def test_workers_hold_two_calls_except_at_the_end() -> None:
    held: list[int] = []
    backend = FakeBackend(size=2)
    backend.on_poll = lambda: held.append(len(backend.open_calls))
    run(backend, make_items(8))
    assert max(held) == 4
    # With less than one waiting item for each worker, nothing is given out ahead: only the second
    # worker acts here, and the last item would wait for it beside an idle one.
    held.clear()
    backend = FakeBackend(lambda kind, n: n - 1 if kind == "turn" else 0, size=2)
    backend.on_poll = lambda: held.append(len(backend.open_calls))
    run(backend, make_items(4))
    assert held == [0, 2, 2, 1, 1]


def test_no_items() -> None:
    outcome, events = run(FakeBackend(), [])
    assert outcome == Outcome()
    assert kinds(events, WorkerStarted, WorkerLost) == []


# --- faults -------------------------------------------------------------------------------------


def test_a_raising_item_costs_no_worker() -> None:
    backend = FakeBackend(script(run=[1]), size=1)
    outcome, events = run(backend, make_items(3))
    assert len(outcome.done) == 3
    assert len(backend.actors) == 1
    assert backend.pings == 0
    assert backend.order == ["item0", "item1", "item2", "item0"], "failed items wait behind others"
    assert kinds(events, WorkerLost) == []


def test_poison_is_quarantined_after_three_attempts() -> None:
    backend = FakeBackend(size=2)
    plain = backend._work

    def work(number: int, actor: _Actor, ticket: int, item: WorkItem) -> None:
        backend.choose = script(run=[2] if item.key == "item3" else [])
        plain(number, actor, ticket, item)

    backend._work = work  # type: ignore[method-assign]
    outcome, events = run(backend, make_items(8))
    assert set(outcome.done) == {f"item{i}" for i in range(8)} - {"item3"}
    assert outcome.quarantined == {"item3": "RuntimeError: process died"}
    assert backend.charged == {"item3": 3}
    assert backend.finished == Counter(dict.fromkeys(outcome.done, 1)), "neighbours run once"
    assert [e.attempts for e in events if isinstance(e, ItemQuarantined)] == [3]
    assert len(kinds(events, WorkerLost)) == 3


def test_what_waits_behind_a_crash_is_not_charged() -> None:
    backend = FakeBackend(script(run=[2]), size=1)
    outcome, _ = run(backend, make_items(4))
    assert len(outcome.done) == 4
    assert backend.order[:2] == ["item0", "item1"]
    assert backend.charged == {"item0": 1}


def test_a_lost_receipt_is_not_charged_but_the_item_after_it_is() -> None:
    backend = FakeBackend(script(run=[4]), size=1)
    outcome, _ = run(backend, make_items(4))
    assert len(outcome.done) == 4
    assert backend.finished["item0"] == 2, "done again, since nobody knows that it was done"
    assert backend.charged == {"item1": 1}


def test_a_dead_worker_does_not_eat_the_queue() -> None:
    """It fails calls at once; only what it held may fail, and it is replaced."""
    backend = FakeBackend(script(run=[5]), size=1)
    outcome, events = run(backend, make_items(30))
    assert len(outcome.done) == 30
    assert not backend.charged
    assert len(backend.order) == 32, "two calls failed with it"
    assert (len(backend.actors), backend.pings) == (2, 1)
    assert len(kinds(events, WorkerLost)) == 1


def test_a_worker_out_of_reach_comes_back_as_the_same_worker() -> None:
    backend = FakeBackend(script(run=[3]), size=1)
    outcome, events = run(backend, make_items(4))
    assert len(outcome.done) == 4
    assert (len(backend.actors), backend.pings) == (1, 1)
    assert len(kinds(events, WorkerStarted)) == 2
    assert backend.charged == {"item0": 1}


def test_losses_that_come_after_the_ping_raise_no_new_suspicion() -> None:
    """Call 1 is lost, the ping is answered, and only then the loss of call 2 is heard."""
    replies: list[list[Reply]] = [
        [Ready(1)],
        [Lost(1, 1, CRASH, started=True)],
        [Ready(1)],
        [Lost(1, 2, CRASH, started=False)],
        [Done(1, 3, "a", 1.0)],
    ]

    class Scripted:
        calls: ClassVar[list[tuple[str, int, str]]] = []

        def start(self, worker: int) -> None:
            self.calls.append(("start", worker, ""))

        def submit(self, worker: int, ticket: int, item: WorkItem) -> None:
            self.calls.append(("submit", ticket, item.key))

        def ping(self, worker: int) -> None:
            self.calls.append(("ping", worker, ""))

        def discard(self, worker: int) -> None:
            self.calls.append(("discard", worker, ""))

        def poll(self, timeout: float) -> Sequence[Reply]:
            seen.append(pool.states())
            return replies.pop(0)

    seen: list[list[State]] = []
    pool = Pool(
        make_items(2), Scripted(), size=1, on_event=lambda event: None, limits=Limits(attempts=1)
    )
    outcome = pool.run()
    assert seen[2:4] == [[State.SUSPECT], [State.BUSY]], "call 2 is still open"
    assert [call for call in Scripted.calls if call[0] != "submit"] == [
        ("start", 1, ""),
        ("ping", 1, ""),
        ("discard", 1, ""),
    ]
    assert (outcome.done, set(outcome.quarantined)) == ({"item1": "a"}, {"item0"})


# --- giving up ----------------------------------------------------------------------------------


def test_workers_that_cannot_start_end_the_run_with_their_reason() -> None:
    backend = FakeBackend(lambda kind, n: int(kind == "start"), size=2)
    with pytest.raises(WorkerError, match=r"no worker could be started: RuntimeError: no model"):
        run(backend, make_items(4))
    assert len(backend.actors) <= 4


def test_one_bad_slot_shrinks_the_pool_and_the_run_goes_on() -> None:
    backend = FakeBackend(size=2)
    tries: Counter[int] = Counter()

    def choose(kind: str, n: int) -> int:
        if kind == "start":
            tries["start"] += 1
            return int(tries["start"] > 1)  # every worker but the first
        return 0

    backend.choose = choose
    outcome, events = run(backend, make_items(40))
    assert len(outcome.done) == 40
    assert tries["start"] == 1 + 3, "three failures in a row, then the slot is left empty"
    assert len(kinds(events, WorkerLost)) == 3


def test_a_single_failure_to_start_is_repaired() -> None:
    backend = FakeBackend(script(start=[1]), size=1)
    outcome, _ = run(backend, make_items(3))
    assert len(outcome.done) == 3
    assert len(backend.actors) == 2


def test_slow_starters_are_waited_for_when_others_fail() -> None:
    """Three of four workers cannot start; the fourth is still loading by then."""
    fails = script(start=[1, 1, 1])

    def choose(kind: str, n: int) -> int:
        return 0 if kind == "turn" else fails(kind, n)

    backend = FakeBackend(choose, size=4)
    plain = backend._act

    def act(number: int) -> None:
        if number != 4 or backend.polls > 8:
            plain(number)

    backend._act = act  # type: ignore[method-assign]
    outcome, events = run(backend, make_items(12))
    assert len(outcome.done) == 12
    assert len(kinds(events, WorkerLost)) == 3


def test_failures_to_start_count_in_a_row_only() -> None:
    """Twice none, then one that works and is lost: as often as need be."""
    rounds = 4
    backend = FakeBackend(script(start=[1, 1, 0] * rounds, run=[0, 5] * (rounds - 1)), size=1)
    outcome, _ = run(backend, make_items(20))
    assert len(outcome.done) == 20
    assert len(backend.actors) == 3 * rounds


def test_losses_without_one_item_done_end_the_run() -> None:
    backend = FakeBackend(lambda kind, n: 5 if kind == "run" else 0, size=2)
    with pytest.raises(WorkerError, match=r"20 workers were lost in a row .*process died"):
        run(backend, make_items(4))
    assert not backend.charged


def test_the_count_of_losses_starts_again_with_every_item_done() -> None:
    runs = [2, 0] * 30
    backend = FakeBackend(script(run=runs), size=1, depth=1)
    outcome, events = run(backend, make_items(40), limits=Limits(depth=1, losses=3))
    assert len(outcome.done) == 40
    assert len(kinds(events, WorkerLost)) == 30


@pytest.mark.parametrize("place", ["start", "run", "ping"])
def test_an_input_error_stops_the_run_as_it_is(place: str) -> None:
    error = UnsupportedModelError("model X has no known hook points")

    class Refusing(FakeBackend):
        def poll(self, timeout: float) -> Sequence[Reply]:
            for index, reply in enumerate(replies := list(super().poll(timeout))):
                if isinstance(reply, Dead | Raised):
                    replies[index] = replace(reply, error=error)
            return replies

    faults = {"start": {"start": [1]}, "run": {"run": [0, 1]}, "ping": {"run": [3], "ping": [1]}}
    backend = Refusing(script(**faults[place]), size=2)
    with pytest.raises(UnsupportedModelError) as caught:
        run(backend, make_items(10))
    assert caught.value is error
    assert not any(actor.alive for actor in backend.actors.values())
    assert len(backend.order) < 10


def test_silence_while_no_worker_is_ready() -> None:
    now = [0.0]

    class Silent(FakeBackend):
        def poll(self, timeout: float) -> Sequence[Reply]:
            now[0] += 100.0
            return []

    with pytest.raises(WorkerError, match=r"no worker was ready within 1000 s: ask for fewer"):
        run(Silent(), make_items(1), clock=lambda: now[0])


def test_silence_of_workers_at_work() -> None:
    now = [0.0]

    class Hanging(FakeBackend):
        def poll(self, timeout: float) -> Sequence[Reply]:
            if self.open_calls:
                now[0] += 1000.0
                return []
            return super().poll(timeout)

    limits = Limits(start_seconds=100.0, stall_seconds=5000.0)
    with pytest.raises(WorkerError, match=r"nothing heard for 6000 s .* item0: they hang"):
        run(Hanging(size=1), make_items(1), clock=lambda: now[0], limits=limits)


def test_a_run_may_be_long_as_long_as_it_is_heard_of() -> None:
    now = [0.0]
    backend = FakeBackend(size=1)

    def pass_time() -> None:
        now[0] += 50.0

    backend.on_poll = pass_time
    limits = Limits(start_seconds=60.0, stall_seconds=60.0)
    outcome, events = run(backend, make_items(20), clock=lambda: now[0], limits=limits)
    assert len(outcome.done) == 20
    last = events[-1]
    assert isinstance(last, RunFinished)
    assert last.seconds == 50.0 * backend.polls


# --- interruption -------------------------------------------------------------------------------


def test_drain_finishes_what_runs_and_starts_nothing() -> None:
    stop = Stop()
    backend = FakeBackend(size=2)

    def ask() -> None:
        if len(backend.order) >= 3:
            stop.drain = True

    backend.on_poll = ask
    outcome, events = run(backend, make_items(20), stop=stop)
    assert outcome.interrupted
    assert not backend.open_calls
    assert 3 < len(outcome.done) < 20
    assert backend.finished == Counter(dict.fromkeys(outcome.done, 1))
    (draining,) = kinds(events, Draining)
    assert isinstance(draining, Draining)
    assert 1 <= draining.running <= 4


def test_a_crash_while_draining_starts_no_worker() -> None:
    stop = Stop()
    backend = FakeBackend(script(run=[0, 2, 2, 2]), size=1)

    def ask() -> None:
        stop.drain = stop.drain or len(backend.order) >= 1

    backend.on_poll = ask
    outcome, _ = run(backend, make_items(10), stop=stop)
    assert outcome.interrupted
    assert len(backend.actors) == 1
    assert set(outcome.done) == {"item0"}
    assert not outcome.quarantined


def test_hard_stop_waits_for_nothing() -> None:
    stop = Stop()
    backend = FakeBackend(size=2)

    def ask() -> None:
        if len(backend.order) >= 1:
            stop.drain = stop.hard = True

    backend.on_poll = ask
    outcome, _ = run(backend, make_items(20), stop=stop)
    assert outcome.interrupted
    assert backend.open_calls, "calls were left"
    assert not any(actor.alive for actor in backend.actors.values())


# --- any schedule of faults ---------------------------------------------------------------------


@st.composite
def schedules(draw: st.DrawFn) -> Callable[[str, int], int]:
    """A `choose` that follows a drawn list of numbers, then lets everything succeed."""
    weights = draw(st.sampled_from([1, 2, 4]))
    numbers = draw(st.lists(st.integers(0, 60), max_size=120))
    queue = iter(numbers)

    def choose(kind: str, n: int) -> int:
        number = next(queue, 0)
        if kind in ("start", "run", "ping") and number % weights:
            return 0  # milder schedules reach further
        return (number // weights) % n

    return choose


@given(
    choose=schedules(),
    costs=st.lists(st.sampled_from([0.0, 1.0, 2.0, 9.5]), max_size=12),
    size=st.integers(1, 4),
    depth=st.integers(1, 3),
)
def test_every_item_ends_exactly_once(
    choose: Callable[[str, int], int], costs: list[float], size: int, depth: int
) -> None:
    backend = FakeBackend(choose, size=size, depth=depth)  # it asserts the rules of giving
    items = make_items(len(costs), cost=lambda i: costs[i])
    outcome, events = run(backend, items, limits=replace(PATIENT, depth=depth))
    keys = {item.key for item in items}
    assert set(outcome.done) | set(outcome.quarantined) == keys
    assert not set(outcome.done) & set(outcome.quarantined)
    assert all(count <= 3 for count in backend.charged.values())
    assert set(outcome.quarantined) == {key for key, n in backend.charged.items() if n == 3}
    assert all(backend.finished[key] for key in outcome.done)
    assert not any(actor.alive for actor in backend.actors.values())
    ends = Counter(e.key for e in events if isinstance(e, ItemDone | ItemQuarantined))
    assert ends == Counter(keys)


@given(choose=schedules(), count=st.integers(0, 12), size=st.integers(1, 4))
def test_default_limits_end_every_run(
    choose: Callable[[str, int], int], count: int, size: int
) -> None:
    backend = FakeBackend(choose, size=size)
    try:
        outcome, _ = run(backend, make_items(count))
    except WorkerError as error:
        message = str(error)
        assert message.startswith(("no worker could be started: ", "20 workers were lost"))
    else:
        assert len(outcome.done) + len(outcome.quarantined) == count
    assert not any(actor.alive for actor in backend.actors.values())
    assert all(n <= 3 for n in backend.charged.values())


@given(
    choose=schedules(), count=st.integers(1, 12), size=st.integers(1, 3), after=st.integers(0, 30)
)
def test_interrupted_at_any_time_nothing_is_lost(
    choose: Callable[[str, int], int], count: int, size: int, after: int
) -> None:
    stop = Stop()
    backend = FakeBackend(choose, size=size)

    def ask() -> None:
        stop.drain = stop.drain or backend.polls > after

    backend.on_poll = ask
    outcome, _ = run(backend, make_items(count), stop=stop, limits=PATIENT)
    assert outcome.interrupted == stop.drain
    assert not backend.open_calls
    ended = len(outcome.done) + len(outcome.quarantined)
    assert ended == count if not stop.drain else ended <= count


def test_states_follow_the_answers() -> None:
    """The four states, as seen between polls."""
    seen: list[list[State]] = []
    backend = FakeBackend(script(run=[3]), size=1, depth=1)
    pool = Pool(make_items(2), backend, size=1, on_event=lambda event: None, limits=Limits(depth=1))
    backend.on_poll = lambda: seen.append(pool.states())
    pool.run()
    flat = [state for (state,) in seen]
    assert flat == [State.STARTING, State.BUSY, State.SUSPECT, State.BUSY, State.BUSY]


def test_a_worker_without_calls_is_idle() -> None:
    seen: list[list[State]] = []
    backend = FakeBackend(size=2)
    pool = Pool(make_items(2), backend, size=2, on_event=lambda event: None)
    backend.on_poll = lambda: seen.append(pool.states())
    pool.run()
    assert seen[-1] == [State.IDLE, State.BUSY]
