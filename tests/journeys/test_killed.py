"""Every command that writes, killed at every rename, link and removal of a folder: what was there is there or its successor is, and the
same command once more ends as one that was never disturbed, with nothing left over.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from conftest import write_tiny
from kills import Call, reached, server, tree, unexchanged
from PIL import Image
from signing import write_key
from transformers import CLIPTokenizer

from nemo_edge.bundle.manifest import verify
from nemo_edge.bundle.revocations import Revocations, revoke
from nemo_edge.bundle.signature import Signer, Trust, sign
from nemo_edge.hardening.harden import HARDENING, harden
from nemo_edge.localization.promptlists import localize
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.hardening import HardeningSettings
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.recipe.settings import CheckpointSettings, GateSettings, SamplingSettings
from nemo_edge.release.build import build
from nemo_edge.release.rebake import rebake
from nemo_edge.release.review import judge_again, report_again
from nemo_edge.sampling.generate import Request, draw
from nemo_edge.serving.hotupdate import ship_masks
from nemo_edge.serving.repository import ship
from nemo_edge.serving.versions import PIPELINE, newest_pipeline, read_engine, read_pipeline
from nemo_edge.system.errors import InputError

VOLATILE = (
    *("manifest.json", "report/index.html", "report/report.json", "report/junit.xml", "report/model_card.md"),
    *("stage.json", "times.json", "localization.jsonl", "localization_times.jsonl", "exported.json", "hardening.json", "/config.json"),
    *("manifest.sig", "revoked.json"),
)
"""Files that say when they were made, or how long that took; no two signatures of one thing are alike."""


@dataclass(frozen=True)
class Command:
    """A command in a folder that holds a finished bundle, `bundle`; `before` is what it finds done."""

    call: Call
    fewest: int
    """Points at which it was killed when this was written: fewer are a test that has gone blind."""
    whole: Callable[[Path], object]
    """Raises unless what a kill leaves can be used."""
    before: Call = lambda _: None
    part: str = ""
    """What is in the names of the points at which it is killed: the stage of a build."""
    done: str = ""
    """What is in the name of the rename by which the command is done, of one that does as much again when it is called again."""


def building(folder: Path) -> None:
    build(load_recipe(folder / "recipe.toml"))


def rebaking(folder: Path) -> None:
    own = NeuronSet.load(folder / "out" / "neurons.json")
    NeuronSet.from_lists(own.layers, [[1, 6], [0, 2, 3]]).save(folder.parent / f"{folder.name}.json")
    rebake(folder / "out", folder.parent / f"{folder.name}.json")


def judging(folder: Path) -> None:
    judge_again(folder / "out", GateSettings(memorization_score=False, schedule_floor=False, general_drift=0.2), write=True)


def reporting(folder: Path) -> None:
    report_again(folder / "out")


def shipping(folder: Path) -> None:
    ship(folder / "out", folder / "repository")


def shipping_masks(folder: Path) -> None:
    ship_masks(folder / "out", folder / "repository")


def keys(folder: Path) -> None:
    write_key(folder / "key.pem")


def signing(folder: Path) -> None:
    sign(folder / "out", Signer(key=folder / "key.pem"))


def revoking(folder: Path) -> None:
    revoke(folder / "revoked.json", ["1" * 64], Signer(key=folder / "key.pem"))


def revoking_more(folder: Path) -> None:
    revoke(folder / "revoked.json", ["2" * 64], Signer(key=folder / "key.pem"))


def revoking_once(folder: Path) -> None:
    keys(folder)
    revoking(folder)


def list_is_signed(folder: Path) -> None:
    bundle_is_whole(folder)
    if (folder / "revoked.json").exists():
        Revocations.load(folder / "revoked.json", Trust(public_key=folder / "key.pub"))


def drawing(folder: Path) -> None:
    draw(folder / "out", Request("a red pig", count=2), folder / "pictures" / "pig.png")


def localizing(folder: Path) -> None:
    statistics = folder / "out" / "calibration.safetensors"
    localize(str(folder / "model"), ["a red pig"], statistics, folder / "found", samples=2)


def hardening(folder: Path) -> None:
    Image.new("RGB", (32, 32), "pink").save(folder / "pig.png")
    (folder / "known.csv").write_text("Caption;image\na red pig;pig.png\n")
    source, output = CheckpointSettings(path=str(folder / "model")), folder / "hardened"
    lists = folder / "out" / "neurons.json", folder / "known.csv", folder / "general.txt"
    with suppress(InputError) if (output / HARDENING).is_file() else nullcontext():  # it is there already
        harden(source, *lists, output, HARDEN, SamplingSettings(steps=1, guidance=1.0))


def bundle_is_whole(folder: Path) -> None:
    assert verify(folder / "out").passed


def nothing_or_whole(folder: Path) -> None:
    if (folder / "out").exists():
        bundle_is_whole(folder)


def whole_or_aside(folder: Path) -> None:
    """Between two renames the bundle is beside its place; whoever looks for it puts it back."""
    assert (folder / "out").exists() or (folder / ".out.former").exists()
    bundle_is_whole(folder)


def repository_is_whole(folder: Path) -> None:
    """The newest pipeline, where there is one, calls versions that are there."""
    bundle_is_whole(folder)
    if (folder / "repository" / PIPELINE).is_dir() and any(p.name.isdigit() for p in (folder / "repository" / PIPELINE).iterdir()):
        newest = read_pipeline(newest_pipeline(folder / "repository"))
        for name in newest.models:
            read_engine(folder / "repository" / name / str(newest.number))


def without(stage: str, folder: Path) -> None:
    """Take a stage's results away, and the bundle: all other stages are done."""
    shutil.rmtree(folder / "out")
    for path in (folder / ".out.build").glob(f"{stage}-*"):
        shutil.rmtree(path)


