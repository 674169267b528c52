"""Attention probes: the forward pass, the loss, and its gradient in closed form.

For M probes with H heads on one padded chunk of E examples of up to L rows:

    k = x . q + position * w          a = softmax of k over an example's rows
    p = sum_t a_t x_t - center        z = sum_h v_h . p_h + b

and for the gradient of a loss with dz = g:

    dv_h = g' p_h     db = g     u_h = sum_c g_c v_hc     da_t = x_t . u_h
    dk = a * (da - sum_t a da)    dq = sum_t dk_t x_t     dw = sum_t dk_t position_t

Pooling first makes the cost of the token axis independent of the number of classes. The center
cannot change `k` (softmax ignores shifts), so it is taken from the pooled rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actstore.probes.gemm import matmul_nt

__all__ = [
    "Chunk",
    "Parameters",
    "attend",
    "chunks",
    "example_stream",
    "loss_and_gradient",
    "rate_at",
    "scores",
]

Int64 = npt.NDArray[np.int64]

#: Numbers in the pooled rows of one probe (examples x heads x width): about a processor's second
#: cache, so that they are not written out between the products.
_POOLED_NUMBERS = 800_000
#: Padded rows of a chunk, so that one very long example does not pad many short ones.
_CHUNK_ROWS = 4096


@dataclass
class Parameters:
    """M probes: `q` [M, H, d], `w` [M, H], `v` [M, C, H * d], `b` [M, C]; also their gradients."""

    q: Tensor
    w: Tensor
    v: Tensor
    b: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.q, self.w, self.v, self.b

    def select(self, which: Tensor) -> Parameters:
        """The probes numbered `which`."""
        return Parameters(*(tensor[which] for tensor in self.tensors()))

    def zeros(self) -> Parameters:
        return Parameters(*(torch.zeros_like(tensor) for tensor in self.tensors()))


@dataclass(frozen=True)
class Chunk:
    """Some examples padded to one length: `x` [E, L, d] with zeros behind each example's rows,
    `valid` [E, L], `position` [E, L], and the examples' numbers."""

    x: Tensor
    valid: Tensor
    position: Tensor
    examples: Int64


