"""Label sets, curves, labels for equal error; fine-tuning for a budget; the study in miniature."""

import argparse
import itertools
import json
import math
import subprocess
import sys
from concurrent.futures import Executor, Future
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch

from w2v_plugin.budget import BudgetBrain, Parts
from w2v_plugin.conversion import open_folder
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.data import speech_dataset
from w2v_plugin.folders import save_asr, save_pretrained
from w2v_plugin.label_curves import (
    compare,
    error_curves,
    label_order,
    labels_needed,
    minutes_text,
    nearest_prefix,
    order_interval,
    resampled,
)
from w2v_plugin.label_tables import table
from w2v_plugin.manifests import Utterance, read_manifest, write_manifest
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.model_output import Wav2Vec2Output
from w2v_plugin.text import CharVocabulary

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": [8] * 7}
STARTS = ("pretrained", "warm_start")
HERTZ = {"a": 300, "b": 700, "c": 1500}


# ---------------------------------------------------------------- labels


def test_label_order_hears_all_speakers_before_it_repeats_one() -> None:
    speakers = ["a"] * 5 + ["b"] * 2 + ["c"] * 3
    order = label_order(speakers, seed=4)
    assert sorted(order) == list(range(10))
    heard = [speakers[i] for i in order]
    assert [set(heard[i : i + 3]) for i in (0, 3)] == [{"a", "b", "c"}] * 2
    assert set(heard[6:8]) == {"a", "c"} and heard[8:] == ["a", "a"]
    assert order == label_order(speakers, seed=4) != label_order(speakers, seed=5)


@pytest.mark.parametrize(
    ("seconds", "count"), [(1, 1), (10, 1), (14.9, 1), (15.1, 2), (24, 2), (29, 3), (35, 3)]
)
def test_nearest_prefix(seconds: float, count: int) -> None:
    assert nearest_prefix([10.0, 10.0, 12.0], seconds) == count


def test_nearest_prefix_of_too_little_audio() -> None:
    with pytest.raises(ValueError, match=r"0\.5 minutes of labelled audio, 2 are asked for"):
        nearest_prefix([10.0, 10.0, 12.0], 120.0)


# ---------------------------------------------------------------- curves


def test_error_curves_are_pooled_over_utterances_and_averaged_over_seeds() -> None:
    # one arm, one size; seed 1: 1 of 10 and 5 of 10 words, seed 2: 2 of 10 and 2 of 10
    counts = np.array([[[[[1, 10], [5, 10]], [[2, 10], [2, 10]]]]])
    assert error_curves(counts).item() == pytest.approx(25.0, abs=1e-12)  # (30 + 20) / 2
    # the first utterance three times: (3 + 5) / 40 and 20 %
    assert error_curves(counts, np.array([3, 1])).item() == pytest.approx(20.0, abs=1e-12)
    assert error_curves(counts, None, np.array([2, 0])).item() == pytest.approx(30.0, abs=1e-12)


def test_long_utterances_weigh_more() -> None:
    counts = np.array([[[[[1, 1], [0, 9]]]]])
    assert error_curves(counts).item() == pytest.approx(10.0, abs=1e-12)  # not (100 + 0) / 2


def test_resampled_draws_utterances() -> None:
    """Two utterances, all wrong and all right: 0, 50 and 100 % with 1/4, 1/2 and 1/4."""
    draws = np.array(list(resampled(np.array([[[[[4, 4], [0, 4]]]]]), repeats=4000))).ravel()
    values, times = np.unique(draws, return_counts=True)
    assert values.tolist() == [0.0, 50.0, 100.0]
    # standard deviations of the shares: 0.007, 0.008, 0.007; five of them
    assert times / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.04)


def test_resampled_draws_seeds_and_pairs_the_arms() -> None:
    one = np.array([[[0, 4]], [[4, 4]]])  # seeds 0 % and 100 %, one utterance
    draws = np.array(list(resampled(np.stack([one, one])[:, None], repeats=4000)))[:, :, 0]
    assert (draws[:, 0] == draws[:, 1]).all()  # whatever is drawn, equal arms stay equal
    assert np.unique(draws).tolist() == [0.0, 50.0, 100.0]


