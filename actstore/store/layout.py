"""Names, shapes and metadata of a store's arrays: what is where, without any I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from actstore.errors import DamagedStoreError
from actstore.plan import MaskPlan, chunk_rows_for

__all__ = [
    "COMMITS",
    "DENSE_MASKS",
    "DTYPES",
    "FORMAT_VERSION",
    "PARTS",
    "PENDING",
    "ArraySpec",
    "array_json",
    "group_json",
    "parse_array_json",
    "pooled_spec",
    "rows_spec",
    "table_spec",
]

FORMAT_VERSION = 1
COMMITS = "commits"
PENDING = "commits/pending"
PARTS = "parts"
#: Masks with at most one row per example: stored without gaps, compacted when a run finishes.
DENSE_MASKS = ("first", "last")
SHARD_BYTES = 64 * 1024 * 1024

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "bool": np.dtype("bool"),
}


@dataclass(frozen=True)
class ArraySpec:
    """One sharded array: `shape` [rows] or [rows, width], cut along rows only."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    chunk_rows: int
    shard_rows: int

    @property
    def width(self) -> int:
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        return self.width * DTYPES[self.dtype].itemsize

    @property
    def n_shards(self) -> int:
        return -(-self.shape[0] // self.shard_rows)

    def shard_key(self, shard: int) -> str:
        return f"{self.key}/c/{shard}" + ("/0" if len(self.shape) > 1 else "")

    def rows_in_shard(self, shard: int) -> int:
        return max(0, min(self.shard_rows, self.shape[0] - shard * self.shard_rows))


def rows_spec(site: str, mask: str, width: int, dtype: str, plan: MaskPlan) -> ArraySpec:
    """The array of one site's rows under a mask: shard u belongs to unit u."""
    key = f"acts/{site}/{mask}"
    return ArraySpec(key, (plan.shape_rows, width), dtype, plan.chunk_rows, plan.shard_rows)


def pooled_spec(site: str, name: str, n_rows: int, width: int, dtype: str) -> ArraySpec:
    """An array without gaps, one row per example (pooled views and one-row masks): compacted
    from the units' parts into full-size shards when a run finishes."""
    row_bytes = width * DTYPES[dtype].itemsize
    return _dense(f"acts/{site}/{name}", (n_rows, width), dtype, row_bytes)


def table_spec(key: str, n_rows: int, dtype: str) -> ArraySpec:
    """A one-dimensional array of the token table."""
    return _dense(key, (n_rows,), dtype, DTYPES[dtype].itemsize)


def _dense(key: str, shape: tuple[int, ...], dtype: str, row_bytes: int) -> ArraySpec:
    chunk_rows = chunk_rows_for(row_bytes, shape[0])
    in_shard = max(1, SHARD_BYTES // (chunk_rows * row_bytes))
    needed = max(1, -(-shape[0] // chunk_rows))
    return ArraySpec(key, shape, dtype, chunk_rows, min(in_shard, needed) * chunk_rows)


def group_json(attributes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Zarr v3 metadata of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes or {}}


def array_json(spec: ArraySpec) -> dict[str, Any]:
    """Zarr v3 metadata of an array.

    Floating arrays are filled with NaN, so that a plain Zarr reader shows a missing shard (or
    the gap behind a unit) as NaN instead of a plausible zero.
    """
    fill: Any = {"bool": False, "int32": 0, "int64": 0}.get(spec.dtype, "NaN")
    tail = list(spec.shape[1:])
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    payload: dict[str, Any] = {"name": "bytes"} if spec.dtype == "bool" else little
    names = ["row", "d_model"] if tail else ["row"]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(spec.shape),
        "data_type": spec.dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [spec.shard_rows, *tail]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [spec.chunk_rows, *tail],
                    "codecs": [payload, {"name": "crc32c"}],
                    "index_codecs": [little, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        "attributes": {},
        "dimension_names": names,
    }


def parse_array_json(key: str, data: Any) -> ArraySpec:
    """Read array metadata back; DamagedStoreError if it is not exactly what `array_json` makes,
    since the reader maps the shards by these numbers."""
    try:
        shape = tuple(int(n) for n in data["shape"])
        codec = data["codecs"][0]["configuration"]
        spec = ArraySpec(
            key,
            shape,
            str(data["data_type"]),
            int(codec["chunk_shape"][0]),
            int(data["chunk_grid"]["configuration"]["chunk_shape"][0]),
        )
        sound = (
            spec.dtype in DTYPES
            and len(shape) in (1, 2)
            and min(shape) >= 0
            and spec.chunk_rows >= 1
            and spec.shard_rows >= 1
            and spec.shard_rows % spec.chunk_rows == 0
            and array_json(spec) == data
        )
    except (KeyError, IndexError, TypeError, ValueError):
        sound = False
    if not sound:
        raise DamagedStoreError(
            f"{key}/zarr.json does not describe an array of format {FORMAT_VERSION}: "
            "restore it from a copy, or extract this store again"
        )
    return spec
