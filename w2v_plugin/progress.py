"""How far a command is, on stderr: a bar on a terminal; failed files and a summary at the end."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from typing_extensions import Self


BAR = "{n_fmt}/{total_fmt} files |{bar}| {elapsed} < {remaining}{postfix}"


class Progress:
    """Counts files and seconds of audio while a command works on them.

    Parameters
    ----------
    total : int
        Files; the bar and the summary are for more than one.
    done : int
        Those that a run before this one did.

    Example
    -------
    >>> with Progress(1) as progress:
    ...     progress.add(3.0)
    >>> progress.status
    0
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self.total, self.done = total, done
        self.seconds = 0.0
        self.failed: list[str] = []
        self._start = time.perf_counter()
        hidden = total < 2 or not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, disable=hidden, leave=False, bar_format=BAR)

    @property
    def status(self) -> int:
        """Exit status: 1 if files failed."""
        return 1 if self.failed else 0

    def add(self, seconds: float) -> None:
        """One more file, so many seconds long."""
        self.seconds += seconds
        self._bar.set_postfix_str(
            f"{_duration(self.seconds)} audio, {self._speed()}", refresh=False
        )
        self._bar.update()

    def fail(self, reason: str) -> None:
        """One more file that cannot be used."""
        self.failed.append(reason)
        self._bar.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._bar.close()
        for reason in self.failed:
            print(f"w2v: error: {reason}", file=sys.stderr)
        if kind is None and self.total > 1:
            print(f"w2v: {self._summary()}", file=sys.stderr)

    def _summary(self) -> str:
        parts = [f"{self.total} files"]
        if self.done:
            parts.append(f"{self.done} of them done before")
        if self.failed:
            parts.append(f"{len(self.failed)} could not be used")
        passed = _duration(time.perf_counter() - self._start)
        audio = f"{_duration(self.seconds)} audio in {passed}, {self._speed()}"
        return f"{', '.join(parts)}; {audio}"

    def _speed(self) -> str:
        return f"{self.seconds / (time.perf_counter() - self._start):.3g} x real time"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.1f} s"
