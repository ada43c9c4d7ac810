"""From any checkpoint to a new language: the body goes on, and rows of the head."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml

from w2v_plugin import transfer
from w2v_plugin.continuation import OF_TRAINING, body_of
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.folders import plain, save_asr, save_pretrained
from w2v_plugin.hf_export import export_hf
from w2v_plugin.interfaces import Wav2Vec2ASR
from w2v_plugin.language_folders import open_language
from w2v_plugin.languages import languages
from w2v_plugin.manifests import Utterance, write_manifest
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.text import CharVocabulary
from w2v_plugin.training import StepBrain
from w2v_plugin.transfer import begin, known_rows

ROOT = Path(__file__).resolve().parent.parent
YAML = ROOT / "hparams/transfer/tiny.yaml"
SHAPE = {"dim": 32, "layers": 2, "heads": 2, "ffn_dim": 64, "channels": (16,) * 7}
VOCAB = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "g": 5, "o": 6, "ö": 7, "n": 8}
TAKEN = ["<pad>", "<s>", "</s>", "<unk>", "|", "g", "o", "n"]


def english(norm_first: bool = True, **options: float) -> Wav2Vec2CTC:
    torch.manual_seed(0)
    return Wav2Vec2CTC(Wav2Vec2(**SHAPE, norm_first=norm_first, **options), vocab_size=32).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned English model, a manifest of another language, and its vocabulary."""
    folder = tmp_path_factory.mktemp("transfer")
    save_asr(folder / "english", english(), CharVocabulary())
    (folder / "vocab.json").write_text(json.dumps(VOCAB))
    generator = torch.Generator().manual_seed(0)
    utterances = []
    for i in range(6):
        path = folder / f"{i}.wav"
        soundfile.write(path, 0.1 * torch.randn(16000 + 800 * i, generator=generator), 16000)
        utterances.append(Utterance(f"u{i}", path, "s", "gö on", f"list:{i + 1}"))
    write_manifest(folder / "all.csv", utterances)
    return folder


def arguments(place: Path, out: Path, **more: object) -> dict[str, object]:
    sources = {"pretrained": str(place / "english"), "vocab": str(place / "vocab.json")}
    data = dict.fromkeys(("train_csv", "valid_csv"), str(place / "all.csv"))
    steps = {"updates": 4, "valid_every": 2, "log_every": 1, "batch_s": 4, "adapter_dim": 4}
    return {**sources, **data, **steps, "lora_rank": 2, "output_folder": str(out), **more}


def loaded(place: Path, out: Path, **more: object) -> dict:
    with YAML.open() as file:
        return load_hyperpyyaml(file, arguments(place, out, **more))


def run(place: Path, out: Path, **more: object) -> None:
    options = [f"--{k}={v}" for k, v in arguments(place, out, **more).items()]
    test_csvs = f"--test_csvs={{test: {place / 'all.csv'}}}"
    transfer.run([str(YAML), "--device=cpu", "--noprogressbar", test_csvs, *options])


# --- body_of -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pretrained", "asr", "hf"])
def test_the_architecture_is_the_checkpoints(kind: str, tmp_path: Path) -> None:
    """Sizes and weights from there, dropouts from here: none where nothing is said."""
    model, folder = english(attention_dropout=0.125), tmp_path / "m"
    if kind == "pretrained":
        save_pretrained(folder, model.wav2vec2)
    elif kind == "asr":
        save_asr(folder, model, CharVocabulary())
    else:
        export_hf(model, folder)
    body = body_of(folder, dropout=0.25, layer_drop=0.125)
    changes = {"dropout": 0.25, "layer_drop": 0.125, "attention_dropout": 0.0}
    assert plain(body.config) == plain(model.wav2vec2.config) | changes
    wav = torch.randn(1, 8000)
    with torch.no_grad():
        assert torch.equal(body.eval()(wav).context, model.wav2vec2(wav).context)


def test_the_architecture_is_not_for_choice(place: Path) -> None:
    with pytest.raises(ValueError, match=r"dim, heads: the architecture is that of .*only padding"):
        body_of(place / "english", heads=4, dim=8, dropout=0.1)
    assert body_of(place / "english", **dict.fromkeys(OF_TRAINING[1:], 0)).dim == 32


def test_adapters_that_cannot_be(tmp_path: Path, place: Path) -> None:
    save_pretrained(tmp_path / "base", english(norm_first=False).wav2vec2)
    with pytest.raises(ValueError, match=r"post-norm model, as BASE is.*Use adapters: lora"):
        body_of(tmp_path / "base", adapters="mms")
    assert body_of(tmp_path / "base", adapters="lora").config["lora_rank"] == 8
    save_pretrained(tmp_path / "mms", Wav2Vec2(**SHAPE, norm_first=True, adapter_dim=6))
    assert body_of(tmp_path / "mms", adapters="mms", adapter_dim=4).config["adapter_dim"] == 6
    with pytest.raises(ValueError, match="has language adapters already"):
        body_of(tmp_path / "mms", adapters="lora")
    conformer = Wav2Vec2(**SHAPE, norm_first=True, conformer="rotary")
    save_pretrained(tmp_path / "conformer", conformer)
    with pytest.raises(ValueError, match=r"a conformer.*Use adapters: null"):
        body_of(tmp_path / "conformer", adapters="lora")
    with pytest.raises(ValueError, match="adapters='all', expected mms, lora or null"):
        body_of(place / "english", adapters="all")
    with pytest.raises(ValueError, match="pretrained=None, expected a model folder"):
        body_of(None)


