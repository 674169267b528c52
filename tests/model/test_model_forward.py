"""Every row equals the row of the plain, unpadded, one-text-at-a-time forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import every_site, minilm_folder, random_ids, rows_of
from tiny_models import MAX_LENGTH, SENTENCES, make_tiny_model

from actstore.errors import InputError, UnsupportedModelError
from actstore.model import attention, forward
from actstore.model.architecture import resolve_sites
from actstore.model.forward import Extractor, plain_forward
from actstore.model.loading import describe_model
from actstore.model.packing import Group
from actstore.model.selftest import relative_difference
from actstore.model.tokenize import Tokenizer
from actstore.site import Site

PACKED = ("gpt2", "llama", "bert")
ALL = (*PACKED, "opt")
LENGTHS = (5, 0, 40, 1, 17, 5, 2, 0, 63, 3, 5, 29, 1, 8)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """With more threads a short text's own pass takes other code paths, with other rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def extractors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Extractor]:
    found = {}
    for kind in ALL:
        folder = make_tiny_model(kind, tmp_path_factory.mktemp("models") / kind)
        info = describe_model(str(folder))
        found[kind] = Extractor.load(info, every_site(info))
    return found


def long_enough(ids: list[np.ndarray], n: int = 4) -> np.ndarray:
    """Which rows belong to texts of at least n tokens."""
    return np.concatenate([np.full(len(text), len(text) >= n) for text in ids])


def n_hooks(extractor: Extractor) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in extractor.model.modules()
    )


# --- right rows --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_rows_equal_the_plain_forward_pass(extractors: dict[str, Extractor], kind: str) -> None:
    ids = random_ids(LENGTHS)
    rows = rows_of(extractors[kind], ids)
    expected = plain_forward(extractors[kind], ids)
    assert rows.keys() == expected.keys()
    for site, right in expected.items():
        assert right.shape == (sum(LENGTHS), 48)
        assert relative_difference(rows[site], right).max() <= 1e-5
        assert np.array_equal(rows[site][long_enough(ids)], right[long_enough(ids)])


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.integers(1, 90),
    st.randoms(use_true_random=False),
)
@pytest.mark.parametrize("kind", PACKED)
def test_rows_do_not_depend_on_the_pack(
    extractors: dict[str, Extractor], kind: str, lengths: list[int], pack_tokens: int, random: Any
) -> None:
    """Bit for bit, whatever the company, its order and the size of the pack."""
    ids = random_ids(lengths, seed=len(lengths))
    order = list(range(len(ids)))
    random.shuffle(order)
    together = rows_of(extractors[kind], ids, pack_tokens=2048)
    shuffled = rows_of(extractors[kind], [ids[i] for i in order], pack_tokens=pack_tokens)
    starts = np.cumsum(lengths) - lengths
    back = np.concatenate([np.arange(starts[i], starts[i] + lengths[i]) for i in order])
    for site, rows in together.items():
        assert np.array_equal(shuffled[site], rows[back.astype(int)])


@pytest.mark.parametrize("kind", PACKED)
def test_nothing_leaks_between_texts(extractors: dict[str, Extractor], kind: str) -> None:
    ids = random_ids(LENGTHS)
    before = rows_of(extractors[kind], ids, pack_tokens=4096)
    changed = [*ids]
    changed[4] = (ids[4] + 7) % 200
    after = rows_of(extractors[kind], changed, pack_tokens=4096)
    own = np.repeat(np.arange(len(ids)), LENGTHS) == 4
    for site in before:
        assert np.array_equal(before[site][~own], after[site][~own])
        assert (before[site][own] != after[site][own]).any(axis=1).all()


