"""Linear layers and dropout for training, at the full speed of a CPU.

PyTorch multiplies float32 matrices by MKL, at less than half of the machine's speed where the
processor is not Intel's, and draws dropout masks one random number an element. Here the products
of a linear layer, forward and backward, are oneDNN's (products.py), a dropout mask takes 16 random
bits an element, and what is cheap to compute again is not stored: GELU, and what a LayerNorm made
for linear layers. The mathematics is that of `nn.Linear`, `nn.LayerNorm`, `nn.GELU` and
`nn.Dropout`; parameters have their names. Under autocast, on other devices and types, and where a
graph is traced, those run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from w2v_plugin.products import available, gelu, product

AVAILABLE = available()
ROWS = 256  # whose GELU is in memory at a time
LEVELS = 1 << 16  # of a random number that decides on one element
MADE_OF = "made_of"  # attribute of tensors: the norm, and what it normalized
DROPPED = -1e4  # GELU and its slope are exactly zero here


def fast(x: Tensor) -> bool:
    """Whether the products of oneDNN serve `x`: float32 on an x86 CPU, not traced."""
    return (
        AVAILABLE
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def rows(x: Tensor) -> Tensor:
    """(..., width) -> (rows, width), without gaps."""
    return x.reshape(-1, x.shape[-1]).contiguous()


class _Linear(torch.autograd.Function):
    """Of what a `LayerNorm` made, keeps what it was made of, which that norm keeps anyway."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        made: tuple[nn.LayerNorm, Tensor] | None,
    ) -> Tensor:
        x = x.contiguous()  # of views with gaps, products are slow
        ctx.norm, source = (None, x) if made is None else made  # type: ignore[attr-defined]
        ctx.save_for_backward(source, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        needed = ctx.needs_input_grad  # type: ignore[attr-defined]
        if ctx.norm is not None and needed[1]:  # type: ignore[attr-defined]
            x = nn.LayerNorm.forward(ctx.norm, x)  # type: ignore[attr-defined]
        return *gradients(needed, rows(grad), x, weight), None


class _GeluLinear(torch.autograd.Function):
    """With dropout in between: what is dropped becomes so negative that GELU and its slope are zero
    there, so that no mask is kept either."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, p: float
    ) -> Tensor:
        ctx.scale = 1.0  # type: ignore[attr-defined]
        if p > 0:
            mask, ctx.scale = keep_mask(x.shape, p)  # type: ignore[attr-defined]
            x = torch.where(mask, x, x.new_tensor(DROPPED))
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        y = x.new_empty(*x.shape[:-1], len(weight))
        for part, out in zip(rows(x).split(ROWS), rows(y).split(ROWS), strict=True):
            out.copy_(product(activated(part, ctx.scale), weight, bias))  # type: ignore[attr-defined]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        scale = ctx.scale  # type: ignore[attr-defined]
        needed = ctx.needs_input_grad  # type: ignore[attr-defined]
        grad = rows(grad)
        _, *others = gradients((False, *needed[1:]), grad, activated(x, scale), weight)
        grad_x, *_ = gradients((needed[0], False, False), grad, x, weight)
        if grad_x is not None:  # after what was activated for the others is gone
            torch.ops.aten.gelu_backward.grad_input(grad_x, x, grad_input=grad_x)
            if scale != 1.0:
                grad_x.mul_(scale)
        return grad_x, *others, None


def activated(x: Tensor, scale: float) -> Tensor:
    y = F.gelu(x)
    return y if scale == 1.0 else y.mul_(scale)


def gradients(
    needed: tuple[bool, ...], grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor | None, ...]:
    """Of y = x weight^T + bias, given that of y (rows, outputs): for x, weight and bias."""
    return (
        product(grad, weight.t()).view(x.shape) if needed[0] else None,
        product(grad.t(), rows(x).t()) if needed[1] else None,
        grad.sum(0) if needed[2] else None,
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: (..., inputs) and (outputs, inputs) -> (..., outputs).

    Example
    -------
    >>> x, weight = torch.randn(2, 3, 8), torch.randn(4, 8)
    >>> torch.allclose(linear(x, weight), x @ weight.t(), atol=1e-5)
    True
    """
    if not fast(x):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias, getattr(x, MADE_OF, None))


class Linear(nn.Linear):
    """`nn.Linear` whose products, forward and backward, are oneDNN's where that is the faster.

    Example
    -------
    >>> Linear(8, 4)(torch.randn(2, 3, 8)).shape
    torch.Size([2, 3, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` whose output a `Linear` need not keep for the backward pass.

    Example
    -------
    >>> Linear(8, 4)(LayerNorm(8)(torch.randn(2, 3, 8))).shape
    torch.Size([2, 3, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if torch.is_grad_enabled() and fast(x):
            setattr(y, MADE_OF, (self, x))
        return y


def after_gelu(x: Tensor, layer: nn.Module, dropout: nn.Dropout | None = None) -> Tensor:
    """`layer(dropout(F.gelu(x)))`; in training, only x is kept for the backward pass.

    Example
    -------
    >>> x, layer = torch.randn(2, 8), Linear(8, 4)
    >>> torch.allclose(after_gelu(x, layer), layer(F.gelu(x)), atol=1e-5)
    True
    """
    p = dropout.p if dropout is not None and dropout.training else 0.0
    if isinstance(layer, Linear) and torch.is_grad_enabled() and fast(x) and p < 1.0:
        return _GeluLinear.apply(x, layer.weight, layer.bias, p)
    y = gelu(x)
    return layer(y if dropout is None or p == 0 else dropout(y))


def keep_mask(shape: torch.Size | tuple[int, ...], p: float) -> tuple[Tensor, float]:
    """What dropout keeps, on the CPU, and the factor for it.

    Returns
    -------
    tuple
        bool of `shape`, each True with probability `round((1 - p) * 65536) / 65536`, and one over
        that probability.

    Example
    -------
    >>> mask, scale = keep_mask((1000, 100), 0.1)
    >>> abs(mask.float().mean().item() - 0.9) < 0.01, round(scale, 4)
    (True, 1.1111)
    """
    kept = round((1.0 - p) * LEVELS)
    count = torch.Size(shape).numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    mask = bits.view(torch.int16)[:count].view(shape) < kept - LEVELS // 2
    return mask, LEVELS / max(kept, 1)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, p: float) -> Tensor:  # type: ignore[override]
        mask, scale = keep_mask(x.shape, p)
        ctx.save_for_backward(mask)
        ctx.scale = scale  # type: ignore[attr-defined]
        return (x * scale).mul_(mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (mask,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return (grad * ctx.scale).mul_(mask), None  # type: ignore[attr-defined]


class Dropout(nn.Dropout):
    """`nn.Dropout`, with random numbers by the word on a CPU.

    Example
    -------
    >>> Dropout(0.5)(torch.ones(4)).unique().tolist() in ([0.0], [2.0], [0.0, 2.0])
    True
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.p > 0 and fast(x):
            return _Dropout.apply(x, self.p)
        return super().forward(x)
