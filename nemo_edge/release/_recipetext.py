"""A recipe as a person would write it: TOML with a comment for what was found and for what is likely to be changed.

Knows words and TOML; what goes into it is decided elsewhere. Names and messages from elsewhere never leave their line.
"""

from __future__ import annotations

__all__ = ["recipe_text", "schema_line"]

import json
import re
import shlex
import textwrap
from collections.abc import Iterable, Sequence

from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.schema import DIRECTIVE
from nemo_edge.recipe.targets import COMPUTE_CAPABILITIES
from nemo_edge.release._found import Found

_WIDTH = 100
_LISTS = "docs/prompts.md says where lists come from"
_MEMORIZED = "the prompts whose memories are to go: a column `Caption` or `prompt`, and `image` for training pictures that you have"
_GENERAL = "ordinary prompts that are not memorized, one a line: the first calibrate, the last are drawn to see that nothing else changed"


def recipe_text(recipe: Recipe, found: Found, engines: Sequence[str], missing: Sequence[str], file: str, schema: str) -> str:
    """Return the text of `recipe`, with what was `found` of its checkpoint and lines on the `engines` of this machine.

    `missing` are the lists of prompts that are not there yet, `file` is the recipe's own name, `schema` the way to its schema.
    """
    parts = [
        [schema_line(schema), *_comment(f"Check it: {_build(file)} --dry-run; then build it: {_build(file)}")],
        [f"name = {_string(recipe.name)}", f"output = {_string(recipe.output.as_posix())}"],
        [*_said_of(found), "[checkpoint]", f"path = {_string(recipe.checkpoint.path)}", *_checkpoint(recipe)],
        _prompts(recipe, missing),
        ["[calibration]", f"prompts = {recipe.calibration.prompts}"],
        *([["[localization]", f'layers = "{recipe.localization.layers}"']] if recipe.localization.layers != "paper" else []),
        _export(recipe),
        [*_lines(engines), "[engine]", f'backend = "{recipe.engine.backend}"', _place(recipe)],
        *([_targets(recipe)] if recipe.tensorrt_rtx else []),
        _sampling(recipe, found),
        _fidelity(recipe),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _build(file: str) -> str:
    return f"nemo-edge build {shlex.quote(file)}"


def schema_line(schema: str) -> str:
    """The first line of a recipe, which names its schema to an editor."""
    return f"{DIRECTIVE}{_plain(schema)}"


def _said_of(found: Found) -> list[str]:
    sizes = ", ".join(f"{part} {count / 1e6:,.1f} M" for part, count in found.parameters.items())
    readers = " and ".join(f"{width} wide, {tokens} tokens" for width, tokens in found.text_encoders)
    where = "down and mid blocks" if found.layers == "paper" else "up blocks, since the others have none"
    return _lines(
        [
            f"{found.kind} ({found.pipeline}), predicts {found.predicts}, pictures of {found.height} × {found.width} pixels",
            f"parameters: {sizes}",
            f"text encoder{'s' if len(found.text_encoders) > 1 else ''}: {readers}",
            f"memorization neurons can be searched: {found.neurons:,} in {found.value_layers} value layers of the {where}",
            f"its own scheduler: {found.scheduler}",
            *(f"assumed: {note}" for note in found.notes),
        ]
    )


def _checkpoint(recipe: Recipe) -> list[str]:
    allowed = ["allow_pickle = true"] if recipe.checkpoint.allow_pickle else []
    return [*allowed, *([f'device = "{recipe.checkpoint.device}"'] if recipe.checkpoint.device != "cpu" else [])]


def _prompts(recipe: Recipe, missing: Sequence[str]) -> list[str]:
    lines = _comment(f"still to be made: {', '.join(missing)}; {_LISTS}") if missing else []
    lines += ["[prompts]", *_comment(_MEMORIZED), f"memorized = {_string(recipe.prompts.memorized.as_posix())}"]
    return [*lines, *_comment(_GENERAL), f"general = {_string(recipe.prompts.general.as_posix())}"]


def _export(recipe: Recipe) -> list[str]:
    variants = ", ".join(f'"{variant}"' for variant in recipe.export.variants)
    said = _comment('"baked": the neurons are zeroed for good; "masked": each request brings a mask of neurons, for policies')
    return ["[export]", *said, f"variants = [{variants}]", f'dtype = "{recipe.export.dtype}"']


def _place(recipe: Recipe) -> str:
    """Where the engine runs, in the word of who runs it."""
    engine = recipe.engine
    return f'device = "{engine.device}"' if engine.backend == "openvino" else f'provider = "{engine.provider}"'


def _targets(recipe: Recipe) -> list[str]:
    assert recipe.tensorrt_rtx is not None
    targets = recipe.tensorrt_rtx.targets
    gpus = _lines([f"{target}: {COMPUTE_CAPABILITIES[target]}" for target in targets])
    return [*_comment("compiled here, without a GPU, for"), *gpus, "[tensorrt_rtx]", f"targets = {json.dumps(targets)}"]


def _sampling(recipe: Recipe, found: Found) -> list[str]:
    sampling = recipe.sampling
    size = [f"{name} = {pixels}" for name, pixels in (("height", sampling.height), ("width", sampling.width)) if pixels]
    chosen = [f'scheduler = "{sampling.scheduler}"', f"steps = {sampling.steps}", f"guidance = {sampling.guidance}"]
    return [*_comment(found.sampler.why), "[sampling]", *chosen, *size]


def _fidelity(recipe: Recipe) -> list[str]:
    drawn = f"seeds = {recipe.fidelity.seeds} # pictures of each memorized prompt, before and after"
    return ["[fidelity]", drawn, f"general_prompts = {recipe.fidelity.general_prompts} # of the end of the list"]


def _lines(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in _comment(text)]


def _comment(text: str) -> list[str]:
    """A text as comments of TOML, whatever is in it."""
    return [f"# {line}" for line in textwrap.wrap(_plain(text), _WIDTH, break_long_words=False, break_on_hyphens=False)]


def _plain(text: str) -> str:
    """A text on one line without characters that TOML has no room for in a comment."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]+", " ", text)


def _string(text: str) -> str:
    """A string of TOML, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
