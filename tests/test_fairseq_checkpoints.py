"""Files in fairseq's format, made from random transformers models, give transformers' answers.

fairseq itself is not at hand: names and layout are spelled here once more, by hand.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining

from w2v_plugin.continuation import start_from
from w2v_plugin.conversion import convert
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.fairseq_checkpoints import (
    fairseq_vocabulary,
    load_fairseq,
    read_dictionary,
    read_fairseq,
)
from w2v_plugin.fairseq_options import _written
from w2v_plugin.folders import load_head, load_pretrained
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer
from w2v_plugin.text import CharVocabulary

LAYERS, OUTPUTS, ADAPTER = 2, 7, 4
CONVOLUTIONS = "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8,2,2)] + [(8,2,2)]"
SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", "|", "E", "T"]
# (pattern in transformers, replacement in fairseq), applied in this order
RENAMED = [
    (r"^wav2vec2\.", ""),
    (r"conv_layers\.(\d+)\.conv\.", r"conv_layers.\1.0."),
    (r"feature_projection\.layer_norm", "layer_norm"),
    (r"feature_projection\.projection", "post_extract_proj"),
    (r"^masked_spec_embed$", "mask_emb"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
    (r"pos_conv_embed\.conv\.bias", "pos_conv.0.bias"),
    (r"layers\.(\d+)\.attention\.", r"layers.\1.self_attn."),
    (r"encoder\.layers\.(\d+)\.layer_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
    (r"feed_forward\.intermediate_dense", "fc1"),
    (r"feed_forward\.output_dense", "fc2"),
    (r"adapter_layer\.norm\.weight", "adapter_layer.ln_W"),
    (r"adapter_layer\.norm\.bias", "adapter_layer.ln_b"),
    (r"adapter_layer\.linear_1\.weight", "adapter_layer.W_a"),
    (r"adapter_layer\.linear_1\.bias", "adapter_layer.b_a"),
    (r"adapter_layer\.linear_2\.weight", "adapter_layer.W_b"),
    (r"adapter_layer\.linear_2\.bias", "adapter_layer.b_b"),
    (r"^quantizer\.codevectors$", "quantizer.vars"),
    (r"^project_hid\.", "final_proj."),
    (r"^lm_head\.", "w2v_encoder.proj."),
]
NORMS = {"default": r"conv_layers.\1.2.", "layer_norm": r"conv_layers.\1.2.1."}


def theirs(kind: type[nn.Module], mode: str, adapter: int | None = None) -> nn.Module:
    """A random transformers model in which no two weights can be confused."""
    torch.manual_seed(0)
    layer = mode == "layer_norm"
    model = kind(
        Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=(8,) * 7,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=4,
            feat_extract_norm="layer" if layer else "group",
            do_stable_layer_norm=layer,
            conv_bias=layer,
            vocab_size=OUTPUTS,
            num_codevectors_per_group=5,
            codevector_dim=6,
            proj_codevector_dim=12,
            adapter_attn_dim=adapter,
            hidden_dropout=0.0,
            feat_proj_dropout=0.0,
            layerdrop=0.0,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def renamed(model: nn.Module, mode: str) -> dict[str, Tensor]:
    state = {}
    fine_tuned = isinstance(model, Wav2Vec2ForCTC)
    for key, tensor in model.state_dict().items():
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        key = re.sub(r"conv_layers\.(\d+)\.layer_norm\.", NORMS[mode], key)
        if "adapter_layer" in key:
            tensor = tensor[None]
        body = fine_tuned and not key.startswith("w2v_encoder.")
        state[f"w2v_encoder.w2v_model.{key}" if body else key] = tensor.clone()
    return state


def options(mode: str, **changes: Any) -> dict[str, Any]:
    """Those of the model, as fairseq's base_architecture spells them."""
    layer = mode == "layer_norm"
    return {
        "extractor_mode": mode,
        "layer_norm_first": layer,
        "conv_bias": layer,
        "conv_feature_layers": CONVOLUTIONS,
        "encoder_layers": LAYERS,
        "encoder_embed_dim": 16,
        "encoder_ffn_embed_dim": 32,
        "encoder_attention_heads": 2,
        "activation_fn": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.05,
        "conv_pos": 8,
        "conv_pos_groups": 4,
        "final_dim": 12,
        "latent_dim": 6,
        "latent_vars": 5,
        "latent_groups": 2,
        "latent_temp": "(2,0.5,0.999995)",
        "quantize_targets": True,
        "quantize_input": False,
        "target_glu": False,
        "num_negatives": 7,
        "mask_prob": 0.65,
        **changes,
    }


