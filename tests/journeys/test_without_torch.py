"""A finished bundle draws where neither PyTorch, diffusers nor transformers is installed (`make .venv-run/.installed`)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import write_tiny
from PIL import Image
from transformers import CLIPTokenizer

from journeys.test_textual_inversion import save_inverted
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.release.build import build
from nemo_edge.sampling.generate import Request, draw
from nemo_edge.sampling.steptable import STEPS_FILE

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-run" / "bin" / "python"
ABSENT = ("torch", "diffusers", "transformers")
PROMPT = "a red pig"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no environment without PyTorch: make .venv-run/.installed")


def run(*arguments: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the environment's Python, with these sources and nothing else of this one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {"PYTHONPATH": str(ROOT)}
    command = [str(PYTHON), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def cli(*arguments: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    return run("-m", "nemo_edge.cli", *arguments, cwd=cwd, code=code)


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_the_environment_is_without_them(tmp_path: Path) -> None:
    found = run("-c", f"from importlib.util import find_spec; print([name for name in {ABSENT!r} if find_spec(name)])", cwd=tmp_path)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_generate_draws_the_same_picture(tiny_bundle: Path, tmp_path: Path, backend: str) -> None:
    (here,) = draw(tiny_bundle, Request(PROMPT, seed=3, backend=backend), tmp_path / "here.png")
    cli("generate", tiny_bundle, PROMPT, "--seed", "3", "--backend", backend, "--out", tmp_path / "there.png", cwd=tmp_path)
    assert np.abs(picture(here) - picture(tmp_path / "there.png")).max() <= 1
    assert len(np.unique(picture(here))) > 8


@pytest.fixture(scope="module")
def inverted_xl(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Path:
    """A bundle of Stable Diffusion XL's family, with textual inversions and a negative prompt."""
    recipe = write_tiny(tmp_path_factory.mktemp("xl"), tokenizer)
    shutil.rmtree(recipe.parent / "model")
    save_inverted(recipe.parent, tokenizer, "sdxl").rename(recipe.parent / "model")
    table = '[sampling]\nscheduler = "euler"\nguidance = 5.0\nnegative_prompt = "an ugly <cat>"\n'
    recipe.write_text(recipe.read_text().replace("[sampling]\n", table) + '[export]\nvariants = ["baked"]\n')
    build(load_recipe(recipe))
    return recipe.parent / "out"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_so_does_stable_diffusion_xl_with_words_of_its_own_and_a_negative_prompt(inverted_xl: Path, tmp_path: Path, backend: str) -> None:
    pictures = []
    for number, prompt in enumerate(("a <cat> on a dog", "a <one> on a dog")):
        (here,) = draw(inverted_xl, Request(prompt, seed=3, backend=backend), tmp_path / f"here{number}.png")
        there = tmp_path / f"there{number}.png"
        cli("generate", inverted_xl, prompt, "--seed", "3", "--backend", backend, "--out", there, cwd=tmp_path)
        assert np.abs(picture(here) - picture(there)).max() <= 1
        pictures.append(picture(there))
    assert np.abs(pictures[0] - pictures[1]).max() > 4
    plain = tmp_path / "plain.png"
    draw(inverted_xl, Request("a <cat> on a dog", seed=3, backend=backend, overrides={"negative_prompt": ""}), plain)
    assert np.abs(pictures[0] - picture(plain)).max() > 4


@pytest.mark.parametrize("policy", ["triggered", "off"])
def test_policies_hold(tiny_bundle: Path, tmp_path: Path, policy: str) -> None:
    (here,) = draw(tiny_bundle, Request(PROMPT, seed=3, policy=policy), tmp_path / "here.png")
    cli("generate", tiny_bundle, PROMPT, "--seed", "3", "--policy", policy, "--out", tmp_path / "there.png", cwd=tmp_path)
    assert np.abs(picture(here) - picture(tmp_path / "there.png")).max() <= 1


def test_a_bundle_is_verified_and_inspected(tiny_bundle: Path, tmp_path: Path) -> None:
    assert json.loads(cli("verify", tiny_bundle, "--json", cwd=tmp_path).stdout)
    assert json.loads(cli("inspect", tiny_bundle, "--json", cwd=tmp_path).stdout)


def test_steps_that_are_not_in_the_bundle_say_what_they_need(tiny_bundle: Path, tmp_path: Path) -> None:
    assert (tiny_bundle / STEPS_FILE).is_file()
    out = tmp_path / "out.png"
    done = cli("generate", tiny_bundle, PROMPT, "--steps", "5", "--out", out, cwd=tmp_path, code=4)
    assert "pip install 'nemo-edge[build]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    "command", [("calibrate", "model", "prompts.txt", "--out", "statistics"), ("build", "recipe.toml"), ("bench", "BUNDLE")]
)
def test_what_needs_pytorch_says_so(tiny_recipe: Path, tiny_bundle: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "prompts.txt").write_text("a pig\n")
    places = {
        "model": tiny_recipe.parent / "model",
        "recipe.toml": tiny_recipe,
        "BUNDLE": tiny_bundle,
        "prompts.txt": tmp_path / "prompts.txt",
    }
    done = cli(*(places.get(part, part) for part in command), cwd=tmp_path, code=4)
    assert "pip install 'nemo-edge[build]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_doctor_tells_what_is_here_for(tmp_path: Path) -> None:
    told = cli("doctor", cwd=tmp_path, code=4).stdout
    assert "build does not work here, generate does" in " ".join(told.split())
    assert "pip install 'nemo-edge[build]'" in told
    rows = {probe["backend"]: probe["runs"] for probe in json.loads(cli("doctor", "--json", cwd=tmp_path, code=4).stdout)["backends"]}
    assert (rows["torch"], rows["openvino"]) == (False, True)


def test_so_does_the_library(tmp_path: Path) -> None:
    program = "import nemo_edge\ntry: nemo_edge.load_pipeline\nexcept Exception as error: print(type(error).__name__, error)"
    assert "MissingDependency" in (said := run("-c", program, cwd=tmp_path).stdout)
    assert "nemo-edge[build]" in said


def test_a_served_pipeline_draws(shippable: Path, tmp_path: Path) -> None:
    """What Triton runs, without the server: the painter of a shipped version, its models opened in the same process."""
    from nemo_edge.serving.repository import ship

    repository = tmp_path / "repository"
    ship(shippable, repository)
    (here,) = draw(shippable, Request(PROMPT, seed=3, policy="always"), tmp_path / "here.png")
    program = (
        "import json, sys, numpy as np\n"
        "from contextlib import ExitStack\n"
        "from pathlib import Path\n"
        "from nemo_edge.serving.local import open_painter\n"
        "from nemo_edge.serving.requests import read_json\n"
        "with ExitStack() as stack:\n"
        "    asked = read_json(json.dumps({'prompt': sys.argv[2], 'seed': 3, 'policy': 'always'}).encode())\n"
        "    np.save(sys.argv[3], open_painter(Path(sys.argv[1]), stack).paint(asked).pictures[0])\n"
    )
    run("-c", program, repository, PROMPT, tmp_path / "there.npy", cwd=tmp_path)
    assert np.abs(picture(here) - np.load(tmp_path / "there.npy").astype(int)).max() <= 1
    done = run("-c", program.replace("'seed': 3", "'steps': 5"), repository, PROMPT, tmp_path / "other.npy", cwd=tmp_path, code=1)
    assert done.stderr.strip().splitlines()[-1].endswith("InputError: steps 5 are not those of this pipeline: leave them out")
