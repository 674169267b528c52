"""The plan: which examples make up each work unit, and which array rows the unit owns.

A unit is a run of whole examples. In every array of rows it owns exactly one shard, number
`unit.index`, so two writers never share a shard and an example never straddles a shard edge.
The plan is a pure function of the token table, the masks and the sizes asked for: never of
the number of workers, the time, or anything else that could differ between two runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actstore.tokens import TokenMask

__all__ = ["MaskPlan", "Plan", "WorkUnit", "chunk_rows_for", "make_plan"]

CHUNK_BYTES = 512 * 1024
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WorkUnit:
    """Examples `[first, stop)` and the number of their tokens; owns shard `index`."""

    index: int
    first: int
    stop: int
    n_tokens: int


@dataclass(frozen=True)
class MaskPlan:
    """Geometry of one mask's row arrays: rows that hold data, rows per shard, rows per chunk.

    `shape_rows` is the arrays' first axis: unit u's rows start at `u * shard_rows`, so a unit
    that fills its shard less than fully leaves a gap of unwritten rows behind it.
    """

    n_rows: int
    shape_rows: int
    shard_rows: int
    chunk_rows: int


@dataclass(frozen=True)
class Plan:
    """All units, and the geometry of each mask."""

    units: tuple[WorkUnit, ...]
    masks: dict[str, MaskPlan]

    @property
    def n_examples(self) -> int:
        return self.units[-1].stop if self.units else 0

    def unit_of(self, examples: Int64) -> Int64:
        """The unit of each example."""
        stops = np.array([unit.stop for unit in self.units], dtype=np.int64)
        return np.searchsorted(stops, examples, side="right").astype(np.int64)

    def array_starts(self, mask: str, offsets: Int64) -> Int64:
        """[n_examples] array row at which each example's rows of `mask` begin, given the mask's
        per-example offsets [n_examples + 1]."""
        unit = self.unit_of(np.arange(self.n_examples, dtype=np.int64))
        first = np.array([u.first for u in self.units], dtype=np.int64)
        base = np.arange(len(self.units), dtype=np.int64) * self.masks[mask].shard_rows
        starts: Int64 = base[unit] + offsets[:-1] - offsets[first[unit]]
        return starts


def chunk_rows_for(row_bytes: int, max_rows: int) -> int:
    """Rows per inner chunk: the largest power of two within 512 KiB (so at least 256 KiB), but
    no more than the rows there are, so that tiny stores stay tiny."""
    by_size = 1 << max(0, (CHUNK_BYTES // max(1, row_bytes)).bit_length() - 1)
    by_rows = 1 << max(0, max_rows - 1).bit_length()
    return max(1, min(by_size, by_rows))


def make_plan(
    token_lengths: Int64, masks: Sequence[TokenMask], *, row_bytes: int, shard_bytes: int
) -> Plan:
    """Pack whole examples greedily, in dataset order, into units whose rows fill one shard.

    Args:
        token_lengths: [n_examples] tokens of each example.
        masks: the masks that will be stored.
        row_bytes: bytes of the widest row.
        shard_bytes: target size of one shard; a unit exceeds it only when a single example does.
    """
    budget = max(1, shard_bytes // max(1, row_bytes))
    units: list[WorkUnit] = []
    first, tokens = 0, 0
    for example, length in enumerate(token_lengths.tolist()):
        if example > first and tokens + length > budget:
            units.append(WorkUnit(len(units), first, example, tokens))
            first, tokens = example, 0
        tokens += length
    if len(token_lengths) > first:
        units.append(WorkUnit(len(units), first, len(token_lengths), tokens))
    plans = {mask.name: _mask_plan(mask, units, row_bytes) for mask in masks}
    return Plan(tuple(units), plans)


def _mask_plan(mask: TokenMask, units: Sequence[WorkUnit], row_bytes: int) -> MaskPlan:
    rows = [int(mask.offsets[unit.stop] - mask.offsets[unit.first]) for unit in units]
    most = max(rows, default=0)
    chunk_rows = chunk_rows_for(row_bytes, most)
    shard_rows = max(1, -(-most // chunk_rows)) * chunk_rows
    shape_rows = (len(units) - 1) * shard_rows + rows[-1] if units else 0
    return MaskPlan(mask.n_rows, shape_rows, shard_rows, chunk_rows)
