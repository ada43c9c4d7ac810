"""Language adapters: the small part of a multilingual model (MMS) that differs by language."""

from __future__ import annotations

from torch import Tensor, nn


class LanguageAdapter(nn.Module):
    """A bottleneck after a transformer layer: norm, down, ReLU, up (MMS, Pratap et al. 2023).

    Its result is added to its input by the layer. Published models have a width of 16, which
    makes 2 million parameters per language beside the billion that all languages share.

    Parameters
    ----------
    dim : int
        Width of the transformer.
    adapter_dim : int
        Width of the bottleneck.

    Example
    -------
    >>> import torch
    >>> LanguageAdapter(dim=16, adapter_dim=4)(torch.randn(1, 10, 16)).shape
    torch.Size([1, 10, 16])
    """

    def __init__(self, dim: int, adapter_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear_1 = nn.Linear(dim, adapter_dim)
        self.linear_2 = nn.Linear(adapter_dim, dim)

    def reset(self) -> None:
        """Start anew, as nothing: the layer answers as it would without."""
        nn.init.ones_(self.norm.weight)
        nn.init.normal_(self.linear_1.weight, std=0.02)  # as all linear layers of the encoder
        for zero in (self.norm.bias, self.linear_1.bias, *self.linear_2.parameters()):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim) -> what is to be added to it."""
        return self.linear_2(self.linear_1(self.norm(x)).relu())
