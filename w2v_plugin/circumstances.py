"""What it takes to get figures again: command, commit, versions, hardware, data."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
BLOCK = 2**20  # bytes read at a time: checkpoints are large


def commit() -> str | None:
    """That of the code, "-dirty" if it was changed; None outside of a clone, or without git."""
    if not (ROOT / ".git").exists():  # installed: a repository around it would be another one
        return None
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


COMMIT = commit()  # when the code was loaded: a checkout in the middle of a run does not change it


def circumstances(device: str | torch.device, *files: str | Path) -> dict[str, object]:
    """For the beginning of a `results.json`.

    Parameters
    ----------
    device : str or torch.device
        What the work was done on.
    *files : str or Path
        What the figures depend on, manifests first of all; their contents are hashed. A folder,
        such as that of a model, has one hash for the names and contents of all its files.

    Returns
    -------
    dict
        `commit` is that at the start of the program, see `commit`.

    Example
    -------
    >>> sorted(circumstances("cpu"))
    ['command', 'commit', 'hardware', 'sha256', 'torch', 'versions']
    """
    return {
        "command": shlex.join(sys.argv),
        "commit": COMMIT,
        "torch": torch.__version__,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("speechbrain", "jiwer")},
        },
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, device {_named(device)}",
        "sha256": {str(f): sha256(f) for f in files},
    }


def sha256(path: str | Path) -> str:
    """Hash of a file, or of all files of a folder with their names, in hexadecimal.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.csv").write_bytes(b"")
    ...     sha256(Path(folder, "a.csv"))[:8], sha256(folder)[:8]
    ('e3b0c442', 'ae6bbab2')
    """
    path, digest = Path(path), hashlib.sha256()
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as blocks:
        while block := blocks.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _named(device: str | torch.device) -> str:
    """A GPU with its name, which figures of speed are worth nothing without."""
    cuda = torch.device(device).type == "cuda" and torch.cuda.is_available()
    return f"{device} ({torch.cuda.get_device_name(device)})" if cuda else str(device)
