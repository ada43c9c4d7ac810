"""Conformers saved by transformers load strictly and answer as transformers does, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForCTC,
    Wav2Vec2ConformerForPreTraining,
    Wav2Vec2ConformerModel,
    Wav2Vec2FeatureExtractor,
)

from w2v_plugin.checkpoints import load_checkpoint
from w2v_plugin.conformer import RotaryFrequencies, distances
from w2v_plugin.hf_checkpoints import CONFORMER_BODY, HF_CONFORMER_CONFIG, build_hf, hf_name
from w2v_plugin.hf_export import export_hf

TOLERANCE = 1e-5  # float32 rounding of different operation orders; values are of order 1
EXACT = 1e-10  # the same in float64
KINDS = (Wav2Vec2ConformerModel, Wav2Vec2ConformerForCTC, Wav2Vec2ConformerForPreTraining)
LENGTHS = (16000, 9123, 400)
POSITIONS = ("relative", "rotary")
UNUSED = "encoder.pos_conv_embed."
LARGE = {
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "codevector_dim": 768,
    "proj_codevector_dim": 768,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "hidden_act": "swish",
}


@pytest.fixture(params=POSITIONS)
def config(request: pytest.FixtureRequest) -> Wav2Vec2ConformerConfig:
    return small(position_embeddings_type=request.param)


def small(**changes: Any) -> Wav2Vec2ConformerConfig:
    dropouts = (
        "hidden",
        "activation",
        "attention",
        "feat_proj",
        "feat_quantizer",
        "conformer_conv",
    )
    settings = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "conv_dim": (24,) * 7,
        "conv_bias": True,
        "feat_extract_norm": "layer",
        "hidden_act": "swish",
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "conv_depthwise_kernel_size": 7,
        "vocab_size": 20,
        "num_codevectors_per_group": 12,
        "codevector_dim": 16,
        "proj_codevector_dim": 12,
        "layerdrop": 0.0,
        **{f"{name}_dropout": 0.0 for name in dropouts},
    }
    return Wav2Vec2ConformerConfig(**{**settings, **changes})


def random_model(kind: type[nn.Module], config: Wav2Vec2ConformerConfig) -> nn.Module:
    """Scattered, statistics of BatchNorm included, so that no two tensors can be confused."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
            elif name.endswith("num_batches_tracked"):
                buffer.fill_(7)
    return model


def raw_batch() -> tuple[list[np.ndarray], Tensor, Tensor]:
    """Waveforms; with garbage in the padding; and relative lengths."""
    rng = np.random.default_rng(0)
    waveforms = [0.1 * rng.standard_normal(n).astype(np.float32) for n in LENGTHS]
    wavs = 7.0 * torch.ones(len(LENGTHS), max(LENGTHS))
    for row, wav in zip(wavs, waveforms, strict=True):
        row[: len(wav)] = torch.from_numpy(wav)
    return waveforms, wavs, torch.tensor(LENGTHS, dtype=torch.float64) / max(LENGTHS)


