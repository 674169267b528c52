"""The pool on a real Ray: workers are killed, and every kill is shown to have taken effect.

One Ray of two cores serves all tests but those that start a driver of their own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from actstore.errors import InputError, ResourceError, UnsupportedModelError, WorkerError
from actstore.runtime.environment import prepare_driver
from actstore.runtime.events import Event, ItemDone, ItemRetried, WorkerLost
from actstore.runtime.execute import Outcome, WorkItem
from actstore.runtime.ray import RayExecutor, _connect, _fitting, _translated

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets and logs of Ray's own
]


@pytest.fixture(scope="module")
def two_cores() -> Iterator[None]:
    prepare_driver(own=True)
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


# --- work: what it did is written to files, which survive any crash -----------------------------


@dataclass(frozen=True)
class Recording:
    """A factory. Each run of an item appends the worker's pid to the file named like the item,
    then does what the payload's first word says."""

    folder: str

    def __call__(self) -> Callable[[Any], Any]:
        return self.work

    def work(self, payload: tuple[str, str]) -> dict[str, Any]:
        key, action = payload
        with open(f"{self.folder}/{key}", "a") as file:
            file.write(f"{os.getpid()}\n")
        if action == "die":
            die()
        elif action == "raise":
            raise ValueError(f"bad row in {key}")
        elif action == "refuse":
            raise ResourceError("no space left on /data: free 3 GB")
        elif action == "unpicklable":
            return {"lock": threading.Lock()}
        elif action == "hang once" and len(runs(self.folder, key)) == 1:
            time.sleep(600)
        return {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}


def runs(folder: str | Path, key: str) -> list[int]:
    """The pid of every run of an item."""
    path = Path(folder) / key
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillsItsReader:
    def __reduce__(self) -> tuple[Any, ...]:
        return die, ()


class Unsupported:
    def __call__(self) -> Callable[[Any], Any]:
        raise UnsupportedModelError("model X has no known hook points: see the list")


class Broken:
    def __call__(self) -> Callable[[Any], Any]:
        raise OSError("weights of model X\nare missing")


class Crashing:
    def __call__(self) -> Callable[[Any], Any]:
        die()
        raise AssertionError


def make_items(**actions: str) -> list[WorkItem]:
    return [WorkItem(key, 1.0, (key, action)) for key, action in actions.items()]


def plain(count: int) -> dict[str, str]:
    return {f"item{i}": "" for i in range(count)}


def run(
    items: Sequence[WorkItem], factory: Callable[[], Any], workers: int = 2
) -> tuple[Outcome, list[Event]]:
    events: list[Event] = []
    with RayExecutor(workers) as executor:
        outcome = executor.execute(items, factory, on_event=events.append)
    return outcome, events


def retried(events: Sequence[Event]) -> set[str]:
    return {event.key for event in events if isinstance(event, ItemRetried)}


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


# --- the ordinary way ---------------------------------------------------------------------------


def test_items_run_in_workers_and_a_ray_that_is_not_ours_goes_on(
    two_cores: None, tmp_path: Path
) -> None:
    import ray

    before = signal.getsignal(signal.SIGTERM)
    outcome, events = run(make_items(**plain(8)), Recording(str(tmp_path)))
    assert set(outcome.done) == set(plain(8))
    assert not outcome.quarantined
    assert not outcome.interrupted
    assert all(len(runs(tmp_path, key)) == 1 for key in outcome.done)
    pids = {receipt["pid"] for receipt in outcome.done.values()}
    assert os.getpid() not in pids
    assert {receipt["threads"] for receipt in outcome.done.values()} == {"1"}
    assert not [event for event in events if isinstance(event, WorkerLost | ItemRetried)]
    assert all(event.seconds < 1 for event in events if isinstance(event, ItemDone))
    assert ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is before
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids))  # workers end with the run


def test_no_items_need_no_ray() -> None:
    assert run([], Recording("nowhere"))[0] == Outcome()


# --- faults -------------------------------------------------------------------------------------


