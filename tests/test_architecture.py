"""The house stays straight: import direction, file and function sizes, the tree in the README."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [
    "errors",
    "circumstances",
    "frames",
    "ranks",
    "audio",
    "products",
    "linear",
    "features",
    "tiled",
    "fourier",
    "masking",
    "positions",
    "adapters",
    "lora",
    "attention",
    "conformer",
    "encoder",
    "codes",
    "codebooks",
    "quantizer",
    "losses",
    "model_output",
    "streaming",
    "steps",
    "model",
    "streamable",
    "pretraining",
    "ctc",
    "warm_start",
    "compression",
    "devices",
    "overlap",
    "batching",
    "pieces",
    "normalization",
    "text",
    "vocabularies",
    "transcripts",
    "decoding",
    "alignment",
    "ngrams",
    "kneser_ney",
    "beam",
    "endpoint",
    "live",
    "live_encoders",
    "packets",
    "sessions",
    "latency",
    "latency_tables",
    "pooling",
    "vectors",
    "verification",
    "label_curves",
    "label_tables",
    "markdown_tables",
    "scoring",
    "significance",
    "hypotheses",
    "evaluation",
    "score_report",
    "score_pages",
    "phones",
    "units",
    "purity",
    "clusters",
    "unit_pictures",
    "shapes",
    "pickles",
    "int8_files",
    "weights",
    "adaptation",
    "hf_checkpoints",
    "hf_export",
    "torchaudio_checkpoints",
    "fairseq_options",
    "fairseq_checkpoints",
    "languages",
    "checkpoints",
    "onnx_export",
    "folders",
    "language_folders",
    "conversion",
    "continuation",
    "loading",
    "interfaces",
    "streaming_asr",
    "unit_models",
    "text_checks",
    "checks",
    "manifests",
    "tables",
    "toolkit_lists",
    "table_lists",
    "listings",
    "splits",
    "data_card",
    "preparation",
    "text_report",
    "text_preparation",
    "text_options",
    "lm_text",
    "lm_tuning",
    "trials",
    "sampling",
    "data",
    "corpora",
    "shard_files",
    "shards",
    "monitor",
    "launch",
    "whole_checkpoints",
    "training",
    "collapse",
    "validations",
    "cost",
    "brains",
    "averaging",
    "same_training",
    "finetuning",
    "transfer",
    "budget",
    "inputs",
    "outputs",
    "unit_records",
    "progress",
    "commands",
    "stream_command",
    "new_language",
    "help_texts",
    "cli",
]
PACKAGE = sorted((ROOT / "w2v_plugin").glob("*.py"))
RECIPES = sorted((ROOT / "recipes").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Names of the package's modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("w2v_plugin."):
            found.add(node.module.split(".")[1])
    return found


def test_every_module_has_its_place() -> None:
    """A new file must say where in the data flow it stands."""
    assert {path.stem for path in PACKAGE} == {*ORDER, "__init__"}


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: p.stem)
def test_files_import_only_from_above(path: Path) -> None:
    """The package reads from top to bottom."""
    if path.stem != "__init__":
        assert imported(path) <= set(ORDER[: ORDER.index(path.stem)])


@pytest.mark.parametrize("path", PACKAGE + RECIPES, ids=lambda p: p.stem)
def test_files_and_functions_stay_small(path: Path) -> None:
    """400 lines a file, 80 a function (docstring not counted)."""
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno or 0) - (body[0].lineno if body else node.lineno)
            assert lines <= 80, f"{node.name}: {lines} lines"


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: p.stem)
def test_transformers_is_not_a_runtime_dependency(path: Path) -> None:
    assert not re.search(r"^\s*(import|from) transformers", path.read_text(), re.M)


def test_readme_tree_is_true() -> None:
    """Every module and every recipe stands in the README, and nothing else does."""
    readme = (ROOT / "README.md").read_text()
    tree = readme.split("## The house", 1)[1].split("```")[1]
    listed = set(re.findall(r"\b([a-z_0-9]+\.py)\b", tree))
    present = {p.name for p in [*PACKAGE, *RECIPES, *(ROOT / "benchmarks").glob("*.py")]}
    assert listed == present
