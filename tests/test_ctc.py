"""The CTC model: heads, masks in training only, and what SpeechBrain's decoders get."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.ctc import CTCLogProbs, Wav2Vec2CTC
from w2v_plugin.model import Wav2Vec2

WAV_LENS = torch.tensor([1.0, 0.63, 0.1])


def make(vocab_size: int | None = 7, family: str = "group", **kwargs: Any) -> Wav2Vec2CTC:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32}
    shape |= {"channels": (8,) * 7, "positions_kernel": 8, "positions_groups": 4}
    wav2vec2 = Wav2Vec2(**shape, extractor_norm=family, normalize=family == "group")
    return Wav2Vec2CTC(wav2vec2, vocab_size, **kwargs)


def wavs() -> Tensor:
    return torch.randn(3, 8000, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("family", "chunk"), [("group", None), ("layer", None), ("layer", ChunkConfig(4, 4))]
)
@pytest.mark.parametrize("wav_lens", [None, WAV_LENS])
@torch.no_grad()
def test_kept_latents_replace_the_waveforms(
    family: str, wav_lens: Tensor | None, chunk: ChunkConfig | None
) -> None:
    """The two halves, `extract` and the rest, give what the whole gives: bit for bit."""
    model = make(family=family).eval()
    whole = model(wavs(), wav_lens, chunk=chunk, output_hidden_states=True)
    latents = model.wav2vec2.extract(wavs(), wav_lens)
    parts = model(None, latents=latents, chunk=chunk, output_hidden_states=True)
    assert torch.equal(parts.logits, whole.logits)
    assert torch.equal(parts.frame_lengths, whole.frame_lengths)
    assert all(map(torch.equal, parts.hidden_states, whole.hidden_states))


@torch.no_grad()
def test_logits_are_the_head_of_the_context() -> None:
    model = make(head=(head := nn.Linear(16, 5)), vocab_size=None).eval()
    out = model(wavs(), WAV_LENS)
    assert model.head is head and out.logits.shape == (3, 24, 5)
    torch.testing.assert_close(out.logits, head(model.wav2vec2(wavs(), WAV_LENS).context))
    assert out.frame_lengths.tolist() == [24, 15, 2]  # 8000, 5040 and 800 samples


def test_a_head_or_a_size_but_not_both() -> None:
    for kwargs in ({"vocab_size": None}, {"vocab_size": 7, "head": nn.Linear(16, 7)}):
        with pytest.raises(ValueError, match=r"either vocab_size .* or head"):
            make(**kwargs)


def test_wavs_or_latents_are_needed() -> None:
    with pytest.raises(AssertionError, match="give wavs or latents"):
        make()(None)


# --- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mask_prob", "channel_mask_prob"])
@torch.no_grad()
def test_masks_are_drawn_in_training_only(kind: str) -> None:
    """Evaluation repeats itself; training does not; without a probability it does."""
    model = make(**{kind: 0.6}, mask_length=3, channel_mask_length=4).eval()
    assert torch.equal(model(wavs()).logits, model(wavs()).logits)
    assert model.draw_masks(torch.zeros(3, 24, 8), None) == (None, None)
    model.train()
    assert not torch.equal(model(wavs()).logits, model(wavs()).logits)
    plain = make().train()
    assert torch.equal(plain(wavs()).logits, plain(wavs()).logits)


def test_masks_have_their_shapes_and_shares() -> None:
    """Time masks inside the utterance; channel masks over `dim` channels, perhaps none."""
    model = make(
        mask_prob=0.5, mask_length=3, channel_mask_prob=0.25, channel_mask_length=2
    ).train()
    lengths = torch.tensor([24, 10]).repeat(300)
    time, channel = model.draw_masks(torch.zeros(600, 24, 8), lengths)
    assert time is not None and channel is not None
    assert time.shape == (600, 24) and channel.shape == (600, 16)
    assert not time[1::2, 10:].any() and time[1::2, :10].any()
    # of 24 frames 4 spans of 3 that may overlap: 1 - (1 - 1 / 8)^4 = 41 %
    assert abs(float(time[::2].double().mean()) - 0.41) < 0.05
    assert abs(float(channel.double().mean()) - 0.22) < 0.05  # 2 spans of 2 of 16 channels


def test_masked_frames_hear_the_embedding_and_channels_are_silent() -> None:
    """What the encoder gets: the mask embedding, or zeros."""
    model = make(mask_prob=0.5, mask_length=3, channel_mask_prob=0.3, channel_mask_length=2).train()
    seen: list[Tensor] = []
    model.wav2vec2.encoder.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    torch.manual_seed(5)
    model(wavs())
    torch.manual_seed(5)
    time, channel = model.draw_masks(torch.zeros(3, 24, 8), None)
    assert time is not None and channel is not None and time.any() and channel.any()
    silent = channel[:, None].expand_as(seen[0])
    expected = model.wav2vec2.mask_embedding.expand_as(seen[0])
    assert not seen[0][silent].any()
    masked = time[..., None] & ~silent
    assert torch.equal(seen[0][masked], expected[masked])
    assert not bool((seen[0] == expected)[~masked].any())


# --- SpeechBrain ---------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", [0, 3])
@torch.no_grad()
def test_padded_frames_are_certain_blanks(blank: int) -> None:
    """Valid frames hold log-probabilities that sum to 1; behind them only the blank is left."""
    model = make().eval()
    log_probs = CTCLogProbs(model, blank).eval()(wavs(), WAV_LENS)
    out = model(wavs(), WAV_LENS)
    certain = torch.full((7,), float("-inf"))
    certain[blank] = 0.0
    for row, logits, frames in zip(log_probs, out.logits, out.frame_lengths, strict=True):
        assert torch.equal(row[:frames], logits[:frames].log_softmax(-1))
        assert bool((row[frames:] == certain).all())
    # float32 sums of 7 probabilities
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 24), rtol=0.0, atol=1e-6)


@torch.no_grad()
def test_without_lengths_nothing_is_padding() -> None:
    log_probs = CTCLogProbs(make().eval())(wavs())
    assert log_probs.dtype == torch.float32 and bool(log_probs.isfinite().all())


def test_a_frozen_extractor_needs_no_gradient() -> None:
    """`freeze_extractor` stops the graph at the latents; the rest still learns."""
    model = make()
    model.wav2vec2.freeze_extractor()
    latents, _ = model.wav2vec2.extract(wavs())
    assert not latents.requires_grad
    model(wavs()).logits.sum().backward()
    assert all(p.grad is None for p in model.wav2vec2.extractor.parameters())
    assert model.wav2vec2.projection.linear.weight.grad.any()


def frozen(seed: int = 0, **kwargs: Any) -> Wav2Vec2:
    torch.manual_seed(seed)
    model = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7, **kwargs)
    model.freeze_extractor()
    return model


@pytest.mark.parametrize("norm", ["group", "layer", "none"])
@pytest.mark.parametrize("padding", ["exact", "mask", "reference"])
def test_a_frozen_extractor_hears_the_same(norm, padding) -> None:
    """In tiles or not, at any length, one row shorter than a frame; beyond it nothing matters."""
    model = frozen(extractor_norm=norm, padding=padding, conv_bias=norm != "group")
    audio, wav_lens = torch.randn(4, 24000), torch.tensor([1.0, 0.61, 0.03, 0.01])
    expected, lengths = copy.deepcopy(model).double().extract(audio.double(), wav_lens.double())
    latents, frozen_lengths = model.extract(audio, wav_lens)
    assert lengths is not None and lengths[-1] == 0
    assert frozen_lengths is not None and torch.equal(frozen_lengths, lengths)
    whole = latents.shape[1]
    for row, other, n in zip(latents, expected, lengths.tolist(), strict=True):
        n = n if padding == "exact" else whole
        # float32 rounding, seven layers deep
        torch.testing.assert_close(row[:n].double(), other[:n], rtol=0.0, atol=1e-5)


def test_a_frozen_extractor_still_loads_weights() -> None:
    """What is packed never outlives a call, and is no part of the model."""
    model, other = frozen(), frozen(seed=1)
    names = list(model.state_dict())
    before, _ = model.extract(wavs())
    model.load_state_dict(other.state_dict())
    after, _ = model.extract(wavs())
    assert list(model.state_dict()) == names
    assert not torch.allclose(before, after, atol=1e-2)
    # float32 rounding, seven layers deep
    torch.testing.assert_close(after, other.extract(wavs())[0], rtol=0.0, atol=1e-5)


def test_a_frozen_extractor_in_other_types() -> None:
    """Tiles are float32's alone: after a move, and under autocast, the plain path runs."""
    model = frozen()
    single, _ = model.extract(wavs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, _ = model.extract(wavs())
    assert half.dtype == torch.bfloat16
    # 8 bits of bfloat16, seven layers deep
    torch.testing.assert_close(half.float(), single, rtol=0.1, atol=0.1)
    double, _ = model.double().extract(wavs())
    assert double.dtype == torch.float64
    # float32 rounding, seven layers deep
    torch.testing.assert_close(single.double(), double, rtol=0.0, atol=1e-5)


def test_head_only_keeps_no_graph_of_the_body() -> None:
    """The same logits, masks and dropout included; only the head has gradients."""
    model = make(mask_prob=0.5, mask_length=3, dropout=0.2).train()
    torch.manual_seed(3)
    whole = model(wavs(), WAV_LENS).logits
    torch.manual_seed(3)
    out = model(wavs(), WAV_LENS, head_only=True)
    assert torch.equal(out.logits, whole) and not out.context.requires_grad
    out.logits.sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        "head.weight",
        "head.bias",
    }
