"""Vectors to files: `.npy` for each recording, or one `.npz` or Parquet table for all.

Vectors are written as they come; a corpus is never in memory. Every file is written under another
name and renamed when it is complete, so that whatever bears its final name is whole, also after a
kill. What a kill leaves behind is hidden and ends in `.part`.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

Named = tuple[str, Tensor | np.ndarray]
ROW_GROUP = 4_000_000  # numbers per row group of a Parquet table: 16 MB


def save_vectors(
    target: str | Path,
    vectors: Iterable[Named],
    format: str = "npy",
    axes: Sequence[str] = (),
) -> int:
    """Write named vectors, one at a time.

    Parameters
    ----------
    target : str or Path
        "npy": a folder, which gets `<name>.npy` for each; "npz", "parquet": the file.
    vectors : iterable of (str, Tensor or array)
        Names, unique, "/" for subfolders or groups; float32 arrays of any shape. Taken one by one:
        a generator may report each once it is asked for the next.
    format : {"npy", "npz", "parquet"}
        "npz": uncompressed, read by `numpy.load(target)[name]`. "parquet": columns `path` (the
        name), one integer column for each of `axes`, and `vector` (list of float32); a row is a
        vector. It needs `pip install "w2v_plugin[parquet]"`.
    axes : sequence of str
        Parquet only: what the dimensions before the last are, such as ("frame",) for
        (frames, dim), ("layer", "frame"), or () for (dim,).

    Returns
    -------
    int
        Number of arrays written.

    Raises
    ------
    ValueError
        Unknown format, a name twice, a name that leaves the target, or dimensions unlike `axes`.
    ImportError
        pyarrow is missing.

    Example
    -------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     count = save_vectors(f"{folder}/all.npz", [("a", torch.zeros(2, 3))], "npz")
    ...     np.load(f"{folder}/all.npz")["a"].shape
    (2, 3)
    """
    writers: dict[str, Callable[[Path, Iterator], int]] = {
        "npy": _write_npy,
        "npz": _write_npz,
        "parquet": lambda path, named: _write_parquet(path, named, axes),
    }
    if format not in writers:
        raise ValueError(f"format={format!r}, expected one of {', '.join(map(repr, writers))}.")
    return writers[format](Path(target), _checked(vectors))


def _checked(vectors: Iterable[Named]) -> Iterator[tuple[str, np.ndarray]]:
    seen = set()
    for name, vector in vectors:
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts:
            raise ValueError(f"{name!r}: expected a relative name that stays below the target.")
        if name in seen:
            raise ValueError(f"{name!r} occurs twice: one result would replace the other. Rename.")
        seen.add(name)
        array = vector.detach().cpu().numpy() if isinstance(vector, Tensor) else vector
        yield name, np.ascontiguousarray(array, dtype=np.float32)


@contextmanager
def _complete_or_absent(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` if nothing goes wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_npy(folder: Path, named: Iterator[tuple[str, np.ndarray]]) -> int:
    count = 0
    for name, array in named:
        with _complete_or_absent(folder / f"{name}.npy") as part, part.open("wb") as file:
            np.save(file, array)
        count += 1
    return count


def _write_npz(path: Path, named: Iterator[tuple[str, np.ndarray]]) -> int:
    count = 0
    with _complete_or_absent(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, array in named:
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980: equal vectors give equal files
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
            count += 1
    return count


def _write_parquet(path: Path, named: Iterator[tuple[str, np.ndarray]], axes: Sequence[str]) -> int:
    arrow, parquet = _pyarrow()
    fields = [("path", arrow.string()), *((axis, arrow.int32()) for axis in axes)]
    schema = arrow.schema([*fields, ("vector", arrow.list_(arrow.float32()))])
    count = numbers = 0
    tables = []
    with _complete_or_absent(path) as part, parquet.ParquetWriter(part, schema) as writer:
        for name, array in named:
            tables.append(_table(arrow, schema, name, array, axes))
            count, numbers = count + 1, numbers + array.size
            if numbers >= ROW_GROUP:
                writer.write_table(arrow.concat_tables(tables))
                tables, numbers = [], 0
        if tables:
            writer.write_table(arrow.concat_tables(tables))
    return count


def _table(arrow: Any, schema: Any, name: str, array: np.ndarray, axes: Sequence[str]) -> Any:
    """One row per vector: the name, where it stands, its numbers."""
    if array.ndim != len(axes) + 1:
        raise ValueError(
            f"{name!r}: shape {array.shape}, but axes={tuple(axes)}. Name every dimension except "
            'the last, such as axes=("frame",) for (frames, dim).'
        )
    *outer, dim = array.shape
    rows = array.size // dim
    places = np.indices(outer, dtype=np.int32).reshape(len(axes), rows)
    offsets = np.arange(rows + 1, dtype=np.int32) * dim
    values = arrow.ListArray.from_arrays(offsets, arrow.array(array.reshape(-1)))
    return arrow.table([arrow.array([name] * rows), *map(arrow.array, places), values], schema)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            'format="parquet" needs pyarrow: pip install "w2v_plugin[parquet]", or choose npz.'
        ) from error
    return pyarrow, pyarrow.parquet
