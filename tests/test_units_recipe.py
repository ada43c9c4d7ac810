"""The recipe from a manifest and alignments to its files, on phones made of tones."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch

from w2v_plugin.clusters import KMeans
from w2v_plugin.folders import save_pretrained
from w2v_plugin.manifests import Utterance, write_manifest
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import NearestQuantizer
from w2v_plugin.unit_models import Wav2Vec2Units

pytest.importorskip("sklearn", reason="k-means needs scikit-learn")
ROOT = Path(__file__).resolve().parent.parent
TONES = {"a": 300, "b": 800, "c": 2000, "d": 4500, "_": 0}


def script() -> ModuleType:
    path = ROOT / "recipes" / "units.py"
    spec = importlib.util.spec_from_file_location("units_recipe", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


recipe = script()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six speakers who say tones of 200 ms and pauses; a small model with and without codes."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    listed, starts = [], {}
    time = np.arange(3200) / 16000
    for number in range(12):
        said = list(generator.permutation(list(TONES) * 2))
        wav = np.concatenate([0.3 * np.sin(2 * np.pi * TONES[phone] * time) for phone in said])
        path = folder / f"{number}.wav"
        soundfile.write(path, wav + 0.01 * generator.normal(size=len(wav)), 16000)
        starts[f"u{number}"] = [[0.2 * i, phone] for i, phone in enumerate(said)]
        listed.append(Utterance(f"u{number}", path, f"s{number // 2}", "", f"list:{number}"))
    write_manifest(folder / "all.csv", listed)
    write_manifest(folder / "fit.csv", listed[:4])
    write_manifest(folder / "test.csv", listed[4:])
    (folder / "phones.json").write_text(json.dumps(starts))
    torch.manual_seed(0)
    body = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    model = Wav2Vec2Pretraining(body, NearestQuantizer(8, codes=6, dim=8), dim=8)
    save_pretrained(folder / "model", model)
    save_pretrained(folder / "body", body)
    return folder


def run(corpus: Path, out: Path, *more: str, manifest: str = "all.csv") -> int:
    common = ["--manifest", str(corpus / manifest), "--alignments", str(corpus / "phones.json")]
    common += ["--output_folder", str(out), "--device", "cpu", "--clusters", "5"]
    return recipe.main([*common, "--models", f"mine={corpus / 'model'}", *more])


def test_everything_is_written(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Every system on the same frames; MFCCs tell tones apart, shuffled units nothing."""
    more = ("--fit", str(corpus / "fit.csv"))
    assert run(corpus, tmp_path, *more, manifest="test.csv") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    names = [(entry["model"], entry["units"]) for entry in results["systems"]]
    kinds = ["group 0", "group 1", "joint", "layer 0, 5", "layer 1, 5"]
    networks = [(model, kind) for model in ("mine", "random") for kind in kinds]
    assert names == [*networks, ("mfcc", "raw, 5"), ("mfcc", "normalized, 5")]
    # 2 s give 99 frames of 20 ms
    assert results["scored"] == {"utterances": 8, "frames": 8 * 99}
    assert results["fitting"]["utterances"] == 4 and results["phones"] == 5
    assert results["silence"] == pytest.approx(0.2, abs=0.01)
    for entry in results["systems"]:
        assert 0 <= entry["pnmi_shuffled"] < 0.06 and entry["pnmi_shuffled"] <= entry["pnmi"] + 0.02
        assert 1 <= entry["used"] <= 36 and entry["run_bitrate"] <= entry["bitrate"] <= 50 * 5.2
    assert results["systems"][-2]["pnmi"] > 0.7  # or the baseline is broken
    table = (tmp_path / "table.md").read_text()
    assert table.count("\n| mine |") == 5 and f"{results['systems'][0]['pnmi']:.3f} (" in table
    assert table.splitlines()[0] in capsys.readouterr().out
    pictures = sorted(path.stem for path in (tmp_path / "heatmaps").iterdir())
    assert len(pictures) == len(names) and "mine-joint" in pictures
    assert (tmp_path / "usage.png").stat().st_size > 1000


