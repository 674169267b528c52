"""Probes on disk: what was saved is what is loaded, and damage is said in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from actstore.errors import InputError
from actstore.probes.attention import AttentionProblem, fit_attention
from actstore.probes.files import load_probe, save_attention, save_linear
from actstore.probes.linear import LinearProblem, fit_logistic

METADATA = {"task": "été", "classes": ["a", "b", "c"], "site": "resid_post.1", "max_length": None}


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((60, 5)).astype(np.float32), rng.integers(0, 3, 60)


def test_linear_round_trip(tmp_path: Path) -> None:
    x, y = data()
    (fit,) = fit_logistic(x, [LinearProblem(y, 3, 0.01, np.ones(60, bool))])
    save_linear(tmp_path / "p.safetensors", fit, METADATA)
    loaded, metadata = load_probe(tmp_path / "p.safetensors")
    assert metadata == METADATA
    np.testing.assert_array_equal(loaded.predict_proba(x), fit.predict_proba(x))
    assert loaded.status == fit.status
    first = (tmp_path / "p.safetensors").read_bytes()
    save_linear(tmp_path / "p.safetensors", fit, METADATA)
    assert (tmp_path / "p.safetensors").read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]


def test_attention_round_trip(tmp_path: Path) -> None:
    x, y = data()
    offsets = np.arange(0, 61, 3)
    problem = AttentionProblem(y[:20], 3, 2, 0.0, np.ones(20, bool))
    (fit,) = fit_attention(x, offsets, [problem], steps=5)
    save_attention(tmp_path / "p.safetensors", fit, METADATA)
    loaded, _ = load_probe(tmp_path / "p.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(x, offsets), fit.predict_proba(x, offsets))


@pytest.mark.parametrize("where", [0.001, 0.02, 0.3, 0.6])
def test_a_cut_file_is_one_line(tmp_path: Path, where: float) -> None:
    x, y = data()
    (fit,) = fit_logistic(x, [LinearProblem(y, 3, 0.01, np.ones(60, bool))])
    path = tmp_path / "p.safetensors"
    save_linear(path, fit, METADATA)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * where)])
    with pytest.raises(InputError, match=r"p\.safetensors") as caught:
        load_probe(path)
    assert "\n" not in str(caught.value)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_probe(tmp_path / "none.safetensors")
    save_file({"weight": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not a probe"):
        load_probe(tmp_path / "other.safetensors")
    head = {"actstore.probe": '{"format": 1, "kind": "linear", "fit": {}, "metadata": {}}'}
    tensors = {"coef": np.zeros((2, 3), np.float32), "intercept": np.zeros(5, np.float32)}
    save_file(tensors, tmp_path / "shapes.safetensors", head)
    with pytest.raises(InputError, match="damaged"):
        load_probe(tmp_path / "shapes.safetensors")
    save_file(tensors, tmp_path / "newer.safetensors", {"actstore.probe": '{"format": 9}'})
    with pytest.raises(InputError, match="format 9"):
        load_probe(tmp_path / "newer.safetensors")
