"""A checked corpus -> its data card: one page and one picture that say what one is training on.

`train.csv` gets `train.card.md` and `train.card.png`: hours, speakers, lengths, characters with
counts, sample rates, what was left out and why, what looks wrong. Equal input gives equal bytes, so
a card can be committed and compared. Surprising: it is read for its characters; one "é" among
300,000 letters is a transcript that no model will ever say.
"""

from __future__ import annotations

import io
import re
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from w2v_plugin.checks import FLAGS, AudioFacts, Flag, Utterance, Verdict
from w2v_plugin.manifests import flagged_path, skipped_path
from w2v_plugin.markdown_tables import table
from w2v_plugin.text import clean_text

SHOWN_SPEAKERS = 20
SHOWN_FLAGS = 5  # of each kind
SHOWN_TEXTS = 5
BINS = 30

Heard = Sequence[tuple[Utterance, AudioFacts]]


def card_files(
    path: Path, verdicts: Sequence[Verdict], flags: Sequence[Flag]
) -> dict[Path, bytes | None]:
    """The card and its picture, as `manifests.write_files` wants them.

    Parameters
    ----------
    path : Path
        The manifest.
    verdicts : sequence of Verdict
        Of all its utterances, at least one of which is kept.
    flags : sequence of Flag
        What looks wrong among those that are kept.
    """
    heard = [(each.utterance, each.facts) for each in verdicts if each.facts and not each.reason]
    picture = path.with_suffix(".card.png")
    sections = [
        f"# {path.name}\n\n![durations, speakers, speaking rate, loudness]({picture.name})",
        _totals(heard),
        _speakers(heard),
        _characters(heard),
        _repeated_texts(heard),
        _left_out(path, verdicts),
        _flagged(path, flags),
    ]
    text = "\n\n".join(filter(None, sections)) + "\n"
    content = text.encode(errors="backslashreplace")  # names of files that are left out
    return {path.with_suffix(".card.md"): content, picture: _picture(heard)}


def _totals(heard: Heard) -> str:
    seconds = sorted(facts.seconds for _, facts in heard)
    texts = sum(bool(clean_text(utterance.text)) for utterance, _ in heard)
    known = {utterance.speaker for utterance, _ in heard} - {""}
    words = sum(len(utterance.text.split()) for utterance, _ in heard)
    rates = Counter(f"{facts.rate} Hz" for _, facts in heard)
    channels = Counter(facts.channels for _, facts in heard)
    suffixes = Counter(utterance.wav.suffix.lower() for utterance, _ in heard)
    rows = {
        "hours": f"{sum(seconds) / 3600:.3f}",
        "utterances": f"{len(heard)} ({texts} with a transcript)",
        "speakers": str(len(known)) if known else "not known",
        "words": str(words),
        "shortest, median, longest": f"{seconds[0]:.2f}, {statistics.median(seconds):.2f}, "
        f"{seconds[-1]:.2f} s",
        "sample rates": _counted(rates),
        "channels": _counted(channels),
        "files": _counted(suffixes),
    }
    mixed = ""
    if len(rates) > 1:
        mixed = (
            "\n\nSample rates are mixed. Everything is heard at 16 kHz, but what was recorded at "
            "8 kHz has nothing above 4 kHz, and a model can tell the sources apart by that."
        )
    return _table(("", ""), rows.items()) + mixed


def _speakers(heard: Heard) -> str:
    seconds: dict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    for utterance, facts in heard:
        seconds[utterance.speaker] += facts.seconds
        counts[utterance.speaker] += 1
    order = sorted(seconds, key=lambda name: (-seconds[name], name))
    rows = [
        (name or "(not known)", f"{seconds[name] / 60:.1f}", str(counts[name]))
        for name in order[:SHOWN_SPEAKERS]
    ]
    if rest := order[SHOWN_SPEAKERS:]:
        minutes = sum(seconds[name] for name in rest) / 60
        rows.append((f"{len(rest)} more", f"{minutes:.1f}", str(sum(counts[n] for n in rest))))
    return "## Speakers\n\n" + _table(("speaker", "minutes", "utterances"), rows)


