"""Data cards and flags: what a person should see before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from w2v_plugin.checks import Utterance, check_all, examine, find_flags
from w2v_plugin.manifests import flagged_path, read_manifest, skipped_path
from w2v_plugin.preparation import prepare

RATE = 16_000


def noise(seed: int, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """Something like speech in loudness."""
    return np.random.default_rng(seed).normal(0, 0.05, round(seconds * rate))


@pytest.fixture
def corpus(tmp_path: Path) -> list[Utterance]:
    """One of everything that a card tells."""
    sounds = {
        "good": (noise(0), RATE),
        "telephone": (noise(1, rate=8000), 8000),
        "zeros": (np.zeros(RATE), RATE),
        "faint": (noise(2) * 1e-3, RATE),
        "loud": (np.clip(noise(3) * 30, -1, 1), RATE),
        "again": (noise(0), RATE),
    }
    listed = []
    for line, (name, (wav, rate)) in enumerate(sounds.items(), start=1):
        soundfile.write(tmp_path / f"{name}.wav", wav, rate, subtype="PCM_16")
        texts = {"good": "മുൻവിള | weiß…", "telephone": "schÃ¶n", "loud": "x" * 60}
        text, source = texts.get(name, "same text"), f"list.tsv:{line}"
        listed.append(Utterance(name, tmp_path / f"{name}.wav", name[0], text, source))
    listed.append(Utterance("gone", tmp_path / "gone.wav", "z", "text", "list.tsv:7"))
    return listed


def test_flags_name_what_looks_wrong(corpus: list[Utterance], tmp_path: Path) -> None:
    """Each with its kind; nothing is said of the good one."""
    (summary,) = prepare({tmp_path / "m.csv": corpus})
    rows = [line.split("\t") for line in flagged_path(tmp_path / "m.csv").read_text().splitlines()]
    found = {(name, kind): what for _, name, kind, what in rows[1:]}
    assert found == {
        ("telephone", "text"): "schÃ¶n looks like schön in UTF-8, read as cp1252",
        ("zeros", "silent"): "every sample is zero",
        ("faint", "silent"): found["faint", "silent"],
        ("loud", "clipped"): found["loud", "clipped"],
        ("loud", "text"): "60 characters in 50 frames of 20 ms: more than CTC can say",
        ("again", "duplicate"): "same audio as good (list.tsv:1), other text",
    }
    assert "of full scale" in found["faint", "silent"] and " % of" in found["loud", "clipped"]
    assert (summary.utterances, summary.skipped, summary.flagged) == (6, 1, 5)
    assert "5 to look at (see " in str(summary)


def test_flagged_kinds_can_be_left_out(corpus: list[Utterance], tmp_path: Path) -> None:
    """As reasons, listed like all others."""
    (summary,) = prepare({tmp_path / "m.csv": corpus}, drop=("silent", "duplicate"))
    kept = [row["ID"] for row in read_manifest(tmp_path / "m.csv")]
    assert kept == ["good", "telephone", "loud"] and summary.flagged == 2
    skipped = skipped_path(tmp_path / "m.csv").read_text()
    assert "list.tsv:3\t" in skipped and "silent: every sample is zero" in skipped
    assert "duplicate: same audio as good" in skipped


def test_the_card_tells_what_a_person_needs(corpus: list[Utterance], tmp_path: Path) -> None:
    """Hours, rates, speakers, characters with names, repeated texts, what is missing."""
    prepare({tmp_path / "m.csv": corpus})
    card = (tmp_path / "m.card.md").read_text(encoding="utf-8")
    for expected in (
        "| hours | 0.002 |",
        "| utterances | 6 (6 with a transcript) |",
        "| sample rates | 16000 Hz (5), 8000 Hz (1) |",
        "Sample rates are mixed",
        "| g | 0.0 | 1 |",
        "| \u25cc\u0d41 | U+0D41 malayalam vowel sign u | 1 | list.tsv:1 |",
        "| \\| | U+007C vertical line | 1 | list.tsv:1 |",
        "1 texts are said more than once, 3 times in all.",
        "| same text | 3 |",
        "1, all in `m.skipped.tsv`",
        "| no such file | 1 |",
        "6, kept, all in `m.flagged.tsv`.",
    ):
        assert expected in card, expected
    assert (tmp_path / "m.card.png").read_bytes().startswith(b"\x89PNG")


def test_equal_input_gives_equal_cards(corpus: list[Utterance], tmp_path: Path) -> None:
    """So that they can be committed; one worker or three."""
    written = []
    for workers in (1, 3):
        prepare({tmp_path / "m.csv": corpus}, workers=workers)
        written.append({path.name: path.read_bytes() for path in tmp_path.glob("m.*")})
    assert len(written[0]) == 5 and written[0] == written[1]


def test_stale_lists_are_removed(corpus: list[Utterance], tmp_path: Path) -> None:
    prepare({tmp_path / "m.csv": corpus})
    prepare({tmp_path / "m.csv": corpus[:1]})
    names = sorted(path.name for path in tmp_path.glob("m.*"))
    assert names == ["m.card.md", "m.card.png", "m.csv"]


def test_unlabelled_audio_has_a_card_without_characters(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(0), RATE)
    prepare({tmp_path / "m.csv": [Utterance("a", tmp_path / "a.wav", "")]})
    card = (tmp_path / "m.card.md").read_text()
    assert "| speakers | not known |" in card and "## Characters" not in card


def test_the_same_samples_have_one_digest(tmp_path: Path) -> None:
    """In another format, under another name; one other sample is another digest."""
    samples = (noise(0) * 32767).astype(np.int16)
    for name, change in (("a.wav", 0), ("b.flac", 0), ("c.wav", 1)):
        samples[0] += change
        soundfile.write(tmp_path / name, samples, RATE)
    digests = [examine(tmp_path / name).digest for name in ("a.wav", "b.flac", "c.wav")]
    assert digests[0] == digests[1] != digests[2]


def test_lengths_are_compared_with_what_was_promised(tmp_path: Path) -> None:
    """A tenth of a second is what codecs add."""
    soundfile.write(tmp_path / "a.wav", noise(0), RATE)
    listed = [
        Utterance(f"{seconds}", tmp_path / "a.wav", "", promised=seconds)
        for seconds in (0.5, 0.95, 1.05, 1.5)
    ]
    flags = find_flags(check_all(listed), {})
    assert [flag.utterance.id for flag in flags if flag.kind == "length"] == ["0.5", "1.5"]
