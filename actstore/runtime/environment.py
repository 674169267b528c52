"""Environment variables for Ray: of the driver before it imports ray, and of the workers."""

from __future__ import annotations

import os
import secrets
import sys
import sysconfig
import tempfile
from pathlib import Path

__all__ = ["cores", "prepare_driver", "worker_environment"]

_DRIVER = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else workers re-create the environment of `uv run`, from the network.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Silences a warning; workers without a GPU get CUDA_VISIBLE_DEVICES from us.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def prepare_driver(*, own: bool) -> None:
    """Set what ray reads when it is imported; what the user has set stays.

    Token authentication is turned on, since Ray's ports listen on all interfaces whatever it is
    told. A cluster is joined with a token if there is one. For a Ray of our `own`, a token is
    created where Ray looks for it, readable by its owner only (Ray's would be readable by all).
    """
    for name, value in _DRIVER.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        path = Path.home() / ".ray" / "auth_token"
        if not path.exists():
            if not own:
                return
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _create_token(path)
            except OSError:  # no home, or a read-only one
                path = Path(tempfile.mkdtemp(prefix="actstore-ray-")) / "auth_token"
                _create_token(path)
                os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    os.environ["RAY_AUTH_MODE"] = "token"


def _create_token(path: Path) -> None:
    """Write a new token to `path` unless one is there; never seen half-written or by others."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was first: its token is as good
    finally:
        draft.unlink()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_environment(num_cpus: float, num_gpus: float) -> dict[str, str]:
    """Threads pinned to the worker's share, no GPU unless asked for, the driver's import path."""
    environment = dict.fromkeys(_THREADS, str(max(1, int(num_cpus))))
    environment["TOKENIZERS_PARALLELISM"] = "false"
    if not num_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    # Ray puts the worker's own value in place of the name in braces.
    environment["PYTHONPATH"] = os.pathsep.join([*_own_paths(), "${PYTHONPATH}"])
    return environment


def _own_paths() -> list[str]:
    """Folders on `sys.path` that no worker would have by itself: not those of the installation."""
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    found = []
    for entry in dict.fromkeys(os.path.abspath(entry) for entry in sys.path):
        path = Path(entry).resolve()
        installed = {"site-packages", "dist-packages"} & set(path.parts)
        if path.exists() and not installed and standard not in (path, *path.parents):
            found.append(entry)
    return found
