"""LoRA: what a language adds to a frozen linear layer, as a product of two thin matrices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from w2v_plugin.linear import linear


class LowRank(nn.Module):
    """alpha / rank * up(down(x)), to be added to what a linear layer makes of x (Hu et al. 2021).

    Without biases, so that it can be added to the layer's weights for good (`update`). A new one
    is zero: `up` starts there, `down` at random.

    Parameters
    ----------
    dim : int
        Inputs and outputs of the layer.
    rank : int
        Width in between.
    alpha : float
        Strength; with alpha / rank in front, other ranks need no other learning rate.

    Raises
    ------
    ValueError
        A rank that is no whole number from 1 to dim, or an alpha that is not positive.

    Example
    -------
    >>> update = LowRank(dim=16, rank=2, alpha=4.0)
    >>> update(torch.randn(1, 10, 16)).abs().max().item()
    0.0
    """

    def __init__(self, dim: int, rank: int, alpha: float) -> None:
        super().__init__()
        if not isinstance(rank, int) or not 1 <= rank <= dim:
            raise ValueError(f"lora_rank={rank!r}, expected a whole number from 1 to dim={dim}.")
        if not isinstance(alpha, (int, float)) or not alpha > 0:
            raise ValueError(f"lora_alpha={alpha!r}, expected a number above 0, as 2 * rank.")
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.empty(rank, dim))
        self.up = nn.Parameter(torch.empty(dim, rank))
        self.reset()

    def reset(self) -> None:
        """Start anew, as nothing."""
        nn.init.kaiming_uniform_(self.down, a=5**0.5)  # what nn.Linear starts from
        nn.init.zeros_(self.up)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> what is to be added to the layer's result."""
        return linear(linear(x, self.down), self.up) * self.scale

    def update(self) -> Tensor:
        """(dim, dim) what is to be added to the layer's weight, for the same result; float64."""
        return self.scale * (self.up.double() @ self.down.double())