def dictionary(symbols: list[str]) -> argparse.Namespace:
    """Any object with these attributes; tests/test_pickles.py has the class names of fairseq."""
    return argparse.Namespace(symbols=symbols, indices={s: i for i, s in enumerate(symbols)})


def pretrained(mode: str = "default", form: str = "args", **changes: Any) -> dict[str, Any]:
    """Content of a file such as wav2vec_small.pt."""
    made = options(mode, **changes)
    task = {"_name": "audio_pretraining", "normalize": mode == "layer_norm", "sample_rate": 16000}
    configuration: dict[str, Any] = {
        "args": argparse.Namespace(**made, **task, loss_weights="[0.1, 10]"),
        "cfg": None,
    }
    if form == "cfg":
        criterion = {"_name": "wav2vec", "loss_weights": [0.1, 10.0]}
        cfg = {"common": {"fp16": True}, "model": made, "task": task, "criterion": criterion}
        configuration = {"args": None, "cfg": cfg}
    return {
        **configuration,
        "model": renamed(theirs(Wav2Vec2ForPreTraining, mode), mode),
        "optimizer_history": [{"num_updates": 400000}],
        "extra_state": {"epoch": 1},
    }


def fine_tuned(mode: str = "default", form: str = "args", **changes: Any) -> dict[str, Any]:
    """Content of a file such as wav2vec_small_960h.pt."""
    normalize = mode == "layer_norm"
    task = {"_name": "audio_finetuning", "labels": "ltr", "normalize": normalize}
    own = {
        "dropout": 0.0,
        "layerdrop": 0.1,
        "final_dropout": 0.2,
        "apply_mask": True,
        "mask_prob": 0.5,
        "mask_channel_prob": 0.25,
        "mask_channel_length": 64,
        "w2v_path": "/checkpoint/pretrained.pt",
    }
    inner = options(mode, **changes)
    configuration: dict[str, Any] = {
        "args": argparse.Namespace(
            **own, **task, w2v_args=argparse.Namespace(**inner, normalize=normalize)
        )
    }
    if form != "args":
        nested: Any = {"model": inner, "task": {"normalize": normalize}}
        if form == "mixed":  # fine-tuned later than pretrained
            nested = argparse.Namespace(**inner, normalize=normalize)
        model = {**own, "normalize": "${task.normalize}", "w2v_args": nested}
        configuration = {"cfg": {"model": model, "task": task}}
    return {**configuration, "model": renamed(theirs(Wav2Vec2ForCTC, mode), mode)}


def save(content: Any, folder: Path, zipped: bool = True) -> Path:
    path = folder / "checkpoint.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def wavs_for(mode: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Raw waveforms for us, and what fairseq's data loader makes of them for the model."""
    wavs = 0.01 * torch.randn(2, 3000, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return wavs, F.layer_norm(wavs, wavs.shape[1:]) if mode == "layer_norm" else wavs


# float32: rounding of other operation orders; float64: the same at its own precision
TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-12)]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES, ids=["float32", "float64"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", ["args", "cfg", "mixed"])
@pytest.mark.parametrize("mode", ["default", "layer_norm"])
@torch.no_grad()
def test_fine_tuned_models_give_the_reference_logits(
    tmp_path: Path, mode: str, form: str, zipped: bool, dtype: torch.dtype, tolerance: float
) -> None:
    model = load_fairseq(save(fine_tuned(mode, form), tmp_path, zipped)).to(dtype)
    assert isinstance(model, Wav2Vec2CTC) and not model.training
    wavs, inputs = wavs_for(mode, dtype)
    expected = theirs(Wav2Vec2ForCTC, mode).to(dtype)(inputs).logits
    assert (model(wavs).logits - expected).abs().max() < tolerance
    assert expected.std() > 0.1  # not a constant


@torch.no_grad()
def test_fine_tuning_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    """With its head, whose blank and padding are called otherwise, and its eps."""
    path = save(fine_tuned("layer_norm"), tmp_path)
    write_dictionary(tmp_path)
    expected = load_fairseq(path)
    assert isinstance(expected, Wav2Vec2CTC)
    body = Wav2Vec2(**expected.wav2vec2.config | {"normalize_eps": 1e-7})
    model, vocabulary = Wav2Vec2CTC(body, vocab_size=OUTPUTS), CharVocabulary("ET")
    load_pretrained(path, body)
    assert load_head(path, model, vocabulary)
    assert not load_head(path, model, CharVocabulary("TE"))
    wavs = wavs_for("layer_norm", torch.float32)[0]
    assert torch.equal(model.eval()(wavs).logits, expected(wavs).logits)
    assert body.normalize_eps == body.config["normalize_eps"] == 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES, ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["args", "cfg"])