def hf_batch(waveforms: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Theirs: normalized by their own feature extractor, zeros in the padding, a mask."""
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    batch = extractor(waveforms, sampling_rate=16000, padding=True, return_tensors="pt")
    return batch.input_values, batch.attention_mask


def deviation(ours: Tensor, theirs: Tensor, frames: Tensor) -> float:
    """Largest difference at valid frames."""
    rows = zip(ours, theirs, frames.tolist(), strict=True)
    return max(float((x[:n] - y[:n]).abs().max()) for x, y, n in rows)


def check(ours: Any, theirs: Any, tolerance: float) -> None:
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    frames = ours.frame_lengths
    for x, y in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert deviation(x, y, frames) < tolerance
    assert deviation(ours.logits, theirs.logits, frames) < tolerance


@torch.no_grad()
def test_single_utterances_give_the_reference_logits(config, tmp_path: Path) -> None:
    """One frame included."""
    theirs = random_model(Wav2Vec2ConformerForCTC, config)
    theirs.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path)
    assert not ours.training
    for wav in raw_batch()[0]:
        expected = theirs(hf_batch([wav])[0], output_hidden_states=True)
        for wav_lens in (None, torch.ones(1)):
            out = ours(torch.from_numpy(wav)[None], wav_lens, output_hidden_states=True)
            check(out, expected, TOLERANCE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_float64_leaves_no_doubt(config, attention: str, tmp_path: Path) -> None:
    """1000 frames: the rounding of the frequencies is that of the published models."""
    theirs = random_model(Wav2Vec2ConformerForCTC, config)
    theirs.save_pretrained(tmp_path)
    theirs.set_attn_implementation(attention)
    ours = load_checkpoint(tmp_path).double()
    ours.wav2vec2.normalize = False
    for samples in (400, 16000, 320_080):
        wav = torch.randn(1, samples, generator=torch.Generator().manual_seed(1)).double()
        expected = theirs.double()(wav, output_hidden_states=True)
        check(ours(wav, output_hidden_states=True), expected, EXACT)


@torch.no_grad()
def test_padded_batches_agree_where_padding_may_leak(config, tmp_path: Path) -> None:
    """transformers' convolutions hear padded frames; so do ours, but not in "exact"."""
    theirs = random_model(Wav2Vec2ConformerForCTC, config)
    theirs.save_pretrained(tmp_path)
    waveforms, wavs, wav_lens = raw_batch()
    expected = theirs(*hf_batch(waveforms), output_hidden_states=True)
    for padding in ("reference", "mask"):
        out = load_checkpoint(tmp_path, padding=padding)(wavs, wav_lens, output_hidden_states=True)
        check(out, expected, TOLERANCE)
    out = load_checkpoint(tmp_path)(wavs, wav_lens)
    assert deviation(out.logits[:1], expected.logits[:1], out.frame_lengths[:1]) < TOLERANCE
    assert deviation(out.logits, expected.logits, out.frame_lengths) > 1e-3


@torch.no_grad()
def test_group_norm_conformers_load(tmp_path: Path) -> None:
    """Not published, but the default of their configuration."""
    theirs = random_model(Wav2Vec2ConformerForCTC, small(feat_extract_norm="group"))
    theirs.save_pretrained(tmp_path)
    wav = raw_batch()[0][0]
    out = load_checkpoint(tmp_path)(torch.from_numpy(wav)[None], output_hidden_states=True)
    check(out, theirs(hf_batch([wav])[0], output_hidden_states=True), TOLERANCE)


@torch.no_grad()
def test_pretraining_heads_agree(config, tmp_path: Path) -> None:
    """What is compared in the contrastive loss: context and quantized latents."""
    theirs = random_model(Wav2Vec2ConformerForPreTraining, config)
    theirs.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path)
    wav = raw_batch()[0][0]
    expected = theirs(hf_batch([wav])[0])
    latents, _ = ours.wav2vec2.extract(torch.from_numpy(wav)[None])
    context = ours.project_context(ours.wav2vec2.contextualize(latents).context)
    normed = ours.wav2vec2.projection.norm(latents)
    quantized = ours.quantizer(normed, torch.ones(1, normed.shape[1], dtype=torch.bool))
    targets = ours.project_targets(quantized.vectors)
    assert float((context - expected.projected_states).abs().max()) < TOLERANCE
    assert float((targets - expected.projected_quantized_states).abs().max()) < TOLERANCE


