"""Plain text -> Markdown in which it looks like itself, and tables of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MARKUP = re.compile(r"[\\`*<|]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")


def escaped(text: str) -> str:
    r"""So that a cell stays one, and what looks like markup is text; links stay links.

    Example
    -------
    >>> escaped("<noise> *hm* a|b snake_case &amp;")
    '\\<noise> \\*hm\\* a\\|b snake_case \\&amp;'
    """
    return MARKUP.sub(r"\\\g<0>", text)


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table.

    Example
    -------
    >>> table(["a", "b"], [["x|y", 1]])
    ['| a | b |', '|---|---|', '| x\\\\|y | 1 |']
    """
    lines = [header, *rows]
    cells = [f"| {' | '.join(escaped(str(cell)) for cell in line)} |" for line in lines]
    return [cells[0], "|---" * len(header) + "|", *cells[1:]]
