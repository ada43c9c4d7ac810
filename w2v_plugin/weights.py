"""Weights into modules, strictly: whatever is missing, left over or misshapen is an error.

Files are read without executing code from them: safetensors, or `torch.load(weights_only=True)`.

A format differs from us in names only, so one table per format says how *our* parameters are
called there. Import and export both read it in that direction: to load, we ask the file for the
translation of every name we have, and whatever does not fit is told in the file's own words.
Nothing is ever half loaded.

Surprising: the weight norm of the positional convolution has three spellings in the wild
(`weight_g`/`weight_v`, `parametrizations.weight.original0`/`1`, and a plain folded `weight`). A
loader that knows only one leaves positions random, and the model is merely bad.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.int8_files import widen

logger = logging.getLogger(__name__)

Names = Mapping[str, str | None]  # ours -> theirs; {} is a layer's number, None: not there

SHOWN = 10  # keys in an error message


@dataclass
class LoadReport:
    """What became of a checkpoint; `print` it. What is not in here was an error.

    Loading leaves it on the model as `model.load_report`.

    Example
    -------
    >>> print(LoadReport("talk.pt", "fairseq", "Wav2Vec2", 3, {"mask_emb": "mask_embedding"}))
    talk.pt: in the format of fairseq -> Wav2Vec2
      3 tensors read, 1 of them under another name
    """

    source: str
    format: str  # whose names the file has: "transformers", "fairseq", "torchaudio", "w2v_plugin"
    model: str  # class of the model
    read: int  # tensors
    renamed: dict[str, str] = field(default_factory=dict)  # their name -> ours
    ignored: dict[str, str] = field(default_factory=dict)  # their name -> why
    initialized: list[str] = field(default_factory=list)  # ours that the file lacks

    def __str__(self) -> str:
        lines = [
            f"{self.source}: in the format of {self.format} -> {self.model}",
            f"  {self.read} tensors read, {len(self.renamed)} of them under another name",
            *(f"  ignored {name}: {reason}" for name, reason in self.ignored.items()),
            *(f"  not in the file, initial value: {name}" for name in self.initialized),
        ]
        return "\n".join(lines)


def translate(name: str, names: Names) -> str | None:
    """What our parameter is called elsewhere; None if it has no counterpart there.

    Example
    -------
    >>> translate("layers.3.ffn_in.bias", {"layers.{}.ffn_in": "blocks.{}.fc1"})
    'blocks.3.fc1.bias'
    """
    numbers = re.findall(r"\.(\d+)\.", name)
    template = re.sub(r"\.\d+\.", ".{}.", name)
    for ours, theirs in names.items():
        if template == ours or template.startswith(ours + "."):
            return None if theirs is None else theirs.format(*numbers) + template[len(ours) :]
    raise CheckpointMismatch(f"{name} has no name in that format; it holds published shapes only.")


class _NoFilling(TorchFunctionMode):
    """Random initialization does nothing: memory that nobody touches costs neither time nor RAM."""

    FILLING = ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        if func.__name__ in self.FILLING:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def without_values() -> TorchFunctionMode:
    """Where to build a model whose weights are about to be taken over from a file.

    (The meta device would do the same for more: its random numbers and norms are written in
    Python, and importing that takes longer than reading a model.)

    Example
    -------
    >>> with without_values():
    ...     layer = nn.Linear(2, 2)
    >>> state = {"weight": torch.eye(2), "bias": torch.zeros(2)}
    >>> load_strict(layer, state, "an example", take_over=True)
    >>> layer.weight.data_ptr() == state["weight"].data_ptr()
    True
    """
    return _NoFilling()


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
    ignored: Mapping[str, str] | None = None,
    format: str = "w2v_plugin",
    take_over: bool = False,
) -> None:
    """Fill every parameter of `module` from `state_dict`, and use up all of the latter.

    Parameters
    ----------
    module : torch.nn.Module
        Left untouched if anything does not fit.
    state_dict : mapping of str to Tensor
        Any spelling of weight norm, any floating-point type.
    source : str
        Where the weights come from, for messages and the report.
    translate : callable
        Our name -> theirs, or None to keep what the module has.
    optional : collection of str
        Their names that may be absent.
    ignored : mapping of str to str, optional
        Their names that may be there and are not wanted, and why.
    format : str
        Whose names these are, for the report.
    take_over : bool
        Make the tensors of `state_dict` the parameters, instead of copying their values.

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
    >>> print(layer.load_report)
    an example: in the format of w2v_plugin -> Linear
      2 tensors read, 0 of them under another name
    """
    left = {key: why for key, why in (ignored or {}).items() if key in state_dict}
    wanted = {key: tensor for key, tensor in state_dict.items() if key not in left}
    own = module.state_dict()
    theirs = {name: key for name in own if (key := translate(name)) is not None}
    state = _with_weight_norm(wanted, theirs.values())
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
    found = {name: state[key] for name, key in theirs.items() if key in state}
    if take_over:
        found = {name: _owned(tensor.to(own[name].dtype)) for name, tensor in found.items()}
    module.load_state_dict(found, strict=False, assign=take_over)  # strictness was checked above
    module.load_report = LoadReport(  # type: ignore[assignment]
        source,
        format,
        type(module).__name__,
        len(found),
        {theirs[name]: name for name in found if theirs[name] != name},
        left,
        [name for name, key in theirs.items() if key in absent],
    )
    if absent:
        logger.info("%s has no %s; kept the initial values.", source, ", ".join(absent))


def _owned(tensor: Tensor) -> Tensor:
    """Contiguous, and no view that keeps a larger storage alive."""
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


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
    """Tensors of a file, on the CPU; nothing in it is executed.

    Parameters
    ----------
    path : Path
        In safetensors' format if it is called so, else what `torch.save` wrote.

    Returns
    -------
    dict of str to Tensor
        Those in half precision or INT8 are widened to float32. They are read, not mapped: the
        file may be replaced or deleted afterwards.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    CheckpointMismatch
        It is damaged, wants to execute code, or holds something else.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"bias": torch.ones(2).half()}, Path(folder, "weights.pt"))
    ...     read_weights(Path(folder, "weights.pt"))
    {'bias': tensor([1., 1.])}
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Expected a file of weights.")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path, backend="pread")
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damage shows anywhere, as any of them
        what = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointMismatch(
            f"{path}: not readable as plain weights ({what}). Is the file complete? Copy or "
            "download it again."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointMismatch(
            f"{path}: holds a {type(state).__name__} of other things, expected a state dict "
            "(names and tensors). Save `module.state_dict()`."
        )
    for key, tensor in state.items():  # one by one, so that there are never two whole copies
        if tensor.dtype in (torch.float16, torch.bfloat16):
            state[key] = tensor.float()
    widen(state)
    return state
