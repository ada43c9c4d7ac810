"""Random models saved by transformers load strictly and answer as transformers does."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
)
from transformers.models.wav2vec2.modeling_wav2vec2 import (
    _compute_mask_indices,
    _sample_negative_indices,
)

from w2v_plugin.checkpoints import load_checkpoint
from w2v_plugin.conversion import convert, load_pretraining
from w2v_plugin.folders import save_pretrained
from w2v_plugin.hf_checkpoints import hf_name
from w2v_plugin.hf_export import export_hf
from w2v_plugin.pretraining import Wav2Vec2Pretraining

TOLERANCE = 1e-5  # float32 rounding of different operation orders; values are of order 1
FAMILIES = {
    "group": {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False},
    "group_bias": {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": True},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}
LENGTHS = (16000, 9123, 400)


@pytest.fixture(params=FAMILIES)
def config(request: pytest.FixtureRequest) -> Wav2Vec2Config:
    return Wav2Vec2Config(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        conv_dim=(24,) * 7,
        vocab_size=20,
        num_codevectors_per_group=12,
        codevector_dim=16,
        proj_codevector_dim=12,
        **dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout"), 0.0),
        **dict.fromkeys(("feat_proj_dropout", "feat_quantizer_dropout", "layerdrop"), 0.0),
        **FAMILIES[request.param],
    )


def random_model(kind: type[nn.Module], config: Wav2Vec2Config) -> nn.Module:
    """Fresh norms are all ones and zeros: scatter everything, so that no two can be confused."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def waveforms() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [0.1 * rng.standard_normal(n).astype(np.float32) for n in LENGTHS]


def raw_batch() -> tuple[Tensor, Tensor]:
    """Ours: raw waveforms with garbage in the padding, relative lengths."""
    wavs = 7.0 * torch.ones(len(LENGTHS), max(LENGTHS))
    for row, wav in zip(wavs, waveforms(), strict=True):
        row[: len(wav)] = torch.from_numpy(wav)
    return wavs, torch.tensor(LENGTHS) / max(LENGTHS)


def hf_batch() -> tuple[Tensor, Tensor]:
    """Theirs: normalized by their own feature extractor, zeros in the padding, a mask."""
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    batch = extractor(waveforms(), sampling_rate=16000, padding=True, return_tensors="pt")
    return batch.input_values, batch.attention_mask


def deviation(ours: Tensor, theirs: Tensor, frame_lengths: Tensor) -> float:
    """Largest difference at valid frames."""
    return max(
        float((x[:n] - y[:n]).abs().max())
        for x, y, n in zip(ours, theirs, frame_lengths.tolist(), strict=True)
    )


def check(ours, theirs, frames: Tensor) -> None:
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    for x, y in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert deviation(x, y, frames) < TOLERANCE
    assert deviation(ours.logits, theirs.logits, frames) < TOLERANCE


@torch.no_grad()
def test_single_utterances_give_the_reference_logits(config, tmp_path: Path) -> None:
    """Without padding there is one right answer, in every padding mode."""
    theirs = random_model(Wav2Vec2ForCTC, config)
    theirs.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path)
    assert not ours.training
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    for wav in waveforms():
        values = extractor(wav, sampling_rate=16000, return_tensors="pt").input_values
        expected = theirs(values, output_hidden_states=True)
        for wav_lens in (None, torch.ones(1)):
            out = ours(torch.from_numpy(wav)[None], wav_lens, output_hidden_states=True)
            check(out, expected, out.frame_lengths)


@pytest.mark.parametrize("padding", ["exact", "mask", "reference"])
@torch.no_grad()
def test_padded_batches_agree_mode_by_mode(config, padding: str, tmp_path: Path) -> None:
    """Transformers pads after normalization. "mask" is what it does with a mask, "reference" what
    its processor makes it do: a mask for layer norm, none for group norm. "exact" differs from
    both for group norm on purpose, see test_batch_invariance.py."""
    theirs = random_model(Wav2Vec2ForCTC, config)
    theirs.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path, padding=padding)
    group = config.feat_extract_norm == "group"
    values, mask = hf_batch()
    masked = not (group and padding == "reference")
    expected = theirs(values, mask if masked else None, output_hidden_states=True)
    out = ours(*raw_batch(), output_hidden_states=True)
    if group and padding == "exact":
        assert deviation(out.logits, expected.logits, out.frame_lengths) > 1e-2
        return
    everything = torch.full_like(out.frame_lengths, out.logits.shape[1])
    check(out, expected, out.frame_lengths if masked else everything)


@torch.no_grad()
def test_bare_model_loads(config, tmp_path: Path) -> None:
    """Wav2Vec2Model has no prefix; its last hidden state is our context."""
    theirs = random_model(Wav2Vec2Model, config)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    ours = load_checkpoint(tmp_path)
    wavs = torch.from_numpy(waveforms()[0])[None]
    out, expected = ours(wavs), theirs(wavs)
    assert deviation(out.context, expected.last_hidden_state, out.frame_lengths) < TOLERANCE


class StraightThrough(torch.autograd.Function):
    """Value of `hard`, gradient of `soft`, without the rounding of hard - soft + soft.

    That rounding hides equal codes from transformers, which compares vectors.
    """

    @staticmethod
    def forward(ctx, soft: Tensor, hard: Tensor) -> Tensor:
        return hard

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def quiet_gumbel(logits: Tensor, tau: float = 1, hard: bool = False) -> Tensor:
    """Gumbel-softmax with the noise left out."""
    soft = (logits / tau).softmax(-1)
    return StraightThrough.apply(soft, F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft))


