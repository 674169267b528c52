"""Entry point of jobs on a Ray cluster: the same commands, on the cluster that runs the job."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping, Sequence

from actstore.cli.main import main
from actstore.cli.options import env_prefix

__all__ = ["main_of_job"]

_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the entry point of every job


def main_of_job(
    command: str,
    args: Sequence[str] | None = None,
    environment: MutableMapping[str, str] = os.environ,
) -> int:
    """Run `actstore COMMAND` with the job's own cluster as `--address`.

    The cluster is RAY_ADDRESS, or `auto` inside a job without it. It stands above the run file,
    whose address is the one seen from outside, and below an explicit `--address` or
    ACTSTORE_<COMMAND>_ADDRESS. Outside a job, and without RAY_ADDRESS, nothing is added.
    """
    address = environment.get("RAY_ADDRESS") or ("auto" if _IN_JOB in environment else "")
    variable = env_prefix(command) + "ADDRESS"
    if address and not environment.get(variable):
        environment[variable] = address
    return main([command, *(sys.argv[1:] if args is None else args)])
