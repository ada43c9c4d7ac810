"""Units -> stdout or one file of records, text or JSON lines; what is there can be read back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2v_plugin.inputs import CannotStart, Input
from w2v_plugin.outputs import Records

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("text", "json")


class UnitRecords(Records):
    """One record of units per file; see `Records`, which writes, resumes and refuses.

    Parameters
    ----------
    items : sequence of Input
        Whose units will come.
    format : {"text", "json"}
        "text": path, tab, units with blanks between them; of a single file on stdout the units
        alone. "json": path, duration in seconds, and the list `units`.
    out : Path, optional
        The file; stdout if not given.
    resume : bool
        Go on with what is in `out`.
    dedup : bool
        Equal neighbors as one unit: "unit:frames" in a text, `durations` in frames in JSON.

    Example
    -------
    >>> import tempfile, numpy as np
    >>> item = Input(Path("a.wav"), "a")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     out = Path(folder, "units.tsv")
    ...     with UnitRecords([item], "text", out, dedup=True) as records:
    ...         records.write(item, np.array([5, 5, 2]), 0.065)
    ...     out.read_bytes(), [units.tolist() for units in records.earlier()]
    (b'a.wav\\t5:2 2:1\\n', [])
    """

    def __init__(
        self,
        items: Sequence[Input],
        format: str,
        out: Path | None = None,
        *,
        resume: bool = False,
        dedup: bool = False,
    ) -> None:
        if resume and out is None:
            raise CannotStart("--resume goes on with the file of --out: give it, too.")
        super().__init__(items, format, out, resume=resume)
        self.dedup = dedup

    def write(self, item: Input, transcript: Any, seconds: float) -> None:
        """Add a record of (frames,) units; `seconds` is the length of the audio."""
        super().write(item, transcript, seconds)

    def earlier(self) -> Iterator[np.ndarray]:
        """Units (frames,) of the records that a run before this one wrote.

        Raises
        ------
        CannotStart
            A record is not as this command writes it with these options.
        """
        if self.out is None or not self._size:
            return
        with self.out.open("rb") as file:
            lines = file.read(self._size).decode("utf-8", "surrogateescape").split("\n")[:-1]
        for number, line in enumerate(lines, 1):
            try:
                yield self._units(line)
            except (ValueError, KeyError, TypeError) as error:
                raise CannotStart(
                    f"{self.out}:{number}: no units as this command writes them; with --dedup as "
                    "before? Use another --out."
                ) from error

    def _record(self, item: Input, transcript: Any, seconds: float) -> str:
        from w2v_plugin.units import runs

        units, durations = runs(transcript) if self.dedup else (transcript, None)
        if self.format == "json":
            record = {"path": str(item.path), "duration": round(seconds, 3)}
            record |= {"units": units.tolist()}
            record |= {} if durations is None else {"durations": durations.tolist()}
            return json.dumps(record, ensure_ascii=False) + "\n"
        words = [str(unit) for unit in units.tolist()]
        if durations is not None:
            words = [f"{w}:{n}" for w, n in zip(words, durations.tolist(), strict=True)]
        text = " ".join(words)
        return f"{text}\n" if self.alone else f"{item.path}\t{text}\n"

    def _units(self, line: str) -> np.ndarray:
        import numpy as np

        if self.format == "json":
            record = json.loads(line)
            units, durations = record["units"], record.get("durations")
            if (durations is not None) != self.dedup:
                raise ValueError(line)
        else:
            words = line.rpartition("\t")[2].split()
            pairs = [word.split(":") for word in words]
            if any(len(pair) != 1 + self.dedup for pair in pairs):
                raise ValueError(line)
            units = [int(pair[0]) for pair in pairs]
            durations = [int(pair[1]) for pair in pairs] if self.dedup else None
        array = np.array(units, dtype=np.int64)
        return array if durations is None else np.repeat(array, durations)
