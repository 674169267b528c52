"""Packed attention against the textbook formula with a block-diagonal mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from actstore.errors import UnsupportedModelError
from actstore.model.attention import packed_attention, text_groups
from actstore.model.packing import Group, make_packs


def textbook(
    q: Tensor, k: Tensor, v: Tensor, sizes: list[int], *, causal: bool, scaling: float
) -> Tensor:
    """float64 softmax(q k' scaling + mask) v, in the layout of `packed_attention`."""
    repeats = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(repeats, dim=1).double() for x in (k, v))
    text = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    allowed = text[:, None] == text[None, :]
    if causal:
        allowed &= torch.ones_like(allowed).tril()
    scores = (q.double() @ k.transpose(-1, -2)) * scaling
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return (weights @ v).transpose(1, 2)


def random_qkv(rows: int, heads: int, kv_heads: int, seed: int = 0) -> list[Tensor]:
    """Laid out as a model lays them out: views of [1, rows, heads, width]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, rows, n, 8, generator=generator).transpose(1, 2)
        for n in (heads, kv_heads, kv_heads)
    ]


def attention_module(*, causal: bool) -> nn.Module:
    module = nn.Module()
    module.is_causal = causal
    return module


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=12),
    st.booleans(),
    st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    st.sampled_from([0.1, 1.0, 8**-0.5]),
)
def test_every_text_sees_itself_alone(
    sizes: list[int], causal: bool, heads: tuple[int, int], scaling: float
) -> None:
    sizes = sorted(sizes)
    (pack,) = make_packs(sizes, max_rows=1000, min_rows=0)
    q, k, v = random_qkv(sum(sizes), *heads)
    with text_groups(pack.groups):
        out, weights = packed_attention(
            attention_module(causal=causal), q, k, v, None, scaling=scaling
        )
    assert weights is None
    assert out.is_contiguous()
    expected = textbook(q, k, v, sizes, causal=causal, scaling=scaling)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_call_may_overrule_the_module_on_causality() -> None:
    q, k, v = random_qkv(6, 2, 2)
    with text_groups((Group(0, 1, 6),)):
        out, _ = packed_attention(
            attention_module(causal=False), q, k, v, None, scaling=0.3, is_causal=True
        )
    expected = textbook(q, k, v, [6], causal=True, scaling=0.3)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"attention_mask": torch.zeros(1, 1, 6, 6)}, "a mask"),
        ({"dropout": 0.1}, "dropout"),
        ({"softcap": 50.0}, "softcap"),
        ({"sliding_window": 4}, "sliding_window"),
        ({"s_aux": torch.zeros(2)}, "s_aux"),
    ],
)
def test_what_packing_does_not_know_is_refused(option: dict[str, object], says: str) -> None:
    q, k, v = random_qkv(6, 2, 2)
    with (
        text_groups((Group(0, 1, 6),)),
        pytest.raises(UnsupportedModelError, match=f"uses {says} in its attention"),
    ):
        packed_attention(
            attention_module(causal=True), q, k, v, **({"attention_mask": None} | option)
        )


def test_absent_and_harmless_options_are_taken() -> None:
    q, k, v = random_qkv(6, 2, 2)
    with text_groups((Group(0, 1, 6),)):
        packed_attention(
            attention_module(causal=True),
            q,
            k,
            v,
            None,
            softcap=None,
            sliding_window=None,
            use_cache=False,
            position_ids=torch.arange(6)[None],
        )


def test_groups_must_cover_the_rows_and_be_set() -> None:
    q, k, v = random_qkv(6, 2, 2)
    module = attention_module(causal=True)
    with pytest.raises(AssertionError):
        packed_attention(module, q, k, v, None)
    with text_groups((Group(0, 1, 5),)), pytest.raises(AssertionError):
        packed_attention(module, q, k, v, None)
