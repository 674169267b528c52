"""Design matrices: what all fits of one unit share, and fitting problems of any kind on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from actstore.errors import InputError

__all__ = ["AttentionDesign", "Design", "Fitted", "LinearDesign", "Problem"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Problem:
    """One fit: labels `y` [n_items] in 0..n_classes-1, penalty `alpha`, which items `train`."""

    y: Int64
    n_classes: int
    alpha: float
    train: Bool
    heads: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """A fitted problem: how to predict, how to save, and how the fit ended.

    `predict()` gives probabilities [n_items, n_classes] for the design's own items;
    `entropy(examples)` the attention entropy and its uniform value in nats, or None.
    """

    predict: Callable[[], Float64]
    save: Callable[[Path, Mapping[str, Any]], None]
    entropy: Callable[[Int64], tuple[float, float]] | None
    status: str
    grad_norm: float
    iterations: int
    seconds: float
    gap_bound: float | None = None
    separable: bool | None = None


class Design(Protocol):
    """One design matrix. `usable` [n_items] is False for items without a row."""

    usable: Bool

    def fit(self, problems: Sequence[Problem]) -> list[Fitted]:
        """Fit all problems together."""
        ...


class LinearDesign:
    """Logistic probes on a plain matrix `x` [n_items, d]; items of NaN have no row."""

    def __init__(self, x: Float32, usable: Bool, label: str) -> None:
        bad = np.flatnonzero(usable & ~np.isfinite(x).all(axis=1))
        if len(bad):
            raise InputError(
                f"{label}: {len(bad)} of {len(x)} rows hold NaN or infinity (the first is item "
                f"{bad[0]}): probes cannot be fitted; extract with --dtype float32, or drop them"
            )
        self.usable = usable
        self._x = np.where(usable[:, None], x, np.float32(0)) if not usable.all() else x

    def fit(self, problems: Sequence[Problem]) -> list[Fitted]:
        from actstore.probes.files import save_linear
        from actstore.probes.linear import LinearFit, LinearProblem, fit_logistic

        fits = fit_logistic(
            self._x, [LinearProblem(p.y, p.n_classes, p.alpha, p.train) for p in problems]
        )

        def wrap(fit: LinearFit) -> Fitted:
            return Fitted(
                predict=lambda: np.asarray(fit.predict_proba(self._x), np.float64),
                save=lambda path, metadata: save_linear(path, fit, metadata),
                entropy=None,
                status=fit.status,
                grad_norm=fit.grad_norm,
                iterations=fit.iterations,
                seconds=fit.seconds,
                gap_bound=fit.gap_bound,
                separable=fit.separable,
            )

        return [wrap(fit) for fit in fits]


class AttentionDesign:
    """Attention probes on ragged rows: item e owns `rows[offsets[e]:offsets[e + 1]]`."""

    def __init__(
        self,
        rows: Float32,
        offsets: Int64,
        label: str,
        *,
        steps: int,
        learning_rate: float | None,
        batch_examples: int,
    ) -> None:
        if not np.isfinite(rows).all():
            raise InputError(
                f"{label}: rows hold NaN or infinity: probes cannot be fitted; extract with "
                "--dtype float32, or drop those examples"
            )
        self.usable = np.diff(offsets) > 0
        self._rows, self._offsets = rows, offsets
        self._options: dict[str, Any] = {"steps": steps, "batch_examples": batch_examples}
        if learning_rate is not None:
            self._options["learning_rate"] = learning_rate

    def fit(self, problems: Sequence[Problem]) -> list[Fitted]:
        from actstore.probes.attention import AttentionFit, AttentionProblem, fit_attention
        from actstore.probes.files import save_attention

        rows, offsets = self._rows, self._offsets
        fits = fit_attention(
            rows,
            offsets,
            [
                AttentionProblem(p.y, p.n_classes, p.heads or 1, p.alpha, p.train, p.seed)
                for p in problems
            ],
            **self._options,
        )

        def wrap(fit: AttentionFit) -> Fitted:
            def entropy(examples: Int64) -> tuple[float, float]:
                chosen, starts = _pick(rows, offsets, examples)
                values, uniform = fit.entropy(chosen, starts)
                return float(np.mean(values)), float(np.mean(uniform))

            return Fitted(
                predict=lambda: np.asarray(fit.predict_proba(rows, offsets), np.float64),
                save=lambda path, metadata: save_attention(path, fit, metadata),
                entropy=entropy,
                status=fit.status,
                grad_norm=fit.grad_norm,
                iterations=fit.steps,
                seconds=fit.seconds,
            )

        return [wrap(fit) for fit in fits]


def _pick(rows: Float32, offsets: Int64, examples: Int64) -> tuple[Float32, Int64]:
    lengths = np.diff(offsets)[examples]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    index = np.repeat(offsets[examples] - starts[:-1], lengths) + np.arange(starts[-1])
    return rows[index], starts
