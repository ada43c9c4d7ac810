"""LibriSpeech in its original layout -> manifests; Libri-light's labelled subsets, too.

Reads ROOT/<split>/<speaker>/<chapter>/*.flac with the chapter's *.trans.txt, as
https://www.openslr.org/12 and https://www.openslr.org/31 unpack. Audio may have been re-encoded to
.opus, .ogg or .wav under the same names. --labels reads librispeech_finetuning, where the same
layout lies below 1h/<0 to 5>/<clean or other> and 9h/<clean or other>: ten minutes are 1h/0, ten
hours are 1h and 9h together
(https://pytorch.org/audio/stable/generated/torchaudio.datasets.LibriLightLimited.html).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from w2v_plugin.checks import Utterance
from w2v_plugin.errors import BadManifest
from w2v_plugin.preparation import command_line, part_paths, run
from w2v_plugin.splits import Limits, balanced_subset
from w2v_plugin.tables import read_lines

AUDIO = (".flac", ".opus", ".ogg", ".wav")
SPLITS = (
    *("train-clean-5", "train-clean-100", "train-clean-360", "train-other-500"),
    *("dev-clean-2", "dev-clean", "dev-other", "test-clean", "test-other"),
)
LABELS = {"10min": ("1h/0",), "1h": ("1h/*",), "10h": ("1h/*", "9h")}

EXAMPLES = """examples
  every split that is there, a manifest for each:
    python recipes/prepare/librispeech.py --data LibriSpeech --split all --out runs/data
  several splits as one manifest (OUT ends in .csv), for pretraining:
    python recipes/prepare/librispeech.py --data LibriSpeech \\
        --split train-clean-100 train-clean-360 --out runs/data/pretrain.csv --max-s 20
  the ten labelled hours of Libri-light (also 10min and 1h), from librispeech_finetuning.tgz:
    python recipes/prepare/librispeech.py --data librispeech_finetuning --labels 10h \\
        --out runs/data/train-10h.csv
  ten labelled minutes of any split, the same every time, spread evenly over the speakers:
    python recipes/prepare/librispeech.py --data LibriSpeech --split train-clean-5 \\
        --out runs/data/train-10min.csv --minutes 10 --seed 1
  exactly the utterances that a list names (one id or path a line):
    python recipes/prepare/librispeech.py --data LibriSpeech --split test-clean \\
        --out runs/data/test.csv --keep LibriSpeech/test-clean-test.txt
"""


def list_split(folder: Path) -> list[Utterance]:
    """Every utterance of one split, in the order of speakers, chapters and lines."""
    if not folder.is_dir():
        raise BadManifest(f"{folder}: no such folder. --data is the folder that holds the splits.")
    chapters = sorted(path for path in folder.glob("*/*") if path.is_dir())
    utterances = [utterance for chapter in chapters for utterance in list_chapter(chapter)]
    if not utterances:
        raise BadManifest(
            f"{folder}: found no speaker/chapter/*.flac. "
            "For other layouts use recipes/prepare/folder.py."
        )
    return utterances


def list_chapter(chapter: Path) -> list[Utterance]:
    """Lines of the transcript, then audio that has no line."""
    audio = {path.stem: path for path in sorted(chapter.iterdir()) if path.suffix in AUDIO}
    speaker = chapter.parent.name
    utterances = []
    for table in sorted(chapter.glob("*.trans.txt")):
        for source, line in read_lines(table):
            name, _, text = line.strip().partition(" ")
            wav = audio.get(name, chapter / f"{name}.flac")
            utterances.append(Utterance(name, wav, speaker, text, source))
    told = {utterance.id for utterance in utterances}
    silent = [Utterance(n, wav, speaker, "", str(wav)) for n, wav in audio.items() if n not in told]
    return utterances + silent


def list_labels(root: Path, size: str) -> list[Utterance]:
    """Libri-light's 10 minutes, 1 hour or 10 hours, "clean" and "other" together."""
    folders = [path for pattern in LABELS[size] for path in sorted(root.glob(pattern))]
    kinds = [path / kind for path in folders for kind in ("clean", "other")]
    there = [path for path in kinds if path.is_dir()]
    if not there:
        raise BadManifest(
            f"{root}: holds no {' and '.join(LABELS[size])}. --labels wants the folder "
            "librispeech_finetuning of Libri-light; for a subset of LibriSpeech use --minutes."
        )
    return [utterance for folder in there for utterance in list_split(folder)]


def keep_listed(utterances: Sequence[Utterance], listing: Path) -> list[Utterance]:
    """Only the utterances that a text file names, by id or by a path that ends in the id."""
    wanted = {Path(line.strip()).stem: source for source, line in read_lines(listing)}
    known = {utterance.id for utterance in utterances}
    if unknown := [name for name in wanted if name not in known]:
        raise BadManifest(
            f"{wanted[unknown[0]]}: {unknown[0]!r} is not in this split "
            f"({len(unknown)} such lines). Is it the list of another split?"
        )
    return [utterance for utterance in utterances if utterance.id in wanted]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = command_line(__doc__, EXAMPLES)
    add = options.add_argument
    add("--data", type=Path, required=True, help="folder that holds the splits")
    what = options.add_mutually_exclusive_group(required=True)
    splits = "train-clean-5, dev-clean ...; one or several; all: those of LibriSpeech in --data"
    what.add_argument("--split", nargs="+", help=splits)
    what.add_argument("--labels", choices=LABELS, help="a labelled subset of Libri-light")
    out = "manifest to write (.csv), or folder for a manifest of each split"
    add("--out", type=Path, required=True, help=out)
    add("--keep", type=Path, help="text file naming the utterances to keep, one a line")
    add("--minutes", type=float, help="random subset of this size, balanced over speakers")
    add("--seed", type=int, default=0, help="of that subset (default 0)")
    return options


def parts(options: argparse.Namespace) -> Mapping[Path, Sequence[Utterance]]:
    """Manifests and what belongs into them."""
    if options.minutes is not None and not options.minutes > 0:
        raise BadManifest(f"--minutes {options.minutes:g}: expected more than 0.")
    if options.labels:
        found = {options.labels: list_labels(options.data, options.labels)}
    else:
        names = options.split
        if names == ["all"]:
            names = [name for name in SPLITS if (options.data / name).is_dir()]
            if not names:
                raise BadManifest(f"{options.data}: holds none of {', '.join(SPLITS)}.")
        found = {name: list_split(options.data / name) for name in names}
    if options.out.suffix == ".csv":
        found = {options.out.stem: [each for listed in found.values() for each in listed]}
    if options.keep:
        found = {name: keep_listed(listed, options.keep) for name, listed in found.items()}
    if options.minutes is not None:
        limits = Limits(options.max_s, options.min_s, options.need_text)
        found = {
            name: balanced_subset(listed, options.minutes, options.seed, limits)
            for name, listed in found.items()
        }
    paths = part_paths(options.out, list(found))
    return {paths[name]: listed for name, listed in found.items()}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on stderr where the corpus cannot be used."""
    options = parser().parse_args(argv)
    options.need_text = options.need_text or bool(options.minutes or options.labels)
    return run("librispeech.py", options, lambda: parts(options))


if __name__ == "__main__":
    sys.exit(main())
