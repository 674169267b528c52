"""Opening a store: what it holds, what is committed, and readers for its arrays."""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from actstore.errors import ChecksumError, DamagedStoreError, NotAStoreError, UnknownNameError
from actstore.manifest import Manifest
from actstore.plan import Plan, WorkUnit
from actstore.site import Site, site_of_layer
from actstore.store.arrays import ArrayReader, read_array
from actstore.store.layout import (
    COMMITS,
    DENSE_MASKS,
    FORMAT_VERSION,
    PENDING,
    ArraySpec,
    parse_array_json,
    pooled_spec,
    rows_spec,
)
from actstore.store.metadata import UnitReceipt, load_json, load_records, parse_plan
from actstore.store.publish import FileRecord, file_record
from actstore.tokens import TokenMask, TokenTable

if TYPE_CHECKING:
    import pyarrow as pa

    from actstore.store.view import View

__all__ = ["Store"]

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


class Store:
    """A read-only activation store.

    What is committed is read once, when the store is opened: open it again to see later commits.
    """

    def __init__(self, path: Path, manifest: Manifest, plan: Plan) -> None:
        self.path = path
        self.manifest = manifest
        self.plan = plan
        self._arrays: dict[str, ArrayReader] = {}
        self._offset_cache: dict[str, Int64] = {}

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open the store in folder `path`; NotAStoreError if there is none."""
        root = Path(path)
        if not (root / "zarr.json").is_file():
            what = "does not exist" if not root.exists() else "is not an activation store"
            raise NotAStoreError(
                f"{path} {what}: give the folder that `actstore extract --store` made"
            )
        group = load_json(root / "zarr.json")
        attributes = group.get("attributes") if isinstance(group, dict) else None
        manifest = Manifest.from_json(str(path), attributes)
        if manifest.request.dtype == "bfloat16" and "zarr" in sys.modules:
            import actstore.store.zarr_dtype  # noqa: F401  (see there why)
        store = cls(root, manifest, parse_plan(root, manifest.dataset.n_examples))
        store._check_identity()
        return store

    def _check_identity(self) -> None:
        """The two files that say how to read all others are those that were written: otherwise
        intact shards would give wrong rows."""
        wanted = {"zarr.json": self.files.get("zarr.json")}
        for commit in self.commits:
            wanted["plan.json"] = self.committed(commit)["files"].get("plan.json")
        for key, record in wanted.items():
            if record is None or file_record(self.path / key) != record:
                raise ChecksumError(
                    f"{self.path}/{key} is not the file that was committed: restore it from a copy"
                )

    # --- what it holds ----------------------------------------------------------------------

    @property
    def sites(self) -> tuple[str, ...]:
        return self.manifest.request.sites

    @property
    def masks(self) -> tuple[str, ...]:
        return self.manifest.request.masks

    @property
    def pools(self) -> tuple[str, ...]:
        """Pools materialised for every stored mask of rows."""
        return self.manifest.request.pools

    @property
    def n_examples(self) -> int:
        return self.manifest.dataset.n_examples

    @property
    def d_model(self) -> int:
        return self.manifest.model.d_model

    def n_rows(self, mask: str) -> int:
        """Rows under a mask, stored or not."""
        return self.mask(mask).n_rows

    @cached_property
    def examples(self) -> pa.Table:
        """The dataset's columns, as a pyarrow table."""
        import pyarrow.parquet as pq

        try:
            return pq.read_table(self.path / "examples.parquet", memory_map=True)
        except (OSError, ValueError) as error:
            raise DamagedStoreError(
                f"{self.path}/examples.parquet cannot be read ({str(error).splitlines()[0]}): "
                "run `actstore verify`"
            ) from None

    def site(self, *, site: str | None = None, layer: int | None = None) -> Site:
        """The stored site named by `site` or by Hugging Face layer index `layer`."""
        if (site is None) == (layer is None):
            raise UnknownNameError("give either site= or layer=, and not both")
        model = self.manifest.model
        if site is not None:
            wanted = Site.parse(site)
        else:
            assert layer is not None
            wanted = site_of_layer(layer, model.n_blocks, has_final_norm=model.has_final_norm)
        if str(wanted) not in self.sites:
            asked = f"layer {layer} (site {wanted})" if site is None else f"site {wanted}"
            raise UnknownNameError(
                f"{asked} is not in {self.path}: it holds {', '.join(self.sites)}"
            )
        return wanted

    def layer_of(self, site: str) -> int | None:
        """The Hugging Face layer index of a site, or None where it is no hidden state."""
        model = self.manifest.model
        for layer in range(model.n_blocks + 1):
            named = site_of_layer(layer, model.n_blocks, has_final_norm=model.has_final_norm)
            if str(named) == site:
                return layer
        return None

    def view(
        self,
        *,
        site: str | None = None,
        layer: int | None = None,
        mask: str = "content",
        pool: str | None = None,
    ) -> View:
        """A view of one site under a mask: ragged rows, or one row per example with `pool`."""
        from actstore.store.view import View

        return View(self, str(self.site(site=site, layer=layer)), mask, pool)

    # --- tokens -----------------------------------------------------------------------------

    @cached_property
    def tokens(self) -> TokenTable:
        names = ("ids", "offsets", "special", "char_start", "char_end", "n_cut")
        return TokenTable(*(self._table(f"tokens/{name}") for name in names))

    @cached_property
    def _mask_cache(self) -> dict[str, TokenMask]:
        return {}

    def mask(self, name: str) -> TokenMask:
        """A mask of the token table: `all`, or one that the store lists."""
        if name not in self._mask_cache:
            if name == "all":
                table = self.tokens
                rows = np.arange(table.n_tokens, dtype=np.int64)
                self._mask_cache[name] = TokenMask(name, rows, table.offsets)
            else:
                folder = self.path / "tokens" / "masks"
                known = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
                if name not in [n for n in known if n != "zarr.json"]:
                    has = ", ".join(["all", *(n for n in known if n != "zarr.json")])
                    raise UnknownNameError(f"mask {name!r} is not in {self.path}: it has {has}")
                base = f"tokens/masks/{name}"
                items = self._table(f"{base}/items") if (folder / name / "items").exists() else None
                self._mask_cache[name] = TokenMask(
                    name, self._table(f"{base}/rows"), self._table(f"{base}/offsets"), items
                )
        return self._mask_cache[name]

    def _table(self, key: str) -> Any:
        return read_array(self._table_reader(key))

    def _table_reader(self, key: str) -> ArrayReader:
        if key not in self._arrays:
            meta = f"{key}/zarr.json"
            spec = parse_array_json(key, load_json(self.path / meta))
            if file_record(self.path / meta) != self.files.get(meta) or (
                spec.n_shards > len(self.files)
            ):
                raise ChecksumError(f"{self.path}/{meta} is not the file that was made: restore it")
            self._arrays[key] = ArrayReader(self.path, spec, self.files, lambda _: f"table {key}")
        return self._arrays[key]

    def unit_tokens(self, unit: WorkUnit) -> tuple[Int32, Int64]:
        """Token ids of one unit, and where each of its examples begins; reads nothing else."""
        offsets = self._offsets("tokens/offsets")[unit.first : unit.stop + 1]
        return self._part("tokens/ids", offsets), offsets - offsets[0]

    def unit_mask(self, unit: WorkUnit, name: str) -> tuple[Int64, Int64]:
        """Rows of a mask within one unit, counted from the unit's first token, and where each
        of its examples begins."""
        begin = int(self._offsets("tokens/offsets")[unit.first])
        if name == "all":
            ids, local = self.unit_tokens(unit)
            return np.arange(len(ids), dtype=np.int64), local
        offsets = self._offsets(f"tokens/masks/{name}/offsets")[unit.first : unit.stop + 1]
        return self._part(f"tokens/masks/{name}/rows", offsets) - begin, offsets - offsets[0]

    def _offsets(self, key: str) -> Int64:
        if key not in self._offset_cache:
            self._offset_cache[key] = self._table(key)
        return self._offset_cache[key]

    def _part(self, key: str, offsets: Int64) -> Any:
        return self._table_reader(key).read_runs(offsets[:1], offsets[-1:] - offsets[:1])

    # --- arrays -----------------------------------------------------------------------------

    def rows_array(self, site: str, mask: str) -> ArraySpec:
        """The array of a site's rows under a stored mask."""
        dtype = self.manifest.request.dtype
        if mask in DENSE_MASKS:
            return pooled_spec(site, mask, self.n_rows(mask), self.d_model, dtype)
        return rows_spec(site, mask, self.d_model, dtype, self.plan.masks[mask])

    def pooled_array(self, site: str, mask: str, pool: str) -> ArraySpec:
        dtype = self.manifest.request.dtype
        return pooled_spec(site, f"{mask}.{pool}", self.n_examples, self.d_model, dtype)

    def all_arrays(self) -> list[ArraySpec]:
        """Every activation array of the store, in a fixed order."""
        request = self.manifest.request
        found = []
        for site in request.sites:
            for mask in request.masks:
                found.append(self.rows_array(site, mask))
                if mask not in DENSE_MASKS:
                    found += [self.pooled_array(site, mask, pool) for pool in request.pools]
        return found

    def array(self, spec: ArraySpec) -> ArrayReader:
        """The reader of an array; shards are mapped and checked once for the life of the store."""
        if spec.key not in self._arrays:
            self._arrays[spec.key] = ArrayReader(
                self.path, spec, self.shards, lambda shard: self.label(spec, shard)
            )
        return self._arrays[spec.key]

    def label(self, spec: ArraySpec, shard: int) -> str:
        """What a shard is, for errors: `unit 3, site resid_post.2, mask content`."""
        _, site, name = spec.key.split("/")
        ragged = name in self.plan.masks and name not in DENSE_MASKS
        owner = f"unit {shard}" if ragged else f"compacted shard {shard} (all units)"
        return f"{owner}, site {site}, mask {name}"

    # --- what is committed --------------------------------------------------------------------

    @cached_property
    def files(self) -> dict[str, FileRecord]:
        """Records of the files made before extraction: metadata, token table, examples."""
        path = self.path / "plan.json"
        return load_records(path, load_json(path).get("files"))

    def committed(self, path: Path) -> dict[str, dict[str, FileRecord]]:
        """The records `shards` and `files` of a commit; DamagedStoreError if it is none."""
        data = load_json(path)
        sound = (
            isinstance(data, dict)
            and data.get("format") == FORMAT_VERSION
            and path.name == f"{data.get('commit')!s:0>8}.json"
            and data.get("units") == len(self.plan.units)
        )
        if not sound:
            raise DamagedStoreError(f"{path} is not a commit of this store: restore or remove it")
        return {name: load_records(path, data.get(name)) for name in ("shards", "files")}

    @cached_property
    def commits(self) -> tuple[Path, ...]:
        folder = self.path / COMMITS
        return tuple(sorted(folder.glob("????????.json"))) if folder.is_dir() else ()

    @cached_property
    def pending(self) -> dict[int, UnitReceipt]:
        """Manifests of units that are done but not yet folded into a commit."""
        folder = self.path / PENDING
        found = sorted(folder.glob("????????.json")) if folder.is_dir() else []
        receipts = [UnitReceipt.load(path) for path in found]
        return {receipt.unit: receipt for receipt in receipts}

    @cached_property
    def shards(self) -> dict[str, FileRecord]:
        """Records of every shard that belongs to the store."""
        found: dict[str, FileRecord] = {}
        for path in self.commits:
            found.update(self.committed(path)["shards"])
        for receipt in self.pending.values():
            found.update(receipt.shards)
        return found

    @property
    def complete(self) -> bool:
        """All units are extracted and committed."""
        return bool(self.commits)

    @property
    def n_units_done(self) -> int:
        return len(self.plan.units) if self.complete else len(self.pending)
