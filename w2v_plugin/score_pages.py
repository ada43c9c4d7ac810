"""An evaluation as a picture, and as one HTML page that needs nothing else.

The page has the sections of score_report.py, the picture, and the utterances with most errors,
word by word: reference above, hypothesis below. Errors differ in more than color, for readers who
see none: what was said instead is underlined, what is missing or was added stands beside a dash.
"""

from __future__ import annotations

import base64
import io
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby
from operator import itemgetter

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from w2v_plugin.evaluation import Evaluation
from w2v_plugin.score_report import NOTHING, Section, sections, shown, span
from w2v_plugin.scoring import METRICS, Step, score

JOINERS = "\u200c\u200d"
VIRAMA = 9  # the combining class of what ties consonants together
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2em auto; max-width: 72em;
  padding: 0 1em }
h1 { font-size: 1.6em } h2 { margin-top: 2em; border-bottom: 1px solid #ccc } h3 { margin: 2em 0 0 }
p { max-width: 60em } img { max-width: 100% }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .2em .8em; text-align: left; white-space: nowrap;
  border-bottom: 1px solid #e4e4e4 }
th { border-bottom: 2px solid #999 } td.n, th.n { text-align: right;
  font-variant-numeric: tabular-nums }
.said { margin: .3em 0 1em; line-height: 1.35 }
.said > span { display: inline-flex; flex-direction: column; vertical-align: top;
  margin: 0 .15em .5em 0; padding: 0 .2em; border-radius: .25em; white-space: pre }
.hit { color: #777 } .substitution { background: #ffe2b8 } .deletion { background: #ffd0d0 }
.insertion { background: #cfe3ff } .said u { text-decoration-thickness: 2px }
.id { color: #555; margin: 1.2em 0 0 }
"""


def page(evaluations: Sequence[Evaluation], title: str, how: str, show: int = 100) -> str:
    """One HTML document.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        One for each test set.
    title : str
        Of the page.
    how : str
        A line that says where the figures come from.
    show : int
        Utterances to show aligned, those with most errors, per test set.

    Example
    -------
    >>> from w2v_plugin.evaluation import Answers
    >>> from w2v_plugin.hypotheses import Reference
    >>> said = [Reference("a", "ann", "hello <you>"), Reference("b", "ben", "good bye")]
    >>> evaluation = Evaluation("test", said, [Answers("one", {"a": "hello", "b": "good buy"})])
    >>> html = page([evaluation], "An example", "By hand.")
    >>> "&lt;you&gt;" in html, "<you>" in html, "http" in html
    (True, False, False)
    """
    body = [f"<h1>{escape(title)}</h1><p>{escape(how)}</p>"]
    for evaluation in evaluations:
        body += _test(evaluation, show)
    return (
        f'<!DOCTYPE html>\n<html><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def aligned(steps: Iterable[Step], between: str = " ") -> str:
    """An alignment as HTML; in words taken for others, the letters that differ are marked.

    Parameters
    ----------
    steps : iterable of Step
        Of words or characters.
    between : str
        What stands between them.

    Example
    -------
    >>> aligned([Step("a", "a"), Step("you", "yew"), Step(None, "b")]).count("<u>")
    2
    """
    return f'<div class="said" dir="auto">{between.join(map(_cell, steps))}</div>'


def draw(evaluation: Evaluation) -> bytes:
    """Error rates by speaker and by length of the utterance, as a PNG file.

    Example
    -------
    >>> from w2v_plugin.evaluation import Answers
    >>> from w2v_plugin.hypotheses import Reference
    >>> said = [Reference("a", "ann", "hello you"), Reference("b", "ben", "good bye")]
    >>> draw(Evaluation("test", said, [Answers("one", {"a": "hello"})]))[1:4]
    b'PNG'
    """
    report = evaluation.report
    lead, systems = report["leads"], report["systems"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    first = systems[0]["by_speaker"]
    heard = [i for i, row in enumerate(first) if row[lead] is not None]
    order = sorted(heard, key=lambda i: first[i][lead])
    marks = "os^Dv"
    for place, system in enumerate(systems):
        rates = [system["by_speaker"][i][lead] for i in order]
        how = {"marker": marks[place % len(marks)], "label": _plain(system["system"])}
        left.plot(range(1, len(rates) + 1), rates, linestyle="", **how)
        rows = [row for row in system["by_length"] if row[lead] is not None]
        right.plot([row[lead] for row in rows], **how)
        right.set_xticks(range(len(rows)), [span(row["from"], row["to"]) for row in rows])
    name = _plain(systems[0]["system"])
    left.set(xlabel=f"speakers, by the {lead} of {name}", ylabel=f"{lead}, %")
    left.xaxis.get_major_locator().set_params(integer=True)
    right.set(xlabel=f"{METRICS[lead]} in the utterance", ylabel=f"{lead}, %")
    for axis in (left, right):
        axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
        axis.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    file = io.BytesIO()
    with warnings.catch_warnings():  # a name may be in a script that the font does not have
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(file, format="png", dpi=120)
    plt.close(figure)
    return file.getvalue()


def _plain(name: str) -> str:
    """Of a system, without what matplotlib takes for mathematics."""
    return name.replace("$", r"\$")


def _test(evaluation: Evaluation, show: int) -> Iterator[str]:
    picture = base64.b64encode(draw(evaluation)).decode("ascii")
    for number, part in enumerate(sections(evaluation.report)):
        yield _section(part, "h3" if number else "h2")
        if not number:
            yield f'<p><img alt="Error rates" src="data:image/png;base64,{picture}"></p>'
    if show:
        yield from _utterances(evaluation, show)


def _section(part: Section, heading: str) -> str:
    lines = [f"<{heading}>{escape(part.title)}</{heading}>"]
    lines += [f"<p>{escape(paragraph)}</p>" for paragraph in part.paragraphs]
    if part.rows:
        numeric = [_is_number(cell) for cell in part.rows[0]]
        rows = [_row(part.header, "th", numeric)] + [_row(r, "td", numeric) for r in part.rows]
        lines.append(f'<div class="wide"><table>{"".join(rows)}</table></div>')
    return "\n".join(lines)


def _row(cells: Sequence[str], tag: str, numeric: Sequence[bool]) -> str:
    marked = zip(cells, numeric, strict=True)
    inner = (
        f"<{tag}{' class=n' if number else ''} dir=auto>{escape(cell)}</{tag}>"
        for cell, number in marked
    )
    return f"<tr>{''.join(inner)}</tr>"


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[1:2].isdigit()


def _utterances(evaluation: Evaluation, show: int) -> Iterator[str]:
    """Those with most errors of all systems together come first."""
    unit = METRICS[evaluation.leads]
    scored = evaluation.scored[unit]
    errors = np.sum([one.array[:, 0] for one in scored], axis=0)
    order = sorted(range(len(errors)), key=lambda i: -errors[i])[:show]
    total = len(evaluation.references)
    yield (
        f"<h3>Utterances</h3><p>{len(order)} of {total}, those with most errors first. Reference "
        "above, hypothesis below: "
        '<span class="substitution">taken for another</span>, <span class="deletion">deleted'
        '</span>, <span class="insertion">inserted</span>, <span class="hit">right</span>.</p>'
    )
    for i in order:
        reference = evaluation.references[i]
        yield f'<p class="id">{escape(reference.id)}, speaker {escape(reference.speaker)}</p>'
        for answers, one in zip(evaluation.answers, scored, strict=True):
            counts = one.counts[i]
            rate = f"{counts.error_rate:.0f} %" if counts.reference else "no reference"
            yield (
                f"<div><b>{escape(answers.system)}</b> {rate}: {counts.substitutions} sub, "
                f"{counts.deletions} del, {counts.insertions} ins</div>"
            )
            yield aligned(one.alignments[i], " " if unit == "words" else "")


def _cell(step: Step) -> str:
    above, below = step
    if step.kind == "substitution" and above is not None and below is not None:
        letters = score([above], [below], "characters").alignments[0]
        if len(letters) > 1:
            ours, theirs = _marked(letters), _marked(pair[::-1] for pair in letters)
            return _stacked(step, ours, theirs)
    return _stacked(step, *(NOTHING if t is None else escape(shown(t)) for t in (above, below)))


def _stacked(step: Step, above: str, below: str) -> str:
    return f'<span class="{step.kind}"><span>{above}</span><span>{below}</span></span>'


def _marked(pairs: Iterable[Sequence[str | None]]) -> str:
    """The first of each pair, underlined where the second is another.

    What one letter is for a reader is underlined as a whole: marks cannot be torn from what they
    combine with, nor the parts of a conjunct.
    """
    letters: list[tuple[str, bool]] = []  # and whether they differ
    for own, other in pairs:
        joins = bool(letters) and _joins(letters[-1][0], own or other or "")
        if joins:
            before, differs = letters.pop()
            letters.append((before + (own or ""), differs or own != other))
        elif own is not None:
            letters.append((own, own != other))
    parts = []
    for differs, run in groupby(letters, itemgetter(1)):
        text = escape("".join(letter for letter, _ in run))
        parts.append(f"<u>{text}</u>" if differs else text)
    return "".join(parts)


def _joins(before: str, character: str) -> bool:
    """Whether a character is part of the letter before it: a mark, or what a virama ties to it."""
    mark = unicodedata.category(character)[0] == "M" or character in JOINERS
    return mark or unicodedata.combining(before[-1]) == VIRAMA
