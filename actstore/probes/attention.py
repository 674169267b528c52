"""Attention probes in bulk: many probes trained together over one shared stream of examples.

The probe is that of "Attention Probes" (EleutherAI, 2025): each head scores an example's rows,
the softmax of the scores weighs the rows' values, and the values are summed over rows and heads.
Here the rows stay ragged, the gradient is in closed form, and probes of any penalty, fold, seed
or label set share every product with the rows.

Features are standardised by each probe's own training rows and the scale is folded back into the
weights, so a fitted probe applies to raw rows and no held-out row has been looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actstore.errors import InputError
from actstore.probes.attention_math import (
    Chunk,
    Parameters,
    attend,
    chunks,
    example_stream,
    loss_and_gradient,
    rate_at,
    scores,
)

__all__ = ["AttentionFit", "AttentionProblem", "fit_attention"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

LEARNING_RATE = 0.003
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
#: Most numbers in the rows for which padded chunks are kept from step to step.
_KEPT_NUMBERS = 30_000_000


@dataclass(frozen=True)
class AttentionProblem:
    """One probe to train.

    `y` int64 [n_examples] in 0..n_classes-1; `alpha` is AdamW's decoupled weight decay on `q` and
    `v` (never on the bias or the position weight); `train` bool [n_examples]; `seed` draws `v`.
    """

    y: Int64
    n_classes: int
    heads: int
    alpha: float
    train: Bool
    seed: int = 0


@dataclass(frozen=True)
class AttentionFit:
    """A trained probe, for raw rows: `query` [H, d], `position` [H], `value` [H, C, d], `bias`
    [C], all float32, with C = 1 (the log-odds of class 1) for two classes.

    `position_from` is `end` or `start`. `loss` and `grad_norm` are those of the last step's
    examples. `status` is `completed`, or `diverged` where the loss stopped being finite.
    """

    query: Float32
    position: Float32
    value: Float32
    bias: Float32
    position_from: str
    status: str
    loss: float
    grad_norm: float
    steps: int
    seconds: float

    def logits(self, rows: Float32, offsets: Int64) -> Float32:
        """[n_examples, C] for ragged `rows` [n_rows, d]; the bias for an example without rows."""
        q, w = torch.from_numpy(self.query)[None], torch.from_numpy(self.position)[None]
        heads, n_classes, d = self.value.shape
        v = torch.from_numpy(self.value).transpose(0, 1).reshape(1, n_classes, heads * d)
        theta = Parameters(q, w, v, torch.from_numpy(self.bias)[None])
        out = np.tile(self.bias, (len(offsets) - 1, 1))
        every = np.arange(len(offsets) - 1)
        with torch.inference_mode():
            source = torch.from_numpy(np.ascontiguousarray(rows, np.float32))
            for chunk in chunks(source, offsets, every, heads, self.position_from == "end"):
                z = scores(chunk, theta, torch.zeros(1, d))
                out[chunk.examples] = z[0].numpy()
        return out

    def predict_proba(self, rows: Float32, offsets: Int64) -> Float64:
        """[n_examples, n_classes] probabilities."""
        z = torch.from_numpy(self.logits(rows, offsets).astype(np.float64))
        if z.shape[1] == 1:
            z = torch.cat([torch.zeros_like(z), z], dim=1)
        proba: Float64 = torch.softmax(z, dim=1).numpy()
        return proba

    def attention(self, rows: Float32, offsets: Int64) -> Float32:
        """Attention weights [H, n_rows]; they sum to one over each example's rows."""
        out = np.zeros((len(self.position), len(rows)), np.float32)
        every = np.arange(len(offsets) - 1)
        q, w = torch.from_numpy(self.query)[None], torch.from_numpy(self.position)[None]
        with torch.inference_mode():
            source = torch.from_numpy(np.ascontiguousarray(rows, np.float32))
            for chunk in chunks(source, offsets, every, len(w[0]), self.position_from == "end"):
                a = attend(chunk, q, w).numpy()
                for k, example in enumerate(chunk.examples):
                    begin, stop = offsets[example], offsets[example + 1]
                    out[:, begin:stop] = a[k, :, : stop - begin]
        return out

    def entropy(self, rows: Float32, offsets: Int64) -> tuple[Float64, float]:
        """Entropy of the weights in nats, [H] means over the examples that have rows, and the
        mean entropy of uniform weights over the same rows."""
        a = self.attention(rows, offsets).astype(np.float64)
        lengths = np.diff(offsets)
        lengths = lengths[lengths > 0]
        if not len(lengths):
            return np.zeros(len(a)), 0.0
        total = -np.sum(np.where(a > 0, a * np.log(np.maximum(a, 1e-300)), 0), axis=1)
        return total / len(lengths), float(np.log(lengths).mean())


