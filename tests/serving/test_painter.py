"""The pipeline's loop over served models, here over the same runners in this process: the pictures are the library's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dropin import test_load as test_dropin
from dropin.test_load import Model
from served import with_cluster

from nemo_edge.backends.base import Runner
from nemo_edge.bundle.policies import Policies
from nemo_edge.model.checkpoint import open_checkpoint
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.serving.golden import LEVELS, Golden, make_golden, request
from nemo_edge.serving.painter import Call, Painter
from nemo_edge.serving.repository import ship
from nemo_edge.serving.updates import PoliciesInForce
from nemo_edge.serving.versions import open_engine, read_pipeline
from nemo_edge.system.errors import BundleError, InputError

Calls = list[tuple[str, int]]
sdxl = test_dropin.sdxl


def levels(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


def in_process(runners: Mapping[str, Runner], calls: Calls) -> Call:
    """Calls models as the server does, and keeps which."""

    def call(model: str, version: int, outputs: tuple[str, ...], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        calls.append((model, version))
        rowwise = {n: a[:, 0] if runners[model].inputs[n] == ("batch",) else a for n, a in arrays.items()}
        found = runners[model](rowwise)
        return {name: found[name] for name in outputs}

    return call


@pytest.fixture(scope="module")
def calls() -> Calls:
    return []


@pytest.fixture(scope="module")
def painters(shippable: Path, calls: Calls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Painter]]:
    """A painter of each variant, whose models are the engines of a repository, opened here as the server opens them."""
    with ExitStack() as stack:
        found = {}
        for variant in ("masked", "baked"):
            repository = tmp_path_factory.mktemp("painter") / variant
            models = ship(shippable, repository, variant=variant).models
            runners = {name: stack.enter_context(open_engine(repository / name / "1")) for name in models if name != "pipeline"}
            found[variant] = Painter.open(repository / "pipeline" / "1", in_process(runners, calls))
        yield found


@pytest.fixture(params=["masked", "baked"])
def painter(request: pytest.FixtureRequest, painters: dict[str, Painter]) -> Painter:
    return painters[request.param]


@pytest.fixture
def masked(painters: dict[str, Painter]) -> Painter:
    return painters["masked"]


def test_the_picture_is_the_library_s(painter: Painter, golden: Golden) -> None:
    painting = painter.paint(golden.tensors)
    assert levels(painting.pictures, golden.picture) <= LEVELS
    assert painting.score_B.tolist() == [1]


def test_every_call_is_of_the_pipeline_s_own_version(painter: Painter, calls: Calls) -> None:
    calls.clear()
    painter.paint(request(prompt="a red pig", steps=2))
    assert [model for model, _ in calls if model != "text_encoder"] == ["unet", "unet", "vae_decoder"]
    assert {version for _, version in calls} == {1}


def test_pictures_of_one_request_are_those_of_several(painter: Painter) -> None:
    both = {"prompt": np.array([b"a red pig", b"an owl"], object), "seed": np.array([3, 8]), "steps": np.array([2], np.int32)}
    pictures = painter.paint(both).pictures.astype(int)
    alone = [painter.paint(request(prompt=p, seed=s, steps=2)).pictures[0] for p, s in (("a red pig", 3), ("an owl", 8))]
    assert np.abs(pictures - np.stack(alone)).max() <= LEVELS
    assert np.abs(pictures[0] - pictures[1]).max() > 10


def test_the_policy_decides_what_is_silenced(masked: Painter, shippable: Path) -> None:
    found, free = (masked.paint(request(prompt="a red pig", steps=2, policy=name)) for name in ("always", "off"))
    assert found.silenced_B is not None
    assert free.silenced_B is not None
    assert found.silenced_B.tolist() == [len(NeuronSet.load(shippable / "neurons.json"))]
    assert (free.silenced_B.tolist(), free.score_B.tolist()) == ([0], [0])
    assert not np.array_equal(found.pictures, free.pictures)


@pytest.mark.parametrize("name", ["off", "triggered", "cluster:a-red-pig"])
def test_baked_neurons_are_silenced_whatever_is_asked_for(painters: dict[str, Painter], name: str) -> None:
    assert painters["baked"].paint(request(prompt="a red pig", steps=1)).silenced_B is None
    with pytest.raises(InputError, match=f"unknown policy '{name}': this pipeline has always, since its neurons are baked"):
        painters["baked"].paint(request(prompt="a red pig", policy=name))


def test_triggered_leaves_the_pictures_of_other_prompts_as_they_are(masked: Painter, shippable: Path) -> None:
    """In one request: of the memorized prompt the neurons of its cluster are silenced, of the other none, bit for bit."""
    both = {"prompt": np.array([b"a red pig", b"a dog"], object), "seed": np.array([3, 8]), "steps": np.array([2], np.int32)}
    own = Policies.load(shippable / "policies.json").neurons["cluster:a-red-pig"]
    assert own is not None
    found, free, cluster = (masked.paint({**both, **request(policy=name)}) for name in ("triggered", "off", "cluster:a-red-pig"))
    assert found.silenced_B is not None
    assert found.silenced_B.tolist() == [len(own), 0]
    assert found.score_B[0] > 0.999 > found.score_B[1]
    assert np.array_equal(found.pictures[1], free.pictures[1])
    assert np.array_equal(found.pictures[0], cluster.pictures[0])
    assert not np.array_equal(found.pictures[0], free.pictures[0])


def test_a_negative_prompt_triggers_nothing(masked: Painter) -> None:
    found = masked.paint(request(prompt="a dog", negative_prompt="a red pig", steps=1, policy="triggered"))
    assert found.silenced_B is not None
    assert found.silenced_B.tolist() == [0]


def test_merged_clusters_are_all_the_neurons(masked: Painter) -> None:
    names = [name for name in masked.policies().neurons if name.startswith("cluster:")]
    assert len(names) == 2
    merged = masked.paint(request(prompt="a red pig", steps=1, policy=",".join(reversed(names))))
    assert merged.policy == ",".join(sorted(names))
    assert np.array_equal(merged.pictures, masked.paint(request(prompt="a red pig", steps=1)).pictures)


def test_a_size_of_its_own(painter: Painter) -> None:
    assert painter.paint(request(prompt="a red pig", steps=1, height=64, width=32)).pictures.shape == (1, 64, 32, 3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"height": 100}, "height 100: input should be a multiple of 8"),
        ({"width": 1 << 20}, "width 1048576: input should be less than or equal to 8192"),
        ({"policy": "nobody"}, "unknown policy 'nobody'"),
        ({"steps": 0}, "steps 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_any_model_is_called(
    painter: Painter, calls: Calls, values: dict[str, object], said: str
) -> None:
    calls.clear()
    with pytest.raises(InputError, match=said):
        painter.paint(request(prompt="a red pig", **values))
    assert calls == []


def test_a_size_off_the_unet_s_grid_is_refused_with_the_nearest_ones(shippable: Path, tmp_path: Path) -> None:
    ship(shippable, tmp_path / "repository")
    version = tmp_path / "repository" / "pipeline" / "1"
    opened = Configuration.load(version)
    deeper = replace(opened, unet={**opened.unet, "down_block_types": ("DownBlock2D",) * 4})
    painter = Painter(read_pipeline(version), deeper, PoliciesInForce(version), lambda model, number, outputs, arrays: {})
    with pytest.raises(InputError, match="height 40 is not a multiple of 16 pixels, which this UNet halves evenly: take 32 or 48"):
        painter.paint(request(prompt="a red pig", height=40))


def test_xl_has_a_second_text_encoder_and_its_pictures_are_the_library_s(sdxl: Model, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shipped = ship(sdxl.bundle, repository)
    assert shipped.models == ("text_encoder", "text_encoder_2", "vae_decoder", "unet", "pipeline")
    with ExitStack() as stack:
        runners = {name: stack.enter_context(open_engine(repository / name / "1")) for name in shipped.models[:-1]}
        painter = Painter.open(repository / "pipeline" / "1", in_process(runners, []))
        golden = make_golden(sdxl.bundle, steps=2)
        assert levels(painter.paint(golden.tensors).pictures, golden.picture) <= LEVELS
        assert levels(painter.paint({**golden.tensors, **request(policy="off")}).pictures, golden.picture) > LEVELS


def test_xl_is_triggered_by_the_states_of_both_its_encoders(sdxl: Model, tmp_path: Path) -> None:
    states = open_checkpoint(str(sdxl.folder)).encode(["a red pig", "a dog", "a cat"])["encoder_hidden_states"].numpy()
    bundle, repository = with_cluster(sdxl.bundle, tmp_path, "pig", states), tmp_path / "repository"
    models = ship(bundle, repository).models
    with ExitStack() as stack:
        runners = {name: stack.enter_context(open_engine(repository / name / "1")) for name in models if name != "pipeline"}
        painter = Painter.open(repository / "pipeline" / "1", in_process(runners, []))
        both = {"prompt": np.array([b"a red pig", b"a dog"], object), "seed": np.array([3, 8]), "steps": np.array([2], np.int32)}
        found, free, cluster = (painter.paint({**both, **request(policy=name)}) for name in ("triggered", "off", "cluster:pig"))
    assert found.score_B[0] > 0.999 > found.score_B[1]
    assert np.array_equal(found.pictures[1], free.pictures[1])
    assert np.array_equal(found.pictures[0], cluster.pictures[0])
    assert not np.array_equal(found.pictures[0], free.pictures[0])


def test_a_changed_pipeline_is_not_opened(shippable: Path, tmp_path: Path) -> None:
    ship(shippable, tmp_path / "repository")
    version = tmp_path / "repository" / "pipeline" / "1"
    (version / "policies.json").write_text((version / "policies.json").read_text().replace("always", "seldom"))
    with pytest.raises(BundleError, match=r"policies\.json was changed"):
        Painter.open(version, lambda model, number, outputs, arrays: {})
