"""Alignments of every kind give the same phones, and a frame the phone at its centre."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from w2v_plugin.phones import Phone, frame_phones, plain_phone, read_alignments

TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 0.5
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.1
            text = ""
        intervals [2]:
            xmin = 0.1
            xmax = 0.25
            text = "AY1"
        intervals [3]:
            xmin = 0.25
            xmax = 0.4
            text = "spn"
        intervals [4]:
            xmin = 0.4
            xmax = 0.5
            text = "T"
    item [2]:
        class = "TextTier"
        name = "notes"
        xmin = 0
        xmax = 0.5
        points: size = 1
        points [1]:
            number = 0.2
            mark = "!"
"""
CTM = (
    ";; phones\na 1 0.10 0.15 AY1_B 0.9\na 1 0.00 0.10 SIL\na 1 0.25 0.15 spn\na 1 0.40 0.10 T_E\n"
)
PHONES = [(0.0, 0.1, "_"), (0.1, 0.25, "AY"), (0.25, 0.4, ""), (0.4, 0.5, "T")]


def close(found: list[Phone], expected: list[tuple]) -> bool:
    """The same labels at the same times, up to the rounding of 0.10 + 0.15."""
    labels = [x[2] for x in found] == [x[2] for x in expected]
    return labels and np.allclose([x[:2] for x in found], [x[:2] for x in expected], atol=1e-9)


def test_labels_without_stress_length_and_position() -> None:
    cases = {
        "AH0": "AH",
        "AH0_I": "AH",
        "B_S": "B",
        "\u02c8oʊ": "oʊ",
        "i\u02d0": "i",
        "aˑ": "a",
        "t": "t",
        "": "_",
        "sil": "_",
        "SP": "_",
        "SIL_S": "_",
        "spn": "",
        "a1": "a1",  # a tone, no ARPAbet
    }
    assert {label: plain_phone(label) for label in cases} == cases


def test_a_ctm_and_json_say_the_same(tmp_path: Path) -> None:
    """Sorted by time; the last phone of a .json ends with the audio."""
    (tmp_path / "a.ctm").write_text(CTM)
    starts = {"a": [[0.0, ""], [0.1, "AY"], [0.25, "spn"], [0.4, "T"]]}
    (tmp_path / "a.json").write_text(json.dumps(starts))
    assert close(read_alignments(tmp_path / "a.ctm")["a"], PHONES)
    found = read_alignments(tmp_path / "a.json")["a"]
    assert close(found[:3], PHONES[:3]) and found[3] == (0.4, math.inf, "T")


def test_textgrids(tmp_path: Path) -> None:
    """A folder or one of them; empty intervals are pauses; errors name tiers and files."""
    pytest.importorskip("praatio", reason="TextGrid files need praatio")
    (tmp_path / "speaker").mkdir()
    for name in ("a", "speaker/b"):
        (tmp_path / f"{name}.TextGrid").write_text(TEXTGRID)
    found = read_alignments(tmp_path)
    assert sorted(found) == ["a", "b"] and close(found["b"], PHONES)
    assert close(read_alignments(tmp_path / "a.TextGrid")["a"], PHONES)
    for tier in ("words", "notes"):
        with pytest.raises(ValueError, match="there are phones, notes"):
            read_alignments(tmp_path, tier)
    (tmp_path / "speaker" / "a.TextGrid").write_text(TEXTGRID)
    with pytest.raises(ValueError, match="is called a, too"):
        read_alignments(tmp_path)
    (tmp_path / "a.TextGrid").write_text("nonsense")
    with pytest.raises(ValueError, match=r"a\.TextGrid: cannot be read"):
        read_alignments(tmp_path / "a.TextGrid")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.ctm", "a 1 0.0 x AY\n", "a.ctm:1: 'a 1 0.0 x AY', expected: utterance"),
        ("a.ctm", "a 1 0.0\n", "expected: utterance"),
        ("a.ctm", "", "no alignments"),
        ("a.ctm", "a 1 -0.2 0.1 AY\n", "below zero"),
        ("a.ctm", "a 1 0.2 -0.1 AY\n", "an end before its start"),
        ("a.json", "[1]", "expected {utterance"),
        ("a.json", '{"a": [[0.0]]}', "expected {utterance"),
        ("a.json", "{", "expected {utterance"),
        ("a.txt", "", "expected a folder of .TextGrid"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace(".", r"\.")):
        read_alignments(tmp_path / name)


def test_a_missing_file_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        read_alignments(tmp_path / "gone.ctm")
    pytest.importorskip("praatio", reason="TextGrid files need praatio")
    with pytest.raises(ValueError, match="no alignments"):
        read_alignments(tmp_path)


def test_a_frame_is_the_phone_at_its_centre() -> None:
    """Centres at 12.5, 32.5, 52.5 ms, …; an end belongs to what follows."""
    phones = [Phone(0.0125, 0.0325, "a"), Phone(0.0325, 0.0525, "b"), Phone(0.08, 9.0, "c")]
    assert frame_phones(phones, 5).tolist() == ["a", "b", "", "", "c"]
    assert frame_phones(phones, 0).tolist() == []
    assert frame_phones([], 2).tolist() == ["", ""]
    late = [Phone(0.02, 0.03, "a")]  # between two centres: no frame
    assert frame_phones(late, 3).tolist() == ["", "", ""]


def test_frames_agree_with_the_samples_that_they_hear() -> None:
    """Labels taken sample by sample, at 320 t + 200."""
    generator = np.random.default_rng(0)
    edges = np.sort(generator.choice(16000, 20, replace=False))
    phones = [Phone(a / 16000, b / 16000, str(i)) for i, (a, b) in enumerate(pairwise(edges))]
    of_sample = [""] * 16000
    for phone, (a, b) in zip(phones, pairwise(edges), strict=True):
        of_sample[a:b] = [phone.label] * (b - a)
    expected = [of_sample[320 * t + 200] for t in range(49)]
    assert frame_phones(phones, 49).tolist() == expected
