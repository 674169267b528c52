"""The pool on Ray: in this machine's cores and GPUs, or on a cluster. Nothing else imports ray.

Three choices differ from what Ray offers, each because of what was seen when workers were killed:

- `max_restarts=0`; the pool makes the new worker. Ray's own restarts hide what happened: a worker
  that crashes while it loads the model is restarted for ever without a word to the driver, a
  worker ended for lack of memory is reported as "unavailable", and errors arrive 2 s late.
- A `_Ledger` actor beside the driver is told of every item just before a worker starts it, and the
  worker waits for the answer (0.6 ms). The driver's own view cannot say which item a dead worker
  was at: receipts of items finished just before its death may be lost with it, so the item that
  kills workers could stay uncharged and its finished neighbours be charged for it. Files would do
  on one machine only, and marker calls beside the work are lost in the same way as receipts.
- Payloads travel as bytes that the worker unpickles after that, so that one that kills its reader
  is charged as well.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from actstore.errors import ActstoreError, InputError, ResourceError, WorkerError
from actstore.runtime.environment import cores, prepare_driver, worker_environment
from actstore.runtime.events import Event
from actstore.runtime.execute import (
    Outcome,
    WorkerFactory,
    WorkItem,
    ignore,
    one_line,
    stop_on_signals,
)
from actstore.runtime.pool import Dead, Done, Limits, Lost, Pool, Raised, Ready, Reply

__all__ = ["RayExecutor"]

OBJECT_STORE_BYTES = 256 * 2**20
"""Workers read and write the store themselves; Ray carries receipts only."""


@dataclass
class RayExecutor:
    """Runs items on Ray workers, each with `num_cpus` cores and `num_gpus` GPUs.

    `workers`: None makes as many as fit. `address`: None starts a Ray of our own on this machine,
    except inside a Ray job, which uses its cluster; `local` always starts one; `auto` or
    `HOST:PORT` joins a cluster. A Ray that this process has already joined is used as it is and
    left running. `worker_env` adds environment variables for the workers.

    A context manager: Ray is started by the first `execute` and ended on exit, if it is ours.
    Raises ResourceError if the cluster cannot be reached or a worker does not fit.
    """

    workers: int | None = None
    address: str | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    worker_env: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    _connection: _Connection | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers is {self.workers}: give at least 1")
        if self.num_cpus <= 0:
            raise InputError(f"num_cpus is {self.num_cpus:g}: give more than 0")
        if self.address is not None and "://" in self.address:
            raise InputError(
                f"address {self.address!r} is not supported: give the cluster's HOST:PORT, auto or "
                "local"
            )

    def execute(
        self,
        items: Sequence[WorkItem],
        factory: WorkerFactory,
        *,
        on_event: Callable[[Event], None] = ignore,
    ) -> Outcome:
        """See `Executor.execute`."""
        if not items:
            return Outcome()
        share = (self.num_cpus, self.num_gpus)
        if self._connection is None:
            self._connection = _connect(self.address, self.workers, *share)
        size = min(self.workers or max(1, _fitting(*share)), len(items))
        backend = _RayBackend(factory, *share, self.worker_env)
        try:
            # After ray.init, which installs a handler of its own.
            with stop_on_signals() as stop:
                pool = Pool(
                    items, backend, size=size, on_event=on_event, limits=self.limits, stop=stop
                )
                return pool.run()
        finally:
            backend.close()

    def close(self) -> None:
        """End Ray, if it is ours. May be called again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


# --- connecting -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Connection:
    ours: bool
    sigterm: Any = None  # the handler that ray.init replaced

    def close(self) -> None:
        if not self.ours:
            return
        import ray

        ray.shutdown()
        _show_remarks(True)
        if self.sigterm is not None:
            signal.signal(signal.SIGTERM, self.sigterm)


