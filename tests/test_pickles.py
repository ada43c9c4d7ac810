"""Pickled checkpoints: what fairseq's files hold comes out as plain data, and nothing runs."""

from __future__ import annotations

import argparse
import collections
import enum
import functools
import io
import os
import pickle
import random
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, List  # noqa: UP035 (it is what omegaconf pickles)

import numpy as np
import pytest
import torch

from w2v_plugin import pickles
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.pickles import Record, read_pickle


@pytest.fixture
def foreign() -> Iterator[types.SimpleNamespace]:
    """Classes that pickle under the names that they have in fairseq and omegaconf."""

    def define(module: str, name: str, **members: Any) -> type:
        new = type(name, (), {"__module__": module, **members})
        for depth in range(module.count(".") + 1):
            parent = ".".join(module.split(".")[: depth + 1])
            sys.modules.setdefault(parent, types.ModuleType(parent))
        setattr(sys.modules[module], name, new)
        return new

    before = set(sys.modules)
    choice = enum.Enum("Choice", {"layer_norm": "layer_norm"}, module="fairseq.dataclass.constants")
    define("fairseq.dataclass.constants", "Anything")
    sys.modules["fairseq.dataclass.constants"].Choice = choice  # type: ignore[attr-defined]
    yield types.SimpleNamespace(
        choice=choice,
        dictionary=define("fairseq.data.dictionary", "Dictionary"),
        dict_config=define("omegaconf.dictconfig", "DictConfig"),
        list_config=define("omegaconf.listconfig", "ListConfig"),
        node=define("omegaconf.nodes", "AnyNode"),
        metadata=define("omegaconf.base", "ContainerMetadata"),
    )
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("fairseq", "omegaconf"):
            del sys.modules[name]


def made(kind: type, **attributes: Any) -> Any:
    thing = kind()
    thing.__dict__.update(attributes)
    return thing


def omegaconf(foreign: types.SimpleNamespace, x: Any, parent: Any = None) -> Any:
    """`x` as omegaconf 2.1 holds it: nodes that know their parent and their type."""
    kind = {dict: foreign.dict_config, list: foreign.list_config}.get(type(x), foreign.node)
    metadata = made(
        foreign.metadata,
        ref_type=List[int] if isinstance(x, list) else Any,  # noqa: UP006
        object_type=type(x),
        resolver_cache=collections.defaultdict(dict, {"env": {}}),
    )
    node = made(kind, _metadata=metadata, _parent=parent)
    if isinstance(x, dict):
        node._content = {key: omegaconf(foreign, value, node) for key, value in x.items()}
    elif isinstance(x, list):
        node._content = [omegaconf(foreign, value, node) for value in x]
    else:
        node._val = x
    return node


