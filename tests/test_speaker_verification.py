"""The recipe from a manifest to its files, on voices made of tones."""

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch

from w2v_plugin.folders import save_pretrained
from w2v_plugin.manifests import Utterance, write_manifest
from w2v_plugin.model import Wav2Vec2

ROOT = Path(__file__).resolve().parent.parent


def script() -> ModuleType:
    path = ROOT / "recipes" / "speaker_verification.py"
    spec = importlib.util.spec_from_file_location("speaker_verification", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = script()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight speakers who each hum their own notes, four times, in noise; and a small model."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    utterances = []
    for speaker in range(8):
        for take in range(4):
            time = np.arange(int(generator.integers(6000, 12000))) / 16000
            notes = 200 * 1.3**speaker * np.array([1.0, 2.5])
            wav = sum(0.2 * np.sin(2 * np.pi * note * time) for note in notes)
            path = folder / f"{speaker}{take}.wav"
            soundfile.write(path, wav + 0.02 * generator.normal(size=len(time)), 16000)
            name = f"s{speaker}-{take // 2}-{take}"
            utterances.append(Utterance(name, path, f"s{speaker}", "", f"list:{take}"))
    write_manifest(folder / "all.csv", utterances)
    write_manifest(folder / "some.csv", utterances[:16])
    write_manifest(folder / "others.csv", utterances[16:])
    torch.manual_seed(0)
    save_pretrained(
        folder / "model", Wav2Vec2(dim=16, layers=2, heads=2, ffn_dim=32, channels=(8,) * 7)
    )
    return folder


def run(corpus: Path, out: Path, *more: str, manifest: str = "all.csv") -> int:
    common = ["--manifest", str(corpus / manifest), "--model", str(corpus / "model")]
    common += ["--output_folder", str(out), "--device", "cpu", "--bootstrap", "50"]
    return recipe.main([*common, *more])


def test_everything_is_written(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Half of the speakers reported, every layer of three systems, files that agree."""
    assert run(corpus, tmp_path) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["reported"]["speakers"] == results["fitting"]["speakers"] == 4
    assert results["options"]["pool"] == "mean+std" and all(
        len(value) == 64 for value in results["sha256"].values()
    )
    names = [(entry["system"], entry["layer"]) for entry in results["systems"]]
    networks = [(name, layer) for name in ("model", "random") for layer in range(3)]
    assert names == [*networks, ("mfcc", None)]
    marked = [entry for entry in results["systems"] if entry["marked"]]
    assert [entry["system"] for entry in marked] == ["model", "random", "mfcc"]
    for entry in marked:
        low, high = entry["eer_95"]
        assert 0 <= low <= high <= 1 and 0 <= entry["min_dcf_01"] <= 1
        mine = [e["fit_eer"] for e in results["systems"] if e["system"] == entry["system"]]
        assert entry["fit_eer"] == min(mine)
    assert marked[2]["eer"] < 0.05  # MFCCs tell notes apart, or the baseline is broken
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [line.split("\t") for line in (tmp_path / "trials.txt").read_text().splitlines()]
    assert lines == [[row["label"], row["first"], row["second"]] for row in rows]
    scores = np.array([[float(row[e["system"]]) for row in rows] for e in marked])
    same = np.array([row["label"] == "1" for row in rows])
    for entry, values in zip(marked, scores, strict=True):
        rates = recipe.DetectionCurve(values, same).rates()
        assert recipe.eer(*rates) == pytest.approx(entry["eer"], abs=0.02)  # six digits: ties
    assert (tmp_path / "layers.png").stat().st_size > 1000
    out = capsys.readouterr().out
    assert "EER of model - mfcc" in out and "reported: 4 speakers" in out


def test_the_layer_is_chosen_on_the_fitting_speakers() -> None:
    """The lowest EER there, the first of equals; what the reported trials say is not looked at."""
    rates = {"model": (0.3, 0.1, 0.2), "random": (0.4, 0.4), "mfcc": (0.2,)}
    found = [
        recipe.Candidate(system, layer, np.array([]), rate)
        for system, some in rates.items()
        for layer, rate in enumerate(some)
    ]
    assert recipe.best(found) == {"model": 1, "random": 3, "mfcc": 5}


def test_the_same_command_gives_the_same_figures(corpus: Path, tmp_path: Path) -> None:
    """Apart from what it was called."""
    found = []
    for name in ("a", "b"):
        run(corpus, tmp_path / name)
        results = json.loads((tmp_path / name / "results.json").read_text())
        found.append([results[key] for key in ("systems", "differences", "reported")])
    assert found[0] == found[1]
    assert run(corpus, tmp_path / "c", "--seed", "1") == 0
    assert (tmp_path / "c/trials.txt").read_text() != (tmp_path / "a/trials.txt").read_text()


def test_a_given_list_gives_the_figures_it_came_from(corpus: Path, tmp_path: Path) -> None:
    """--trials of another run: speakers in no trial fit, as the other half did."""
    run(corpus, tmp_path / "a")
    assert run(corpus, tmp_path / "b", "--trials", str(tmp_path / "a" / "trials.txt")) == 0
    one, two = (json.loads((tmp_path / x / "results.json").read_text()) for x in "ab")
    assert one["systems"] == two["systems"]


def test_other_speakers_sessions_and_one_layer(corpus: Path, tmp_path: Path) -> None:
    """--fit reports every speaker; pairs of one speaker are of different sessions."""
    more = ["--fit", str(corpus / "others.csv"), "--session", r"^s\d-\d", "--layer", "1"]
    for pool, normalize in (("mean", "none"), ("statistics", "mean")):
        more += ["--pool", pool, "--normalize", normalize]
        assert run(corpus, tmp_path, *more, manifest="some.csv") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["reported"]["speakers"] == 4
    assert [entry["layer"] for entry in results["systems"]] == [1, 1, None]
    same = [line.split("\t")[1:] for line in (tmp_path / "trials.txt").read_text().splitlines()]
    own = [(a, b) for a, b in same if a[:2] == b[:2]]
    assert own and all(a[:4] != b[:4] for a, b in own)


def test_a_lost_file_costs_its_trials(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It is named, counted in results.json, and the run goes on."""
    manifest = corpus / "all.csv"
    text = manifest.read_text().replace(str(corpus / "00.wav"), str(tmp_path / "gone.wav"))
    (tmp_path / "broken.csv").write_text(text)
    assert run(corpus, tmp_path / "out", "--manifest", str(tmp_path / "broken.csv")) == 0
    assert "gone.wav: no such file" in capsys.readouterr().err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["left_out"]) == 1


def test_what_cannot_be_done_is_one_line(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Status 2, a reason, and no results."""
    one = tmp_path / "one.csv"
    lines = (corpus / "all.csv").read_text().splitlines()
    one.write_text("\n".join(lines[:5]) + "\n")
    listed = tmp_path / "trials.txt"
    listed.write_text("1 s0-0-0 s0-0-1\n0 s0-0-0 s1-0-0\n")
    cases = {
        ("--fit", str(corpus / "all.csv")): "is in the reported trials, too",
        ("--fit", str(one), "--manifest", str(corpus / "others.csv")): "fitting speakers: cannot",
        ("--manifest", str(one)): "cannot draw trials from 1 speakers",
        ("--manifest", str(tmp_path / "gone.csv")): "no such manifest",
        ("--trials", str(tmp_path / "gone.txt")): "gone.txt",
        ("--trials", str(listed)): "too few",
        ("--layer", "9"): "has 2 layers",
        ("--session", "("): "unterminated",
        ("--model", str(tmp_path)): "cannot load the model",
    }
    for more, message in cases.items():
        assert run(corpus, tmp_path / "out", *more) == 2, more
        err = capsys.readouterr().err.splitlines()
        assert len(err) == 1 and message in err[0], err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        run(corpus, tmp_path, "--layer", "last")


def test_help_teaches(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        recipe.main(["--help"])
    out = capsys.readouterr().out
    assert "Nothing is chosen on the speakers that are reported" in out
    assert "python recipes/speaker_verification.py --manifest" in out
