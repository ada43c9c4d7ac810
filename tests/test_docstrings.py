"""Examples in docstrings run, and everything public has one."""

from __future__ import annotations

import doctest
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import w2v_plugin

MODULES = sorted(path.stem for path in Path(w2v_plugin.__file__).parent.glob("[!_]*.py"))
PUBLIC = sorted(name for name in w2v_plugin.__all__ if not name.startswith("__"))


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `>>>` prints what it says, in an empty folder that it leaves empty."""
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(import_module(f"w2v_plugin.{name}"))
    assert results.failed == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name: str) -> None:
    assert import_module(f"w2v_plugin.{name}").__doc__


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_has_an_example(name: str) -> None:
    """A docstring that shows how it is used."""
    text = inspect.getdoc(getattr(w2v_plugin, name)) or ""
    assert re.search(r"^Example\n-------\n>>> ", text, re.MULTILINE)


def test_the_public_names_are_those_that_exist() -> None:
    """`dir`, `__all__` and attributes agree; anything else is an AttributeError."""
    assert dir(w2v_plugin) == sorted(w2v_plugin.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = w2v_plugin.nonsense