def save(content: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_all_that_fairseq_saves_becomes_plain(tmp_path: Path, foreign, zipped: bool) -> None:
    settings = {"model": {"layers": 12, "rates": [0.1, 0.2], "data": "${task.data}", "none": None}}
    weights = collections.OrderedDict(a=torch.randn(3, 2), half=torch.randn(2).half())
    content = {
        "args": argparse.Namespace(w2v_args=argparse.Namespace(dropout=0.1), kind=int),
        "cfg": omegaconf(foreign, settings),
        "mode": omegaconf(foreign, foreign.choice.layer_norm),
        "task_state": {"target": made(foreign.dictionary, symbols=["<s>"], indices={"<s>": 0})},
        "model": weights,
        "sizes": (torch.Size([3]), torch.float16, torch.device("cpu"), b"bytes", {1}),
        "best": np.float64(0.5),
        "counts": collections.defaultdict(int, {"a": 1}),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    read = read_pickle(save(content, tmp_path / "file.pt", zipped))
    assert read["cfg"] == settings
    assert read["args"]["w2v_args"] == {"dropout": 0.1}
    assert read["mode"] == "layer_norm"
    assert read["task_state"] == {"target": {"symbols": ["<s>"], "indices": {"<s>": 0}}}
    assert read["counts"] == {"a": 1} and type(read["counts"]) is dict
    assert read["sizes"] == content["sizes"]
    assert read["model"].keys() == weights.keys()
    assert all(torch.equal(read["model"][key], weights[key]) for key in weights)
    assert torch.equal(read["parameter"], torch.ones(2))
    assert "omegaconf.nodes" in sys.modules  # the fakes: reading must not have used them
    assert not any(type(x).__module__.startswith(("fairseq", "omegaconf")) for x in read.values())


def test_reading_imports_nothing(tmp_path: Path, foreign) -> None:
    path = save({"cfg": omegaconf(foreign, {"a": 1})}, tmp_path / "file.pt")
    code = (
        "import sys; from w2v_plugin.pickles import read_pickle; "
        f"print(read_pickle({str(path)!r}), {{'fairseq', 'omegaconf'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'cfg': {'a': 1}} set()"


def test_sharing_and_cycles_do_not_explode(tmp_path: Path) -> None:
    """Ten lists of ten references each are 10^10 elements if every reference is followed."""
    shared: list[Any] = [argparse.Namespace(x=1)]
    for _ in range(10):
        shared = [shared] * 10
    cycle: dict[str, Any] = {"one": 1}
    cycle["self"] = cycle
    read = read_pickle(save({"shared": shared, "cycle": cycle}, tmp_path / "file.pt"))
    assert read["cycle"]["self"] is read["cycle"]
    while isinstance(shared := read["shared"], list):
        read = {"shared": shared[-1]}
    assert shared == {"x": 1}


MARK = "executed"


class Reduced:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def evil(tmp_path: Path) -> dict[str, tuple[Any, str]]:
    """Content -> the name that the error must have."""
    mark = tmp_path / MARK
    touch = f"open({str(mark)!r}, 'w').close()"
    return {
        "os": (Reduced(os.system, f"touch {mark}"), "posix.system"),
        "subprocess": (
            Reduced(subprocess.check_call, ["touch", str(mark)]),
            "subprocess.check_call",
        ),
        "eval": (Reduced(eval, touch), "builtins.eval"),
        "exec": (Reduced(exec, touch), "builtins.exec"),
        "open": (Reduced(open, str(mark), "w"), "io.open"),
        "getattr": (Reduced(getattr, "text", "upper"), "builtins.getattr"),
        "partial": (Reduced(functools.partial, os.system, f"touch {mark}"), "functools.partial"),
        "torch.load": (Reduced(torch.load, str(mark)), "torch.serialization.load"),
        "from bytes": (
            Reduced(torch.storage._load_from_bytes, pickle.dumps(Reduced(eval, touch))),
            "torch.storage._load_from_bytes",
        ),
        "hub": (Reduced(torch.hub.load, "somebody/something"), "torch.hub.load"),
        "nested": (
            argparse.Namespace(a=[{"b": argparse.Namespace(c=Reduced(eval, touch))}]),
            "builtins.eval",
        ),
        "argument": (Reduced(collections.OrderedDict, [("a", Reduced(eval, touch))]), "eval"),
        "our own": (Reduced(read_pickle, str(mark)), "w2v_plugin.pickles.read_pickle"),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", [*evil(Path())])
def test_bombs_do_not_go_off_and_are_named(tmp_path: Path, kind: str, zipped: bool) -> None:
    content, name = evil(tmp_path)[kind]
    path = save({"model": {}, "x": content}, tmp_path / "file.pt", zipped)
    with pytest.raises(CheckpointMismatch, match="Nothing of it was executed") as caught:
        read_pickle(path)
    assert name in str(caught.value) and str(path) in str(caught.value)
    assert not (tmp_path / MARK).exists()


def test_these_bombs_would_go_off(tmp_path: Path) -> None:
    """Otherwise the test above shows nothing."""
    path = save(evil(tmp_path)["eval"][0], tmp_path / "file.pt")
    torch.load(path, weights_only=False)
    assert (tmp_path / MARK).exists()


class Built:
    """Sets attributes on an inert record, which only keeps them."""

    def __reduce__(self) -> Any:
        return (argparse.Namespace, (), {"__class__": "x", "value": 1})


def test_attributes_of_a_record_are_data(tmp_path: Path) -> None:
    path = save({"x": Built()}, tmp_path / "file.pt")
    assert read_pickle(path) == {"x": {"__class__": "x", "value": 1}}


def hand_made(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("file/data.pkl", pickled)
        archive.writestr("file/version", "3\n")
        archive.writestr("file/byteorder", "little")
    return path


@pytest.mark.parametrize(
    "pickled",
    [
        # attributes set on a function, on a class, on a record's class
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02cargparse\nNamespace\n}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02ccollections\ndefaultdict\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
        # items appended to or set on a record
        b"\x80\x02cargparse\nNamespace\n)\x81K\x01a.",
        b"\x80\x02cargparse\nNamespace\n)\x81X\x01\x00\x00\x00aK\x01s.",
        # opcodes beside the allowed ones: INST, OBJ, extension registry, text-mode protocol 0
        b"\x80\x02(iargparse\nNamespace\n.",
        b"\x80\x02(cargparse\nNamespace\no.",
        b"\x80\x02\x82\x01.",
        b"(dp0\n.",
        # an empty stack, an unknown reference, a storage that is none
        b"\x80\x02.",
        b"\x80\x02h\x07.",
        b"\x80\x02X\x01\x00\x00\x00aQ.",
        # records that contain themselves through their value
        b"\x80\x02cargparse\nNamespace\n)\x81q\x00}X\x04\x00\x00\x00_valh\x00sb.",
    ],
    ids=lambda pickled: pickled[2:12].hex(),
)
def test_crooked_pickles_are_refused(tmp_path: Path, pickled: bytes) -> None:
    with pytest.raises(CheckpointMismatch, match="not readable as a PyTorch checkpoint"):
        read_pickle(hand_made(tmp_path / "file.pt", pickled))
    assert not hasattr(Record, "a") and not hasattr(torch._utils._rebuild_tensor_v2, "a")


@pytest.mark.parametrize("kind", [*evil(Path())])
def test_without_the_check_of_names_the_reader_refuses_them(
    tmp_path: Path, monkeypatch, kind: str
) -> None:
    """A file that hides names from the check meets PyTorch's own."""
    path = save({"x": evil(tmp_path)[kind][0]}, tmp_path / "file.pt")
    monkeypatch.setattr(pickles, "_refuse_foreign", lambda names, path: None)
    with pytest.raises(CheckpointMismatch, match="not readable"):
        read_pickle(path)
    assert not (tmp_path / MARK).exists()


def test_other_protocols_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save({"a": argparse.Namespace(x=1)}, path, pickle_protocol=4)
    with pytest.raises(CheckpointMismatch, match="not readable"):
        read_pickle(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_damaged_files_say_so(tmp_path: Path, zipped: bool) -> None:
    """Cut anywhere, or with bytes changed in the pickle: an error of ours, or still plain data."""
    content = {"model": {"a": torch.randn(50)}, "args": argparse.Namespace(x=[1, 2.0, "three"])}
    path = save(content, tmp_path / "file.pt", zipped)
    whole = path.read_bytes()
    for cut in (0, 1, 4, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointMismatch, match="Is the file complete"):
            read_pickle(path)
    random.seed(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[random.randrange(min(len(whole), 400))] = random.randrange(256)
        path.write_bytes(damaged)
        try:
            assert isinstance(read_pickle(path), object)
        except CheckpointMismatch as error:
            assert str(path) in str(error)


def test_missing_files_are_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pt: no such file"):
        read_pickle(tmp_path / "absent.pt")


def test_the_stand_ins_do_not_stay(tmp_path: Path) -> None:
    """A later weights_only load elsewhere in the process is as strict as before."""
    path = save({"args": argparse.Namespace(x=1)}, tmp_path / "file.pt")
    read_pickle(path)
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