@pytest.mark.parametrize("mode", ["default", "layer_norm"])
@torch.no_grad()
def test_pretrained_models_give_the_reference_projections(
    tmp_path: Path, mode: str, form: str, dtype: torch.dtype, tolerance: float
) -> None:
    model = load_fairseq(save(pretrained(mode, form), tmp_path)).to(dtype)
    assert isinstance(model, Wav2Vec2Pretraining) and not model.training
    wavs, inputs = wavs_for(mode, dtype)
    reference = theirs(Wav2Vec2ForPreTraining, mode).to(dtype)
    expected = reference(inputs)
    latents, _ = model.wav2vec2.extract(wavs)
    codes = model.quantizer(model.wav2vec2.projection.norm(latents)).vectors
    context = model.project_context(model.wav2vec2(wavs).context)
    assert (context - expected.projected_states).abs().max() < tolerance
    targets = model.project_targets(codes)
    assert (targets - expected.projected_quantized_states).abs().max() < tolerance


@pytest.mark.parametrize("mode", ["default", "layer_norm"])
def test_pretrained_files_go_on_and_become_transformers(tmp_path: Path, mode: str) -> None:
    """With quantizer and projections: nothing is missing there, and no bit changes."""
    path = save(pretrained(mode), tmp_path)
    convert(path, tmp_path / "hf")
    back, report = Wav2Vec2ForPreTraining.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report.values()), report
    expected, state = theirs(Wav2Vec2ForPreTraining, mode).state_dict(), back.state_dict()
    assert expected.keys() == state.keys()
    assert all(torch.equal(expected[key], state[key]) for key in expected)
    body = Wav2Vec2(dim=32, layers=1, heads=2, ffn_dim=8, channels=(4,) * 7)
    model = Wav2Vec2Pretraining(body, GumbelQuantizer(4, codes=5, dim=6), dim=12)
    assert start_from(model, path)
    assert torch.equal(model.quantizer.codebook, expected["quantizer.codevectors"])
    assert torch.equal(model.project_context.weight, expected["project_hid.weight"])


def test_settings_come_from_the_file(tmp_path: Path) -> None:
    tuned = load_fairseq(save(fine_tuned("layer_norm", "cfg"), tmp_path), padding="mask")
    config = tuned.wav2vec2.config
    assert config["normalize"] and config["normalize_eps"] == 1e-5 and config["padding"] == "mask"
    # of fine-tuning where it has its own, else of pretraining
    assert (config["dropout"], config["layer_drop"], config["attention_dropout"]) == (0.0, 0.1, 0.1)
    assert (tuned.dropout.p, tuned.mask_prob, tuned.mask_length) == (0.2, 0.5, 10)
    assert (tuned.channel_mask_prob, tuned.channel_mask_length) == (0.25, 64)
    for form in ("args", "cfg"):
        model = load_fairseq(save(pretrained(form=form, latent_temp=[2, 0.1, 0.9]), tmp_path))
        assert not model.wav2vec2.normalize and model.wav2vec2.padding == "exact"
        assert (model.negatives, model.diversity_weight, model.penalty_weight) == (7, 0.1, 10)
        assert model.equal_masks and model.quantizer.config["temperature"] == (2, 0.1)
        model.quantizer.updates.fill_(10)
        assert model.quantizer.temperature == pytest.approx(2 * 0.9**10, rel=1e-6)  # float32
        report = model.load_report
        assert (
            report.format == "fairseq" and report.renamed["mask_emb"] == "wav2vec2.mask_embedding"
        )


