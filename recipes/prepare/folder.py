"""Recordings of your own -> a manifest, or train, dev and test.

--data or --table may be a folder of audio with a .txt of the same name beside each file, a table
(.tsv, .csv, JSON lines; NeMo's manifests, too), a text file of "name text" lines (LJSpeech's
metadata.csv), a Kaldi or ESPnet data directory, or lhotse manifests. The script looks, decides, and
says what it took it for.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from w2v_plugin.checks import Utterance
from w2v_plugin.listings import list_any
from w2v_plugin.preparation import command_line, run
from w2v_plugin.splits import split_by_speaker

EXAMPLES = """examples
  unlabelled audio in any folders:
    python recipes/prepare/folder.py --data recordings --out runs/data/pretrain.csv --max-s 20
  a table, a tenth of the audio set aside to watch training, as whole speakers:
    python recipes/prepare/folder.py --table corpus/manifest.tsv --need-text \\
        --out runs/data/train.csv --dev-out runs/data/dev.csv --split-by-speaker 0.1
  5 minutes each for dev and test, and no sentence on two sides:
    python recipes/prepare/folder.py --data recordings --text said.txt --out data/train.csv \\
        --dev-out data/dev.csv --test-out data/test.csv --split-by-speaker 5 5 \\
        --unit minutes --apart-texts
  columns with names that are not guessed:
    python recipes/prepare/folder.py --table talks.csv --data clips --out runs/data/talks.csv \\
        --audio-column mp3 --text-column said --speaker-column who --need-text
  a Kaldi or ESPnet data directory with segments, which are cut to files:
    python recipes/prepare/folder.py --data data/train --cut-to runs/cut --out runs/data/train.csv
  Free Spoken Digit Dataset, official split: repetitions 0-4 of each speaker and digit are test
  (files are called <digit>_<speaker>_<repetition>.flac):
    python recipes/prepare/folder.py --table digits/manifest.tsv --drop '_[0-4]\\.flac$' \\
        --out runs/data/digits-train.csv
    python recipes/prepare/folder.py --table digits/manifest.tsv --keep '_[0-4]\\.flac$' \\
        --out runs/data/digits-test.csv
"""


def select(
    utterances: Sequence[Utterance], root: Path, keep: str | None, drop: str | None
) -> list[Utterance]:
    """Filter by regular expressions that are searched in the path relative to `root`."""

    def wanted(utterance: Utterance) -> bool:
        path = utterance.wav
        name = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
        return not (keep and not re.search(keep, name)) and not (drop and re.search(drop, name))

    return [utterance for utterance in utterances if wanted(utterance)]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = command_line(__doc__, EXAMPLES)
    add = options.add_argument
    add("--data", type=Path, help="folder; with --table: what its paths are relative to")
    add("--table", type=Path, help="a table or list that names audio files")
    add("--text", type=Path, help="texts that lie elsewhere: a table, 'name text' lines, a folder")
    add("--out", type=Path, required=True, help="manifest to write")
    for role, what in (("audio", "path of the audio"), ("text", "text"), ("speaker", "speaker")):
        add(f"--{role}-column", metavar="NAME", help=f"with the {what} ('' for none; else guessed)")
    add("--encoding", default="utf-8", help="of tables and texts (default utf-8)")
    add("--cut-to", type=Path, metavar="FOLDER", help="where parts of longer recordings are cut to")
    add("--keep", metavar="REGEX", help="only files whose relative path matches")
    add("--drop", metavar="REGEX", help="no files whose relative path matches")
    add("--dev-out", type=Path, help="second manifest, for what is set aside")
    add("--test-out", type=Path, help="third manifest, for what is set aside, too")
    aside = options.add_mutually_exclusive_group()
    sizes = {"type": float, "nargs": "+", "metavar": "SIZE"}
    aside.add_argument("--split-by-speaker", help="of dev (and test): whole speakers", **sizes)
    aside.add_argument("--holdout", help="of dev (and test): any utterances", **sizes)
    add("--unit", choices=("share", "minutes"), default="share", help="of SIZE (default share)")
    add("--apart-texts", action="store_true", help="no text on two sides, where avoidable")
    add("--seed", type=int, default=0, help="of what is set aside (default 0)")
    return options


def listed(options: argparse.Namespace) -> list[Utterance]:
    """What the options ask for, before any file is opened."""
    given = {role: getattr(options, f"{role}_column") for role in ("audio", "text", "speaker")}
    columns = {role: name for role, name in given.items() if name is not None}
    path = options.table or options.data
    root = options.data if options.table else None
    found = list_any(
        path, options.text, audio_root=root, columns=columns, encoding=options.encoding
    )
    print(f"{found.kind}; {len(found)} utterances", flush=True)
    start = options.data or options.table.parent
    return select(found, start, options.keep, options.drop)


def parts(options: argparse.Namespace) -> Mapping[Path, Sequence[Utterance]]:
    """Manifests and what belongs into them."""
    every = listed(options)
    sizes = options.split_by_speaker or options.holdout
    if not sizes:
        return {options.out: every}
    split = split_by_speaker(
        every,
        dev=sizes[0],
        test=sizes[1] if len(sizes) > 1 else 0.0,
        unit=options.unit,
        seed=options.seed,
        apart_texts=options.apart_texts,
        by_speaker=options.split_by_speaker is not None,
        max_s=options.max_s,
        min_s=options.min_s,
        need_text=options.need_text,
    )
    for warning in split.warnings:
        print(f"folder.py: warning: {warning}", file=sys.stderr)
    paths = (options.out, options.dev_out, options.test_out)
    return {path: side for path, side in zip(paths, split[:3], strict=True) if path}


def refuse_outs(line: argparse.ArgumentParser, outs: Sequence[Path]) -> None:
    """One would overwrite the other, or the lists and cards beside it."""
    if odd := [path for path in outs if path.suffix != ".csv"]:
        line.error(f"{odd[0]}: the name of a manifest ends in .csv")
    if len({path.resolve() for path in outs}) < len(outs):
        line.error(f"--out, --dev-out and --test-out: {outs[-1]} is named twice")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on stderr where the corpus cannot be used."""
    line = parser()
    options = line.parse_args(argv)
    if not (options.data or options.table):
        line.error("give --data FOLDER, --table FILE, or both")
    sizes = options.split_by_speaker or options.holdout or ()
    outs = [path for path in (options.dev_out, options.test_out) if path]
    if len(sizes) != len(outs) or (options.test_out and not options.dev_out):
        line.error(
            "--dev-out (and --test-out) go together with one (or two) sizes of --split-by-speaker "
            "or --holdout"
        )
    refuse_outs(line, [options.out, *outs])
    return run("folder.py", options, lambda: parts(options), options.cut_to)


if __name__ == "__main__":
    sys.exit(main())