def _connect(
    address: str | None, workers: int | None, num_cpus: float, num_gpus: float
) -> _Connection:
    if address is None and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        address = os.environ.get("RAY_ADDRESS")
    local = address is None or address == "local"
    prepare_driver(own=local)
    import ray

    if ray.is_initialized():
        return _Connection(ours=False)
    main = threading.current_thread() is threading.main_thread()
    sigterm = signal.getsignal(signal.SIGTERM) if main else None
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if local:
            # Never by default: `address=None` would join any cluster found on this machine.
            ray.init(
                address="local",
                num_cpus=max(math.ceil((workers or 1) * num_cpus), cores()),
                include_dashboard=False,
                dashboard_host="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        if local:
            raise ResourceError(f"Ray cannot be started here: {one_line(error)}") from error
        raise ResourceError(
            f"no connection to the Ray cluster at {address}: check that it runs and can be "
            "reached; if it needs a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE "
            f"({one_line(error)})"
        ) from error
    _show_remarks(False)
    connection = _Connection(ours=True, sigterm=sigterm)
    fit = _fitting(num_cpus, num_gpus)
    if local and fit < (workers or 1):  # they would wait in silence; a cluster may still grow
        connection.close()
        raise ResourceError(
            f"{workers or 1} workers with {num_cpus:g} CPUs and {num_gpus:g} GPUs each do not fit: "
            f"this machine has room for {fit}"
        )
    return connection


def _show_remarks(show: bool) -> None:
    """Ray's own remarks on lost workers go to stdout, which is for results, and say what the pool
    reports anyway. There is no public switch."""
    module = sys.modules.get("ray._private.worker")
    if module is not None:
        module._worker_logs_enabled = show  # type: ignore[attr-defined]


def _fitting(num_cpus: float, num_gpus: float) -> int:
    """How many workers fit the whole cluster as it is now; may be 0."""
    import ray

    have: dict[str, float] = ray.cluster_resources()
    shares = {"CPU": num_cpus, "GPU": num_gpus}
    return math.floor(min(have.get(name, 0) / need for name, need in shares.items() if need > 0))


# --- in the worker ----------------------------------------------------------------------------


class _Ledger:
    """Remembers the last ticket that each worker has started."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}

    def begin(self, worker: int, ticket: int) -> None:
        self._last[worker] = ticket

    def last(self, worker: int) -> int | None:
        return self._last.get(worker)


class _Worker:
    """The actor. An error of the factory is kept and raised by `ping`, since what Ray makes of
    errors in a constructor is neither one line nor the same class."""

    def __init__(self, factory: bytes, ledger: Any, number: int) -> None:
        self._ledger = ledger
        self._number = number
        self._error: ActstoreError | None = None
        try:
            self._work = _plainly(lambda: pickle.loads(factory)())
        except ActstoreError as error:
            self._error = error

    def ping(self) -> None:
        if self._error is not None:
            raise self._error

    def run(self, ticket: int, payload: bytes) -> tuple[Any, float]:
        import ray

        ray.get(self._ledger.begin.remote(self._number, ticket))
        began = time.perf_counter()
        receipt = _plainly(lambda: self._work(pickle.loads(payload)))
        return receipt, time.perf_counter() - began


def _plainly(work: Callable[[], Any]) -> Any:
    """Errors that are not ours become one line: the driver may be unable to unpickle others."""
    try:
        return work()
    except InputError:
        raise
    except Exception as error:
        raise WorkerError(one_line(error, place=True)) from error


# --- the backend ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    worker: int
    ticket: int | None  # None for a ping


class _RayBackend:
    """`Backend` over Ray actors."""

    def __init__(
        self,
        factory: WorkerFactory,
        num_cpus: float,
        num_gpus: float,
        worker_env: Mapping[str, str],
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray = ray
        self._factory = _pickled(factory, "the worker's factory")
        environment = worker_environment(num_cpus, num_gpus) | dict(worker_env)
        self._class = ray.remote(_Worker).options(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=1,
            runtime_env={"env_vars": environment},
        )
        # On the driver's own machine: they end together.
        here = ray.get_runtime_context().get_node_id()
        self._ledger = (
            ray.remote(_Ledger)
            .options(
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
            )
            .remote()
        )
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, _Call] = {}

    def start(self, worker: int) -> None:
        self._actors[worker] = self._class.remote(self._factory, self._ledger, worker)
        # Without retries: a worker that crashes while it loads is an answer too.
        self._calls[self._actors[worker].ping.remote()] = _Call(worker, None)

    def submit(self, worker: int, ticket: int, item: WorkItem) -> None:
        payload = _pickled(item.payload, f"the payload of item {item.key}")
        call = self._actors[worker].run.remote(ticket, payload)
        self._calls[call] = _Call(worker, ticket)

    def ping(self, worker: int) -> None:
        # Retried by Ray until the worker can be reached again or is known to be dead.
        ping = self._actors[worker].ping.options(max_task_retries=-1)
        self._calls[ping.remote()] = _Call(worker, None)

    def discard(self, worker: int) -> None:
        actor = self._actors.pop(worker, None)
        if actor is not None:
            self._ray.kill(actor, no_restart=True)

    def poll(self, timeout: float) -> list[Reply]:
        waiting = list(self._calls)
        if not self._ray.wait(waiting, num_returns=1, timeout=timeout)[0]:
            return []
        ready = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]
        begun: dict[int, int | None] = {}
        return [self._reply(call, self._calls.pop(call), begun) for call in ready]

    def close(self) -> None:
        """End the ledger; the pool has ended the workers."""
        self._ray.kill(self._ledger, no_restart=True)

    def _reply(self, reference: Any, call: _Call, begun: dict[int, int | None]) -> Reply:
        errors = self._ray.exceptions
        try:
            value = self._ray.get(reference)
        except errors.RayTaskError as error:
            cause: Exception = error.cause
            if call.ticket is None:
                return Dead(call.worker, cause)
            if isinstance(cause, errors.RayActorError):  # the ledger's, not the work's
                return Lost(call.worker, call.ticket, _translated(cause), started=False)
            return Raised(call.worker, call.ticket, cause)
        except errors.RayError as error:
            if call.ticket is None:
                return Dead(call.worker, _translated(error))
            if call.worker not in begun:
                begun[call.worker] = self._last_begun(call.worker, call.ticket)
            started = begun[call.worker] == call.ticket
            return Lost(call.worker, call.ticket, _translated(error), started)
        if call.ticket is None:
            return Ready(call.worker)
        return Done(call.worker, call.ticket, *value)

    def _last_begun(self, worker: int, ticket: int) -> int | None:
        """The last ticket that `worker` began; `ticket` if the ledger cannot say."""
        try:
            last: int | None = self._ray.get(self._ledger.last.remote(worker), timeout=30)
        except self._ray.exceptions.RayError:
            return ticket
        return last


def _pickled(value: Any, name: str) -> bytes:
    from ray import cloudpickle

    try:
        data: bytes = cloudpickle.dumps(value)
    except Exception as error:
        raise WorkerError(f"{name} cannot be sent to a worker: {one_line(error)}") from error
    return data


def _translated(error: Exception) -> WorkerError:
    """Ray's pages on a lost worker as one line."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    if kind == "OutOfMemoryError":
        used = re.search(r"was ([\d.]+GB used / [\d.]+GB)", text)
        return WorkerError(
            f"worker ended: memory ran out ({used.group(1) if used else 'no detail'})"
        )
    if getattr(error, "actor_init_failed", False):  # ours keeps errors, so: before it could run
        return WorkerError(str(error).strip().splitlines()[-1])
    if "node has died" in text:
        return WorkerError("the worker's machine was lost")
    if kind == "ActorDiedError" and "worker process has died" in text:
        return WorkerError("worker process died (killed, crashed, or out of memory)")
    return WorkerError(f"worker lost: {kind}: {text[:300]}")