def test_half_precision_and_training_states_are_accepted(tmp_path: Path) -> None:
    content = fine_tuned()
    content["model"] = {key: value.half() for key, value in content["model"].items()}
    content["model"]["_ema"] = {"decay": 0.999}
    content["model"]["w2v_encoder.num_updates"] = torch.tensor(3)
    model = load_fairseq(save(content, tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert set(model.load_report.ignored) == {"_ema", "w2v_encoder.num_updates"}
    half = content["model"]["w2v_encoder.proj.bias"].float()
    assert torch.equal(model.head.bias, half)


def test_the_file_may_go_once_it_is_loaded(tmp_path: Path) -> None:
    path = save(fine_tuned(), tmp_path)
    model = load_fairseq(path)
    before = model.head.weight.detach().clone()
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(model.head.weight, before)


@pytest.mark.parametrize("spelling", ["parametrized", "folded"])
@torch.no_grad()
def test_other_spellings_of_weight_norm(tmp_path: Path, spelling: str) -> None:
    content = fine_tuned()
    expected = load_fairseq(save(content, tmp_path))
    stem = "w2v_encoder.w2v_model.encoder.pos_conv.0."
    g, v = (content["model"].pop(stem + name) for name in ("weight_g", "weight_v"))
    if spelling == "folded":
        content["model"][stem + "weight"] = g * v / v.norm(dim=(0, 1), keepdim=True)
    else:
        content["model"] |= {
            stem + "parametrizations.weight.original0": g,
            stem + "parametrizations.weight.original1": v,
        }
    wavs, _ = wavs_for("default", torch.float32)
    difference = load_fairseq(save(content, tmp_path))(wavs).logits - expected(wavs).logits
    assert difference.abs().max() < 1e-5  # folding rounds once more


KEY = "w2v_encoder.w2v_model.encoder.layers.1.fc2.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(KEY), f"1 missing: {KEY}"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 unknown: extra"),
        (lambda state: state.update({KEY: torch.zeros(3)}), f"1 misshapen: {KEY} (3,)"),
        (lambda state: state.update({KEY: "text"}), f"{KEY} is a str, expected a tensor"),
        (
            lambda state: [state.pop(f"w2v_encoder.proj.{x}") for x in ("weight", "bias")],
            "fine-tuned, but without w2v_encoder.proj",
        ),
    ],
    ids=["missing", "unknown", "misshapen", "no tensor", "no head"],
)
def test_wrong_keys_are_named_as_the_file_names_them(tmp_path: Path, change, message: str) -> None:
    content = fine_tuned()
    change(content["model"])
    path = save(content, tmp_path)
    with pytest.raises(CheckpointMismatch, match=re.escape(message)) as caught:
        load_fairseq(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_layers": 3}, "encoder_layers=3, the weights have 2"),
        ({"encoder_ffn_embed_dim": 64}, "encoder_ffn_embed_dim=64, the weights have 32"),
        ({"conv_pos": 16}, "conv_pos=16, the weights have 8"),
    ],
)
def test_a_configuration_against_the_weights_is_explained(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointMismatch, match="contradicts its weights") as caught:
        load_fairseq(save(pretrained(**changes), tmp_path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_type": "conformer"}, "layer_type='conformer' (expected 'transformer'"),
        ({"activation_fn": "relu"}, "activation_fn='relu' (expected 'gelu')"),
        ({"target_glu": True}, "target_glu=True (expected False)"),
        ({"quantize_input": True}, "quantize_input=True (expected False)"),
        ({"quantize_targets": False}, "quantize_targets=False (expected True)"),
        ({"quantizer_depth": 2}, "quantizer_depth=2 (expected 1)"),
        ({"pos_conv_depth": 5}, "pos_conv_depth=5 (expected 1)"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm=True (expected False)"),
        ({"extractor_mode": "batch_norm"}, "extractor_mode='batch_norm' (expected 'default'"),
    ],
)
def test_other_architectures_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    content = pretrained()
    content["args"].__dict__.update(changes)
    with pytest.raises(CheckpointMismatch, match=re.escape(message)):
        load_fairseq(save(content, tmp_path))


def test_other_data_is_refused(tmp_path: Path) -> None:
    content = fine_tuned(form="cfg")
    content["cfg"]["task"]["sample_rate"] = 8000
    with pytest.raises(CheckpointMismatch, match=r"sample_rate=8000 \(expected 16000\)"):
        load_fairseq(save(content, tmp_path))
    content = fine_tuned(form="cfg")
    content["cfg"]["task"]["normalize"] = "${model.normalize}"
    with pytest.raises(CheckpointMismatch, match=r"normalize='\$\{model.*expected False or True"):
        load_fairseq(save(content, tmp_path))
    content = fine_tuned(form="cfg")
    content["cfg"]["model"]["blank_weight"] = 2.0
    with pytest.raises(CheckpointMismatch, match=r"blank_weight=2.0 \(expected 0\)"):
        load_fairseq(save(content, tmp_path))


def test_other_negatives_are_a_warning(tmp_path: Path, caplog) -> None:
    load_fairseq(save(pretrained(cross_sample_negatives=10), tmp_path))
    assert "Trained with cross_sample_negatives" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "not a checkpoint of fairseq"),
        ({"weight": torch.zeros(1)}, "not a checkpoint of fairseq"),
        ({"model": {0: torch.zeros(1)}, "args": {"a": 1}}, "not a checkpoint of fairseq"),
        ({"model": {"mask_emb": torch.zeros(1)}}, "no configuration"),
        ({"model": {}, "args": {"a": 1}}, "does not describe a wav2vec 2.0 model"),
        ({"model": {}, "args": {"a": 1}, "adapter": {"eng": {}}}, "not what MMS has there"),
        (
            {"model": {"w2v_encoder.w2v_model.mask_emb": 1}, "args": {"w2v_path": "/gone.pt"}},
            "without the configuration of its pretraining .*'/gone.pt'",
        ),
    ],
)
def test_other_files_say_what_is_missing(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointMismatch, match=message):
        load_fairseq(save(content, tmp_path))