@pytest.mark.parametrize(
    ("target", "needed"),
    [
        (95.0, 0.0),  # 1 minute is better already
        (90.0, 1.0),
        (80.0, 1 * 3**0.5),  # half way from 90 to 70 is half way from log 1 to log 3
        (70.0, 3.0),
        (60.0, 3 * 9 ** (10 / 30)),  # a third of the way from 70 to 40, from 3 to 27 minutes
        (40.0, 27.0),
        (39.9, math.inf),
    ],
)
def test_labels_needed(target: float, needed: float) -> None:
    # 1e-12: a power and a division in float64
    found = labels_needed([1, 3, 27], [90.0, 70.0, 40.0], target)
    assert found == pytest.approx(needed, rel=1e-12)


def test_labels_needed_takes_the_first_crossing_of_a_curve_that_rises_again() -> None:
    curve = [90.0, 50.0, 60.0, 40.0]
    assert labels_needed([1, 10, 100, 1000], curve, 70.0) == pytest.approx(10**0.5, rel=1e-12)
    assert labels_needed([1, 10, 100, 1000], curve, 45.0) == pytest.approx(10**2.75, rel=1e-12)


def test_intervals_of_what_is_not_reached() -> None:
    values = [0.0, 2.0, 4.0, *[math.inf] * 7]
    assert order_interval(values, 0.6) == (2.0, math.inf)
    assert [minutes_text(x, [1, 60]) for x in order_interval(values)] == ["< 1", "> 60"]


def test_compare_by_hand() -> None:
    """Arm b is half as wrong as a: one seed and one utterance, so that nothing varies."""
    errors = {"a": [80, 60, 40], "b": [40, 30, 20]}
    counts = np.array([[[[[e, 100]]] for e in errors[arm]] for arm in "ab"])
    report = compare("ab", [1, 10, 100], counts, repeats=5)
    assert [row["error"] for row in report["curves"]] == [80, 60, 40, 40, 30, 20]
    ahead, back = report["differences"][:3], report["differences"][3:]
    assert [row["points"] for row in ahead] == [40, 30, 20]
    assert [row["points"] for row in back] == [-40, -30, -20]
    assert [row["points_95"] for row in ahead] == [(40, 40), (30, 30), (20, 20)]
    needed, swapped = report["labels_needed"][:3], report["labels_needed"][3:]
    assert [row["other_minutes"] for row in needed] == ["< 1", "< 1", "1"]
    assert [row["other_minutes"] for row in swapped] == ["100", "> 100", "> 100"]
    assert [row["other_minutes_95"] for row in swapped] == [
        ["100", "100"],
        ["> 100", "> 100"],
        ["> 100", "> 100"],
    ]


