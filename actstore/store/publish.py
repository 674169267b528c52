"""Write-once files: temporary file, fsync, link. The first writer of a name wins."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actstore.checksum import crc32c
from actstore.errors import ChecksumError, ResourceError

__all__ = ["FileRecord", "file_record", "json_bytes", "publish", "remove_temporaries", "replace"]

_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class FileRecord:
    """Size and crc32c of one whole file, as listed in manifests; for a shard also the crc32c of
    each of its chunks, as hex (four bytes each, in the file's own byte order)."""

    size: int
    crc32c: str
    chunks: str | None = None

    def to_json(self) -> dict[str, Any]:
        chunks = {} if self.chunks is None else {"chunks": self.chunks}
        return {"bytes": self.size, "crc32c": self.crc32c, **chunks}

    @classmethod
    def from_json(cls, data: Any) -> FileRecord:
        chunks = data.get("chunks")
        if chunks is not None:
            bytes.fromhex(chunks)
        return cls(int(data["bytes"]), str(data["crc32c"]), chunks)


def json_bytes(value: Any) -> bytes:
    """Canonical JSON: sorted keys, so equal values are equal bytes."""
    return (json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()


def file_record(path: Path) -> FileRecord:
    """Size and crc32c of a file, read in pieces."""
    crc, size = 0, 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(8 << 20):
            crc = crc32c(piece, crc)
            size += len(piece)
    return FileRecord(size, f"{crc:08x}")


def publish(
    path: Path, pieces: Iterable[bytes | memoryview], *, same: bool = True
) -> tuple[FileRecord, bool]:
    """Write a file that appears whole or not at all, and never replaces an existing one.

    Returns the record of what is on disk under `path` afterwards and whether it is ours; if
    not, another writer came first. With `same` the bytes are a function of the work unit, so
    both must agree; without it the first writer simply wins.

    Raises:
        ChecksumError: an earlier file differs from ours in size though `same`.
        ResourceError: no space left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(6)}"
    crc, size = 0, 0
    with _space_errors(path):
        try:
            with temporary.open("xb", buffering=0) as file:
                for piece in pieces:
                    _write_all(file.fileno(), piece)
                    crc = crc32c(piece, crc)
                    size += len(piece)
                os.fsync(file.fileno())
            ours = FileRecord(size, f"{crc:08x}")
            try:
                os.link(temporary, path)
            except FileExistsError:
                theirs = file_record(path)
                if same and theirs.size != ours.size:
                    raise ChecksumError(
                        f"{path} exists with {theirs.size} bytes where {ours.size} were expected: "
                        "it was damaged or made by other software; move it away and run again"
                    ) from None
                return theirs, False
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return ours, True


def replace(path: Path, data: bytes) -> None:
    """Write a file that replaces an earlier one at once: readers see the old or the new one."""
    temporary = path.parent / f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(6)}"
    with _space_errors(path):
        try:
            with temporary.open("xb", buffering=0) as file:
                _write_all(file.fileno(), data)
                os.fsync(file.fileno())
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _space_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"no space left while writing {path}: free space on that disk and run the same "
                "command again; what was committed is kept"
            ) from None
        raise


def _write_all(descriptor: int, piece: bytes | memoryview) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(root: Path) -> int:
    """Delete what killed writers left behind; the number of files. Only under the writer lock."""
    found = list(root.rglob(f"{_TEMPORARY}*"))
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)
