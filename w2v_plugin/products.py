"""Matrix products for inference on a CPU: weights packed once, in the layout of the kernels.

`nn.Linear` leaves the choice of the library to PyTorch, which takes MKL for float32; MKL runs at
less than half of the machine's speed on processors that are not Intel's. The kernels of oneDNN,
which PyTorch brings along for convolutions and for `torch.compile`, know no such difference. They
want their weights packed, so a packed layer can neither be trained nor saved: packing is the last
step before use (compression.py).

INT8 quantizes weights per output channel once, and activations per row (frame) when they arrive:
8 bits, no calibration. Since no row knows of another, an utterance gives the same result alone, in
a batch and in a stream, but for near ties of the rounding; scales per tensor (PyTorch's dynamic
quantization) do not have this property, and are less accurate besides.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 256  # of activations that are quantized at a time: what is written stays in the cache
WEIGHT_MAX = 127.0
GELU_MIN = -0.17  # no output of GELU is smaller (the minimum is -0.16997)


def available() -> bool:
    """Whether this machine has the kernels: oneDNN on x86."""
    return torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


def activation_max() -> int:
    """Largest 8-bit activation.

    Without VNNI instructions two products are added in 16 bits, where full-range ones would
    overflow: such a machine gets 7 bits.
    """
    return 255 if torch.cpu._is_vnni_supported() else 127


def gelu(x: Tensor) -> Tensor:
    """Exact GELU; overwrites `x` unless a gradient is wanted or the call is traced."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.gelu(x)
    return torch.ops.aten.gelu_(x)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., inputs) times (outputs, inputs) transposed, by oneDNN, float32, without a gradient.

    Either may be the transpose of a matrix without gaps. Other views are slow, some by a factor of
    a thousand.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class PackedLinear(nn.Module):
    """`nn.Linear` with packed weights, for inference on a CPU.

    Parameters
    ----------
    weight : Tensor
        (outputs, inputs), float32.
    bias : Tensor, optional
        (outputs,), float32.
    dtype : torch.dtype
        Of the product; the sums are float32 all the same.

    Example
    -------
    >>> layer = nn.Linear(8, 4)
    >>> x = torch.randn(3, 8)
    >>> with torch.inference_mode():
    ...     torch.allclose(PackedLinear(layer.weight, layer.bias)(x), layer(x), atol=1e-6)
    True
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = dtype
        weight = weight.detach().to(dtype).contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias = None if bias is None else bias.detach().to(dtype, copy=True)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs) of the type of x."""
        y = torch.ops.mkldnn._linear_pointwise(
            x.to(self.dtype), self.weight, self.bias, "none", [], ""
        )
        return y.to(x.dtype)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and one scale per output of (outputs, inputs); `values * scale` is the weight.

    Example
    -------
    >>> values, scale = quantize_weight(torch.tensor([[0.5, -1.0], [0.0, 0.0]]))
    >>> values.tolist()
    [[64, -127], [0, 0]]
    """
    scale = weight.detach().abs().amax(1).clamp(min=1e-30) / WEIGHT_MAX
    return (weight.detach() / scale[:, None]).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """`nn.Linear` with int8 weights and activations, for inference on a CPU.

    Parameters
    ----------
    weight : Tensor
        (outputs, inputs), float32.
    bias : Tensor, optional
        (outputs,), float32.
    after_gelu : bool
        The inputs are outputs of GELU: none is below -0.17, so the 8 bits span from there to the
        largest of the row, twice as finely as a range around zero.

    Example
    -------
    >>> layer = nn.Linear(64, 4)
    >>> x = torch.randn(3, 64)
    >>> with torch.inference_mode():
    ...     error = Int8Linear(layer.weight, layer.bias)(x) - layer(x)
    >>> bool(error.abs().max() < 0.05)
    True
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, after_gelu: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        values, self.scale = quantize_weight(weight)
        self.weight = torch.ops.onednn.qlinear_prepack(values, None)
        self.zero_points = torch.zeros(len(values), dtype=torch.int64)
        self.bias = torch.zeros(len(values)) if bias is None else bias.detach().clone()
        self.after_gelu, self.largest = after_gelu, activation_max()
        if after_gelu:  # inputs are shifted up by 0.17; what that adds is taken off here
            self.bias += GELU_MIN * values.sum(1) * self.scale
        self.zero = 0 if after_gelu else (self.largest + 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), float32."""
        rows = x.reshape(-1, self.in_features)
        y = self.product(rows, rows.abs().amax(1, keepdim=True))
        return y.view(*x.shape[:-1], self.out_features)

    def product(self, rows: Tensor, peaks: Tensor) -> Tensor:
        """(rows, inputs) -> (rows, outputs); `peaks` (rows, 1), the largest magnitudes."""
        y = rows.new_empty(len(rows), self.out_features)
        if self.after_gelu:
            scales = (peaks - GELU_MIN).div_(self.largest)
            shifts = 0.5 - GELU_MIN / scales  # a half: positive numbers are truncated
        else:
            scales = peaks.clamp(min=1e-12).div_(self.largest - self.zero)
            shifts = torch.full_like(scales, self.zero + 0.5)
        for x, scale, shift, out in zip(
            *(t.split(ROWS) for t in (rows, scales, shifts, y)), strict=True
        ):
            quantized = x.div(scale).add_(shift).to(torch.uint8)
            product = torch.ops.onednn.qlinear_pointwise(
                quantized, 1.0, self.zero, self.weight, self.scale, self.zero_points,
                None, 1.0, 0, torch.float32, "none", [], "",
            )  # fmt: skip
            torch.addcmul(self.bias, product, scale, out=out)
        return y