def test_a_worker_killed_in_the_middle_of_an_item(two_cores: None, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        (pid,) = wait_for(lambda: runs(tmp_path, "slow"))
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    actions = plain(5) | {"slow": "hang once"}
    outcome, events = run(make_items(**actions), Recording(str(tmp_path)))
    killer.join()
    assert set(outcome.done) == set(actions)
    assert len(runs(tmp_path, "slow")) == 2, "the kill hit the item at work"
    assert runs(tmp_path, "slow")[0] == killed[0]
    assert outcome.done["slow"]["pid"] != killed[0]
    assert retried(events) == {"slow"}, "nothing else is charged"
    (lost,) = (event for event in events if isinstance(event, WorkerLost))
    assert lost.error == "worker process died (killed, crashed, or out of memory)"


def test_poison_is_run_three_times_and_the_rest_is_done(two_cores: None, tmp_path: Path) -> None:
    actions = plain(12) | {"item5": "die"}
    outcome, events = run(make_items(**actions), Recording(str(tmp_path)))
    assert set(outcome.done) == set(actions) - {"item5"}
    assert outcome.quarantined == {
        "item5": "worker process died (killed, crashed, or out of memory)"
    }
    assert len(runs(tmp_path, "item5")) == 3
    assert len(set(runs(tmp_path, "item5"))) == 3, "each run killed its worker"
    assert retried(events) == {"item5"}, "neighbours are never charged"


def test_a_payload_that_kills_its_reader_is_charged_too(two_cores: None, tmp_path: Path) -> None:
    items = [*make_items(**plain(3)), WorkItem("deadly", 9.0, KillsItsReader())]
    outcome, events = run(items, Recording(str(tmp_path)), workers=1)
    assert set(outcome.done) == set(plain(3))
    assert set(outcome.quarantined) == {"deadly"}
    assert retried(events) == {"deadly"}
    assert len([event for event in events if isinstance(event, WorkerLost)]) == 3


def test_a_raising_item_costs_no_worker(two_cores: None, tmp_path: Path) -> None:
    actions = plain(4) | {"bad": "raise", "odd": "unpicklable"}
    outcome, events = run(make_items(**actions), Recording(str(tmp_path)), workers=1)
    assert set(outcome.done) == set(plain(4))
    assert outcome.quarantined["bad"].startswith("ValueError: bad row in bad (test_ray.py:")
    assert outcome.quarantined["odd"].startswith("TypeError: ")
    assert len(runs(tmp_path, "bad")) == len(runs(tmp_path, "odd")) == 3
    assert len({pid for key in actions for pid in runs(tmp_path, key)}) == 1, "the same worker"
    assert not [event for event in events if isinstance(event, WorkerLost)]


def test_an_input_error_stops_the_run_as_it_is(two_cores: None, tmp_path: Path) -> None:
    items = make_items(**plain(20))
    items[0] = WorkItem("item0", 9.0, ("item0", "refuse"))
    with pytest.raises(ResourceError, match="^no space left on /data: free 3 GB$") as caught:
        run(items, Recording(str(tmp_path)))
    assert type(caught.value) is ResourceError
    assert len(runs(tmp_path, "item0")) == 1


@pytest.mark.parametrize(
    ("factory", "kind", "message"),
    [
        (Unsupported(), UnsupportedModelError, "^model X has no known hook points: see the list$"),
        (
            Broken(),
            WorkerError,
            "^no worker could be started: OSError: weights of model X are missing .test_ray.py:",
        ),
        (Crashing(), WorkerError, "^no worker could be started: worker process died"),
    ],
)
def test_a_factory_that_fails(
    two_cores: None, factory: Callable[[], Any], kind: type[Exception], message: str
) -> None:
    began = time.monotonic()
    with pytest.raises(kind, match=message) as caught:
        run(make_items(**plain(3)), factory, workers=1)
    assert type(caught.value) is kind
    assert time.monotonic() - began < 40


def test_what_cannot_be_sent_is_named(two_cores: None, tmp_path: Path) -> None:
    item = WorkItem("unit7", 1.0, threading.Lock())
    with pytest.raises(WorkerError, match="payload of item unit7 cannot be sent to a worker"):
        run([item], Recording(str(tmp_path)))
    with pytest.raises(WorkerError, match="factory cannot be sent to a worker: TypeError"):
        run([item], threading.Lock().acquire)


def test_how_many_fit(two_cores: None) -> None:
    assert [_fitting(cpus, 0.0) for cpus in (0.5, 1.0, 2.0, 3.0)] == [4, 2, 1, 0]
    assert _fitting(1.0, 1.0) == 0, "no GPU"


def test_losses_in_one_line() -> None:
    from ray import exceptions

    memory = exceptions.OutOfMemoryError(
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
        "192.0.2.2) was 22.90GB used / 23.54GB limit (0.97)\nOOM kill reason: ..."
    )
    unavailable = exceptions.ActorUnavailableError("Socket\nclosed", None)
    node = exceptions.RayActorError(error_msg="No.\nThe actor died because its node has died.")
    assert str(_translated(node)) == "the worker's machine was lost"
    assert str(_translated(memory)) == "worker ended: memory ran out (22.90GB used / 23.54GB)"
    assert "\n" not in str(_translated(unavailable))
    assert "Socket closed" in str(_translated(unavailable))


# --- which Ray ----------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The arguments of every ray.init; nothing is started. As in a shell, not in a Ray job."""
    import ray

    made: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: made.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 64.0})
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield made
    from actstore.runtime.ray import _show_remarks

    _show_remarks(True)