# --- begin ---------------------------------------------------------------------------------------


def test_rows_of_shared_characters_go_on(place: Path, tmp_path: Path, capsys) -> None:
    hparams = loaded(place, tmp_path)
    assert begin(hparams)["rows_taken"] == TAKEN
    assert "The head goes on for 8 of 9 symbols: <pad>" in capsys.readouterr().out
    old, head = english().head, hparams["model"].head
    assert torch.equal(head.weight[5], old.weight[CharVocabulary().lab2ind["G"]])
    assert not any(torch.equal(head.weight[7], row) for row in old.weight)
    fresh = loaded(place, tmp_path, take_rows=False)
    before = fresh["model"].head.weight.clone()
    assert "rows_taken" not in begin(fresh)
    assert torch.equal(fresh["model"].head.weight, before)


def test_heads_that_nothing_explains_are_new(place: Path, tmp_path: Path, caplog) -> None:
    vocabulary = CharVocabulary("gon")
    export_hf(english(), tmp_path / "hf")  # no vocab.json
    assert known_rows(tmp_path / "hf", english(), vocabulary) is None
    assert "nothing says what the old one means" in caplog.text
    save_pretrained(tmp_path / "body", english().wav2vec2)
    assert known_rows(tmp_path / "body", english(), vocabulary) is None


