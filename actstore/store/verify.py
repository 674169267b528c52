"""Is the store what its manifests say? Every fault found, by file, unit and site."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from actstore.errors import DamagedStoreError
from actstore.store.layout import ArraySpec, parse_array_json
from actstore.store.metadata import load_json
from actstore.store.publish import FileRecord, file_record
from actstore.store.reader import Store
from actstore.store.shard import ShardReader

__all__ = ["Finding", "VerifyReport", "verify_store"]


@dataclass(frozen=True)
class Finding:
    """One fault: the file, what it belongs to, and what is wrong with it."""

    key: str
    belongs_to: str
    problem: str


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and what was found. `nonfinite` counts NaN and infinite values per array
    (deep checks only); they are facts about the model, not faults."""

    files: int
    n_bytes: int
    units_done: int
    units: int
    committed: bool
    findings: tuple[Finding, ...]
    nonfinite: dict[str, int]

    @property
    def good(self) -> bool:
        return self.committed and not self.findings


def verify_store(
    store: Store,
    *,
    quick: bool = False,
    deep: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Compare every file with its record.

    Args:
        quick: names and sizes only.
        deep: also every chunk's own checksum, the geometry of every array, the consistency of
            the token table, and a count of values that are not finite.
        progress: called with (files done, files in all).
    """
    records = dict(store.files)
    for path in store.commits:
        records.update(store.committed(path)["files"])
    specs = _specs(store)
    records.update(store.shards)
    for receipt in store.pending.values():
        if not store.complete:
            records.update(receipt.parts)
    findings: list[Finding] = []
    checked = 0
    for number, (key, record) in enumerate(sorted(records.items())):
        problem = _compare(store, key, record, specs.get(key), quick=quick)
        checked += record.size
        if problem:
            findings.append(Finding(key, _owner(store, key, specs), problem))
        if progress:
            progress(number + 1, len(records))
    findings += _unlisted(store)
    nonfinite: dict[str, int] = {}
    if deep:
        broken = {finding.key for finding in findings}
        findings += _deep(store, broken, nonfinite)
    return VerifyReport(
        len(records),
        checked,
        store.n_units_done,
        len(store.plan.units),
        store.complete,
        tuple(findings),
        nonfinite,
    )


def _specs(store: Store) -> dict[str, tuple[ArraySpec, int]]:
    """The array and number of every shard of the store, token table included, by key."""
    arrays = store.all_arrays()
    for key in store.files:
        folder, _, name = key.rpartition("/")
        if name == "zarr.json" and folder.startswith("tokens/"):
            try:
                arrays.append(parse_array_json(folder, load_json(store.path / key)))
            except DamagedStoreError:
                continue  # a group, or damaged: then its own checksum says so
    most = len(store.files) + len(store.shards)  # a damaged shape must not keep us here for ever
    return {
        spec.shard_key(shard): (spec, shard)
        for spec in arrays
        for shard in range(min(spec.n_shards, most))
    }


def _owner(store: Store, key: str, specs: dict[str, tuple[ArraySpec, int]]) -> str:
    if key in specs and key.startswith("acts/"):
        return store.label(*specs[key])
    if key.startswith("tokens/"):
        return "token table"
    return "examples" if key == "examples.parquet" else "metadata"


def _compare(
    store: Store, key: str, record: FileRecord, shard: tuple[ArraySpec, int] | None, *, quick: bool
) -> str | None:
    path = store.path / key
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != record.size:
        return f"{size} bytes where {record.size} were committed"
    if quick:
        return None
    if shard is None:
        same = file_record(path) == FileRecord(record.size, record.crc32c)
        return None if same else "checksum differs from the committed one"
    try:
        reader = ShardReader(path, *shard, key, record.chunks or "")
        reader.check(np.arange(len(reader.rows)))
    except DamagedStoreError as error:
        return str(error).removeprefix(f"{key}: ").split(";")[0].replace(str(path), "the file")
    return None


def _unlisted(store: Store) -> Iterator[Finding]:
    """Shards that a complete store should have but no commit lists."""
    if not store.complete:
        return
    for spec in store.all_arrays():
        for shard in range(spec.n_shards):
            key = spec.shard_key(shard)
            if key not in store.shards and _expected_rows(store, spec, shard):
                yield Finding(key, store.label(spec, shard), "not listed in any commit")


def _expected_rows(store: Store, spec: ArraySpec, shard: int) -> int:
    name = spec.key.rsplit("/", 1)[1]
    if name in store.plan.masks:
        unit = store.plan.units[shard]
        offsets = store.mask(name).offsets
        return int(offsets[unit.stop] - offsets[unit.first])
    return spec.rows_in_shard(shard)


def _deep(store: Store, broken: set[str], nonfinite: dict[str, int]) -> Iterator[Finding]:
    for spec in store.all_arrays():
        meta = f"{spec.key}/zarr.json"
        if meta not in broken:
            try:
                if parse_array_json(spec.key, load_json(store.path / meta)) != spec:
                    yield Finding(meta, "metadata", "shape or chunks differ from the plan")
            except DamagedStoreError as error:
                yield Finding(meta, "metadata", str(error))
        bad = 0
        for shard in range(spec.n_shards):
            key = spec.shard_key(shard)
            if key in broken or key not in store.shards:
                continue
            label, rows = store.label(spec, shard), _expected_rows(store, spec, shard)
            try:
                reader = ShardReader(store.path / key, spec, shard, label, None)
                for begin in range(0, rows, spec.chunk_rows):
                    part = reader.take(np.arange(begin, min(rows, begin + spec.chunk_rows)))
                    bad += int(np.count_nonzero(~np.isfinite(part.astype(np.float32))))
            except DamagedStoreError as error:
                yield Finding(key, label, str(error))
        if bad:
            nonfinite[spec.key] = bad
    if not any(key.startswith("tokens/") for key in broken):
        yield from _token_table(store, broken)


def _token_table(store: Store, broken: set[str]) -> Iterator[Finding]:
    table, plan = store.tokens, store.plan
    tokens = [int(table.offsets[u.stop] - table.offsets[u.first]) for u in plan.units]
    sound = (
        table.offsets[0] == 0
        and bool((np.diff(table.offsets) >= 0).all())
        and table.offsets[-1] == table.n_tokens
        and store.n_examples == table.n_examples == plan.n_examples
        and tokens == [unit.n_tokens for unit in plan.units]
    )
    if not sound:
        yield Finding("tokens/offsets", "token table", "does not agree with the plan")
    if "examples.parquet" not in broken and store.examples.num_rows != store.n_examples:
        yield Finding("examples.parquet", "examples", "row count differs from the plan")
