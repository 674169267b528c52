from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from actstore.probes.objective import binary_loss, class_curvature, multinomial_loss

DOUBLE = torch.float64


def _weights(n: int, generator: torch.Generator) -> Tensor:
    weight = torch.rand(n, dtype=DOUBLE, generator=generator)
    weight[1] = 0.0
    return weight / weight.sum()


class _Binary(torch.autograd.Function):
    """The closed form as an autograd function, so that gradcheck can differentiate the loss."""

    @staticmethod
    def forward(ctx, z, flip, weight):  # type: ignore[no-untyped-def]
        loss, residual, _ = binary_loss(z.detach().clone(), flip, weight)
        ctx.save_for_backward(residual)
        return loss

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        return ctx.saved_tensors[0] * upstream[:, None], None, None


class _Multinomial(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, label, weight):  # type: ignore[no-untyped-def]
        loss, residual = multinomial_loss(z.detach().clone(), label, weight)
        ctx.save_for_backward(residual)
        return loss

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        return ctx.saved_tensors[0] * upstream[:, None], None, None


def test_binary_gradient_passes_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    z = (3 * torch.randn(2, 7, dtype=DOUBLE, generator=generator)).requires_grad_()
    flip = torch.where(torch.rand(2, 7, generator=generator) < 0.5, -1.0, 1.0).to(DOUBLE)
    weight = torch.stack([_weights(7, generator)] * 2)
    assert torch.autograd.gradcheck(_Binary.apply, (z, flip, weight), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("n_classes", [3, 5])
def test_multinomial_gradient_passes_gradcheck(n_classes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    z = (3 * torch.randn(6, 2, n_classes, dtype=DOUBLE, generator=generator)).requires_grad_()
    label = torch.randint(n_classes, (6, 2), generator=generator)
    weight = torch.stack([_weights(6, generator)] * 2, dim=1)
    assert torch.autograd.gradcheck(_Multinomial.apply, (z, label, weight), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_multinomial_equals_autograd_of_the_plain_formula(n_classes: int) -> None:
    generator = torch.Generator().manual_seed(2)
    z = (5 * torch.randn(20, 3, n_classes, dtype=DOUBLE, generator=generator)).requires_grad_()
    label = torch.randint(n_classes, (20, 3), generator=generator)
    weight = _weights(20, generator)[:, None].expand(20, 3)
    plain = -(torch.log_softmax(z, -1).gather(-1, label[..., None])[..., 0] * weight).sum(0)
    (gradient,) = torch.autograd.grad(plain.sum(), z)
    loss, residual = multinomial_loss(z.detach().clone(), label, weight)
    torch.testing.assert_close(loss, plain.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(residual, gradient, rtol=1e-10, atol=1e-14)


def test_binary_is_multinomial_with_two_classes() -> None:
    generator = torch.Generator().manual_seed(3)
    z = 4 * torch.randn(1, 9, dtype=DOUBLE, generator=generator)
    y = torch.randint(2, (1, 9), generator=generator)
    weight = _weights(9, generator)[None]
    both = torch.stack([torch.zeros_like(z), z], -1).transpose(0, 1)
    loss, residual, curvature = binary_loss(z.clone(), (1 - 2 * y).to(DOUBLE), weight)
    loss2, residual2 = multinomial_loss(both.contiguous(), y.t(), weight.t())
    torch.testing.assert_close(loss, loss2)
    torch.testing.assert_close(residual, residual2[:, :, 1].t())
    p = torch.sigmoid(z)
    torch.testing.assert_close(curvature, (weight * p * (1 - p)).sum(1))


@pytest.mark.parametrize("size", [8.0, 16.0, 30.0, 70.0])
def test_float32_keeps_its_digits_far_from_zero(size: float) -> None:
    """Right by `size` and wrong by `size`: the loss e^-size must not come out as 0 or as noise."""
    one = torch.ones(1, 1)
    for sign in (1.0, -1.0):
        exact = math.log1p(math.exp(-sign * size)) if sign > 0 else size + math.exp(-size)
        loss, residual, _ = binary_loss(torch.full((1, 1), sign * size), -one, one.clone())
        assert float(loss) == pytest.approx(exact, rel=1e-5)
        miss = 1 / (1 + math.exp(sign * size))
        assert float(residual) == pytest.approx(-miss, rel=1e-5)
        z = torch.tensor([[[sign * size, 0.0, -200.0]]])
        loss, residual = multinomial_loss(z, torch.zeros(1, 1, dtype=torch.int64), one.clone())
        assert float(loss) == pytest.approx(exact, rel=1e-5)
        assert float(residual[0, 0, 0]) == pytest.approx(-miss, rel=1e-5)


def test_class_curvature_is_the_hessian_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(4)
    n, c = 12, 4
    z = 2 * torch.randn(n, 1, c, dtype=DOUBLE, generator=generator)
    label = torch.randint(c, (n, 1), generator=generator)
    weight = _weights(n, generator)[:, None]

    def loss_of_shift(shift: Tensor) -> Tensor:
        log_p = torch.log_softmax(z + shift, -1)
        return -(log_p.gather(-1, label[..., None])[..., 0] * weight).sum()

    hessian = torch.autograd.functional.hessian(loss_of_shift, torch.zeros(c, dtype=DOUBLE))
    _, residual = multinomial_loss(z.clone(), label, weight)
    mass, half = class_curvature(residual[:, 0], label[:, 0], weight[:, 0])
    torch.testing.assert_close(torch.diag(mass) - half.t() @ half, hessian, rtol=1e-9, atol=1e-12)


def test_rows_of_weight_zero_contribute_nothing() -> None:
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(6, 1, 3, dtype=DOUBLE, generator=generator)
    label = torch.randint(3, (6, 1), generator=generator)
    weight = torch.tensor([1, 0, 1, 0, 1, 1], dtype=DOUBLE)[:, None] / 4
    other = z.clone()
    other[weight[:, 0] == 0] = 17.0
    for a, b in zip(
        multinomial_loss(z.clone(), label, weight),
        multinomial_loss(other, label, weight),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
