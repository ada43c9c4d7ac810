"""When an utterance is over: a truth table, and what must not end one."""

from __future__ import annotations

import pytest

from w2v_plugin.endpoint import Endpointer, EndpointRules

RULES = EndpointRules(nothing_s=0.5, after_word_s=0.2, longest_s=1.0, pause_s=0.1)


def ends(frames: str, rules: EndpointRules = RULES, speech: bool = False, step: int = 0) -> list:
    """Where it ends; `#` says a character, `.` is a sure blank, `~` an unsure one, `!` none."""
    blanks = [{"#": 0.0, ".": 0.95, "~": 0.65, "!": 0.3}[frame] for frame in frames]
    said = [frame == "#" for frame in frames]
    endpointer, found = Endpointer(rules), []
    step = step or len(frames) or 1
    for begin in range(0, len(frames), step):
        part = slice(begin, begin + step)
        found += [begin + n for n in endpointer.feed(blanks[part], said[part], speech)]
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
        ("#" * 60, []),  # 1.2 s without a pause: never within a word
        ("#" * 60 + "." * 4, []),
        ("#" * 60 + "." * 5, [65]),  # 0.1 s of pause after more than a second
        ("#" * 30 + "." * 5, []),  # the same pause earlier
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
    """A VAD has a veto, and no more than that."""
    assert ends("##" + "." * 60, speech=True) == []
    assert ends("##" + "." * 10, speech=False) == [12]


def test_defaults_are_those_of_the_documentation() -> None:
    """1 s after a word, 2.4 s of nothing, 20 s at the next pause."""
    rules = EndpointRules()
    assert ends("#" + "." * 50, rules) == [51]
    assert ends("." * 120, rules) == [120]
    assert ends("#" * 1000 + "." * 10, rules) == [1010]


@pytest.mark.parametrize("change", [{"pause_s": 0}, {"certain": 0.4}, {"least": 0}])
def test_rules_that_make_no_sense(change: dict) -> None:
    with pytest.raises(ValueError, match="expected times above 0"):
        EndpointRules(**change)
