"""A published model -> one that can stream: its extractor and input no longer know the future.

Two things take statistics over the whole utterance, which a stream does not have. Both become
numbers that are measured once, on typical audio:

    norm over time of BASE (after the first convolution)  ─► its mean and variance over all of that
                                                             audio, folded into the convolution
    waveforms of mean 0 and variance 1                    ─► as they are; the loudness of that audio
                                                             goes into the first weights

What is lost is that loud and quiet recordings sound alike. Everything else stays, the positional
convolution and attention included: in chunks they are the same operators. What is left to learn is
to do without a future, and continued pretraining or fine-tuning in chunks teaches that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from w2v_plugin.errors import BadAudio
from w2v_plugin.features import ConvLayer, TimeGroupNorm
from w2v_plugin.model import Wav2Vec2


class Likeness(NamedTuple):
    """Mean cosine of frames before and after, 1 for the same: of latents, and of the context."""

    latents: float
    context: float


@torch.no_grad()
def to_streamable(model: Wav2Vec2, wavs: Sequence[Tensor]) -> Wav2Vec2:
    """A copy that can stream and does on `wavs` about what the model did.

    Parameters
    ----------
    model : Wav2Vec2
        Of transformer layers; in evaluation mode.
    wavs : sequence of Tensor
        (samples,) at 16 kHz, half a minute of typical speech in all. Their loudness is what the
        copy expects.

    Returns
    -------
    Wav2Vec2
        With extractor_norm="layer" if it had that, else "none", and normalize=False; in evaluation
        mode.

    Raises
    ------
    BadAudio
        No audio, or silence.
    NotStreamable
        A conformer: its convolutions look ahead.

    Example
    -------
    >>> model = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7).eval()
    >>> wavs = [0.1 * torch.randn(16000), 0.1 * torch.randn(16000)]
    >>> copy = to_streamable(model, wavs)
    >>> copy.check_streamable()
    >>> likeness(model, copy, wavs).context > 0.99
    True
    """
    loudness = torch.cat([torch.zeros(1), *wavs]).square().mean().sqrt()  # mean is 0
    if not float(loudness) > 0:
        raise BadAudio("No audio, or silence. Give half a minute of typical speech.")
    loudness = loudness if model.normalize else torch.ones_like(loudness)
    group = model.extractor.norm == "group"
    changes = {"extractor_norm": "none", "conv_bias": True} if group else {}
    copy = Wav2Vec2(**model.config | {"normalize": False} | changes).eval()
    copy.check_streamable()
    layers: list[ConvLayer] = list(copy.extractor.layers)  # type: ignore[arg-type]
    for layer in layers:
        if group and layer.conv.bias is not None:
            layer.conv.bias.zero_()  # most group-norm models have none
    copy.load_state_dict(model.state_dict(), strict=not group)
    if group:
        weight, bias = _fold(model.extractor.layers[0], wavs, loudness)  # type: ignore[arg-type]
        copy.load_state_dict(
            {"extractor.layers.0.conv.weight": weight, "extractor.layers.0.conv.bias": bias},
            strict=False,
        )
    else:
        layers[0].conv.weight.div_(loudness)
    return copy


def _fold(first: ConvLayer, wavs: Sequence[Tensor], loudness: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the first convolution with its norm folded in, over all of the audio."""
    (kernel,), (stride,) = first.conv.kernel_size, first.conv.stride
    heard = [wav for wav in wavs if len(wav) >= kernel]
    windows = torch.cat([wav.unfold(0, kernel, stride) for wav in heard]) / loudness
    assert isinstance(first.norm, TimeGroupNorm)
    weight, bias = first.norm.fold(first.conv.weight[:, 0], windows[None], None)
    return weight[0][:, None] / loudness, bias[0]


@torch.no_grad()
def likeness(model: Wav2Vec2, copy: Wav2Vec2, wavs: Sequence[Tensor]) -> Likeness:
    """How much `copy` does what `model` does, hearing whole utterances."""
    cosines: list[list[Tensor]] = [[], []]
    for wav in wavs:
        outs = [(m.extract(wav[None])[0], m(wav[None]).context) for m in (model, copy)]
        for found, mine, theirs in zip(cosines, *outs, strict=True):
            found.append(nn.functional.cosine_similarity(mine, theirs, dim=-1)[0])
    return Likeness(*(float(torch.cat(found).mean()) for found in cosines))
