"""`recipes/results.py`: tables from results.json files, and the one in recipes/README.md."""

import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
KEPT = sorted((ROOT / "recipes" / "results").glob("*.json"))


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = spec_from_file_location("results_recipe", ROOT / "recipes" / "results.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """One of each kind."""
    rates = {"WER": 12.345, "CER": 3.0, "WER_95": [11.0, 13.0], "CER_95": None}
    systems = [{"system": "a|b", **rates}, {"system": "c", **rates}]
    evaluated = {
        "commit": "abc123",
        "hardware": "x86_64",
        "tests": [{"test": "dev", "utterances": 1234, "systems": systems}],
    }
    finetuned = {"test": {"dev": {"WER": 50.0, "CER": 20.126, "loss": 1.0}}, "seconds": 9.0}
    paths = [tmp_path / "kept" / "pair.json", tmp_path / "runs" / "tiny" / "results.json"]
    for path, report in zip(paths, (evaluated, finetuned), strict=True):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(report), encoding="utf-8")
    return paths


def test_rows_of_both_kinds(
    recipe: ModuleType, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "kept" / "README.md"
    begin, end = recipe.BEGIN, recipe.END
    readme.write_text(f"# Title\n{begin}\nold\n{end}\nafter\n", encoding="utf-8")
    argv = [*map(str, files), "--into", str(readme)]
    assert recipe.main([*argv, "--check"]) == 1 and "old" in readme.read_text()
    assert recipe.main(argv) == 0
    assert recipe.main([*argv, "--check"]) == 0
    lines = readme.read_text(encoding="utf-8").splitlines()
    assert (lines[:2], lines[-2:]) == (["# Title", begin], [end, "after"])
    rates = "12.35 [11.00, 13.00] | 3.00"
    tail = "x86_64 | abc123 | [pair](pair.json) |"
    assert lines[4:-2] == [
        f"| a\\|b | dev | 1,234 | {rates} | {tail}",
        f"| c | dev | 1,234 | {rates} | {tail}",
        "| tiny | dev |  | 50.00 | 20.13 |  |  | [tiny](../runs/tiny/results.json) |",
    ]
    capsys.readouterr()
    assert recipe.main([str(files[0])]) == 0
    assert capsys.readouterr().out.count("\n") == 4


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "neither of"),
        ('{"train": 1}', "neither of .*KeyError"),
        ('{"tests": [{"test": "x", "systems": [{"system": "a"}]}]}', "neither of .*WER"),
        ('{"test": {"x": {"WER": "much"}}}', "neither of"),
        ('{"test": 3}', "neither of"),
    ],
)
def test_other_files_are_refused(
    recipe: ModuleType,
    files: list[Path],
    tmp_path: Path,
    content: str,
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Named, in one line, and the document stays as it was."""
    other, readme = tmp_path / "other.json", tmp_path / "README.md"
    other.write_text(content)
    readme.write_text(f"{recipe.BEGIN}\nold\n{recipe.END}\n")
    assert recipe.main([str(files[0]), str(other), "--into", str(readme)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "other.json" in error
    assert re.search(complaint, error)
    assert "old" in readme.read_text()


@pytest.mark.parametrize("markers", ["", "{b}", "{e}{b}", "{b}{e}{b}{e}", "{b}{b}{e}"])
def test_markers_must_be_there_once(
    recipe: ModuleType,
    files: list[Path],
    tmp_path: Path,
    markers: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = tmp_path / "README.md"
    text = markers.format(b=recipe.BEGIN, e=recipe.END)
    readme.write_text(text)
    assert recipe.main([str(files[0]), "--into", str(readme)]) == 2
    assert "expected one line" in capsys.readouterr().err and readme.read_text() == text


def test_files_that_do_not_exist(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe.main([str(tmp_path / "none.json")]) == 2
    assert "none.json: cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recipe.main([str(tmp_path / "none.json"), "--check"])


def test_table_in_the_readme_is_what_the_files_give(recipe: ModuleType) -> None:
    """`python recipes/results.py recipes/results/*.json --into recipes/README.md` makes it so."""
    assert KEPT, "no results are kept"
    readme = ROOT / "recipes" / "README.md"
    assert recipe.rewritten(readme, recipe.whole_table(KEPT, readme.parent)) == readme.read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_files_are_small_and_can_be_repeated(path: Path) -> None:
    """Command and hashes are there; no texts, nothing by utterance."""
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["command"] and report["commit"] and report["sha256"]
    assert path.stat().st_size < 100_000
