"""How a training begins and ends: hyperparameters, processes, what its user did wrong.

A recipe is `told(name, main, argv)`, and its `main` begins with `join_group` and `read_hparams`.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml.error import MarkedYAMLError

from w2v_plugin.errors import CheckpointNotSaved, DoesNotFit, NotStreamable, TrainingCollapsed
from w2v_plugin.ranks import distributed

OURS = (CheckpointNotSaved, DoesNotFit, NotStreamable, TrainingCollapsed)
PATIENCE = timedelta(minutes=10)  # of a rank that waits for another one


def told(name: str, run: Callable[[list[str]], Any], argv: list[str]) -> int:
    """Run a training as a command: what its user can mend is one line on stderr.

    Parameters
    ----------
    name : str
        Of the command, for that line.
    run : callable
        What trains.
    argv : list of str
        Its arguments.

    Returns
    -------
    int
        The exit status: 0, 2 after a mistake, 130 after Ctrl-C.

    Example
    -------
    >>> told("example", lambda argv: None, [])
    0
    """
    try:
        run(argv)
    except (OSError, ValueError, *OURS) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: stopped. Started again, it goes on from its checkpoint.", file=sys.stderr)
        return 130
    leave_group()
    return 0


def read_hparams(path: str | Path, overrides: str = "") -> dict[str, Any]:
    """Build what a YAML describes.

    Parameters
    ----------
    path : str or Path
        Such as `hparams/ctc/tiny.yaml`.
    overrides : str
        YAML of the keys that shall be otherwise, as `speechbrain.parse_arguments` returns it.

    Raises
    ------
    ValueError
        A key that the file has not, one that is given twice, or a mapping in place of a value.
    OSError
        There is no such file.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "x.yaml").write_text("updates: 10")
    ...     read_hparams(Path(folder, "x.yaml"), "updates: 20")
    {'updates': 20}
    """
    with open(path, encoding="utf-8") as file:
        try:
            return load_hyperpyyaml(file, overrides)
        except KeyError as error:  # says which key, and those that there are
            raise ValueError(f"{path}: {error.args[0]}") from error
        except MarkedYAMLError as error:
            raise ValueError(f"{path}, or an option: {error.problem}") from error
        except ValueError as error:
            if "structure of the overrides" not in str(error):
                raise
            raise ValueError(
                f"{path}: an option is a mapping where the file has one value, or the other way "
                f"round: {error.args[-1]}"
            ) from error


def join_group(run_opts: Any) -> None:
    """Begin a process of a distributed run, if `torchrun` started it.

    As SpeechBrain's `ddp_init_group`, but a rank that waits for a lost one gives up after
    `PATIENCE` and not after two hours. Tested with gloo; nccl is written for GPUs.

    Parameters
    ----------
    run_opts : RunOptions
        As `speechbrain.parse_arguments` returns them; `distributed_backend` counts.

    Raises
    ------
    ValueError
        More processes than GPUs, with the backend nccl.
    """
    if "RANK" not in os.environ or "LOCAL_RANK" not in os.environ:
        return
    backend, local_rank = run_opts["distributed_backend"], int(os.environ["LOCAL_RANK"])
    if backend == "nccl":
        gpus = torch.cuda.device_count()
        if local_rank >= gpus:
            raise ValueError(
                f"Process {local_rank + 1} of this machine, which has {gpus} GPUs. Start one "
                "process per GPU, or on CPUs add --device=cpu --distributed_backend=gloo."
            )
        torch.cuda.set_device(local_rank)
    torch.distributed.init_process_group(backend, timeout=PATIENCE)


def leave_group() -> None:
    """End a process of a distributed run, here and now; the last line of a recipe.

    The threads of gloo touch Python objects and outlive `destroy_process_group`, because
    `DistributedDataParallel` leaves a reference to the group behind. Python does not wait for them,
    and what they touch then may be gone: some runs aborted after
    all was done.
    """
    if distributed():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
