"""transformers' format: spellings, several files, and what bad checkpoints are told."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.hf_checkpoints import build_hf, hf_vocabulary, load_hf
from w2v_plugin.hf_export import export_hf
from w2v_plugin.model import Wav2Vec2

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
        load_hf(folder)
    assert str(folder) in str(caught.value) and "Build the model with the shapes" in str(
        caught.value
    )


def test_all_spellings_of_weight_norm_load_the_same_model(folder: Path) -> None:
    expected = load_hf(folder)

    def legacy(state: dict[str, Tensor]) -> None:
        state[TAPS + "weight_g"], state[TAPS + "weight_v"] = state.pop(G), state.pop(V)

    edit_weights(folder, legacy)
    assert same_state(load_hf(folder), expected)

    def fold(state: dict[str, Tensor]) -> None:
        g, v = state.pop(TAPS + "weight_g"), state.pop(TAPS + "weight_v")
        state[TAPS + "weight"] = g * v / v.norm(dim=(0, 1), keepdim=True)

    edit_weights(folder, fold)
    conv, folded = expected.encoder.positions.conv, load_hf(folder).encoder.positions.conv
    torch.testing.assert_close(folded.weight, conv.weight, rtol=1e-6, atol=1e-7)


def test_an_absent_mask_embedding_is_kept_and_reported(folder: Path, caplog) -> None:
    """transformers leaves it out when it would never mask; only training needs it."""
    edit_weights(folder, lambda state: state.pop("masked_spec_embed"))
    with caplog.at_level(logging.INFO, logger="w2v_plugin"):
        assert load_hf(folder).mask_embedding.isfinite().all()
    assert "has no masked_spec_embed" in caplog.text


def test_pickled_and_half_precision_weights_load(folder: Path) -> None:
    expected = load_hf(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert same_state(load_hf(folder), expected)
    torch.save({key: value.half() for key, value in state.items()}, folder / "pytorch_model.bin")
    model = load_hf(folder)
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
        load_hf(folder)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_weights_say_so(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(CheckpointMismatch, match="Is the file complete"):
        load_hf(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "hubert"),
        ("hidden_act", "swish"),
        ("feat_extract_activation", "relu"),
        ("layer_norm_eps", 1e-12),
        ("add_adapter", True),
    ],
)
def test_other_architectures_are_refused(folder: Path, key: str, value) -> None:
    """They would load or nearly load, and compute something else."""
    edit_json(folder / "config.json", **{key: value})
    with pytest.raises(CheckpointMismatch, match=f"{key}={value!r}.*load this one with transf"):
        load_hf(folder)


def test_other_sample_rates_are_refused(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", sampling_rate=8000)
    with pytest.raises(CheckpointMismatch, match=r"sampling_rate=8000 \(expected 16000\)"):
        load_hf(folder)


def test_normalization_is_the_checkpoints(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", do_normalize=False)
    assert not load_hf(folder).normalize
    (folder / "preprocessor_config.json").unlink()
    model = load_hf(folder, padding="mask")
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
    serve(monkeypatch, None)
    with pytest.raises(FileNotFoundError, match=message) as caught:
        load_hf(source)
    assert source in str(caught.value) and "facebook/wav2vec2-base" in str(caught.value)


def test_incomplete_folders_say_what_is_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors or pytorch_model\.bin in"):
        load_hf(folder)
    (folder / "config.json").unlink()
    (folder / "hyperparams.yaml").touch()
    with pytest.raises(FileNotFoundError, match="open it with `from_hparams"):
        load_hf(folder)


def serve(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    """A hub with one repository, org/tiny."""
    import speechbrain.utils.fetching

    def fetch(name: str, source: str) -> Path:
        if folder is None or source != "org/tiny" or not (folder / name).is_file():
            raise ValueError("File not found on HF hub")
        return folder / name

    monkeypatch.setattr(speechbrain.utils.fetching, "fetch", fetch)


def split(folder: Path, name: str) -> None:
    """Two files and an index instead of one file of weights."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys, stem, suffix = sorted(state), *name.split(".")
    index = {}
    for i, part in enumerate((keys[::2], keys[1::2]), 1):
        shard = f"{stem}-{i:05d}-of-00002.{suffix}"
        tensors = {key: state[key] for key in part}
        (save_file if suffix == "safetensors" else torch.save)(tensors, folder / shard)
        index |= dict.fromkeys(part, shard)
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_several_files_load(folder: Path, name: str, monkeypatch) -> None:
    """From a folder and from the hub, which is asked for every file by its name."""
    expected = load_hf(folder)
    split(folder, name)
    serve(monkeypatch, folder)
    assert same_state(load_hf(folder), expected) and same_state(load_hf("org/tiny"), expected)
    stem, suffix = name.split(".")
    (folder / f"{stem}-00002-of-00002.{suffix}").unlink()
    with pytest.raises(FileNotFoundError, match=f"no {stem}-00002-of-00002.{suffix}, which {name}"):
        load_hf(folder)


def test_hub_ids_are_fetched_file_by_file(folder: Path, monkeypatch) -> None:
    """Everything after the fetching is the same as for a folder."""
    serve(monkeypatch, folder)
    assert same_state(load_hf("org/tiny"), load_hf(folder))