# ---------------------------------------------------------------- the recipe


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve utterances of 1 s, three speakers; letters are tones."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    time, utterances = torch.arange(8000) / 16000, []
    for i in range(12):
        text = "".join("abc"[int(k)] for k in torch.randint(3, (2,), generator=generator))
        wav = torch.cat([torch.sin(2 * math.pi * HERTZ[letter] * time) for letter in text])
        wav = 0.3 * wav + 0.01 * torch.randn(len(wav), generator=generator)
        soundfile.write(folder / f"{i}.wav", wav.numpy(), 16000)
        utterances.append(
            Utterance(f"u{i}", folder / f"{i}.wav", f"s{i % 3}", text.upper(), f"list:{i + 1}")
        )
    write_manifest(folder / "all.csv", utterances)
    return folder / "all.csv"


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two starts with weights of their own."""
    folder = tmp_path_factory.mktemp("pretraining")
    for seed, name in enumerate(STARTS):
        torch.manual_seed(seed)
        wav2vec2 = Wav2Vec2(
            **SHAPE,
            extractor_norm="layer",
            conv_bias=True,
            norm_first=True,
            normalize=False,
            positions_kernel=32,
            positions_groups=8,
        )
        save_pretrained(folder / name, wav2vec2)
    return folder


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Imported by name, so that the processes of its pool find it."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    sys.modules.pop("label_efficiency", None)
    import label_efficiency

    return label_efficiency


def command(manifest: Path, pretraining: Path, out: Path, *more: str) -> list[str]:
    csvs = [f"--{name}_csv={manifest}" for name in ("train", "valid", "test")]
    sizes = ["--minutes", "0.1", "0.05", "--tune_minutes", "0.1", "--seconds", "0.2"]
    grid = ["--learning_rates", "0.01", "--extractors", "frozen", "trained", "--validations", "1"]
    return [
        str(ROOT / "hparams/ctc/tiny.yaml"),
        *("--arms", *(f"{name}={pretraining / name}" for name in STARTS), "scratch="),
        *(*csvs, f"--output_folder={out}", *sizes, *grid),
        *("--device=cpu", f"--wav2vec2={json.dumps(SHAPE)}", *more),
    ]


class InThisProcess(Executor):
    """For the fast test: a process of a pool takes seconds to begin."""

    def __init__(self, *args: object) -> None:
        pass

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        future.set_result(function(*args, **kwargs))
        return future


def parsed(recipe: ModuleType, argv: list[str]) -> argparse.Namespace:
    options, rest = recipe.parser().parse_known_args(argv)
    _, options.run_opts, options.overrides = sb.parse_arguments(["x", "--noprogressbar", *rest])
    recipe.read_arms(options)
    return options


def test_heads_go_on_for_known_symbols(
    recipe: ModuleType, manifest: Path, pretraining: Path, tmp_path: Path
) -> None:
    """Of the arms that are named, and only with them in the settings of the folder."""
    body = open_folder(pretraining / "pretrained")[0]
    model = Wav2Vec2CTC(body, vocab_size=len(CharVocabulary()))
    torch.nn.init.normal_(model.head.weight)
    save_asr(tmp_path / "asr", model, CharVocabulary())
    arms = ["--arms", f"with={tmp_path / 'asr'}", f"without={tmp_path / 'asr'}"]
    argv = [*command(manifest, pretraining, tmp_path / "out"), *arms]
    options = parsed(recipe, [*argv, "--heads", "with"])
    heads = {}
    for arm in options.arms:
        job = recipe.Job(arm, 0.1, 1, 0.01, "frozen")
        heads[arm] = recipe.build(job, options, tmp_path / arm).model.head.weight
    assert torch.equal(heads["with"], model.head.weight)
    assert not torch.equal(heads["without"][1:], model.head.weight[1:])
    recipe.check_settings(options)
    with pytest.raises(ValueError, match="runs with another head of with"):
        recipe.check_settings(parsed(recipe, argv))
    scratch = [*argv, "more="]
    recipe.check_settings(parsed(recipe, [*scratch, "--heads", "with"]))
    with pytest.raises(ValueError, match="--heads more: its folder has no head"):
        parsed(recipe, [*scratch, "--heads", "more"])


def test_a_lucky_seed_does_not_choose_alone(
    recipe: ModuleType,
    manifest: Path,
    pretraining: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rate that is best on average over the seeds that tune, for each arm."""
    argv = [*command(manifest, pretraining, tmp_path), "--seeds", "1", "2", "3"]
    cers = {(1, 0.01): 50.0, (1, 0.02): 55.0, (2, 0.01): 90.0, (2, 0.02): 60.0}
    asked = []

    def run_all(_: object, jobs: list, __: object) -> dict:
        asked.append({job.seed for job in jobs})
        return {job: {"valid_CER": [99.0, cers[job.seed, job.learning_rate]]} for job in jobs}

    monkeypatch.setattr(recipe, "run_all", run_all)
    options = parsed(recipe, argv)
    options.learning_rates = [0.01, 0.02]
    alone, _ = recipe.tune(None, options)
    options.tune_seeds = 2
    both, _ = recipe.tune(None, options)
    assert asked == [{1}, {1, 2}]
    assert {job.learning_rate for job in alone.values()} == {0.01}
    assert {job.learning_rate for job in both.values()} == {0.02}


