"""Reading and writing a store, beside np.memmap, np.tofile and zarr-python on the same bytes.

Warm, interleaved, one process; medians of ratios. Larger is better.

    python benchmarks/store.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import zarr

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fake_store import begin_store, make_manifest, make_tokens

from actstore.store.layout import DTYPES
from actstore.store.reader import Store
from actstore.store.shard import encode_shard, publish_shard
from actstore.store.writer import finish_store, publish_unit

D_MODEL = 768
DTYPE = "bfloat16"
SITE, MASK = "resid_post.0", "content"


def build(path: Path, n_rows: int) -> tuple[Store, np.ndarray]:
    """A store of about `n_rows` rows in examples of 1 to 256, and the same rows in memory."""
    rng = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < n_rows:
        lengths.append(int(rng.integers(1, 257)))
    tokens = make_tokens(lengths, special_ends=False)
    manifest = make_manifest(tokens, dtype=DTYPE, d_model=D_MODEL, shard_bytes=64 << 20)
    store = begin_store(path, tokens, manifest)
    bits = rng.integers(0, 2**15, (tokens.n_tokens, D_MODEL), dtype=np.uint16)
    rows = (bits & 0x3FFF).view(DTYPES[DTYPE])
    for unit in store.plan.units:
        begin, stop = tokens.offsets[unit.first], tokens.offsets[unit.stop]
        publish_unit(store, unit.index, iter([(store.rows_array(SITE, MASK), rows[begin:stop])]))
    finish_store(Store.open(path))
    return Store.open(path), rows


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure(folder: Path, n_rows: int, repeats: int) -> dict[str, float]:
    """Ratios of speeds: ours over the other's."""
    store, rows = build(folder / "store", n_rows)
    flat = folder / "flat.bin"
    rows.view(np.uint16).tofile(flat)
    mapped = np.memmap(flat, dtype=np.uint16, mode="r", shape=rows.shape)
    plain = zarr.open_group(folder / "store", mode="r")[f"acts/{SITE}/{MASK}"]
    offsets = store.mask(MASK).offsets
    starts = store.plan.array_starts(MASK, offsets)
    chosen = np.sort(np.random.default_rng(1).choice(store.n_examples, 300, replace=False))
    view = store.view(site=SITE, mask=MASK)

    def ours(examples: np.ndarray | None, opened: Store | None = None) -> object:
        source = view if opened is None else opened.view(site=SITE, mask=MASK)
        return source.read(examples, dtype="stored")

    def memmap_gather() -> object:
        return np.concatenate([mapped[offsets[e] : offsets[e + 1]] for e in chosen])

    def zarr_gather() -> object:
        size = np.diff(offsets)
        return np.concatenate([plain[starts[e] : starts[e] + size[e]] for e in chosen])

    got, _ = view.read(chosen, dtype="stored")
    assert np.array_equal(got.view(np.uint16), memmap_gather())
    ratios: dict[str, list[float]] = {}
    spec = store.rows_array(SITE, MASK)
    block = rows[: min(len(rows), spec.shard_rows)]
    for repeat in range(repeats):
        scan = timed(lambda: np.array(mapped))
        gather = timed(memmap_gather)
        write = timed(lambda: block.view(np.uint16).tofile(folder / "block.bin"))
        fresh = Store.open(folder / "store")
        pieces = folder / f"pieces{repeat}.bin"
        synced = folder / f"synced{repeat}.bin"
        times = {
            "scan_vs_memmap": scan / timed(lambda: ours(None)),
            "scan_verified_vs_memmap": scan / timed(lambda s=fresh: ours(None, s)),
            "gather_vs_memmap": gather / timed(lambda: ours(chosen)),
            "scan_vs_zarr": timed(lambda: plain[:]) / timed(lambda: ours(None)),
            "gather_vs_zarr": timed(zarr_gather) / timed(lambda: ours(chosen)),
            "write_vs_tofile": write / timed(lambda p=pieces: write_shard(p, spec, block)),
            "write_fsync_vs_tofile": write
            / timed(lambda p=synced: publish_shard(p, spec, 0, block, "benchmark")),
        }
        for key, value in times.items():
            ratios.setdefault(key, []).append(value)
    found = {key: median(values) for key, values in ratios.items()}
    shards = (folder / "store" / "acts" / SITE / MASK / "c").rglob("0")
    found["disk_bytes"] = sum(path.stat().st_size for path in shards) / rows.nbytes
    return found


def write_shard(path: Path, spec: object, block: np.ndarray) -> None:
    """The shard without fsync, as np.tofile writes."""
    with path.open("wb", buffering=0) as file:
        for piece in encode_shard(spec, block, []):  # type: ignore[arg-type]
            file.write(piece)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows and repetitions")
    parser.add_argument("--json", type=Path, help="write the ratios to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, repeats = (60_000, 3) if arguments.quick else (300_000, 7)
        found = measure(Path(folder), rows, repeats)
    for key, value in found.items():
        print(f"{key:<26}{value:8.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