def test_alone_we_start_our_own(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.7:6379")  # somebody's cluster
    for address in (None, "local"):
        assert _connect(address, 50, 1.0, 0.0).ours
    for options in calls:
        assert options["address"] == "local"
        assert options["num_cpus"] == 50, "as many as are asked for, whatever the machine has"
        assert options["dashboard_host"] == "127.0.0.1"
        assert not options["include_dashboard"]


def test_in_a_job_we_use_its_cluster(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.7:6379")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert _connect(None, 100, 1.0, 1.0).ours, "resources are not checked: a cluster may grow"
    assert _connect("192.0.2.8:6379", 2, 1.0, 0.0).ours
    assert [options.pop("address") for options in calls] == ["192.0.2.7:6379", "192.0.2.8:6379"]
    assert all(set(options) == {"log_to_driver", "logging_level"} for options in calls)


def test_workers_that_do_not_fit(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(ResourceError, match=r"3 workers with 1 CPUs and 1 GPUs each do not fit"):
        _connect(None, 3, 1.0, 1.0)


def test_no_connection(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(**options: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ResourceError, match=r"cluster at 192.0.2.7:6379: .*RAY_AUTH_TOKEN_PATH"):
        _connect("192.0.2.7:6379", None, 1.0, 0.0)
    with pytest.raises(ResourceError, match=r"Ray cannot be started here: ConnectionError"):
        _connect(None, None, 1.0, 0.0)


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"num_cpus": 0.0}, {"address": "ray://head:10001"}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        RayExecutor(**options)


# --- a driver of its own ------------------------------------------------------------------------

DRIVER = """
    import sys

    from test_ray import Recording, Sleeping, make_items
    from actstore.runtime.ray import RayExecutor

    if __name__ == "__main__":
        folder = sys.argv[1]
        with RayExecutor(2) as executor:
            first = executor.execute(make_items(a="die", b=""), Recording(folder))
            print(sorted(first.done), sorted(first.quarantined), flush=True)
            second = executor.execute(
                make_items(**{f"long{i}": "" for i in range(50)}), Sleeping(folder, sys.argv[2])
            )
        print(len(second.done), second.interrupted, flush=True)
        sys.exit(130 if second.interrupted else 0)
"""


@dataclass(frozen=True)
class Sleeping:
    """A factory. Notes the start and the end of each item in files, with a sleep in between."""

    folder: str
    seconds: str

    def __call__(self) -> Callable[[Any], Any]:
        return self.work

    def work(self, payload: tuple[str, str]) -> None:
        for moment in ("started", "finished"):
            with open(f"{self.folder}/{moment}", "a") as file:
                file.write(f"{os.getpid()}\n")
            if moment == "started":
                time.sleep(float(self.seconds))


@pytest.mark.parametrize(
    ("seconds", "signals"),
    [("0.5", [signal.SIGINT]), ("600", [signal.SIGTERM, signal.SIGTERM])],
    ids=["drain", "hard"],
)
def test_interrupted_driver(tmp_path: Path, seconds: str, signals: list[int]) -> None:
    """The first signal lets items finish, the second does not; no process of Ray is left."""
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    driver = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), seconds],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
    )
    try:
        wait_for(lambda: len(runs(tmp_path, "started")) >= 2 or driver.poll() is not None)
        family = psutil.Process(driver.pid).children(recursive=True)
        names = " ".join(process.name() for process in family)
        assert "raylet" in names, "the driver's own Ray was running"
        for number in signals:
            os.killpg(driver.pid, number) if len(signals) == 1 else driver.send_signal(number)
            time.sleep(0.5)
        out, err = driver.communicate(timeout=60)
    finally:
        driver.kill()
    assert driver.returncode == 130, err
    done = len(runs(tmp_path, "finished"))
    # Ray's own remark on the lost worker would be here too.
    assert out.splitlines() == ["['b'] ['a']", f"{done} True"]
    assert err == ""
    if len(signals) == 1:
        assert 2 <= done == len(runs(tmp_path, "started")) < 50
    else:
        assert done == 0
    _, left = psutil.wait_procs(family, timeout=60)
    assert left == []
