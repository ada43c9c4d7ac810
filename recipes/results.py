"""A Markdown table of error rates, made from results.json files, so that nobody types figures.

Reads what recipes/evaluate.py writes (with intervals) and what recipes/finetune_ctc.py writes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from w2v_plugin.markdown_tables import table
from w2v_plugin.score_report import rate

BEGIN, END = "<!-- results -->", "<!-- end of results -->"
HEADER = ("system", "test set", "utterances", "WER % [95 %]", "CER % [95 %]", "hardware", "commit",
          "figures")  # fmt: skip
EXAMPLES = f"""\
examples
  python recipes/results.py runs/*/results.json
  python recipes/results.py recipes/results/*.json --into recipes/README.md

--into rewrites what stands between the lines
  {BEGIN}
  {END}
and nothing else; links lead from there to the files, which hold command, commit and hashes. With
--check nothing is written: exit status 1 says that the table is not what the files give.
"""
Row = list[str]


class NoTable(ValueError):
    """A file is not what it should be; the message says which and what to do."""


def rows(path: Path, base: Path) -> Iterator[Row]:
    """Of one file; links lead to it from `base`.

    Raises
    ------
    NoTable
        It cannot be read, or is of another kind.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoTable(f"{path}: cannot be read as JSON ({error}).") from error
    link = f"[{name_of(path)}]({Path(os.path.relpath(path, base)).as_posix()})"
    try:
        known = evaluated(report) if "tests" in report else finetuned(report, name_of(path))
        found = [[*cells, hardware(report), report.get("commit") or "", link] for cells in known]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise NoTable(
            f"{path}: neither of recipes/evaluate.py nor of recipes/finetune_ctc.py "
            f"({type(error).__name__}: {error}). Leave it out."
        ) from error
    yield from found


def name_of(path: Path) -> str:
    """runs/a/results.json -> a, recipes/results/a.json -> a."""
    return path.resolve().parent.name if path.name == "results.json" else path.stem


def evaluated(report: dict[str, Any]) -> Iterator[Row]:
    for test in report["tests"]:
        for system in test["systems"]:
            rates = [rate(system[m], system[f"{m}_95"]) for m in ("WER", "CER")]
            yield [system["system"], test["test"], f"{test['utterances']:,}", *rates]


def finetuned(report: dict[str, Any], name: str) -> Iterator[Row]:
    for test, scores in report["test"].items():
        utterances = f"{scores['utterances']:,}" if "utterances" in scores else ""
        yield [name, test, utterances, f"{scores['WER']:.2f}", f"{scores['CER']:.2f}"]


def hardware(report: dict[str, Any]) -> str:
    return report.get("hardware") or ""


def whole_table(files: Sequence[Path], base: Path) -> str:
    """All rows, those of a file together, files in the given order."""
    return "\n".join(table(HEADER, [row for path in files for row in rows(path, base)]))


def rewritten(document: Path, content: str) -> str:
    """The document with this between the markers."""
    text = document.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise NoTable(f"{document}: expected one line {BEGIN} and, after it, one line {END}.")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{content}\n{END}{rest.partition(END)[2]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0 done, 1 with --check a table that is not true, 2 cannot be done."""
    parser = argparse.ArgumentParser(
        "results.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, help="results.json files")
    parser.add_argument("--into", type=Path, metavar="FILE", help="Markdown file with the markers")
    parser.add_argument("--check", action="store_true", help="with --into: compare, do not write")
    arguments = parser.parse_args(argv)
    into = arguments.into
    if arguments.check and into is None:
        parser.error("--check compares with --into: give it, too")
    try:
        content = whole_table(arguments.files, into.parent if into else Path())
        if into is None:
            print(content)
            return 0
        text = rewritten(into, content)
        if arguments.check:
            same = text == into.read_text(encoding="utf-8")
            print(f"{into}: {'up to date' if same else 'the table is not what the files give'}")
            return int(not same)
        part = into.with_name(f".{into.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(into)
    except (NoTable, OSError) as error:
        print(f"results.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
