"""padding="exact": an utterance gives the same answer alone and in any batch, for both families.

Padded or packed, in float32 as loaded or optimized, and in 8 bits.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from w2v_plugin import products
from w2v_plugin.compression import optimize
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.model import Wav2Vec2

LENGTHS = (16001, 400, 719, 720, 5000, 12345)  # 719 samples are one frame, 720 are two
FAMILIES = {
    "group": {"extractor_norm": "group", "norm_first": False, "conv_bias": False},
    "layer": {"extractor_norm": "layer", "norm_first": True, "conv_bias": True},
}


def random_model(family: str, *, normalize: bool) -> nn.Module:
    torch.manual_seed(0)
    shape = {"dim": 48, "layers": 3, "heads": 4, "ffn_dim": 96, "channels": (24,) * 7}
    wav2vec2 = Wav2Vec2(**shape, **FAMILIES[family], normalize=normalize)
    model = Wav2Vec2CTC(wav2vec2, vocab_size=20).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


# the contract is 1e-4 in float32; matrix products of other shapes round differently, by about 1e-6
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_batch_equals_single(family: str, normalize: bool, dtype, tolerance: float) -> None:
    """Logits and every hidden state, with garbage of thousands of times the level as padding."""
    model = random_model(family, normalize=normalize).to(dtype)
    wavs = 1e3 * torch.randn(len(LENGTHS), max(LENGTHS), dtype=dtype)
    for row, n in zip(wavs, LENGTHS, strict=True):
        row[:n] = 0.1 * torch.randn(n, dtype=dtype)
    batch = model(wavs, torch.tensor(LENGTHS) / max(LENGTHS), output_hidden_states=True)
    for i, n in enumerate(LENGTHS):
        single = model(wavs[i : i + 1, :n], output_hidden_states=True)
        frames = single.logits.shape[1]
        assert batch.frame_lengths[i] == frames
        pairs = zip(
            (*batch.hidden_states, batch.logits),
            (*single.hidden_states, single.logits),
            strict=True,
        )
        for x, y in pairs:
            torch.testing.assert_close(x[i, :frames], y[0], rtol=0.0, atol=tolerance)


def ways(model: nn.Module, wavs: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """Logits of each utterance by all ways there are."""
    batch = nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    lengths = torch.tensor([len(wav) for wav in wavs])
    outs = {
        "alone": [model(wav[None]) for wav in wavs],
        "padded": model(batch, lengths / lengths.max()).rows(),
        "packed": model.forward_packed(wavs),
        "packed alone": [model.forward_packed([wav])[0] for wav in wavs],
    }
    return {way: [out.logits[0] for out in each] for way, each in outs.items()}


# float32 as above. 8 bits: where nothing is padded each value is the same to the last bit until
# the head; a padded batch has attention in another order, and a value within 1e-7 of the border
# between two steps may then take the other, which costs less than quantizing did
@pytest.mark.skipif(not products.available(), reason="needs oneDNN on x86")
@pytest.mark.parametrize(
    ("precision", "packed", "padded"),
    [(None, 1e-5, 1e-5), ("fp32", 1e-5, 1e-5), ("int8", 1e-5, 0.1)],
)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_all_ways_agree(family: str, precision: str | None, packed: float, padded: float) -> None:
    """One answer per utterance, however it is run."""
    model = random_model(family, normalize=True)
    if precision is not None:
        model = optimize(model, precision)
    found = ways(model, [0.1 * torch.randn(n) for n in LENGTHS])
    for way, tolerance in (("packed", packed), ("packed alone", packed), ("padded", padded)):
        for x, y in zip(found[way], found["alone"], strict=True):
            torch.testing.assert_close(x, y, rtol=0.0, atol=tolerance)
