"""Small stores made without a model: token tables with random rows, for tests of the store."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from actstore.manifest import DatasetRecord, Manifest, ModelRecord, Request, Software
from actstore.plan import make_plan
from actstore.pooling import pool_rows
from actstore.store.layout import DENSE_MASKS, DTYPES
from actstore.store.reader import Store
from actstore.store.writer import create_store, finish_store, publish_unit
from actstore.tokens import TokenMask, TokenTable, make_mask


def make_tokens(lengths: list[int], *, special_ends: bool = True) -> TokenTable:
    """A table whose examples have these many tokens; the first and last of each are special
    when `special_ends` and there are at least two."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(offsets[-1])
    special = np.zeros(n, dtype=bool)
    if special_ends:
        for begin, stop in pairwise(offsets):
            if stop - begin >= 2:
                special[begin] = special[stop - 1] = True
    inside = np.concatenate([np.arange(m) for m in lengths]) if lengths else np.empty(0)
    start = np.where(special, 0, inside * 3).astype(np.int32)
    end = np.where(special, 0, inside * 3 + 2).astype(np.int32)
    ids = (np.arange(n) % 97).astype(np.int32)
    return TokenTable(ids, offsets, special, start, end, np.zeros(len(lengths), np.int32))


def make_manifest(
    tokens: TokenTable,
    *,
    sites: tuple[str, ...] = ("resid_post.0",),
    masks: tuple[str, ...] = ("content",),
    pools: tuple[str, ...] = (),
    dtype: str = "float32",
    d_model: int = 8,
    shard_bytes: int = 4096,
) -> Manifest:
    model = ModelRecord("fake", None, "fake", "Fake", 2, d_model, True, "c", "w", "t")
    data = DatasetRecord("d", "f", "text", "words", tokens.n_examples, tokens.n_tokens, 0, None)
    request = Request(sites, masks, pools, dtype, shard_bytes, 256)
    return Manifest(model, data, request, Software("0", "0", "0", "cpu"))


def fake_rows(site: str, n: int, d: int, dtype: str) -> np.ndarray:
    """[n, d] values that tell token and site apart, none of them zero."""
    rng = np.random.default_rng(abs(hash_text(site)))
    return (rng.standard_normal((n, d)) + 3).astype(np.float32).astype(DTYPES[dtype])


def hash_text(text: str) -> int:
    return sum(ord(c) * 31**i for i, c in enumerate(text)) % 2**31


def begin_store(path: Path, tokens: TokenTable, manifest: Manifest, **extra: object) -> Store:
    """The skeleton only."""
    masks: dict[str, TokenMask] = {
        name: make_mask(name, tokens) for name in ("content", "first", "last")
    }
    wanted = [make_mask(name, tokens) for name in manifest.request.masks if name not in DENSE_MASKS]
    itemsize = DTYPES[manifest.request.dtype].itemsize
    plan = make_plan(
        np.diff(tokens.offsets),
        wanted,
        row_bytes=manifest.model.d_model * itemsize,
        shard_bytes=manifest.request.shard_bytes,
    )
    columns = {"text": [f"text {i} é" for i in range(tokens.n_examples)], **extra}
    create_store(path, manifest, plan, tokens, masks, pa.table(columns))
    return Store.open(path)


def fill_unit(store: Store, number: int) -> None:
    """Publish one unit with the rows of `fake_rows`."""
    request, unit = store.manifest.request, store.plan.units[number]
    tokens = store.tokens
    begin = int(tokens.offsets[unit.first])
    dtype = DTYPES[request.dtype]

    def arrays():  # type: ignore[no-untyped-def]
        for site in request.sites:
            all_rows = fake_rows(site, tokens.n_tokens, store.d_model, request.dtype)
            for mask in request.masks:
                rows, offsets = store.unit_mask(unit, mask)
                values = all_rows[begin + rows]
                yield store.rows_array(site, mask), values
                if mask not in DENSE_MASKS:
                    for pool in request.pools:
                        pooled = pool_rows(values.astype(np.float32), offsets, pool)
                        yield store.pooled_array(site, mask, pool), pooled.astype(dtype)

    publish_unit(store, number, arrays())


def make_store(path: Path, lengths: list[int], **options: object) -> Store:
    """A complete store with rows from `fake_rows`."""
    tokens = make_tokens(lengths)
    store = begin_store(path, tokens, make_manifest(tokens, **options))  # type: ignore[arg-type]
    for unit in store.plan.units:
        fill_unit(store, unit.index)
    finish_store(Store.open(path))
    return Store.open(path)
