"""Frames to one vector, layers to one layer: pure functions of a model's output.

    hidden states ─ pick_layers | mix_layers ─► (batch, [layers,] frames, dim) ─ pool ─► (batch, …)

Padding never matters: it is replaced before anything is summed, so that even NaN in it does no
harm. Everything is computed in float32 at least, in two passes (mean first, deviations from it
second): the one-pass formula E[x²] - E[x]² loses all digits where the mean is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from w2v_plugin.frames import valid_frames
from w2v_plugin.model_output import Wav2Vec2Output

POOLS = {"mean": 1, "mean+std": 2, "statistics": 4}  # vectors of `dim` that make up the result
Layer = int | Sequence[int] | Literal["all"]


def check_pool(how: str | None) -> None:
    """ValueError if there is no such method; None, for no pooling, is one."""
    if how not in (None, *POOLS):
        raise ValueError(f"pool={how!r}, expected one of {', '.join(map(repr, POOLS))}.")


def pool(frames: Tensor, lengths: Tensor, how: str = "mean") -> Tensor:
    """Summarize the frames of each utterance in one vector.

    Parameters
    ----------
    frames : Tensor
        (batch, frames, dim), or (batch, layers, frames, dim).
    lengths : Tensor
        (batch,) valid frames, 1 to frames.
    how : {"mean", "mean+std", "statistics"}
        "mean+std" is the statistics pooling of x-vectors (Snyder et al., Interspeech 2017);
        "statistics" appends skewness and excess kurtosis, which are 0 for a normal distribution
        (Rouvier, Bousquet and Duret, arXiv:2105.04310). No method has parameters.

    Returns
    -------
    Tensor
        float32 (float64 for float64 frames), (batch, [layers,] k * dim) with k = `POOLS[how]`, one
        statistic after the other. The standard deviation is that of the population; it, skewness
        and kurtosis are 0 where nothing varies, as in a single frame.

    Raises
    ------
    ValueError
        Unknown `how`, or lengths that do not belong to the frames.

    Example
    -------
    >>> frames = torch.tensor([[[1.0], [3.0], [99.0]]])
    >>> pool(frames, torch.tensor([2]), "mean+std").tolist()
    [[2.0, 1.0]]
    """
    check_pool(how)
    _check_lengths(frames, lengths)
    batch, size = len(frames), frames.shape[-2]
    between = [1] * (frames.dim() - 3)
    valid = valid_frames(lengths, size).view(batch, *between, size, 1)
    x = frames.to(torch.promote_types(frames.dtype, torch.float32)).masked_fill(~valid, 0.0)
    count = lengths.to(x.dtype).view(batch, *between, 1)
    mean = x.sum(-2) / count
    if how == "mean":
        return mean
    deviation = (x - mean[..., None, :]).masked_fill(~valid, 0.0)
    std = _std(deviation, mean, count)
    if how == "mean+std":
        return torch.cat([mean, std], -1)
    # standardized before the powers are taken: the fourth power of 1e10 is not a float32
    z = deviation / torch.where(std > 0, std, torch.inf)[..., None, :]
    skewness, kurtosis = z.pow(3).sum(-2) / count, z.pow(4).sum(-2) / count - 3.0
    return torch.cat([mean, std, skewness, torch.where(std > 0, kurtosis, 0.0)], -1)


def pick_layers(out: Wav2Vec2Output, layer: Layer = -1) -> Tensor:
    """Vectors of one layer or of several.

    Parameters
    ----------
    out : Wav2Vec2Output
        With hidden states, unless `layer` is -1.
    layer : int, sequence of int, or "all"
        -1 for the context, which is what heads see; 0 for what enters the first layer; n for what
        comes out of the n-th (of a pre-norm model, before the final norm); "all" for 0 to the
        last.

    Returns
    -------
    Tensor
        (batch, frames, dim) for an int, (batch, layers, frames, dim) otherwise.

    Raises
    ------
    ValueError
        No such layer.

    Example
    -------
    >>> out = Wav2Vec2Output(torch.zeros(1, 3, 8), torch.tensor([3]), (torch.ones(1, 3, 8),) * 5)
    >>> pick_layers(out, 4).shape, pick_layers(out, "all").shape
    (torch.Size([1, 3, 8]), torch.Size([1, 5, 3, 8]))
    """
    if layer == -1:
        return out.context
    if isinstance(layer, int):
        return _one_layer(out, layer)
    numbers = range(len(_hidden(out))) if layer == "all" else layer
    if isinstance(numbers, str) or not numbers:
        raise ValueError(f'layer={layer!r}, expected a number, some numbers, or "all".')
    return torch.stack([out.context if n == -1 else _one_layer(out, n) for n in numbers], 1)


def mix_layers(out: Wav2Vec2Output, weights: Sequence[float] | Tensor) -> Tensor:
    """Weighted sum of all layers, as probes on frozen models learn it (SUPERB, Yang et al. 2021).

    Parameters
    ----------
    out : Wav2Vec2Output
        With hidden states.
    weights : sequence of float, or Tensor
        One per layer from 0 to the last, used as given: pass `w.softmax(0)` for SUPERB's.

    Returns
    -------
    Tensor
        (batch, frames, dim), float32 at least.

    Raises
    ------
    ValueError
        Not one weight per layer.

    Example
    -------
    >>> hidden = (torch.zeros(1, 3, 8), torch.ones(1, 3, 8))
    >>> mix_layers(Wav2Vec2Output(hidden[1], torch.tensor([3]), hidden), [0.5, 0.5]).mean().item()
    0.5
    """
    hidden = _hidden(out)
    given = torch.as_tensor(weights)
    if given.shape != (len(hidden),):
        raise ValueError(
            f"layer_weights: got shape {tuple(given.shape)}, but this model has {len(hidden) - 1} "
            f"layers and their input. Give {len(hidden)} weights, the one of the input first."
        )
    dtype = torch.promote_types(hidden[0].dtype, torch.float32)
    given = given.to(hidden[0].device, dtype)
    return sum(  # type: ignore[return-value]
        state.to(dtype) * weight for state, weight in zip(hidden, given, strict=True)
    )


def _check_lengths(frames: Tensor, lengths: Tensor) -> None:
    if frames.dim() < 3 or lengths.shape != frames.shape[:1]:
        raise ValueError(
            f"frames {tuple(frames.shape)} and lengths {tuple(lengths.shape)}: expected "
            "(batch, frames, dim) and one length per row."
        )
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < 1 or longest > frames.shape[-2]:
        raise ValueError(
            f"lengths: got {shortest} to {longest}, expected 1 to {frames.shape[-2]} frames. Give "
            "absolute numbers of frames, `frame_lengths` of the model's output."
        )


def _std(deviation: Tensor, mean: Tensor, count: Tensor) -> Tensor:
    """Of the population; exactly 0, with a gradient of 0, where nothing varies but rounding."""
    variance = deviation.square().sum(-2) / count
    rounding = 4 * torch.finfo(mean.dtype).eps * mean.abs()  # of a mean of equal numbers
    varies = variance > rounding.square()
    return torch.where(varies, torch.where(varies, variance, 1.0).sqrt(), 0.0)


def _hidden(out: Wav2Vec2Output) -> tuple[Tensor, ...]:
    if out.hidden_states is None:
        raise ValueError("no hidden states: call the model with output_hidden_states=True.")
    return out.hidden_states


def _one_layer(out: Wav2Vec2Output, layer: int) -> Tensor:
    hidden = _hidden(out)
    if not 0 <= layer < len(hidden):
        raise ValueError(
            f"layer={layer}, but this model has {len(hidden) - 1} layers. "
            f"Expected 0 to {len(hidden) - 1}, or -1 for the context."
        )
    return hidden[layer]
