"""Pretraining: micro-batches add up, targets learn, masked frames stay secret."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.losses import sample_negatives
from w2v_plugin.masking import masked_indices, span_mask
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import PretrainingOutput, Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer, NearestQuantizer

KINDS = pytest.mark.parametrize("kind", [GumbelQuantizer, NearestQuantizer])
FAMILIES: dict[str, dict[str, Any]] = {
    "group": {},
    "layer": {"extractor_norm": "layer", "conv_bias": True, "norm_first": True},
}


def make(kind: type, family: str = "layer", **kwargs: Any) -> Wav2Vec2Pretraining:
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    shape |= {"positions_kernel": 8, "positions_groups": 4}
    wav2vec2 = Wav2Vec2(**shape, **FAMILIES[family])
    quantizer = kind(8, groups=2, codes=12, dim=8)
    return Wav2Vec2Pretraining(wav2vec2, quantizer, dim=8, **{"negatives": 10, **kwargs}).double()


def wavs(batch: int = 4, samples: int = 16000) -> Tensor:
    return torch.randn(
        batch, samples, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def gradients(model: Wav2Vec2Pretraining, losses: list[Tensor]) -> dict[str, Tensor]:
    """Summed over the losses, by parameter."""
    model.zero_grad()
    for loss in losses:
        loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


# --- golden properties ---------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [(2, 2), (1, 1, 1, 1), (3, 1)])
def test_micro_batches_add_up(kind: type, family: str, sizes: tuple[int, ...]) -> None:
    """Sums of losses and of gradients are those of the one big batch, whatever its split.

    Lengths differ, so that the mean-like penalty and the nonlinear diversity are switched off;
    commitment is a mean over masked frames times their number, and adds up.
    """
    model = make(kind, family, penalty_weight=0.0, diversity_weight=0.0)
    model.train(kind is NearestQuantizer)  # Gumbel noise would differ; nothing else is random
    audio, wav_lens = wavs(), torch.tensor([1.0, 0.8, 0.45, 0.6], dtype=torch.float64)
    frames = model.wav2vec2.extractor.frame_lengths((wav_lens * 16000).long())
    mask = span_mask(frames, 49, prob=0.65, length=10)
    negatives = sample_negatives(mask.sum(1), int(mask.sum(1).max()), 10)
    whole = model(audio, wav_lens, mask=mask, negatives=negatives)
    parts: list[PretrainingOutput] = []
    for rows in torch.arange(4).split(sizes):
        width = int(mask[rows].sum(1).max())
        drawn = {"mask": mask[rows], "negatives": negatives[rows, :width]}
        parts.append(model(audio[rows], wav_lens[rows], **drawn))
    assert sum(int(part.contrastive.count) for part in parts) == int(whole.contrastive.count)
    total = sum(part.loss.item() for part in parts)
    assert total == pytest.approx(whole.loss.item(), rel=1e-12)  # float64 sums
    expected = gradients(model, [whole.loss])
    found = gradients(model, [part.loss for part in parts])
    assert expected.keys() == found.keys()
    for name in expected:
        # gradients of sums over 100 frames; a wrong division would be off by a factor
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-10, msg=name)


def test_penalty_adds_up_over_equal_lengths() -> None:
    """Equal lengths, equal masks: the penalty's mean is weighted by masked frames, exactly."""
    model = make(NearestQuantizer, diversity_weight=0.0)
    audio = wavs()
    mask = span_mask(torch.full((1,), 49), 49, prob=0.65, length=10).expand(4, 49)
    negatives = sample_negatives(mask.sum(1), int(mask[0].sum()), 10)
    whole = model(audio, mask=mask, negatives=negatives).loss
    parts = [
        model(audio[i : i + 2], mask=mask[:2], negatives=negatives[i : i + 2]).loss for i in (0, 2)
    ]
    assert sum(p.item() for p in parts) == pytest.approx(whole.item(), rel=1e-12)


@KINDS
def test_targets_learn(kind: type) -> None:
    """Contrastive loss alone moves everything that makes the targets."""
    model = make(kind)
    loss = model(wavs()).contrastive.loss
    names = {"quantizer", "project_targets", "project_context", "wav2vec2.extractor"}
    names |= {"wav2vec2.encoder", "wav2vec2.mask_embedding", "wav2vec2.projection.norm"}
    found = gradients(model, [loss])
    for name in names:
        assert any(g.any() for n, g in found.items() if n.startswith(name)), name
    source = "quantizer.logits.weight" if kind is GumbelQuantizer else "quantizer.projection.weight"
    assert found[source].any() and found["project_targets.weight"].any()


