"""Checkpoints that are there as a whole or not at all.

SpeechBrain writes the file that makes a folder a checkpoint first and its contents afterwards, so
that a kill or a full disk in between leaves half a checkpoint, which the next start would load.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechbrain.utils.checkpoints import Checkpoint, Checkpointer
from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.logger import get_logger

from w2v_plugin.errors import CheckpointNotSaved

logger = get_logger(__name__)
UNFINISHED = "unfinished"


class WholeCheckpointer(Checkpointer):
    """SpeechBrain's Checkpointer; a checkpoint appears in its folder when all of it is on the disk.

    Takes the same arguments. Only the main process writes: what a distributed run saves is the
    same on all ranks.

    Raises
    ------
    CheckpointNotSaved
        Saving failed. What was written is removed; older checkpoints are untouched.

    Example
    -------
    >>> import tempfile, torch
    >>> checkpointer = WholeCheckpointer(tempfile.mkdtemp(), {"model": torch.nn.Linear(2, 2)})
    >>> checkpointer.save_checkpoint().path.name.startswith("CKPT+")
    True
    """

    def save_checkpoint(
        self,
        meta: Mapping[str, Any] | None = None,
        end_of_epoch: bool = True,
        name: str | None = None,
        verbosity: int = logging.INFO,
    ) -> Checkpoint:
        return main_process_only(self._save)(meta or {}, end_of_epoch, name, verbosity)

    def save_and_keep_only(self, *args: Any, **kwargs: Any) -> None:
        # without this, every save adds a key to a default of SpeechBrain's that is never emptied
        kwargs.setdefault("importance_keys", [])
        super().save_and_keep_only(*args, **kwargs)

    def _save(
        self, meta: Mapping[str, Any], end_of_epoch: bool, name: str | None, verbosity: int
    ) -> Checkpoint:
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%d+%H-%M-%S", time.localtime(now // 10**9))
        name = name or f"{stamp}+{now % 10**9:09d}"
        folder = self.checkpoints_dir / UNFINISHED
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed here
        try:
            writer = Checkpointer(
                folder, self.recoverables, custom_save_hooks=self.custom_save_hooks
            )
            saved = writer.save_checkpoint(meta, end_of_epoch, name, verbosity=logging.DEBUG)
            for path in (*saved.path.iterdir(), saved.path):
                to_disk(path)
            final = saved.path.rename(self.checkpoints_dir / saved.path.name)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointNotSaved(self._explain(error)) from error
        to_disk(self.checkpoints_dir)
        logger.log(verbosity, "Saved a checkpoint in %s", final)
        files = {key: final / path.name for key, path in saved.paramfiles.items()}
        return Checkpoint(final, saved.meta, files)

    def _explain(self, error: Exception) -> str:
        free = shutil.disk_usage(self.checkpoints_dir).free / 2**20
        reason = str(error).partition("\n")[0] or type(error).__name__
        text = f"No checkpoint could be written to {self.checkpoints_dir}: {reason} "
        text += f"({free:.0f} MiB free there). "
        last = self.find_checkpoint()
        if last is None:
            return text + "There is none before it. Make room and start again."
        size = sum(path.stat().st_size for path in last.path.iterdir()) / 2**20
        return text + (
            f"The one before is whole: {last.path} ({size:.0f} MiB). Make room for as much and "
            "start the same command again: it goes on from there."
        )


def to_disk(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk, not only in memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
