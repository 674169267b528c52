"""What Ray and its workers are told through the environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from actstore.runtime.environment import cores, prepare_driver, worker_environment

NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty home folder, and none of Ray's variables; all is put back afterwards."""
    for name in [*NAMES, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"]:
        monkeypatch.setenv(name, "x")  # so that what the code sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_token_that_only_its_owner_can_read(home: Path) -> None:
    old = os.umask(0o022)
    try:
        prepare_driver(own=True)
    finally:
        os.umask(old)
    path = home / ".ray" / "auth_token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    assert len(path.read_text()) == 64
    assert os.listdir(path.parent) == ["auth_token"], "no draft is left"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_token_that_is_there_stays(home: Path) -> None:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("mine")
    prepare_driver(own=True)
    prepare_driver(own=False)
    assert path.read_text() == "mine"
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_cluster_is_joined_without_a_token_if_there_is_none(home: Path) -> None:
    prepare_driver(own=False)
    assert "RAY_AUTH_MODE" not in os.environ
    assert not (home / ".ray").exists()


def test_the_choice_of_the_user_stays(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    prepare_driver(own=True)
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert not (home / ".ray").exists()


def test_a_token_given_by_variable_is_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    prepare_driver(own=True)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert not (home / ".ray").exists()


def test_a_home_that_cannot_be_written(home: Path) -> None:
    (home / ".ray").write_text("a file where the folder should be")
    prepare_driver(own=True)
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    path.parent.rmdir()


def test_threads_follow_the_share_of_the_worker() -> None:
    assert worker_environment(1.0, 0.0)["OMP_NUM_THREADS"] == "1"
    assert worker_environment(0.25, 0.0)["MKL_NUM_THREADS"] == "1"
    assert worker_environment(4.0, 1.0)["OPENBLAS_NUM_THREADS"] == "4"


def test_gpus_are_hidden_only_from_workers_without_one() -> None:
    assert worker_environment(1.0, 0.0)["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(1.0, 0.5)


def test_the_import_path_of_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "own"
    installed = tmp_path / "lib" / "site-packages"
    own.mkdir()
    installed.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    standard = os.path.dirname(os.__file__)
    monkeypatch.setattr(
        sys, "path", ["", str(own), str(installed), standard, str(own), str(tmp_path / "absent")]
    )
    paths = worker_environment(1.0, 0.0)["PYTHONPATH"].split(os.pathsep)
    assert paths == [str(tmp_path), str(own), "${PYTHONPATH}"]


def test_cores() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