@pytest.mark.parametrize("kind", PACKED)
def test_the_leak_test_sees_a_leak(
    extractors: dict[str, Extractor], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: one group over the whole pack, so that texts see each other."""
    extractor = extractors[kind]
    ids = random_ids([20, 20, 20])
    right = rows_of(extractor, ids)

    def one_group(groups: tuple[Group, ...]) -> AbstractContextManager[None]:
        return attention.text_groups((Group(0, 1, sum(g.count * g.length for g in groups)),))

    monkeypatch.setattr(forward, "text_groups", one_group)
    leaking = rows_of(extractor, ids)
    last = extractor.sites[-1]
    assert relative_difference(leaking[last], right[last])[20:].min() > 1e-3
    with pytest.raises(UnsupportedModelError, match="failed its self-test"):
        extractor._self_test()


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_left_padding_without_positions_would_be_wrong(
    extractors: dict[str, Extractor], kind: str
) -> None:
    """Negative control: the classic batch that hides its error, against the rows we give."""
    extractor = extractors[kind]
    ids = random_ids([12])
    padded = np.concatenate([np.zeros(5, np.int64), ids[0]])[None]
    mask = torch.tensor([[0] * 5 + [1] * 12])
    with torch.inference_mode():
        wrong = extractor.model(torch.from_numpy(padded), attention_mask=mask).last_hidden_state
    rows = rows_of(extractor, ids)[extractor.sites[-1]]
    assert relative_difference(wrong[0, 5:].numpy(), rows).min() > 1e-2


@pytest.mark.parametrize("kind", ALL)
def test_layers_are_the_hidden_states(extractors: dict[str, Extractor], kind: str) -> None:
    """Layers 0, middle and last, straight from transformers."""
    extractor = extractors[kind]
    (text,) = ids = random_ids([21])
    rows = rows_of(extractor, ids)
    with torch.inference_mode():
        states = extractor.model(
            torch.from_numpy(text.astype(np.int64))[None], output_hidden_states=True
        ).hidden_states
    assert len(states) == extractor.info.n_blocks + 1
    for layer, state in enumerate(states):
        (site,) = resolve_sites(extractor.info, layers=[layer])
        assert np.array_equal(rows[site], state[0].numpy())
        (same,) = resolve_sites(extractor.info, layers=[layer - len(states)])
        assert same == site
    last = rows[Site("resid_post", 2)]
    if extractor.info.has_final_norm:
        assert relative_difference(last, states[-1][0].numpy()).min() > 1e-2
    else:
        assert np.array_equal(last, states[-1][0].numpy())


@pytest.mark.parametrize("kind", PACKED)
def test_branches_are_what_is_added_to_the_residual_stream(
    extractors: dict[str, Extractor], kind: str
) -> None:
    extractor = extractors[kind]
    rows = {str(site): x for site, x in rows_of(extractor, random_ids([9, 30])).items()}
    for block in range(3):
        pre, mid, post = (rows[f"resid_{name}.{block}"] for name in ("pre", "mid", "post"))
        after_attention = pre + rows[f"attn_out.{block}"]
        after_mlp = mid + rows[f"mlp_out.{block}"]
        if kind == "bert":
            layer = extractor.model.get_submodule(f"encoder.layer.{block}")
            with torch.inference_mode():
                norms = (layer.attention.output.LayerNorm, layer.output.LayerNorm)
                after_attention, after_mlp = (
                    norm(torch.from_numpy(x)).numpy()
                    for norm, x in zip(norms, (after_attention, after_mlp), strict=True)
                )
        assert relative_difference(mid, after_attention).max() < 1e-6
        assert relative_difference(post, after_mlp).max() < 1e-6
        if block:
            assert np.array_equal(pre, rows[f"resid_post.{block - 1}"])
    assert np.array_equal(rows["embed"], rows["resid_pre.0"])


@pytest.mark.parametrize("kind", ALL)
def test_stopping_early_changes_nothing(extractors: dict[str, Extractor], kind: str) -> None:
    extractor = extractors[kind]
    ids = random_ids([11, 4, 4])
    whole = rows_of(extractor, ids)
    deepest = extractor.model.get_submodule(
        {"gpt2": "h.2", "llama": "layers.2", "bert": "encoder.layer.2", "opt": "decoder.layers.2"}[
            kind
        ]
    )
    reached: list[bool] = []
    handle = deepest.register_forward_pre_hook(lambda *args: reached.append(True))
    for site in extractor.sites:
        reached.clear()
        alone = Extractor(extractor.info, (site,), extractor.model, extractor._family)
        assert np.array_equal(rows_of(alone, ids)[site], whole[site])
        assert bool(reached) == (site.depth(3) >= (2, 0))
    handle.remove()


def test_short_rope_limits_run_unpacked_and_right(tmp_path: Path) -> None:
    """A known family whose positions depend on the batch goes through the plain path."""
    info = describe_model(str(make_tiny_model("llama", tmp_path / "llama")))
    extractor = Extractor.load(replace(info, packed=False), every_site(info))
    ids = random_ids(LENGTHS)
    expected = plain_forward(extractor, ids)
    for site, rows in rows_of(extractor, ids).items():
        assert np.array_equal(rows, expected[site])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ALL)
def test_sixteen_bit_rows(extractors: dict[str, Extractor], kind: str, dtype: str) -> None:
    exact = extractors[kind]
    extractor = Extractor.load(exact.info, exact.sites, dtype=dtype)
    assert extractor.dtype == dtype
    got: list[torch.dtype] = []
    ids = random_ids(LENGTHS)
    extractor.run(ids, lambda site, x, source: got.append(x.dtype))
    assert set(got) == {getattr(torch, dtype)}
    rows, plain = rows_of(extractor, ids), plain_forward(extractor, ids)
    reference = plain_forward(exact, ids)
    for site in extractor.sites:
        assert relative_difference(rows[site], plain[site]).max() <= 8e-2
        error, plain_error = (
            relative_difference(x[site], reference[site]).mean() for x in (rows, plain)
        )
        assert 0 < error <= 1.5 * plain_error


def test_trained_model_with_its_own_tokenizer() -> None:
    info = describe_model(minilm_folder())
    extractor = Extractor.load(info, resolve_sites(info, layers=[0, 3, 6], sites=["attn_out.2"]))
    texts = [*SENTENCES, "", "Short.", SENTENCES[0] * 3]
    table = Tokenizer.load(minilm_folder()).tokenize(texts, max_length=info.max_length)
    ids = [table.ids[a:b] for a, b in zip(table.offsets, table.offsets[1:], strict=False)]
    rows = rows_of(extractor, ids)
    for site, right in plain_forward(extractor, ids).items():
        assert relative_difference(rows[site], right).max() <= 1e-5
        assert np.array_equal(rows[site][long_enough(ids)], right[long_enough(ids)])


# --- packs and calls ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [1], [0, 1, 0], [1, 1], [2, 0, 3]])
def test_few_and_empty_texts(
    extractors: dict[str, Extractor], kind: str, lengths: list[int]
) -> None:
    ids = random_ids(lengths)
    rows = rows_of(extractors[kind], ids)
    for site, right in plain_forward(extractors[kind], ids).items():
        assert right.shape == (sum(lengths), 48)
        assert relative_difference(rows[site], right).max(initial=0) <= 1e-5


def test_a_text_longer_than_the_pack_is_a_pack_of_its_own(extractors: dict[str, Extractor]) -> None:
    ids = random_ids([30, 70, 4])
    sizes: list[int] = []
    extractors["gpt2"].run(ids, lambda site, x, source: sizes.append(len(x)), pack_tokens=32)
    assert sorted(set(sizes)) == [4, 30, 70]


def test_every_pack_has_sixteen_rows_of_which_the_dummies_are_dropped(
    extractors: dict[str, Extractor],
) -> None:
    extractor = extractors["llama"]
    seen: list[tuple[int, ...]] = []
    block = extractor.model.get_submodule("layers.0")
    handle = block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    rows_of(extractor, random_ids([3, 1, 20]), pack_tokens=8)
    handle.remove()
    assert seen == [(1, 16, 48), (1, 20, 48)]


@pytest.mark.parametrize("kind", PACKED)
def test_no_mask_is_built(
    extractors: dict[str, Extractor], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("a mask was built")

    masks = transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
    for name in list(masks):
        monkeypatch.setitem(masks, name, refuse)
    rows_of(extractors[kind], random_ids([20, 30]))


@pytest.mark.parametrize("kind", ALL)
def test_sites_come_in_the_order_of_the_forward_pass(
    extractors: dict[str, Extractor], kind: str
) -> None:
    order: list[Site] = []
    extractors[kind].run(random_ids([6]), lambda site, x, source: order.append(site))
    depths = [site.depth(3) for site in order]
    assert depths == sorted(depths)
    assert set(order) == set(extractors[kind].sites)


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_failing_sink_leaves_the_extractor_usable(
    extractors: dict[str, Extractor], kind: str
) -> None:
    extractor = extractors[kind]
    ids = random_ids([20, 8, 8])
    before, hooks = rows_of(extractor, ids), n_hooks(extractor)
    setting = extractor.model.config._attn_implementation
    calls = 0

    def fail(site: Site, x: torch.Tensor, source: np.ndarray) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        extractor.run(ids, fail)
    assert calls == 3
    assert n_hooks(extractor) == hooks
    assert extractor.model.config._attn_implementation == setting != attention.PACKED_ATTENTION
    for site, rows in rows_of(extractor, ids).items():
        assert np.array_equal(rows, before[site])
    assert n_hooks(extractor) == hooks


def test_no_key_value_cache_is_kept(extractors: dict[str, Extractor]) -> None:
    for kind in ALL:
        output = extractors[kind].model(torch.tensor([[1, 2, 3]]))
        assert getattr(output, "past_key_values", None) is None


def test_running_prints_nothing(
    extractors: dict[str, Extractor], capfd: pytest.CaptureFixture[str]
) -> None:
    # Token 1 is OPT's padding, 0 is BERT's: the engine would advise on masks.
    for kind in ALL:
        rows_of(extractors[kind], [np.array([1, 0, 5, 1, 0])])
        plain_forward(extractors[kind], [np.array([0, 1])])
    assert capfd.readouterr() == ("", "")


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_a_text_too_long_for_the_model_is_named(
    extractors: dict[str, Extractor], kind: str
) -> None:
    ids = random_ids([4, MAX_LENGTH, MAX_LENGTH + 1])
    rows_of(extractors[kind], ids[:2])
    with pytest.raises(InputError, match=r"text 2 has 129 tokens, .* at most 128: .*--max-length"):
        rows_of(extractors[kind], ids)


@pytest.mark.parametrize("bad", [320, -1])
def test_a_token_id_the_model_does_not_know_is_named(
    extractors: dict[str, Extractor], bad: int
) -> None:
    ids = [*random_ids([4, 0, 4]), np.array([5, bad], np.int32)]
    with pytest.raises(InputError, match=rf"text 3 has token id {bad}, .* knows 0 to 319"):
        rows_of(extractors["gpt2"], ids)


def test_a_pack_needs_room(extractors: dict[str, Extractor]) -> None:
    with pytest.raises(InputError, match="pack_tokens"):
        rows_of(extractors["gpt2"], random_ids([4]), pack_tokens=0)


def test_a_closed_extractor_cannot_run(tmp_path: Path) -> None:
    info = describe_model(str(make_tiny_model("gpt2", tmp_path / "gpt2")))
    extractor = Extractor.load(info, resolve_sites(info), self_test=False)
    extractor.close()
    with pytest.raises(AssertionError, match="closed"):
        extractor.run(random_ids([3]), lambda site, x, source: None)
