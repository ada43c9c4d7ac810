"""How trainings begin and end as commands: what their users did wrong is one line."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from w2v_plugin.errors import NotStreamable, TrainingCollapsed
from w2v_plugin.launch import join_group, read_hparams, told

TINY = Path(__file__).resolve().parent.parent / "hparams" / "ctc" / "tiny.yaml"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("nonsense: 3", "tiny.yaml: Override 'nonsense' not found"),
        ("updates: 3\nupdates: 4", 'an option: found duplicate key "updates"'),
        ("updates: [3", "an option: "),
        ("train_csv: {de: de.csv}", "tiny.yaml: an option is a mapping .* 'de.csv'"),
        ("updates: abc", "--updates 'abc': expected a number, such as "),
        ("encoder_lr: 1e-3x", "--encoder_lr '1e-3x': expected a number"),
        ("batch_s: .nan", "--batch_s nan: expected a number"),
        ("updates: -5", "--updates -5: expected more than 0"),
        ("log_every: 0", "--log_every 0: expected more than 0"),
        ("freeze_encoder_updates: -1", "--freeze_encoder_updates -1: expected 0 or more"),
        ("keep_audio: maybe", "--keep_audio 'maybe': expected True or False"),
    ],
)
def test_wrong_options_are_named(overrides: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_hparams(TINY, overrides)
    assert "\n" not in str(caught.value)


def test_numbers_may_be_written_in_any_way() -> None:
    read = partial(read_hparams, TINY)
    needed = "train_csv: x\nvalid_csv: x\npretrained: null\n"
    assert read(needed + "encoder_lr: 1e-3")["encoder_lr"] == 0.001
    assert read(needed + "freeze_encoder_updates: 0\nupdates: 7")["updates"] == 7


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=f"--device {device} cannot be used here: ") as caught:
        join_group({"device": device})
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
