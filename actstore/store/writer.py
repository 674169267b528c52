"""Writing a store: the skeleton, one unit's shards, and the commit that makes a run whole.

A store comes into being whole: skeleton and token table are made in a temporary folder that is
then renamed. A unit publishes its shards and, last, its own manifest under `commits/pending`;
from then on it is part of the store. When all units are there, one-row-per-example arrays are
compacted out of the units' parts, everything is folded into one commit, and what the commit
replaces is deleted. Each step may be killed and repeated.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from actstore.checksum import crc32c_hex
from actstore.errors import ChecksumError, InputError, ResourceError
from actstore.manifest import Manifest
from actstore.plan import Plan
from actstore.store.layout import (
    COMMITS,
    DENSE_MASKS,
    DTYPES,
    PARTS,
    PENDING,
    ArraySpec,
    array_json,
    group_json,
    pooled_spec,
    rows_spec,
    table_spec,
)
from actstore.store.metadata import UnitReceipt, load_json
from actstore.store.publish import (
    FileRecord,
    file_record,
    json_bytes,
    publish,
    remove_temporaries,
)
from actstore.store.reader import Store
from actstore.store.shard import publish_shard
from actstore.tokens import TokenMask, TokenTable

__all__ = [
    "array_specs",
    "check_space",
    "create_store",
    "finish_store",
    "publish_unit",
    "reject_occupied",
    "write_lock",
]

LOCK = ".lock"


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Hold the store for writing; InputError if another run holds it.

    The lock belongs to the process and ends with it, however it ends.
    """
    with (path / LOCK).open("a+") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise InputError(
                f"{path} is being written by another run (process {holder}): "
                "wait for it to end, or stop it, then run this command again"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate()


def reject_occupied(path: Path) -> None:
    """InputError if something other than a store (or an empty folder) is at `path`."""
    if (path / "zarr.json").is_file():
        Manifest.from_json(str(path), load_json(path / "zarr.json").get("attributes"))
        return
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise InputError(f"{path} cannot be made: {above} is a file; choose another --store")
    if path.exists() and any(path.iterdir()):
        raise InputError(
            f"{path} exists and is not an activation store: choose another --store, "
            "or remove what is there"
        )


def create_store(
    path: Path,
    manifest: Manifest,
    plan: Plan,
    tokens: TokenTable,
    masks: Mapping[str, TokenMask],
    examples: pa.Table,
) -> None:
    """Make a store without activations: all or nothing.

    If another process made a store there meanwhile, that one stays and this returns quietly;
    the caller compares manifests afterwards in any case.
    """
    reject_occupied(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.parent / f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        building.mkdir()
        _write_skeleton(building, manifest, plan, tokens, masks, examples)
        try:
            building.rename(path)
        except OSError as error:
            if not (path / "zarr.json").is_file():
                raise InputError(
                    f"{path} cannot be made ({error.strerror}): choose another --store"
                ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_skeleton(
    root: Path,
    manifest: Manifest,
    plan: Plan,
    tokens: TokenTable,
    masks: Mapping[str, TokenMask],
    examples: pa.Table,
) -> None:
    files: dict[str, FileRecord] = {}

    def put(key: str, data: bytes) -> None:
        files[key] = publish(root / key, [data])[0]

    def put_table(key: str, values: npt.NDArray[Any], dtype: str) -> None:
        spec = table_spec(key, len(values), dtype)
        put(f"{key}/zarr.json", json_bytes(array_json(spec)))
        for shard in range(spec.n_shards):
            rows = values[shard * spec.shard_rows :][: spec.shard_rows].astype(DTYPES[dtype])
            path = root / spec.shard_key(shard)
            files[spec.shard_key(shard)] = publish_shard(path, spec, shard, rows, f"table {key}")

    put("zarr.json", json_bytes(group_json({"actstore": manifest.to_json()})))
    for folder in (
        "tokens",
        "tokens/masks",
        "acts",
        *(f"acts/{s}" for s in manifest.request.sites),
    ):
        put(f"{folder}/zarr.json", json_bytes(group_json()))
    put_table("tokens/ids", tokens.ids, "int32")
    put_table("tokens/offsets", tokens.offsets, "int64")
    put_table("tokens/special", tokens.special, "bool")
    put_table("tokens/char_start", tokens.char_start, "int32")
    put_table("tokens/char_end", tokens.char_end, "int32")
    put_table("tokens/n_cut", tokens.n_cut, "int32")
    for name, mask in masks.items():
        base = f"tokens/masks/{name}"
        put(f"{base}/zarr.json", json_bytes(group_json()))
        put_table(f"{base}/rows", mask.rows, "int64")
        put_table(f"{base}/offsets", mask.offsets, "int64")
        if mask.items is not None:
            put_table(f"{base}/items", mask.items, "int32")
        if name in plan.masks:
            # where each example's rows begin in the arrays, for readers other than ours
            put_table(f"{base}/starts", plan.array_starts(name, mask.offsets), "int64")
    for spec in array_specs(manifest, plan, masks):
        put(f"{spec.key}/zarr.json", json_bytes(array_json(spec)))
    sink = pa.BufferOutputStream()
    pq.write_table(examples, sink, compression="zstd")
    put("examples.parquet", sink.getvalue().to_pybytes())
    put(
        "plan.json",
        json_bytes(
            {
                "units": {
                    "stop": [unit.stop for unit in plan.units],
                    "tokens": [unit.n_tokens for unit in plan.units],
                },
                "masks": {name: vars(mask) for name, mask in plan.masks.items()},
                "files": {key: record.to_json() for key, record in files.items()},
            }
        ),
    )


def array_specs(
    manifest: Manifest, plan: Plan, masks: Mapping[str, TokenMask]
) -> Iterator[ArraySpec]:
    """Every activation array that a store of this manifest and plan will have."""
    request, width = manifest.request, manifest.model.d_model
    for site in request.sites:
        for mask in request.masks:
            if mask in DENSE_MASKS:
                yield pooled_spec(site, mask, masks[mask].n_rows, width, request.dtype)
                continue
            yield rows_spec(site, mask, width, request.dtype, plan.masks[mask])
            for pool in request.pools:
                n = manifest.dataset.n_examples
                yield pooled_spec(site, f"{mask}.{pool}", n, width, request.dtype)


def publish_unit(
    store: Store,
    unit: int,
    rows: Iterator[tuple[ArraySpec, npt.NDArray[Any]]],
) -> UnitReceipt:
    """Write one unit: for each array the unit's rows, in the array's dtype; the manifest last.

    Arrays with a gap-free row axis get a part (raw rows) that `finish_store` compacts. A worker
    that outlived its driver may come when all is committed: then it changes nothing.
    """
    shards: dict[str, FileRecord] = {}
    parts: dict[str, FileRecord] = {}
    for spec, values in rows:
        name = spec.key.split("/", 1)[1]
        if _is_ragged(store, spec):
            if len(values):
                key = spec.shard_key(unit)
                label = store.label(spec, unit)
                shards[key] = publish_shard(store.path / key, spec, unit, values, label)
        else:
            key = f"{PARTS}/{name}/{unit:08d}"
            data = np.ascontiguousarray(values).tobytes()
            parts[key], _ = publish(store.path / key, [data])
    receipt = UnitReceipt(unit, shards, parts)
    if (store.path / COMMITS / f"{1:08d}.json").exists():
        return receipt
    publish(store.path / PENDING / f"{unit:08d}.json", [json_bytes(receipt.to_json())])
    return receipt


def _is_ragged(store: Store, spec: ArraySpec) -> bool:
    return spec.key.rsplit("/", 1)[1] in store.plan.masks


def finish_store(store: Store, on_array: Callable[[int], None] | None = None) -> None:
    """Compact, commit and clean up, once every unit is there. Idempotent.

    `on_array` is called with 1 after each compacted array.

    Raises:
        ChecksumError: a part was damaged since its unit wrote it.
        ResourceError: no space left.
    """
    if not store.complete:
        missing = [u.index for u in store.plan.units if u.index not in store.pending]
        assert not missing, missing
        shards: dict[str, FileRecord] = {}
        for receipt in store.pending.values():
            shards.update(receipt.shards)
        for spec in store.all_arrays():
            if not _is_ragged(store, spec):
                shards.update(_compact(store, spec))
                if on_array:
                    on_array(1)
        commit = {
            "format": 1,
            "commit": 1,
            "units": len(store.plan.units),
            "files": {"plan.json": file_record(store.path / "plan.json").to_json()},
            "shards": {key: shards[key].to_json() for key in sorted(shards)},
        }
        publish(store.path / COMMITS / f"{1:08d}.json", [json_bytes(commit)])
    shutil.rmtree(store.path / PENDING, ignore_errors=True)
    shutil.rmtree(store.path / PARTS, ignore_errors=True)
    remove_temporaries(store.path)


def _compact(store: Store, spec: ArraySpec) -> Iterator[tuple[str, FileRecord]]:
    """Publish the full-size shards of a gap-free array out of the units' parts, in order."""
    name = spec.key.split("/", 1)[1]
    held: list[npt.NDArray[Any]] = []
    shard = 0
    for unit in store.plan.units:
        held.append(_read_part(store, spec, f"{PARTS}/{name}/{unit.index:08d}", unit.index))
        while sum(map(len, held)) >= spec.shard_rows:
            rows = np.concatenate(held)
            yield _publish_shard(store, spec, shard, rows[: spec.shard_rows])
            held, shard = [rows[spec.shard_rows :]], shard + 1
    rows = np.concatenate(held) if held else np.empty((0, spec.width), DTYPES[spec.dtype])
    if len(rows):
        yield _publish_shard(store, spec, shard, rows)
    assert shard * spec.shard_rows + len(rows) == spec.shape[0]


def _publish_shard(
    store: Store, spec: ArraySpec, shard: int, rows: npt.NDArray[Any]
) -> tuple[str, FileRecord]:
    key = spec.shard_key(shard)
    return key, publish_shard(store.path / key, spec, shard, rows, store.label(spec, shard))


def _read_part(store: Store, spec: ArraySpec, key: str, unit: int) -> npt.NDArray[Any]:
    path = store.path / key
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    record = store.pending[unit].parts[key]
    if len(data) != record.size or crc32c_hex(data) != record.crc32c:
        pending = store.path / PENDING / f"{unit:08d}.json"
        raise ChecksumError(
            f"unit {unit}: {path} is missing or damaged; delete {pending} and it, and run again"
        )
    return np.frombuffer(data, dtype=DTYPES[spec.dtype]).reshape(-1, spec.width)


def check_space(path: Path, needed: int) -> None:
    """ResourceError if the disk that will hold `path` has less than `needed` bytes free."""
    folder = path
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{path} needs about {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free: "
            "choose another disk, fewer --layers or --masks, or --dtype float16"
        )
