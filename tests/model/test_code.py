"""A checkpoint's folder with code in it, or with numbers without an end, is refused before a library sees it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nemo_edge.model._code import check_no_code, unfit_counts
from nemo_edge.model.checkpoint import open_checkpoint
from nemo_edge.system.errors import InputError


@pytest.mark.parametrize("place", ["pipeline.py", "unet/my_unet.py", "scheduler/x.SO", "text_encoder/modeling.pyc"])
def test_code_is_not_run_and_its_folder_not_opened(toy_folder: Path, tmp_path: Path, place: str) -> None:
    folder = shutil.copytree(toy_folder, tmp_path / "model")
    check_no_code(folder)
    (folder / place).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="is code, which nemo-edge does not run"):
        open_checkpoint(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", ["unet", "scheduler", "text_encoder", "tokenizer"])
def test_a_class_that_is_not_known_is_refused(toy_folder: Path, tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(toy_folder, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, part: [index[part][0], "Mine"]}))
    with pytest.raises(InputError, match=f"its {part} is a Mine"):
        open_checkpoint(str(folder))


def test_a_tokenizer_that_wants_code_is_refused(toy_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(toy_folder, tmp_path / "model")
    path = folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["mine.Tokenizer", None]}}))
    with pytest.raises(InputError, match="its tokenizer wants code of its own"):
        open_checkpoint(str(folder))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("part", "key"), [("unet", "layers_per_block"), ("text_encoder", "num_hidden_layers"), ("vae", "layers_per_block")]
)
def test_layers_without_an_end_are_not_made(toy_folder: Path, tmp_path: Path, part: str, key: str) -> None:
    folder = shutil.copytree(toy_folder, tmp_path / "model")
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: 10**9}))
    with pytest.raises(InputError, match=f"its {key} is 1000000000, and nemo-edge takes 256"):
        open_checkpoint(str(folder))


def test_counts_are_found_in_lists() -> None:
    assert unfit_counts([{"block_out_channels": [8, [10**9]]}])
    assert unfit_counts([{"up_block_types": ["UpBlock2D"] * 300}])
    assert not unfit_counts([{"vocab_size": 49408, "layers_per_block": 2, "name": "x", "flag": True}])
