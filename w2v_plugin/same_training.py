"""An output folder goes on with the training that it was begun with, and with no other one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from speechbrain.utils.distributed import run_on_main

from w2v_plugin.manifests import write_files

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
        other = {key: (before.get(key), value) for key, value in now.items()}
        changed = [f"{key}: {a}, now {b}" for key, (a, b) in other.items() if a != b]
        if changed:
            raise ValueError(
                f"{path.parent} has checkpoints of another training ({'; '.join(changed)}). Choose "
                f"another output_folder, or remove {output_folder} to start anew."
            )
    text = json.dumps(now, indent=2, ensure_ascii=False) + "\n"
    run_on_main(write_files, args=[{path: text.encode()}])


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
