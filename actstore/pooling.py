"""Reductions of an example's rows to one row; the same code for stored and computed views."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from actstore.errors import UnknownNameError

__all__ = ["POOLS", "check_pool", "pool_rows"]

POOLS = ("mean", "last", "first", "max")


def check_pool(name: str) -> str:
    """The name itself, or UnknownNameError listing the pools."""
    if name not in POOLS:
        raise UnknownNameError(f"pool {name!r} is unknown: use one of {', '.join(POOLS)}")
    return name


def pool_rows(
    rows: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64], pool: str
) -> npt.NDArray[np.float32]:
    """Reduce ragged `rows` [n_rows, d] to [n_examples, d]; example e owns
    `rows[offsets[e]:offsets[e + 1]]`. An example without rows becomes NaN, never zero.

    The mean is summed in float64, so it does not depend on how rows are batched.
    """
    lengths = np.diff(offsets)
    has = lengths > 0
    out = np.full((len(lengths), *rows.shape[1:]), np.nan, dtype=np.float32)
    starts = offsets[:-1][has]
    if not len(starts):
        return out
    values: npt.NDArray[Any]
    if pool == "first":
        values = rows[starts]
    elif pool == "last":
        values = rows[offsets[1:][has] - 1]
    elif pool == "max":
        values = np.maximum.reduceat(rows, starts, axis=0)
    elif pool == "mean":
        sums = np.add.reduceat(rows, starts, axis=0, dtype=np.float64)
        values = sums / lengths[has][:, None]
    else:
        raise UnknownNameError(f"pool {pool!r} is unknown: use one of {', '.join(POOLS)}")
    out[has] = values
    return out
