"""Attention probes against autograd, torch's AdamW, and what must not change the answer."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from actstore.errors import InputError
from actstore.probes.attention import (
    AttentionFit,
    AttentionProblem,
    _Trainer,
    fit_attention,
)
from actstore.probes.attention_math import (
    Parameters,
    chunks,
    example_stream,
    loss_and_gradient,
    rate_at,
    scores,
)


def ragged(n: int, d: int, *, seed: int = 0, empty: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0 if empty else 1, 12, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return rng.standard_normal((int(offsets[-1]), d)).astype(np.float32), offsets


def reference_logits(
    x: torch.Tensor, position: torch.Tensor, theta: list[torch.Tensor], center: torch.Tensor
) -> torch.Tensor:
    """One example, one probe: x [L, d]; theta = q [H, d], w [H], v [C, H, d], b [C]."""
    q, w, v, b = theta
    z = b.clone()
    for h in range(len(w)):
        a = torch.softmax(x @ q[h] + position * w[h], dim=0)
        for c in range(len(b)):
            z[c] = z[c] + (a * ((x - center) @ v[c, h])).sum()
    return z


def positions(length: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 1 - torch.arange(length, dtype=dtype) / max(length - 1, 1)


@pytest.mark.parametrize(("n_out", "heads", "m"), [(1, 1, 1), (1, 3, 2), (4, 1, 2), (5, 2, 3)])
def test_gradient_equals_autograd_of_the_definition(n_out: int, heads: int, m: int) -> None:
    d, n = 6, 9
    torch.manual_seed(n_out * 10 + heads)
    rows, offsets = ragged(n, d, seed=heads)
    x = torch.from_numpy(rows).double()
    leaves = [
        torch.randn(m, heads, d).double(),
        torch.randn(m, heads).double(),
        torch.randn(m, n_out, heads * d).double(),
        torch.randn(m, n_out).double(),
    ]
    center = torch.randn(m, d).double()
    y = torch.randint(0, max(2, n_out), (m, n))
    weight = torch.rand(m, n).double()
    weight[0, 2] = 0
    theta = Parameters(*leaves)
    out, loss = theta.zeros(), torch.zeros(m).double()
    for chunk in chunks(x, offsets, np.arange(n), heads, True):
        at = torch.from_numpy(chunk.examples)
        loss += loss_and_gradient(chunk, theta, center, y[:, at], weight[:, at], out)
    for i in range(m):
        mine = [leaf[i].clone().requires_grad_() for leaf in leaves]
        shaped = [mine[0], mine[1], mine[2].view(n_out, heads, d), mine[3]]
        total = torch.zeros(()).double()
        for e in range(n):
            part = x[offsets[e] : offsets[e + 1]]
            z = reference_logits(part, positions(len(part)), shaped, center[i])
            if n_out == 1:
                one = nn.functional.binary_cross_entropy_with_logits(z[0], y[i, e].double())
            else:
                one = nn.functional.cross_entropy(z[None], y[i, e][None])
            total = total + weight[i, e] * one
        wanted = torch.autograd.grad(total, mine)
        torch.testing.assert_close(loss[i], total.detach(), rtol=1e-10, atol=1e-12)
        for got, want in zip(out.tensors(), wanted, strict=True):
            torch.testing.assert_close(got[i], want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("n_classes", "batch"), [(2, 1000), (3, 1000), (3, 16)])
def test_training_follows_torch_adamw(n_classes: int, batch: int) -> None:
    """Thirty steps of one probe at a time in autograd, on the same stream: the same weights."""
    d, n, heads, steps, lr = 5, 40, 2, 30, 0.02
    rows, offsets = ragged(n, d, seed=3)
    rng = np.random.default_rng(0)
    y = rng.integers(0, n_classes, n)
    masks = [np.ones(n, bool), rng.random(n) < 0.7]
    problems = [
        AttentionProblem(y, n_classes, heads, alpha, mask, seed)
        for alpha, mask, seed in ((0.0, masks[0], 0), (0.5, masks[1], 1), (0.1, masks[1], 0))
    ]
    fits = fit_attention(
        rows, offsets, problems, steps=steps, learning_rate=lr, batch_examples=batch
    )
    width = 1 if n_classes == 2 else n_classes
    source = torch.from_numpy(rows)
    stream = example_stream(np.arange(n), steps, batch, 0)
    for i, problem in enumerate(problems):
        alone = _Trainer(source, offsets, [problem], width, heads, "end", lr)
        center, scale = alone.center[0].double(), alone.scale[0].double()
        q, w, v, b = (t[0].double().clone().requires_grad_() for t in alone.theta.tensors())
        decayed = {"params": [q, v], "weight_decay": problem.alpha}
        free = {"params": [w, b], "weight_decay": 0.0}
        optimiser = torch.optim.AdamW([decayed, free], lr=lr)
        for step, examples in enumerate(stream):
            for group in optimiser.param_groups:
                group["lr"] = lr * rate_at(step, steps)
            total, count = torch.zeros(()).double(), 0
            for e in examples[problem.train[examples]]:
                part = (source[offsets[e] : offsets[e + 1]].double() - center) / scale
                shaped = [q, w, v.view(width, heads, d), b]
                z = reference_logits(part, positions(len(part)), shaped, torch.zeros(d).double())
                if width == 1:
                    target = torch.tensor(float(y[e])).double()
                    one = nn.functional.binary_cross_entropy_with_logits(z[0], target)
                else:
                    one = nn.functional.cross_entropy(z[None], torch.tensor([y[e]]))
                total, count = total + one, count + 1
            optimiser.zero_grad()
            (total / max(count, 1)).backward()
            optimiser.step()
        raw_q = (q / scale).detach().numpy()
        raw_v = (v.view(width, heads, d) / scale).detach().transpose(0, 1).numpy()
        np.testing.assert_allclose(fits[i].query, raw_q, atol=2e-4)
        np.testing.assert_allclose(fits[i].value, raw_v, atol=2e-4)
        np.testing.assert_allclose(fits[i].position, w.detach().numpy(), atol=2e-4)


def problem_set(n: int, rng: np.random.Generator) -> list[AttentionProblem]:
    y2, y3 = rng.integers(0, 2, n), rng.integers(0, 3, n)
    half = rng.random(n) < 0.6
    return [
        AttentionProblem(y2, 2, 1, 0.0, np.ones(n, bool)),
        AttentionProblem(y3, 3, 2, 0.01, half, 1),
        AttentionProblem(y2, 2, 1, 0.1, half, 2),
        AttentionProblem(y3, 3, 2, 0.0, np.ones(n, bool), 0),
    ]


def same(a: AttentionFit, b: AttentionFit, atol: float) -> None:
    for name in ("query", "position", "value", "bias"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=atol)


def test_a_probe_does_not_depend_on_its_company() -> None:
    rows, offsets = ragged(60, 7, empty=True)
    problems = problem_set(60, np.random.default_rng(1))
    together = fit_attention(rows, offsets, problems, steps=40)
    backwards = fit_attention(rows, offsets, problems[::-1], steps=40)[::-1]
    for i, problem in enumerate(problems):
        (alone,) = fit_attention(rows, offsets, [problem], steps=40)
        same(together[i], alone, 1e-4)
        same(together[i], backwards[i], 1e-4)


def test_held_out_rows_change_nothing() -> None:
    rows, offsets = ragged(50, 6)
    rng = np.random.default_rng(2)
    train = np.arange(50) < 35
    problem = AttentionProblem(rng.integers(0, 3, 50), 3, 2, 0.01, train)
    (before,) = fit_attention(rows, offsets, [problem], steps=30)
    changed, labels = rows.copy(), problem.y.copy()
    changed[offsets[35] :] = changed[offsets[35] :] * 50 + 7
    labels[35:] = 0
    (after,) = fit_attention(
        changed, offsets, [AttentionProblem(labels, 3, 2, 0.01, train)], steps=30
    )
    same(before, after, 0.0)


def test_examples_without_rows_do_not_train_and_get_the_bias() -> None:
    rows, offsets = ragged(30, 5)
    padded = np.concatenate([offsets, [offsets[-1], offsets[-1]]])
    y = np.random.default_rng(0).integers(0, 2, 32)
    (short,) = fit_attention(
        rows, offsets, [AttentionProblem(y[:30], 2, 1, 0.0, np.ones(30, bool))], steps=20
    )
    (long,) = fit_attention(
        rows, padded, [AttentionProblem(y, 2, 1, 0.0, np.ones(32, bool))], steps=20
    )
    same(short, long, 0.0)
    z = long.logits(rows, padded)
    np.testing.assert_array_equal(z[30:, 0], np.repeat(long.bias, 2))
    np.testing.assert_allclose(z[:30], short.logits(rows, offsets), atol=1e-6)


def test_zero_query_is_the_mean() -> None:
    """q = 0 and w = 0 weigh all rows alike: the logits of a linear probe on the mean."""
    rows, offsets = ragged(20, 4)
    v, b = np.random.default_rng(0).standard_normal((1, 3, 4)), np.array([0.1, 0.2, 0.3])
    fit = AttentionFit(
        np.zeros((1, 4), np.float32), np.zeros(1, np.float32), v.astype(np.float32),
        b.astype(np.float32), "end", "completed", 0.0, 0.0, 0, 0.0,
    )  # fmt: skip
    means = np.stack([rows[a:z].mean(0) for a, z in pairwise(offsets)])
    np.testing.assert_allclose(fit.logits(rows, offsets), means @ v[0].T + b, atol=1e-5)
    entropy, uniform = fit.entropy(rows, offsets)
    assert entropy[0] == pytest.approx(uniform, abs=1e-6)
    assert uniform == pytest.approx(np.log(np.diff(offsets)).mean())


def test_entropy_by_hand() -> None:
    """Two rows whose scores differ by log 3: weights 3/4 and 1/4."""
    rows = np.array([[np.log(3.0)], [0.0], [5.0]], np.float32)
    offsets = np.array([0, 2, 3, 3])
    fit = AttentionFit(
        np.ones((1, 1), np.float32), np.zeros(1, np.float32), np.ones((1, 1, 1), np.float32),
        np.zeros(1, np.float32), "end", "completed", 0.0, 0.0, 0, 0.0,
    )  # fmt: skip
    np.testing.assert_allclose(fit.attention(rows, offsets)[0], [0.75, 0.25, 1.0], atol=1e-6)
    entropy, uniform = fit.entropy(rows, offsets)
    by_hand = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert entropy[0] == pytest.approx(by_hand / 2, abs=1e-6)
    assert uniform == pytest.approx(np.log(2) / 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(12)))
def test_order_and_padding_do_not_change_predictions(seed: int, order: list[int]) -> None:
    rows, offsets = ragged(12, 4, seed=seed, empty=True)
    rng = np.random.default_rng(seed)
    fit = AttentionFit(
        rng.standard_normal((2, 4)).astype(np.float32),
        rng.standard_normal(2).astype(np.float32),
        rng.standard_normal((2, 3, 4)).astype(np.float32),
        rng.standard_normal(3).astype(np.float32),
        "end" if seed % 2 else "start", "completed", 0.0, 0.0, 0, 0.0,
    )  # fmt: skip
    pieces = [rows[offsets[e] : offsets[e + 1]] for e in order]
    shuffled = np.concatenate(pieces)
    starts = np.concatenate([[0], np.cumsum([len(p) for p in pieces])]).astype(np.int64)
    np.testing.assert_allclose(
        fit.logits(shuffled, starts), fit.logits(rows, offsets)[order], atol=1e-5
    )
    proba = fit.predict_proba(rows, offsets)
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-9)


def test_it_learns_to_look_at_the_right_row() -> None:
    """The label is written into one random row of each example, which a mean hides: attention
    finds it, and its entropy falls far below the uniform one."""
    rng = np.random.default_rng(0)
    n, d, length = 400, 16, 30
    rows = rng.standard_normal((n * length, d)).astype(np.float32)
    offsets = np.arange(n + 1) * length
    y = rng.integers(0, 2, n)
    marked = offsets[:-1] + rng.integers(0, length, n)
    rows[marked, 0] = 6.0
    rows[marked, 1] = np.where(y == 1, 2.0, -2.0)
    train = np.arange(n) < 300
    (fit,) = fit_attention(
        rows, offsets, [AttentionProblem(y, 2, 1, 0.0, train)], steps=300, learning_rate=0.02
    )
    held = ~train
    accuracy = (fit.predict_proba(rows, offsets)[held].argmax(1) == y[held]).mean()
    assert accuracy >= 0.9
    entropy, uniform = fit.entropy(rows, offsets)
    assert entropy[0] < 0.5 * uniform
    assert fit.status == "completed"


def test_scores_shift_with_the_center() -> None:
    rows, offsets = ragged(6, 3)
    theta = Parameters(
        torch.randn(2, 2, 3), torch.randn(2, 2), torch.randn(2, 4, 6), torch.randn(2, 4)
    )
    center = torch.randn(2, 3)
    x = torch.from_numpy(rows)
    for chunk in chunks(x, offsets, np.arange(6), 2, True):
        a = scores(chunk, theta, torch.zeros(2, 3))
        b = scores(chunk, theta, center)
        shift = torch.einsum("mchd,md->mc", theta.v.view(2, 4, 2, 3), center)
        torch.testing.assert_close(a - b, shift[:, None].expand_as(a), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"y": np.zeros(3, int)}, "y and train"),
        ({"y": np.full(10, 5)}, "labels must be"),
        ({"heads": 0}, "heads"),
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"train": np.zeros(10, bool)}, "no training example"),
    ],
)
def test_bad_problems(change: dict[str, object], match: str) -> None:
    rows, offsets = ragged(10, 3)
    good = {"y": np.arange(10) % 2, "n_classes": 2, "heads": 1, "alpha": 0.0}
    problem = AttentionProblem(**{**good, "train": np.ones(10, bool), **change})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=match):
        fit_attention(rows, offsets, [problem], steps=1)


def test_bad_rows() -> None:
    rows, offsets = ragged(10, 3)
    problem = AttentionProblem(np.arange(10) % 2, 2, 1, 0.0, np.ones(10, bool))
    with pytest.raises(InputError, match="offsets"):
        fit_attention(rows[:-1], offsets, [problem], steps=1)
    rows[4, 1] = np.nan
    with pytest.raises(InputError, match="row 4"):
        fit_attention(rows, offsets, [problem], steps=1)
    with pytest.raises(InputError, match="position"):
        fit_attention(np.nan_to_num(rows), offsets, [problem], steps=1, position="middle")
