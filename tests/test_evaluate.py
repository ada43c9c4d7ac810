"""`recipes/evaluate.py`: models and files of texts to reports, and what it refuses."""

import csv
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import soundfile
import torch

from w2v_plugin import cli
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.folders import save_asr
from w2v_plugin.language_folders import save_language
from w2v_plugin.manifests import COLUMNS
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.text import CharVocabulary

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
TEXTS = ["A CAT", "NO, 7", "", "THE END"]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = spec_from_file_location("evaluate_recipe", ROOT / "recipes" / "evaluate.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that say letters at random, and a test set with a file that is no audio."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = Wav2Vec2CTC(Wav2Vec2(**SHAPE, extractor_norm="layer"), vocab_size=32)
        torch.nn.init.normal_(model.head.weight)  # not the same symbol all the time
        save_asr(folder / name / "model", model, CharVocabulary())
    (folder / "one" / "hyperparams.yaml").write_text("seed: 77\nmodel: !new:x\n")
    generator = torch.Generator().manual_seed(3)
    rows = []
    for i, text in enumerate(TEXTS):
        wav = folder / f"{i}.wav"
        samples = torch.randn(8000 + 2000 * i, generator=generator) * 0.1
        soundfile.write(wav, samples.numpy(), 16000)
        rows.append((f"u{i}", len(samples) / 16000, wav.name, f"s{i % 2}", text))
    (folder / "3.wav").write_bytes(b"no audio")
    write_manifest(folder / "test.csv", rows)
    write_manifest(folder / "good.csv", rows[:3])
    return folder


def write_manifest(path: Path, rows: list[tuple]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def run(recipe: ModuleType, out: Path, *argv: object) -> tuple[int, dict]:
    status = recipe.main([*map(str, argv), "--out", str(out), "--bootstrap", "50"])
    return status, json.loads((out / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def two(recipe: ModuleType, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models on both test sets, one of which has a broken file: status 1."""
    out = tmp_path_factory.mktemp("two") / "out"
    argv = ["--model", data / "one/model", "--model", data / "two/model", "--device", "cpu"]
    status, _ = run(recipe, out, *argv, "--manifest", data / "test.csv", data / "good.csv")
    assert status == 1
    return out


def test_two_models_on_two_test_sets(two: Path, data: Path) -> None:
    results = json.loads((two / "results.json").read_text(encoding="utf-8"))
    assert [test["test"] for test in results["tests"]] == ["test", "good"]
    test, good = results["tests"]
    assert [(s["system"], s["seed"]) for s in test["systems"]] == [("one", 77), ("two", None)]
    assert (test["words"], test["empty_references"], test["case"]) == (6, 1, "upper")
    for system in test["systems"]:
        assert system["unanswered"] == ["u3"] and "3.wav" in system["failed"]["u3"]
        assert system["unsayable"] == {",": 1, "7": 1}
        assert system["counts"]["words"]["deletions"] >= 2  # of the broken file
        assert system["decoding"] == {"on": "fp32 on cpu", "search": "greedy"}
    assert [s["unanswered"] for s in good["systems"]] == [[], []]
    assert len(test["differences"]) == 2
    hashed = {str(data / name) for name in ("test.csv", "good.csv", "one/model", "two/model")}
    assert set(results["sha256"]) == hashed
    assert results["bootstrap"] == {"draws": 50, "seed": 0} and results["versions"]["jiwer"]
    named = {f"hyp_{t}_{s}.csv" for t in ("test", "good") for s in ("one", "two")}
    pictures = {"errors_test.png", "errors_good.png"}
    assert {path.name for path in two.iterdir()} == named | pictures | {
        "results.json",
        "report.md",
        "report.html",
    }


def test_empty_references_count_what_is_said_into_them(two: Path) -> None:
    """The model says something at random, so the third utterance has insertions and no more."""
    with (two / "hyp_good_one.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["ref"] for row in rows] == TEXTS[:3]
    assert rows[2]["hyp"]
    system = json.loads((two / "results.json").read_text())["tests"][1]["systems"][0]
    alone = system["by_length"][0]
    assert (alone["from"], alone["utterances"], alone["WER"]) == (0, 1, None)
    heard = sum(len(row["hyp"].split()) for row in rows)
    counts = system["counts"]["words"]
    assert counts["hits"] + counts["substitutions"] + counts["insertions"] == heard


def test_texts_score_as_the_models_did(recipe: ModuleType, two: Path, tmp_path: Path) -> None:
    """From the files alone, and the other way around: differences change their sign."""
    files = [two / f"hyp_good_{name}.csv" for name in ("two", "one")]
    argv = ["--hyp", files[0], "--hyp", files[1], "--names", "two", "one"]
    status, results = run(recipe, tmp_path / "out", *argv)
    assert status == 0
    before = json.loads((two / "results.json").read_text())["tests"][1]
    after = results["tests"][0]
    for metric in ("WER", "CER", "MER", "WIL", "SER", "WER_95", "CER_95_speakers", "counts"):
        assert after["systems"][1][metric] == before["systems"][0][metric]
    gaps = [[d["points"] for d in test["differences"]] for test in (before, after)]
    assert gaps[0] == [-gap for gap in gaps[1]]


def test_texts_of_the_command_line(
    recipe: ModuleType, data: Path, two: Path, tmp_path: Path
) -> None:
    """What `w2v transcribe --out` leaves out, because it failed, is deleted words here."""
    tsv = tmp_path / "said.tsv"
    model = ["--model", str(data / "one/model"), "--device", "cpu", "--precision", "fp32"]
    assert cli.main(["transcribe", str(data / "test.csv"), *model, "--out", str(tsv)]) == 1
    argv = ["--hyp", tsv, "--manifest", data / "test.csv"]
    status, results = run(recipe, tmp_path / "out", *argv)
    system = results["tests"][0]["systems"][0]
    expected = json.loads((two / "results.json").read_text())["tests"][0]["systems"][0]
    assert (status, system["unanswered"], system["system"]) == (1, ["u3"], "said")
    assert (system["WER"], system["CER"]) == (expected["WER"], expected["CER"])
    assert "no text in the file" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_a_model_against_texts(
    recipe: ModuleType, data: Path, two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options of `w2v transcribe` reach the model; beam search may say something else."""
    argv = ["--model", data / "one/model", "--hyp", two / "hyp_good_one.csv", "--beam", "5"]
    argv += ["--names", "beam", "greedy", "--manifest", data / "good.csv", "--device", "cpu"]
    status, results = run(recipe, tmp_path / "out", *argv)
    systems = results["tests"][0]["systems"]
    assert status == 0 and [s["system"] for s in systems] == ["beam", "greedy"]
    decoding = {"on": "fp32 on cpu", "search": "beam", "beam": "5"}
    assert systems[0]["decoding"] == decoding and "decoding" not in systems[1]
    assert "good, greedy - beam: WER" in capsys.readouterr().out


def test_bad_input_is_one_line(
    recipe: ModuleType, data: Path, two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is written where nothing was found out."""
    empty = tmp_path / "empty.csv"
    write_manifest(empty, [("u0", 1.0, str(data / "0.wav"), "s", "")])
    hyp, good = two / "hyp_good_one.csv", data / "good.csv"
    other = tmp_path / "other.csv"
    other.write_text("ID,hyp\nnobody,x\n")
    model, out = ["--model", data / "one/model"], tmp_path / "out"
    twin = tmp_path / "twin" / "good.csv"
    twin.parent.mkdir()
    twin.write_bytes(good.read_bytes())
    clean = twin.with_name("good_clean.csv")
    clean.write_bytes(good.read_bytes())
    cases = [
        ([*model, "--manifest", tmp_path / "none.csv"], "no such manifest"),
        ([*model, "--manifest", empty], "none of 1 references has a word"),
        ([*model, "--manifest", good, twin], "two files with one name"),
        (["--model", data, "--manifest", good], "cannot load the model"),
        ([*model, "--manifest", good, "--lm", tmp_path / "none.arpa"], "--lm"),
        (["--hyp", other, "--manifest", good], "'nobody' is none of the 3 utterances"),
        (["--hyp", other], "holds no references"),
        (
            [*model, *model, "--names", "clean_x", "x", "--manifest", good, clean],
            "would write hyp_good_clean_x.csv",
        ),
    ]
    for argv, complaint in cases:
        assert recipe.main([*map(str, argv), "--out", str(out)]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(lines) == 1 and complaint in lines[0], (argv, lines)
        assert not (out / "results.json").exists()
    assert recipe.main(["--hyp", str(hyp), "--out", str(two)]) == 2
    assert "holds results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "give --model or --hyp"),
        (["--model", "m"], "needs the --manifest"),
        (["--hyp", "h.csv", "--manifest", "a.csv", "b.csv"], "give one --manifest"),
        (["--hyp", "h.csv", "--beam", "5"], "--beam is about models"),
        (["--model", "m", "--manifest", "a.csv", "--format", "json"], "--format json: expected"),
        (["--model", "m", "--manifest", "a.csv", "--resume"], "--resume: expected options"),
        (["--model", "m", "--manifest", "a.csv", "--chunk-ms", "30"], "multiple of 20"),
        (["--model", "m", "--manifest", "a.csv", "--nonsense"], "unrecognized arguments"),
        (["--hyp", "a/h.csv", "--hyp", "b/h.csv"], "systems need different names"),
        (["--hyp", "h.csv", "--names", "a", "b"], "2 names for 1 systems"),
        (["--hyp", "h.csv", "--names", "../a"], "can be file names"),
        (["--hyp", "h.csv", "--bootstrap", "0"], "1 or more"),
    ],
)
def test_wrong_calls(
    recipe: ModuleType, argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        recipe.main([*argv, "--out", "nowhere"])
    assert stopped.value.code == 2 and complaint in capsys.readouterr().err


def test_language_is_for_models_that_have_several(
    recipe: ModuleType, data: Path, tmp_path: Path
) -> None:
    """One of a single language is compared with one of several."""
    shape = {**SHAPE, "extractor_norm": "layer", "norm_first": True}
    model = Wav2Vec2CTC(Wav2Vec2(**shape, adapter_dim=4), vocab_size=32).eval()
    for language in ("deu", "mal"):
        save_language(tmp_path / "several", model, CharVocabulary(), language)
    models = ["--model", data / "one/model", "--model", tmp_path / "several", "--device", "cpu"]
    argv = [*models, "--language", "mal", "--manifest", data / "good.csv"]
    status, results = run(recipe, tmp_path / "out", *argv)
    found = [system["decoding"].get("language") for system in results["tests"][0]["systems"]]
    assert status == 0 and found == [None, "mal"]


def test_names_come_from_paths(recipe: ModuleType) -> None:
    names = {"runs/a/model": "a", "b/hyp_test.csv": "hyp_test", "m/base.pt": "base"}
    names |= {"owner/wav2vec2-base": "wav2vec2-base", "runs/v1.5": "v1.5"}
    assert {given: recipe.name_of(Path(given)) for given in names} == names


def test_help_teaches(recipe: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        recipe.main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "ErrorRateStats" in text and text.count("python recipes/evaluate.py") == 4
