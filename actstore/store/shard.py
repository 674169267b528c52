"""One shard: encoded as Zarr's sharding codec does, read back through a memory map.

A shard holds its non-empty chunks one after the other, each followed by its crc32c, and at the
end an index of (offset, size) pairs, one per chunk, followed by the index's own crc32c. Chunks
without any row are absent (both numbers 2^64 - 1), so gaps cost no bytes.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from actstore.checksum import crc32c
from actstore.errors import ChecksumError, MissingShardError
from actstore.store.layout import DTYPES, ArraySpec
from actstore.store.publish import FileRecord, publish

__all__ = ["ShardReader", "encode_shard", "publish_shard"]

ABSENT = np.iinfo(np.uint64).max
CRC_BYTES = 4


def _crc(data: Any) -> bytes:
    return crc32c(data).to_bytes(CRC_BYTES, "little")


def _as_bytes(rows: npt.NDArray[Any]) -> memoryview:
    # ml_dtypes' bfloat16 has no buffer protocol of its own: its bits travel as uint16
    bits = rows.view(np.uint16) if rows.dtype == DTYPES["bfloat16"] else rows
    return np.ascontiguousarray(bits).data.cast("B")


def encode_shard(
    spec: ArraySpec, rows: npt.NDArray[Any], crcs: list[bytes]
) -> Iterator[bytes | memoryview]:
    """Yield the pieces of a shard holding `rows` ([n] or [n, width], n <= shard_rows, dtype of
    `spec`), in file order, appending each chunk's crc32c to `crcs`. The last chunk is padded
    with the array's fill value (NaN or 0)."""
    assert rows.dtype == DTYPES[spec.dtype]
    assert rows.shape[1:] == spec.shape[1:]
    assert len(rows) <= spec.shard_rows
    index = np.full((spec.shard_rows // spec.chunk_rows, 2), ABSENT, dtype="<u8")
    at = 0
    for chunk, begin in enumerate(range(0, len(rows), spec.chunk_rows)):
        part = rows[begin : begin + spec.chunk_rows]
        if len(part) < spec.chunk_rows:
            fill = 0 if spec.dtype in ("bool", "int32", "int64") else np.nan
            padded = np.full((spec.chunk_rows, *spec.shape[1:]), fill, dtype=rows.dtype)
            padded[: len(part)] = part
            part = padded
        data = _as_bytes(part)
        crcs.append(_crc(data))
        yield data
        yield crcs[-1]
        index[chunk] = (at, len(data) + CRC_BYTES)
        at += len(data) + CRC_BYTES
    tail = index.tobytes()
    yield tail + _crc(tail)


def publish_shard(
    path: Path, spec: ArraySpec, shard: int, rows: npt.NDArray[Any], label: str
) -> FileRecord:
    """Write one shard, once; the record of what is on disk, its chunks' checksums included.

    The crc32c of a whole shard says little: appending a crc to its data leads to a constant
    remainder, so every intact shard of one size has the same one. The chunks' own checksums in
    the record are what tells one shard from another.
    """
    crcs: list[bytes] = []
    record, created = publish(path, encode_shard(spec, rows, crcs))
    if not created:
        # Somebody was first, with the same bytes unless damaged since: believe the disk only
        # after checking it.
        reader = ShardReader(path, spec, shard, label, None)
        reader.check(np.arange(len(reader.rows)))
        crcs = reader.stored_crcs()
    return dataclasses.replace(record, chunks=b"".join(crcs).hex())


class ShardReader:
    """A mapped shard file that checks each chunk's crc32c once, when it is first touched.

    Args:
        path: the file.
        spec: the array it belongs to.
        shard: its number, to know how many rows it should hold.
        label: what to call it in errors (unit, site, mask).
        chunks: the chunks' checksums according to the manifest, as hex; None to believe the file.
    """

    def __init__(
        self, path: Path, spec: ArraySpec, shard: int, label: str, chunks: str | None
    ) -> None:
        self._label = label
        self._path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
        except FileNotFoundError:
            raise MissingShardError(f"{label}: shard file {path} is missing; {_REMEDY}") from None
        n_chunks = spec.shard_rows // spec.chunk_rows
        index_bytes = n_chunks * 16
        if self._map is None or size < index_bytes + CRC_BYTES:
            raise ChecksumError(f"{label}: shard file {path} is truncated; {_REMEDY}")
        tail = self._map[size - index_bytes - CRC_BYTES :]
        if _crc(tail[:-CRC_BYTES]) != tail[-CRC_BYTES:]:
            raise ChecksumError(f"{label}: index of shard {path} fails its checksum; {_REMEDY}")
        index = np.frombuffer(tail[:-CRC_BYTES], dtype="<u8").reshape(n_chunks, 2)
        dtype = DTYPES[spec.dtype]
        self._chunk_bytes = spec.chunk_rows * spec.row_bytes
        stride = self._chunk_bytes + CRC_BYTES
        # A shard of ours is exactly this; anything else would make the mapped rows mean
        # something they are not.
        expected = np.full((n_chunks, 2), ABSENT, dtype="<u8")
        used = -(-spec.rows_in_shard(shard) // spec.chunk_rows)
        present = int(np.count_nonzero(index[:, 0] != ABSENT))
        expected[:present, 0] = np.arange(present) * stride
        expected[:present, 1] = stride
        if (
            present > used
            or not np.array_equal(index, expected)
            or (size != present * stride + index_bytes + CRC_BYTES)
        ):
            raise ChecksumError(f"{label}: shard {path} is not laid out as written; {_REMEDY}")
        self._checked = np.zeros(present, dtype=bool)
        self._chunks = None if chunks is None else bytes.fromhex(chunks)
        if self._chunks is not None and len(self._chunks) != CRC_BYTES * present:
            raise ChecksumError(f"{label}: {path} holds other chunks than committed; {_REMEDY}")
        self._stride = stride
        self._chunk_rows = spec.chunk_rows
        self.rows: npt.NDArray[Any] = np.ndarray(
            (present, spec.chunk_rows, *spec.shape[1:]),
            dtype=dtype,
            buffer=self._map,
            strides=(stride, spec.row_bytes, *([dtype.itemsize] if spec.shape[1:] else [])),
        )

    @property
    def n_rows(self) -> int:
        """Rows that the shard physically holds, the padding of its last chunk included."""
        return len(self.rows) * self._chunk_rows

    def check(self, chunks: npt.NDArray[np.int64]) -> None:
        """Verify the crc32c of these chunks unless done before; ChecksumError names the shard."""
        assert self._map is not None
        for chunk in chunks[~self._checked[chunks]].tolist():
            begin = chunk * self._stride
            data = memoryview(self._map)[begin : begin + self._chunk_bytes]
            stored = self._map[begin + self._chunk_bytes : begin + self._stride]
            at = chunk * CRC_BYTES
            wanted = stored if self._chunks is None else self._chunks[at : at + CRC_BYTES]
            if not _crc(data) == stored == wanted:
                raise ChecksumError(
                    f"{self._label}: chunk {chunk} of {self._path} fails its checksum; {_REMEDY}"
                )
            self._checked[chunk] = True

    def stored_crcs(self) -> list[bytes]:
        """Each chunk's checksum as the file has it."""
        assert self._map is not None
        ends = [(chunk + 1) * self._stride for chunk in range(len(self.rows))]
        return [self._map[end - CRC_BYTES : end] for end in ends]

    def copy_run(self, begin: int, stop: int, out: npt.NDArray[Any]) -> None:
        """Copy rows `[begin, stop)` of this shard into `out` [stop - begin, ...]."""
        size = self._chunk_rows
        first, last = begin // size, (stop - 1) // size
        if last >= len(self.rows):
            raise ChecksumError(f"{self._label}: {self._path} holds fewer rows; {_REMEDY}")
        self.check(np.arange(first, last + 1))
        for chunk in range(first, last + 1):
            low, high = max(begin, chunk * size), min(stop, (chunk + 1) * size)
            out[low - begin : high - begin] = self.rows[chunk, low - chunk * size :][: high - low]

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Copy of the given rows of this shard, in that order."""
        chunk, inside = np.divmod(rows, self._chunk_rows)
        touched = np.unique(chunk)
        if len(touched) and touched[-1] >= len(self.rows):
            raise ChecksumError(f"{self._label}: {self._path} holds fewer rows; {_REMEDY}")
        self.check(touched)
        taken: npt.NDArray[Any] = self.rows[chunk, inside]
        return taken


_REMEDY = "run `actstore verify` and extract the store again or restore the file"
