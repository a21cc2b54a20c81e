"""Optimization profiles: which shapes a plan is built for, from the pictures a recipe asks for, and which one a request fits.

Pure arithmetic on shapes; nothing of TensorRT. A picture is one row of the VAE's batch, and one or two rows of the others':
the UNet and the text encoders take a row with and, under guidance, a row without the prompt.
"""

from __future__ import annotations

__all__ = ["choose_profile", "plan_profiles", "profile_shapes", "random_feed", "rows_at_once", "rows_of_a_picture"]

from collections.abc import Mapping, Sequence
from math import log

import numpy as np

from nemo_edge.backends.tensorrt.plans import Shapes
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.targets import ProfileSettings
from nemo_edge.system.errors import InputError

_GUIDED = 2
_IMAGE_RANK = 4


def rows_of_a_picture(place: str) -> int:
    """Return how many rows of a component's batch a picture takes under guidance."""
    return 1 if place.startswith("vae") else _GUIDED


def plan_profiles(
    place: str, inputs: Mapping[str, Sequence[int | str | None]], profiles: Sequence[ProfileSettings], config: Configuration
) -> tuple[dict[str, Shapes], ...]:
    """Return the shapes of each profile, those that come out the same once. Raises `InputError` as `profile_shapes`."""
    found: list[dict[str, Shapes]] = []
    for profile in profiles:
        shapes = profile_shapes(place, inputs, profile, config)
        if shapes not in found:
            found.append(shapes)
    return tuple(found)


def profile_shapes(
    place: str, inputs: Mapping[str, Sequence[int | str | None]], profile: ProfileSettings, config: Configuration
) -> dict[str, Shapes]:
    """Return least, most usual and greatest shape of each of a graph's inputs.

    A dimension that the graph pins stays as it is. Raises `InputError` for a profile that wants another there, naming the
    setting that pinned it, and for latents that the UNet does not halve evenly.
    """
    first = next(iter(inputs.values()))[0]
    rows = (first, first, first) if isinstance(first, int) else _rows(place, profile)
    if isinstance(first, int) and "batch" in profile.model_fields_set and profile.batch != rows:
        raise InputError(_pinned(place, "batch", first, profile.batch))
    return {name: _shapes(place, dims, rows, profile, config) for name, dims in inputs.items()}


def choose_profile(
    shapes: Mapping[str, tuple[int, ...]], profiles: Sequence[Mapping[str, Shapes]], place: str, factor: int = 8, table: str = "tensorrt"
) -> int:
    """Return the index of the profile that a request fits, of several the one whose most usual shape is nearest.

    Raises `InputError` that says in rows, pictures and pixels what was asked for and what the plan takes.
    """
    fitting = [i for i, profile in enumerate(profiles) if all(_fits(shape, profile[name]) for name, shape in shapes.items())]
    if not fitting:
        raise InputError(_outside(shapes, profiles, place, factor, table))
    return min(fitting, key=lambda i: _distance(shapes, profiles[i]))


def rows_at_once(shapes: Mapping[str, tuple[int, ...]], profiles: Sequence[Mapping[str, Shapes]]) -> int | None:
    """Return how many rows of a request are run at once where no profile holds all of them; None where one does, or none would."""
    rows = {shape[0] for shape in shapes.values()}
    fitting = [p for p in profiles if all(_fits(shape[1:], _but_rows(p[name])) for name, shape in shapes.items())]
    most = max((min(allowed[2][0] for allowed in profile.values()) for profile in fitting), default=0)
    return most if len(rows) == 1 and 0 < most < rows.pop() else None


def random_feed(profile: Mapping[str, Shapes], seed: int = 0) -> dict[str, np.ndarray]:
    """Return random numbers of a profile's least shapes, float32; for an input of rows alone, time steps."""
    rng, found = np.random.default_rng(seed), {}
    for name, (least, _, _) in profile.items():
        found[name] = rng.standard_normal(least, np.float32) if len(least) > 1 else rng.integers(0, 1000, least).astype(np.float32)
    return found


def _but_rows(allowed: Shapes) -> Shapes:
    least, usual, greatest = allowed
    return least[1:], usual[1:], greatest[1:]


def _rows(place: str, profile: ProfileSettings) -> tuple[int, int, int]:
    """Guidance can be off, so the least number of rows is that of the pictures."""
    least, usual, greatest = profile.batch
    each = rows_of_a_picture(place)
    return least, each * usual, each * greatest


