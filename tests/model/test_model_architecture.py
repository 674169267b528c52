"""The architecture table and the ways to ask for sites."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actstore.errors import InputError, UnknownNameError
from actstore.model.architecture import (
    FAMILIES,
    Family,
    ModelInfo,
    Tap,
    hidden_state_index,
    resolve_sites,
)
from actstore.site import POINTS_PER_BLOCK, Site, site_of_layer

DECODER = ModelInfo(
    model_id="m",
    revision=None,
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    n_blocks=4,
    d_model=8,
    max_length=16,
    has_final_norm=True,
    packed=True,
    points=FAMILIES["gpt2"].points,
    native_dtype="float32",
    config_digest="0",
)
ENCODER = replace(DECODER, model_type="bert", has_final_norm=False, points=FAMILIES["bert"].points)


def names(sites: tuple[Site, ...]) -> list[str]:
    return [str(site) for site in sites]


def test_all_layers_by_default() -> None:
    assert names(resolve_sites(DECODER)) == [
        "embed",
        "resid_post.0",
        "resid_post.1",
        "resid_post.2",
        "final_norm",
    ]
    assert names(resolve_sites(ENCODER))[-1] == "resid_post.3"


def test_layers_and_sites_join_sorted_and_unique() -> None:
    sites = ["final_norm", "mlp_out.1", "attn_out.1", "embed", "resid_post.0", "resid_mid.1"]
    found = resolve_sites(DECODER, layers=[-1, 1, 1, 0, 2], sites=sites)
    assert names(found) == [
        "embed",
        "resid_post.0",
        "attn_out.1",
        "resid_mid.1",
        "mlp_out.1",
        "resid_post.1",
        "final_norm",
    ]


def test_negative_layers_count_from_the_end() -> None:
    assert resolve_sites(DECODER, layers=[-1]) == (Site("final_norm"),)
    assert resolve_sites(ENCODER, layers=[-1]) == (Site("resid_post", 3),)
    assert resolve_sites(DECODER, layers=[-5]) == (Site("embed"),)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        ({"layers": [5]}, "layers 0 to 4"),
        ({"layers": [-6]}, "layers 0 to 4"),
        ({"sites": ["resid_post.4"]}, "blocks 0 to 3"),
        ({"sites": ["resid_post.-1"]}, "unknown"),
        ({"sites": ["blocks.0.hook_resid_post"]}, "resid_post.BLOCK"),
        ({"sites": ["h.0"]}, "unknown"),
        ({"sites": ["resid_post"]}, "unknown"),
        ({"sites": ["embed.0"]}, "unknown"),
        ({"layers": [], "sites": []}, "at least one"),
        ({"sites": []}, "at least one"),
    ],
)
def test_what_does_not_exist_is_refused(ask: dict[str, list[str]], says: str) -> None:
    with pytest.raises(UnknownNameError, match=says) as caught:
        resolve_sites(DECODER, **ask)
    assert "\n" not in str(caught.value)


def test_points_a_family_lacks_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"its last state is resid_post\.3"):
        resolve_sites(ENCODER, sites=["final_norm"])
    parallel = replace(DECODER, points=("embed", "resid_pre", "resid_post", "final_norm"))
    with pytest.raises(InputError, match=r"resid_mid\.1 does not exist .* has the points embed"):
        resolve_sites(parallel, sites=["resid_mid.1"])


@given(st.integers(1, 60), st.booleans())
def test_layer_and_hidden_state_index_agree(n_blocks: int, has_final_norm: bool) -> None:
    info = replace(DECODER, n_blocks=n_blocks, has_final_norm=has_final_norm)
    for layer in range(n_blocks + 1):
        site = site_of_layer(layer, n_blocks, has_final_norm=has_final_norm)
        assert hidden_state_index(info, site) == layer
    last = hidden_state_index(info, Site("resid_post", n_blocks - 1))
    assert last == (None if has_final_norm else n_blocks)
    for block in range(n_blocks):
        assert hidden_state_index(info, Site("resid_pre", block)) == block
        for point in ("attn_out", "resid_mid", "mlp_out"):
            assert hidden_state_index(info, Site(point, block)) is None


def test_taps_start_at_the_base_model() -> None:
    family = FAMILIES["bert"]
    assert family.tap(Site("embed")) == Tap("encoder.layer.0", "in")
    assert family.tap(Site("resid_pre", 2)) == Tap("encoder.layer.2", "in")
    assert family.tap(Site("resid_post", 2)) == Tap("encoder.layer.2", "out")
    assert family.tap(Site("resid_mid", 1)) == Tap("encoder.layer.1.attention.output", "out")
    assert FAMILIES["gpt2"].tap(Site("final_norm")) == Tap("ln_f", "out")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_rows_name_known_points_only(family: Family) -> None:
    assert set(family.inner) <= {"attn_out", "resid_mid", "mlp_out"}
    depth = [Site(p, 0 if p in POINTS_PER_BLOCK else None).depth(9) for p in family.points]
    assert depth == sorted(depth)
    assert ("final_norm" in family.points) == (family.final_norm is not None)


def test_the_facts_of_a_model_need_no_engine() -> None:
    code = (
        "import sys, actstore.model.architecture, actstore.model.packing;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