@KINDS
def test_every_parameter_has_a_gradient(kind: type) -> None:
    """DistributedDataParallel needs no search for unused ones."""
    found = gradients(model := make(kind), [model(wavs()).loss])
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(bool(g.isfinite().all()) for g in found.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_context_does_not_know_what_is_masked(family: str) -> None:
    """Other latents at masked frames, same context there: bit for bit."""
    model = make(NearestQuantizer, family).eval()
    latents, _ = model.wav2vec2.extract(wavs(2))
    mask = span_mask(torch.full((2,), 49), 49, prob=0.65, length=10)
    other = torch.where(mask[..., None], torch.randn_like(latents), latents)
    assert not torch.equal(other, latents)
    first, second = (model.wav2vec2.contextualize(x, mask=mask).context for x in (latents, other))
    assert torch.equal(first, second)


def test_samples_heard_by_masked_frames_only_do_not_reach_the_context() -> None:
    """The same from the waveform on, for a model without statistics over the utterance."""
    model = make(NearestQuantizer).eval()
    model.wav2vec2.normalize = False
    contexts: list[Tensor] = []
    model.project_context.register_forward_hook(lambda m, inputs, out: contexts.append(inputs[0]))
    mask = torch.zeros(1, 49, dtype=torch.bool)
    mask[:, 20:30] = True
    for begin, end in ((0, 0), (320 * 20 + 80, 320 * 30), (320 * 20 + 79, 320 * 30)):
        audio = wavs(1)
        audio[:, begin:end] = 3.0
        model(audio, mask=mask)
    assert torch.equal(contexts[0], contexts[1])
    assert not torch.equal(contexts[0], contexts[2])  # one sample earlier: frame 19 hears it


# --- what it returns -----------------------------------------------------------------------------


@KINDS
def test_loss_is_the_weighted_sum(kind: type) -> None:
    """contrastive + count * (diversity, penalty, commitment)."""
    out = make(kind, diversity_weight=0.3, penalty_weight=5.0)(wavs())
    extra = 0.3 * out.quantized.diversity + 5.0 * out.penalty + out.quantized.commitment
    torch.testing.assert_close(out.loss, out.contrastive.loss + out.contrastive.count * extra)
    assert int(out.contrastive.count) == int(out.mask.sum()) and out.chance is None


@KINDS
@torch.no_grad()
def test_evaluation_is_repeatable(kind: type) -> None:
    """A generator decides mask, negatives and chance."""
    model, audio = make(kind).eval(), wavs()
    first, again, other = (
        model(audio, chance=True, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.loss, again.loss) and torch.equal(first.mask, again.mask)
    assert first.chance is not None and again.chance is not None
    assert int(first.chance) == int(again.chance) and not torch.equal(first.mask, other.mask)


@pytest.mark.parametrize("negatives", [1, 4, 10])
@torch.no_grad()
def test_chance_is_one_in_the_distinct_candidates(negatives: int) -> None:
    """A random context picks any of the distinct codevector pairs in question."""
    model = make(NearestQuantizer, negatives=negatives).eval()
    audio = wavs(24, 32000)
    found = expected = count = 0.0
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        mask = span_mask(torch.full((24,), 99), 99, prob=0.65, length=10, generator=generator)
        index, _ = masked_indices(mask)
        drawn = sample_negatives(mask.sum(1), index.shape[1], negatives, generator)
        out = model(audio, mask=mask, negatives=drawn, chance=True, generator=generator)
        assert out.chance is not None
        found, count = found + float(out.chance), count + float(out.contrastive.count)
        pairs = out.quantized.codes[..., 0] * 12 + out.quantized.codes[..., 1]
        for row, (own, rivals) in enumerate(zip(pairs, drawn, strict=True)):
            for t in range(int(mask[row].sum())):
                distinct = {*own[rivals[t]].tolist()} - {int(own[t])}
                expected += 1 / (1 + len(distinct)) if distinct else 0.0
    assert found / count == pytest.approx(expected / count, rel=0.1)  # thousands of frames


@KINDS
@pytest.mark.parametrize("samples", [400, 720, 1040])
def test_an_utterance_of_one_to_three_frames_is_harmless(kind: type, samples: int) -> None:
    """At most two masked frames, perhaps none: finite loss and gradients. `collate` counts on
    it when no file of a batch can be read."""
    model = make(kind)
    for audio in (torch.zeros(1, samples, dtype=torch.float64), wavs(2, samples)):
        out = model(audio)
        found = gradients(model, [out.loss])
        assert math.isfinite(out.loss.item())
        assert all(bool(g.isfinite().all()) for g in found.values())
        if samples == 400:
            assert int(out.contrastive.count) == 0 and out.loss.item() == 0.0


@torch.no_grad()
def test_chunks_reach_the_encoder() -> None:
    """The context is chunked, the targets are not."""
    model, audio = make(NearestQuantizer).eval(), wavs()
    free, chunked = (
        model(audio, chunk=chunk, generator=torch.Generator().manual_seed(0))
        for chunk in (None, ChunkConfig(4, 4))
    )
    assert torch.equal(free.quantized.codes, chunked.quantized.codes)
    assert not torch.equal(free.loss, chunked.loss)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("codes", [160, 320])
def test_a_fresh_model_knows_nothing(family: str, codes: int) -> None:
    """Contrastive loss at the start: ln 101 = 4.615 and about 0.05. Codevectors in [0, 1] share
    their mean; independent directions would exceed it by 1 / (2 dim temperature^2) = 0.195."""
    losses = []
    for seed in range(2):
        torch.manual_seed(seed)
        shape = {"dim": 64, "layers": 1, "heads": 4, "ffn_dim": 128, "channels": (64,) * 7}
        wav2vec2 = Wav2Vec2(**shape, **FAMILIES[family])
        model = Wav2Vec2Pretraining(wav2vec2, GumbelQuantizer(64, codes=codes, dim=256), dim=256)
        out = model(torch.randn(2, 64000)).contrastive
        losses.append(out.loss.item() / int(out.count))
    excess = sum(losses) / 2 - math.log(101)
    assert -0.05 < excess < 0.1