def test_training_gives_their_gradients_and_statistics(config, tmp_path: Path) -> None:
    """Of every parameter, and of BatchNorm, in a padded batch; float64."""
    theirs = random_model(Wav2Vec2ConformerModel, config)
    theirs.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path, padding="reference").double().train()
    ours.normalize, theirs = False, theirs.double().train()
    theirs.config.mask_time_prob = 0.0
    lengths = torch.tensor([16000, 9123])
    attention = (torch.arange(16000) < lengths[:, None]).long()
    wavs = torch.randn(2, 16000, generator=torch.Generator().manual_seed(1)).double() * attention
    theirs(wavs, attention).last_hidden_state[:, :28].square().sum().backward()
    ours(wavs, lengths / 16000).context[:, :28].square().sum().backward()
    expected, state = dict(theirs.named_parameters()), theirs.state_dict()
    for name, parameter in ours.named_parameters():
        grad = expected.pop(str(hf_name(name, CONFORMER_BODY))).grad
        assert (parameter.grad is None) == (grad is None), name
        if grad is not None:  # the bias of the keys has none but rounding, in both
            scale = max(float(grad.abs().max()), 1.0)
            assert float((parameter.grad - grad).abs().max()) < EXACT * scale, name
        assert parameter.requires_grad != (".positions." in name)
    assert not expected
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, state[str(hf_name(name))], rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_export_is_bit_exact_and_transformers_agrees(config, kind, tmp_path: Path) -> None:
    """Positions that no conformer uses included: the report says what became of them."""
    theirs = random_model(kind, config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_checkpoint(tmp_path / "theirs")
    count = sum(UNUSED in key for key in theirs.state_dict())
    assert count == 3 == sum(UNUSED in key for key in ours.load_report.ignored)
    assert ours.load_report.read == len(theirs.state_dict())
    assert "pos_conv_embed.conv.bias: kept for export" in str(ours.load_report)
    export_hf(ours, tmp_path / "ours")
    back, report = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    settings, published = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs")
    )
    same = {"architectures", "model_type", *HF_CONFORMER_CONFIG.values()} & published.keys()
    assert {key: settings[key] for key in same} == {key: published[key] for key in same}
    expected, state = theirs.state_dict(), back.state_dict()
    assert expected.keys() == state.keys()
    assert all(torch.equal(expected[key], state[key]) for key in expected)
    values, mask = hf_batch(raw_batch()[0])
    with torch.no_grad():
        x, y = theirs(values, mask), back.eval()(values, mask)
    assert all(torch.equal(x[key], y[key]) for key in x if isinstance(x[key], Tensor))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_published_shapes_are_those_of_transformers(kind, positions: str) -> None:
    config = Wav2Vec2ConformerConfig(**LARGE, position_embeddings_type=positions)
    head = {
        Wav2Vec2ConformerForCTC: "lm_head.weight",
        Wav2Vec2ConformerForPreTraining: "project_q.weight",
    }.get(kind)
    config.vocab_size = 32
    with torch.device("meta"):
        theirs = {key: value.shape for key, value in kind(config).state_dict().items()}
        model = build_hf(config.to_dict(), {} if head is None else {head: torch.zeros(1)})
    state = model.state_dict().items()
    names = ((hf_name(key, CONFORMER_BODY), value.shape) for key, value in state)
    assert {name: shape for name, shape in names if name is not None} == theirs
    if kind is Wav2Vec2ConformerForCTC and positions == "relative":
        count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert count == pytest.approx(618.6, abs=0.1)


def test_tables_are_theirs_bit_by_bit() -> None:
    config = small(hidden_size=64)
    relative = Wav2Vec2ConformerModel(config).encoder.embed_positions
    ours = distances(3000, 64, torch.zeros(1))[1:]
    assert torch.equal(ours, relative(torch.zeros(1, 3000, 64))[0])
    config.position_embeddings_type = "rotary"
    rotary = Wav2Vec2ConformerModel(config).encoder.embed_positions
    turns = RotaryFrequencies(16)
    assert torch.equal(turns.values, rotary.inv_freq)
    theirs = rotary(torch.zeros(1, 3000, 64))
    assert torch.equal(turns([3000], torch.float32), theirs[:, :, 0])
