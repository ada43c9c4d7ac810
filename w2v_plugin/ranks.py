"""Several processes that train one model: sums and choices that all of them share.

Alone, every function here gives back what it got. Together they are collectives: all processes
must call them, in the same order.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized()


def all_sum(x: Tensor) -> Tensor:
    """Sum over ranks, without gradient, in a tensor of its own.

    Example
    -------
    >>> all_sum(torch.tensor([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """
    x = x.detach().clone()
    if distributed():
        dist.all_reduce(x)
    return x


def mixed(x: Tensor, weight: int) -> Tensor:
    """Rows of `x`, each from a random rank, the same on all ranks.

    Parameters
    ----------
    x : Tensor
        (..., dim) candidates of this rank.
    weight : int
        How often this rank is chosen, relative to the others; at least one rank is not 0.

    Returns
    -------
    Tensor
        (..., dim). Rank 0 draws, the others follow.

    Example
    -------
    >>> mixed(torch.tensor([[1.0, 2.0]]), weight=5).tolist()
    [[1.0, 2.0]]
    """
    if not distributed():
        return x
    rank = dist.get_rank()
    weights = torch.zeros(dist.get_world_size(), device=x.device)
    weights[rank] = weight
    rows = x.shape[:-1]
    source = torch.multinomial(all_sum(weights), rows.numel(), replacement=True).view(rows)
    dist.broadcast(source, src=0)
    return all_sum(x.masked_fill((source != rank)[..., None], 0.0))