def test_parts_go_on_where_they_stopped() -> None:
    heard: list[int] = []
    limit = 0
    parts = Parts(itertools.count(), over=lambda: len(heard) >= limit)
    for limit in (2, 2, 5):
        for batch in parts:
            heard.append(batch)
        assert heard == list(range(limit))


def test_budget_counts_compute_and_keeps_the_best(
    recipe: ModuleType,
    manifest: Path,
    pretraining: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock on which every update takes a second."""
    options = parsed(recipe, command(manifest, pretraining, tmp_path))
    options.seconds, options.validations = 6.0, 3
    job = recipe.Job("pretrained", 0.1, 1, 0.01, "trained")
    (tmp_path / "run").mkdir()
    brain = recipe.build(job, options, tmp_path / "run")
    ticks = itertools.count()
    monkeypatch.setattr(BudgetBrain, "compute_clock", lambda self: float(next(ticks)))
    cers, states, rates = iter([30.0, 10.0, 20.0]), [], []

    def score(self: BudgetBrain, stage_loss: float) -> dict[str, float]:
        states.append({k: v.clone() for k, v in self.model.state_dict().items()})
        return {"CER": next(cers), "WER": 100.0}

    def forward(self: BudgetBrain, batch: PaddedBatch, stage: sb.Stage) -> Wav2Vec2Output:
        if stage == sb.Stage.TRAIN:
            rates.append(self.optimizers_dict["encoder"].param_groups[0]["lr"])
        return compute_forward(self, batch, stage)

    compute_forward = BudgetBrain.compute_forward
    monkeypatch.setattr(BudgetBrain, "compute_forward", forward)
    monkeypatch.setattr(BudgetBrain, "score", score)
    data = speech_dataset(manifest, vocabulary=brain.hparams.vocabulary)
    brain.fit_on(data, data)
    assert brain.optimizer_step == 6 and brain.spent == 6.0 and len(states) == 3
    # tiny.yaml: up in 0.3 s of 6 s, constant until 0.05 + 0.6 of it, then linear to 0.01
    expected = [1 / 50_000, 1, 1, 1, 1 - 0.99 * 0.1 / 2.1, 1 - 0.99 * 1.1 / 2.1]
    assert rates == pytest.approx([0.01 * share for share in expected], rel=1e-12)
    final = brain.model.state_dict()
    assert all(torch.equal(final[key], states[1][key]) for key in final)
    assert any(not torch.equal(final[key], states[2][key]) for key in final)


def test_the_study_in_miniature(
    recipe: ModuleType,
    manifest: Path,
    pretraining: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Tuned, trained and tested; started again, only what is missing is done."""
    monkeypatch.setattr(recipe, "ProcessPoolExecutor", InThisProcess)
    argv = command(manifest, pretraining, tmp_path, "--seeds", "1")
    assert recipe.main(argv) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    runs = results["runs"]
    assert len(runs) == 5 + 3  # tried with 6 s: (2 + 2 + 1) extractors; 3 more with 3 s
    assert all(run["seconds"] >= 0.2 and run["updates"] >= 1 for run in runs)
    chosen = []
    for arm in (*STARTS, "scratch"):
        tried = [run for run in runs if run["arm"] == arm and run["minutes"] == 0.1]
        best = min(tried, key=lambda run: min(run["valid_CER"]))
        assert results["chosen"][arm] == f"0.01, extractor {best['extractor']}"
        chosen += [run for run in runs if run["minutes"] == 0.05 and run["arm"] == arm] + [best]
    for metric in recipe.METRICS:
        points = results[metric]["curves"]
        assert [(p["arm"], p["minutes"]) for p in points] == [
            (run["arm"], run["minutes"]) for run in chosen
        ]
        # 1e-9: SpeechBrain sums and divides in another order
        assert [p["error"] for p in points] == pytest.approx([r[metric] for r in chosen], abs=1e-9)
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    assert f"| 0.1 | {chosen[1]['updates']} |" in (tmp_path / "table.md").read_text()
    small, large = (
        [row["ID"] for row in read_manifest(tmp_path / "labels" / f"seed1_{m}min.csv")]
        for m in ("0.05", "0.1")
    )
    assert len(small) == 3 and len(large) == 6 and large[:3] == small
    finished = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/result.json")}
    missing = next(path for path in finished if "scratch_seed1_0.05" in str(path))
    missing.unlink()
    assert recipe.main(argv) == 0
    again = {p for p, then in finished.items() if p.stat().st_mtime_ns != then}
    assert again == {missing}
    capsys.readouterr()
    assert recipe.main([*argv, "--seconds", "0.4"]) == 2
    assert "holds runs with another seconds" in capsys.readouterr().err


@pytest.mark.slow
def test_the_study_in_processes_of_its_own(
    manifest: Path, pretraining: Path, tmp_path: Path
) -> None:
    script = [sys.executable, str(ROOT / "recipes/label_efficiency.py")]
    argv = command(manifest, pretraining, tmp_path, "--seeds", "1", "2", "--jobs", "2")
    done = subprocess.run([*script, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 5 + 3 + 6
    point = json.loads((tmp_path / "results.json").read_text())["CER"]["curves"][0]
    assert len(point["by_seed"]) == 2


def test_more_labels_than_there_are(
    recipe: ModuleType,
    manifest: Path,
    pretraining: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert recipe.main([*command(manifest, pretraining, tmp_path), "--minutes", "5"]) == 2
    assert "0.2 minutes of labelled audio, 5 are asked for" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arms", "complaint"),
    [
        (["a"], "expected NAME=FOLDER"),
        (["=x"], "expected NAME=FOLDER"),
        (["a=nowhere", "b="], "--arms a=nowhere: expected NAME=FOLDER, a model folder"),
        (["a=", "a="], "a name is given twice"),
        (["a="], "one start alone"),
        (["a=", "b=", "--controls", "c"], "--controls c: not among"),
    ],
)
def test_arms_that_cannot_start(
    recipe: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arms: list[str],
    complaint: str,
) -> None:
    csvs = [f"--{name}_csv=no.csv" for name in ("train", "valid", "test")]
    argv = ["no.yaml", *csvs, f"--output_folder={tmp_path / 'out'}", "--arms", *arms]
    assert recipe.main(argv) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tables_compare_with_the_controls() -> None:
    # 50, 40 and 80 % of ten words, one utterance and seed
    counts = np.array([[[[[errors, 10]]]] for errors in (5, 4, 8)])
    compared = compare(["new", "old", "none"], [5], counts, repeats=3)
    text = "\n".join(table("CER", compared, ["none"]))
    assert "| 5 | -30.0 [-30.0, -30.0] | -40.0 [-40.0, -40.0] |" in text
    assert "| 5 | 0.62 [0.62, 0.62] | 0.50 [0.50, 0.50] |" in text
    assert "new - none" in text and "new - old" not in text


def test_a_control_may_stand_anywhere() -> None:
    """Every arm against it, wherever it was named; two controls once, in the order given."""
    counts = np.array([[[[[errors, 10]]]] for errors in (5, 4, 8)])
    compared = compare(["new", "old", "none"], [5], counts, repeats=3)
    text = "\n".join(table("CER", compared, ["old"]))
    assert "| minutes | new - old | none - old |" in text
    text = "\n".join(table("CER", compared, ["none", "new"]))
    assert "| minutes | new - none" not in text
    assert "| minutes | old - new | old - none | none - new |" in text
    alone = compare(["none"], [5], counts[:1], repeats=3)
    assert "Difference" not in "\n".join(table("CER", alone, ["none"]))
