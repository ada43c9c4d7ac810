"""Strict loading, spellings of weight norm, export, and what bad checkpoints are told."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import w2v_plugin.checkpoints as checkpoints
from w2v_plugin.checkpoints import export_hf, load_checkpoint
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer, NearestQuantizer
from w2v_plugin.weights import load_state, load_strict

KEY = "encoder.layers.1.final_layer_norm.bias"  # of transformers; ours is ...ffn_norm.bias
TAPS = "encoder.pos_conv_embed.conv."
G, V = TAPS + "parametrizations.weight.original0", TAPS + "parametrizations.weight.original1"


def tiny(**changes) -> Wav2Vec2:
    shape = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    return Wav2Vec2(**{**shape, "positions_kernel": 8, "positions_groups": 4, **changes}).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    export_hf(tiny(), tmp_path / "model")
    return tmp_path / "model"


def edit_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same_state(x: nn.Module, y: nn.Module) -> bool:
    a, b = x.state_dict(), y.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def rename(state: dict[str, Tensor]) -> None:
    state[KEY.replace("bias", "beta")] = state.pop(KEY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(KEY), f"1 missing: {KEY}"),
        (rename, f"1 missing: {KEY}; 1 unknown: {KEY.replace('bias', 'beta')}"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 unknown: extra"),
        (
            lambda state: state.update({KEY: torch.zeros(3)}),
            f"1 misshapen: {KEY} (3,) instead of (16,)",
        ),
    ],
    ids=["missing", "renamed", "extra", "misshapen"],
)
def test_a_wrong_key_is_named_as_the_file_names_it(folder: Path, change, message: str) -> None:
    edit_weights(folder, change)
    with pytest.raises(CheckpointMismatch, match=re.escape(message)) as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value) and "Build the model with the shapes" in str(
        caught.value
    )


def test_many_wrong_keys_are_counted() -> None:
    """Ten names and a number: the message stays readable when everything is wrong."""
    with pytest.raises(CheckpointMismatch, match=r"\d\d missing: (\S+, ){9}\S+ and \d+ more"):
        load_strict(tiny(), {}, "nothing")


def test_a_refused_state_leaves_the_module_as_it_was() -> None:
    model, state = tiny(), tiny().state_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state.pop("encoder.norm.bias")
    with pytest.raises(CheckpointMismatch, match=r"encoder\.norm\.bias"):
        load_strict(model, state, "a test")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_all_spellings_of_weight_norm_load_the_same_model(folder: Path) -> None:
    expected = load_checkpoint(folder)

    def legacy(state: dict[str, Tensor]) -> None:
        state[TAPS + "weight_g"], state[TAPS + "weight_v"] = state.pop(G), state.pop(V)

    edit_weights(folder, legacy)
    assert same_state(load_checkpoint(folder), expected)

    def fold(state: dict[str, Tensor]) -> None:
        g, v = state.pop(TAPS + "weight_g"), state.pop(TAPS + "weight_v")
        state[TAPS + "weight"] = g * v / v.norm(dim=(0, 1), keepdim=True)

    edit_weights(folder, fold)
    conv, folded = expected.encoder.positions.conv, load_checkpoint(folder).encoder.positions.conv
    torch.testing.assert_close(folded.weight, conv.weight, rtol=1e-6, atol=1e-7)


def test_a_folded_tap_of_zeros_stays_zero() -> None:
    """Naively it is 0 * 0 / 0."""
    state = tiny().state_dict()
    stem = "encoder.positions.conv."
    state[stem + "weight"] = torch.ones_like(state.pop(stem + "parametrizations.weight.original1"))
    state[stem + "weight"][..., 3:] = 0.0
    del state[stem + "parametrizations.weight.original0"]
    model = tiny()
    load_strict(model, state, "a test")
    torch.testing.assert_close(model.encoder.positions.conv.weight, state[stem + "weight"])


def test_an_absent_mask_embedding_is_kept_and_reported(folder: Path, caplog) -> None:
    """transformers leaves it out when it would never mask; only training needs it."""
    edit_weights(folder, lambda state: state.pop("masked_spec_embed"))
    with caplog.at_level(logging.INFO, logger="w2v_plugin"):
        assert load_checkpoint(folder).mask_embedding.isfinite().all()
    assert "has no masked_spec_embed" in caplog.text


def test_pickled_and_half_precision_weights_load(folder: Path) -> None:
    expected = load_checkpoint(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert same_state(load_checkpoint(folder), expected)
    torch.save({key: value.half() for key, value in state.items()}, folder / "pytorch_model.bin")
    model = load_checkpoint(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    half = expected.encoder.norm.weight.half().float()
    assert torch.equal(model.encoder.norm.weight, half)


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_pickled_code_is_not_executed(folder: Path, capsys) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Malicious()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointMismatch, match="not readable as plain weights"):
        load_checkpoint(folder)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_weights_say_so(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(CheckpointMismatch, match="Is the file complete"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "wav2vec2-conformer"),
        ("hidden_act", "swish"),
        ("feat_extract_activation", "relu"),
        ("layer_norm_eps", 1e-12),
        ("add_adapter", True),
        ("adapter_attn_dim", 16),
    ],
)
def test_other_architectures_are_refused(folder: Path, key: str, value) -> None:
    """They would load or nearly load, and compute something else."""
    edit_json(folder / "config.json", **{key: value})
    with pytest.raises(CheckpointMismatch, match=f"{key}={value!r}.*load this one with transf"):
        load_checkpoint(folder)


def test_other_sample_rates_are_refused(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", sampling_rate=8000)
    with pytest.raises(CheckpointMismatch, match=r"sampling_rate=8000 \(expected 16000\)"):
        load_checkpoint(folder)


def test_normalization_is_the_checkpoints(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", do_normalize=False)
    assert not load_checkpoint(folder).normalize
    (folder / "preprocessor_config.json").unlink()
    model = load_checkpoint(folder, padding="mask")
    assert model.normalize and model.normalize_eps == 1e-7 and model.padding == "mask"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/folder", "no such folder or no config.json"),
        ("nobody/no-such-model", "could not get its config.json from the Hugging Face hub"),
    ],
)
def test_missing_sources_say_what_was_looked_for(
    monkeypatch, tmp_path: Path, source: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "_fetch", lambda name, source: None)
    with pytest.raises(FileNotFoundError, match=message) as caught:
        load_checkpoint(source)
    assert source in str(caught.value) and "facebook/wav2vec2-base" in str(caught.value)


def test_incomplete_folders_say_what_is_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors or pytorch_model\.bin in"):
        load_checkpoint(folder)
    (folder / "config.json").unlink()
    (folder / "hyperparams.yaml").touch()
    with pytest.raises(FileNotFoundError, match="open it with `from_hparams"):
        load_checkpoint(folder)


def test_hub_ids_are_fetched_file_by_file(folder: Path, monkeypatch) -> None:
    """Everything after the fetching is the same as for a folder."""
    fetch = lambda name, source: folder / name if source == "org/tiny" else None  # noqa: E731
    monkeypatch.setattr(checkpoints, "_fetch", fetch)
    assert same_state(load_checkpoint("org/tiny"), load_checkpoint(folder))


def test_the_hub_out_of_reach_is_no_traceback(monkeypatch) -> None:
    import speechbrain.utils.fetching

    def unreachable(name: str, source: str) -> Path:
        raise ConnectionError("no network")

    monkeypatch.setattr(speechbrain.utils.fetching, "fetch", unreachable)
    with pytest.raises(FileNotFoundError, match="nobody/no-such-model"):
        load_checkpoint("nobody/no-such-model")


def models() -> list[nn.Module]:
    layer = {"extractor_norm": "layer", "norm_first": True, "conv_bias": True}
    return [
        tiny(),
        Wav2Vec2CTC(tiny(**layer), vocab_size=9, dropout=0.1, mask_prob=0.3, mask_length=4),
        Wav2Vec2CTC(tiny(normalize=False), vocab_size=9),
        Wav2Vec2Pretraining(
            tiny(**layer, dropout=0.1, layer_drop=0.05),
            GumbelQuantizer(8, groups=2, codes=5, dim=6),
            dim=4,
            negatives=7,
            diversity_weight=0.2,
        ),
        tiny(channels=(4, 6, 8), kernels=(8, 4, 4), strides=(4, 4, 2)),
    ]


@pytest.mark.parametrize("index", range(5))
def test_export_and_load_restore_model_and_settings(index: int, tmp_path: Path) -> None:
    model = models()[index].eval()
    export_hf(model, tmp_path / "model")
    back = load_checkpoint(tmp_path / "model")
    assert type(back) is type(model) and same_state(back, model)
    bodies = [m if isinstance(m, Wav2Vec2) else m.wav2vec2 for m in (model, back)]
    plain = [json.loads(json.dumps(body.config)) for body in bodies]
    assert plain[0] == plain[1]
    for name in ("mask_prob", "negatives", "temperature", "diversity_weight", "channel_mask_prob"):
        assert getattr(back, name, None) == getattr(model, name, None)


def test_export_appears_complete_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "model"

    def full_disk(*args, **kwargs) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(checkpoints, "save_file", full_disk)
        export_hf(tiny(), target)
    assert not list(tmp_path.iterdir())
    export_hf(tiny(), target)
    with pytest.raises(FileExistsError, match="Choose another folder"):
        export_hf(tiny(), target)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (
        len({path.stat().st_mode for path in target.iterdir()}) == 1
    )  # readable by the same people


def test_export_refuses_what_transformers_lacks(tmp_path: Path) -> None:
    quantizer = NearestQuantizer(8, groups=2, codes=5, dim=6)
    with pytest.raises(CheckpointMismatch, match=r"NearestQuantizer .* Export `model.wav2vec2`"):
        export_hf(Wav2Vec2Pretraining(tiny(), quantizer, dim=4), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_export_warns_that_transformers_has_one_eps(tmp_path: Path, caplog) -> None:
    export_hf(tiny(normalize_eps=1e-5), tmp_path / "model")
    assert "normalize_eps=1e-05 becomes 1e-07" in caplog.text


def test_load_state_reads_our_files_and_names_them(tmp_path: Path) -> None:
    """The hook of SpeechBrain's Pretrainer, which may pass further arguments."""
    model, other, path = tiny(), tiny(), tmp_path / "wav2vec2.ckpt"
    torch.save(model.state_dict(), path)
    load_state(other, path, "cpu")
    assert same_state(model, other)
    with pytest.raises(CheckpointMismatch, match=r"wav2vec2\.ckpt does not fit Linear"):
        load_state(nn.Linear(2, 2), path)
    torch.save({"model": model.state_dict()}, path)
    with pytest.raises(CheckpointMismatch, match=r"Save `module\.state_dict\(\)`"):
        load_state(other, path)
    with pytest.raises(FileNotFoundError, match=r"absent\.ckpt"):
        load_state(other, tmp_path / "absent.ckpt")
