"""The self-test at load: a model whose rows are not understood is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from tiny_models import make_tiny_model

from actstore.errors import UnsupportedModelError
from actstore.model.architecture import FAMILIES, Tap, resolve_sites
from actstore.model.forward import Extractor
from actstore.model.loading import describe_model
from actstore.model.selftest import check_rows
from actstore.site import Site


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"final_norm": "drop"}, r"rows at final_norm differ"),
        ({"blocks": "wrong"}, r"no module 'wrong"),
        ({"zero_inputs": ("token_type_ids",)}, r"rows at embed differ"),
    ],
)
def test_a_wrong_row_of_the_table_is_refused_at_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], says: str
) -> None:
    info = describe_model(str(make_tiny_model("gpt2", tmp_path / "gpt2")))
    wrong = replace(FAMILIES["gpt2"], **changes)
    monkeypatch.setitem(FAMILIES, "gpt2", wrong)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match=says) as caught:
        Extractor.load(info, resolve_sites(info, layers=[1]))
    assert "\n" not in str(caught.value)


def test_a_point_of_another_width_is_refused_at_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = describe_model(str(make_tiny_model("gpt2", tmp_path / "gpt2")))
    inner = {**FAMILIES["gpt2"].inner, "mlp_out": Tap("mlp.c_fc", "out")}
    monkeypatch.setitem(FAMILIES, "gpt2", replace(FAMILIES["gpt2"], inner=inner))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match=r"mlp_out\.1 .* has shape \(1, 29, 192\)"):
        Extractor.load(info, resolve_sites(info, sites=["mlp_out.1"]))


def test_packing_is_refused_where_attention_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = describe_model(str(make_tiny_model("gpt2", tmp_path / "gpt2")))
    monkeypatch.setattr(
        transformers.GPT2Model, "set_attn_implementation", lambda self, *args, **kwargs: None
    )
    with pytest.raises(UnsupportedModelError, match="cannot be packed"):
        Extractor.load(info, resolve_sites(info))


def test_a_model_that_cannot_run_alone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = describe_model(str(make_tiny_model("opt", tmp_path / "opt")))

    def fail(self: object, **inputs: object) -> None:
        raise TypeError("forward() needs pixels\nand more")

    monkeypatch.setattr(transformers.OPTModel, "forward", fail)
    with pytest.raises(UnsupportedModelError, match="cannot run on plain token ids: TypeError"):
        Extractor.load(info, resolve_sites(info))


def test_a_row_that_is_not_a_number_fails_the_check(tmp_path: Path) -> None:
    info, site = describe_model(str(make_tiny_model("gpt2", tmp_path))), Site("embed")
    right = {site: np.ones((3, 48), np.float32)}
    check_rows(info, "float32", right, right)
    for value in (np.nan, np.inf, 1.001):
        rows = {site: right[site].copy()}
        rows[site][1, 5] = value
        with pytest.raises(UnsupportedModelError, match="rows at embed differ"):
            check_rows(info, "float32", rows, right)
