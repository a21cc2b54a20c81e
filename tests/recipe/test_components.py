"""The names of a bundle's folders are what other tools look for."""

from __future__ import annotations

from typing import get_args

from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.settings import Variant


def test_each_variant_has_a_folder_and_the_baked_one_is_optimum_s() -> None:
    assert set(UNET_FOLDERS) == set(get_args(Variant))
    assert UNET_FOLDERS["baked"] == "unet"
    assert len(set(UNET_FOLDERS.values())) == 2
