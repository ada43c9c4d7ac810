"""Pictures of units: which phone each one means, and how often each one occurs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from w2v_plugin.purity import JointCounts

RARE = 5  # frames: a unit with fewer shows little but chance


def heat_map(joint: JointCounts, title: str, path: str | Path) -> None:
    """P(phone | unit): phones from the commonest one down, units in the order of their phones.

    Parameters
    ----------
    joint : JointCounts
        Frames by phone and unit. Units with fewer than `RARE` frames are left out.
    title : str
        Above the picture.
    path : str or Path
        The PNG file.

    Example
    -------
    >>> import tempfile
    >>> joint = JointCounts(np.array([[9, 1], [0, 7]]), np.array(["a", "b"]), np.array([0, 4]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     heat_map(joint, "two units", Path(folder, "map.png"))
    ...     Path(folder, "map.png").stat().st_size > 1000
    True
    """
    counts = joint.counts
    commonest = np.argsort(-counts.sum(1), kind="stable")
    often = counts.sum(0) >= RARE
    shares = counts[commonest][:, often] / counts[:, often].sum(0)
    if shares.size:
        shares = shares[:, np.lexsort((-shares.max(0), shares.argmax(0)))]
    size = (9, 1.2 + 0.17 * len(counts))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    image = axis.imshow(
        shares, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=1
    )
    axis.set_yticks(range(len(counts)), joint.phones[commonest], fontsize=8)
    left_out = f", {(~often).sum()} rarer ones left out" if not often.all() else ""
    axis.set_xlabel(f"{shares.shape[1]} units that occur in {RARE} frames or more{left_out}")
    axis.set_ylabel("phone, the commonest first")
    axis.set_title(title)
    figure.colorbar(image, label="P(phone | unit)", fraction=0.03, pad=0.01)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def usage_curves(panels: Mapping[str, Mapping[str, np.ndarray]], path: str | Path) -> None:
    """How often each unit occurs, the commonest first.

    Parameters
    ----------
    panels : mapping of str to (mapping of str to ndarray)
        Title of a panel -> name of a curve -> frames of each unit that occurs.
    path : str or Path
        The PNG file.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     usage_curves({"model": {"group 0": np.array([5, 9])}}, Path(folder, "usage.png"))
    ...     Path(folder, "usage.png").stat().st_size > 1000
    True
    """
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(max(3.2 * len(panels), 4.5), 3.6),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for name, counts in curves.items():
            shares = np.sort(counts)[::-1] / counts.sum()
            style = "-" if name.startswith("group") else ":"
            axis.plot(range(1, len(shares) + 1), 100 * shares, style, label=name)
        axis.set(title=title, xlabel="unit, the commonest first", yscale="log")
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("% of all frames")
    figure.savefig(path, dpi=120)
    plt.close(figure)
