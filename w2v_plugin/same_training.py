"""An output folder goes on with the training that it was begun with, and with no other one.

Neither with one after it (`check_same`) nor with one at the same time (`alone`).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from speechbrain.utils.distributed import if_main_process, run_on_main

from w2v_plugin.manifests import write_files

# hyperparameters on which it depends what is heard when, and how far an epoch goes
OF_THE_ORDER = ("seed", "batch_s", "valid_every")
TRAINING = "training.json"  # beside the checkpoints: of which training they are


def check_same(
    checkpoints: Sequence[str | Path], output_folder: str | Path, now: Mapping[str, object]
) -> None:
    """Refuse checkpoints of another training; else remember which one it is.

    Parameters
    ----------
    checkpoints : sequence of path
        Folders of checkpoints that would go on; the first one remembers.
    output_folder : path
        Where all of it is, for the message.
    now : mapping
        What stays the same however often the training is started again, as JSON holds it.

    Raises
    ------
    ValueError
        There are checkpoints, and they are of another training.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     check_same([folder], folder, {"start": None})
    ...     Path(folder, "CKPT+of-then").mkdir()
    ...     check_same([folder], folder, {"start": None})
    """
    path = Path(checkpoints[0], TRAINING)
    begun = any(any(Path(folder).glob("CKPT+*")) for folder in checkpoints)
    if begun and path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = {key: (before[key], now[key]) for key in now.keys() & before.keys()}
        changed = [f"{key}: {a}, now {b}" for key, (a, b) in sorted(other.items()) if a != b]
        if changed:
            raise ValueError(
                f"{path.parent} has checkpoints of another training ({'; '.join(changed)}). Choose "
                f"another output_folder, or remove {output_folder} to start anew."
            )
    text = json.dumps(now, indent=2, ensure_ascii=False) + "\n"
    run_on_main(write_files, args=[{path: text.encode()}])


@contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """Let no other training write these checkpoints meanwhile; the main process sees to it.

    A lock of the operating system: it ends with the process, however that ends.

    Raises
    ------
    ValueError
        Another process trains there.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, alone(folder):  # doctest: +ELLIPSIS
    ...     with alone(folder):
    ...         pass
    Traceback (most recent call last):
    ValueError: ... another process trains there. Wait for it, or choose another output_folder.
    """
    if not if_main_process():
        yield
        return
    os.makedirs(folder, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY)
    try:
        _lock(opened, folder)
        yield
    finally:
        os.close(opened)


def _lock(opened: int, folder: str | Path) -> None:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"{folder}: another process trains there. Wait for it, or choose another output_folder."
        ) from error
    except OSError:  # some network file systems have no locks
        return


def absolute(source: str | Path | None) -> str | None:
    """A checkpoint to start from, named alike from every working directory.

    Example
    -------
    >>> absolute("facebook/wav2vec2-base")
    'facebook/wav2vec2-base'
    >>> absolute(".") == str(Path.cwd())
    True
    """
    if source and Path(source).exists():
        return str(Path(source).resolve())
    return None if source is None else str(source)
