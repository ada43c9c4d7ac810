"""A release of Common Voice -> manifests.

Reads ROOT/<split>.tsv (train, dev, test, validated, invalidated, other) and ROOT/clips/*.mp3, as
the releases of https://commonvoice.mozilla.org unpack (cv-corpus-17.0-2024-03-15/de is such a
ROOT). Of the columns, client_id, path, sentence, up_votes and down_votes are used, in any order;
newer releases have more of them (sentence_id, sentence_domain, variant), older ones fewer. Lengths
are compared with clip_durations.tsv where there is one
(https://github.com/common-voice/cv-dataset).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from w2v_plugin.checks import Utterance
from w2v_plugin.errors import BadManifest
from w2v_plugin.preparation import command_line, part_paths, run
from w2v_plugin.tables import Row, read_table

NEEDED = ("client_id", "path", "sentence")

EXAMPLES = """examples
  the official splits, a manifest for each:
    python recipes/prepare/common_voice.py --data cv-corpus-17.0-2024-03-15/de --need-text \\
        --out runs/data
  everything that was validated, except for the voices of dev and test, two votes or more each:
    python recipes/prepare/common_voice.py --data cv-corpus-17.0-2024-03-15/ml --split validated \\
        --without dev test --min-up 2 --max-down 0 --need-text --out runs/data/train.csv
"""


def list_split(
    root: Path,
    split: str,
    *,
    without: Sequence[str] = (),
    min_up: int = 0,
    max_down: int | None = None,
) -> list[Utterance]:
    """Every clip of one tsv; those with too few votes, or of other splits' voices, say so."""
    lengths = clip_seconds(root / "clip_durations.tsv")
    voices = {
        row.cells["client_id"]: name
        for name in without
        for row in read_split(root, name)
        if not row.problem
    }
    return [
        utterance(root, row, lengths, voices, min_up=min_up, max_down=max_down)
        for row in read_split(root, split)
    ]


def read_split(root: Path, split: str) -> list[Row]:
    """Rows of a tsv that has the columns of Common Voice."""
    path = root / f"{split}.tsv"
    if not path.is_file():
        there = ", ".join(sorted(each.stem for each in root.glob("*.tsv"))) or "no tsv at all"
        raise BadManifest(
            f"{path}: no such file. --data is the folder of one language of a release, with "
            f"clips/ in it; it holds {there}."
        )
    rows = read_table(path)
    columns = next((row.cells for row in rows if not row.problem), dict.fromkeys(NEEDED))
    if missing := [name for name in NEEDED if name not in columns]:
        raise BadManifest(
            f"{path}:1: no column {', '.join(missing)}; it has {', '.join(columns)}. Is this a "
            "list of clips? (Lists of sentences have no recordings.)"
        )
    return rows


def clip_seconds(path: Path) -> dict[str, float]:
    """Lengths of clips by file name; newer releases say "duration[ms]"."""
    if not path.is_file():
        return {}
    rows = [row.cells for row in read_table(path) if not row.problem]
    length = next((name for name in (rows[0] if rows else ()) if name.startswith("duration")), "")
    try:
        return {cells["clip"]: float(cells[length]) / 1000 for cells in rows}
    except (KeyError, ValueError) as error:
        raise BadManifest(f"{path}: expected columns clip and duration[ms] ({error}).") from error


def utterance(
    root: Path,
    row: Row,
    lengths: Mapping[str, float],
    voices: Mapping[str, str],
    *,
    min_up: int,
    max_down: int | None,
) -> Utterance:
    """One row; the speaker is the client."""
    if row.problem:
        return Utterance(row.source, root / "clips", "", "", row.source, problem=row.problem)
    cells = row.cells
    clip = cells["path"] if "." in cells["path"] else f"{cells['path']}.mp3"
    speaker, problem = cells["client_id"], votes_problem(cells, min_up, max_down)
    if speaker in voices:
        problem = f"a voice of {voices[speaker]}"
    if not cells["path"].strip():
        problem, clip = "column 'path' is empty", row.source
    wav, text, length = root / "clips" / clip, cells["sentence"], lengths.get(clip)
    name = Path(clip).stem
    return Utterance(name, wav, speaker, text, row.source, promised=length, problem=problem)


def votes_problem(cells: Mapping[str, str], min_up: int, max_down: int | None) -> str:
    """Why the votes are not good enough; "" where they are."""
    up, down = (cells.get(name, "").strip() or "0" for name in ("up_votes", "down_votes"))
    if not (up.isdecimal() and down.isdecimal()):
        return f"votes are no numbers: {up!r} up, {down!r} down"
    if int(up) < min_up or (max_down is not None and int(down) > max_down):
        return f"votes: {up} up, {down} down"
    return ""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = command_line(__doc__, EXAMPLES)
    add = options.add_argument
    add("--data", type=Path, required=True, help="folder of one language, with clips/ in it")
    splits = "train, dev, test, validated, other, invalidated (default: the first three)"
    add("--split", nargs="+", default=["train", "dev", "test"], help=splits)
    out = "manifest to write (.csv), or folder for a manifest of each split"
    add("--out", type=Path, required=True, help=out)
    add("--without", nargs="+", default=(), metavar="SPLIT", help="leave out voices of these")
    add("--min-up", type=int, default=0, help="fewest up votes (default 0)")
    add("--max-down", type=int, help="most down votes")
    return options


def parts(options: argparse.Namespace) -> Mapping[Path, Sequence[Utterance]]:
    """Manifests and what belongs into them."""
    paths = part_paths(options.out, options.split)
    rules = {"min_up": options.min_up, "max_down": options.max_down}
    listed = {
        path: list_split(options.data, name, without=options.without, **rules)
        for name, path in paths.items()
    }
    if any(listed.values()):  # small languages have splits of a header alone
        for path in [path for path, utterances in listed.items() if not utterances]:
            print(f"common_voice.py: no clips are listed for {path}: not written", file=sys.stderr)
            del listed[path]
    return listed


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on stderr where the corpus cannot be used."""
    options = parser().parse_args(argv)
    return run("common_voice.py", options, lambda: parts(options))


if __name__ == "__main__":
    sys.exit(main())
