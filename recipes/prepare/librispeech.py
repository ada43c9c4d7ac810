"""LibriSpeech in its original layout -> one manifest.

Reads ROOT/<split>/<speaker>/<chapter>/*.flac with the chapter's *.trans.txt, as
https://www.openslr.org/12 and https://www.openslr.org/31 unpack. Audio may have been re-encoded to
.opus, .ogg or .wav under the same names.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from pathlib import Path

import soundfile

from w2v_plugin.errors import BadManifest
from w2v_plugin.manifests import Utterance, write_manifest

AUDIO = (".flac", ".opus", ".ogg", ".wav")

EXAMPLES = """examples
  everything, as unlabelled audio for pretraining (transcripts come along anyway):
    python recipes/prepare/librispeech.py --data LibriSpeech --split train-clean-5 \\
        --out runs/data/pretrain.csv --max-s 20
  ten labelled minutes, the same every time, spread evenly over the speakers:
    python recipes/prepare/librispeech.py --data LibriSpeech --split train-clean-5 \\
        --out runs/data/train-10min.csv --minutes 10 --seed 1
  exactly the utterances that a list names (one id or path a line):
    python recipes/prepare/librispeech.py --data LibriSpeech --split test-clean \\
        --out runs/data/test.csv --keep LibriSpeech/test-clean-test.txt

Every file is decoded once. Unusable ones are left out, counted, and listed with the reason in
<manifest>.skipped.tsv.
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
        for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
            name, _, text = line.strip().partition(" ")
            if name:
                wav = audio.get(name, chapter / f"{name}.flac")
                utterances.append(Utterance(name, wav, speaker, text, f"{table}:{number}"))
    told = {utterance.id for utterance in utterances}
    silent = [Utterance(n, wav, speaker, "", str(wav)) for n, wav in audio.items() if n not in told]
    return utterances + silent


def keep_listed(utterances: list[Utterance], listing: Path) -> list[Utterance]:
    """Only the utterances that a text file names, by id or by a path that ends in the id."""
    lines = listing.read_text(encoding="utf-8").splitlines()
    wanted = {Path(line.strip()).stem: n for n, line in enumerate(lines, start=1) if line.strip()}
    unknown = [name for name in wanted if name not in {utterance.id for utterance in utterances}]
    if unknown:
        raise BadManifest(
            f"{listing}:{wanted[unknown[0]]}: {unknown[0]!r} is not in this split "
            f"({len(unknown)} such lines). Is it the list of another split?"
        )
    return [utterance for utterance in utterances if utterance.id in wanted]


def balanced_subset(utterances: list[Utterance], minutes: float, seed: int) -> list[Utterance]:
    """About `minutes` of speech: the speaker with the least so far gives the next utterance."""
    generator = random.Random(seed)
    left: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in generator.sample(utterances, len(utterances)):
        left[utterance.speaker].append(utterance)
    seconds = dict.fromkeys(left, 0.0)
    chosen: set[str] = set()
    while sum(seconds.values()) < minutes * 60:
        speaker = min((name for name in left if left[name]), key=seconds.__getitem__, default="")
        if not speaker:
            raise BadManifest(
                f"--minutes {minutes:g}, but there are only {sum(seconds.values()) / 60:.1f} "
                "minutes to choose from. Ask for less, or drop --minutes to take everything."
            )
        utterance = left[speaker].pop()
        chosen.add(utterance.id)
        seconds[speaker] += header_seconds(utterance.wav)
    return [utterance for utterance in utterances if utterance.id in chosen]


def header_seconds(path: Path) -> float:
    """Length that the header promises; 0 for a broken file, which the manifest will report."""
    try:
        return float(soundfile.info(str(path)).duration)
    except (soundfile.SoundFileError, RuntimeError):
        return 0.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--data", type=Path, required=True, help="folder that holds the splits")
    add("--split", required=True, nargs="+", help="train-clean-5, dev-clean ...; one or several")
    add("--out", type=Path, required=True, help="manifest to write")
    add("--keep", type=Path, help="text file naming the utterances to keep, one a line")
    add("--minutes", type=float, help="random subset of this size, balanced over speakers")
    add("--seed", type=int, default=0, help="of that subset (default 0)")
    add("--min-s", type=float, help="leave out shorter utterances, seconds")
    add("--max-s", type=float, help="leave out longer utterances, seconds")
    add("--need-text", action="store_true", help="leave out utterances without a transcript")
    add("--workers", type=int, default=2, help="files decoded at a time (default 2)")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on stderr where the corpus cannot be used."""
    options = parser().parse_args(argv)
    try:
        utterances = [u for split in options.split for u in list_split(options.data / split)]
        if options.keep:
            utterances = keep_listed(utterances, options.keep)
        if options.minutes:
            utterances = balanced_subset(utterances, options.minutes, options.seed)
        summary = write_manifest(
            options.out,
            utterances,
            workers=options.workers,
            max_s=options.max_s,
            min_s=options.min_s,
            need_text=options.need_text or options.minutes is not None,
        )
    except (BadManifest, OSError, UnicodeDecodeError) as error:
        print(f"librispeech.py: {error}", file=sys.stderr)
        return 2
    print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
