"""Sites: named hook points of a model, and their relation to Hugging Face's layer index."""

from __future__ import annotations

import re
from dataclasses import dataclass

from actstore.errors import UnknownNameError

__all__ = ["POINTS_PER_BLOCK", "POINTS_PER_MODEL", "Site", "site_of_layer"]

POINTS_PER_MODEL = ("embed", "final_norm")
POINTS_PER_BLOCK = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
_TEXT = re.compile(r"([a-z_]+)(?:\.(\d+))?")


@dataclass(frozen=True)
class Site:
    """One hook point. `block` counts from 0 and is None for `embed` and `final_norm`.

    `str(site)` is the name used everywhere, the Zarr array name included: `resid_post.5`.
    """

    point: str
    block: int | None = None

    def __str__(self) -> str:
        return self.point if self.block is None else f"{self.point}.{self.block}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read `resid_post.5`, `embed`, ...; UnknownNameError says what would be right."""
        match = _TEXT.fullmatch(text.strip())
        if match:
            point, block = match.group(1), match.group(2)
            if point in POINTS_PER_MODEL and block is None:
                return cls(point)
            if point in POINTS_PER_BLOCK and block is not None:
                return cls(point, int(block))
        raise UnknownNameError(
            f"site {text!r} is unknown: use one of {', '.join(POINTS_PER_MODEL)} or "
            f"{', '.join(point + '.BLOCK' for point in POINTS_PER_BLOCK)} with BLOCK from 0"
        )

    def depth(self, n_blocks: int) -> tuple[int, int]:
        """Sort key in the order in which a forward pass reaches the sites."""
        if self.point == "embed":
            return (-1, 0)
        if self.point == "final_norm":
            return (n_blocks, 0)
        return (self.block or 0, POINTS_PER_BLOCK.index(self.point))


def site_of_layer(layer: int, n_blocks: int, *, has_final_norm: bool) -> Site:
    """The site whose rows are exactly Hugging Face's `hidden_states[layer]`.

    0 is `embed` (the input of block 0); the last index, `n_blocks`, is the state after the
    final norm where the model has one, else the last block's output. Negative indices count
    from the end as in Python.
    """
    index = layer + n_blocks + 1 if layer < 0 else layer
    if not 0 <= index <= n_blocks:
        raise UnknownNameError(
            f"layer {layer} does not exist: this model has layers 0 to {n_blocks} "
            "(0 = embeddings), or -1 to count from the end"
        )
    if index == 0:
        return Site("embed")
    if index == n_blocks and has_final_norm:
        return Site("final_norm")
    return Site("resid_post", index - 1)
