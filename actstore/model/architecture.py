"""What a model is made of: its facts, its family's row in the table, and its sites.

Needs neither torch nor transformers. A new family is one row of `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from actstore.errors import UnknownNameError
from actstore.site import POINTS_PER_BLOCK, Site, site_of_layer

__all__ = ["FAMILIES", "Family", "ModelInfo", "Tap", "hidden_state_index", "resolve_sites"]


@dataclass(frozen=True)
class ModelInfo:
    """Facts of a model that follow from its configuration alone, without its weights.

    `model_id` is a folder or a hub id and `revision` the hub commit it was resolved to (None for
    a folder). `architecture` is the class name that the checkpoint was saved from. `d_model` is
    the width of every site's rows. `max_length` counts tokens, special ones included (None = no
    limit). `packed` says that texts may share one forward pass. `points` lists the points of this
    family in the order a forward pass reaches them. `native_dtype` is what `auto` means.
    `config_digest` is the hex blake2b of the canonical JSON of config.json.
    """

    model_id: str
    revision: str | None
    model_type: str
    architecture: str
    n_blocks: int
    d_model: int
    max_length: int | None
    has_final_norm: bool
    packed: bool
    points: tuple[str, ...]
    native_dtype: str
    config_digest: str


@dataclass(frozen=True)
class Tap:
    """Where a point is read: what goes `in` to a module or comes `out` of it.

    `module` is a dotted path; in a family's row it starts at the block and "" is the block itself.
    """

    module: str
    side: Literal["in", "out"]


_BLOCK_ENDS: Mapping[str, Tap] = {"resid_pre": Tap("", "in"), "resid_post": Tap("", "out")}


@dataclass(frozen=True)
class Family:
    """One row of the architecture table.

    `blocks` and `final_norm` are module paths in the base model (no language model head).
    `inner` maps `attn_out`, `resid_mid` and `mlp_out`, where the family has them, to taps inside
    a block. `attn_out` and `mlp_out` are what is added to the residual stream, after any dropout
    or norm on that branch. `packed` is only for families whose layers see other tokens through
    transformers' attention interface alone and whose positions come from `position_ids`.
    `zero_inputs` names the integer inputs that must be all zero (their default depends on the
    position in the batch).
    """

    blocks: str
    final_norm: str | None
    inner: Mapping[str, Tap] = field(default_factory=dict)
    packed: bool = False
    zero_inputs: tuple[str, ...] = ()

    @property
    def points(self) -> tuple[str, ...]:
        inside = tuple(p for p in POINTS_PER_BLOCK if p in _BLOCK_ENDS or p in self.inner)
        return ("embed", *inside, *(("final_norm",) if self.final_norm is not None else ()))

    def tap(self, site: Site) -> Tap:
        """The tap of a site that the family has, its path starting at the base model."""
        if site.point == "embed":
            return Tap(f"{self.blocks}.0", "in")
        if site.point == "final_norm":
            assert self.final_norm is not None
            return Tap(self.final_norm, "out")
        tap = _BLOCK_ENDS.get(site.point) or self.inner[site.point]
        return Tap(f"{self.blocks}.{site.block}{tap.module and '.' + tap.module}", tap.side)


# Keyed by `model_type`; paths as in transformers 5.
FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        blocks="h",
        final_norm="ln_f",
        inner={
            "attn_out": Tap("attn", "out"),
            "resid_mid": Tap("ln_2", "in"),
            "mlp_out": Tap("mlp", "out"),
        },
        packed=True,
    ),
    "llama": Family(
        blocks="layers",
        final_norm="norm",
        inner={
            "attn_out": Tap("self_attn", "out"),
            "resid_mid": Tap("post_attention_layernorm", "in"),
            "mlp_out": Tap("mlp", "out"),
        },
        packed=True,
    ),
    # Norms come after the sums: resid_mid and resid_post are normalised, the branches are not.
    "bert": Family(
        blocks="encoder.layer",
        final_norm=None,
        inner={
            "attn_out": Tap("attention.output.dropout", "out"),
            "resid_mid": Tap("attention.output", "out"),
            "mlp_out": Tap("output.dropout", "out"),
        },
        packed=True,
        zero_inputs=("token_type_ids",),
    ),
}


def resolve_sites(
    info: ModelInfo, *, layers: Sequence[int] | None = None, sites: Sequence[str] | None = None
) -> tuple[Site, ...]:
    """The sites asked for by layer index, by name or both, without repeats, by depth.

    Neither given means every layer. UnknownNameError if the model has no such layer or site.
    """
    if layers is None and sites is None:
        layers = range(info.n_blocks + 1)
    found = {
        site_of_layer(layer, info.n_blocks, has_final_norm=info.has_final_norm)
        for layer in layers or ()
    }
    found.update(_checked(info, (Site.parse(text) for text in sites or ())))
    if not found:
        raise UnknownNameError("no layer and no site was asked for: name at least one")
    return tuple(sorted(found, key=lambda site: site.depth(info.n_blocks)))


def _checked(info: ModelInfo, sites: Iterable[Site]) -> Iterable[Site]:
    for site in sites:
        if site.point not in info.points:
            last = f"; its last state is resid_post.{info.n_blocks - 1}"
            raise UnknownNameError(
                f"site {site} does not exist in {info.model_id} ({info.model_type}), "
                f"which has the points {', '.join(info.points)}"
                + (last if site.point == "final_norm" else "")
            )
        if site.block is not None and site.block >= info.n_blocks:
            raise UnknownNameError(
                f"site {site} does not exist: {info.model_id} has blocks 0 to {info.n_blocks - 1}"
            )
        yield site


def hidden_state_index(info: ModelInfo, site: Site) -> int | None:
    """The index of a site's rows in Hugging Face's `hidden_states`, None if they are not there
    (inner points, and the last block's output where a final norm follows it)."""
    if site.point == "embed":
        return 0
    if site.point == "final_norm":
        return info.n_blocks
    assert site.block is not None
    if site.point == "resid_pre":
        return site.block
    if site.point == "resid_post":
        index = site.block + 1
        return None if index == info.n_blocks and info.has_final_norm else index
    return None