@pytest.mark.parametrize(
    "layers",
    [
        "__import__('os').system('touch executed')",
        "[(8, 10, 5)] * 1000000000",
        "[(8, 10, 5)] + [x for x in ()]",
        "[(8, 10, 5), (8, 3)]",
        "[(8, 10, 0)]",
        "[(8, 10, '5')]",
        "[(8, 10, 5.0)]",
        "[(8, 10",
        "(" * 5000,
        "",
    ],
    ids=range(10),
)
def test_convolutions_are_parsed_and_never_evaluated(
    tmp_path: Path, monkeypatch, layers: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointMismatch, match="does not describe a wav2vec"):
        load_fairseq(save(pretrained(conv_feature_layers=layers), tmp_path))
    assert not (tmp_path / "executed").exists()


def test_published_spellings_of_the_convolutions() -> None:
    published = [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2]
    assert _written("[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] * 2") == published
    assert _written(" [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]") == published
    assert _written([tuple(layer) for layer in published]) == published


def write_dictionary(folder: Path, name: str = "dict.ltr.txt") -> None:
    (folder / name).write_text("| 94802\nE 51860\nT 38431\n")


@pytest.mark.parametrize("name", ["dict.ltr.txt", "dict.ml.txt"])
def test_the_dictionary_beside_the_file(tmp_path: Path, name: str) -> None:
    path = save(fine_tuned(), tmp_path)
    write_dictionary(tmp_path, name)
    vocabulary = fairseq_vocabulary(path)
    assert vocabulary.get_blank_index() == 0 and len(vocabulary) == OUTPUTS
    # the row of the blank is the one that transformers calls <pad>; targets end with "|"
    assert vocabulary.decode_tokens([6, 5, 4, 1, 3, 5, 4]) == "TE E"
    assert vocabulary.encode_text("te e") == [6, 5, 4, 5]


def test_the_dictionary_in_the_file_comes_first(tmp_path: Path) -> None:
    write_dictionary(tmp_path)
    content = fine_tuned()
    content["task_state"] = {"target_dictionary": dictionary([*SYMBOLS[:5], "é", "è"])}
    assert fairseq_vocabulary(save(content, tmp_path)).decode_tokens([5, 6]) == "éè"


def test_without_a_dictionary_it_says_which_file_goes_where(tmp_path: Path) -> None:
    path = save(fine_tuned(), tmp_path)
    with pytest.raises(FileNotFoundError, match="there are 0 beside it") as caught:
        fairseq_vocabulary(path)
    assert f"into {tmp_path}, as dict.ltr.txt" in str(caught.value)
    for name in ("dict.a.txt", "dict.b.txt"):
        write_dictionary(tmp_path, name)
    with pytest.raises(FileNotFoundError, match="there are 2 beside it"):
        fairseq_vocabulary(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("| 94802\nE 51860\n", "6 symbols for 7 outputs"),
        ("| 94802\nE 51860\nT 3\nA 2\n", "8 symbols for 7 outputs"),
        ("| 94802\nE 51860\nE 3\n", "without a symbol: 5"),
        ("| 94802\nE\nT 3\n", "line 2: got 'E', expected a symbol and a count"),
        ("| 94802\nE 5 #fairseq:overwrite\nT 3\n", "line 2: got 'E 5 #fairseq:overwrite'"),
    ],
    ids=["few", "many", "twice", "no count", "flag"],
)
def test_wrong_dictionaries(tmp_path: Path, text: str, message: str) -> None:
    path = save(fine_tuned(), tmp_path)
    (tmp_path / "dict.ltr.txt").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        fairseq_vocabulary(path)
    assert "dict.ltr.txt" in str(caught.value)