def chunks(
    rows: Tensor, offsets: Int64, examples: Int64, heads: int, from_end: bool
) -> Iterator[Chunk]:
    """Cut `examples` (those without rows left out), sorted by length, into padded chunks.

    A row's position is its distance from the example's end (or
    start) divided by the greatest such distance, so it is in 0..1 whatever the length.
    """
    lengths = np.diff(offsets)[examples]
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    most = max(1, _POOLED_NUMBERS // (heads * rows.shape[1]))
    begin = 0
    while begin < len(order):
        stop = begin + 1
        while (
            stop < len(order)
            and stop - begin < most
            and (stop - begin + 1) * int(lengths[order[stop]]) <= _CHUNK_ROWS
        ):
            stop += 1
        chosen = order[begin:stop]
        yield _chunk(rows, offsets, examples[chosen], lengths[chosen], from_end)
        begin = stop


def _chunk(rows: Tensor, offsets: Int64, examples: Int64, lengths: Int64, from_end: bool) -> Chunk:
    longest = int(lengths.max())
    step = np.arange(longest)
    valid = step < lengths[:, None]
    index = np.where(valid, offsets[examples][:, None] + step, 0)
    x = rows[torch.from_numpy(index).to(rows.device)]
    position = np.minimum(step, lengths[:, None] - 1) / np.maximum(lengths[:, None] - 1, 1)
    place = torch.from_numpy(1 - position if from_end else position).to(rows)
    mask = torch.from_numpy(valid).to(rows.device)
    if not valid.all():
        x = x * mask[..., None]
    return Chunk(x, mask, place, examples)


def attend(chunk: Chunk, q: Tensor, w: Tensor) -> Tensor:
    """Attention weights [E, M * H, L], zero behind each example's rows."""
    n, longest, d = chunk.x.shape
    k = matmul_nt(chunk.x.reshape(n * longest, d), q.reshape(-1, d)).view(n, longest, -1)
    k = k.transpose(1, 2) + w.reshape(-1)[:, None] * chunk.position[:, None, :]
    k = k.masked_fill(~chunk.valid[:, None, :], -torch.inf)
    return torch.softmax(k, dim=-1)


def scores(chunk: Chunk, theta: Parameters, center: Tensor) -> Tensor:
    """Logits [M, E, C]."""
    a, bias = attend(chunk, theta.q, theta.w), _centred_bias(theta, center)
    m, heads = theta.w.shape
    parts = (_pool(chunk, a[:, i * heads : (i + 1) * heads]) for i in range(m))
    return torch.stack([matmul_nt(p, v) + b for p, v, b in zip(parts, theta.v, bias, strict=True)])


def _pool(chunk: Chunk, a: Tensor) -> Tensor:
    """Pooled rows [E, H * d] of one probe's weights [E, H, L], not yet centred."""
    return torch.bmm(a, chunk.x).flatten(1)


def _centred_bias(theta: Parameters, center: Tensor) -> Tensor:
    """[M, C]: the bias less what the center (the same for each head) contributes, so that the
    large pooled rows need no subtraction."""
    m, heads = theta.w.shape
    return theta.b - torch.einsum(
        "mchd,md->mc", theta.v.view(m, -1, heads, center.shape[1]), center
    )


def loss_and_gradient(
    chunk: Chunk, theta: Parameters, center: Tensor, y: Tensor, weight: Tensor, out: Parameters
) -> Tensor:
    """Sum of weighted losses [M] of a chunk; adds its gradient to `out`.

    Args:
        y: [M, E] class codes.
        weight: [M, E], zero where a probe does not train on an example.
    """
    n, longest, d = chunk.x.shape
    m, heads = theta.w.shape
    a, bias = attend(chunk, theta.q, theta.w), _centred_bias(theta, center)
    da = torch.empty_like(a)
    x_t = chunk.x.transpose(1, 2)
    losses = []
    # One probe at a time, so that its pooled rows stay in the processor's cache
    for i in range(m):
        own = slice(i * heads, (i + 1) * heads)
        pooled = _pool(chunk, a[:, own])
        loss, g = _loss(matmul_nt(pooled, theta.v[i]) + bias[i], y[i], weight[i])
        losses.append(loss)
        mass = g.sum(dim=0)
        out.b[i] += mass
        out.v[i] += matmul_nt(g.T, pooled.T) - mass[:, None] * center[i].repeat(heads)
        u = matmul_nt(g, theta.v[i].T).view(n, heads, d)
        da[:, own] = torch.bmm(u, x_t)
    dk = a * (da - (a * da).sum(dim=-1, keepdim=True))
    out.w += (dk * chunk.position[:, None, :]).sum(dim=(0, 2)).view(m, heads)
    flat = dk.transpose(0, 1).reshape(m * heads, n * longest)
    out.q += matmul_nt(flat, chunk.x.reshape(n * longest, d).T).view(m, heads, d)
    return torch.stack(losses)


def _loss(z: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted logistic (C = 1) or softmax loss of logits [E, C], summed, and its gradient."""
    if z.shape[-1] == 1:
        # with s = -(2y - 1) z the loss is softplus(s), without cancellation for large |z|
        sign = (1 - 2 * y).to(z)
        s = z[:, 0] * sign
        loss = (torch.nn.functional.softplus(s) * weight).sum()
        return loss, (torch.sigmoid(s) * sign * weight)[:, None]
    log_p = torch.log_softmax(z, dim=-1)
    loss = -(log_p.gather(-1, y[:, None])[:, 0] * weight).sum()
    g = log_p.exp()
    g.scatter_add_(-1, y[:, None], -torch.ones_like(g[:, :1]))
    return loss, g * weight[:, None]


def example_stream(used: Int64, steps: int, batch: int, seed: int) -> list[Int64]:
    """The examples of each step: one shuffled pass over `used` after the other, or all of them
    every time (the same array) when they fit one batch."""
    if len(used) <= batch:
        return [used] * steps
    rng = np.random.default_rng(seed)
    found: list[Int64] = []
    while len(found) < steps:
        order = rng.permutation(used)
        found += [np.sort(order[i : i + batch]) for i in range(0, len(used) - batch + 1, batch)]
    return found[:steps]


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate: warm-up over the first 5 % of the steps, then half a cosine
    down to zero."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return float(0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm))))
