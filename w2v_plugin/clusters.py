"""Units without a quantizer: k-means on the frames of a layer, or on MFCCs, the classical baseline.

Fitting is scikit-learn's (optional: `pip install "w2v_plugin[units]"`); a fitted `KMeans` is a
small file of plain numbers and needs nothing but PyTorch.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
import torchaudio
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from w2v_plugin.frames import HOP, RECEPTIVE_FIELD, SAMPLE_RATE, frame_lengths

SHIFT = HOP // 2  # samples between MFCC frames: 10 ms


class KMeans(nn.Module):
    """Nearest of some centres.

    Parameters
    ----------
    centres : Tensor
        (clusters, dim).
    layer : int or str
        What it was fitted on: the output of this layer (0: input of the first, -1: context), or
        the name of something else, as "mfcc".

    Example
    -------
    >>> kmeans = KMeans(torch.tensor([[0.0, 0.0], [9.0, 9.0]]), layer=6)
    >>> kmeans(torch.tensor([[1.0, 2.0], [8.0, 7.0]])).tolist()
    [0, 1]
    """

    def __init__(self, centres: Tensor, layer: int | str) -> None:
        super().__init__()
        self.layer = layer
        self.centres: Tensor
        self.register_buffer("centres", centres)

    def forward(self, frames: Tensor) -> Tensor:
        """(..., dim) -> (...) int64."""
        return torch.cdist(frames.to(self.centres.dtype), self.centres).argmin(-1)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        kind = {"kind": "k-means", "layer": str(self.layer)}
        save_file({"centres": self.centres.contiguous()}, str(path), kind)

    @classmethod
    def load(cls, path: str | Path) -> KMeans:
        """Read a file of `save`; nothing in it is executed.

        Raises
        ------
        ValueError
            It is another kind of file.
        FileNotFoundError
            There is none.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file.")
        try:
            with safe_open(str(path), framework="pt") as file:
                layer = (file.metadata() or {})["layer"]
                number = int(layer) if re.fullmatch(r"-?\d+", layer) else layer
                return cls(file.get_tensor("centres"), number)
        except (SafetensorError, KeyError) as error:
            raise ValueError(
                f"{path}: no k-means of ours. recipes/units.py writes such files."
            ) from error


def fit_kmeans(frames: np.ndarray, clusters: int, layer: int | str, *, seed: int = 0) -> KMeans:
    """Mini-batch k-means (Sculley 2010), k-means++ starts, the best of three.

    Parameters
    ----------
    frames : ndarray
        (frames, dim) float32, of many utterances.
    clusters : int
        How many centres.
    layer : int or str
        What the frames are, see `KMeans`.
    seed : int
        The same frames and seed give the same centres.

    Raises
    ------
    ValueError
        Fewer frames than clusters.
    ImportError
        scikit-learn is missing.

    Example
    -------
    >>> generator = np.random.default_rng(0)
    >>> frames = np.concatenate([generator.normal(at, 0.1, (50, 2)) for at in (-3, 0, 3)])
    >>> len(set(fit_kmeans(frames, 3, "mfcc").centres[:, 0].round().tolist()))
    3
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise ImportError('k-means needs scikit-learn: pip install "w2v_plugin[units]".') from error
    if len(frames) < clusters:
        raise ValueError(f"{len(frames)} frames for {clusters} clusters: give more audio to fit.")
    fit = MiniBatchKMeans(
        clusters, batch_size=10_000, max_iter=100, n_init=3, reassignment_ratio=0, random_state=seed
    ).fit(frames)
    return KMeans(torch.from_numpy(fit.cluster_centers_).float(), layer)


def mfcc_frames(wav: Tensor, *, normalize: bool = False) -> Tensor:
    """39 numbers for each of the model's frames: MFCCs, their deltas, and deltas of those.

    Kaldi's 13 MFCCs (windows of 25 ms every 10 ms), pairs averaged. The pairs are placed so that
    each has its middle where the model's frame has its own.

    Parameters
    ----------
    wav : Tensor
        (samples,) at 16 kHz, at least one frame (25 ms).
    normalize : bool
        Zero mean and unit variance of each number over the utterance, which takes out much of the
        voice and makes this a harder baseline than the one that is usually published.

    Returns
    -------
    Tensor
        (frames, 39).

    Example
    -------
    >>> mfcc_frames(torch.randn(16000)).shape
    torch.Size([49, 39])
    """
    frames = frame_lengths(len(wav))
    padded = nn.functional.pad(wav, (SHIFT // 2, SHIFT // 2))
    static = torchaudio.compliance.kaldi.mfcc(
        padded[None],
        sample_frequency=SAMPLE_RATE,
        frame_length=1000 * RECEPTIVE_FIELD / SAMPLE_RATE,
        frame_shift=1000 * SHIFT / SAMPLE_RATE,
        dither=0.0,
    ).T
    first = torchaudio.functional.compute_deltas(static)
    every = torch.cat([static, first, torchaudio.functional.compute_deltas(first)]).T
    pairs = every[: 2 * frames].unflatten(0, (frames, 2)).mean(1)
    if not normalize:
        return pairs
    return (pairs - pairs.mean(0)) / pairs.std(0, correction=0).clamp(min=1e-5)
