"""Whatever dies, the same command again ends in the bytes of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from app_helpers import actstore, command, environment, mixed_texts, tree, write_jsonl
from tiny_models import make_tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

N_TEXTS = 240


class Job:
    """The inputs of one extraction, and its undisturbed result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = make_tiny_model("gpt2", folder / "model")
        rows = [{"text": text} for text in mixed_texts(N_TEXTS, seed=3)]
        self.dataset = write_jsonl(folder / "texts.jsonl", rows)
        self.actstore(folder / "undisturbed")
        self.wanted = tree(folder / "undisturbed")

    def arguments(self, store: Path, *more: object) -> tuple[object, ...]:
        return (
            *("extract", "--model", self.model, "--dataset", self.dataset, "--store", store),
            *("--masks", "content,last", "--pool", "mean", "--layers", "0,2,3"),
            *("--shard-mb", "0.1", "--workers", "2", "--progress", "json", *more),
        )

    def actstore(self, store: Path, *more: object) -> subprocess.CompletedProcess[str]:
        return actstore(*self.arguments(store, *more))

    def start(self, store: Path) -> subprocess.Popen[str]:
        with (self.folder / f"{store.name}.log").open("a") as log:
            return subprocess.Popen(
                command(*self.arguments(store)),
                stdout=subprocess.DEVNULL,
                stderr=log,
                text=True,
                env=environment(),
                start_new_session=True,
            )

    def log(self, store: Path) -> list[dict[str, object]]:
        lines = (self.folder / f"{store.name}.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("faults"))


def wait_until(condition: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the awaited moment never came"
        time.sleep(0.005)


def units_done(store: Path) -> int:
    pending = store / "commits" / "pending"
    return len(list(pending.glob("????????.json"))) if pending.is_dir() else 0


def committed(store: Path) -> bool:
    return (store / "commits" / "00000001.json").exists()


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.name().startswith("ray::_Worker") or "ray::_Worker" in child.cmdline()[0]:
                found.append(child)
        except (psutil.Error, IndexError):
            continue
    return found


def end(orphans: list[psutil.Process]) -> None:
    """Ray's daemons take up to a minute to notice that their driver was killed: do not wait."""
    for process in orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(orphans, timeout=30)
    assert not alive, alive


def test_sigkill_of_the_driver_at_random_moments(job: Job) -> None:
    """Killed three times in one store: before the first unit, in the middle, near the end."""
    store = job.folder / "driver-killed"
    rng = random.Random(5)
    n_units = len(json.loads((job.folder / "undisturbed/plan.json").read_text())["units"]["stop"])
    assert n_units > 20
    killed_at: list[int] = []
    orphans: list[psutil.Process] = []
    for part in (0.0, 0.4, 0.8):
        process = job.start(store)
        moment = int(part * n_units) + rng.randint(0, n_units // 8)
        wait_until(lambda m=moment: (store / "plan.json").exists() and units_done(store) >= m)
        time.sleep(rng.random() * 0.05)
        orphans += psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not committed(store)
        killed_at.append(units_done(store))  # its workers may live on for a while and write too
    assert killed_at == sorted(killed_at)
    assert killed_at[-1] > killed_at[0]
    assert actstore("verify", store, code=1).stdout.count("unfinished") == 1
    job.actstore(store)
    end(orphans)
    assert tree(store) == job.wanted
    assert "good" in actstore("verify", store, "--deep").stdout


def test_sigkill_of_workers(job: Job) -> None:
    store = job.folder / "workers-killed"
    process = job.start(store)
    for moment in (1, 8):
        wait_until(lambda m=moment: units_done(store) >= m and workers_of(process))
        victim = random.Random(moment).choice(workers_of(process))
        victim.send_signal(signal.SIGKILL)
    assert process.wait(timeout=240) == 0
    lost = [event for event in job.log(store) if event["event"] == "worker_lost"]
    assert len(lost) == 2, "both kills took effect"
    assert tree(store) == job.wanted


def test_ctrl_c_drains_and_resumes(job: Job) -> None:
    store = job.folder / "interrupted"
    process = job.start(store)
    wait_until(lambda: units_done(store) >= 3)
    descendants = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130
    _, alive = psutil.wait_procs(descendants, timeout=60)
    assert not alive, "an interrupted run takes its workers along"
    assert not committed(store)
    assert units_done(store) >= 3
    job.actstore(store)
    assert tree(store) == job.wanted


def test_two_runs_at_once(job: Job) -> None:
    """The second is told who writes, and changes nothing; the first ends as if alone."""
    store = job.folder / "contended"
    process = job.start(store)
    lock = store / ".lock"
    wait_until(lambda: lock.exists() and lock.read_text().strip() == str(process.pid))
    process.send_signal(signal.SIGSTOP)  # so that it cannot be through before the second starts
    try:
        second = actstore(*job.arguments(store), code=2)
    finally:
        process.send_signal(signal.SIGCONT)
    assert f"process {process.pid}" in second.stderr
    assert process.wait(timeout=240) == 0
    assert tree(store) == job.wanted
