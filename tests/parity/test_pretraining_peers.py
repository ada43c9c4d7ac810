"""The peer that stands in for fairseq in the benchmarks computes what transformers computes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from fairseq_pretraining import Fairseq
from pretraining_peers import Drawn, Shape, Transformers

SMALL = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7, "codes": 12}


def quiet_gumbel(scores: Tensor, tau: float, hard: bool) -> Tensor:
    """Straight-through softmax without noise, which would be drawn in different shapes."""
    soft = (scores / tau).softmax(-1)
    return F.one_hot(soft.argmax(-1), scores.shape[-1]) + soft - soft.detach()


@pytest.mark.parametrize("layer_norm", [False, True])
def test_fairseq_arithmetic_is_transformers(layer_norm: bool, monkeypatch) -> None:
    """Loss and every gradient, an odd number of frames, equal weights, masks and negatives."""
    shape = Shape(**SMALL, positions=(8, 4), target_dim=8, dropout=0.0, layer_norm=layer_norm)
    torch.manual_seed(0)
    np.random.seed(0)
    theirs, fairseq = Transformers(shape).double(), Fairseq(shape).double()
    fairseq.load_state_dict(theirs.state_dict())
    fairseq.GRADIENT_SCALE, fairseq.PENALTY_WEIGHT = 1.0, 0.0  # transformers has neither
    monkeypatch.setattr(F, "gumbel_softmax", quiet_gumbel)
    monkeypatch.setattr(Tensor, "float", lambda self: self)  # lift the float32 islands

    drawn = fairseq.draw(2, 49)
    masked = drawn.mask.nonzero()[:, 1].view(2, -1)  # frames of the masked ones
    flat = torch.zeros(2, 49, 100, dtype=torch.long)
    places = masked + torch.arange(2)[:, None] * 49
    assert drawn.negatives is not None
    flat[drawn.mask] = places.flatten()[drawn.negatives].view(-1, 100)

    wavs = torch.randn(2, 16000, dtype=torch.float64)
    expected, found = theirs(wavs, Drawn(drawn.mask, flat)), fairseq(wavs, drawn)
    # fairseq adds 1e-7 within the logarithm of the perplexity, which changes the loss by 1e-7
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0.0)
    expected.backward()
    found.backward()
    reference = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in fairseq.named_parameters():
        scale = max(float(reference[name].abs().max()), 0.01)  # a bias of keys has none
        torch.testing.assert_close(
            parameter.grad, reference[name], rtol=0.0, atol=1e-6 * scale, msg=name
        )
