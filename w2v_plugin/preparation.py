"""Listed splits -> manifests, data cards and lists of what is left out: all of them, or none.

The end of every script of recipes/prepare: check the splits one after the other, compare them (a
speaker or a recording in two of them makes a test worthless), and only then write. The options of
the scripts' command lines stand here, too, so that they are the same everywhere.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from w2v_plugin.checks import (
    FLAGS,
    Flag,
    Utterance,
    Verdict,
    check_all,
    drop_flagged,
    find_flags,
)
from w2v_plugin.data_card import card_files
from w2v_plugin.errors import BadManifest
from w2v_plugin.manifests import (
    Summary,
    flagged_path,
    manifest_files,
    refuse_duplicates,
    refuse_nothing,
    refuse_parts,
    refuse_places,
    summarize,
    table,
    write_files,
)
from w2v_plugin.splits import overlaps

WRITES = """what it writes, once everything was checked (parts that are cut come before; of
other manifests they replace none)
  train.csv          the manifest: ID,duration,wav,spk_id,wrd
  train.card.md      hours, speakers, characters, sample rates, what was left out and why
  train.card.png     the same as a picture
  train.skipped.tsv  what is left out, each with file, line and reason
  train.flagged.tsv  what is kept and looks wrong: silent, clipped, the same audio twice, a length
                     or a text that cannot be right
