"""Reading one sharded array: which shard holds a row, and is it committed and whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from actstore.errors import ChecksumError, MissingShardError
from actstore.store.layout import DTYPES, ArraySpec
from actstore.store.publish import FileRecord
from actstore.store.shard import ShardReader

__all__ = ["ArrayReader", "read_array"]

Int64 = npt.NDArray[np.int64]


class ArrayReader:
    """Rows of one array, checked against the manifest before a byte is used.

    Args:
        root: the store's folder.
        spec: shape and chunking.
        records: manifest entry of every committed shard, by key.
        label: names a shard in errors, e.g. `unit 3, site resid_post.2, mask content`.
    """

    def __init__(
        self,
        root: Path,
        spec: ArraySpec,
        records: Mapping[str, FileRecord],
        label: Callable[[int], str],
    ) -> None:
        self.spec = spec
        self._root = root
        self._records = records
        self._label = label
        self._shards: dict[int, ShardReader] = {}

    @property
    def dtype(self) -> np.dtype[Any]:
        return DTYPES[self.spec.dtype]

    def _shard(self, shard: int) -> ShardReader:
        reader = self._shards.get(shard)
        if reader is None:
            key, label = self.spec.shard_key(shard), self._label(shard)
            record = self._records.get(key)
            if record is None:
                raise MissingShardError(
                    f"{label}: not extracted yet ({key} is in no commit); "
                    "run the same `actstore extract` command again"
                )
            path = self._root / key
            reader = ShardReader(path, self.spec, shard, label, record.chunks or "")
            if path.stat().st_size != record.size:
                raise ChecksumError(
                    f"{label}: {path} has {path.stat().st_size} bytes, its commit says "
                    f"{record.size}; run `actstore verify`"
                )
            self._shards[shard] = reader
        return reader

    def read_runs(self, starts: Int64, lengths: Int64) -> npt.NDArray[Any]:
        """Rows `starts[i] : starts[i] + lengths[i]` for each i, one run after the other."""
        out = np.empty((int(lengths.sum()), *self.spec.shape[1:]), dtype=self.dtype)
        # Neighbouring runs are merged, so that a scan costs one copy per chunk
        at, size = 0, self.spec.shard_rows
        keep = lengths > 0
        starts, lengths = starts[keep], lengths[keep]
        if not len(starts):
            return out
        breaks = np.flatnonzero(starts[1:] != starts[:-1] + lengths[:-1]) + 1
        firsts = starts[np.concatenate([[0], breaks])]
        stops = (starts + lengths)[np.concatenate([breaks - 1, [len(starts) - 1]])]
        for begin, stop in zip(firsts.tolist(), stops.tolist(), strict=True):
            row = begin
            while row < stop:
                shard = row // size
                high = min(stop, (shard + 1) * size)
                self._shard(shard).copy_run(
                    row - shard * size, high - shard * size, out[at : at + high - row]
                )
                at += high - row
                row = high
        return out

    def take(self, rows: Int64) -> npt.NDArray[Any]:
        """The given rows, in the given order; fastest when sorted."""
        out = np.empty((len(rows), *self.spec.shape[1:]), dtype=self.dtype)
        shard = rows // self.spec.shard_rows
        for number in np.unique(shard).tolist():
            where = np.flatnonzero(shard == number)
            inside = rows[where] - number * self.spec.shard_rows
            out[where] = self._shard(number).take(inside)
        return out


def read_array(reader: ArrayReader) -> npt.NDArray[Any]:
    """A whole gap-free array."""
    n = reader.spec.shape[0]
    return reader.read_runs(np.array([0], np.int64), np.array([n], np.int64))
