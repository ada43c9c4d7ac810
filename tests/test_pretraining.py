"""Pretraining: micro-batches add up, targets learn, masked frames stay secret."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.frames import valid_frames
from w2v_plugin.losses import contrastive_loss, feature_penalty, sample_negatives
from w2v_plugin.masking import masked_indices, most_masked, span_mask
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import PretrainingOutput, Wav2Vec2Pretraining, take
from w2v_plugin.quantizer import GumbelQuantizer, NearestQuantizer

EMA = partial(NearestQuantizer, codebook="ema")
KINDS = pytest.mark.parametrize("kind", [GumbelQuantizer, NearestQuantizer])
FAMILIES: dict[str, dict[str, Any]] = {
    "group": {},
    "layer": {"extractor_norm": "layer", "conv_bias": True, "norm_first": True},
}


def make(kind: Any, family: str = "layer", **kwargs: Any) -> Wav2Vec2Pretraining:
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


@pytest.mark.parametrize("kind", [GumbelQuantizer, NearestQuantizer, EMA])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [(2, 2), (1, 1, 1, 1), (3, 1)])
def test_micro_batches_add_up(kind: Any, family: str, sizes: tuple[int, ...]) -> None:
    """Sums of losses and of gradients are those of the one big batch, whatever its split.

    Contrastive loss, penalty and commitment, with utterances of different lengths and numbers of
    masked frames. The diversity is nonlinear, that of each micro-batch, and switched off here.
    """
    model = make(kind, family, penalty_weight=10.0, diversity_weight=0.0)
    model.train(kind is not GumbelQuantizer)  # Gumbel noise would differ; nothing else is random
    audio, wav_lens = wavs(), torch.tensor([1.0, 0.8, 0.45, 0.6], dtype=torch.float64)
    frames = model.wav2vec2.extractor.frame_lengths((wav_lens * 16000).long())
    mask = span_mask(frames, 49, prob=0.65, length=10)
    mask[2] = False
    mask[2, 3] = True  # one masked frame, without negatives: counts for nothing
    negatives = sample_negatives(mask.sum(1), int(mask.sum(1).max()), 10)
    whole = model(audio, wav_lens, mask=mask, negatives=negatives)
    parts: list[PretrainingOutput] = []
    for rows in torch.arange(4).split(sizes):
        width = int(mask[rows].sum(1).max())
        inside = negatives[rows, :width].clamp(max=width - 1)  # moves only those of utterance 2
        drawn = {"mask": mask[rows], "negatives": inside}
        parts.append(model(audio[rows], wav_lens[rows], **drawn))
    counts = [int(part.contrastive.count) for part in parts]
    assert sum(counts) == int(whole.contrastive.count) and len(set(counts)) > 1
    for name in ("loss", "penalty"):
        total = sum(getattr(part, name).item() for part in parts)
        assert total == pytest.approx(getattr(whole, name).item(), rel=1e-12)  # float64 sums
    expected = gradients(model, [whole.loss])
    found = gradients(model, [part.loss for part in parts])
    assert expected.keys() == found.keys()
    for name in expected:
        # gradients of sums over 100 frames; a wrong division would be off by a factor
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-10, msg=name)


def test_penalty_is_the_published_one_for_equal_utterances() -> None:
    """Equal lengths and counts, as after cropping: mean square of all latents, times the count."""
    model = make(NearestQuantizer)
    mask = span_mask(torch.full((1,), 49), 49, prob=0.65, length=10).expand(4, 49)
    out = model(wavs(), mask=mask)
    expected = out.contrastive.count * model.wav2vec2.extract(wavs())[0].square().mean()
    assert out.penalty.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 0.0])
def test_features_get_a_share_of_their_gradient(scale: float) -> None:
    """`feature_grad_scale` multiplies what reaches the extractor, penalty included, and nothing
    else; 0 freezes it."""
    found = []
    for value in (1.0, scale):
        model = make(NearestQuantizer)
        model.wav2vec2.feature_grad_scale = value
        torch.manual_seed(0)
        found.append(gradients(model, [model(wavs()).loss]))
    full, scaled = found
    for name, gradient in full.items():
        if not name.startswith("wav2vec2.extractor"):
            torch.testing.assert_close(scaled[name], gradient, rtol=1e-12, atol=1e-14, msg=name)
        elif scale == 0:
            assert name not in scaled
        else:
            torch.testing.assert_close(scaled[name], scale * gradient, rtol=1e-9, atol=1e-12)


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
    """contrastive + count * diversity + penalty + commitment; all but the diversity are sums."""
    out = make(kind, diversity_weight=0.3, penalty_weight=5.0)(wavs())
    count = out.contrastive.count
    extra = 0.3 * count * out.quantized.diversity + 5.0 * out.penalty + out.quantized.commitment
    torch.testing.assert_close(out.loss, out.contrastive.loss + extra)
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
    model.wav2vec2.normalize = False
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


class Waiting(TorchDispatchMode):
    """Refuses what makes an accelerator wait: numbers read back, sizes that depend on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"), name
        if name == "index":
            assert all(index is None or index.dtype != torch.bool for index in args[1])
        return func(*args, **(kwargs or {}))


