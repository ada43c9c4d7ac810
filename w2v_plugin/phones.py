"""Which phone is said when: alignments of others -> one label for each 20 ms frame.

Surprising: a frame is not where its number says. Frame t hears the samples 320 t to 320 t + 400, so
its centre is 12.5 ms after t * 20 ms, and it is the phone at the centre that labels it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from w2v_plugin.frames import HOP, RECEPTIVE_FIELD, SAMPLE_RATE

SILENCE, UNKNOWN = "_", ""  # a pause; nothing that can be scored
PAUSES = {"", "_", "sil", "sp", "silence", "<sil>", "<eps>", "pau", "h#", "epi"}
NO_PHONES = {"spn", "<unk>", "nsn"}  # aligners write these for words and noises they do not know
STRESS_AND_LENGTH = str.maketrans("", "", "ˈˌːˑ")
FORMATS = "a folder of .TextGrid files, one .TextGrid, a .ctm, or a .json of phone starts"


class Phone(NamedTuple):
    """A phone and when it is said, in seconds."""

    start: float
    end: float
    label: str


def plain_phone(label: str) -> str:
    """A label without stress, length and position in the word.

    Parameters
    ----------
    label : str
        IPA, ARPAbet ("AH0"), or as Kaldi writes it ("AH0_B").

    Returns
    -------
    str
        `SILENCE` for any kind of pause, `UNKNOWN` for what is no phone ("spn").

    Example
    -------
    >>> [plain_phone(label) for label in ("AH0_B", "ˈuː", "SIL", "spn", "t")]
    ['AH', 'u', '_', '', 't']
    """
    label = re.sub(r"_[BIES]$", "", label.strip())
    if label.lower() in PAUSES:
        return SILENCE
    if label.lower() in NO_PHONES:
        return UNKNOWN
    return re.sub(r"^([A-Z]{1,3})[0-2]$", r"\1", label.translate(STRESS_AND_LENGTH))


def read_alignments(path: str | Path, tier: str = "phones") -> dict[str, list[Phone]]:
    """Phones of many utterances.

    Parameters
    ----------
    path : str or Path
        - A folder of Praat's TextGrid files (searched), or one of them: the utterance is the name
          of the file without its suffix. It needs `pip install "w2v_plugin[units]"`.
        - `.ctm`, NIST: lines "utterance channel start duration phone"; more columns are ignored.
        - `.json`: {utterance: [[start, phone], ...]}, each until the next one begins, as
          recipes/prepare/commands.py writes them.
    tier : str
        Of a TextGrid: which interval tier holds the phones.

    Returns
    -------
    dict of str to list of Phone
        In order of time, labels as from `plain_phone`.

    Raises
    ------
    ValueError
        The file is of none of these kinds, a line or a time cannot be used, there is no such tier,
        or two files have one name.
    ImportError
        praatio is missing.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "phones.ctm")
    ...     _ = file.write_text("a 1 0.00 0.12 HH\\na 1 0.12 0.10 AY1\\n")
    ...     read_alignments(file)["a"][1]
    Phone(start=0.12, end=0.22, label='AY')
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".TextGrid":
        found = _from_textgrids(path, tier)
    elif path.suffix == ".ctm":
        found = _from_ctm(path)
    elif path.suffix == ".json":
        found = _from_starts(path)
    else:
        raise ValueError(f"{path}: expected {FORMATS}.")
    if not found:
        raise ValueError(f"{path}: no alignments in it. Expected {FORMATS}.")
    for name, phones in found.items():
        if not all(0 <= phone.start <= phone.end for phone in phones):
            raise ValueError(f"{path}: {name}: times below zero, or an end before its start.")
    return {name: sorted(phones) for name, phones in found.items()}


def frame_phones(phones: Sequence[Phone], frames: int) -> np.ndarray:
    """Label of each frame: the phone at its centre, sample 320 t + 200.

    Parameters
    ----------
    phones : sequence of Phone
        In order of time.
    frames : int
        How many there are.

    Returns
    -------
    ndarray
        (frames,) str; `UNKNOWN` where no phone is.

    Example
    -------
    >>> frame_phones([Phone(0.0, 0.0325, "t"), Phone(0.0325, 0.06, "u")], 4).tolist()
    ['t', 'u', 'u', '']
    """
    centres = (np.arange(frames) * HOP + RECEPTIVE_FIELD // 2) / SAMPLE_RATE
    starts, ends = (np.array([phone[side] for phone in phones]) for side in (0, 1))
    labels = np.array([*(phone.label for phone in phones), UNKNOWN])
    which = np.searchsorted(starts, centres, side="right") - 1
    inside = (which >= 0) & (centres < np.append(ends, -np.inf)[which])
    return labels[np.where(inside, which, len(phones))]


def _from_textgrids(path: Path, tier: str) -> dict[str, list[Phone]]:
    try:
        from praatio import textgrid
        from praatio.utilities.errors import PraatioException
    except ImportError as error:
        raise ImportError(
            'TextGrid files need praatio: pip install "w2v_plugin[units]", or give a .ctm.'
        ) from error
    found: dict[str, list[Phone]] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*.TextGrid")):
        if file.stem in found:
            raise ValueError(f"{file}: another file of this folder is called {file.stem}, too.")
        try:
            grid = textgrid.openTextgrid(str(file), True, reportingMode="silence")
        except (PraatioException, ValueError, IndexError, OSError) as error:
            raise ValueError(f"{file}: cannot be read as a TextGrid ({error}).") from error
        if tier not in grid.tierNames or not isinstance(grid.getTier(tier), textgrid.IntervalTier):
            raise ValueError(
                f"{file}: no interval tier {tier!r}; there are {', '.join(grid.tierNames)}."
            )
        found[file.stem] = _plain(grid.getTier(tier).entries)
    return found


def _from_ctm(path: Path) -> dict[str, list[Phone]]:
    found: dict[str, list[Phone]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip() or line.startswith(";;"):
            continue
        try:
            name, _, start, duration, label, *_ = line.split()
            phone = Phone(float(start), float(start) + float(duration), plain_phone(label))
        except ValueError as error:
            raise ValueError(
                f"{path}:{number}: {line[:60]!r}, expected: utterance channel start duration phone"
            ) from error
        found.setdefault(name, []).append(phone)
    return found


def _from_starts(path: Path) -> dict[str, list[Phone]]:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        found = {}
        for name, pairs in given.items():
            starts = [float(start) for start, _ in pairs]
            labels = [str(label) for _, label in pairs]
            ends = [*starts[1:], math.inf]
            found[name] = _plain(zip(starts, ends, labels, strict=True))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected {{utterance: [[start, phone], ...]}} ({error})."
        ) from error
    return found


def _plain(entries: Iterable[tuple[float, float, str]]) -> list[Phone]:
    return [Phone(float(start), float(end), plain_phone(label)) for start, end, label in entries]
