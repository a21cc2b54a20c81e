"""Whatever stands where a file is expected: a line on standard error, exit code 2, 3 or 4, no hang, and nothing half-written.

Commands are called in this process, as a shell would call them, up to their exit code; to start Python anew for each would take hours. A
few are processes of their own, which end as the others do.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import hostile
import pytest
from cli import test_main as test_cli
from cli.test_bundle import COMMANDS
from cli.test_main import Ran, Run
from signing import write_key

from nemo_edge.bundle.manifest import MANIFEST
from nemo_edge.system.files import sha256_file
from nemo_edge.system.terminal import visible

run = test_cli.run
pytestmark = pytest.mark.timeout(600)

_SHARE = 4
"""Of the places and contents, one in so many is tried at each slot, each time others; `slow` tries all."""

Good = dict[str, object]


@pytest.fixture
def good(tmp_path: Path, tiny_recipe: Path, shippable: Path) -> Good:
    (tmp_path / "work").mkdir()
    folder, bundle = tiny_recipe.parent, shippable
    inputs = {"recipe": tiny_recipe, "model": folder / "model", "prompts": folder / "memorized.csv", "bundle": bundle}
    return {
        **inputs,
        "statistics": bundle / "calibration.safetensors",
        "neurons": bundle / "neurons.json",
        "out": tmp_path / "work" / "out",
        "key": write_key(tmp_path / "key.pem")[0],
    }


def assert_told(ran: Ran, out: Path, what: object) -> None:
    """A line that says it, and nothing left; or work that was done, where it could be read after all."""
    assert ran.code in (0, 2, 3, 4), (what, ran)
    for text in (ran.out, ran.err):
        assert visible(text).replace("\\r", "") == text.replace("\r", ""), (what, "a control character reaches the terminal")
    if ran.code in (2, 4) and (ran.err or not ran.out):  # `verify` says on standard output what differs
        assert ran.err.splitlines()[-1].startswith("nemo-edge: "), (what, ran)
        for path in (out, out.with_suffix(".toml")):
            assert not path.exists(), (what, "something is left of a command that was refused")


def tried(run: Run, slot: str, good: Good, folder: Path, names: list[str]) -> None:
    for name in names:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

        def bad(ending: str, name: str = name) -> str:
            if name in hostile.CONTENTS:
                path = folder / f"bad{ending.rstrip('/')}"
                path.write_bytes(hostile.CONTENTS[name])
                return str(path)
            return hostile.PLACES[name](folder)

        with chdir(folder):  # which an empty path stands for
            ran = run(*hostile.filled(slot, bad, good))
        assert_told(ran, Path(str(good["out"])), (slot, name))


NAMES = [*hostile.CONTENTS, *hostile.PLACES]


def share(slot: str) -> list[str]:
    return NAMES[list(hostile.SLOTS).index(slot) % _SHARE :: _SHARE]


@pytest.mark.parametrize("slot", hostile.SLOTS)
def test_what_is_no_input_is_told(run: Run, good: Good, tmp_path: Path, slot: str) -> None:
    tried(run, slot, good, tmp_path / "in", share(slot))


@pytest.mark.slow
@pytest.mark.parametrize("slot", hostile.SLOTS)
def test_whatever_is_no_input_is_told(run: Run, good: Good, tmp_path: Path, slot: str) -> None:
    tried(run, slot, good, tmp_path / "in", NAMES)


MEMBERS = [
    *("manifest.json", "neurons.json", "policies.json", "measurement.json", "localization.jsonl", "model_index.json", "unet/config.json"),
    *("scheduler/steps.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
    *(
        "engines/unet.onnxruntime.cpu.json",
        "unet/model.onnx",
        "unet/model.onnx.data",
        "text_encoder/config.json",
        "vae_decoder/config.json",
    ),
]
READERS = [["verify"], ["inspect"], ["generate", "a pig", "-o", "{out}", "--steps", "1"], ["report"], ["ship", "--to", "{out}"]]


def consistent(bundle: Path) -> None:
    """Write the manifest anew, so that each hash in it is right."""
    content = json.loads((bundle / MANIFEST).read_bytes())
    content["files"] = {name: sha256_file(bundle / name) for name in content["files"] if (bundle / name).is_file()}
    (bundle / MANIFEST).write_text(json.dumps(content))


def of_member(name: str) -> list[tuple[str, list[list[str]]]]:
    """What takes the place of a bundle's member, and the commands that are then given the bundle."""
    numbered = [(number, kind) for number, kind in enumerate(hostile.CONTENTS) if (number + MEMBERS.index(name)) % 5 == 0]
    return [(kind, [READERS[0], READERS[1 + number % (len(READERS) - 1)]]) for number, kind in numbered]


@pytest.mark.parametrize("name", MEMBERS)
def test_a_bundle_with_a_broken_member_is_told(run: Run, good: Good, tmp_path: Path, name: str) -> None:
    for kind, commands in of_member(name):
        bundle = tmp_path / "bundle"
        shutil.rmtree(bundle, ignore_errors=True)
        shutil.copytree(Path(str(good["bundle"])), bundle, ignore=shutil.ignore_patterns("pictures"))
        (bundle / name).write_bytes(hostile.CONTENTS[kind])
        if name != MANIFEST:
            consistent(bundle)
        for command, *options in commands:
            out = Path(str(good["out"]))
            assert_told(run(command, bundle, *(option.format(**good) for option in options)), out, (command, name, kind))
            shutil.rmtree(out, ignore_errors=True)
            out.unlink(missing_ok=True)


