"""What it takes to get figures again: command, commit, versions, hardware."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def circumstances(device: str | torch.device, *files: str | Path) -> dict[str, object]:
    """For the beginning of a `results.json`.

    Parameters
    ----------
    device : str or torch.device
        What the work was done on.
    *files : str or Path
        What the figures depend on, manifests first of all; their contents are hashed.

    Returns
    -------
    dict
        `commit` is None outside of a repository, and ends in "-dirty" where the code had changed.

    Example
    -------
    >>> sorted(circumstances("cpu"))
    ['command', 'commit', 'hardware', 'sha256', 'torch']
    """
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return {
        "command": shlex.join(sys.argv),
        "commit": done.stdout.strip() or None,
        "torch": torch.__version__,
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, device {device}",
        "sha256": {str(f): hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in files},
    }
