"""Vectors on disk: every format gives back what went in, or there is no file at all."""

import sys
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from w2v_plugin import vectors
from w2v_plugin.vectors import save_vectors


def some(shape: tuple[int, ...] = (3, 4), count: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"sub/{i}": torch.randn(shape, generator=generator) for i in range(count)}


def test_npy_is_a_file_each(tmp_path):
    """Names are paths below the folder."""
    named = some()
    assert save_vectors(tmp_path, named.items()) == 3
    for name, value in named.items():
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), value.numpy())
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3


def test_npz_is_one_file_and_reproducible(tmp_path):
    """Names are keys, and the same vectors give the same bytes."""
    named = some()
    for file in ("a.npz", "b.npz"):
        assert save_vectors(tmp_path / file, named.items(), "npz") == 3
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as archive:
        assert sorted(archive) == sorted(named)
        assert all(np.array_equal(archive[name], value.numpy()) for name, value in named.items())


@pytest.mark.parametrize("axes", [(), ("frame",), ("layer", "frame")])
@pytest.mark.parametrize("rows", [1, 10**9])
def test_parquet_is_a_table_of_vectors(tmp_path, monkeypatch, axes, rows):
    """A row per vector that says where it stands; small row groups and a single one."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    monkeypatch.setattr(vectors, "ROW_GROUP", rows)
    named = some((2, 3, 4)[2 - len(axes) :])
    path = tmp_path / "all.parquet"
    assert save_vectors(path, named.items(), "parquet", axes) == 3
    assert parquet.ParquetFile(path).num_row_groups == (3 if rows == 1 else 1)
    table = parquet.read_table(path)
    assert table.column_names == ["path", *axes, "vector"]
    count = 0
    for row in table.to_pylist():
        at = tuple(row[axis] for axis in axes)
        wanted = named[row["path"]][at] if at else named[row["path"]]
        assert row["vector"] == wanted.tolist()
        count += 1
    assert count == sum(value[..., 0].numel() for value in named.values())


@pytest.mark.parametrize("format", ["npy", "npz", "parquet"])
def test_nothing_is_kept_in_memory(tmp_path, monkeypatch, format):
    """Each vector is on disk or in a full row group before the next is asked for."""
    if format == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        monkeypatch.setattr(vectors, "ROW_GROUP", 1)
    sizes = []

    def growing() -> Iterator[tuple[str, torch.Tensor]]:
        for i in range(4):
            files = [path for path in tmp_path.rglob("*") if path.is_file()]
            sizes.append(sum(path.stat().st_size for path in files))
            yield str(i), torch.randn(500, 40)

    target = tmp_path if format == "npy" else tmp_path / "all"
    save_vectors(target, growing(), format, ("frame",))
    # file objects buffer some kilobytes; a vector set has 80 000 bytes
    assert all(sizes[i] >= i * 70_000 for i in range(4))


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_an_interrupted_file_does_not_exist(tmp_path, format):
    """What was there before stays, and no rubbish."""
    if format == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    target = tmp_path / "all"
    target.write_text("old")

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield from some().items()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_vectors(target, broken(), format, ("frame",))
    assert [path.name for path in tmp_path.iterdir()] == ["all"] and target.read_text() == "old"


def test_a_kill_leaves_nothing_that_looks_whole(tmp_path):
    """While it is being written, the file has a hidden name ending in .part."""
    seen = []

    def watched() -> Iterator[tuple[str, torch.Tensor]]:
        for item in some().items():
            yield item
            seen.append([path.name for path in tmp_path.iterdir()])

    save_vectors(tmp_path / "all.npz", watched(), "npz")
    assert all(len(names) == 1 and names[0].endswith(".part") for names in seen) and len(seen) == 3
    assert zipfile.is_zipfile(tmp_path / "all.npz")


def test_a_failed_npy_leaves_its_neighbors(tmp_path, monkeypatch):
    """Disk full in the second file: the first is whole, the second absent."""
    original = np.save

    def full(file, array):
        if list(tmp_path.rglob("*.npy")):
            file.write(b"half")
            raise OSError(28, "No space left on device")
        original(file, array)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_vectors(tmp_path, some().items())
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["0.npy"]


def test_bad_input_is_explained(tmp_path, monkeypatch):
    """Formats, names, shapes, a missing library; and no file is left."""
    one = torch.zeros(2, 3)
    cases = [
        ([("a", one)], "hdf5", "expected one of 'npy'"),
        ([("a", one), ("a", one)], "npz", "'a' occurs twice"),
        ([("../a", one)], "npz", "below the target"),
        ([("/a", one)], "npz", "below the target"),
        ([("", one)], "npz", "below the target"),
    ]
    for named, format, message in cases:
        with pytest.raises(ValueError, match=message):
            save_vectors(tmp_path / "x", named, format)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install"):
        save_vectors(tmp_path / "x", [("a", one)], "parquet", ("frame",))
    assert not list(tmp_path.iterdir())


def test_unnamed_dimensions_are_refused(tmp_path):
    """A table must say what its rows are."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with pytest.raises(ValueError, match="Name every dimension"):
        save_vectors(tmp_path / "x", [("a", torch.zeros(2, 3))], "parquet")
    assert not list(tmp_path.iterdir())
