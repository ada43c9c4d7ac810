"""Speaker verification without training: how much do a model's vectors know about who speaks?

Two recordings, one question: the same speaker? Every file becomes one vector per layer, a pair is
scored by the cosine of its two vectors. Three systems hear the same trials in the same run:

    model    the trained model
    random   a model of the same shape that has learned nothing: what the architecture gives
    mfcc     mean and standard deviation of MFCCs and their deltas: what signal processing gives

Nothing is chosen on the speakers that are reported. Others, the *fitting* speakers, give the mean
and scale of each dimension and decide which layer is marked *. They are, in this order,

    those of --fit, another manifest with other speakers;
    with --trials: the speakers of the manifest that are in no trial;
    else: a random half of the speakers of the manifest, and the other half is reported.

Without --trials a list is drawn: for each speaker up to --positives pairs of recordings,
and for each of them --ratio pairs with a recording of somebody else, all speakers equally likely.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torchaudio
from torch import Tensor
from tqdm import tqdm

from w2v_plugin.audio import read_audio
from w2v_plugin.circumstances import circumstances
from w2v_plugin.commands import CannotStart, load
from w2v_plugin.errors import BadAudio, BadManifest
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.manifests import read_manifest
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pooling import POOLS, pick_layers, pool
from w2v_plugin.trials import Row, Trial, draw_trials, halves, is_same, read_trials, write_trials
from w2v_plugin.verification import (
    DetectionCurve,
    Normalizer,
    cosine,
    eer,
    interval,
    min_dcf,
    resampled_weights,
)

EXAMPLES = """\
examples
  a list drawn from half of the speakers, layer and normalization from the other half:
    python recipes/speaker_verification.py --manifest test.csv --model runs/pretrain/model \\
        --output_folder runs/sv
  all speakers of test.csv reported; pairs of one speaker come from different LibriSpeech chapters:
    python recipes/speaker_verification.py --manifest test.csv --fit dev.csv \\
        --session '^\\d+-\\d+' --model facebook/wav2vec2-base --output_folder runs/sv
  a published list with lines "1 id1/a.wav id2/b.wav" (ids of the manifest, or ends of its paths):
    python recipes/speaker_verification.py --manifest vox1.csv --trials veri_test.txt \\
        --fit vox1_dev.csv --model facebook/wav2vec2-base --output_folder runs/sv

written into the output folder
  results.json   all figures, and what it takes to get them again
  trials.txt     the list, "1 a b" for the same speaker; to be given to --trials again
  scores.csv     label, both recordings, and a score per system (of its marked layer)
  layers.png     EER of every layer with its interval