PARTS = [
    *("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"),
    *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "unet/diffusion_pytorch_model.safetensors"),
    "text_encoder/model.safetensors",
]


SEEDS = range(8)


def of_part(name: str) -> list[str]:
    """What takes the place of a checkpoint's part; beside it are `SEEDS` changes of the part itself."""
    return [kind for number, kind in enumerate(hostile.CONTENTS) if (number + PARTS.index(name)) % 3 == 0]


@pytest.mark.parametrize("name", PARTS)
def test_a_checkpoint_with_a_broken_part_is_told(run: Run, good: Good, tmp_path: Path, name: str) -> None:
    kept = (Path(str(good["model"])) / name).read_bytes()
    model = shutil.copytree(Path(str(good["model"])), tmp_path / "model")
    broken = {kind: hostile.CONTENTS[kind] for kind in of_part(name)} | {f"{seed}": hostile.changed(kept, seed) for seed in SEEDS}
    for kind, content in broken.items():
        (model / name).write_bytes(content)
        assert_told(run("inspect", model), tmp_path / "nothing", (name, kind))


HUGE = "9" * 5000
OUT = ("-o", "{out}")
TAKEN: list[tuple[tuple[str, ...], str, tuple[str, ...]]] = [
    (("generate", "{bundle}", "p", *OUT), "--seed --steps --guidance --height --width", (HUGE, "-1", "nan", "1e999", str(2**63 - 1))),
    (("generate", "{bundle}", "p", *OUT, "--height", "8192", "--count", "64"), "--width", ("8192",)),
    (("compare", "{bundle}", "{bundle}"), "--seed --steps --limit --tolerance", (HUGE, "nan")),
    (("bench", "{bundle}"), "--batch --steps --runs --seconds --threads", (HUGE, "-1", "1e999")),
    (("bench", "{bundle}"), "--size", ("99999999x8", "8x", f"{HUGE}x8", "8192x8192", "²x²")),
    (("attack", "{model}", *OUT, "--prompts", "{prompts}"), "--seed --steps --seeds --words --batches --candidates", (HUGE,)),
    (("audit", "http://h", *OUT, "--prompts", "{prompts}"), "--seed --seeds --timeout --most", (HUGE,)),
    (("detect", "{model}", "{prompts}", "--statistics", "{statistics}"), "--threshold", (HUGE, "nan", "-inf")),
    (("localize", "{model}", "{prompts}", "--statistics", "{statistics}", *OUT), "--paraphrases", (HUGE, "-1")),
    (("export", "{model}", *OUT), "--opset --clip-skip --dtype", (HUGE, "\x1b[31m")),
    (("calibrate", "{model}", "{prompts}", *OUT), "--limit", (HUGE, "-1")),
    (("kserve", "{out}", "--name", "\x1b[31m", "--storage", "s3://b", "--image", "i"), "--replicas --gpus", (HUGE,)),
]
"""A command, its options that are tried, and the values that each of them is given."""
NUMBERS = [
    ("generate", "{bundle}", "p\udc80", *OUT, "--steps", "1"),
    ("generate", "{bundle}", "p\x1b]52;c;AAAA\x07", *OUT, "--variant", "\x1b[2J\u202e"),
    *((*command, option, value) for command, options, values in TAKEN for option in options.split() for value in values),
]


@pytest.mark.parametrize("arguments", NUMBERS, ids=[f"{number} {' '.join(a[:1] + a[-2:])[:40]!a}" for number, a in enumerate(NUMBERS)])
def test_a_number_that_nobody_means_is_told(run: Run, good: Good, arguments: tuple[str, ...]) -> None:
    ran = run(*(argument.format(**good) for argument in arguments))
    assert_told(ran, Path(str(good["out"])), arguments)


def test_a_process_ends_as_the_command_line_does_here(good: Good, tmp_path: Path) -> None:
    for name, place in hostile.PLACES.items():
        if name not in ("pipe", "zero", "surrogate", "escape", "long-path"):
            continue
        path = place(tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", "nemo_edge.cli", "gate", str(good["bundle"]), "--recipe", path],
            capture_output=True, text=True, timeout=120, check=False, errors="surrogateescape",
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, ""), (name, done)
        assert re.fullmatch(r"nemo-edge: [^\x00-\x1f\x7f-\x9f\u202e]+\n", done.stderr), (name, done)


PAGE = Path(__file__).parents[2] / "docs" / "what-is-taken.md"


def test_the_inputs_are_of_every_command_and_as_many_as_the_page_says() -> None:
    tried = [hostile.SLOTS[slot][0] for slot in hostile.SLOTS for _ in share(slot)]
    tried += [command for name in MEMBERS for _, commands in of_member(name) for command, *_ in commands]
    tried += ["inspect" for name in PARTS for _ in (*of_part(name), *SEEDS)]
    tried += [command for command, *_ in NUMBERS]
    more = len(hostile.SLOTS) * len(NAMES)
    print(f"{len(tried)} bad inputs of {len({*tried})} commands, and {more:,} in `make slow`")
    assert {*tried} == {*COMMANDS}
    assert len(tried) >= 300
    assert f"{len(tried)} inputs of {len(COMMANDS)} commands, {more:,} in `make slow`" in PAGE.read_text()
