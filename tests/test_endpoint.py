"""When an utterance is over: a truth table, and what must not end one."""

from __future__ import annotations

import pytest

from w2v_plugin.endpoint import Endpointer, EndpointRules

RULES = EndpointRules(nothing_s=0.5, after_word_s=0.2, longest_s=1.0, pause_s=0.1)


def ends(
    frames: str, rules: EndpointRules = RULES, speech: float = 0.0, step: int = 0
) -> list[int]:
    """Where it ends. `#` says a character, `|` is between words, `.` is surely none of a character,
    `~` not surely, `!` hardly."""
    quiet = [{"#": 0.0, ".": 0.95, "|": 0.95, "~": 0.65, "!": 0.3}[frame] for frame in frames]
    said, gaps = [frame == "#" for frame in frames], [frame == "|" for frame in frames]
    endpointer, found = Endpointer(rules), []
    step = step or len(frames) or 1
    for begin in range(0, len(frames), step):
        part = slice(begin, begin + step)
        found += [begin + n for n in endpointer.feed(quiet[part], said[part], gaps[part], speech)]
    return found


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ("." * 24, []),  # 0.48 s of nothing
        ("." * 25, [25]),  # 0.5 s
        ("." * 60, [25, 50]),  # and again, each time as long
        ("##" + "." * 9, []),  # 0.18 s after a word
        ("##" + "." * 10, [12]),
        ("##" + "." * 60, [12, 27, 52]),  # then nothing is said: silence counts from where it began
        ("#" * 60, []),  # 1.2 s without a pause
        ("#" * 60 + "|" + "." * 3, []),
        ("#" * 60 + "|" + "." * 4, [65]),  # 0.1 s of pause after more than a second
        ("#" * 60 + "." * 4 + "|", [65]),  # the boundary is said when the pause is over
        ("#" * 60 + "." * 9 + "#", []),  # a pause, but within a word
        ("#|" + "#" * 60 + "." * 9 + "#", []),  # boundaries before the word do not count
        ("#" * 30 + "|" + "." * 4, []),  # the same pause earlier
        ("#" * 49 + "|" * 5, [54]),  # boundaries are silence
        ("##" + "|" * 9, []),
        ("##" + "...|||..||", [12]),
        ("#" * 99 + "|", [100]),  # after two seconds, between any two words
        ("#" * 98 + "|" + "#" * 9 + "!" * 9 + "|", [118]),
        ("#" * 300, []),
        ("!" * 250, [100, 200]),  # nor is noise remembered for longer
        ("##" + "..#" * 30, []),  # blanks between the letters
        ("##" + "~" * 60, []),  # blanks that are never sure
        ("##" + "..." + "~" * 7, [12]),  # that were sure at first: goes on while it is doubtful
        ("##" + "..!" * 30, []),
        ("##" + "....!" + "." * 10, [17]),  # begins anew after a frame that is no blank
        ("##" + "." * 10 + "##" + "." * 10, [12, 24]),
        ("", []),
    ],
)
@pytest.mark.parametrize("step", [0, 1, 7])
def test_rules(frames: str, expected: list, step: int) -> None:
    """In pieces as at once."""
    assert ends(frames, step=step) == expected


def test_speech_is_no_silence() -> None:
    """A VAD has a veto, and no more than that: not on what decoders must remember."""
    assert ends("##" + "." * 60, speech=1.0) == []
    assert ends("##" + "." * 10, speech=0.0) == [12]
    assert ends("##|" + "." * 200, speech=1.0) == [100, 200]


@pytest.mark.parametrize(
    ("opinions", "expected"),
    [
        ([0.49, 0.49, 0.49], [12]),  # not sure enough to begin
        ([0.5, 0.5, 0.5], []),
        ([0.5, 0.35, 0.35], []),  # sure enough to go on
        ([0.5, 0.34, 0.34], [17]),  # silence begins with the second five frames
        ([0.34, 0.34, 0.5], [12]),
        ([True, False, False], [17]),
    ],
)
def test_speech_has_hysteresis(opinions: list[float], expected: list[int]) -> None:
    endpointer, found = Endpointer(RULES), []
    endpointer.feed([0.0] * 2, [True] * 2, [False] * 2)
    for number, speech in enumerate(opinions):
        part = endpointer.feed([0.95] * 5, [False] * 5, [False] * 5, speech)
        found += [2 + 5 * number + n for n in part]
    assert found == expected


def test_characters_are_no_silence() -> None:
    """However little of them is enough for the rules."""
    rules = EndpointRules(after_word_s=0.2, certain=0.3, doubtful=0.2)
    endpointer = Endpointer(rules)
    quiet, said = [0.9] * 5 + [0.4] + [0.9] * 9, [False] * 5 + [True] + [False] * 9
    assert endpointer.feed([0.0, *quiet], [True, *said], [False] * 16) == []


def test_defaults_are_those_of_the_documentation() -> None:
    """1 s after a word, 2.4 s of nothing, 20 s at the next pause."""
    rules = EndpointRules()
    assert ends("#" + "." * 50, rules) == [51]
    assert ends("." * 120, rules) == [120]
    assert ends("#" * 1000 + "|" + "." * 9, rules) == [1010]
    assert ends("#" * 1999 + "|", rules) == [2000]


@pytest.mark.parametrize("change", [{"pause_s": 0}, {"certain": 0.4}, {"least": 0}])
def test_rules_that_make_no_sense(change: dict) -> None:
    with pytest.raises(ValueError, match="expected times above 0"):
        EndpointRules(**change)