def nothing_is_there(folder: Path) -> None:
    assert not (folder / "out").exists()


def absent(name: str) -> Callable[[Path], None]:
    """What checks that a checkpoint or an export is absent or whole."""

    def check(folder: Path) -> None:
        assert not (folder / name).exists() or (folder / name / "model_index.json").is_file()

    return check


def stage_of_build(name: str, fewest: int) -> Command:
    return Command(building, fewest, nothing_is_there, partial(without, name), f".out.build/{name}-")


STAGES = {"calibrate": 2, "localize": 3, "policies": 2, "export": 19, "measure": 12}
HARDEN = HardeningSettings(rounds=1, attack_steps=1, surrogates=1, general=1, starts=("prompt",), weights="cross-attention")
COMMANDS = {
    **{f"build, {name}": stage_of_build(name, fewest) for name, fewest in STAGES.items()},
    "build, the bundle": Command(building, 14, nothing_or_whole, partial(without, "no stage"), ".part"),
    "rebake": Command(rebaking, 52, bundle_is_whole),
    "rebake where nothing is exchanged": Command(partial(unexchanged, rebaking), 54, whole_or_aside),
    "gate": Command(judging, 49, bundle_is_whole),
    "report": Command(reporting, 49, bundle_is_whole),
    "ship": Command(shipping, 22, repository_is_whole, done=f"/{PIPELINE}/.1."),
    "ship once more": Command(shipping, 22, repository_is_whole, shipping, done=f"/{PIPELINE}/.2."),
    "ship the masks": Command(shipping_masks, 1, repository_is_whole, shipping, done="/policies/.1.json."),
    "sign": Command(signing, 3, bundle_is_whole, keys),
    "revoke": Command(revoking, 4, list_is_signed, keys),
    "revoke one more": Command(revoking_more, 7, list_is_signed, revoking_once),
    "generate": Command(drawing, 2, bundle_is_whole),
    "localize": Command(localizing, 1, bundle_is_whole),
    "harden": Command(hardening, 6, absent("hardened")),
}


@pytest.fixture(scope="module", autouse=True)
def forked() -> Iterator[None]:
    with server(__name__):
        yield


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Path:
    """A folder with a recipe, what it names, and what was built by it: as little as a bundle can be."""
    folder = tmp_path_factory.mktemp("origin")
    recipe = write_tiny(folder, tokenizer)
    text = recipe.read_text()
    for setting, least in (("limit", 1), ("prompts", 2), ("samples", 2), ("steps", 1), ("seeds", 1), ("general_prompts", 1)):
        text = re.sub(rf"(?m)^{setting} = \d+$", f"{setting} = {least}", text)
    recipe.write_text(text + "curve = []\n[gates]\nmemorization_score = false\nschedule_floor = false\n")
    reached(building, folder, folder.parent / f"{folder.name}.points")
    return folder


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_that_is_killed_anywhere_is_finished_by_the_same_command(command: Command, origin: Path, tmp_path: Path) -> None:
    world, undisturbed = tmp_path / "world", tmp_path / "undisturbed"
    shutil.copytree(origin, world)
    command.before(world)
    shutil.copytree(world, undisturbed)
    points = reached(command.call, undisturbed, tmp_path / "points")
    expected = again = tree(undisturbed)
    last = max(number for number, point in enumerate(points, 1) if command.done in point and point.startswith("replace"))
    if command.done:
        reached(command.call, undisturbed, tmp_path / "again")
        again = tree(undisturbed)

    def kill(number: int) -> None:
        folder, log, point = tmp_path / f"at{number}", tmp_path / f"at{number}.log", points[number - 1]
        shutil.copytree(world, folder)
        reached(command.call, folder, log, number)
        command.whole(folder)
        reached(command.call, folder, log)
        found, wanted = tree(folder), expected if not command.done or number <= last else again
        assert found.keys() == wanted.keys(), (point, found.keys() ^ wanted.keys())
        changed = {name for name in found if found[name] != wanted[name] and not name.endswith(VOLATILE)}
        assert not changed, (point, changed)
        shutil.rmtree(folder)

    numbers = [number for number, point in enumerate(points, 1) if command.part in point]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(kill, numbers))
    print(f"killed at {len(done)} points and finished")
    assert len(done) >= command.fewest