@pytest.mark.parametrize("adapters", ["mms", "lora"])
def test_adapters_alone_learn(adapters: str, place: Path, tmp_path: Path, capsys) -> None:
    hparams = loaded(place, tmp_path, adapters=adapters, language="deu")
    notes = begin(hparams)
    learning = {n for n, p in hparams["model"].named_parameters() if p.requires_grad}
    part = {"mms": ".adapter.", "lora": ".lora."}[adapters]
    assert learning and all(part in n or n.startswith("head.") for n in learning)
    assert hparams["encoder_lr"] == hparams["adapter_lr"]
    own, shared = notes["parameters_own"], notes["parameters_shared"]
    said = f"deu: {own:,} parameters of its own, {own / shared:.2%} of the {shared:,}"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"adapters": "mms"}, "say which, as in --language deu"),
        ({"language": "deu"}, "without adapters"),
        ({"adapters": "mms", "language": "d/e"}, "expected letters, digits"),
        ({"adapters": "mms", "language": False}, "YAML reads a bare no as false"),
        ({"model_folder": "/tmp/elsewhere"}, "would be overwritten"),
        ({"adapters": "lora", "lora_rank": 99, "language": "deu"}, "from 1 to dim=32"),
    ],
)
def test_what_excludes_each_other(more: dict, message: str, place: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        begin(loaded(place, tmp_path, **more))


# --- the recipe ----------------------------------------------------------------------------------


def test_a_language_is_replaced_by_its_own_training_only(place: Path, tmp_path: Path) -> None:
    """In a folder of several: the same command again ends as before, after a kill, too."""
    how = {"adapters": "mms", "model_folder": tmp_path / "all"}
    run(place, tmp_path / "deu", **how, language="deu")
    (tmp_path / "deu/results.json").unlink()
    run(place, tmp_path / "deu", **how, language="deu")
    assert (tmp_path / "deu/results.json").is_file()
    with pytest.raises(FileExistsError, match="has deu already"):
        run(place, tmp_path / "other", **how, language="deu")
    file = tmp_path / "all/adapter.deu.safetensors"
    file.write_bytes(file.read_bytes() + b"?")  # as from another training
    with pytest.raises(FileExistsError, match="has deu already"):
        run(place, tmp_path / "deu", **how, language="deu")


@pytest.mark.slow
@pytest.mark.parametrize("adapters", ["mms", "lora"])
def test_languages_are_added_one_by_one(adapters: str, place: Path, tmp_path: Path) -> None:
    """The first makes the folder, the second leaves the first as it is, to the bit."""
    run(place, tmp_path / "deu", adapters=adapters, language="deu")
    folder, wav = tmp_path / "deu/model", torch.randn(1, 16000)
    report = json.loads((tmp_path / "deu/results.json").read_text())
    assert report["rows_taken"] == TAKEN and report["language"] == "deu"
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    with torch.no_grad():
        expected = open_language(folder, "deu")[0](wav).logits
        pretrained = english().wav2vec2(wav).context
        model, vocabulary = open_language(folder)
        assert vocabulary.lab2ind == VOCAB
        assert not torch.equal(model.wav2vec2(wav).context, pretrained)  # the adapters learned
    add = {"adapters": adapters, "language": "swe", "model_folder": folder}
    run(place, tmp_path / "swe", **add)  # from the same model as the first; or from the folder:
    run(place, tmp_path / "nor", **add | {"pretrained": folder, "language": "nor"})
    assert languages(folder) == ["deu", "nor", "swe"]
    changed = [name for name, content in old.items() if (folder / name).read_bytes() != content]
    assert changed == ["vocab.json"] and not (tmp_path / "swe/model").exists()
    with torch.no_grad():
        assert torch.equal(open_language(folder, "deu")[0](wav).logits, expected)
    asr = Wav2Vec2ASR.from_hparams(folder, language="swe", run_opts={"device": "cpu"})
    assert isinstance(asr.transcribe_file(place / "0.wav"), str)
    with pytest.raises(FileExistsError, match="has nor already"):
        run(place, tmp_path / "again", **add | {"language": "nor"})
    run(place, tmp_path / "deu", adapters=adapters, language="deu")  # its own, once more


@pytest.mark.slow
def test_adapters_resume_exactly(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle, with averaging and patience: the same adapters to the bit."""

    class Killed(BaseException):
        pass

    original = StepBrain.on_fit_batch_end

    def kill_after_three(self: StepBrain, *args: object) -> None:
        original(self, *args)
        if self.optimizer_step == 3:
            raise Killed

    options = {"adapters": "mms", "language": "deu", "average": 2, "patience": 3, "updates": 6}
    options |= {"best_by": "WER", "take_rows": False}
    run(place, tmp_path / "whole", **options)
    every = {"ckpt_interval_minutes": 0, "ckpt_interval_steps": 1}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StepBrain, "on_fit_batch_end", kill_after_three)
        run(place, tmp_path / "killed", **options, **every)
    assert not (tmp_path / "killed/model").exists()
    run(place, tmp_path / "killed", **options, **every)
    [whole, again] = [
        {path.name: path.read_bytes() for path in (tmp_path / x / "model").iterdir()}
        for x in ("whole", "killed")
    ]
    assert whole == again
    reports = [json.loads((tmp_path / x / "results.json").read_text()) for x in ("whole", "killed")]
    assert reports[0]["weights"] == reports[1]["weights"] and "mean" in reports[0]["weights"]


@pytest.mark.parametrize("more", [{}, {"adapters": "mms", "language": "deu"}])
def test_half_precision_with_all_masks_gives_no_nan(
    more: dict, place: Path, tmp_path: Path
) -> None:
    """Utterances of a few frames among them, and one whose transcript CTC cannot say in time."""
    utterances = []
    for i, (samples, text) in enumerate(
        [(1700, "g"), (2000, "gön"), (16000, "gö on"), (9000, "ö")]
    ):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, 0.1 * torch.randn(samples).numpy(), 16000)
        utterances.append(Utterance(f"u{i}", path, "s", text, f"list:{i + 1}"))
    utterances.append(Utterance("long", tmp_path / "0.wav", "s", "gönn " * 20, "list:9"))
    write_manifest(tmp_path / "all.csv", utterances)
    data = dict.fromkeys(("train_csv", "valid_csv"), str(tmp_path / "all.csv"))
    run(place, tmp_path / "out", precision="bf16", max_grad_norm=1e9, **data, **more)
    records = [json.loads(x) for x in (tmp_path / "out/steps.jsonl").read_text().splitlines()]
    for record in records:
        assert all(math.isfinite(value) for value in record.values()), record
    assert len([r for r in records if "loss" in r]) == 4


@pytest.mark.slow
def test_all_weights_make_a_plain_model(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path)
    asr = Wav2Vec2ASR.from_hparams(tmp_path / "model", run_opts={"device": "cpu"})
    assert asr.tokenizer.lab2ind == VOCAB
    body, old = asr.mods.model.wav2vec2, english().wav2vec2
    assert plain(body.config) == plain(old.config) | {"dropout": 0.05}


@pytest.mark.slow
def test_mistakes_are_one_line(place: Path, tmp_path: Path) -> None:
    """Exit status 2, before any training."""
    options = [f"--{k}={v}" for k, v in arguments(place, tmp_path / "out").items()]
    wrong = [*options, "--adapters=mms", "--device=cpu"]
    command = [sys.executable, str(ROOT / "recipes/transfer.py")]
    done = subprocess.run([*command, str(YAML), *wrong], capture_output=True, text=True)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("transfer: error:")]
    assert "--language deu" in line and "Traceback" not in done.stderr
    assert not (tmp_path / "out/model").exists() and not (tmp_path / "out/steps.jsonl").exists()
    teaching = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert teaching.returncode == 0 and "--adapters lora --language deu" in teaching.stdout
