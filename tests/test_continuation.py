"""Continued pretraining: what comes from the checkpoint, what from the recipe, and what is new."""

from __future__ import annotations

import importlib.util
import inspect
import logging
from pathlib import Path

import pytest
import soundfile
import torch
import torchaudio
from torch import nn

from w2v_plugin.continuation import OF_TRAINING, start_from
from w2v_plugin.conversion import load_pretraining
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.folders import save_asr, save_pretrained
from w2v_plugin.hf_export import export_hf
from w2v_plugin.manifests import Utterance, write_manifest
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer, NearestQuantizer
from w2v_plugin.text import CharVocabulary

CODES = "{channels: 8, codes: 20, dim: 8}"
ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURE = {
    *("dim", "layers", "heads", "ffn_dim", "channels", "kernels", "strides", "extractor_norm"),
    *("conv_bias", "norm_first", "normalize", "normalize_eps", "positions_kernel"),
    *("positions_groups", "causal_positions", "adapter_dim", "conformer", "conformer_kernel"),
    *("lora_rank", "lora_alpha"),
}
KINDS = {"gumbel": GumbelQuantizer, "nearest": NearestQuantizer}


def tiny(**changes) -> Wav2Vec2:
    shape = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    return Wav2Vec2(**{**shape, "positions_kernel": 8, "positions_groups": 4, **changes})


def pretraining(kind: str = "gumbel", codes: int = 5, **changes) -> Wav2Vec2Pretraining:
    body = tiny(**changes)
    quantizer = KINDS[kind](body.projection.linear.in_features, codes=codes, dim=6)
    return Wav2Vec2Pretraining(body, quantizer, dim=4, negatives=9)


def same_state(x: nn.Module, y: nn.Module) -> bool:
    a, b = x.state_dict(), y.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def step(model: Wav2Vec2Pretraining) -> float:
    """One update with its loss; None of the parameters may be left without a gradient."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    loss = model.train()(torch.randn(2, 8000)).loss
    loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    optimizer.step()
    return float(loss.detach())


def test_every_argument_is_either_architecture_or_training() -> None:
    """A new argument of Wav2Vec2 must say which of the two it is."""
    arguments = set(inspect.signature(Wav2Vec2).parameters)
    assert arguments == ARCHITECTURE | set(OF_TRAINING)
    assert not ARCHITECTURE & set(OF_TRAINING)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_taken_over(kind: str, tmp_path: Path, caplog) -> None:
    """Body, codes, their counters and projections; the recipe's settings of training stay."""
    old = pretraining(kind, extractor_norm="layer", norm_first=True)
    old.quantizer.updates += 40
    save_pretrained(tmp_path, old)
    model = pretraining(kind, extractor_norm="layer", norm_first=True, dropout=0.3, layer_drop=0.2)
    model.wav2vec2.config["feature_grad_scale"] = 0.1
    with caplog.at_level(logging.INFO):
        assert start_from(model, tmp_path)
    assert same_state(model, old) and int(model.quantizer.updates) == 40
    assert "too; it goes on from update 40" in caplog.text and "otherwise" not in caplog.text
    assert model.wav2vec2.encoder.dropout.p == 0.3 and model.wav2vec2.encoder.layer_drop == 0.2
    assert model.wav2vec2.feature_grad_scale == 0.1 and model.negatives == 9
    step(model)
    assert not same_state(model, old)


def test_the_architecture_is_the_checkpoints(tmp_path: Path, caplog) -> None:
    """Other sizes than the recipe's are adopted, and told; the head is widened to fit."""
    old = pretraining(
        dim=24, layers=3, ffn_dim=40, channels=(12,) * 7, norm_first=True, normalize=False
    )
    save_pretrained(tmp_path, old)
    model = pretraining(dropout=0.1)
    assert start_from(model, tmp_path) and same_state(model, old)
    for said in ("dim 24 instead of 16", "layers 3 instead of 2", "normalize False instead of"):
        assert said in caplog.text
    assert "dropout" not in caplog.text
    assert model.quantizer.config["channels"] == 12
    step(model)
    save_pretrained(tmp_path / "on", model)  # the new folder describes the new architecture
    assert start_from(again := pretraining(), tmp_path / "on") and same_state(again, model)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (pretraining("nearest"), "quantizer NearestQuantizer instead of GumbelQuantizer"),
        (pretraining(codes=7), "codes 7 instead of 5"),
    ],
)
def test_another_head_starts_anew_as_a_whole(other, said: str, tmp_path: Path, caplog) -> None:
    """Old projections mean nothing to new codes: neither is taken over, and the log says why."""
    save_pretrained(tmp_path, other)
    model = pretraining()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not start_from(model, tmp_path)
    assert "quantizer and projections start anew" in caplog.text and said in caplog.text
    assert same_state(model.wav2vec2, other.wav2vec2)
    head = [name for name in before if not name.startswith("wav2vec2.")]
    assert head and all(torch.equal(before[name], model.state_dict()[name]) for name in head)
    step(model)


