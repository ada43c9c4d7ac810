"""How a training begins and ends: hyperparameters, processes, what its user did wrong.

A recipe is `told(name, main, argv)`, and its `main` begins with `join_group` and `read_hparams`.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml.error import MarkedYAMLError

from w2v_plugin.errors import CheckpointNotSaved, DoesNotFit, NotStreamable, TrainingCollapsed
from w2v_plugin.folders import AnyTag
from w2v_plugin.ranks import distributed

POSITIVE = ("updates", "valid_every", "log_every", "batch_s", "crop_s", "max_s")
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
        A key that the file has not, one that is given twice, or a value of another kind than the
        file has: a mapping, no number, a negative one.
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
        check_kinds(file.read(), overrides)
        file.seek(0)
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


def check_kinds(text: str, overrides: str) -> None:
    """ValueError where a number or True or False of a YAML is to become something else.

    Example
    -------
    >>> check_kinds("updates: 4000", "updates: 1e3")
    >>> check_kinds("updates: 4000", "updates: many")
    Traceback (most recent call last):
    ValueError: --updates 'many': expected a number, such as 4000.
    """
    try:
        before, now = (yaml.load(each, AnyTag) or {} for each in (text, overrides))
    except yaml.YAMLError:  # told when it is built
        return
    for key, value in now.items():
        usual = before.get(key)
        if isinstance(usual, bool):
            if not isinstance(value, bool) and value is not None:  # a bare --option is None
                raise ValueError(f"--{key} {value!r}: expected True or False.")
        elif isinstance(usual, (int, float)):
            lowest = "more than 0" if key in POSITIVE else "0 or more" if usual >= 0 else ""
            number = _number(value)
            if not math.isfinite(number):
                raise ValueError(f"--{key} {value!r}: expected a number, such as {usual:g}.")
            if number < 0 <= usual or (key in POSITIVE and number == 0):
                raise ValueError(f"--{key} {value!r}: expected {lowest}, such as {usual:g}.")


def _number(value: Any) -> float:
    """NaN for what is none; 1e-3 is text in PyYAML, and a number in HyperPyYAML."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


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
        More processes than GPUs, with the backend nccl; a device that is not there.
    """
    if "RANK" not in os.environ or "LOCAL_RANK" not in os.environ:
        check_device(run_opts["device"])
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


def check_device(device: str | None) -> None:
    """ValueError where `--device` names none that can be used here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter: PyTorch without CUDA
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {device} cannot be used here: {reason}") from error


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
