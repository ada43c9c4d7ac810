"""Weights into modules, strictly: whatever is missing, left over or misshapen is an error.

Files are read without executing code from them: safetensors, or `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from w2v_plugin.errors import CheckpointMismatch

logger = logging.getLogger(__name__)

SHOWN = 10  # keys in an error message


def load_state(module: nn.Module, path: str | Path, *args: Any) -> None:
    """Fill `module` from one of our `.ckpt` files; a hook for SpeechBrain's `Pretrainer`.

    The file is read without executing code from it. Further arguments (SpeechBrain's
    checkpointer passes some) are ignored.
    """
    load_strict(module, read_weights(Path(path)), str(path))


def load_strict(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    source: str,
    *,
    translate: Callable[[str], str | None] = str,
    optional: Collection[str] = (),
) -> None:
    """Fill every parameter of `module` from `state_dict`, and use up all of the latter.

    Parameters
    ----------
    module : torch.nn.Module
        Left untouched if anything does not fit.
    state_dict : mapping of str to Tensor
        Any spelling of weight norm, any floating-point type.
    source : str
        Where the weights come from, for the message.
    translate : callable
        Our name -> theirs, or None to keep what the module has.
    optional : collection of str
        Their names that may be absent.

    Raises
    ------
    CheckpointMismatch
        Names the missing, unknown and misshapen keys.

    Example
    -------
    >>> layer = nn.Linear(2, 2)
    >>> load_strict(layer, {"weight": torch.eye(2), "bias": torch.zeros(2)}, "an example")
    >>> layer(torch.ones(1, 2)).tolist()
    [[1.0, 1.0]]
    """
    own = {k: v for k, v in module.state_dict().items() if translate(k) is not None}
    theirs = {name: str(translate(name)) for name in own}
    state = _with_weight_norm(state_dict, theirs.values())
    absent = [key for key in theirs.values() if key not in state]
    problems = {
        "missing": [key for key in absent if key not in optional],
        "unknown": sorted(set(state) - set(theirs.values())),
        "misshapen": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[name].shape)}"
            for name, key in theirs.items()
            if key in state and state[key].shape != own[name].shape
        ],
    }
    if any(problems.values()):
        raise CheckpointMismatch(_describe(source, type(module).__name__, problems))
    if absent:
        logger.info("%s has no %s; kept the initial values.", source, ", ".join(absent))
    found = {name: state[key] for name, key in theirs.items() if key in state}
    module.load_state_dict(found, strict=False)  # strictness is what was checked above


def _describe(source: str, module: str, problems: Mapping[str, list[str]]) -> str:
    parts = []
    for kind, keys in problems.items():
        if keys:
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            parts.append(f"{len(keys)} {kind}: {', '.join(keys[:SHOWN])}{more}")
    return (
        f"{source} does not fit {module}. {'; '.join(parts)}. Build the model with the shapes "
        "that the weights were trained with, or check that the file belongs to this model."
    )


def _with_weight_norm(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Legacy and folded weight norm, respelled where a parametrized one is expected."""
    state = dict(state)
    for key in expected:
        stem = key.removesuffix("parametrizations.weight.original0")
        if stem == key:
            continue
        g, v = key, stem + "parametrizations.weight.original1"
        for legacy, name in ((stem + "weight_g", g), (stem + "weight_v", v)):
            if legacy in state:
                state[name] = state.pop(legacy)
        if stem + "weight" in state and g not in state and v not in state:
            weight = state.pop(stem + "weight").float()
            state[g] = weight.norm(dim=(0, 1), keepdim=True)  # one norm per tap
            state[v] = torch.where(state[g] == 0, 1.0, weight)  # a zero tap: 0 * 1, not 0 / 0
    return state


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, on the CPU; nothing in it is executed."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Expected a file of weights.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointMismatch(
            f"{path}: not readable as plain weights ({str(error).splitlines()[0]}). Is the file "
            "complete? Copy or download it again."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointMismatch(
            f"{path}: holds a {type(state).__name__} of other things, expected a state dict "
            "(names and tensors). Save `module.state_dict()`."
        )
    return state