def test_symbols_of_any_script(tmp_path: Path) -> None:
    (tmp_path / "dict.ltr.txt").write_text("| 9\nമ 5\n\u200d 2\n", encoding="utf-8")
    assert read_dictionary(tmp_path / "dict.ltr.txt") == ["|", "മ", "\u200d"]


def multilingual() -> tuple[dict[str, Any], dict[str, nn.Module]]:
    """Content of a file such as mms1b_all.pt, and the model of each language."""
    mode = "layer_norm"
    shared = theirs(Wav2Vec2ForCTC, mode, adapter=ADAPTER)
    content = fine_tuned(mode, "cfg")
    own = {"layer_type": "trf_adp", "adp_num": 1, "adp_dim": ADAPTER, "adp_act_fn": "relu"}
    content["cfg"]["model"].update(own)
    content["model"] = renamed(shared, mode)
    content["adapter"], models = {}, {}
    for number, language in enumerate(("eng", "mal"), 1):
        model = theirs(Wav2Vec2ForCTC, mode, adapter=ADAPTER)
        model.lm_head = nn.Linear(16, OUTPUTS + number)
        torch.manual_seed(number)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "adapter_layer" in name or "lm_head" in name:
                    parameter.copy_(torch.randn_like(parameter))
        own_weights = {
            key: value
            for key, value in renamed(model, mode).items()
            if "adapter_layer" in key or "w2v_encoder.proj" in key
        }
        symbols = dictionary([*SYMBOLS, *f"{language}"[:number]])
        task_state = {"target_dictionary": symbols}
        content["adapter"][language] = {"model": own_weights, "task_state": task_state}
        models[language] = model
    return content, models


@torch.no_grad()
def test_languages_of_an_mms_file(tmp_path: Path) -> None:
    content, models = multilingual()
    checkpoint = read_fairseq(save(content, tmp_path))
    assert checkpoint.languages == ["eng", "mal"]
    model = checkpoint.model().double()
    assert model.wav2vec2.config["adapter_dim"] == ADAPTER
    wavs, inputs = wavs_for("layer_norm", torch.float64)
    for language, reference in models.items():
        weights, vocabulary = checkpoint.language(language)
        assert len(vocabulary) == len(weights["head.bias"])
        model.head = nn.Linear(16, len(vocabulary)).double()
        unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
        assert not unexpected and len(weights) == 6 * LAYERS + 2
        expected = reference.double()(inputs).logits
        assert (model(wavs).logits - expected).abs().max() < 1e-12  # float64 rounding
    assert fairseq_vocabulary(checkpoint.path, "mal").decode_tokens([7, 8]) == "ma"


def test_unknown_languages_and_damaged_adapters(tmp_path: Path) -> None:
    content, _ = multilingual()
    with pytest.raises(ValueError, match=r"no adapter for 'xyz'; it has 2 languages: eng, mal\."):
        read_fairseq(save(content, tmp_path)).language("xyz")
    with pytest.raises(ValueError, match="it has 0 languages: none"):
        read_fairseq(save(fine_tuned(), tmp_path)).language("eng")
    key = "w2v_encoder.w2v_model.encoder.layers.0.adapter_layer.W_a"
    english = content["adapter"]["eng"]["model"]
    kept = english.pop(key)
    with pytest.raises(CheckpointMismatch, match=f"1 keys are missing or unknown, such as {key}"):
        read_fairseq(save(content, tmp_path)).language("eng")
    english[key] = kept.expand(3, -1, -1)
    with pytest.raises(CheckpointMismatch, match=r"W_a has shape \(3, 4, 16\), expected \(1"):
        read_fairseq(save(content, tmp_path)).language("eng")
    english[key] = kept
    content["adapter"]["eng"]["task_state"] = {}
    with pytest.raises(ValueError, match="language eng: 0 symbols for 8 outputs"):
        read_fairseq(save(content, tmp_path)).language("eng")
