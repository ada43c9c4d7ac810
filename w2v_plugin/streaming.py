"""What an encoder must remember between two packets of audio: plain data, passed in and out.

    packet ─► wavs ─ extractor ─ projection ─► positions ─► attention of each layer ─► context
               │                                 │                  │
            80 samples and an               `past` frames      keys and values of
            unfinished chunk                                   `left` frames

The contract, for every split of a waveform into packets, every length and every batch:

    concatenated outputs of `step` == output of `forward` for the whole, same `ChunkConfig`

Nothing else is remembered, because nothing else looks beyond a frame: the extractor is unpadded, so
that a frame hears 400 samples and no more; the positional convolution reads 64 frames (of the input
of the first layer, so that they need not be computed again); attention reads keys and values. No
table of positions ends, and with a limited `left` the state of an hour is that of ten seconds.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from w2v_plugin.attention import Memory
from w2v_plugin.errors import CheckpointMismatch


@dataclass(frozen=True)
class EncoderState:
    """What streams remember. Made by `Wav2Vec2.init_state`, changed by `Wav2Vec2.step`.

    A state is never changed in place: keep an old one, and go on from it again.

    Parameters
    ----------
    wavs : Tensor
        (streams, samples) not yet part of a whole chunk, padded at the end.
    samples : tuple of int
        Those of each stream that are no padding.
    past : Tensor
        (streams, past, dim) input of the encoder at the frames before; zero before the first one.
    keys, values : tuple of Tensor
        Of each layer, (streams, heads, frames, d); shorter ones are padded at the *front*.
    kept : tuple of int
        Frames of each stream in `keys` and `values` that are no padding.
    frames : tuple of int
        Frames that each stream has given out.

    Example
    -------
    >>> from w2v_plugin import ChunkConfig
    >>> from w2v_plugin.model import Wav2Vec2
    >>> model = Wav2Vec2(
    ...     dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7, positions_kernel=8,
    ...     extractor_norm="layer", normalize=False,
    ... ).eval()
    >>> state = model.init_state(batch=2)
    >>> _, state = model.step(torch.randn(2, 16000), state, ChunkConfig(chunk=16, left=32))
    >>> state.frames, state.kept, state.samples
    ((48, 48), (32, 32), (640, 640))
    """

    wavs: Tensor
    samples: tuple[int, ...]
    past: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    kept: tuple[int, ...]
    frames: tuple[int, ...]

    def __len__(self) -> int:
        """Number of streams."""
        return len(self.samples)

    @property
    def nbytes(self) -> int:
        """Memory that the tensors hold."""
        tensors = (self.wavs, self.past, *self.keys, *self.values)
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    @property
    def form(self) -> str:
        """What two states must share to be of one model."""
        heads, d = self.keys[0].shape[1], self.keys[0].shape[3]
        dtype = str(self.past.dtype).removeprefix("torch.")
        return (
            f"{len(self.keys)} layers of {heads} heads of {d}, {self.past.shape[1]} frames before, "
            f"{dtype} on {self.past.device}"
        )

    def to(self, *args: Any, **kwargs: Any) -> EncoderState:
        """On another device, as `Tensor.to`."""
        return replace(
            self,
            wavs=self.wavs.to(*args, **kwargs),
            past=self.past.to(*args, **kwargs),
            keys=tuple(tensor.to(*args, **kwargs) for tensor in self.keys),
            values=tuple(tensor.to(*args, **kwargs) for tensor in self.values),
        )

    def select(self, streams: Sequence[int]) -> EncoderState:
        """Some of the streams, in this order, without padding that only others needed."""
        self._check_numbers(streams)
        samples, kept, frames = (
            tuple(numbers[i] for i in streams) for numbers in (self.samples, self.kept, self.frames)
        )
        index = torch.tensor(streams, dtype=torch.long, device=self.wavs.device)
        all_of_them = list(streams) == list(range(len(self)))

        def pick(x: Tensor) -> Tensor:
            return x if all_of_them else x.index_select(0, index)

        begin = self.keys[0].shape[2] - max(kept, default=0)
        return EncoderState(
            pick(self.wavs[:, : max(samples, default=0)]),
            samples,
            pick(self.past),
            tuple(pick(keys[:, :, begin:]) for keys in self.keys),
            tuple(pick(values[:, :, begin:]) for values in self.values),
            kept,
            frames,
        )

    @staticmethod
    def stack(states: Sequence[EncoderState]) -> EncoderState:
        """Streams of any age, of one model, as one batch.

        Raises
        ------
        CheckpointMismatch
            They are of different models.
        """
        if len(states) == 1:
            return states[0]
        if len(forms := {state.form for state in states}) > 1:
            raise CheckpointMismatch(f"States of different models: {'; '.join(sorted(forms))}.")

        def joined(name: str) -> tuple[int, ...]:
            return tuple(number for state in states for number in getattr(state, name))

        def level(tensors: Sequence[Tensor]) -> Tensor:
            longest = max(tensor.shape[2] for tensor in tensors)
            return torch.cat([F.pad(x, (0, 0, longest - x.shape[2], 0)) for x in tensors])

        longest = max(state.wavs.shape[1] for state in states)
        return EncoderState(
            torch.cat([F.pad(state.wavs, (0, longest - state.wavs.shape[1])) for state in states]),
            joined("samples"),
            torch.cat([state.past for state in states]),
            tuple(level(layer) for layer in zip(*(state.keys for state in states), strict=True)),
            tuple(level(layer) for layer in zip(*(state.values for state in states), strict=True)),
            joined("kept"),
            joined("frames"),
        )

    def unstack(self) -> list[EncoderState]:
        """Each stream alone."""
        return [self.select([i]) for i in range(len(self))]

    def reset(self, streams: Sequence[int]) -> EncoderState:
        """Let some of the streams begin anew; the others go on."""
        self._check_numbers(streams)

        def anew(numbers: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(0 if i in streams else number for i, number in enumerate(numbers))

        state = replace(
            self, samples=anew(self.samples), kept=anew(self.kept), frames=anew(self.frames)
        ).select(range(len(self)))
        gone = torch.zeros(len(self), dtype=torch.bool)
        gone[list(streams)] = True
        gone = gone.to(self.past.device)

        def erase(x: Tensor) -> Tensor:
            """Not only hidden by a mask: after bad audio there are NaN, and NaN * 0 is NaN."""
            return x.masked_fill(gone.view(-1, *(1,) * (x.dim() - 1)), 0.0)

        return replace(
            state,
            past=erase(state.past),
            keys=tuple(map(erase, state.keys)),
            values=tuple(map(erase, state.values)),
        )

    def _check_numbers(self, streams: Sequence[int]) -> None:
        if unknown := [i for i in streams if not 0 <= i < len(self)]:
            raise IndexError(f"Streams {unknown}: expected 0 to {len(self) - 1}.")

    def save(self, path: str | Path) -> None:
        """Write a file for `load`, as to go on in another process."""

        def whole(x: Any) -> Any:
            """Of a view, `torch.save` would write all that it is a view of."""
            return x.clone() if isinstance(x, Tensor) else x

        stored = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in stored.items():
            stored[name] = tuple(map(whole, value)) if isinstance(value, tuple) else whole(value)
        torch.save(stored, path)

    @classmethod
    def load(cls, path: str | Path) -> EncoderState:
        """Read a file of `save`, onto the CPU; nothing in it is executed.

        Raises
        ------
        CheckpointMismatch
            It is another kind of file.
        """
        try:
            return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, EOFError, KeyError, RuntimeError, TypeError) as error:
            raise CheckpointMismatch(
                f"{path} is no saved stream. Expected a file of EncoderState.save."
            ) from error

    # --- what `Wav2Vec2.step` does with it -----------------------------------------------------

    def hear(self, wavs: Tensor, lengths: Sequence[int]) -> EncoderState:
        """Add a packet (streams, samples), of which `lengths` are no padding."""
        wavs = wavs.to(self.wavs)
        if len({*self.samples}) == 1 and all(n == wavs.shape[1] for n in lengths):
            joined = torch.cat([self.wavs, wavs], dim=1)
        else:
            pairs = zip(self.wavs, self.samples, wavs, lengths, strict=True)
            joined = pad_sequence([torch.cat([a[:m], b[:n]]) for a, m, b, n in pairs], True)
        samples = tuple(m + n for m, n in zip(self.samples, lengths, strict=True))
        return replace(self, wavs=joined, samples=samples)

    def memories(self, counts: Sequence[int]) -> list[Memory]:
        """What each layer knows before a chunk, of which each stream has `counts` frames."""
        kept, chunk = self.keys[0].shape[2], max(counts)
        mask = None
        if min(self.kept) < kept or min(counts) < chunk:
            begin = torch.tensor([kept - n for n in self.kept])[:, None]
            end = torch.tensor([kept + n for n in counts])[:, None]
            key = torch.arange(kept + chunk)
            mask = ((key >= begin) & (key < end))[:, None, None].to(self.past.device)
        pairs = zip(self.keys, self.values, strict=True)
        return [Memory(keys, values, mask) for keys, values in pairs]

    def advance(
        self, samples: int, x: Tensor, memories: Sequence[Memory], left: int | None
    ) -> EncoderState:
        """After a chunk: forget what no later one hears.

        Parameters
        ----------
        samples : int
            Hops of all frames of the chunk.
        x : Tensor
            (streams, chunk, dim) input of the encoder.
        memories : sequence of Memory
            Of the layers, extended by the chunk.
        left : int or None
            Frames before a chunk that it sees.
        """
        chunk, known = x.shape[1], memories[0].keys.shape[2]
        kept = tuple(n + chunk if left is None else min(n + chunk, left) for n in self.kept)
        begin = known - max(kept)
        return EncoderState(
            self.wavs[:, samples:],
            tuple(max(n - samples, 0) for n in self.samples),
            torch.cat([self.past, x], dim=1)[:, chunk:].clone(),
            tuple(memory.keys[:, :, begin:] for memory in memories),
            tuple(memory.values[:, :, begin:] for memory in memories),
            kept,
            tuple(n + chunk for n in self.frames),
        )
