"""Pickled checkpoints as plain data; nothing in them is executed.

A pickle names functions and calls them, so whoever writes one decides what its reader runs.
Checkpoints of fairseq cannot do without: beside the weights they hold its own objects and
omegaconf's. Here a file may name two kinds of things only, and the reading itself is left to
PyTorch's restricted unpickler (`weights_only`), which knows no other names either:

- the pieces of tensors, which PyTorch rebuilds;
- classes of libraries that write checkpoints. They are not imported: an inert `Record` keeps what
  the object was made from, and is then replaced by the values that it carried.

Surprising: the names are collected before anything is read, so that the error lists all of the
foreign ones. It is not what the safety rests on.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch

from w2v_plugin.errors import CheckpointMismatch

ZIP = b"PK\x03\x04"  # first bytes of what torch.save has written since 1.6
LEGACY_PICKLES = 4  # of an older file: magic number, version, machine, content; then raw numbers
PROTOCOL = 2  # what torch.save writes, and all that the restricted unpickler reads

# Left to PyTorch, which checks them once more.
TENSORS = re.compile(
    r"torch\.(_utils\._rebuild_\w+|(cuda\.|storage\.)?\w+Storage|nn\.parameter\.Parameter|Size"
    r"|device|bool|b?float\d+|u?int\d+)"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|bytearray|complex)"
)
# Stood in for: configurations, dictionaries, enumerations, annotations, NumPy's numbers.
INERT = re.compile(
    r"(fairseq|examples|omegaconf|typing|numpy)\.[\w.]+|argparse\.Namespace|pathlib\.\w*Path"
    r"|collections\.defaultdict|_operator\.getitem"
    r"|builtins\.(bool|bytes|dict|float|int|list|object|str|tuple|type)"
)
DEFAULTDICT = "collections.defaultdict"


class Record:
    """An object whose class is not here: what it was made from, and nothing that acts."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Record:
        """Keep the arguments of the constructor; unpickling does not always call `__init__`."""
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def value(self) -> Any:
        """What the object stood for: a number, a text, or a dict or list of more."""
        if isinstance(self.state, dict):
            for inside in ("_content", "_val"):  # containers and leaves of omegaconf
                if inside in self.state:
                    return self.state[inside]
            return self.state
        return self.args[0] if len(self.args) == 1 else list(self.args)


def read_pickle(path: str | Path) -> Any:
    """Content of a file written by torch.save, in the zip format or the one before PyTorch 1.6.

    Parameters
    ----------
    path : str or Path
        The file. Tensors of a zip are mapped, not read: copy what you keep.

    Returns
    -------
    object
        Dicts, lists, numbers, texts and tensors on the CPU. Objects are dicts of their
        attributes, those of omegaconf what they configure; its interpolations ("${task.data}")
        stay texts.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    CheckpointMismatch
        The file wants to use something that no checkpoint needs (it is named), or is damaged.

    Example
    -------
    >>> import argparse, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "checkpoint.pt")
    ...     torch.save({"args": argparse.Namespace(layers=12)}, path)
    ...     read_pickle(path)
    {'args': {'layers': 12}}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Expected a checkpoint.")
    try:
        with path.open("rb") as file:
            zipped = file.read(len(ZIP)) == ZIP
            names = _names(file, zipped)
        _refuse_foreign(names, path)
        with torch.serialization.safe_globals(_stand_ins(names)):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        return _plain(content, set())
    except CheckpointMismatch:
        raise
    except Exception as error:  # damage shows anywhere, as any of them
        raise CheckpointMismatch(
            f"{path}: not readable as a PyTorch checkpoint ({type(error).__name__}). Is the file "
            "complete? Copy or download it again."
        ) from error


def _names(file: BinaryIO, zipped: bool) -> set[str]:
    """All that the pickles of a file import, as "module.name" in Python 3."""
    file.seek(0)
    pickles: Iterable[BinaryIO] = [file] * LEGACY_PICKLES
    if zipped:
        with zipfile.ZipFile(file) as archive:
            inside = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            pickles = [BytesIO(archive.read(inside))]
    names = set()
    for code, argument, _ in chain.from_iterable(map(pickletools.genops, pickles)):
        if code.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")  # as Python 2 called them
            module, name = NAME_MAPPING.get(
                (module, name), (IMPORT_MAPPING.get(module, module), name)
            )
            names.add(f"{module}.{name}")
        elif code.name == "PROTO" and argument != PROTOCOL:
            raise ValueError(f"pickle protocol {argument}, expected {PROTOCOL}")
    return names


def _refuse_foreign(names: set[str], path: Path) -> None:
    foreign = sorted(n for n in names if not (TENSORS.fullmatch(n) or INERT.fullmatch(n)))
    if foreign:
        raise CheckpointMismatch(
            f"{path} wants to use {', '.join(foreign)}, which reading a checkpoint does not need. "
            "Nothing of it was executed. Take the file from its publisher, or save its weights "
            "alone: torch.save(state_dict, path)."
        )


def _stand_ins(names: set[str]) -> list[Any]:
    """Pairs for `torch.serialization.safe_globals`."""
    inert = filter(INERT.fullmatch, names)
    return [(_new_dict if name == DEFAULTDICT else Record, name) for name in inert]


def _new_dict(*_: Any) -> dict[Any, Any]:
    """Without a default: that would be a function to call."""
    return {}


def _plain(x: Any, done: set[int]) -> Any:
    """`x` with the values of records in their place; containers are changed in place."""
    if isinstance(x, Record):
        return _plain(x.value, done)
    if isinstance(x, (dict, list)) and id(x) not in done:  # they may hold each other
        done.add(id(x))
        for key, value in list(x.items() if isinstance(x, dict) else enumerate(x)):
            x[key] = _plain(value, done)
    return x
