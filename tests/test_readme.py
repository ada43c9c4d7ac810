"""The README is true: its Python runs, its commands name things that exist."""

import re
import shlex
from pathlib import Path

import pytest
import soundfile
import torch

from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.folders import save_asr
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.text import CharVocabulary

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
SHELL = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Executed in a folder that holds what the text before them promises."""
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    wav2vec2 = Wav2Vec2(**shape, extractor_norm="layer", normalize=False)
    folder = tmp_path / "runs" / "demo" / "pretrained" / "model"
    save_asr(folder, Wav2Vec2CTC(wav2vec2, 32), CharVocabulary())
    soundfile.write(tmp_path / "talk.wav", torch.randn(44100, 2).numpy() * 0.1, 44100)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("line", SHELL)
def test_commands_name_things_that_exist(line: str) -> None:
    """Make targets, scripts and YAML files."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    for word in words:
        if re.match(r"(recipes|hparams)/\S+\.(py|yaml)$", word):
            assert (ROOT / word).is_file(), word
