"""A view: one site's rows under a mask, ragged or pooled; what a probe trains on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from actstore.errors import InputError, UnknownNameError
from actstore.pooling import check_pool, pool_rows
from actstore.store.layout import DENSE_MASKS, DTYPES

if TYPE_CHECKING:
    from actstore.store.reader import Store

__all__ = ["Batch", "View"]

Int64 = npt.NDArray[np.int64]
Rows = npt.NDArray[Any]

#: Rows pooled at a time when a pool is computed on reading: bounds memory, not results.
_POOL_ROWS = 65_536


class Batch(NamedTuple):
    """Some whole examples: `rows` [n, d] float32, `offsets` [k + 1], `examples` [k]."""

    rows: Rows
    offsets: Int64
    examples: Int64


class View:
    """Rows of one site. Made by `Store.view`.

    A mask that is not stored itself is read out of a stored mask that contains it; a pool that
    was not materialised is computed from the rows.
    """

    def __init__(self, store: Store, site: str, mask: str, pool: str | None) -> None:
        self.store = store
        self.site = site
        self.mask = mask
        self.pool = None if pool in (None, "none") else check_pool(str(pool))
        self._selection = store.mask(mask)
        self._stored = self._stored_mask()
        materialised = self.pool in store.pools and mask in store.masks and mask not in DENSE_MASKS
        self._pooled = (
            store.array(store.pooled_array(site, mask, self.pool))
            if self.pool is not None and materialised
            else None
        )
        self._rows = store.array(store.rows_array(site, self._stored))
        self._outer = store.mask(self._stored)
        starts = (
            self._outer.offsets[:-1]
            if self._stored in DENSE_MASKS
            else store.plan.array_starts(self._stored, self._outer.offsets)
        )
        self._array_starts: Int64 = starts

    def _stored_mask(self) -> str:
        """The stored mask to read from: this one, or a smallest one that contains it."""
        if self.mask in self.store.masks:
            return self.mask
        by_size = sorted(self.store.masks, key=self.store.n_rows)
        for name in by_size:
            outer = self.store.mask(name).rows
            if np.isin(self._selection.rows, outer, assume_unique=False).all():
                return name
        raise UnknownNameError(
            f"mask {self.mask!r} is neither stored in {self.store.path} nor part of a stored mask "
            f"({', '.join(self.store.masks)}): extract again with --masks {self.mask}"
        )

    @property
    def lengths(self) -> Int64:
        """[n_examples] rows of each example under the mask (before pooling)."""
        return self._selection.lengths

    @property
    def width(self) -> int:
        return self._rows.spec.width

    def __len__(self) -> int:
        return self.store.n_examples

    def __repr__(self) -> str:
        pool = f", pool={self.pool}" if self.pool else ""
        return f"View({self.store.path}: {self.site}, mask={self.mask}{pool})"

    def read(
        self, examples: Sequence[int] | npt.ArrayLike | None = None, *, dtype: str = "float32"
    ) -> tuple[Rows, Int64]:
        """Rows of `examples`, in that order, and where each begins.

        Args:
            examples: example numbers; None for all.
            dtype: `float32`, or `stored` for the bits as they are (bfloat16 as ml_dtypes).

        Returns:
            `(rows [n, d], offsets [len(examples) + 1])`; with a pool, one row per example, NaN
            where an example has no row under the mask.

        Raises:
            InputError: an example number that does not exist.
            MissingShardError, ChecksumError: the store lacks the rows or they are damaged.
        """
        if dtype not in ("float32", "stored"):
            raise InputError(f"dtype {dtype!r} is unknown: use float32 or stored")
        chosen = self._examples(examples)
        if self.pool is None:
            rows, offsets = self._read_rows(chosen)
            return self._convert(rows, dtype), offsets
        return self._convert(self._read_pooled(chosen), dtype), np.arange(len(chosen) + 1)

    def batches(self, rows: int = 65_536, *, shuffle: int | None = None) -> Batches:
        """Re-iterable batches of whole examples with about `rows` rows each (float32).

        `shuffle` is a seed: every pass visits all examples once, in another order.
        """
        if rows < 1:
            raise InputError(f"rows={rows}: a batch needs at least one row")
        return Batches(self, rows, shuffle)

    # --- inside -----------------------------------------------------------------------------

    def _examples(self, examples: Any) -> Int64:
        n = self.store.n_examples
        if examples is None:
            return np.arange(n, dtype=np.int64)
        chosen = np.asarray(examples)
        if chosen.ndim != 1 or (chosen.size and not np.issubdtype(chosen.dtype, np.integer)):
            raise InputError("examples must be a flat list of example numbers")
        chosen = chosen.astype(np.int64)
        wrong = chosen[(chosen < 0) | (chosen >= n)]
        if len(wrong):
            raise InputError(f"example {wrong[0]} does not exist: {self.store.path} has {n}")
        return chosen

    def _convert(self, rows: Rows, dtype: str) -> Rows:
        stored = DTYPES[self.store.manifest.request.dtype]
        if dtype == "stored":
            return rows.astype(stored, copy=False)
        if rows.dtype == DTYPES["bfloat16"]:
            # bfloat16 is the upper half of a float32: shifting beats the generic cast
            wide = rows.view(np.uint16).astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        return rows.astype(np.float32, copy=False)

    def _read_rows(self, examples: Int64) -> tuple[Rows, Int64]:
        lengths = self._selection.lengths[examples]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if self._stored == self.mask:
            return self._rows.read_runs(self._array_starts[examples], lengths), offsets
        begin = self._selection.offsets[examples]
        inner = np.repeat(begin - offsets[:-1], lengths) + np.arange(offsets[-1])
        owner = np.repeat(examples, lengths)
        place = np.searchsorted(self._outer.rows, self._selection.rows[inner])
        array_rows = self._array_starts[owner] + place - self._outer.offsets[owner]
        return self._rows.take(array_rows.astype(np.int64)), offsets

    def _read_pooled(self, examples: Int64) -> Rows:
        assert self.pool is not None
        if self._pooled is not None:
            return self._pooled.take(examples)
        out = np.empty((len(examples), self.width), dtype=np.float32)
        lengths = self._selection.lengths[examples]
        for begin, stop in _cut(lengths, _POOL_ROWS):
            rows, offsets = self._read_rows(examples[begin:stop])
            out[begin:stop] = pool_rows(self._convert(rows, "float32"), offsets, self.pool)
        return out


class Batches:
    """Re-iterable batches of a view; each pass gives every example once."""

    def __init__(self, view: View, rows: int, shuffle: int | None) -> None:
        self._view, self._rows, self._shuffle = view, rows, shuffle
        self._pass = 0

    def __iter__(self) -> Iterator[Batch]:
        order = np.arange(len(self._view), dtype=np.int64)
        if self._shuffle is not None:
            np.random.default_rng([self._shuffle, self._pass]).shuffle(order)
            self._pass += 1
        sizes = np.ones(len(order), np.int64) if self._view.pool else self._view.lengths[order]
        for begin, stop in _cut(sizes, self._rows):
            rows, offsets = self._view.read(order[begin:stop])
            yield Batch(rows, offsets, order[begin:stop])


def _cut(lengths: Int64, most: int) -> list[tuple[int, int]]:
    """Cut a list of lengths into runs of at most `most` in sum (single longer ones excepted)."""
    cuts, begin, total = [], 0, 0
    for index, length in enumerate(lengths.tolist()):
        if index > begin and total + length > most:
            cuts.append((begin, index))
            begin, total = index, 0
        total += length
    if len(lengths) > begin:
        cuts.append((begin, len(lengths)))
    return cuts
