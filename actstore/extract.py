"""Extraction of one work unit: token ids in, the unit's rows of every array out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from actstore.errors import WorkerError
from actstore.pooling import pool_rows
from actstore.site import Site
from actstore.store.layout import DENSE_MASKS, DTYPES, ArraySpec
from actstore.store.reader import Store
from actstore.store.writer import publish_unit

if TYPE_CHECKING:
    import torch

    from actstore.model.forward import Extractor

__all__ = ["ExtractWorker", "UnitDone", "extract_unit"]

Rows = npt.NDArray[Any]


@dataclass(frozen=True)
class UnitDone:
    """What a worker reports of a finished unit."""

    unit: int
    tokens: int
    n_bytes: int
    seconds: float

    @property
    def counters(self) -> dict[str, float]:
        """What the progress display adds up."""
        return {"tokens": self.tokens, "bytes": self.n_bytes}


@dataclass(frozen=True)
class ExtractWorker:
    """Made in the driver, called once in each worker process: loads the model, returns the
    function that extracts a unit by its number."""

    store: str
    model_id: str
    revision: str | None
    trust_remote_code: bool
    device: str

    def __call__(self) -> Callable[[int], UnitDone]:
        import torch

        from actstore.model.forward import Extractor
        from actstore.model.loading import describe_model

        if self.device == "cpu":
            # One thread: rows are then bit-identical however texts are packed, and several
            # workers on one machine do not fight over cores.
            torch.set_num_threads(1)
        store = Store.open(self.store)
        request = store.manifest.request
        info = describe_model(
            self.model_id, revision=self.revision, trust_remote_code=self.trust_remote_code
        )
        extractor = Extractor.load(
            info,
            tuple(Site.parse(site) for site in request.sites),
            dtype=request.dtype,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
        )

        def work(unit: int) -> UnitDone:
            return extract_unit(store, extractor, unit)

        return work


def extract_unit(store: Store, extractor: Extractor, number: int) -> UnitDone:
    """Run the model over one unit's examples and publish the unit's rows.

    Byte-identical whenever it is repeated with the same software and device: which texts share
    a forward pass depends on the unit alone.
    """
    started = time.perf_counter()
    unit = store.plan.units[number]
    ids, offsets = store.unit_tokens(unit)
    masks = {name: store.unit_mask(unit, name) for name in store.masks}
    wanted = np.unique(np.concatenate([rows for rows, _ in masks.values()]))
    buffers = _run_model(store, extractor, ids, offsets, wanted)
    receipt = publish_unit(store, number, _arrays(store, buffers, wanted, masks))
    records = [*receipt.shards.values(), *receipt.parts.values()]
    n_bytes = sum(record.size for record in records)
    return UnitDone(number, unit.n_tokens, n_bytes, time.perf_counter() - started)


def _run_model(
    store: Store,
    extractor: Extractor,
    ids: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    wanted: npt.NDArray[np.int64],
) -> dict[str, Rows]:
    """Rows `wanted` (token numbers within the unit, sorted) of every site, in the store's dtype."""
    import torch

    dtype = getattr(torch, store.manifest.request.dtype)
    place = np.full(len(ids), -1, dtype=np.int64)
    place[wanted] = np.arange(len(wanted))
    shape = (len(wanted), store.d_model)
    buffers = {site: torch.empty(shape, dtype=dtype) for site in store.sites}
    written = dict.fromkeys(store.sites, 0)

    def sink(site: Site, rows: torch.Tensor, source: npt.NDArray[np.int64]) -> None:
        target = place[source]
        keep = np.flatnonzero(target >= 0)
        if len(keep) < len(target):
            rows, target = rows[torch.from_numpy(keep).to(rows.device)], target[keep]
        name = str(site)
        buffers[name][torch.from_numpy(target)] = rows.to("cpu", dtype)
        written[name] += len(target)

    if len(wanted):
        pieces = [ids[a:b] for a, b in pairwise(offsets)]
        extractor.run(pieces, sink, pack_tokens=store.manifest.request.pack_tokens)
        short = [site for site, count in written.items() if count != len(wanted)]
        if short:
            raise WorkerError(
                f"the forward pass gave {written[short[0]]} of {len(wanted)} rows for site "
                f"{short[0]}: nothing of this unit was stored; please report this model"
            )
    return {site: _numpy(buffer) for site, buffer in buffers.items()}


def _numpy(tensor: torch.Tensor) -> Rows:
    import torch

    if tensor.dtype == torch.bfloat16:
        bits: Rows = tensor.view(torch.uint16).numpy().view(DTYPES["bfloat16"])
        return bits
    values: Rows = tensor.numpy()
    return values


def _arrays(
    store: Store,
    buffers: dict[str, Rows],
    wanted: npt.NDArray[np.int64],
    masks: dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
) -> Iterator[tuple[ArraySpec, Rows]]:
    dtype = DTYPES[store.manifest.request.dtype]
    for site in store.sites:
        for mask, (rows, offsets) in masks.items():
            values = buffers[site][np.searchsorted(wanted, rows)]
            yield store.rows_array(site, mask), values
            if mask not in DENSE_MASKS:
                for pool in store.pools:
                    pooled = pool_rows(values.astype(np.float32), offsets, pool)
                    yield store.pooled_array(site, mask, pool), pooled.astype(dtype)