def test_codes_and_clusters_are_those_of_the_command(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is scored here is what `w2v units` writes, and its files of clusters are for that."""
    monkeypatch.setattr(recipe, "heat_map", lambda *drawn: None)
    run(corpus, tmp_path, "--layers", "1")
    units = Wav2Vec2Units.from_hparams(corpus / "model", run_opts={"device": "cpu"})
    rows = [{"ID": "u0", "wav": str(corpus / "0.wav"), "duration": 2.0}]
    models = recipe.named_models([str(corpus / "model")], torch.device("cpu"), 0)
    found = dict(models.items())
    layers = {name: [1] for name in found}
    [(_, features)] = recipe.over_utterances(rows, found, layers, "test")
    name = str(corpus / "model")
    assert (units.encode_file(corpus / "0.wav") == features[name, "codes"]).all()
    kmeans = KMeans.load(tmp_path / "kmeans" / "mine-layer-1-5.safetensors")
    units.use(kmeans)
    expected = kmeans(torch.from_numpy(features[name, "layer 1"])).numpy()
    # nearly: the command packs its weights, and a frame between two centres may fall to either
    assert (units.encode_file(corpus / "0.wav")[:, 0] == expected).mean() > 0.97


def test_halves_silence_and_models_without_codes(corpus: Path, tmp_path: Path) -> None:
    """Half of the speakers fit; pauses are no frames; a body has layers only."""
    more = ("--silence", "drop", "--models", str(corpus / "body"), "--layers", "1")
    assert run(corpus, tmp_path, *more) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["scored"]["utterances"] == results["fitting"]["utterances"] == 6
    assert results["phones"] == 4 and results["silence"] == 0
    assert results["scored"]["frames"] == pytest.approx(0.8 * 6 * 99, abs=6)
    kinds = [(entry["model"], entry["units"]) for entry in results["systems"]]
    body = str(corpus / "body")
    assert kinds[:2] == [(body, "layer 1, 5"), ("random", "layer 1, 5")] and len(kinds) == 4


def test_the_same_command_gives_the_same_figures(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr(recipe, "heat_map", lambda *drawn: None)
    for name in ("a", "b"):
        run(corpus, tmp_path / name, "--fit_frames", "300")
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert 200 < results["fitting"]["frames"] < 400
        found.append([results["systems"], results["scored"]])
    assert found[0] == found[1]


def test_what_cannot_be_heard_or_is_not_aligned_is_left_out(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    text = (corpus / "test.csv").read_text().replace(str(corpus / "4.wav"), str(tmp_path / "gone"))
    (tmp_path / "broken.csv").write_text(text)
    starts = json.loads((corpus / "phones.json").read_text())
    starts.pop("u11")
    (tmp_path / "some.json").write_text(json.dumps(starts))
    more = ["--manifest", str(tmp_path / "broken.csv"), "--alignments", str(tmp_path / "some.json")]
    more += ["--layers", "0", "--fit", str(corpus / "fit.csv")]
    assert run(corpus, tmp_path / "out", *more) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["scored"]["utterances"] == 6
    err = capsys.readouterr().err
    assert "gone" in err and "1 without alignment" in err


def test_what_cannot_be_done_is_one_line(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Status 2, a reason, and no results."""
    (tmp_path / "other.json").write_text('{"x": [[0, "a"]]}')
    cases = {
        ("--fit", str(corpus / "test.csv")): "is scored, too",
        ("--alignments", str(tmp_path / "other.json")): "0 of 6 utterances",
        ("--alignments", str(tmp_path / "gone.ctm")): "gone.ctm",
        ("--manifest", str(tmp_path / "gone.csv")): "no such manifest",
        ("--models", str(tmp_path / "nowhere")): "nowhere",
        ("--models", f"mfcc={corpus / 'model'}"): "a model called mfcc already",
        ("--layers", "2"): "layers 0 (input of the first) to 1",
        ("--clusters", "5000"): "for 5000 clusters",
    }
    for more, message in cases.items():
        assert run(corpus, tmp_path / "out", *more) == 2, more
        err = capsys.readouterr().err.splitlines()
        assert message in err[-1] and err[-1].startswith("units.py: "), err
    assert not (tmp_path / "out" / "results.json").exists()


def test_help_teaches(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        recipe.main(["--help"])
    out = capsys.readouterr().out
    assert "phone purity" in out and "python recipes/units.py --manifest" in out