def test_the_hub_out_of_reach_is_no_traceback(monkeypatch) -> None:
    import speechbrain.utils.fetching

    def unreachable(name: str, source: str) -> Path:
        raise ConnectionError("no network")

    monkeypatch.setattr(speechbrain.utils.fetching, "fetch", unreachable)
    with pytest.raises(FileNotFoundError, match="nobody/no-such-model"):
        load_hf("nobody/no-such-model")


def ctc_folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    export_hf(Wav2Vec2CTC(tiny(), vocab_size=9), tmp_path / "ctc")
    return tmp_path / "ctc"


def test_the_bodys_prefix_may_be_there_or_not(folder: Path, tmp_path: Path) -> None:
    """A bare model saved from inside one with a head keeps it; some tools cut it off."""
    expected = load_hf(folder)

    def prefix(state: dict[str, Tensor]) -> None:
        for key in list(state):
            state["wav2vec2." + key] = state.pop(key)

    edit_weights(folder, prefix)
    bare = load_hf(folder)
    assert isinstance(bare, Wav2Vec2) and same_state(bare, expected)

    def cut(state: dict[str, Tensor]) -> None:
        for key in list(state):
            state[key.removeprefix("wav2vec2.")] = state.pop(key)

    ctc = ctc_folder(tmp_path)
    expected = load_hf(ctc)
    edit_weights(ctc, cut)
    assert same_state(load_hf(ctc), expected)


@pytest.mark.parametrize(
    ("key", "value", "seen"),
    [
        ("hidden_size", 32, "16"),
        ("intermediate_size", 64, "32"),
        ("num_hidden_layers", 3, "2"),
        ("conv_dim", [4] * 7, "[8, 8, 8, 8, 8, 8, 8]"),
        ("conv_bias", True, "False"),
        ("feat_extract_norm", "layer", "'group'"),
        ("num_conv_pos_embeddings", 16, "8"),
        ("num_conv_pos_embedding_groups", 2, "4"),
        ("vocab_size", 12, "9"),
    ],
)
def test_a_config_of_another_model_is_named_with_the_weights(
    tmp_path: Path, key: str, value, seen: str
) -> None:
    """Both sides, not just a list of keys that do not fit."""
    edit_json((folder := ctc_folder(tmp_path)) / "config.json", **{key: value})
    message = f"config.json contradicts the weights: {key}={value!r}, the weights have {seen}."
    with pytest.raises(CheckpointMismatch, match=re.escape(message)):
        load_hf(folder)


def test_a_missing_head_is_missed(tmp_path: Path) -> None:
    """The body alone would load, and then not transcribe."""
    folder = ctc_folder(tmp_path)
    edit_weights(folder, lambda state: [state.pop(f"lm_head.{x}") for x in ("weight", "bias")])
    with pytest.raises(CheckpointMismatch, match=r"2 missing: lm_head\.weight, lm_head\.bias"):
        load_hf(folder)


def test_settings_in_the_processors_file_count(folder: Path) -> None:
    """Where transformers 5 saves those of the feature extractor."""
    (folder / "preprocessor_config.json").unlink()
    settings = {"feature_extractor": {"do_normalize": False, "sampling_rate": 16000}}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    assert not load_hf(folder).normalize


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_config_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: (not JSON|expected a JSON object)"):
        load_hf(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_loaded_model_needs_its_file_no_more(folder: Path, name: str) -> None:
    """A mapped file would change the model, or kill the process, when it is written anew."""
    path = folder / name
    if name == "pytorch_model.bin":
        torch.save(load_file(folder / "model.safetensors"), path)
        (folder / "model.safetensors").unlink()
    model = load_hf(folder)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    path.write_bytes(b"")
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_the_report_tells_what_was_read(folder: Path) -> None:
    edit_weights(folder, lambda state: state.pop("masked_spec_embed"))
    report = load_hf(folder).load_report
    assert report.renamed["encoder.layers.0.layer_norm.bias"] == (
        "encoder.layers.0.attention_norm.bias"
    )
    assert report.read == len(load_file(folder / "model.safetensors"))
    assert f"{folder}: in the format of transformers -> Wav2Vec2" in str(report)
    assert "not in the file, initial value: mask_embedding" in str(report)


def test_models_are_built_without_initialization() -> None:
    """Filling a billion random numbers takes longer than reading them from a file."""
    before = torch.get_rng_state()
    build_hf({"hidden_size": 128, "num_attention_heads": 2}, {})
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    torch.rand(128)  # the mask embedding, which a file need not hold
    assert torch.equal(torch.get_rng_state(), after)


def test_vocabularies_come_with_their_neighbors(folder: Path, monkeypatch) -> None:
    serve(monkeypatch, folder)
    with pytest.raises(FileNotFoundError, match=r"no vocab\.json, which says what the outputs"):
        hf_vocabulary("org/tiny")
    (folder / "vocab.json").write_text('{"a": 0, "[PAD]": 1}')
    edit_json(folder / "config.json", pad_token_id=1)
    assert hf_vocabulary("org/tiny").get_blank_index() == 1
