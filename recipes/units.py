"""What do discrete units know of phones? Quantizer codes and k-means, beside k-means on MFCCs.

Every 20 ms frame has a phone, from an alignment, and a unit. Three scores compare them: PNMI,
phone purity and cluster purity (w2v_plugin/purity.py says what they are), each beside the score of
the same units in random order. All systems are scored on the same frames of the same utterances:

    group N, joint   codes of the model's quantizer, if it has one
    layer N          k-means on what the N-th layer gives (0: what enters the first one)
    random           the same of a model of the first one's shape that has learned nothing
    mfcc             k-means on 39 MFCCs: what signal processing gives; raw, as it is usually done,
                     and normalized by the mean and variance of the utterance, which is better

k-means is fitted on other utterances than those that are scored: those of --fit, or else half of
the speakers of the manifest (half of the utterances where there is only one), and the other half is
scored. Scores rise or fall with the number of units: compare systems that use about as many.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from w2v_plugin.audio import read_audio
from w2v_plugin.circumstances import circumstances
from w2v_plugin.clusters import KMeans, fit_kmeans, mfcc_frames
from w2v_plugin.conversion import open_any
from w2v_plugin.devices import choose
from w2v_plugin.errors import BadAudio, BadManifest
from w2v_plugin.frames import frame_lengths
from w2v_plugin.manifests import read_manifest
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.phones import FORMATS, SILENCE, UNKNOWN, Phone, frame_phones, read_alignments
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.purity import Purity, joint_counts, purity, shuffled_purity
from w2v_plugin.trials import halves
from w2v_plugin.unit_pictures import heat_map, usage_curves
from w2v_plugin.units import UnitCounts, select_group

EXAMPLES = f"""\
examples
  the synthetic corpus, whose phone times are exact:
    python recipes/prepare/commands.py --out runs/data/commands
    python recipes/units.py --manifest runs/data/commands/test.csv \\
        --fit runs/data/commands/train.csv --alignments runs/data/commands/phones.json \\
        --models runs/mine/model start=runs/mine/warm_start --output_folder runs/units
  LibriSpeech with the alignments of the Montreal Forced Aligner, two layers, 100 and 500 clusters:
    python recipes/units.py --manifest dev-clean.csv --alignments aligned/dev-clean \\
        --models facebook/wav2vec2-base --layers 6,9 --clusters 100 500 --output_folder runs/units

alignments: {FORMATS}

written into the output folder
  table.md, results.json  all figures, and what it takes to get them again
  kmeans/                 the fitted clusters, for `w2v units --kmeans`
  heatmaps/               P(phone | unit) of every system, units in the order of their phones
  usage.png               how often each unit occurs
"""

MFCC = "mfcc"
BASELINE = MFCC, "normalized"
Row = dict[str, Any]
Key = tuple[str, str]  # model, and "codes" or "layer N"; or MFCC and how
Features = dict[Key, np.ndarray]


@dataclass
class System:
    """Units of one kind, and their scores."""

    model: str
    units: str
    sizes: tuple[int, ...]
    of: Callable[[Features], np.ndarray]  # what the models hear in an utterance -> its units
    heard: list[np.ndarray] = field(default_factory=list)  # (frames,) of each utterance
    scores: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model}, {self.units}"


def named_models(given: Sequence[str], device: torch.device, seed: int) -> dict[str, Any]:
    """Models under their names ("name=source" or the source itself), and the random one."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if name in found or name in ("random", MFCC):
            raise ValueError(f"--models {text}: there is a model called {name} already.")
        found[name] = open_any(source if equals else text)[0].eval().to(device)
    first = next(iter(found.values()))
    found["random"] = untrained(first, seed).eval().to(device)
    return found


