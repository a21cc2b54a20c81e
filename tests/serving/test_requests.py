"""What a client asks for: every bad request has its own clear line, and none repeats the prompt."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.serving.golden import request
from nemo_edge.serving.requests import read_json, read_request
from nemo_edge.system.errors import InputError

DEFAULTS = SamplingSettings(steps=7, guidance=3.0, negative_prompt="blurred")


def test_what_is_not_given_is_the_recipe_s() -> None:
    found = read_request(request(prompt="a red pig"), DEFAULTS)
    assert (found.prompts, found.seeds, found.policy) == (("a red pig",), (0,), "always")
    assert found.settings == DEFAULTS


def test_what_is_given_goes_before_the_recipe_s() -> None:
    found = read_request(
        request(prompt="ein Schwein, süß", negative_prompt="", steps=3, guidance=2.5, seed=9, height=64, width=128, policy="off"), DEFAULTS
    )
    assert found.prompts == ("ein Schwein, süß",)
    assert (found.seeds, found.policy) == ((9,), "off")
    assert found.settings == SamplingSettings(steps=3, guidance=2.5, negative_prompt="", height=64, width=128)


def test_several_prompts_have_a_seed_each() -> None:
    prompts = {"prompt": np.array([b"a", b"b", b"c"], object)}
    assert read_request(prompts, DEFAULTS).seeds == (0, 1, 2)
    assert read_request({**prompts, "seed": np.array([5])}, DEFAULTS).seeds == (5, 6, 7)
    assert read_request({**prompts, "seed": np.array([5, 5, 1])}, DEFAULTS).seeds == (5, 5, 1)
    with pytest.raises(InputError, match="seed has 2 values for 3 prompts"):
        read_request({**prompts, "seed": np.array([5, 6])}, DEFAULTS)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 0}, "steps 0: input should be greater than or equal to 1"),
        ({"steps": 1001}, "steps 1001: input should be less than or equal to 1000"),
        ({"guidance": float("nan")}, "guidance nan is not finite"),
        ({"guidance": float("inf")}, "guidance inf is not finite"),
        ({"guidance": -1.0}, "guidance -1.0: input should be greater than or equal to 0"),
        ({"height": 100}, "height 100: input should be a multiple of 8"),
        ({"width": 0}, "width 0: input should be greater than or equal to 8"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"negative_prompt": "x" * 100_000}, "negative_prompt has 100000 bytes: give 65536 at the most"),
    ],
)
def test_settings_out_of_their_range_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        read_request(request(prompt="a secret pig", **values), DEFAULTS)
    assert "secret" not in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([b"secret" * 200_000], "prompt has 1200000 bytes"),
        ([b"secret \xff"], "prompt is not UTF-8"),
        ([b"secret"] * 9, "the request has 9 prompts: give 1 to 8"),
        ([], "the request has 0 prompts"),
    ],
)
def test_prompts_that_cannot_be_drawn_are_refused_without_repeating_them(prompts: list[bytes], said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        read_request({"prompt": np.array(prompts, object)}, DEFAULTS)
    assert "secret" not in str(refused.value)


def test_a_setting_has_one_value_and_a_request_a_prompt() -> None:
    with pytest.raises(InputError, match="steps has 2 values"):
        read_request({"prompt": np.array([b"a"], object), "steps": np.array([1, 2], np.int32)}, DEFAULTS)
    with pytest.raises(InputError, match="the request has no prompt"):
        read_request({}, DEFAULTS)


def test_json_says_what_tensors_say() -> None:
    content = '{"prompt": "süß", "negative_prompt": "", "steps": 3, "guidance": 2, "seed": 9, "height": 64, "width": null, "policy": "off"}'
    tensors = request(prompt="süß", negative_prompt="", steps=3, guidance=2.0, seed=9, height=64, policy="off")
    assert read_request(read_json(content.encode()), DEFAULTS) == read_request(tensors, DEFAULTS)
    assert read_request(read_json(b'{"prompt": "a"}'), DEFAULTS) == read_request(request(prompt="a"), DEFAULTS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Invalid JSON"),
        (b'["a secret pig"]', "should be an object"),
        (b'{"prompt": "a secret \xff pig"}', "Invalid JSON"),
        (b'{"seed": 1}', "prompt: Field required"),
        (b'{"prompt": ["a secret pig"]}', "prompt: Input should be a valid string"),
        (b'{"prompt": "a secret pig", "steps": 2.5}', "steps: Input should be a valid integer"),
        (b'{"prompt": "a secret pig", "steps": true}', "steps: Input should be a valid integer"),
        (b'{"prompt": "a secret pig", "seed": 9223372036854775808}', "seed: Input should be less than 9223372036854775808"),
        (b'{"prompt": "a secret pig", "scheduler": "x"}', "scheduler: Extra inputs are not permitted; it may have prompt, negative_prompt"),
        (b'{"prompt": "a secret pig", "guidance": NaN}', "guidance nan is not finite"),
    ],
)
def test_json_that_is_no_request_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        read_request(read_json(content), DEFAULTS)
    assert "secret" not in str(refused.value)
