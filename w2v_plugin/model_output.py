"""What the models return, and how it is cut into utterances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor


@dataclass
class Wav2Vec2Output:
    """What the models return; frames beyond `frame_lengths` are meaningless."""

    context: Tensor  # (batch, frames, dim)
    frame_lengths: Tensor  # (batch,) valid frames
    hidden_states: tuple[Tensor, ...] | None = None  # layers + 1 of (batch, frames, dim)
    logits: Tensor | None = None  # (batch, frames, vocab), CTC only, before softmax

    def cut(self, row: int, begin: int, end: int) -> Wav2Vec2Output:
        """Some frames of a row, as an output of batch size 1."""

        def part(x: Tensor) -> Tensor:
            return x[row : row + 1, begin:end]

        return Wav2Vec2Output(
            part(self.context),
            self.frame_lengths.new_tensor([end - begin]),
            None if self.hidden_states is None else tuple(map(part, self.hidden_states)),
            None if self.logits is None else part(self.logits),
        )

    def rows(self) -> list[Wav2Vec2Output]:
        """The utterances of a padded batch, each without padding."""
        return [self.cut(i, 0, n) for i, n in enumerate(self.frame_lengths.tolist())]

    def unpack(self, lengths: Sequence[int]) -> list[Wav2Vec2Output]:
        """The utterances of `lengths` frames that are packed into the only row."""
        ends = list(accumulate(lengths))
        return [self.cut(0, end - size, end) for end, size in zip(ends, lengths, strict=True)]
