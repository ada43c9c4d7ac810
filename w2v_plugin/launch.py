"""How the processes of a distributed run meet and part."""

from __future__ import annotations

import atexit
import os
import sys
from datetime import timedelta
from typing import Any

import torch

from w2v_plugin.ranks import distributed

PATIENCE = timedelta(minutes=10)  # of a rank that waits for another one


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
