"""Utterances -> train, dev and test that share no speaker; and balanced subsets.

A dev set of known voices flatters: what is set aside by utterance measures how well voices were
learned by heart. So speakers are set aside as a whole wherever there are three; sizes are met as
closely as whole speakers allow, and what could not be had is said. Surprising: prompts repeat, so
that a split by speaker alone may test on sentences of training; `apart_texts` looks for one that
does not.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from tqdm import tqdm

from w2v_plugin.checks import Utterance, header_seconds, heard_seconds, length_reason
from w2v_plugin.errors import BadManifest
from w2v_plugin.manifests import refuse_duplicates
from w2v_plugin.text import clean_text

FEWEST_SPEAKERS = 3  # for a split by speaker: one each for train, dev and test
DRAWS = 50  # of speakers; of them the one with the fewest shared texts and the nearest sizes
SHOWN = 5  # names in a warning


class Limits(NamedTuple):
    """What `checks.check_all` will be told."""

    max_s: float | None = None
    min_s: float | None = None
    need_text: bool = False


class Split(NamedTuple):
    """Three disjoint lists in the given order; `warnings` say what the split is not."""

    train: list[Utterance]
    dev: list[Utterance]
    test: list[Utterance]
    by_speaker: bool
    warnings: list[str]


def split_by_speaker(
    utterances: Sequence[Utterance],
    *,
    dev: float = 0.1,
    test: float = 0.0,
    unit: str = "share",
    seed: int = 0,
    apart_texts: bool = False,
    by_speaker: bool = True,
    max_s: float | None = None,
    min_s: float | None = None,
    need_text: bool = False,
) -> Split:
    """Set aside whole speakers, or utterances where there are fewer than three speakers.

    What can be seen to be of no use (no such file, a broken header, a `problem`, a length that is
    not accepted) does not count; it goes with its speaker or to train, whose checks say so.
    Utterances without a speaker stay with train where at least three speakers are known.

    Parameters
    ----------
    utterances : sequence of Utterance
        Everything; lengths are those that the headers promise.
    dev, test : float
        Sizes: shares of the audio, or minutes; 0 for none.
    unit : str
        "share" or "minutes".
    seed : int
        The same seed sets the same aside.
    apart_texts : bool
        Keep the same text from being on both sides: always possible by utterance; by speaker the
        best of some draws is taken, and what is left is a warning.
    by_speaker : bool
        False sets utterances aside however many speakers there are.
    max_s, min_s, need_text
        As for `checks.check_all`: what it will leave out is of no use, either.

    Returns
    -------
    Split

    Raises
    ------
    BadManifest
        The sizes leave nothing to train on, there are too few utterances, or two have one id.

    Example
    -------
    >>> import tempfile, soundfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     wav = Path(folder, "a.wav")
    ...     soundfile.write(wav, [0.0] * 60_000, 1000)
    ...     listed = [Utterance(f"{n}", wav, f"s{n % 5}") for n in range(50)]
    ...     split = split_by_speaker(listed, dev=10, unit="minutes")
    >>> len(split.train), len(split.dev), {each.speaker for each in split.dev}
    (40, 10, {'s0'})
    """
    refuse_duplicates(utterances)
    limits = Limits(max_s, min_s, need_text)
    seconds = _all_seconds(utterances, limits)
    if not any(seconds.values()):
        raise BadManifest(_nothing_useful(utterances, limits))
    targets = _targets(sum(seconds.values()), dev, test, unit)
    useful = [utterance for utterance in utterances if seconds[utterance.id]]
    speakers = {utterance.speaker for utterance in useful} - {""}
    nobody = [utterance for utterance in useful if not utterance.speaker]
    few = len(speakers) < FEWEST_SPEAKERS
    warnings = []
    if by_speaker and (few or nobody):
        warnings.append(_few_speakers(speakers, nobody) if few else _in_train(nobody))
    by_speaker = by_speaker and not few
    if not by_speaker and len(useful) < FEWEST_SPEAKERS:
        raise BadManifest(
            f"{len(useful)} of {len(utterances)} utterances can be used, which cannot be split: "
            "there must be three."
        )

    def unit_of(utterance: Utterance) -> str:
        if by_speaker:
            return utterance.speaker
        return clean_text(utterance.text) or utterance.id if apart_texts else utterance.id

    def badness(parts: Sequence[Sequence[Utterance]]) -> tuple[int, float]:
        shared = len(_shared_texts(parts)) if apart_texts else 0
        return shared, sum(abs(got - size) for got, size in _sizes(parts, targets, seconds))

    draws = DRAWS if by_speaker else 1
    sides = (_draw(utterances, unit_of, seconds, targets, f"{seed}/{n}") for n in range(draws))
    best = min(sides, key=badness)
    warnings += _size_warnings(best, targets, seconds, "speakers" if by_speaker else "utterances")
    if apart_texts and (shared := _shared_texts(best)):
        warnings.append(
            f"{len(shared)} texts stand in two of train, dev and test: {_named(shared)}."
        )
    return Split(best[0], best[1], best[2], by_speaker, warnings)


def balanced_subset(
    utterances: Sequence[Utterance], minutes: float, seed: int, limits: Limits | None = None
) -> list[Utterance]:
    """About `minutes` of speech: the speaker with the least so far gives the next utterance."""
    limits = limits or Limits()
    generator = random.Random(seed)
    left: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in generator.sample(list(utterances), len(utterances)):
        left[utterance.speaker].append(utterance)
    seconds = dict.fromkeys(left, 0.0)
    chosen: set[str] = set()
    while sum(seconds.values()) < minutes * 60:
        speaker = min((name for name in left if left[name]), key=seconds.__getitem__, default=None)
        if speaker is None:
            raise BadManifest(
                f"--minutes {minutes:g}, but there are only {sum(seconds.values()) / 60:.1f} "
                "minutes to choose from. Ask for less, or drop --minutes to take everything."
            )
        utterance = left[speaker].pop()
        chosen.add(utterance.id)
        seconds[speaker] += _useful_seconds(utterance, header_seconds(utterance.wav), limits)
    return [utterance for utterance in utterances if utterance.id in chosen]


def overlaps(parts: Mapping[str, Sequence[Utterance]]) -> list[str]:
    """A sentence for every two parts that share speakers, naming them; unknown ones do not count.

    Example
    -------
    >>> from pathlib import Path
    >>> ann = Utterance("a", Path("a.wav"), "ann")
    >>> overlaps({"train": [ann], "test": [ann]})
    ['train and test share 1 speaker: ann.']
    """
    speakers = {name: {each.speaker for each in listed} - {""} for name, listed in parts.items()}
    found = []
    for one, other in combinations(speakers, 2):
        if shared := speakers[one] & speakers[other]:
            count = f"{len(shared)} speaker{'s' if len(shared) > 1 else ''}"
            found.append(f"{one} and {other} share {count}: {_named(shared)}.")
    return found


def _all_seconds(utterances: Sequence[Utterance], limits: Limits) -> dict[str, float]:
    """Lengths by id; 0 for what cannot be used. A file of many parts is opened once."""
    wavs = dict.fromkeys(utterance.wav for utterance in utterances if not utterance.problem)
    bar = tqdm(wavs, desc="lengths", unit="file", disable=None, leave=False)
    whole = {wav: header_seconds(wav) for wav in bar}
    return {each.id: _useful_seconds(each, whole.get(each.wav, 0.0), limits) for each in utterances}


def _useful_seconds(utterance: Utterance, whole: float, limits: Limits) -> float:
    return 0.0 if _useless(utterance, whole, limits) else heard_seconds(utterance, whole)


def _useless(utterance: Utterance, whole: float, limits: Limits) -> str:
    """Why it cannot be used, as far as its line and the header of its file tell; or ""."""
    if utterance.problem or (limits.need_text and not clean_text(utterance.text)):
        return utterance.problem or "no text"
    if not (seconds := heard_seconds(utterance, whole)):
        return "it ends beyond its recording" if whole else "no audio that opens"
    return length_reason(seconds, limits.max_s, limits.min_s)


def _nothing_useful(utterances: Sequence[Utterance], limits: Limits) -> str:
    if not utterances:
        return "no utterances were listed: there is nothing to split."
    first = utterances[0]
    why = _useless(first, header_seconds(first.wav), limits)
    return (
        f"none of {len(utterances)} utterances can be used; the first, {first.source}: {why}. Look "
        "at the list and the names; for a table: --audio-column, --text-column."
    )


def _targets(total: float, dev: float, test: float, unit: str) -> tuple[float, float]:
    """Seconds of dev and test."""
    if unit not in ("share", "minutes"):
        raise ValueError(f"unit={unit!r}, expected 'share' or 'minutes'.")
    wanted = tuple(size * (total if unit == "share" else 60.0) for size in (dev, test))
    if not (min(wanted) >= 0 and 0 < sum(wanted) < total):
        what = "shares" if unit == "share" else "minutes"
        raise BadManifest(
            f"cannot set aside {dev:g} + {test:g} ({what}) of {_length(total)} of audio. "
            "Both must be 0 or more, not both 0, and leave something to train on."
        )
    return wanted[0], wanted[1]


def _draw(
    utterances: Sequence[Utterance],
    unit_of: Callable[[Utterance], str],
    seconds: Mapping[str, float],
    targets: tuple[float, float],
    seed: str,
) -> tuple[list[Utterance], list[Utterance], list[Utterance]]:
    """(train, dev, test): whole units in random order while they bring a side nearer its size.

    Those without a name or without anything of use stay with train.
    """
    sizes: dict[str, float] = defaultdict(float)
    for utterance in utterances:
        sizes[unit_of(utterance)] += seconds[utterance.id]
    order = sorted(name for name, size in sizes.items() if name and size)
    random.Random(seed).shuffle(order)
    side: dict[str, int] = {}
    wanted = [number for number, target in enumerate(targets, start=1) if target]
    for done, number in enumerate(wanted):
        _fill(number, targets[number - 1], order, sizes, side, spare=len(wanted) - done)
    sides: tuple[list[Utterance], ...] = ([], [], [])
    for utterance in utterances:
        sides[side.get(unit_of(utterance), 0)].append(utterance)
    return sides[0], sides[1], sides[2]


def _fill(
    number: int,
    target: float,
    order: Sequence[str],
    sizes: Mapping[str, float],
    side: dict[str, int],
    *,
    spare: int,
) -> None:
    """Give units to side `number`, at least one, and leave `spare` of them for the others."""
    total = 0.0
    free = [unit for unit in order if unit not in side]
    for unit in free[:]:
        nearer = abs(total + sizes[unit] - target) < abs(total - target)
        if nearer and len(free) > spare:
            side[unit], total = number, total + sizes[unit]
            free.remove(unit)
    if not total:
        side[min(free, key=lambda unit: sizes[unit])] = number


def _shared_texts(parts: Iterable[Sequence[Utterance]]) -> set[str]:
    texts = [{clean_text(each.text) for each in part} - {""} for part in parts]
    return {text for one, other in combinations(texts, 2) for text in one & other}


def _sizes(
    parts: Sequence[Sequence[Utterance]],
    targets: tuple[float, float],
    seconds: Mapping[str, float],
) -> list[tuple[float, float]]:
    """Seconds that dev and test have and should have."""
    got = [sum(seconds[utterance.id] for utterance in part) for part in parts[1:]]
    return list(zip(got, targets, strict=True))


def _size_warnings(
    parts: Sequence[Sequence[Utterance]],
    targets: tuple[float, float],
    seconds: Mapping[str, float],
    whole: str,
) -> list[str]:
    warnings = []
    sizes = _sizes(parts, targets, seconds)
    for name, (got, target) in zip(("dev", "test"), sizes, strict=True):
        if target and not 0.5 * target <= got <= 1.5 * target:
            warnings.append(
                f"{name} is {_length(got)} instead of {_length(target)}: whole {whole} come no "
                "nearer."
            )
    return warnings


def _length(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.1f} s"


def _few_speakers(speakers: set[str], nobody: Sequence[Utterance]) -> str:
    known = "speakers are not known"
    if speakers:
        known = f"{len(speakers)} speaker{'s' if len(speakers) > 1 else ''} ({_named(speakers)})"
        known += f" and {len(nobody)} utterances without one" if nobody else ""
    return (
        f"{known}: split by utterance, so dev and test measure known voices. For other voices, "
        "record somebody else."
    )


def _in_train(nobody: Sequence[Utterance]) -> str:
    count = f"{len(nobody)} utterances have" if len(nobody) > 1 else "1 utterance has"
    return (
        f"{count} no speaker (first: {nobody[0].source}): kept in train, but the voice may be one "
        "of dev or test."
    )


def _named(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
