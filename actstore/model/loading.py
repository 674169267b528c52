"""A model's facts and its weights, from a folder or a hub id."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from actstore.errors import InputError, ResourceError, UnsupportedModelError
from actstore.model.architecture import FAMILIES, Family, ModelInfo
from actstore.model.resolver import family_of
from actstore.model.source import find_file, first_line, load_errors, locate, quiet, resolved_commit

__all__ = ["DTYPES", "describe_model", "load_model", "weights_digest"]

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Tokenizers state "no limit" as a huge number.
_NO_LIMIT = 10**8
# Frequencies that depend on the longest text of the batch: such rows depend on their company.
_BATCH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
# Keys of config.json that change without the model changing.
_NOT_THE_MODEL = frozenset({"_name_or_path", "transformers_version", "_commit_hash"})
_UNUSED_HEADS = re.compile(r"(^|\.)(pooler|lm_head)\.")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def describe_model(
    model_id: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> ModelInfo:
    """Read a model's facts from its configuration; no weights are read.

    InputError if there is no such model; UnsupportedModelError if its architecture has no hook
    points that are known or can be found.
    """
    path = find_file(model_id, revision, "config.json", required=True)
    if path is None:
        raise InputError(f"{model_id!r} is not a model: it has no config.json")
    revision = resolved_commit(path, revision)
    config = _read_config(model_id, revision, trust_remote_code)
    text = config.get_text_config()
    n_blocks, d_model = _sizes(model_id, config.model_type, text)
    family = FAMILIES.get(config.model_type) or family_of(
        config.model_type, _empty_model(model_id, config, trust_remote_code), n_blocks
    )
    with quiet(), load_errors(model_id, "tokenizer's configuration"):
        tokenizer = get_tokenizer_config(model_id, **locate(model_id, revision))
    limits = [getattr(text, "max_position_embeddings", None), tokenizer.get("model_max_length")]
    known = [int(n) for n in limits if isinstance(n, int | float) and 0 < n < _NO_LIMIT]
    dtype = str(getattr(config, "dtype", None) or text.dtype).removeprefix("torch.")
    return ModelInfo(
        model_id=model_id,
        revision=revision,
        model_type=config.model_type,
        architecture=(config.architectures or [config.model_type])[0],
        n_blocks=n_blocks,
        d_model=d_model,
        max_length=min(known, default=None),
        has_final_norm=family.final_norm is not None,
        packed=family.packed and _rope_types(text).isdisjoint(_BATCH_DEPENDENT_ROPE),
        points=family.points,
        native_dtype=dtype if dtype in DTYPES else "float32",
        config_digest=_config_digest(path),
    )


def load_model(
    info: ModelInfo, *, dtype: str = "float32", device: str = "cpu", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, Family]:
    """The base model (no language model head) in evaluation mode, and its family's row.

    `dtype` is a key of `DTYPES` or `auto`. UnsupportedModelError names weights that the
    checkpoint lacks (a pooler or a language model head may be absent: they are not used).
    """
    name = info.native_dtype if dtype == "auto" else dtype
    if name not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown: use auto, {', '.join(DTYPES)}")
    target = _device(device)
    where = locate(info.model_id, info.revision)
    with quiet(), load_errors(info.model_id, "model"):
        model, report = AutoModel.from_pretrained(
            info.model_id,
            dtype=DTYPES[name],
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the names
            **where,
        )
    _check_report(info.model_id, type(model).__name__, report)
    # Nothing is generated, and key-value caches would only hold memory.
    for config in (model.config, model.config.get_text_config()):
        config.use_cache = False
    with load_errors(info.model_id, "model"):
        model = model.eval().requires_grad_(False).to(target)
    return model, family_of(info.model_type, model, info.n_blocks)


def _check_report(model_id: str, architecture: str, report: Mapping[str, Any]) -> None:
    """UnsupportedModelError unless every weight that is used came from the checkpoint."""
    wrong = {
        "lacks weights": sorted(report["missing_keys"]),
        "has weights of another shape": [str(entry[0]) for entry in report["mismatched_keys"]],
        "has unreadable weights": list(report["error_msgs"]),
    }
    for what, keys in wrong.items():
        names = [key for key in keys if not _UNUSED_HEADS.search(key)]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UnsupportedModelError(
                f"the checkpoint of {model_id!r} {what} that {architecture} needs: "
                f"{', '.join(names[:3])}{more}; it is incomplete or of another architecture"
            )


def weights_digest(model_id: str, *, revision: str | None = None) -> str:
    """Hex blake2b over the names, sizes and crc32c of the weight files that are loaded.

    Reads every byte of them (and downloads them first, for a hub id).
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in _weight_files(model_id, revision):
        checksum = google_crc32c.Checksum()
        with path.open("rb") as file:
            for _ in checksum.consume(file, 1 << 22):
                pass
        digest.update(f"{path.name} {path.stat().st_size} {checksum.digest().hex()}\n".encode())
    return digest.hexdigest()


