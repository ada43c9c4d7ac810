"""A checkpoint is there as a whole or not at all: full disks, kills, the right ones kept."""

from __future__ import annotations

import errno
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer, mark_as_loader, mark_as_saver
from speechbrain.utils.checkpoints import register_checkpoint_hooks as hooks

from w2v_plugin.errors import CheckpointNotSaved
from w2v_plugin.whole_checkpoints import UNFINISHED, WholeCheckpointer


@hooks
class Diary:
    """Text that can be saved, unless the disk is said to be full."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.full = False

    @mark_as_saver
    def save(self, path: Path) -> None:
        with open(path, "w") as file:
            file.write(self.text[: len(self.text) // 2])  # then the disk is full
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            file.write(self.text[len(self.text) // 2 :])

    @mark_as_loader
    def load(self, path: Path, end_of_epoch: bool) -> None:
        self.text = path.read_text()


def parts(text: str) -> dict[str, object]:
    return {"first": torch.nn.Linear(2, 2), "diary": Diary(text), "last": torch.nn.Linear(3, 3)}


def test_it_is_a_checkpointer(tmp_path: Path) -> None:
    """SpeechBrain's own reads what it writes; meta data, best and latest are kept, no more."""
    things = parts("a")
    checkpointer = WholeCheckpointer(tmp_path, things)
    for text, score in (("a", 0.1), ("b", 0.9), ("c", 0.3), ("d", 0.2)):
        things["diary"].text = text  # type: ignore[attr-defined]
        checkpointer.save_and_keep_only(meta={"score": score}, max_keys=["score"])
    fresh = parts("")
    stock = Checkpointer(tmp_path, fresh)
    assert len(stock.list_checkpoints()) == 2
    assert stock.recover_if_possible().meta["score"] == 0.2
    assert fresh["diary"].text == "d"  # type: ignore[attr-defined]
    assert stock.recover_if_possible(max_key="score").meta["score"] == 0.9
    assert fresh["diary"].text == "b"  # type: ignore[attr-defined]
    assert torch.equal(fresh["last"].weight, things["last"].weight)  # type: ignore[attr-defined]


def test_paths_are_those_of_the_finished_checkpoint(tmp_path: Path) -> None:
    saved = WholeCheckpointer(tmp_path, parts("text")).save_checkpoint(name="mine")
    assert saved.path == tmp_path / "CKPT+mine"
    assert all(path.is_file() for path in saved.paramfiles.values())
    assert set(saved.paramfiles) == {"first", "diary", "last"}


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """The error says what happened and what is left; half a checkpoint is nowhere."""
    things = parts("the first text")
    checkpointer = WholeCheckpointer(tmp_path, things)
    good = checkpointer.save_checkpoint(meta={"score": 1.0})
    diary = things["diary"]
    diary.text, diary.full = "another text", True  # type: ignore[attr-defined]
    with pytest.raises(CheckpointNotSaved, match="No space left on device") as caught:
        checkpointer.save_and_keep_only(meta={"score": 2.0}, max_keys=["score"])
    assert str(good.path) in str(caught.value) and "MiB free" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [good.path.name]
    assert checkpointer.recover_if_possible(max_key="score").path == good.path
    assert diary.text == "the first text"  # type: ignore[attr-defined]


def test_a_full_disk_at_the_first_checkpoint(tmp_path: Path) -> None:
    things = parts("text")
    things["diary"].full = True  # type: ignore[attr-defined]
    with pytest.raises(CheckpointNotSaved, match="none before it"):
        WholeCheckpointer(tmp_path, things).save_checkpoint()


LIMITED = """
import resource, signal, sys, torch
from w2v_plugin.whole_checkpoints import WholeCheckpointer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond the limit is an error
model = torch.nn.Linear(200, 200)
checkpointer = WholeCheckpointer(sys.argv[1], {"model": model})
checkpointer.save_checkpoint()
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
torch.nn.init.zeros_(model.weight)
checkpointer.save_checkpoint()
"""


def test_the_system_itself_refuses_to_write(tmp_path: Path) -> None:
    """A file that may not grow: what torch.save reports then is understood, too."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1 and "CheckpointNotSaved: No checkpoint could be" in done.stderr
    model = torch.nn.Linear(200, 200)
    assert WholeCheckpointer(tmp_path, {"model": model}).recover_if_possible() is not None
    assert model.weight.abs().sum() > 0


KILLED = """
import os, signal, sys, torch
from w2v_plugin import whole_checkpoints
def die(path):
    os.kill(os.getpid(), signal.SIGKILL)
model = torch.nn.Linear(2, 2)
checkpointer = whole_checkpoints.WholeCheckpointer(sys.argv[1], {"model": model})
torch.nn.init.ones_(model.weight)
checkpointer.save_checkpoint()
torch.nn.init.zeros_(model.weight)
whole_checkpoints.to_disk = die
checkpointer.save_checkpoint()
"""


def test_a_kill_while_saving(tmp_path: Path) -> None:
    """Everything is written, nothing is finished: the checkpoint before is what is loaded."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=100)
    assert done.returncode < 0
    assert list((tmp_path / UNFINISHED).glob("CKPT*"))  # the case is what it says
    model = torch.nn.Linear(2, 2)
    checkpointer = WholeCheckpointer(tmp_path, {"model": model})
    checkpointer.recover_if_possible()
    assert model.weight.eq(1).all()
    checkpointer.save_checkpoint()  # clears up
    assert not list((tmp_path / UNFINISHED).iterdir())


def test_stock_speechbrain_would_load_half_a_checkpoint(tmp_path: Path) -> None:
    """Why this class exists; if SpeechBrain mends it, this test says so."""
    things = parts("text")
    things["diary"].full = True  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="No space"):
        Checkpointer(tmp_path, things).save_checkpoint()
    assert Checkpointer(tmp_path, things).find_checkpoint() is not None


def test_many_saves_do_not_slow_each_other(tmp_path: Path) -> None:
    """SpeechBrain's default list of keys grows with each save; ours does not."""
    checkpointer = WholeCheckpointer(tmp_path, {"model": torch.nn.Linear(2, 2)})
    default = signature(Checkpointer.save_and_keep_only).parameters["importance_keys"].default
    before = len(default)
    for _ in range(5):
        checkpointer.save_and_keep_only()
    assert len(default) == before
