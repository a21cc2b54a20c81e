"""From pictures to shapes, and from a request to the profile it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest

from nemo_edge.backends.tensorrt.profiles import choose_profile, plan_profiles, profile_shapes, rows_at_once, rows_of_a_picture
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.targets import ProfileSettings
from nemo_edge.system.errors import InputError


@dataclass
class Sizes:
    """What profiles read of a configuration, with Stable Diffusion 1.5's numbers."""

    factor: int = 8
    latent_multiple: int = 8
    pixel_size: tuple[int, int] = (512, 512)


SD = cast(Configuration, Sizes())
UNET = {
    "sample": ("batch", 4, "height", "width"),
    "timestep": ("batch",),
    "encoder_hidden_states": ("batch", 77, 768),
    "text_embeds": ("batch", 1280),
    "time_ids": ("batch", 6),
    "value_mask": ("batch", 5760),
}


def test_a_picture_is_two_rows_of_the_unet_and_one_of_the_decoder() -> None:
    assert [rows_of_a_picture(p) for p in ("text_encoder", "text_encoder_2", "unet", "unet_masked", "vae_decoder")] == [2, 2, 2, 2, 1]


def test_every_input_of_a_unet_gets_its_rows() -> None:
    found = profile_shapes("unet_masked", UNET, ProfileSettings(batch=(1, 2, 4)), SD)
    assert found["sample"] == ((1, 4, 64, 64), (4, 4, 64, 64), (8, 4, 64, 64))
    assert found["timestep"] == ((1,), (4,), (8,))
    assert found["encoder_hidden_states"] == ((1, 77, 768), (4, 77, 768), (8, 77, 768))
    assert found["text_embeds"][2] == (8, 1280)
    assert found["time_ids"][0] == (1, 6)
    assert found["value_mask"] == ((1, 5760), (4, 5760), (8, 5760))


def test_the_decoder_takes_pictures_and_the_text_encoders_rows() -> None:
    profile = ProfileSettings(batch=(2, 3, 4))
    assert profile_shapes("vae_decoder", {"latent_sample": ("batch", 4, "height", "width")}, profile, SD) == {
        "latent_sample": ((2, 4, 64, 64), (3, 4, 64, 64), (4, 4, 64, 64))
    }
    assert profile_shapes("text_encoder", {"input_ids": ("batch", 77)}, profile, SD) == {"input_ids": ((2, 77), (6, 77), (8, 77))}


def test_pixels_become_latents_and_the_models_own_size_is_the_default() -> None:
    found = profile_shapes("unet", UNET, ProfileSettings(batch=1, height=(256, 512, 768)), SD)
    assert found["sample"] == ((1, 4, 32, 64), (2, 4, 64, 64), (2, 4, 96, 64))


def test_the_shapes_of_a_checkpoint_fit_its_component(toy: Checkpoint) -> None:
    component = toy.unet_component()
    found = profile_shapes("unet", {p.name: p.dims for p in component.inputs}, ProfileSettings(), toy.config)
    _, usual, greatest = found["sample"]
    assert component.example(2)["sample"].shape == usual
    assert component.example(8)["sample"].shape == greatest


def test_sizes_that_the_unet_does_not_halve_evenly_are_refused_in_pixels() -> None:
    message = r"profiles.width = \[512, 520, 768\]: 520 is not a multiple of 64 pixels.*take 512 or 576, or pin it with export.width = 520"
    with pytest.raises(InputError, match=message):
        profile_shapes("unet", UNET, ProfileSettings(width=(512, 520, 768)), SD)


PINNED: dict[str, Any] = {"sample": (2, 4, 64, 96), "timestep": (2,)}


def test_what_the_graph_pins_stays() -> None:
    found = profile_shapes("unet", PINNED, ProfileSettings(), SD)
    assert found == {"sample": ((2, 4, 64, 96),) * 3, "timestep": ((2,),) * 3}
    same = ProfileSettings(batch=2, height=512, width=768)
    assert profile_shapes("unet", PINNED, same, SD) == found


