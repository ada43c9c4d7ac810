"""Activation checkpointing: less is kept, the same is learned."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from w2v_plugin.encoder import ContextEncoder
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer

SHAPE = {"dim": 16, "layers": 3, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
DROPS = {"dropout": 0.2, "attention_dropout": 0.2, "activation_dropout": 0.2, "layer_drop": 0.3}


def step(checkpointing: bool, **settings: object) -> dict[str, torch.Tensor]:
    """Loss and gradients of one training step in float64, with every dropout on."""
    torch.manual_seed(0)
    wav2vec2 = Wav2Vec2(**SHAPE, **DROPS, activation_checkpointing=checkpointing, **settings)  # type: ignore[arg-type]
    model = Wav2Vec2Pretraining(wav2vec2, GumbelQuantizer(8, codes=20, dim=8), dim=8).double()
    torch.manual_seed(1)
    loss = model(torch.randn(3, 16000, dtype=torch.float64)).loss
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"norm_first": True, "extractor_norm": "layer"},
        {"norm_first": True, "conformer": "rotary"},
    ],
    ids=["post-norm", "pre-norm", "conformer"],
)
def test_the_same_loss_and_gradients(settings: dict[str, object]) -> None:
    """With dropout and layer drop on; the order of operations is the same, so no tolerance."""
    plain, again = step(False, **settings), step(True, **settings)
    assert plain.keys() == again.keys() and len(plain) > 30
    for name, value in plain.items():
        assert torch.equal(value, again[name]), name


def kept_bytes(job: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        job()
    return sum(kept.values())


def test_less_is_kept() -> None:
    """About what goes into each layer: a fraction of what a layer computes."""
    x = torch.randn(2, 100, 64, requires_grad=True)
    sizes = {}
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = ContextEncoder(64, 4, 4, 256, dropout=0.1, activation_checkpointing=checkpointing)
        outputs = []
        sizes[checkpointing] = kept_bytes(lambda e=encoder, o=outputs: o.append(e(x)))  # type: ignore[misc]
    assert sizes[True] < 0.5 * sizes[False]


def test_evaluation_does_not_pay() -> None:
    """Without gradients nothing is computed twice and nothing changes."""
    torch.manual_seed(0)
    encoder = ContextEncoder(16, 2, 2, 32, activation_checkpointing=True).eval()
    x = torch.randn(1, 10, 16)
    calls: list[object] = []
    encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        encoder(x)
    assert len(calls) == 1
