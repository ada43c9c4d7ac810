"""Speech to code indices behind a three-line call: `Wav2Vec2Units`.

    wavs ─ extract ─► latents ─ quantizer ─► codes        what pretraining compares its context with
              └─ encoder ─► a layer ─ k-means ─► codes    any model, with a `KMeans` fitted on it

The quantizer hears 25 ms and no context, so its codes need no encoder and come fast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from w2v_plugin.audio import check_batch
from w2v_plugin.batching import over_files
from w2v_plugin.checkpoints import AnyModel
from w2v_plugin.clusters import KMeans
from w2v_plugin.conversion import open_any
from w2v_plugin.errors import BadAudio
from w2v_plugin.frames import HOP
from w2v_plugin.loading import Interface, PathLike
from w2v_plugin.pooling import pick_layers
from w2v_plugin.pretraining import Wav2Vec2Pretraining

if TYPE_CHECKING:
    from typing_extensions import Self


class Wav2Vec2Units(Interface):
    """Speech to discrete units, from the quantizer of a pretrained model or from k-means.

    Example
    -------
    >>> import tempfile
    >>> from w2v_plugin.folders import save_pretrained
    >>> from w2v_plugin.model import Wav2Vec2
    >>> from w2v_plugin.quantizer import GumbelQuantizer
    >>> tiny = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    >>> model = Wav2Vec2Pretraining(tiny, GumbelQuantizer(8, codes=20, dim=8), dim=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(folder, model)
    ...     units = Wav2Vec2Units.from_hparams(folder, run_opts={"device": "cpu"})
    >>> units.sizes, units.encode(torch.randn(16000)).shape
    ((20, 20), (49, 2))
    """

    MODULES_NEEDED = ["wav2vec2"]  # noqa: RUF012 (SpeechBrain's convention)

    @classmethod
    def from_hparams(
        cls,
        source: PathLike,
        hparams_file: str = "hyperparams.yaml",
        *,
        language: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a model folder written by our recipes.

        Parameters
        ----------
        source : str or Path
            The folder. Its YAML file is read as plain data; nothing in it is executed.
        hparams_file : str
            Not for choice here.
        language : str, optional
            Of a folder of languages, see `set_language`.
        **kwargs
            `run_opts`, as for the other interfaces.

        Raises
        ------
        FileNotFoundError, CheckpointMismatch
            As `open_folder`.
        """
        model, _ = open_any(source, language)
        return cls(*cls._adopt(model, source, None), **kwargs)

    @classmethod
    def _adopt(
        cls, model: AnyModel, source: PathLike, language: str | None
    ) -> tuple[dict[str, nn.Module], dict[str, Any]]:
        modules: dict[str, nn.Module] = {"wav2vec2": getattr(model, "wav2vec2", model)}
        if isinstance(model, Wav2Vec2Pretraining):
            modules["quantizer"] = model.quantizer
        return modules, {}

    @property
    def kmeans(self) -> KMeans | None:
        """What `use` was given."""
        return getattr(self.mods, "kmeans", None)

    def use(self, kmeans: KMeans) -> None:
        """Give the clusters of a layer from now on.

        Raises
        ------
        ValueError
            They are of another kind of vectors than this model has.
        """
        body = self.mods["wav2vec2"]
        layers, dim = len(body.encoder.layers), kmeans.centres.shape[1]
        if isinstance(kmeans.layer, str):
            raise ValueError(f"These clusters are of {kmeans.layer}, expected those of a layer.")
        if dim != body.dim or not -1 <= kmeans.layer <= layers:
            raise ValueError(
                f"These clusters are of layer {kmeans.layer}, {dim} wide; this model has {layers} "
                f"layers, {body.dim} wide. Fit clusters for it with recipes/units.py."
            )
        self.mods["kmeans"] = kmeans.to(self.choice.device)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many codes each group has; k-means is one group.

        Raises
        ------
        ValueError
            The model has no quantizer, and no k-means is in use.
        """
        if self.kmeans is not None:
            return (len(self.kmeans.centres),)
        if "quantizer" not in self.mods:
            raise ValueError(
                "this model has no quantizer: it was not saved by pretraining, or fine-tuned "
                "since. Use k-means on one of its layers, which recipes/units.py fits."
            )
        quantizer = self.mods["quantizer"]
        return (quantizer.codes,) * quantizer.groups

    def encode(self, wav: Tensor) -> np.ndarray:
        """Codes of a waveform (samples,) at 16 kHz: (frames, groups) int64, 50 frames a second."""
        return self._codes(self._features([wav]))[0]

    def encode_file(self, path: PathLike) -> np.ndarray:
        """Codes of one audio file; see `read_audio`, which also raises the errors."""
        _, codes = next(self.encode_files([path]))
        if isinstance(codes, BadAudio):
            raise codes
        return codes

    def encode_files(
        self, paths: Iterable[PathLike], *, batch_s: float = 60.0
    ) -> Iterator[tuple[PathLike, np.ndarray | BadAudio]]:
        """Codes of many files, in their order; a bad file does not stop the others.

        Parameters
        ----------
        paths : iterable of str or Path
            Read as they are needed; any format, length, rate and number of channels.
        batch_s : float
            Seconds of audio per batch.

        Yields
        ------
        tuple
            The path, and (frames, groups) int64 or the `BadAudio` that says what is wrong.
        """

        def long(blocks: Iterator[Tensor]) -> np.ndarray:
            windows = (self._features([wav])[0] for wav in self.windows.cut(blocks))
            return self._codes([torch.cat(list(self.windows.join(windows)))])[0]

        return over_files(
            paths,
            lambda wavs: self._codes(self._features(wavs)),
            long,
            longest_s=self._longest_s,
            batch_s=batch_s,
            padded=not self._packs,
        )

    @torch.inference_mode()
    def _features(self, wavs: list[Tensor]) -> list[Tensor]:
        """What is quantized: (frames, dim) of each waveform, float32."""
        if self.kmeans is not None:
            outs = self._run(wavs, output_hidden_states=True)
            return [pick_layers(out, int(self.kmeans.layer))[0].float() for out in outs]
        model = self.mods["wav2vec2"]
        if math.prod(model.extractor.strides) != HOP:
            raise ValueError(
                f"The frames of this model are {math.prod(model.extractor.strides)} samples apart, "
                f"units are made for {HOP}."
            )
        if self._packs:
            latents, lengths = model.extract_packed([wav.float() for wav in wavs])
            rows = latents[0].split(lengths)
        else:
            samples = torch.tensor([len(wav) for wav in wavs], dtype=torch.float64)
            batch = nn.utils.rnn.pad_sequence(list(wavs), batch_first=True)
            wav_lens = samples / batch.shape[1]
            latents, lengths = model.extract(*check_batch(batch, wav_lens, self.choice.device))
            rows = [row[:size] for row, size in zip(latents, lengths.tolist(), strict=True)]
        return [model.projection.norm(row).float() for row in rows]

    @torch.inference_mode()
    def _codes(self, features: list[Tensor]) -> list[np.ndarray]:
        """(frames, groups) of each, computed together: nothing here looks beyond a frame."""
        packed = torch.cat(features)
        if not bool(packed.isfinite().all()):
            raise FloatingPointError(
                f"The model gave NaN or infinity in {self.choice.precision}. Use "
                'precision="bf16" or "fp32".'
            )
        if self.kmeans is not None:
            codes = self.kmeans(packed)[:, None]
        else:
            codes = self.mods["quantizer"](packed).codes
        lengths = [len(rows) for rows in features]
        return [part.cpu().numpy() for part in codes.split(lengths)]
