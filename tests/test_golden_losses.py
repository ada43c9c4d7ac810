"""Ten training steps with a fixed seed, to the digit: what a refactoring must leave alone.

Everything is float64 and without dropout, so that another processor's rounding moves the numbers
by about 1e-12 and the tolerance of 1e-6 sees every change of arithmetic. After a change that is
*meant* to alter training, run this file with `-s`, read why the numbers moved, and paste them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import NearestQuantizer

PRETRAINING = [
    10.9080418,
    9.18310716,
    8.28024263,
    7.64957772,
    6.7240199,
    5.77543789,
    4.26166059,
    3.6941631,
    3.49792757,
    3.90049731,
]
CTC = [
    49.25684342,
    31.57696772,
    20.34241502,
    13.81015551,
    9.73049486,
    7.80587575,
    6.70707061,
    5.97839565,
    5.5290233,
    5.09501827,
]


def small(norm: str) -> Wav2Vec2:
    return Wav2Vec2(
        dim=16,
        layers=2,
        heads=2,
        ffn_dim=32,
        channels=(8,) * 7,
        extractor_norm=norm,
        conv_bias=norm == "layer",
        norm_first=norm == "layer",
        positions_kernel=16,
        positions_groups=4,
    )


def batch() -> tuple[Tensor, Tensor]:
    """Two seconds of two decaying chirps, the second one shorter."""
    time = torch.arange(32000, dtype=torch.float64) / 16000
    rate = torch.tensor([[300.0], [190.0]], dtype=torch.float64)
    wavs = torch.sin(rate * (1 + time) ** 2) * torch.exp(-time)
    return wavs, torch.tensor([1.0, 0.75])


def descend(model: nn.Module, step: Callable[[], Tensor]) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = step()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if isinstance(model, Wav2Vec2Pretraining):
            model.quantizer.after_update()
        losses.append(loss.item())
    print([round(value, 8) for value in losses])
    return losses


def test_ten_steps_of_pretraining() -> None:
    """Layer-norm family, nearest-codeword quantizer, all four losses."""
    torch.manual_seed(1)
    model = Wav2Vec2Pretraining(
        small("layer"), NearestQuantizer(8, codes=12, dim=8, restart_every=3), dim=8, negatives=20
    ).double()
    wavs, wav_lens = batch()

    def step() -> Tensor:
        out = model(wavs, wav_lens)
        model.quantizer.observe(out.quantized)
        return out.loss / out.contrastive.count

    expected = torch.tensor(PRETRAINING, dtype=torch.float64)
    found = torch.tensor(descend(model, step), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_ten_steps_of_ctc() -> None:
    """Group-norm family with time and channel masks."""
    torch.manual_seed(2)
    model = Wav2Vec2CTC(
        small("group"), 32, mask_prob=0.3, channel_mask_prob=0.2, channel_mask_length=4
    ).double()
    wavs, wav_lens = batch()
    tokens = torch.tensor([[7, 5, 6, 6, 4, 8], [9, 5, 4, 5, 0, 0]])

    def step() -> Tensor:
        out = model(wavs, wav_lens)
        return nn.functional.ctc_loss(
            out.logits.log_softmax(-1).transpose(0, 1),
            tokens,
            out.frame_lengths,
            torch.tensor([6, 4]),
        )

    expected = torch.tensor(CTC, dtype=torch.float64)
    found = torch.tensor(descend(model, step), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
