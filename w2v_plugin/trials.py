"""Trial lists for speaker verification: pairs of recordings, and who speaks in them.

A trial is two rows of a manifest; whether the speaker is the same is what their `spk_id` says.
Lists on disk are those of VoxCeleb: lines "1 a b" for the same speaker, "0 a b" for two.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from w2v_plugin.errors import BadManifest

Row = dict[str, Any]  # as from `read_manifest`
Trial = tuple[Row, Row]


def is_same(trial: Trial) -> bool:
    """Whether both recordings are of one speaker."""
    return trial[0]["spk_id"] == trial[1]["spk_id"]


def halves(rows: Sequence[Row], seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Two sets of rows without a common speaker.

    Example
    -------
    >>> rows = [{"ID": f"{speaker}{i}", "spk_id": speaker} for speaker in "abcd" for i in (1, 2)]
    >>> [[row["ID"] for row in half] for half in halves(rows)]
    [['a1', 'a2', 'd1', 'd2'], ['b1', 'b2', 'c1', 'c2']]
    """
    groups = _by_speaker(rows)
    speakers = random.Random(seed).sample(list(groups), len(groups))
    speakers.sort(key=lambda speaker: len(groups[speaker]) < 2)  # share out those with pairs first
    first = set(speakers[::2])
    return (
        [row for row in rows if row["spk_id"] in first],
        [row for row in rows if row["spk_id"] not in first],
    )


def draw_trials(
    rows: Iterable[Row],
    positives: int = 50,
    ratio: int = 4,
    *,
    seed: int = 0,
    session: str | None = None,
) -> list[Trial]:
    """A list in which no speaker dominates; the same list for the same recordings and seed.

    Parameters
    ----------
    rows : iterable of dict
        Recordings, in any order, from `read_manifest`.
    positives : int
        Same-speaker pairs per speaker: all there are, or that many at random.
    ratio : int
        Different-speaker pairs for each of them: the same first recording against one of another
        speaker, every speaker equally likely. A pair that comes up again is not listed twice.
    seed : int
        Of the choice.
    session : str, optional
        Regular expression whose match in the ID tells the session; both sides of a same-speaker
        pair must be of different sessions. Else room and microphone give the answer away.

    Raises
    ------
    BadManifest
        There is no same-speaker pair or only one speaker, or an ID has no session.

    Example
    -------
    >>> rows = [{"ID": f"{speaker}{i}", "spk_id": speaker} for speaker in "ab" for i in (1, 2)]
    >>> [(int(is_same(t)), t[0]["ID"], t[1]["ID"]) for t in draw_trials(rows, ratio=1)]
    [(1, 'a1', 'a2'), (0, 'a1', 'b1'), (1, 'b1', 'b2'), (0, 'b1', 'a2')]
    """
    groups, generator = _by_speaker(rows), random.Random(seed)
    trials: dict[tuple[str, str], Trial] = {}
    for speaker, own in groups.items():
        pairs = [pair for pair in combinations(own, 2) if _differ(pair, session)]
        others = [name for name in groups if name != speaker]
        for first, second in generator.sample(pairs, min(len(pairs), positives)):
            trials[first["ID"], second["ID"]] = first, second
            for _ in range(ratio if others else 0):
                other = generator.choice(groups[generator.choice(others)])
                trials.setdefault((first["ID"], other["ID"]), (first, other))
    if len(groups) < 2 or not trials:
        sessions = "" if session is None else f" of different sessions ({session!r})"
        raise BadManifest(
            f"cannot draw trials from {len(groups)} speakers: two are needed, and one of them with "
            f"two recordings{sessions}. Give a manifest with more."
        )
    return list(trials.values())


def read_trials(path: str | Path, rows: Iterable[Row]) -> list[Trial]:
    """Read a list, and look its recordings up.

    Parameters
    ----------
    path : str or Path
        Three columns, tabs or blanks between: 1 or 0, and two recordings.
    rows : iterable of dict
        From `read_manifest`. The list names them by ID or by the end of their path, such as
        id10270/x6uYqmx31kE/00001.wav.

    Raises
    ------
    BadManifest
        A line is of another form, names no recording or more than one, or contradicts the
        speakers of the manifest; the message names file and line.
    """
    path = Path(path)
    index: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        parts = Path(row["wav"]).parts
        for name in {row["ID"], *("/".join(parts[i:]) for i in range(1, len(parts)))}:
            index[name].append(row)
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    trials = [_trial(line, index, f"{path}:{number}") for number, line in lines if line.strip()]
    if not trials:
        raise BadManifest(f'{path}: no lines. Expected "1 a b" or "0 a b" for each trial.')
    return trials


def write_trials(path: str | Path, trials: Iterable[Trial]) -> None:
    """Write a list that `read_trials` reads; tabs between, since IDs may hold blanks."""
    lines = [f"{is_same(t):d}\t{t[0]['ID']}\t{t[1]['ID']}\n" for t in trials]
    Path(path).write_text("".join(lines), encoding="utf-8")


def _by_speaker(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Speakers and their recordings, sorted: the order of the manifest must not matter."""
    groups = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["ID"]):
        groups[row["spk_id"]].append(row)
    return dict(sorted(groups.items()))


def _differ(pair: Trial, session: str | None) -> bool:
    if session is None:
        return True
    found = [re.search(session, row["ID"]) for row in pair]
    if found[0] is None or found[1] is None:
        name = pair[0 if found[0] is None else 1]["ID"]
        raise BadManifest(f"session {session!r} is not found in the ID {name!r}. Mend the pattern.")
    return found[0][0] != found[1][0]


def _trial(line: str, index: dict[str, list[Row]], where: str) -> Trial:
    cells = line.split("\t" if "\t" in line else None)
    if len(cells) != 3 or cells[0] not in ("0", "1"):
        raise BadManifest(f"{where}: {line!r}, expected 1 or 0 and two recordings.")
    sides = []
    for name in cells[1:]:
        found = index.get(name, [])
        if len(found) != 1:
            raise BadManifest(
                f"{where}: {name!r} is the ID or the end of the path of {len(found)} recordings of "
                "the manifest, expected one. Give the manifest of this list."
            )
        sides.append(found[0])
    trial = sides[0], sides[1]
    if is_same(trial) != (cells[0] == "1"):
        raise BadManifest(
            f"{where}: {line!r}, but the manifest names the speakers {trial[0]['spk_id']!r} and "
            f"{trial[1]['spk_id']!r}. Give the manifest of this list."
        )
    return trial
