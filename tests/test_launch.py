"""How trainings begin and end as commands: what their users did wrong is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from w2v_plugin.errors import NotStreamable, TrainingCollapsed
from w2v_plugin.launch import read_hparams, told

TINY = Path(__file__).resolve().parent.parent / "hparams" / "ctc" / "tiny.yaml"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("nonsense: 3", "tiny.yaml: Override 'nonsense' not found"),
        ("updates: 3\nupdates: 4", 'an option: found duplicate key "updates"'),
        ("updates: [3", "an option: "),
        ("train_csv: {de: de.csv}", "tiny.yaml: an option is a mapping .* 'de.csv'"),
    ],
)
def test_wrong_options_are_named(overrides: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_hparams(TINY, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("lr: got -1"), 2, "x: error: lr: got -1\n"),
        (FileNotFoundError(2, "No such file", "a.csv"), 2, "x: error: [Errno 2] No such file"),
        (NotStreamable("needs all"), 2, "x: error: needs all\n"),
        (TrainingCollapsed("one code"), 2, "x: error: one code\n"),
        (KeyboardInterrupt(), 130, "\nx: stopped. Started again, it goes on"),
    ],
)
def test_mistakes_are_one_line(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(argv: list[str]) -> None:
        raise error

    assert told("x", run, []) == status
    assert capsys.readouterr().err.startswith(said)


def test_our_own_mistakes_keep_their_traceback() -> None:
    def run(argv: list[str]) -> None:
        raise TypeError("ours")

    with pytest.raises(TypeError):
        told("x", run, [])
