"""The generic resolver: hook points of families that have no row in the architecture table.

It finds the blocks and the final norm, which give `embed`, `resid_pre`, `resid_post` and
`final_norm`; a self-test at load compares them with `hidden_states` before anything is stored.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from actstore.errors import UnsupportedModelError
from actstore.model.architecture import FAMILIES, Family

__all__ = ["family_of"]

# Where the blocks of models without recording hints usually are.
_COMMON_PATHS = (
    "h",
    "layers",
    "blocks",
    "encoder.layer",
    "encoder.layers",
    "decoder.layers",
    "transformer.layer",
    "transformer.h",
    "model.layers",
)


def family_of(model_type: str, model: nn.Module, n_blocks: int) -> Family:
    """The table's row, or a row made by looking at the modules of `model` (no weights needed)."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    blocks = _find_blocks(model_type, model, n_blocks)
    return Family(blocks=blocks, final_norm=_find_final_norm(model_type, model, blocks))


def _find_blocks(model_type: str, model: nn.Module, n_blocks: int) -> str:
    """The path of the one list that holds the blocks and nothing else."""
    recorded = _recorded_classes(getattr(model, "_can_record_outputs", None))
    paths = {
        name.rpartition(".")[0]
        for name, module in model.named_modules()
        if recorded and isinstance(module, recorded)
    }
    if not recorded:
        lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
        paths = {path for path in _COMMON_PATHS if path in lists and len(lists[path]) == n_blocks}
    if len(paths) == 1:
        path = str(paths.pop())
        found = model.get_submodule(path)
        if isinstance(found, nn.ModuleList) and len(found) == n_blocks:
            return path
    raise UnsupportedModelError(
        f"model type {model_type!r} ({type(model).__name__}) has no known hook points: expected "
        f"one list of {n_blocks} blocks, found "
        f"{', '.join(sorted(paths)) or 'none'}; known families are {', '.join(sorted(FAMILIES))}"
    )


def _recorded_classes(hints: Any) -> tuple[type[nn.Module], ...]:
    """Block classes named by transformers' own recording hints."""
    spec = (hints or {}).get("hidden_states")
    specs = spec if isinstance(spec, list | tuple) else [spec]
    classes = [getattr(one, "target_class", one) for one in specs]
    return tuple(one for one in classes if isinstance(one, type))


def _find_final_norm(model_type: str, model: nn.Module, blocks: str) -> str | None:
    """The norm that stands beside the block list or beside one of the modules around it."""
    found: list[tuple[str, bool]] = []
    inner, path = blocks, blocks
    while path:
        path, _, _ = path.rpartition(".")
        names = [name for name, _ in model.get_submodule(path).named_children()]
        at = names.index(inner.removeprefix(path and path + ".").partition(".")[0])
        for place, name in enumerate(names):
            child = model.get_submodule(f"{path}.{name}" if path else name)
            if "norm" in type(child).__name__.lower() and "emb" not in name.lower():
                found.append((f"{path}.{name}" if path else name, place > at))
        inner = path
    if len(found) > 1:
        found = [one for one in found if one[1]]
    if len(found) > 1:
        raise UnsupportedModelError(
            f"model type {model_type!r} has several norms after its blocks "
            f"({', '.join(name for name, _ in found)}): which one is final is not known"
        )
    return found[0][0] if found else None
