"""Linear layers and dropout for training: the same mathematics as PyTorch's, forward and back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_plugin.linear import (
    DROPPED,
    Dropout,
    LayerNorm,
    Linear,
    after_gelu,
    fast,
    keep_mask,
    linear,
)

ROUNDING = 100 * torch.finfo(torch.float32).eps  # sums of up to 100 products of order 1


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def same_gradients(ours: Tensor, theirs: Tensor, of: list[Tensor]) -> None:
    """Values, and gradients along a random direction."""
    torch.testing.assert_close(ours, theirs, rtol=ROUNDING, atol=ROUNDING)
    direction = torch.randn_like(theirs)
    pairs = (torch.autograd.grad(y, of, direction) for y in (ours, theirs))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=10 * ROUNDING)


@pytest.mark.parametrize("shape", [(8,), (1, 8), (7, 8), (2, 5, 8), (2, 3, 5, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_pytorchs(shape: tuple[int, ...], bias: bool) -> None:
    layer, x = Linear(8, 6, bias=bias), torch.randn(*shape, requires_grad=True)
    same_gradients(layer(x), F.linear(x, layer.weight, layer.bias), [x, *layer.parameters()])
    same_gradients(
        after_gelu(x, layer),
        F.linear(F.gelu(x), layer.weight, layer.bias),
        [x, *layer.parameters()],
    )


def test_views_are_multiplied_too() -> None:
    """Transposed inputs, expanded gradients, rows with gaps."""
    layer, x = Linear(8, 6), torch.randn(8, 5, 2, requires_grad=True)
    view = x.transpose(0, 2)[:, ::2]
    expected = torch.autograd.grad(F.linear(view, layer.weight, layer.bias).sum(), x)[0]
    found = torch.autograd.grad(layer(view).sum(), x)[0]
    torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)


def test_frozen_parts_get_no_gradient() -> None:
    layer, x = Linear(8, 6), torch.randn(3, 8, requires_grad=True)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None and x.grad is not None


@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_and_one(rows: int) -> None:
    layer, x = Linear(8, 6), torch.randn(rows, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and x.grad.shape == (rows, 8)


def test_other_types_and_autocast_are_pytorchs() -> None:
    """float64 stays float64; autocast decides on the type itself."""
    layer, x = Linear(8, 6), torch.randn(3, 8)
    assert not fast(x.double()) and not fast(x.bfloat16())
    assert layer.double()(x.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert not fast(x) and layer.float()(x).dtype == torch.bfloat16


def test_state_is_that_of_pytorchs_layers() -> None:
    nn.Linear(8, 6).load_state_dict(Linear(8, 6).state_dict())


def test_linear_takes_no_bias() -> None:
    x, weight = torch.randn(4, 8), torch.randn(6, 8)
    torch.testing.assert_close(linear(x, weight), x @ weight.t(), rtol=ROUNDING, atol=ROUNDING)


# --- dropout -------------------------------------------------------------------------------------


def kept_bytes(norm: nn.LayerNorm, layers: nn.ModuleList) -> tuple[int, list[Tensor]]:
    """What the backward pass of layers that read a norm needs, and all gradients."""
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = norm(x * 2)
        loss = sum(layer(y).square().sum() for layer in layers)
        del y
    loss.backward()
    parameters = [*norm.parameters(), *layers.parameters()]
    return sum(kept.values()), [x.grad, *(parameter.grad for parameter in parameters)]


def test_what_a_norm_made_is_not_kept() -> None:
    """All gradients are the same to the last bit, frozen weights have none."""
    found = []
    for kind in (nn.LayerNorm, LayerNorm):
        torch.manual_seed(0)
        norm, layers = kind(32), nn.ModuleList(Linear(32, 8) for _ in range(3))
        nn.init.normal_(norm.weight)
        layers[1].requires_grad_(False)
        found.append(kept_bytes(norm, layers))
    (more, expected), (less, grads) = found
    assert more - less == 64 * 32 * 4
    for ours, theirs in zip(grads, expected, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.97])
def test_dropout_keeps_the_mean(p: float) -> None:
    """Kept entries are scaled by one over their share; the share is p's within 5 sigma."""
    x = torch.ones(400, 500)
    y = Dropout(p)(x)
    kept = y > 0
    assert abs(kept.double().mean() - (1 - p)) < 5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-16
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)), rtol=1e-3, atol=0)


def test_dropped_entries_are_independent() -> None:
    """Neighbors share a random word, and must not share a fate: correlations at lags 1 to 8."""
    mask = keep_mask((1 << 18,), 0.3)[0].double() - 0.7
    for lag in range(1, 9):
        correlation = (mask[lag:] * mask[:-lag]).mean() / 0.21
        assert abs(correlation) < 5 / (1 << 9)  # 5 sigma of 2^18 independent ones


def test_dropout_has_the_gradient_of_its_own_mask() -> None:
    x = torch.randn(30, 40, requires_grad=True)
    y = Dropout(0.3)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, x * gradient, rtol=1e-6, atol=0)  # one rounding more


def test_dropout_repeats_by_seed_and_rests_in_evaluation() -> None:
    x, layer = torch.randn(9, 7), Dropout(0.4)
    outs = []
    for _ in range(2):
        torch.manual_seed(5)
        outs.append(layer(x))
    assert torch.equal(*outs) and torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x) and not Dropout(1.0)(x).any()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_after_gelu_is_that_of_its_parts(p: float) -> None:
    """The same entries are dropped as by the layer of its own, and nothing but x is kept."""
    layer, dropout = Linear(8, 6), Dropout(p)
    x = 3 * torch.randn(5, 7, 8)
    x.requires_grad_()
    torch.manual_seed(4)
    ours = after_gelu(x, layer, dropout)
    torch.manual_seed(4)
    same_gradients(ours, layer(dropout(F.gelu(x))), [x, *layer.parameters()])
    rested = after_gelu(x, layer, dropout.eval())
    torch.testing.assert_close(rested, layer(F.gelu(x)), rtol=ROUNDING, atol=ROUNDING)


def test_what_is_dropped_has_no_value_and_no_slope() -> None:
    x = torch.full((64,), DROPPED, requires_grad=True)
    y = F.gelu(x)
    y.sum().backward()
    assert x.grad is not None and not y.any() and not x.grad.any()