def _shapes(
    place: str, dims: Sequence[int | str | None], rows: tuple[int, int, int], profile: ProfileSettings, config: Configuration
) -> Shapes:
    columns: list[tuple[int, int, int]] = [rows]
    for axis, dim in enumerate(dims[1:], 1):
        size = ("height", "width")[axis - 2] if len(dims) == _IMAGE_RANK and axis > 1 else None
        if size:
            columns.append(_latents(place, size, dim if isinstance(dim, int) else None, profile, config))
        elif isinstance(dim, int):
            columns.append((dim, dim, dim))
        else:
            raise InputError(f"{place} has a dimension {dim!r} of free size that is no batch, height or width: export it again")
    least, usual, greatest = zip(*columns, strict=True)
    return least, usual, greatest


def _latents(place: str, size: str, pinned: int | None, profile: ProfileSettings, config: Configuration) -> tuple[int, int, int]:
    """Least, most usual and greatest number of latents in one direction."""
    pixels = getattr(profile, size)
    if pinned is not None:
        if pixels and pixels != (pinned * config.factor,) * 3:
            raise InputError(_pinned(place, size, pinned * config.factor, pixels))
        return pinned, pinned, pinned
    own = config.pixel_size[0 if size == "height" else 1]
    wanted: tuple[int, int, int] = pixels or (own, own, own)
    multiple = config.factor * config.latent_multiple
    for value in wanted:
        if value % multiple:
            below = value // multiple * multiple or multiple
            raise InputError(
                f"profiles.{size} = {list(wanted)}: {value} is not a multiple of {multiple} pixels, which this UNet halves evenly: take "
                f"{below} or {below + multiple}, or pin it with export.{size} = {value}"
            )
    least, usual, greatest = (value // config.factor for value in wanted)
    return least, usual, greatest


def _pinned(place: str, setting: str, value: int, wanted: Sequence[int]) -> str:
    return (
        f"profiles.{setting} = {list(wanted)}, but export.{setting} = {value} pins the graph of {place}: "
        f"leave profiles.{setting} out, or export.{setting}"
    )


def _fits(shape: Sequence[int], allowed: Shapes) -> bool:
    least, _, greatest = allowed
    return len(shape) == len(least) and all(low <= size <= high for low, size, high in zip(least, shape, greatest, strict=True))


def _distance(shapes: Mapping[str, Sequence[int]], profile: Mapping[str, Shapes]) -> float:
    """How far a request is from what a profile is fastest at: ratios, so that half and double count alike."""
    pairs = [pair for name, shape in shapes.items() for pair in zip(shape, profile[name][1], strict=True)]
    return sum(abs(log(size / usual)) for size, usual in pairs if size and usual)


def _outside(shapes: Mapping[str, Sequence[int]], profiles: Sequence[Mapping[str, Shapes]], place: str, factor: int, table: str) -> str:
    rows = next(iter(shapes.values()))[0]
    pixels = next((shape[2:] for shape in shapes.values() if len(shape) == _IMAGE_RANK), None)
    asked = f"{rows} row{'s' if rows != 1 else ''}"
    asked += f" of {' × '.join(str(n * factor) for n in pixels)} pixels" if pixels else ""
    taken = "; or ".join(dict.fromkeys(_taken(profile, place, factor) for profile in profiles))
    return f"{asked} asked of {place}, this engine takes {taken}: ask for that, or build it with a profile that holds more ([{table}])"


def _taken(profile: Mapping[str, Shapes], place: str, factor: int) -> str:
    least, _, greatest = next(iter(profile.values()))
    each = rows_of_a_picture(place)
    words = f"{_range(least[0], greatest[0])} row{'s' if greatest[0] > 1 else ''}"
    if each > 1 and greatest[0] >= each:
        pictures = _range(-(-least[0] // each), greatest[0] // each)
        words += f" ({pictures} picture{'s' if greatest[0] // each > 1 else ''} with guidance)"
    sizes = next((shapes for shapes in profile.values() if len(shapes[0]) == _IMAGE_RANK), None)
    if sizes:
        pixels = [_range(sizes[0][axis] * factor, sizes[2][axis] * factor) for axis in (2, 3)]
        words += f" of {' × '.join(pixels)} pixels"
    return words


def _range(least: int, greatest: int) -> str:
    return str(least) if least == greatest else f"{least} to {greatest}"