def masked_ranks(mask: np.ndarray, flat: np.ndarray) -> Tensor:
    """Their negatives, flat over (batch * frames), as ours: ranks among the masked frames."""
    frames = mask.shape[1]
    result = torch.zeros(len(mask), int(mask.sum(1).max()), flat.shape[2], dtype=torch.long)
    for row, (masked, index) in enumerate(zip(mask, flat, strict=True)):
        ranks = np.searchsorted(np.flatnonzero(masked), index[masked] - row * frames)
        result[row, : len(ranks)] = torch.from_numpy(ranks)
    return result


def both_models(config, origin: str, folder: Path) -> tuple[Wav2Vec2Pretraining, nn.Module]:
    """The same model, ours and theirs: their folder loaded, or our folder converted."""
    theirs = random_model(Wav2Vec2ForPreTraining, config)
    theirs.save_pretrained(folder / "theirs")
    ours = load_checkpoint(folder / "theirs", padding="mask")
    assert isinstance(ours, Wav2Vec2Pretraining)
    if origin == "ours":
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        save_pretrained(folder / "ours", ours)
        convert(folder / "ours", folder / "converted")
        theirs, report = Wav2Vec2ForPreTraining.from_pretrained(
            folder / "converted", output_loading_info=True
        )
        assert not any(report.values()), report
        ours = load_pretraining(folder / "ours")
    return ours.double().train(), theirs.double().train()


@pytest.mark.parametrize("origin", ["theirs", "ours"])
def test_pretraining_losses_and_gradients_match(
    config, origin: str, monkeypatch, tmp_path: Path
) -> None:
    """Contrastive loss, diversity, perplexity, codes and the gradient of *every* parameter.

    In float64: their `.float()` islands are lifted, so that 1e-9 tells a difference in
    arithmetic from one in rounding.
    """
    ours, theirs = both_models(config, origin, tmp_path)
    ours.penalty_weight, ours.wav2vec2.normalize = 0.0, False
    monkeypatch.setattr(F, "gumbel_softmax", quiet_gumbel)  # theirs
    silent = math.exp(-1.0)  # of uniform numbers: makes Gumbel noise of 0
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, silent))  # ours
    monkeypatch.setattr(Tensor, "float", lambda self: self)

    lengths = torch.tensor([16000, 9123])
    attention = (torch.arange(16000) < lengths[:, None]).long()
    wavs = torch.randn(2, 16000, generator=torch.Generator().manual_seed(1)).double() * attention
    frames = theirs._get_feat_extract_output_lengths(lengths)
    frame_mask = (torch.arange(49) < frames[:, None]).long()
    np.random.seed(0)
    mask = _compute_mask_indices((2, 49), 0.65, 5, attention_mask=frame_mask, min_masks=2)
    flat = _sample_negative_indices((2, 49), 30, mask)
    assert len(set(mask.sum(1))) == 2  # the two rows are masked unequally

    scores: list[Tensor] = []
    theirs.quantizer.weight_proj.register_forward_hook(lambda *args: scores.append(args[-1]))
    expected = theirs(
        wavs,
        attention,
        mask_time_indices=torch.from_numpy(mask),
        sampled_negative_indices=torch.from_numpy(flat),
    )
    out = ours(
        wavs, lengths / 16000, mask=torch.from_numpy(mask), negatives=masked_ranks(mask, flat)
    )
    count = int(mask.sum())
    assert out.contrastive.count == count and out.contrastive.shared > 0
    codes = scores[0].view(*mask.shape, 2, -1).argmax(-1)  # of all frames
    assert len(codes.unique()) > 3
    for row, masked, found in zip(codes, mask, out.quantized.codes, strict=True):
        assert torch.equal(row[torch.from_numpy(masked)], found[: masked.sum()])
    exact = {"rtol": 1e-9, "atol": 0.0}
    torch.testing.assert_close(out.contrastive.loss, expected.contrastive_loss, **exact)
    torch.testing.assert_close(out.quantized.diversity * count, expected.diversity_loss, **exact)
    torch.testing.assert_close(
        out.quantized.prob_perplexity.sum(), expected.codevector_perplexity, **exact
    )
    torch.testing.assert_close(out.loss, expected.loss, **exact)

    expected.loss.backward()
    out.loss.backward()
    reference = dict(theirs.named_parameters())
    assert {hf_name(name) for name, _ in ours.named_parameters()} == set(reference)
    for name, parameter in ours.named_parameters():
        grad = reference[hf_name(name)].grad
        scale = float(grad.abs().max())
        # the bias of the keys has no gradient but rounding, in both
        torch.testing.assert_close(parameter.grad, grad, rtol=0.0, atol=1e-9 * max(scale, 1.0))


@pytest.mark.parametrize("kind", [Wav2Vec2Model, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining])
def test_export_is_bit_exact_and_transformers_agrees(config, kind, tmp_path: Path) -> None:
    """HF -> ours -> HF changes no bit of any parameter, and the answers not at all."""
    theirs = random_model(kind, config)
    theirs.save_pretrained(tmp_path / "theirs")
    export_hf(load_checkpoint(tmp_path / "theirs"), tmp_path / "ours")
    back, report = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    expected, state = theirs.state_dict(), back.state_dict()
    assert expected.keys() == state.keys()
    assert all(torch.equal(expected[key], state[key]) for key in expected)
    values, mask = hf_batch()
    with torch.no_grad():
        x, y = theirs(values, mask), back.eval()(values, mask)
    assert all(torch.equal(x[key], y[key]) for key in x if isinstance(x[key], Tensor))
    processor = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / "ours")
    assert processor.do_normalize
    assert processor.return_attention_mask == (config.feat_extract_norm == "layer")