"""


def prepare(
    parts: Mapping[Path, Sequence[Utterance]],
    *,
    cut_to: Path | None = None,
    max_s: float | None = None,
    min_s: float | None = None,
    need_text: bool = False,
    workers: int | None = None,
    refuse_overlap: bool = False,
    drop: Collection[str] = (),
) -> list[Summary]:
    """Check all utterances and write all manifests with their cards, or nothing.

    Parameters
    ----------
    parts : mapping
        Manifests to write, and the utterances of each.
    cut_to : Path, optional
        Folder for parts of longer recordings; needed where there are any.
    max_s, min_s, need_text, workers
        As for `checks.check_all`.
    refuse_overlap : bool
        A speaker in two of the parts is an error instead of a warning.
    drop : collection of str
        Kinds of flags (`checks.FLAGS`) that are reasons to leave an utterance out.

    Returns
    -------
    list of Summary
        One for each manifest; their warnings say which speakers and recordings two of them share.

    Raises
    ------
    BadManifest
        An id is used twice, there is nothing to write, or the parts overlap and must not.
    """
    _refuse_bad_lists(parts, cut_to, refuse_overlap=refuse_overlap)
    judged = {
        path: check_all(
            listed,
            title=path.name,
            workers=workers,
            max_s=max_s,
            min_s=min_s,
            need_text=need_text,
            cut_to=cut_to,
        )
        for path, listed in parts.items()
    }
    flags = {path: find_flags(judged[path], _elsewhere(judged, path)) for path in judged}
    for path, verdicts in judged.items():
        judged[path] = drop_flagged(verdicts, flags[path], drop)
        flags[path] = [flag for flag in flags[path] if flag.kind not in drop]
        refuse_nothing(path, judged[path])
    files: dict[Path, bytes | None] = {}
    for path, verdicts in judged.items():
        files |= manifest_files(path, verdicts) | card_files(path, verdicts, flags[path])
        files[flagged_path(path)] = _flagged_content(flags[path])
    write_files(files)
    return [_summary(path, judged, flags[path]) for path in judged]


def command_line(description: str | None, examples: str) -> argparse.ArgumentParser:
    """A parser with what every script of recipes/prepare can be told about checking and writing."""
    options = argparse.ArgumentParser(
        description=description,
        epilog=f"{examples}\n{WRITES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add("--min-s", type=float, help="leave out shorter utterances, seconds")
    add("--max-s", type=float, help="leave out longer utterances, seconds")
    add("--need-text", action="store_true", help="leave out utterances without a transcript")
    kinds = f"leave out what is flagged as one of: {', '.join(FLAGS)}"
    add("--drop-flagged", nargs="+", default=(), choices=FLAGS, metavar="KIND", help=kinds)
    overlap = "a speaker in two of the manifests is an error instead of a warning"
    add("--refuse-overlap", action="store_true", help=overlap)
    add("--workers", type=natural, help="files decoded at a time (default: one per processor)")
    return options


def natural(text: str) -> int:
    """An option that counts something; ValueError unless it is 1 or more.

    Example
    -------
    >>> natural("2")
    2
    """
    number = int(text)
    if number < 1:
        raise ValueError(f"{number}, expected 1 or more")
    return number


def run(
    name: str,
    options: argparse.Namespace,
    list_parts: Callable[[], Mapping[Path, Sequence[Utterance]]],
    cut_to: Path | None = None,
) -> int:
    """Prepare what `list_parts` lists and say so; 2 and why on stderr if it cannot be done."""
    try:
        summaries = prepare(
            list_parts(),
            cut_to=cut_to,
            max_s=options.max_s,
            min_s=options.min_s,
            need_text=options.need_text,
            workers=options.workers,
            refuse_overlap=options.refuse_overlap,
            drop=options.drop_flagged,
        )
    except (BadManifest, OSError, re.error) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted, no manifest was written.", file=sys.stderr)
        return 130
    for summary in summaries:
        print(summary)
    return 0


def part_paths(out: Path, names: Sequence[str]) -> dict[str, Path]:
    """Where the manifests of several splits go: OUT/<split>.csv, or OUT itself for a single one.

    Example
    -------
    >>> {name: path.as_posix() for name, path in part_paths(Path("data"), ["train"]).items()}
    {'train': 'data/train.csv'}
    >>> part_paths(Path("all.csv"), ["train"])["train"].as_posix()
    'all.csv'
    """
    if out.suffix != ".csv":
        return {name: out / f"{name}.csv" for name in names}
    if len(names) > 1:
        raise BadManifest(
            f"--out {out}: one manifest, but {len(names)} splits ({', '.join(names)}). Name a "
            "folder, which gets one manifest for each."
        )
    return dict.fromkeys(names, out)


def _refuse_bad_lists(
    parts: Mapping[Path, Sequence[Utterance]], cut_to: Path | None, *, refuse_overlap: bool
) -> None:
    """What can be known before any audio is decoded."""
    refuse_places(parts)
    shared = overlaps({path.name: listed for path, listed in parts.items()})
    if shared and refuse_overlap:
        raise BadManifest(f"{shared[0]} Nothing was written; move them to one side.")
    for listed in parts.values():
        refuse_duplicates(listed)
        if cut_to is None:
            refuse_parts(listed)


def _elsewhere(judged: Mapping[Path, Sequence[Verdict]], path: Path) -> dict[str, str]:
    """Digests of all other manifests' audio, and where it stands there."""
    return {
        verdict.facts.digest: f"{other.name}: {verdict.utterance.id}"
        for other, verdicts in judged.items()
        for verdict in verdicts
        if other != path and verdict.facts and not verdict.reason
    }


def _summary(
    path: Path, judged: Mapping[Path, Sequence[Verdict]], flags: Sequence[Flag]
) -> Summary:
    """With warnings about the manifests after this one, so that each warning stands once."""
    later = list(judged)[list(judged).index(path) + 1 :]
    kept = {each: _kept(judged[each]) for each in (path, *later)}
    warnings = []
    for other in later:
        warnings += overlaps({path.name: kept[path], other.name: kept[other]})
        same = f"same audio as {other.name}: "
        shared = [flag for flag in flags if flag.words.startswith(same)]
        if shared:
            example = f"{shared[0].utterance.id}: {shared[0].words}"
            count = f"{len(shared)} recording{'s' if len(shared) > 1 else ''}"
            warnings.append(f"{count} of {path.name}: {example}.")
    flagged = len({flag.utterance.id for flag in flags})
    return summarize(path, judged[path], flagged, warnings)


def _kept(verdicts: Sequence[Verdict]) -> list[Utterance]:
    return [verdict.utterance for verdict in verdicts if not verdict.reason]


def _flagged_content(flags: Sequence[Flag]) -> bytes | None:
    rows = [(each.utterance.source, each.utterance.id, each.kind, each.words) for each in flags]
    return table(("source", "ID", "kind", "what"), rows, "\t") if rows else None
