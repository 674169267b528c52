"""The check at load: which texts and sites it uses, and how far rows may differ. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from actstore.errors import UnsupportedModelError
from actstore.model.architecture import ModelInfo
from actstore.site import Site, site_of_layer

__all__ = ["TOLERANCE", "check_rows", "relative_difference", "self_test_ids", "self_test_sites"]

# Largest relative L2 difference of a row: float32 is rounding; in 16 bits the rows of very short
# texts differ more, while a wrong hook point or a leak between texts differs by the order of 1.
TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
_LENGTHS = (6, 1, 11, 3, 6, 24, 2)


def self_test_ids(info: ModelInfo, vocabulary: int) -> list[npt.NDArray[np.int64]]:
    """Random token ids, always the same: a few texts of unequal, equal and very short length."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocabulary, min(n, info.max_length or n)) for n in _LENGTHS]


def self_test_sites(info: ModelInfo, sites: tuple[Site, ...]) -> tuple[Site, ...]:
    """The sites asked for and layers 0, middle and last, which tie the hook points to the
    model's own `hidden_states`."""
    layers = (0, info.n_blocks // 2, info.n_blocks)
    found = {site_of_layer(i, info.n_blocks, has_final_norm=info.has_final_norm) for i in layers}
    return tuple(sorted(found.union(sites), key=lambda site: site.depth(info.n_blocks)))


def relative_difference(
    rows: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """|row - expected| / |expected| of each row (nan stays nan); [n, d] and [n, d] to [n].

    A row much smaller than its site's median row counts as a thousandth of the median, because
    a branch that cancels to nearly nothing keeps the rounding of its large terms.
    """
    size = np.linalg.norm(expected.astype(np.float64), axis=1)
    floor = max(1e-3 * float(np.median(size)), 1e-30) if len(size) else 1.0
    difference = np.linalg.norm(rows.astype(np.float64) - expected, axis=1)
    result: npt.NDArray[np.float64] = difference / np.maximum(size, floor)
    return result


def check_rows(
    info: ModelInfo,
    dtype: str,
    rows: Mapping[Site, npt.NDArray[np.float32]],
    expected: Mapping[Site, npt.NDArray[np.float32]],
) -> None:
    """UnsupportedModelError, naming the site, unless all rows are the expected ones."""
    who = f"{info.model_id!r} ({info.model_type}) failed its self-test: rows at"
    for site, right in expected.items():
        if right.shape != rows[site].shape:
            raise UnsupportedModelError(
                f"{who} {site} are {right.shape[1]} wide in hidden_states, not {info.d_model}"
            )
        worst = float(relative_difference(rows[site], right).max())
        if not worst <= TOLERANCE[dtype]:
            raise UnsupportedModelError(
                f"{who} {site} differ from the plain forward pass by {worst:.1e} relative "
                f"(allowed {TOLERANCE[dtype]:.0e}), so its hook points are not understood"
            )
