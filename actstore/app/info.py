"""`actstore info`: what a store holds and what made it."""

from __future__ import annotations

import dataclasses

from actstore.app.console import print_facts, print_json, print_table
from actstore.config import InfoRun
from actstore.runtime.events import bytes_text
from actstore.store.reader import Store

__all__ = ["run"]


def run(run: InfoRun) -> int:
    """Carry out the command; the exit code."""
    store = Store.open(run.store)
    manifest, data, model = store.manifest, store.manifest.dataset, store.manifest.model
    n_bytes = sum(record.size for record in store.shards.values())
    masks = {name: store.n_rows(name) for name in store.masks}
    if run.json:
        print_json(
            {
                "path": str(store.path),
                "format": 1,
                "complete": store.complete,
                "units": len(store.plan.units),
                "units_done": store.n_units_done,
                "n_examples": store.n_examples,
                "n_tokens": data.n_tokens,
                "n_truncated": data.n_truncated,
                "sites": list(store.sites),
                "layers": {str(store.layer_of(s)): s for s in store.sites if _is_layer(store, s)},
                "masks": masks,
                "pools": list(store.pools),
                "dtype": manifest.request.dtype,
                "d_model": store.d_model,
                "bytes": n_bytes,
                "columns": store.examples.column_names,
                "model": dataclasses.asdict(model),
                "dataset": dataclasses.asdict(data),
                "software": dataclasses.asdict(manifest.software),
            }
        )
        return 0
    revision = f" at {model.revision}" if model.revision else ""
    cut = f", {data.n_truncated} truncated to {data.max_length}" if data.n_truncated else ""
    done = f"{store.n_units_done} of {len(store.plan.units)} units"
    print_facts(
        [
            ("store", store.path),
            ("state", "complete" if store.complete else f"unfinished: {done}"),
            ("model", f"{model.id}{revision} ({model.architecture}, {model.n_blocks} blocks)"),
            ("dataset", f"{data.source}: {store.n_examples} examples, {data.n_tokens} tokens{cut}"),
            ("columns", ", ".join(store.examples.column_names)),
            ("masks", ", ".join(f"{name} ({rows} rows)" for name, rows in masks.items())),
            ("pools", ", ".join(store.pools) or "none stored (computed when read)"),
            ("rows", f"{store.d_model} x {manifest.request.dtype}"),
            ("size", bytes_text(n_bytes)),
            ("made with", _software(store)),
        ]
    )
    print()
    rows = []
    for site in store.sites:
        layer = store.layer_of(site)
        rows.append((site, "-" if layer is None else str(layer)))
    print_table(("site", "layer"), rows)
    return 0


def _is_layer(store: Store, site: str) -> bool:
    return store.layer_of(site) is not None


def _software(store: Store) -> str:
    used = store.manifest.software
    return (
        f"actstore {used.actstore}, torch {used.torch}, transformers {used.transformers}, "
        f"{used.device}"
    )