def _weight_files(model_id: str, revision: str | None) -> list[Path]:
    for name in _WEIGHT_FILES:
        if path := find_file(model_id, revision, name):
            return [path]
        if index := find_file(model_id, revision, f"{name}.index.json"):
            with load_errors(model_id, "list of weight files"):
                shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            paths = [find_file(model_id, revision, shard) for shard in shards]
            if None in paths:
                raise InputError(
                    f"{model_id!r} lacks the weight file {shards[paths.index(None)]}, which "
                    f"{index.name} lists: copy or download it again"
                )
            return [path for path in paths if path is not None]
    raise InputError(f"{model_id!r} has no weights: expected {' or '.join(_WEIGHT_FILES)}")


def _read_config(model_id: str, revision: str | None, trust_remote_code: bool) -> PreTrainedConfig:
    with quiet(), load_errors(model_id, "configuration"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            model_id, trust_remote_code=trust_remote_code, **locate(model_id, revision)
        )
    return config


def _sizes(model_id: str, model_type: str, config: PreTrainedConfig) -> tuple[int, int]:
    if config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{model_id!r} ({model_type}) is an encoder-decoder model: these are not supported yet"
        )
    n_blocks = getattr(config, "num_hidden_layers", None)
    d_model = getattr(config, "hidden_size", None)
    if not (isinstance(n_blocks, int) and isinstance(d_model, int) and n_blocks > 0):
        raise UnsupportedModelError(
            f"the configuration of {model_id!r} ({model_type}) does not state its number of blocks "
            "and width (num_hidden_layers, hidden_size): its hook points are not known"
        )
    return n_blocks, d_model


def _empty_model(model_id: str, config: PreTrainedConfig, trust: bool) -> PreTrainedModel:
    """The model's modules without memory for its weights."""
    try:
        with quiet(), torch.device("meta"):
            build: Any = AutoModel.from_config
            model: PreTrainedModel = build(config, trust_remote_code=trust)
    except Exception as error:
        raise UnsupportedModelError(
            f"model type {config.model_type!r} of {model_id!r} cannot be built as a plain model: "
            f"{first_line(error)}"
        ) from error
    if model.main_input_name != "input_ids":
        raise UnsupportedModelError(
            f"{model_id!r} ({config.model_type}) is not a text model: it takes "
            f"{model.main_input_name}, not tokens"
        )
    return model


def _rope_types(config: PreTrainedConfig) -> set[str]:
    """Kinds of rotary embedding, whichever of the known spellings the config uses."""
    found: set[str] = set()
    waiting: list[Any] = [
        getattr(config, "rope_parameters", None),
        getattr(config, "rope_scaling", None),
    ]
    while waiting:
        rope = waiting.pop()
        if isinstance(rope, dict):
            found.update(str(rope[key]) for key in ("rope_type", "type") if key in rope)
            waiting.extend(rope.values())
    return found


def _config_digest(path: Path) -> str:
    with load_errors(str(path), "configuration"):
        config = json.loads(path.read_text(encoding="utf-8"))
    canonical = json.dumps(
        {key: value for key, value in config.items() if key not in _NOT_THE_MODEL},
        sort_keys=True,
        separators=(",", ":"),
    )
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def _device(device: str) -> torch.device:
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is unknown: use cpu, cuda or cuda:N") from error
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"device {device!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return target