def _characters(heard: Heard) -> str:
    counts = Counter(c for utterance, _ in heard for c in clean_text(utterance.text))
    if not counts:
        return ""
    first: dict[str, str] = {}  # where a character occurs, for those who wonder how it got there
    for utterance, _ in heard:
        for character in clean_text(utterance.text):
            first.setdefault(character, utterance.source or utterance.id)
    rows = [
        (
            _shown(character),
            f"U+{ord(character):04X} {unicodedata.name(character, 'without a name').lower()}",
            str(count),
            first[character] if count < 10 else "",
        )
        for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    head = f"## Characters\n\n{len(counts)} different ones; rare ones with the place of the first."
    return f"{head}\n\n" + _table(("", "character", "count", "first"), rows)


def _repeated_texts(heard: Heard) -> str:
    counts = Counter(clean_text(utterance.text) for utterance, _ in heard)
    del counts[""]
    repeated = [(text, count) for text, count in counts.most_common() if count > 1]
    if not repeated:
        return ""
    total = sum(count for _, count in repeated)
    rows = [(text, str(count)) for text, count in repeated[:SHOWN_TEXTS]]
    head = (
        f"## Repeated texts\n\n{len(repeated)} texts are said more than once, {total} times in all."
    )
    return f"{head}\n\n" + _table(("text", "count"), rows)


def _left_out(path: Path, verdicts: Iterable[Verdict]) -> str:
    reasons = Counter(_kind(each) for each in verdicts if each.reason)
    if not reasons:
        return "## Left out\n\nNothing."
    rows = [(kind, str(count)) for kind, count in reasons.most_common()]
    head = f"## Left out\n\n{sum(reasons.values())}, all in `{skipped_path(path).name}`."
    return f"{head}\n\n" + _table(("reason", "count"), rows)


def _flagged(path: Path, flags: Sequence[Flag]) -> str:
    if not flags:
        return "## To look at\n\nNothing."
    rows = []
    for kind in FLAGS:
        found = [flag for flag in flags if flag.kind == kind]
        rows += [(kind, flag.utterance.id, flag.words) for flag in found[:SHOWN_FLAGS]]
        if len(found) > SHOWN_FLAGS:
            rows.append((kind, f"{len(found) - SHOWN_FLAGS} more", ""))
    head = f"## To look at\n\n{len(flags)}, kept, all in `{flagged_path(path).name}`."
    return f"{head}\n\n" + _table(("kind", "ID", "what"), rows)


def _kind(verdict: Verdict) -> str:
    """A reason without what belongs to this one file: paths, names, numbers, advice."""
    reason = verdict.reason.replace(str(verdict.utterance.wav), "").lstrip(": ")
    first = re.split(r"[.:?] |[.:?]$| \(", reason)[0]
    return re.sub(r"\d+(\.\d+)?", "N", re.sub(r"'[^']*'", "...", first))


def _picture(heard: Heard) -> bytes:
    """Four histograms; no text of the corpus in it, since no font has all scripts."""
    figure = Figure(figsize=(10, 6))
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.09, top=0.94, hspace=0.45)
    axes = figure.subplots(2, 2).flat
    seconds = [facts.seconds for _, facts in heard]
    per_speaker: dict[str, float] = defaultdict(float)
    for utterance, facts in heard:
        per_speaker[utterance.speaker] += facts.seconds / 60
    axes[0].hist(seconds, bins=BINS)
    axes[0].set(xlabel="seconds", ylabel="utterances", title=f"{sum(seconds) / 3600:.2f} hours")
    axes[1].bar(range(len(per_speaker)), sorted(per_speaker.values(), reverse=True), width=1)
    axes[1].set(xlabel="speakers, the longest first", ylabel="minutes")
    axes[1].set_title(
        "speakers not known" if set(per_speaker) == {""} else f"{len(per_speaker)} speakers"
    )
    rates = [
        len(clean_text(each.text)) / facts.seconds for each, facts in heard if each.text.strip()
    ]
    axes[2].hist(rates, bins=BINS)
    axes[2].set(xlabel="characters per second", ylabel="utterances", title="speaking rate")
    axes[3].hist([facts.peak for _, facts in heard], bins=BINS)
    axes[3].set(xlabel="peak, of full scale", ylabel="utterances", title="loudness")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100, metadata={"Software": None})
    return content.getvalue()


def _counted(counts: Mapping[object, int] | Counter[str] | Counter[int]) -> str:
    order = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    return ", ".join(f"{name} ({count})" for name, count in order)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(table(header, [[clean_text(cell) for cell in row] for row in rows]))


def _shown(character: str) -> str:
    """Marks and invisible characters with something to stand on."""
    category = unicodedata.category(character)
    if category.startswith("M"):
        return "\u25cc" + character
    return "" if category[0] in "CZ" else character
