"""What made a store: model, tokenizer, dataset, request and software, as written into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actstore.errors import NotAStoreError, UnknownNameError
from actstore.pooling import POOLS
from actstore.site import Site
from actstore.tokens import MASK_NAMES

__all__ = ["DatasetRecord", "Manifest", "ModelRecord", "Request", "Software"]

FORMAT_VERSION = 1
STORED_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ModelRecord:
    """The model whose states are stored; digests identify it, `id` is how the user named it."""

    id: str
    revision: str | None
    model_type: str
    architecture: str
    n_blocks: int
    d_model: int
    has_final_norm: bool
    config_digest: str
    weights_digest: str
    tokenizer_digest: str


@dataclass(frozen=True)
class DatasetRecord:
    """The dataset that was tokenised. `n_truncated` examples lost tokens to `max_length`."""

    source: str
    fingerprint: str
    text_column: str
    words_column: str
    n_examples: int
    n_tokens: int
    n_truncated: int
    max_length: int | None


@dataclass(frozen=True)
class Request:
    """What was asked to be stored, and every size that shapes the bytes."""

    sites: tuple[str, ...]
    masks: tuple[str, ...]
    pools: tuple[str, ...]
    dtype: str
    shard_bytes: int
    pack_tokens: int


@dataclass(frozen=True)
class Software:
    """Versions that the bytes depend on; only a run in progress insists on them."""

    actstore: str
    torch: str
    transformers: str
    device: str


@dataclass(frozen=True)
class Manifest:
    """A store's identity: the attribute `actstore` of its root group."""

    model: ModelRecord
    dataset: DatasetRecord
    request: Request
    software: Software

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, path: str, attributes: Any) -> Manifest:
        """Read the root group's attributes; NotAStoreError if they are not ours or not format 1."""
        data = attributes.get("actstore") if isinstance(attributes, Mapping) else None
        if not isinstance(data, Mapping):
            raise NotAStoreError(
                f"{path} is a Zarr group but not an activation store: "
                "give the folder that `actstore extract --store` made"
            )
        if data.get("format") != FORMAT_VERSION:
            raise NotAStoreError(
                f"{path} has store format {data.get('format')!r}; this version of actstore reads "
                f"format {FORMAT_VERSION}: install the version that made it"
            )
        try:
            request = dict(data["request"])
            for name in ("sites", "masks", "pools"):
                request[name] = tuple(str(item) for item in request[name])
            manifest = cls(
                ModelRecord(**data["model"]),
                DatasetRecord(**data["dataset"]),
                Request(**request),
                Software(**data["software"]),
            )
            manifest._check()
            return manifest  # noqa: TRY300
        except (KeyError, TypeError, ValueError, UnknownNameError) as error:
            raise NotAStoreError(
                f"{path}/zarr.json lacks or misspells part of the store's identity ({error}): "
                "restore it from a copy"
            ) from None

    def _check(self) -> None:
        """ValueError or UnknownNameError for values that no store of ours has: sizes decide what
        is mapped and how it is read, and names become paths."""
        model, data, request = self.model, self.dataset, self.request
        for size, most in (
            (model.n_blocks, 10**5),
            (model.d_model, 10**7),
            (data.n_examples, 10**12),
            (data.n_tokens, 10**15),
        ):
            if type(size) is not int or not 0 <= size <= most:
                raise ValueError(f"size {size!r}")
        if request.dtype not in STORED_DTYPES or model.d_model < 1:
            raise ValueError(f"dtype {request.dtype!r}, d_model {model.d_model}")
        for site in request.sites:
            Site.parse(site)
        unknown = {*request.masks} - {*MASK_NAMES} | {*request.pools} - {*POOLS}
        if unknown or not request.masks or not request.sites:
            raise ValueError(f"masks {request.masks}, pools {request.pools}")

    def differences(self, other: Manifest, *, software: bool) -> list[str]:
        """Where `other` differs in anything that decides the stored bytes, as readable phrases.

        Names and paths (`model.id`, `dataset.source`) may differ: digests decide.
        """
        ignored = {"model.id", "model.revision", "dataset.source"}
        found = []
        for part in ("model", "dataset", "request", *(["software"] if software else [])):
            mine, theirs = getattr(self, part), getattr(other, part)
            for field in dataclasses.fields(mine):
                name = f"{part}.{field.name}"
                a, b = getattr(mine, field.name), getattr(theirs, field.name)
                if a != b and name not in ignored:
                    found.append(f"{name} is {_short(a)} there and {_short(b)} here")
        return found


def _short(value: Any) -> str:
    text = ",".join(value) or "none" if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
