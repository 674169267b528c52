"""Attention over a pack: every text sees itself alone.

Registered with transformers as `actstore_packed`. Because no mask function is registered under
that name, transformers builds no mask at all, and nothing here is quadratic in the pack.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from actstore.errors import UnsupportedModelError
from actstore.model.packing import Group

__all__ = ["PACKED_ATTENTION", "packed_attention", "packed_attention_of", "text_groups"]

PACKED_ATTENTION = "actstore_packed"

_groups: ContextVar[tuple[Group, ...] | None] = ContextVar("actstore_groups", default=None)

# Options that say nothing about which token sees which, or how strongly.
_HARMLESS = frozenset(
    {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "cache_position"}
)


@contextmanager
def text_groups(groups: tuple[Group, ...]) -> Iterator[None]:
    """Say where the texts of the coming forward pass lie."""
    token = _groups.set(groups)
    try:
        yield
    finally:
        _groups.reset(token)


@contextmanager
def packed_attention_of(model: PreTrainedModel) -> Iterator[None]:
    """Let `model` use packed attention inside the `with` block."""
    before = model.config._attn_implementation
    model.set_attn_implementation(PACKED_ATTENTION)
    try:
        # transformers only logs when an architecture ignores the setting, and texts would leak.
        if model.config._attn_implementation != PACKED_ATTENTION:
            raise UnsupportedModelError(
                f"{type(model).__name__} does not take its attention from transformers' attention "
                "interface: this model cannot be packed"
            )
        yield
    finally:
        model.set_attn_implementation(before)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """softmax(q k' * scaling) v within each text of the pack.

    `query` is [1, heads, rows, d_head]; `key` and `value` may have fewer heads (grouped-query
    attention), each then serving a run of query heads. Returns [1, rows, heads, d_head], the
    layout that transformers' attention functions return. UnsupportedModelError for an attention
    with a mask, dropout, or an option not known to be harmless (soft cap, window, bias, sinks).
    """
    groups = _groups.get()
    assert groups is not None, "packed attention outside text_groups()"
    changes = [
        name
        for name, value in options.items()
        if not (name in _HARMLESS or value is None or value is False)
    ]
    if attention_mask is not None or dropout != 0.0 or changes:
        what = "a mask" if attention_mask is not None else ", ".join(changes) or "dropout"
        raise UnsupportedModelError(
            f"{type(module).__name__} uses {what} in its attention, which packing does not know: "
            "this model cannot be packed"
        )
    batch, heads, rows, _ = query.shape
    assert batch == 1
    assert sum(group.count * group.length for group in groups) == rows
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    repeats = heads // key.shape[1]
    if repeats > 1:
        key = key.repeat_interleave(repeats, dim=1)
        value = value.repeat_interleave(repeats, dim=1)
    out = query.new_empty((1, rows, heads, value.shape[-1]))
    for group in groups:
        shape = (group.count, group.length)
        texts = slice(group.start, group.start + group.count * group.length)

        def cut(x: Tensor, texts: slice = texts, shape: tuple[int, int] = shape) -> Tensor:
            return x[0, :, texts].view(heads, *shape, -1).transpose(0, 1)

        seen = scaled_dot_product_attention(
            cut(query),
            cut(key),
            cut(value),
            scale=scaling,
            is_causal=causal and group.length > 1,
        )
        out[0, texts].view(*shape, heads, -1).copy_(seen.transpose(1, 2))
    return out, None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