Intervals: 95 %, speakers drawn again 1000 times. minDCF: for 1 % and 5 % of same-speaker trials; 1
is useless; its least value adapts to each draw, so that its intervals lean to the low side.
"""

METRICS = {"eer": (100, 1), "min_dcf_01": (1, 2), "min_dcf_05": (1, 2)}  # factor, digits shown
SUMMARY = ("speakers", "recordings", "same-speaker trials", "different-speaker trials")
NORMALIZE = ("mean+scale", "mean", "none")
System = Callable[[Tensor], Tensor]  # (samples,) -> (layers, dim)


def choose_trials(options: argparse.Namespace) -> tuple[list[Trial], list[Trial]]:
    """(reported, fitting) trials, without a common speaker."""
    how = {"positives": options.positives, "ratio": options.ratio, "seed": options.seed}
    draw = partial(draw_trials, **how, session=options.session)
    rows = read_manifest(options.manifest)
    trials = read_trials(options.trials, rows) if options.trials else None
    if options.fit:
        fitting = read_manifest(options.fit)
    elif trials:
        used = {row["spk_id"] for trial in trials for row in trial}
        fitting = [row for row in rows if row["spk_id"] not in used]
    else:
        rows, fitting = halves(rows, options.seed)
    trials = trials or draw(rows)
    used = {row["spk_id"] for trial in trials for row in trial}
    if common := sorted(used & {row["spk_id"] for row in fitting}):
        raise BadManifest(
            f"{options.fit}: speaker {common[0]!r} is in the reported trials, too. Give others."
        )
    try:
        return trials, draw(fitting)
    except BadManifest as error:
        raise BadManifest(f"fitting speakers: {error} (--fit)") from error


def network(model: Wav2Vec2, device: str, layers: list[int], how: str) -> System:
    model = model.eval().to(device)

    def vectors(wav: Tensor) -> Tensor:
        with torch.inference_mode():
            out = model(wav[None].to(device), output_hidden_states=True)
            return pool(pick_layers(out, layers), out.frame_lengths, how)[0].cpu()

    return vectors


def untrained(model: Wav2Vec2, seed: int) -> Wav2Vec2:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Wav2Vec2(**model.config)


def mfcc_statistics() -> System:
    """30 coefficients of 40 mel bands, 25 ms windows every 10 ms, and deltas."""
    mel = {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 40}
    transform = torchaudio.transforms.MFCC(SAMPLE_RATE, n_mfcc=30, melkwargs=mel)

    def vectors(wav: Tensor) -> Tensor:
        static = transform(wav)
        frames = torch.cat([static, torchaudio.functional.compute_deltas(static)]).T[None]
        return pool(frames, torch.tensor([frames.shape[1]]), "mean+std")

    return vectors


def embed(
    systems: dict[str, System], rows: Iterable[Row]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str]]:
    """Vectors by system and path, (layers, dim) each; and what could not be read, with reasons."""
    wavs = sorted({row["wav"] for row in rows})
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in systems}
    failed = {}
    for path in tqdm(wavs, desc="recordings", disable=None):
        try:
            wav = read_audio(path)
        except BadAudio as error:
            failed[path] = str(error)
            continue
        for name, system in systems.items():
            found[name][path] = system(wav).numpy()
    return found, failed


class Candidate(NamedTuple):
    """One layer of one system: its scores of the reported trials, its EER on the fitting ones."""

    system: str
    layer: int | None
    scores: np.ndarray
    fit_eer: float


def candidates(
    vectors: dict[str, np.ndarray],
    system: str,
    layers: Sequence[int | None],
    trials: list[Trial],
    fitting: list[Trial],
    normalize: str,
) -> list[Candidate]:
    """Score both lists with every layer, normalized by the recordings of the fitting list."""
    known = {row["wav"]: row["spk_id"] for trial in fitting for row in trial}
    labels = np.array([is_same(trial) for trial in fitting])
    found = []
    for i, layer in enumerate(layers):
        at = {path: vector[i].astype(np.float64) for path, vector in vectors.items()}
        if normalize != "none":
            fit = np.stack([at[path] for path in known])
            norm = Normalizer(fit, list(known.values()), scale=normalize == "mean+scale")
            at = {path: norm(vector) for path, vector in at.items()}
        scores, fit_scores = (
            cosine(*(np.stack([at[trial[side]["wav"]] for trial in some]) for side in (0, 1)))
            for some in (trials, fitting)
        )
        curve = DetectionCurve(fit_scores, labels)
        found.append(Candidate(system, layer, scores, eer(*curve.rates())))
    return found


def evaluate(
    found: list[Candidate], trials: list[Trial], repeats: int, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """An entry per candidate, and EER differences of the marked ones, with intervals."""
    curves = [DetectionCurve(c.scores, np.array([is_same(t) for t in trials])) for c in found]
    speakers = ([trial[side]["spk_id"] for trial in trials] for side in (0, 1))
    draws = np.array(
        [
            [measure(curve, weights) for curve in curves]
            for weights in resampled_weights(*speakers, repeats, seed)
        ]
    )
    marked = best(found)
    entries = []
    for i, candidate in enumerate(found):
        entry = {"system": candidate.system, "layer": candidate.layer}
        entry |= {"fit_eer": candidate.fit_eer, "marked": marked[candidate.system] == i}
        for metric, value, column in zip(METRICS, measure(curves[i]), draws[:, i].T, strict=True):
            entry |= {metric: value, f"{metric}_95": interval(column)}
        entries.append(entry)
    model, gaps = marked["model"], {}
    for name in ("mfcc", "random"):
        other = marked[name]
        gap = entries[model]["eer"] - entries[other]["eer"]
        bounds = interval(draws[:, model, 0] - draws[:, other, 0])
        gaps[f"model - {name}"] = {"eer": gap, "eer_95": bounds}
    return entries, gaps


def measure(curve: DetectionCurve, weights: np.ndarray | None = None) -> tuple[float, ...]:
    """The three METRICS."""
    rates = curve.rates(weights)
    return eer(*rates), min_dcf(*rates, 0.01), min_dcf(*rates, 0.05)


def best(found: list[Candidate]) -> dict[str, int]:
    """Place of each system's layer with the lowest EER on the fitting speakers."""
    places: dict[str, int] = {}
    for i, candidate in enumerate(found):
        place = places.setdefault(candidate.system, i)
        if candidate.fit_eer < found[place].fit_eer:
            places[candidate.system] = i
    return places


def table(entries: list[dict[str, Any]], gaps: dict[str, Any]) -> str:
    lines = [
        f"{'system':<8}{'layer':>6}{'fit EER':>9}   {'EER, % [95 %]':<22}"
        f"{'minDCF(0.01) [95 %]':<22}minDCF(0.05) [95 %]"
    ]
    for e in entries:
        layer = f"{'-' if e['layer'] is None else e['layer']}{'*' if e['marked'] else ' '}"
        cells = "".join(f"{cell(e, metric):<22}" for metric in METRICS)
        lines.append(f"{e['system']:<8}{layer:>6}{100 * e['fit_eer']:>9.1f}   {cells.rstrip()}")
    lines.append("* layer with the lowest EER on the fitting speakers")
    lines += [f"EER of {name}, both *, points: {cell(gap, 'eer')}" for name, gap in gaps.items()]
    return "\n".join(lines)


