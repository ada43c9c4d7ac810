"""A trained or loaded model -> the same model made ready for use: packed, half precision or INT8.

What `optimize` returns gives the same answers as before (float32) or nearly so (the rest), faster
and smaller; it can no longer be trained or saved. On a CPU the parts of the encoder are replaced
by those of products.py, tiled.py and fourier.py; what has no matrix to multiply (norms, softmax,
GELU, residual sums) stays in float32. On an accelerator the weights are converted, and norms and
softmax work in float32 inside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from w2v_plugin.adapters import LanguageAdapter
from w2v_plugin.fourier import FourierConv
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.positions import ConvPositions
from w2v_plugin.products import Int8Linear, PackedLinear, available
from w2v_plugin.tiled import Int8Conv, PackedConv, TiledExtractor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = (*DTYPES, "int8")
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def optimize(
    model: AnyModule,
    precision: str = "fp32",
    *,
    device: str | torch.device = "cpu",
    keep_fp32: Collection[str] = (),
    compile: bool = False,
) -> AnyModule:
    """Make a model ready for inference; it is changed in place.

    Parameters
    ----------
    model : torch.nn.Module
        A `Wav2Vec2` or whatever holds one as `wav2vec2`, in float32.
    precision : {"fp32", "bf16", "fp16", "int8"}
        Of matrix products. "int8": 8-bit weights and activations, CPU only. Heads and language
        adapters, which are small and may be exchanged later, stay as they are on a CPU.
    device : str or torch.device
        Where the model shall work.
    keep_fp32 : collection of str
        Parts that stay in float32, by their names in `Wav2Vec2`, as "encoder.layers.0" or
        "extractor.layers.1". Which ones are worth it: `int8_deviations`. It means something
        where parts are replaced: on a CPU and without `compile`.
    compile : bool
        Leave it to `torch.compile` instead of packing; not with "int8".

    Returns
    -------
    torch.nn.Module
        `model`, in evaluation mode.

    Raises
    ------
    ValueError
        Unknown precision, one that the device cannot do, an unknown name in `keep_fp32`, options
        that exclude each other, or a model that is optimized already.

    Example
    -------
    >>> model = Wav2Vec2(dim=64, layers=1, heads=2, ffn_dim=64, channels=(32,) * 7).eval()
    >>> wavs = torch.randn(1, 16000)
    >>> with torch.inference_mode():
    ...     before = model(wavs).context
    ...     error = optimize(model, "int8")(wavs).context - before
    >>> bool(error.norm() < 0.1 * before.norm())
    True
    """
    device = torch.device(device)
    check_precision(precision, device)
    if compile and precision == "int8":
        raise ValueError('compile=True works with "fp32", "bf16" and "fp16", not with "int8".')
    wav2vec2 = _body(model)
    if isinstance(wav2vec2.extractor, TiledExtractor):
        raise ValueError("This model is optimized already. Load it again for other options.")
    kept = _Kept(wav2vec2, keep_fp32)
    model.eval().requires_grad_(False)
    if device.type == "cpu" and not compile:
        if available():
            _pack(wav2vec2.cpu(), precision, kept)
        return model.cpu()
    model.to(device, DTYPES[precision])
    if compile:
        model.compile(dynamic=True)
    return model


def _body(model: nn.Module) -> Wav2Vec2:
    body = getattr(model, "wav2vec2", model)
    if not isinstance(body, Wav2Vec2):
        raise ValueError(f"A {type(model).__name__} holds no Wav2Vec2 as `wav2vec2`.")
    return body


_SUPPORTED: dict[str, Callable[[], bool]] = {  # on a CPU with the kernels
    "int8": lambda: True,
    "bf16": lambda: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    "fp16": lambda: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}


def check_precision(precision: str, device: torch.device) -> None:
    """ValueError if there is no such precision or the device cannot do it."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}, expected one of {', '.join(PRECISIONS)}.")
    if precision == "fp32":
        return
    if precision == "int8" and device.type != "cpu":
        raise ValueError(f'precision="int8" works on a CPU, not on {device}. Use "fp16" there.')
    if device.type == "cpu" and not (available() and _SUPPORTED[precision]()):
        raise ValueError(
            f'precision="{precision}": this CPU has no instructions for it. Use "fp32".'
        )


class _Kept:
    """Which parts shall stay in float32."""

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        known = {name for name, _ in model.named_modules()}
        if unknown := [name for name in names if name not in known]:
            raise ValueError(
                f"keep_fp32: no part is called {', '.join(unknown)}. Expected names like "
                "'encoder.layers.0', 'encoder.layers.0.ffn_out', 'extractor.layers.1'."
            )
        self.names = tuple(names)

    def __contains__(self, name: object) -> bool:
        return any(name == kept or str(name).startswith(kept + ".") for kept in self.names)


def _pack(model: Wav2Vec2, precision: str, kept: _Kept) -> None:
    """Replace the parts of a model by those for inference on a CPU."""
    int8, dtype = precision == "int8", DTYPES.get(precision, torch.float32)

    def conv(number: int, old: nn.Conv1d) -> nn.Module:
        if f"extractor.layers.{number}.conv" in kept:
            return PackedConv(old)
        return Int8Conv(old) if int8 else PackedConv(old, dtype)

    def linear(name: str, old: nn.Linear) -> nn.Module:
        weight = old.weight.flatten(1)  # of a pointwise convolution, too
        if name in kept:
            return PackedLinear(weight, old.bias)
        if int8:
            return Int8Linear(weight, old.bias, after_gelu=name.endswith("ffn_out"))
        return PackedLinear(weight, old.bias, dtype)

    model.extractor = TiledExtractor(model.extractor, conv)  # type: ignore[assignment]
    if model.encoder.conformer is not None:
        model.encoder.positions = nn.Identity()  # type: ignore[assignment]
    for name, parent, attribute, child in list(_children(model)):
        if isinstance(child, nn.Linear) and not isinstance(parent, LanguageAdapter):
            setattr(parent, attribute, linear(name, child))
        elif isinstance(child, ConvPositions):
            old = child.conv
            child.conv = FourierConv(old.weight, old.bias, old.groups)


def _children(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Full name, parent, name in the parent, and module."""
    for prefix, parent in model.named_modules():
        for attribute, child in parent.named_children():
            yield f"{prefix}.{attribute}".lstrip("."), parent, attribute, child


def int8_deviations(
    make: Callable[[], nn.Module], answer: Callable[[nn.Module], Tensor]
) -> dict[str, float]:
    """What INT8 costs, part by part: relative deviation with only that part in 8 bits.

    Parameters
    ----------
    make : callable
        Makes the model, as `lambda: load_checkpoint(source)`: `optimize` can only be done once.
    answer : callable
        Model -> what matters, as `lambda model: model(wavs).logits`.

    Returns
    -------
    dict of str to float
        Names for `keep_fp32` -> ||answer - answer in float32|| / ||answer in float32||, worst
        first.
    """
    with torch.inference_mode():
        model = make()
        wav2vec2 = _body(model)
        parts = [f"extractor.layers.{i}" for i in range(1, len(wav2vec2.extractor.layers))]
        layers = range(len(wav2vec2.encoder.layers))
        parts += ["projection", *(f"encoder.layers.{i}" for i in layers)]
        exact = answer(optimize(model))
        cost = {}
        for part in parts:
            others = [name for name in parts if name != part]
            y = answer(optimize(make(), "int8", keep_fp32=others))
            cost[part] = ((y - exact).norm() / exact.norm()).item()
    return dict(sorted(cost.items(), key=lambda item: -item[1]))
