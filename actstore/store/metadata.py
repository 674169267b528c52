"""A store's own JSON files, read as if a stranger had written them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actstore.errors import DamagedStoreError
from actstore.plan import MaskPlan, Plan, WorkUnit
from actstore.store.publish import FileRecord

__all__ = ["UnitReceipt", "load_json", "load_records", "parse_plan"]


def load_json(path: Path) -> Any:
    """Parse a metadata file of a store; DamagedStoreError names it."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedStoreError(
            f"{path} is missing: restore it from a copy, or extract the store again"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DamagedStoreError(f"{path} is not valid JSON ({error}): restore it") from None


def load_records(path: Path, listed: Any) -> dict[str, FileRecord]:
    """Records of files by key; DamagedStoreError naming `path` where they are not sound, a key
    that leaves the store's folder included."""
    try:
        records = {str(key): FileRecord.from_json(value) for key, value in listed.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DamagedStoreError(f"{path} lists files wrongly: restore it from a copy") from None
    for key in records:
        parts = key.split("/")
        if key.startswith("/") or "\\" in key or "" in parts or "." in parts or ".." in parts:
            raise DamagedStoreError(f"{path} names a file outside the store ({key!r}): distrust it")
    return records


@dataclass(frozen=True)
class UnitReceipt:
    """What one unit wrote: `shards` (final files) and `parts` (rows awaiting compaction)."""

    unit: int
    shards: dict[str, FileRecord]
    parts: dict[str, FileRecord]

    def to_json(self) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "shards": {key: record.to_json() for key, record in self.shards.items()},
            "parts": {key: record.to_json() for key, record in self.parts.items()},
        }

    @classmethod
    def load(cls, path: Path) -> UnitReceipt:
        data = load_json(path)
        try:
            shards = load_records(path, data["shards"])
            return cls(int(data["unit"]), shards, load_records(path, data["parts"]))
        except (KeyError, TypeError, ValueError):
            raise DamagedStoreError(
                f"{path} is not a unit's manifest: delete it and run again"
            ) from None


def parse_plan(root: Path, n_examples: int) -> Plan:
    """The plan of the store in `root`; DamagedStoreError unless it is one that could be ours."""
    data = load_json(root / "plan.json")
    try:
        stops, tokens = data["units"]["stop"], data["units"]["tokens"]
        firsts = [0, *stops[:-1]]
        units = tuple(
            WorkUnit(index, first, stop, n)
            for index, (first, stop, n) in enumerate(zip(firsts, stops, tokens, strict=True))
        )
        masks = {str(name): MaskPlan(**value) for name, value in data["masks"].items()}
        sound = (
            all(type(n) is int for n in (*stops, *tokens))
            and all(unit.first < unit.stop and unit.n_tokens >= 0 for unit in units)
            and (stops[-1] if stops else 0) == n_examples
            and all(_sound_geometry(mask, len(units)) for mask in masks.values())
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise DamagedStoreError(
            f"{root}/plan.json is not a plan of this format: restore it from a copy"
        )
    return Plan(units, masks)


def _sound_geometry(mask: MaskPlan, n_units: int) -> bool:
    """One shard a unit, made of whole chunks."""
    numbers = (mask.n_rows, mask.shape_rows, mask.shard_rows, mask.chunk_rows)
    return (
        all(type(n) is int and 0 <= n < 2**62 for n in numbers)
        and mask.chunk_rows >= 1
        and mask.shard_rows >= mask.chunk_rows
        and mask.shard_rows % mask.chunk_rows == 0
        and mask.n_rows <= mask.shape_rows <= n_units * mask.shard_rows
    )
