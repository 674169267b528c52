"""Probes on disk: one safetensors file each, with everything needed to apply it to new text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from actstore.errors import InputError
from actstore.probes.attention import AttentionFit
from actstore.probes.linear import LinearFit
from actstore.store.publish import replace

__all__ = ["load_probe", "save_attention", "save_linear"]

_KEY = "actstore.probe"
_FORMAT = 1
_KINDS: dict[str, tuple[type[LinearFit] | type[AttentionFit], tuple[str, ...]]] = {
    "linear": (LinearFit, ("coef", "intercept")),
    "attention": (AttentionFit, ("query", "position", "value", "bias")),
}


def save_linear(path: Path, fit: LinearFit, metadata: Mapping[str, Any]) -> None:
    """Write a linear probe; `metadata` must be JSON (site, mask, pool, model, classes, ...)."""
    _save(path, "linear", fit, metadata)


def save_attention(path: Path, fit: AttentionFit, metadata: Mapping[str, Any]) -> None:
    """Write an attention probe; see `save_linear`."""
    _save(path, "attention", fit, metadata)


def _save(
    path: Path, kind: str, fit: LinearFit | AttentionFit, metadata: Mapping[str, Any]
) -> None:
    _, names = _KINDS[kind]
    tensors = {name: np.ascontiguousarray(getattr(fit, name)) for name in names}
    facts = {
        field.name: getattr(fit, field.name)
        for field in dataclasses.fields(fit)
        if field.name not in names
    }
    header = {"format": _FORMAT, "kind": kind, "fit": facts, "metadata": dict(metadata)}
    # one key, because safetensors writes several in no fixed order
    text = json.dumps(header, sort_keys=True, ensure_ascii=False)
    replace(path, save(tensors, {_KEY: text}))


def load_probe(path: Path) -> tuple[LinearFit | AttentionFit, dict[str, Any]]:
    """Read a probe and its metadata.

    Raises InputError for a file that is absent, damaged, or not a probe of ours.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist: give a .safetensors file from the folder `probes` of a "
            "results folder"
        ) from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a probe that can be read: {_line(error)}") from None
    if _KEY not in header:
        raise InputError(f"{path} is a safetensors file, but not a probe")
    try:
        said = json.loads(header[_KEY])
        if said["format"] != _FORMAT:
            raise InputError(f"{path} is a probe of format {said['format']!r}, not {_FORMAT}")
        make, names = _KINDS[said["kind"]]
        facts, metadata = said["fit"], said["metadata"]
        arrays = {name: tensors[name] for name in names}
        _check_shapes(said["kind"], arrays)
        return make(**arrays, **facts), dict(metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {_line(error)}; fit the probe again") from None


def _check_shapes(kind: str, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    if kind == "linear":
        n_classes, _ = tensors["coef"].shape
        sound = tensors["intercept"].shape == (n_classes,)
    else:
        heads, n_classes, d = tensors["value"].shape
        sound = (
            tensors["query"].shape == (heads, d)
            and tensors["position"].shape == (heads,)
            and tensors["bias"].shape == (n_classes,)
        )
    if not sound:
        raise ValueError("the tensors' shapes do not fit together")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