def write_torchaudio(folder: Path) -> nn.Module:
    """A state dict as torchaudio publishes them: no mask embedding, no masks."""
    theirs = torchaudio.models.wav2vec2_model(
        "group_norm",
        [(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2,
        False,
        *(64, 0.0, 8, 4, 2, 1, 0.0, 32, 0.0, 0.0, False, 0.0),
        7,
    )
    torch.save(theirs.state_dict(), folder / "model.pt")
    return theirs


@pytest.mark.parametrize("kind", ["body", "ctc", "hf_ctc", "mms", "torchaudio"])
def test_bodies_and_fine_tuned_models_start_a_new_head(kind: str, tmp_path: Path, caplog) -> None:
    """A CTC head is left behind, whoever wrote it; the first update reaches every parameter."""
    source = tmp_path / "source"
    mms = {"norm_first": True, "extractor_norm": "layer", "adapter_dim": 4}
    body = tiny(**mms if kind == "mms" else {})
    ctc = Wav2Vec2CTC(body, vocab_size=7)
    if kind == "body":
        save_pretrained(source, body)
    elif kind == "ctc":
        save_asr(source, ctc, CharVocabulary("ab"))
    elif kind in ("hf_ctc", "mms"):
        export_hf(ctc, source, CharVocabulary("ab"))
    else:
        source.mkdir()
        theirs, source = write_torchaudio(source), source / "model.pt"
    model = pretraining(feature_grad_scale=0.5)
    assert not start_from(model, source)
    assert f"a {'Wav2Vec2' if kind == 'body' else 'Wav2Vec2CTC'} has none" in caplog.text
    if kind == "torchaudio":
        weight = theirs.encoder.transformer.layers[1].feed_forward.output_dense.weight
        assert torch.equal(model.wav2vec2.encoder.layers[1].ffn_out.weight, weight)
    else:
        assert same_state(model.wav2vec2, body)
    assert model.wav2vec2.feature_grad_scale == 0.5
    step(model)


def test_published_pretraining_goes_on_with_its_codes(tmp_path: Path, caplog) -> None:
    """transformers' folder of pretraining; it has no counter, so the temperature starts again."""
    old = pretraining(layer_drop=0.05)
    export_hf(old, tmp_path / "hf")
    model = pretraining()
    with caplog.at_level(logging.INFO):
        assert start_from(model, tmp_path / "hf")
    assert same_state(model, old) and "goes on from update 0" in caplog.text
    assert model.wav2vec2.encoder.layer_drop == 0.0


def test_idle_positions_of_a_conformer_stay_frozen(tmp_path: Path) -> None:
    """They are part of the published weights and never learn; DDP would wait for them."""
    old = pretraining(conformer="rotary", norm_first=True)
    save_pretrained(tmp_path, old)
    model = pretraining()
    assert start_from(model, tmp_path)
    idle = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert idle == {name for name, p in old.named_parameters() if not p.requires_grad}
    assert idle
    step(model)


def test_a_bad_source_leaves_the_model_alone(tmp_path: Path) -> None:
    model = pretraining()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FileNotFoundError, match="no such folder"):
        start_from(model, tmp_path / "absent")
    save_pretrained(tmp_path / "half", pretraining())
    (tmp_path / "half" / "pretraining.ckpt").write_bytes(b"half")
    with pytest.raises(CheckpointMismatch, match="Is the file complete"):
        start_from(model, tmp_path / "half")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six utterances of noise, a second each."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    utterances = []
    for i in range(6):
        noise = torch.randn(16000 + 800 * i, generator=generator)
        soundfile.write(path := folder / f"{i}.wav", 0.1 * noise.numpy(), 16000)
        utterances.append(Utterance(f"u{i}", path, "s", "", f"list:{i + 1}"))
    write_manifest(folder / "all.csv", utterances)
    return folder / "all.csv"


def pretrain(manifest: Path, out: Path, *more: str) -> Path:
    """Two updates with recipes/pretrain.py; the model folder."""
    spec = importlib.util.spec_from_file_location("pretrain", ROOT / "recipes/pretrain.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    shape = "dim: 16, heads: 2, ffn_dim: 32, channels: [8, 8, 8, 8, 8, 8, 8]"
    module.main(
        [
            str(ROOT / "hparams/pretrain/tiny.yaml"),
            *("--device=cpu", "--noprogressbar", f"--output_folder={out}"),
            *(f"--train_csv={manifest}", f"--valid_csv={manifest}", f"--wav2vec2={{{shape}}}"),
            *("--updates=2", "--valid_every=2", "--log_every=1", "--batch_s=4"),
            *more,
        ]
    )
    return out / "model"


def test_the_recipe_goes_on_from_a_body_and_from_what_it_wrote(
    manifest: Path, tmp_path: Path
) -> None:
    """First with new codes, then with these; at a rate of 0, no weight moves in between."""
    save_pretrained(tmp_path / "body", body := tiny(extractor_norm="layer", norm_first=True))
    still = [f"--quantizer={CODES}", "--lr=0", "--slow_lr=0"]
    first = pretrain(manifest, tmp_path / "a", *still, f"--start_from={tmp_path / 'body'}")
    log = (tmp_path / "a" / "log.txt").read_text()
    assert "quantizer and projections start anew (a Wav2Vec2 has none)" in log
    assert not (tmp_path / "a" / "warm_start").exists()  # it would spoil the extractor
    old = load_pretraining(first)
    assert same_state(old.wav2vec2, body)
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    second = pretrain(manifest, tmp_path / "b", *still, f"--start_from={first}", "--seed=1")
    log = (tmp_path / "b" / "log.txt").read_text()
    assert "quantizer taken over, too; it goes on from update 2" in log
    new = load_pretraining(second)
    assert int(new.quantizer.updates) == 4
    counted = {"quantizer.updates", "quantizer.running_usage"}
    for name, tensor in old.state_dict().items():
        assert name in counted or torch.equal(tensor, new.state_dict()[name]), name
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