def untrained(model: Any, seed: int) -> Any:
    """A model of the same shape with fresh weights, quantizer included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = Wav2Vec2(**getattr(model, "wav2vec2", model).config)
        if not isinstance(model, Wav2Vec2Pretraining):
            return body
        twin = copy.deepcopy(model)
        twin.wav2vec2 = body
        twin.quantizer = type(model.quantizer)(**model.quantizer.config)
        return twin


@torch.inference_mode()
def hear(models: dict[str, Any], wav: Tensor, layers: dict[str, list[int]]) -> Features:
    """What a waveform is to all of them."""
    found = {(MFCC, "raw"): mfcc_frames(wav).numpy()}
    found[BASELINE] = mfcc_frames(wav, normalize=True).numpy()
    for name, model in models.items():
        body = getattr(model, "wav2vec2", model)
        latents, _ = body.extract(wav[None].to(body.mask_embedding.device))
        normed = body.projection.norm(latents)
        if isinstance(model, Wav2Vec2Pretraining):
            found[name, "codes"] = model.quantizer(normed).codes[0].cpu().numpy()
        if layers[name]:
            out = body.contextualize(latents, normed=normed, output_hidden_states=True)
            for number in layers[name]:
                found[name, f"layer {number}"] = out.hidden_states[number][0].cpu().numpy()
    if len({len(frames) for frames in found.values()} | {frame_lengths(len(wav))}) > 1:
        raise ValueError("These models do not have 50 frames a second, as phones of frames need.")
    return found


def over_utterances(rows: list[Row], models: dict[str, Any], layers: Any, what: str) -> Any:
    """(row, features) of every utterance that can be read."""
    for row in tqdm(rows, desc=what, disable=None):
        try:
            wav = read_audio(row["wav"])
        except BadAudio as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        yield row, hear(models, wav, layers)


def fitting_frames(
    rows: list[Row], models: dict[str, Any], layers: dict[str, list[int]], wanted: int, seed: int
) -> Features:
    """Random frames of the fitting utterances, the same ones for every system."""
    share = min(1.0, wanted / (50 * sum(row["duration"] for row in rows)))
    generator = np.random.default_rng(seed)
    kept: dict[Key, list[np.ndarray]] = {}
    for _, features in over_utterances(rows, models, layers, "fitting utterances"):
        chosen = generator.random(len(features[BASELINE])) < share
        for key, frames in features.items():
            if key[1] != "codes":
                kept.setdefault(key, []).append(frames[chosen])
    return {key: np.concatenate(frames) for key, frames in kept.items()}


def code_systems(models: dict[str, Any]) -> list[System]:
    """Each group and the joint code of every quantizer."""
    found = []
    for name, model in models.items():
        if not isinstance(model, Wav2Vec2Pretraining):
            continue
        sizes = (model.quantizer.codes,) * model.quantizer.groups
        for group in (*range(len(sizes)), None):
            of = partial(codes_of, key=(name, "codes"), sizes=sizes, group=group)
            label = "joint" if group is None else f"group {group}"
            found.append(System(name, label, sizes if group is None else sizes[:1], of))
    return found


def codes_of(features: Features, key: Key, sizes: tuple[int, ...], group: int | None) -> np.ndarray:
    return select_group(features[key], sizes, group)


def cluster_systems(frames: Features, clusters: list[int], seed: int, out: Path) -> list[System]:
    """k-means of every size on everything that was heard."""
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for size in clusters:
        for key in tqdm(frames, desc=f"k-means, {size} clusters", disable=None):
            model, layer = key
            number = int(layer.split()[1]) if layer.startswith("layer") else f"{model} {layer}"
            kmeans = fit_kmeans(frames[key], size, number, seed=seed)
            label = f"{layer}, {size}"
            kmeans.save(out / f"{file_name(f'{model} {label}')}.safetensors")
            of = partial(clusters_of, key=key, kmeans=kmeans)
            found.append(System(model, label, (size,), of))
    return found


def clusters_of(features: Features, key: Key, kmeans: KMeans) -> np.ndarray:
    return kmeans(torch.from_numpy(features[key])).numpy()


def file_name(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text).split())


def labels_of(
    alignments: dict[str, list[Phone]], row: Row, frames: int, silence: str
) -> np.ndarray:
    """(frames,) phones, `UNKNOWN` where nothing is to be scored."""
    phones = alignments.get(row["ID"], alignments.get(Path(row["wav"]).stem, []))
    labels = frame_phones(phones, frames)
    return labels if silence == "keep" else np.where(labels == SILENCE, UNKNOWN, labels)


def score(system: System, phones: list[np.ndarray], seed: int) -> None:
    """Fill in the figures of a system."""
    every, units = np.concatenate(phones), np.concatenate(system.heard)
    scored = every != UNKNOWN
    counts = UnitCounts(system.sizes)
    for one in system.heard:
        counts.add(one)
    found = purity(joint_counts(every[scored], units[scored]).counts)
    shuffled = shuffled_purity(every[scored], units[scored], seed=seed)
    system.scores = {
        "used": len(np.unique(units[scored])),
        **found._asdict(),
        **{f"{key}_shuffled": value for key, value in shuffled._asdict().items()},
        "bitrate": counts.bitrate,
        "run_bitrate": counts.run_bitrate,
    }


def table(systems: list[System]) -> str:
    """Markdown; in brackets the same units in random order."""
    head = ["model", "units", "used", "PNMI", "phone purity", "cluster purity", "bit/s", "runs"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for system in systems:
        s = system.scores
        pairs = [f"{s[key]:.3f} ({s[f'{key}_shuffled']:.3f})" for key in Purity._fields]
        cells = [system.model, system.units, f"{s['used']}", *pairs]
        cells += [f"{s['bitrate']:.0f}", f"{s['run_bitrate']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(system: System, phones: list[np.ndarray], path: Path) -> None:
    every, units = np.concatenate(phones), np.concatenate(system.heard)
    scored = every != UNKNOWN
    title = f"{system.name}: PNMI {system.scores['pnmi']:.3f}"
    heat_map(joint_counts(every[scored], units[scored]), title, path)


def usage(systems: list[System], path: Path) -> None:
    """A panel per model; joint codes would need an axis of their own."""
    panels: dict[str, dict[str, np.ndarray]] = {}
    for system in systems:
        if system.units != "joint":
            counts = np.unique(np.concatenate(system.heard), return_counts=True)[1]
            panels.setdefault(system.model, {})[system.units] = counts
    usage_curves(panels, path)


def choose_rows(options: argparse.Namespace) -> tuple[list[Row], list[Row], Any]:
    """Scored and fitting rows, without a common file, and the alignments of the scored ones."""
    rows = read_manifest(options.manifest)
    alignments = read_alignments(options.alignments, options.tier)
    if options.fit:
        fitting = read_manifest(options.fit)
    elif len({row["spk_id"] for row in rows}) > 1:
        rows, fitting = halves(rows, options.seed)
    else:
        rows, fitting = rows[::2], rows[1::2]
    if common := {row["wav"] for row in rows} & {row["wav"] for row in fitting}:
        raise BadManifest(f"{options.fit}: {min(common)} is scored, too. Give others.")
    aligned = [r for r in rows if r["ID"] in alignments or Path(r["wav"]).stem in alignments]
    if not aligned or not fitting:
        raise BadManifest(
            f"{len(aligned)} of {len(rows)} utterances of {options.manifest} are in "
            f"{options.alignments}, {len(fitting)} are left to fit. Names in alignments must be "
            "IDs of the manifest or names of its files."
        )
    if len(aligned) < len(rows):
        print(f"left out: {len(rows) - len(aligned)} without alignment", file=sys.stderr)
    return aligned, fitting, alignments


def run(options: argparse.Namespace) -> None:
    """All of it, from the manifest to the files."""
    rows, fitting, alignments = choose_rows(options)
    device = choose(options.device, "fp32").device
    models = named_models(options.models, device, options.seed)
    layers = {name: chosen_layers(model, options.layers) for name, model in models.items()}
    out = options.output_folder
    frames = fitting_frames(fitting, models, layers, options.fit_frames, options.seed)
    systems = code_systems(models)
    systems += cluster_systems(frames, options.clusters, options.seed, out / "kmeans")
    systems.sort(key=lambda system: [*models, MFCC].index(system.model))
    phones: list[np.ndarray] = []
    for row, features in over_utterances(rows, models, layers, "scored utterances"):
        phones.append(labels_of(alignments, row, len(features[BASELINE]), options.silence))
        for system in systems:
            system.heard.append(system.of(features))
    labels = np.concatenate(phones) if phones else np.array([])
    if not (labels != UNKNOWN).any():
        raise ValueError(f"{options.alignments}: no frame of the scored utterances has a phone.")
    (out / "heatmaps").mkdir(exist_ok=True)
    for system in tqdm(systems, desc="scores", disable=None):
        score(system, phones, options.seed)
        picture(system, phones, out / "heatmaps" / f"{file_name(system.name)}.png")
    usage(systems, out / "usage.png")
    labels = labels[labels != UNKNOWN]
    summary: dict[str, Any] = {
        "scored": {"utterances": len(phones), "frames": len(labels)},
        "phones": len(np.unique(labels)),
        "silence": float((labels == SILENCE).mean()),
        "fitting": {"utterances": len(fitting), "frames": len(frames[BASELINE])},
    }
    entries = [{"model": s.model, "units": s.units, **s.scores} for s in systems]
    results = (
        circumstances(device, options.manifest)
        | {
            "options": {key: str(value) for key, value in vars(options).items()},
            "seed": options.seed,
        }
        | summary
        | {"systems": entries}
    )
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    text = (
        f"{table(systems)}\n\nIn brackets: the same units in random order. "
        f"{len(labels)} frames of {len(phones)} utterances, {summary['phones']} phones, "
        f"{100 * summary['silence']:.0f} % silence; k-means fitted on "
        f"{len(frames[BASELINE])} frames of {len(fitting)} others. bit/s: a unit "
        "every 20 ms; runs: equal neighbors as one.\n"
    )
    (out / "table.md").write_text(text, encoding="utf-8")
    print(f"{text}\n{out}/results.json")


def chosen_layers(model: Any, given: str) -> list[int]:
    """Numbers of layers; ValueError if there is no such layer."""
    last = len(getattr(model, "wav2vec2", model).encoder.layers)
    if given == "all":
        return list(range(last + 1))
    numbers = [int(part) for part in given.split(",") if part]
    if any(not 0 <= number <= last for number in numbers):
        raise ValueError(
            f"--layers {given}: the model has layers 0 (input of the first) to {last}."
        )
    return numbers


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--manifest", type=Path, required=True, help="utterances to score (recipes/prepare/)")
    add("--alignments", type=Path, required=True, help="who says which phone when, see below")
    add("--models", nargs="+", required=True, metavar="[NAME=]MODEL", help="whose units")
    add("--output_folder", type=Path, required=True, help="for the results")
    add("--fit", type=Path, help="manifest of other utterances, for k-means")
    add("--layers", default="all", help="of k-means: all (default), or numbers as 6,9")
    add("--clusters", type=int, nargs="+", default=[100], help="of k-means (default 100)")
    add("--fit_frames", type=int, default=50_000, help="that k-means sees (default 50000)")
    add("--silence", choices=["keep", "drop"], default="keep", help="a phone (default), or not")
    add("--tier", default="phones", help="of a TextGrid (default phones)")
    add("--seed", type=int, default=0, help="of halves, frames, k-means, orders, random model")
    add("--device", help="cpu, cuda, … (default: an accelerator if any)")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on stderr where it cannot be done."""
    options = parser().parse_args(argv)
    try:
        run(options)
    except (ValueError, ImportError, OSError) as error:
        print(f"units.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