def cell(entry: dict[str, Any], metric: str) -> str:
    factor, digits = METRICS[metric]
    value, low, high = (factor * x for x in (entry[metric], *entry[f"{metric}_95"]))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def plot(entries: list[dict[str, Any]], path: Path) -> None:
    """EER against the layer; the baseline is a line across."""
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for name, color in (("model", "tab:blue"), ("random", "tab:gray")):
        mine = [e for e in entries if e["system"] == name]
        x, y = [e["layer"] for e in mine], [100 * e["eer"] for e in mine]
        bounds = np.array([e["eer_95"] for e in mine]).T * 100
        axis.plot(x, y, marker="o", color=color, label=name)
        axis.fill_between(x, *bounds, color=color, alpha=0.2)
    baseline = next(100 * e["eer"] for e in entries if e["system"] == "mfcc")
    axis.axhline(baseline, color="tab:red", linestyle="--", label="mfcc")
    axis.set(xlabel="layer (0: input of the first)", ylabel="EER, %", ylim=(0, None))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_scores(path: Path, trials: list[Trial], found: list[Candidate]) -> None:
    """Of the marked layers."""
    marked = best(found)
    columns = [found[i].scores for i in marked.values()]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "first", "second", *marked])
        for trial, *scores in zip(trials, *columns, strict=True):
            names = [row["ID"] for row in trial]
            writer.writerow([int(is_same(trial)), *names, *(f"{score:.6f}" for score in scores)])


def summary(trials: list[Trial]) -> dict[str, int]:
    same = sum(map(is_same, trials))
    counts = [len({row[key] for trial in trials for row in trial}) for key in ("spk_id", "wav")]
    return dict(zip(SUMMARY, [*counts, same, len(trials) - same], strict=True))


def run(options: argparse.Namespace) -> None:
    """All of it, from the manifest to the files."""
    trials, fitting = choose_trials(options)
    encoder = load("Wav2Vec2Encoder", options.model, options.device)
    model, device = encoder.mods["wav2vec2"], encoder.device
    every = list(range(len(model.encoder.layers) + 1))
    layers = every if options.layer == "all" else [options.layer]
    systems = {
        "model": network(model, device, layers, options.pool),
        "random": network(untrained(model, options.seed), device, layers, options.pool),
        "mfcc": mfcc_statistics(),
    }
    vectors, failed = embed(systems, (row for trial in trials + fitting for row in trial))
    for reason in failed.values():
        print(f"left out: {reason}", file=sys.stderr)
    trials, fitting = (
        [trial for trial in some if not any(row["wav"] in failed for row in trial)]
        for some in (trials, fitting)
    )
    found = []
    for name in systems:
        numbers = [None] if name == "mfcc" else layers
        found += candidates(vectors[name], name, numbers, trials, fitting, options.normalize)
    entries, differences = evaluate(found, trials, options.bootstrap, options.seed)
    lists = {"reported": summary(trials), "fitting": summary(fitting)}
    results = (
        circumstances(device, options.manifest)
        | {
            "options": {key: str(value) for key, value in vars(options).items()},
            "seed": options.seed,
        }
        | lists
    )
    results |= {"left_out": list(failed.values()), "systems": entries, "differences": differences}
    folder = options.output_folder
    folder.mkdir(parents=True, exist_ok=True)
    write_trials(folder / "trials.txt", trials)
    write_scores(folder / "scores.csv", trials, found)
    plot(entries, folder / "layers.png")
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for name, counts in lists.items():
        print(f"{name}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    print(f"{table(entries, differences)}\n{folder}/results.json")


def layer_number(text: str) -> int | str:
    return text if text == "all" else int(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--manifest", type=Path, required=True, help="recordings and speakers (recipes/prepare/)")
    add("--model", required=True, help="model folder, transformers checkpoint, or hub id")
    add("--output_folder", type=Path, required=True, help="for the results")
    add("--fit", type=Path, help="manifest of other speakers, for layer and normalization")
    add("--trials", type=Path, help='a given list, lines "1 a b" or "0 a b"')
    add("--layer", type=layer_number, default="all", help="a number, -1: context, or all (default)")
    add("--pool", choices=POOLS, default="mean+std", help="of the networks (default mean+std)")
    add("--normalize", choices=NORMALIZE, default=NORMALIZE[0], help="by the fitting speakers")
    add("--positives", type=int, default=50, help="same-speaker pairs per speaker (default 50)")
    add("--ratio", type=int, default=4, help="different-speaker pairs for each (default 4)")
    add("--session", metavar="REGEX", help="part of the id that pairs of a speaker differ in")
    add("--bootstrap", type=int, default=1000, help="draws of speakers (default 1000)")
    add("--seed", type=int, default=0, help="of lists, halves, draws, random model (default 0)")
    add("--device", help="cpu, cuda, … (default: an accelerator if any)")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on stderr where it cannot be done."""
    options = parser().parse_args(argv)
    try:
        run(options)
    except (ValueError, CannotStart, OSError, re.error) as error:  # BadManifest is a ValueError
        print(f"speaker_verification.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