@pytest.mark.parametrize(
    ("profile", "setting", "value"),
    [
        (ProfileSettings(batch=(1, 1, 4)), "batch", 2),
        (ProfileSettings(height=(256, 512, 512)), "height", 512),
        (ProfileSettings(width=512), "width", 768),
    ],
)
def test_a_profile_that_disagrees_with_a_pinned_graph_is_refused(profile: ProfileSettings, setting: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"export.{setting} = {value} pins the graph of unet: leave profiles.{setting} out"):
        profile_shapes("unet", PINNED, profile, SD)


def test_another_free_dimension_is_refused() -> None:
    with pytest.raises(InputError, match=r"dimension 'tokens' of free size"):
        profile_shapes("unet", {"states": ("batch", "tokens", 8)}, ProfileSettings(), SD)


def test_profiles_that_come_out_the_same_are_one() -> None:
    several = (ProfileSettings(batch=1), ProfileSettings(batch=1, height=512), ProfileSettings(batch=2))
    assert len(plan_profiles("unet", UNET, several, SD)) == 2
    assert len(plan_profiles("text_encoder", {"input_ids": ("batch", 77)}, several, SD)) == 2


def profiles(*settings: ProfileSettings, place: str = "unet") -> Any:
    inputs = {"sample": ("batch", 4, "height", "width"), "timestep": ("batch",)}
    return plan_profiles(place, inputs, settings, SD)


def asked(rows: int, height: int = 64, width: int = 64) -> dict[str, tuple[int, ...]]:
    return {"sample": (rows, 4, height, width), "timestep": (rows,)}


def test_of_several_profiles_the_nearest_is_chosen() -> None:
    two = profiles(ProfileSettings(batch=(1, 4, 8)), ProfileSettings(batch=(1, 1, 4)))
    assert [choose_profile(asked(rows), two, "unet") for rows in (1, 2, 7, 8, 16)] == [1, 1, 0, 0, 0]
    sizes = profiles(ProfileSettings(), ProfileSettings(height=(256, 1024, 1024), width=(256, 1024, 1024)))
    assert [choose_profile(asked(2, n, n), sizes, "unet") for n in (64, 128)] == [0, 1]


def test_a_request_outside_is_refused_in_rows_pictures_and_pixels() -> None:
    found = profiles(ProfileSettings(batch=(1, 1, 4)))
    message = (
        r"12 rows of 512 × 512 pixels asked of unet, this engine takes 1 to 8 rows \(1 to 4 pictures with guidance\) of 512 × 512 pixels"
    )
    with pytest.raises(InputError, match=message):
        choose_profile(asked(12), found, "unet")
    wide = profiles(ProfileSettings(batch=2, width=(512, 512, 768)))
    with pytest.raises(InputError, match=r"2 to 4 rows \(1 to 2 pictures with guidance\) of 512 × 512 to 768 pixels.*\[tensorrt_rtx\]"):
        choose_profile(asked(4, 128, 128), wide, "unet", table="tensorrt_rtx")


def test_more_rows_than_a_profile_holds_are_run_in_parts_where_their_size_fits() -> None:
    found = profiles(ProfileSettings(batch=(1, 1, 4)), ProfileSettings(batch=(1, 1, 2), height=1024, width=1024))
    assert [rows_at_once(asked(rows), found) for rows in (1, 8, 9, 20)] == [None, None, 8, 8]
    assert [rows_at_once(asked(rows, 128, 128), found) for rows in (4, 20)] == [None, 4]
    assert rows_at_once(asked(20, 96, 96), found) is None  # refused as ever
    assert rows_at_once({**asked(20), "timestep": (1,)}, found) is None


def test_the_decoders_rows_are_pictures() -> None:
    found = profiles(ProfileSettings(batch=1), place="vae_decoder")
    with pytest.raises(InputError, match=r"2 rows of 512 × 512 pixels asked of vae_decoder, this engine takes 1 row of 512 × 512 pixels"):
        choose_profile(asked(2), found, "vae_decoder")


def test_all_profiles_are_named_and_an_input_without_pixels_has_none() -> None:
    found = plan_profiles("text_encoder", {"input_ids": ("batch", 77)}, (ProfileSettings(batch=1), ProfileSettings(batch=4)), SD)
    with pytest.raises(InputError, match=r"3 rows asked of text_encoder, this engine takes 1 to 2 rows .*; or 4 to 8 rows"):
        choose_profile({"input_ids": (3, 77)}, found, "text_encoder")
