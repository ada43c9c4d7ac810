"""torchaudio's wav2vec 2.0 models load strictly and answer as torchaudio does."""

from __future__ import annotations

import pytest
import torch
import torchaudio
from torch import Tensor, nn
from torchaudio.pipelines._wav2vec2.utils import _Wav2Vec2Model as NormalizingWrapper

from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.torchaudio_checkpoints import load_torchaudio

TOLERANCE = 1e-5  # float32 rounding of different operation orders; values are of order 1
SHAPES = [(24, 10, 5)] + [(24, 3, 2)] * 4 + [(24, 2, 2)] * 2
LENGTHS = torch.tensor([16000, 9123, 400])


def torchaudio_model(
    mode: str, norm_first: bool, aux: int | None, shapes: list[tuple[int, int, int]] = SHAPES
) -> nn.Module:
    torch.manual_seed(0)
    model = torchaudio.models.wav2vec2_model(
        extractor_mode=mode,
        extractor_conv_layer_config=shapes,
        extractor_conv_bias=mode == "layer_norm",
        encoder_embed_dim=48,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=128,
        encoder_pos_conv_groups=16,
        encoder_num_layers=3,
        encoder_num_heads=4,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=96,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=norm_first,
        encoder_layer_drop=0.0,
        aux_num_out=aux,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def padded_wavs() -> Tensor:
    wavs = torch.randn(3, 16000, generator=torch.Generator().manual_seed(1))
    return wavs * (torch.arange(16000) < LENGTHS[:, None])


def check(ours: Wav2Vec2 | Wav2Vec2CTC, theirs: nn.Module) -> None:
    """Outputs and all layers, with lengths and without."""
    wavs = padded_wavs()
    for lengths in (None, LENGTHS):
        wav_lens = None if lengths is None else lengths / 16000
        out = ours(wavs, wav_lens, output_hidden_states=True)
        expected, frames = theirs(wavs, lengths)
        layers, _ = theirs.extract_features(wavs, lengths)
        answer = out.context if out.logits is None else out.logits
        if frames is not None:
            assert torch.equal(out.frame_lengths, frames)
        pairs = zip([*out.hidden_states[1:], answer], [*layers, expected], strict=True)
        for x, y in pairs:
            for row, n in enumerate(out.frame_lengths.tolist()):
                assert float((x[row, :n] - y[row, :n]).abs().max()) < TOLERANCE


@pytest.mark.parametrize("aux", [None, 29])
@pytest.mark.parametrize(
    ("mode", "norm_first"), [("group_norm", False), ("group_norm", True), ("layer_norm", True)]
)
@torch.no_grad()
def test_modules_and_state_dicts_load(mode: str, norm_first: bool, aux: int | None) -> None:
    """With lengths torchaudio leaves padding in the group norm: our padding="mask"."""
    theirs = torchaudio_model(mode, norm_first, aux)
    ours = load_torchaudio(theirs, padding="mask")
    assert isinstance(ours, Wav2Vec2 if aux is None else Wav2Vec2CTC)
    assert not ours.training
    check(ours, theirs)
    if norm_first == (mode == "layer_norm"):  # what a state dict is taken to be
        check(
            load_torchaudio(theirs.state_dict(), heads=4, normalize=False, padding="mask"), theirs
        )


@torch.no_grad()
def test_normalizing_bundle_is_recognized() -> None:
    """Bundles wrap models trained on normalized waveforms; quiet audio shows their eps of 1e-5."""
    theirs = NormalizingWrapper(torchaudio_model("layer_norm", True, 29), True, False, False)
    ours = load_torchaudio(theirs)
    wavs = 1e-3 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(2))
    assert float((ours(wavs).logits - theirs(wavs)[0]).abs().max()) < TOLERANCE


@torch.no_grad()
def test_other_strides_need_the_module() -> None:
    """Strides are in no weight: a state dict with unusual kernels is refused, a module is not."""
    theirs = torchaudio_model("layer_norm", True, None, [(24, 8, 4), (24, 4, 4), (24, 4, 2)])
    wavs = padded_wavs()
    assert float((load_torchaudio(theirs)(wavs).context - theirs(wavs)[0]).abs().max()) < TOLERANCE
    with pytest.raises(CheckpointMismatch, match="Pass the module itself"):
        load_torchaudio(theirs.state_dict(), heads=4)


def test_foreign_names_are_refused() -> None:
    with pytest.raises(CheckpointMismatch, match="Expected the state dict of torchaudio"):
        load_torchaudio({"weight": torch.zeros(1)})
    state = torchaudio_model("group_norm", False, None).state_dict()
    state["mask_generator.mask_embedding"] = torch.zeros(48)
    with pytest.raises(CheckpointMismatch, match=r"1 unknown: mask_generator\.mask_embedding"):
        load_torchaudio(state, heads=4)