@KINDS
def test_head_and_masks_never_wait_for_an_accelerator(kind: type) -> None:
    """Masks, negatives, quantizer, losses and their gradients, as drawn where it would matter."""
    model = make(kind)
    frames, latents = torch.tensor([49, 30]), torch.randn(2, 49, 8, dtype=torch.float64)
    context = torch.randn(2, 49, 8, dtype=torch.float64)
    with Waiting():
        mask = span_mask(frames, 49, prob=0.65, length=10, equal_counts=True)
        index, valid = masked_indices(mask, most_masked(49, prob=0.65, length=10))
        negatives = sample_negatives(valid.sum(1), index.shape[1], 10)
        out = model.quantizer(take(latents, index), valid)
        targets = model.project_targets(out.vectors)
        rows = {"valid": valid, "codes": out.codes}
        loss = contrastive_loss(take(context, index), targets, negatives, **rows).loss
        penalty = feature_penalty(latents, valid_frames(frames, 49)).sum()
        (loss + out.commitment + out.diversity + penalty).backward()


def test_a_wider_bound_changes_nothing() -> None:
    """Losses with room for the most masked frames are those with just enough."""
    model, audio = make(NearestQuantizer), wavs()
    mask = span_mask(torch.full((4,), 49), 49, prob=0.65, length=10)
    negatives = sample_negatives(mask.sum(1), most_masked(49, prob=0.65, length=10), 10)
    exact = model(audio, mask=mask, negatives=negatives[:, : int(mask.sum(1).max())])
    index, valid = masked_indices(mask, negatives.shape[1])
    latents, _ = model.wav2vec2.extract(audio)
    out = model.wav2vec2.contextualize(latents, mask=mask)
    quantized = model.quantizer(take(model.wav2vec2.projection.norm(latents), index), valid)
    wide = contrastive_loss(
        model.project_context(take(out.context, index)),
        model.project_targets(quantized.vectors),
        negatives,
        valid=valid,
        codes=quantized.codes,
    )
    assert negatives.shape[1] > mask.sum(1).max()
    assert wide.loss.item() == pytest.approx(exact.contrastive.loss.item(), rel=1e-12)
    assert torch.equal(quantized.counts, exact.quantized.counts)
    assert quantized.commitment.item() == pytest.approx(exact.quantized.commitment.item())


# --- starting and refusing -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [GumbelQuantizer, NearestQuantizer, EMA])
@pytest.mark.parametrize("warm", [False, True])
def test_codes_start_from_speech(kind: Any, warm: bool) -> None:
    """More codes in use than a random start has, with and without directions."""
    model = make(kind).eval()
    audio, wav_lens = wavs() * torch.linspace(0.1, 1, 16000), torch.tensor([1.0, 0.5, 1.0, 0.7])
    seen: list[Tensor] = []

    def directions(normed: Tensor) -> Tensor:
        seen.append(normed)
        return torch.eye(8, dtype=normed.dtype)

    before = model(audio, wav_lens).quantized.code_perplexity
    model.init_codes(audio, wav_lens, directions if warm else None)
    after = model(audio, wav_lens).quantized.code_perplexity
    assert bool((after > 3).all()) and float(after.mean()) > float(before.mean())
    if warm:
        lengths = model.wav2vec2.extractor.frame_lengths((wav_lens * 16000).long())
        assert seen[0].shape == (int(lengths.sum()), 8)  # no padding


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"negatives": 0}, "negatives=0, expected at least 1"),
        ({"mask_length": 0}, "mask_length=0, expected at least 1"),
        ({"mask_prob": 1.5}, "mask_prob=1.5, expected a share"),
        ({"mask_prob": -0.1}, "mask_prob=-0.1, expected a share"),
        ({"dim": 0}, "dim=0, expected at least 1"),
        ({"temperature": 0.0}, "temperature=0.0, expected more than 0"),
        ({"diversity_weight": -1.0}, "diversity_weight=-1.0"),
        ({"penalty_weight": -1.0}, "penalty_weight=-1.0"),
        ({"quantizer_dropout": 1.5}, "dropout probability has to be between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Wav2Vec2Pretraining(make(NearestQuantizer).wav2vec2, NearestQuantizer(8), **wrong)


def test_a_quantizer_for_other_latents_is_refused() -> None:
    with pytest.raises(ValueError, match="channels=512, but the extractor makes latents of 8"):
        Wav2Vec2Pretraining(make(NearestQuantizer).wav2vec2, GumbelQuantizer())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 3}, "dim=16 is not divisible by heads=3"),
        ({"positions_groups": 3}, "dim=16 is not divisible by groups=3"),
    ],
)
def test_a_model_that_does_not_divide_is_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Wav2Vec2(**{"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, **wrong})