def fit_attention(
    rows: Float32,
    offsets: Int64,
    problems: Sequence[AttentionProblem],
    *,
    steps: int = 500,
    learning_rate: float = LEARNING_RATE,
    batch_examples: int = 512,
    position: str = "end",
    stream_seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> list[AttentionFit]:
    """Train all problems; results in the order given.

    Args:
        rows: float32 [n_rows, d]; example e owns `rows[offsets[e]:offsets[e + 1]]`. Examples
            without rows never train.
        steps: AdamW steps, the rate falling to zero along half a cosine after a short warm-up.
        batch_examples: examples per step. All probes see the same shuffled stream (drawn from
            `stream_seed`); each takes its own training examples out of a batch and averages over
            those.
        position: whether positions count from the `end` or the `start` of an example.
        progress: called with 1 after every step of every group of like problems.

    Raises:
        InputError: labels, masks or rows that do not fit together.
    """
    _check(rows, offsets, problems, position)
    # Seeds apart, since each has folds of its own: together they would cut the examples into as
    # many small sets as there are combinations of folds.
    groups: dict[tuple[int, int, int], list[int]] = {}
    for number, problem in enumerate(problems):
        width = 1 if problem.n_classes == 2 else problem.n_classes
        groups.setdefault((width, problem.heads, problem.seed), []).append(number)
    has_rows = np.diff(offsets) > 0
    used = np.flatnonzero(np.any([p.train for p in problems], axis=0) & has_rows)
    stream = example_stream(used, steps, batch_examples, stream_seed)
    fits: dict[int, AttentionFit] = {}
    source = torch.from_numpy(np.ascontiguousarray(rows, np.float32)).to(device)
    for (width, heads, _), numbers in groups.items():
        chosen = [problems[number] for number in numbers]
        with torch.inference_mode():
            trainer = _Trainer(source, offsets, chosen, width, heads, position, learning_rate)
            done = trainer.train(stream, progress)
        fits.update(zip(numbers, done, strict=True))
    return [fits[number] for number in range(len(problems))]


class _Trainer:
    """M problems of one number of classes and heads."""

    def __init__(
        self,
        rows: Tensor,
        offsets: Int64,
        problems: Sequence[AttentionProblem],
        width: int,
        heads: int,
        position: str,
        learning_rate: float,
    ) -> None:
        self.rows, self.offsets, self.position = rows, offsets, position
        self.learning_rate = learning_rate
        self.heads, self.width = heads, width
        m, d = len(problems), rows.shape[1]
        has_rows = np.diff(offsets) > 0
        self.train_mask = np.stack([problem.train & has_rows for problem in problems])
        # Examples that the same problems train on go together: a fold's held-out problems are
        # then skipped rather than multiplied by zero.
        patterns, which = np.unique(self.train_mask, axis=1, return_inverse=True)
        self._active = [np.flatnonzero(column) for column in patterns.T]
        self._pattern = which.reshape(-1)
        self._kept: dict[int, list[Chunk]] = {}
        self._same_every_step = False
        self.y = torch.from_numpy(np.stack([problem.y for problem in problems])).to(rows.device)
        self.center, self.scale = self._statistics()
        v = torch.empty(m, width, heads * d, dtype=rows.dtype)
        for i, problem in enumerate(problems):
            generator = torch.Generator().manual_seed(problem.seed)
            v[i] = torch.randn(width, heads * d, generator=generator)
        v *= 0.5 / (heads * d) ** 0.5
        self.theta = Parameters(
            torch.zeros(m, heads, d).to(rows),
            torch.zeros(m, heads).to(rows),
            v.to(rows.device),
            torch.from_numpy(self._prior(problems)).to(rows),
        )
        self.alpha = torch.tensor([problem.alpha for problem in problems]).to(rows)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [M, d] of each problem's training rows; computed once per
        distinct set of training examples. A constant feature keeps scale 1."""
        owner = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        patterns, which = np.unique(self.train_mask, axis=0, return_inverse=True)
        means, scales = [], []
        for pattern in patterns:
            weight = torch.from_numpy(pattern[owner]).to(self.rows.device)
            n = max(1, int(weight.sum()))
            mean, square = self._moments(weight, n)
            scale = (square - mean**2).clamp(min=0).sqrt()
            scale = torch.where(scale > 1e-7 * (mean.abs() + 1e-30), scale, torch.ones_like(scale))
            means.append(mean)
            scales.append(scale)
        picked = torch.from_numpy(which.reshape(-1)).to(self.rows.device)
        return (
            torch.stack(means)[picked].to(self.rows),
            torch.stack(scales)[picked].to(self.rows),
        )

    def _moments(self, weight: Tensor, n: int) -> tuple[Tensor, Tensor]:
        total = torch.zeros(self.rows.shape[1], dtype=torch.float64, device=self.rows.device)
        square = total.clone()
        for part, w in zip(
            torch.split(self.rows, 16_384), torch.split(weight, 16_384), strict=True
        ):
            chosen = part[w].double()
            total += chosen.sum(0)
            square += (chosen**2).sum(0)
        return total / n, square / n

    def _prior(self, problems: Sequence[AttentionProblem]) -> Float64:
        """Start the bias at the log prior, so that no step is spent on finding it."""
        out = np.zeros((len(problems), self.width))
        for i, problem in enumerate(problems):
            counts = np.bincount(problem.y[self.train_mask[i]], minlength=problem.n_classes) + 0.5
            prior = np.log(counts / counts.sum())
            out[i] = prior[1:] - prior[0] if self.width == 1 else prior
        return out

    def train(
        self, stream: Sequence[Int64], progress: Callable[[int], None] | None
    ) -> list[AttentionFit]:
        """Train on the examples of each step; all of them the same array if every step sees all."""
        steps = len(stream)
        self._same_every_step = all(examples is stream[0] for examples in stream)
        began = time.perf_counter()
        theta = self.theta
        moments = (theta.zeros(), theta.zeros())
        decay = self.learning_rate * self.alpha
        gradient, loss = theta.zeros(), torch.zeros(len(theta.b))
        for step, examples in enumerate(stream):
            loss, gradient = self._gradient(examples)
            rate = rate_at(step, steps)
            correct = [1 - beta ** (step + 1) for beta in _BETAS]
            for name in ("q", "w", "v", "b"):
                p, g = getattr(theta, name), getattr(gradient, name)
                first, second = getattr(moments[0], name), getattr(moments[1], name)
                if name in ("q", "v"):
                    p.mul_((1 - rate * decay).view(-1, *[1] * (p.ndim - 1)))
                first.lerp_(g, 1 - _BETAS[0])
                second.mul_(_BETAS[1]).addcmul_(g, g, value=1 - _BETAS[1])
                denominator = (second / correct[1]).sqrt_().add_(_EPSILON)
                size = -rate * self.learning_rate / correct[0]
                p.addcdiv_(first, denominator, value=size)
            if progress:
                progress(1)
        return self._results(loss, gradient, steps, time.perf_counter() - began)

    def _gradient(self, examples: Int64) -> tuple[Tensor, Parameters]:
        """Mean training loss [M] of a batch, and its gradient in standardised features."""
        device = self.rows.device
        counts = np.maximum(self.train_mask[:, examples].sum(axis=1), 1)
        pattern = self._pattern[examples]
        total = self.theta.zeros()
        loss = torch.zeros(len(self.theta.b)).to(self.rows)
        for number in np.unique(pattern).tolist():
            active = self._active[number]
            if not len(active):
                continue
            index = torch.from_numpy(active).to(device)
            theta, scale = self.theta.select(index), self.scale[index]
            raw = self._to_raw(theta, scale)
            center = self.center[index]
            out = raw.zeros()
            weight = torch.from_numpy(1.0 / counts[active]).to(self.rows)
            for chunk in self._chunks(number, examples[pattern == number]):
                at = torch.from_numpy(chunk.examples).to(device)
                y = self.y[index][:, at]
                weights = weight[:, None].expand(-1, len(at))
                loss[index] += loss_and_gradient(chunk, raw, center, y, weights, out)
            found = self._to_raw(out, scale)  # the same factors, by the chain rule
            for mine, part in zip(total.tensors(), found.tensors(), strict=True):
                mine[index] += part
        return loss, total

    def _chunks(self, pattern: int, examples: Int64) -> Iterable[Chunk]:
        """Chunks of a batch's examples of one pattern; kept for the next step where every step
        sees all examples and they are small."""
        if pattern in self._kept:
            return self._kept[pattern]
        cut = chunks(self.rows, self.offsets, examples, self.heads, self.position == "end")
        if not self._same_every_step or self.rows.numel() > _KEPT_NUMBERS:
            return cut
        self._kept[pattern] = list(cut)
        return self._kept[pattern]

    def _to_raw(self, theta: Parameters, scale: Tensor) -> Parameters:
        """Divide what multiplies features by their scale."""
        wide = scale.repeat(1, self.heads)
        return Parameters(theta.q / scale[:, None, :], theta.w, theta.v / wide[:, None, :], theta.b)

    def _results(
        self, loss: Tensor, gradient: Parameters, steps: int, seconds: float
    ) -> list[AttentionFit]:
        raw = self._to_raw(self.theta, self.scale)
        m, heads, d = raw.q.shape
        v = raw.v.view(m, self.width, heads, d)
        bias = raw.b - torch.einsum("mchd,md->mc", v, self.center)
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in gradient.tensors()]).norm(dim=0)
        fits = []
        for i in range(m):
            finite = all(bool(t[i].isfinite().all()) for t in raw.tensors())
            fits.append(
                AttentionFit(
                    query=raw.q[i].cpu().numpy(),
                    position=raw.w[i].cpu().numpy(),
                    value=v[i].transpose(0, 1).contiguous().cpu().numpy(),
                    bias=bias[i].cpu().numpy(),
                    position_from=self.position,
                    status="completed" if finite else "diverged",
                    loss=float(loss[i]),
                    grad_norm=float(norm[i]),
                    steps=steps,
                    seconds=seconds / m,
                )
            )
        return fits


def _check(
    rows: Float32, offsets: Int64, problems: Sequence[AttentionProblem], position: str
) -> None:
    n = len(offsets) - 1
    if (
        rows.ndim != 2
        or offsets[0] != 0
        or offsets[-1] != len(rows)
        or (np.diff(offsets) < 0).any()
    ):
        raise InputError(f"offsets do not cut the {len(rows)} rows into examples")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise InputError(f"row {bad[0]} holds NaN or infinity ({len(bad)} such rows)")
    if position not in ("end", "start"):
        raise InputError(f"position {position!r} is unknown: use end or start")
    for number, problem in enumerate(problems):
        if problem.y.shape != (n,) or problem.train.shape != (n,):
            raise InputError(f"problem {number}: y and train must have {n} entries, one an example")
        if problem.heads < 1 or problem.n_classes < 2 or not problem.alpha >= 0:
            raise InputError(f"problem {number}: needs heads >= 1, n_classes >= 2 and alpha >= 0")
        chosen = problem.y[problem.train]
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < problem.n_classes:
            raise InputError(f"problem {number}: labels must be in 0..{problem.n_classes - 1}")
        if not (problem.train & (np.diff(offsets) > 0)).any():
            raise InputError(f"problem {number}: no training example has a row")
