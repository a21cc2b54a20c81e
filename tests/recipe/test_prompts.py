"""Lists of prompts: every form that is read, every file that is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import shared_data

from nemo_edge.recipe.prompts import MAX_SIZE_BYTES, Prompt, check_apart, distinct, read_labelled, read_prompts
from nemo_edge.system.errors import InputError

Write = Callable[[str, str | bytes], Path]


def texts(path: Path) -> list[str]:
    return [prompt.text for prompt in read_prompts(path)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a pig, red\n\n  an öwl \r\n"),
        ("p.txt", b"\xef\xbb\xbfa pig, red\nan \xc3\xb6wl"),
        ("p.csv", 'Caption,URL\n"a pig, red",u\nan öwl,v\n'),
        ("p.csv", ";Caption;URL\n0;a pig, red;u\n1;an öwl;v\n"),
        ("p.csv", '\ufeffprompt\n"a pig, red"\nan öwl\n'),
        ("p.CSV", "x;Prompt\r\n1;a pig, red\r\n2;an öwl\r\n"),
        ("p.jsonl", '{"prompt": "a pig, red"}\n\n{"text": "an öwl"}\n'),
    ],
)
def test_every_form_gives_the_same_prompts(written: Write, name: str, content: str | bytes) -> None:
    assert texts(written(name, content)) == ["a pig, red", "an öwl"]


def test_a_csv_keeps_line_breaks_and_quotes_inside_a_field(written: Write) -> None:
    assert texts(written("p.csv", 'Caption;URL\n"two\nlines; ""quoted""";u\n')) == ['two\nlines; "quoted"']


def test_columns_beside_the_prompt_are_read(written: Write) -> None:
    written("pictures/a.png", b"png")
    path = written("p.csv", "Caption;URL;type;image\na;http://x;VM;pictures/a.png\nb;;;\n")
    assert read_prompts(path) == [
        Prompt(text="a", url="http://x", kind="VM", image=path.parent / "pictures/a.png"),
        Prompt(text="b"),
    ]


def test_the_limit_takes_the_first(written: Write) -> None:
    assert [p.text for p in read_prompts(written("p.txt", "a\nb\nc\n"), limit=2)] == ["a", "b"]


def test_the_official_list_has_500_prompts() -> None:
    prompts = read_prompts(shared_data("memorized_laion_prompts.csv"))
    assert len(prompts) == 500
    assert prompts[0] == Prompt(
        text="The No Limits Business Woman Podcast", url="https://onlinecoach1.hipcast.com/albumart/1000_1618923228.jpg", kind="VM"
    )


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("p.txt", "", "holds no prompt"),
        ("p.txt", " \n\n", "holds no prompt"),
        ("p.csv", "Caption;URL\n", "holds no prompt"),
        ("p.csv", "Caption;URL\na pig;u\n;v\n", "prompt 2 has no text"),
        ("p.jsonl", '{"prompt": ""}\n', "prompt 1 has no text"),
        ("p.txt", b"a pig\0\n", "is binary"),
        ("p.txt", b"a pig\nan owl\na caf\xe9\n", r"not UTF-8 \(line 3\)"),
        ("p.csv", "Title;URL\na pig;u\n", "expected Caption or prompt, found 'Title', 'URL'"),
        ("p.jsonl", '{"prompt": "a"}\nnonsense\n', "line 2 is not JSON"),
        ("p.jsonl", '["a"]\n', "line 1: expected an object"),
        ("p.jsonl", '{"prompt": 3}\n', "prompt 1: prompt is not a text but 3"),
        ("p.jsonl", '{"prompt": "a", "image": 3}\n', "prompt 1: image is not a text but 3"),
        ("p.csv", "Caption;image\na;none.png\n", r"the picture .*none\.png does not exist"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(written: Write, name: str, content: str | bytes, reason: str) -> None:
    path = written(name, content)
    with pytest.raises(InputError, match=reason) as refused:
        read_prompts(path)
    assert str(path) in str(refused.value)


def test_prompts_that_a_text_encoder_reads_as_one_count_once() -> None:
    texts = ["a pig", "A Pig", " a\t pig", "an öwl", "an o\u0308wl", "apig", "a pig."]
    assert [p.text for p in distinct(Prompt(text=text) for text in texts)] == ["a pig", "an öwl", "apig", "a pig."]


def test_prompts_that_are_general_and_memorized_are_counted_and_the_first_named() -> None:
    texts = (["x", "A", "b", "c", "d" * 99, "b"], ["a", "B", "C", "d" * 99])
    general, memorized = ([Prompt(text=text) for text in own] for own in texts)
    with pytest.raises(InputError, match=r"4 of the general prompts in g stand .* of m too \('A', 'b', 'c' and 1 more\): a prompt is"):
        check_apart(general, memorized, Path("g"), Path("m"))
    check_apart(general[:1], memorized, Path("g"), Path("m"))
    with pytest.raises(InputError, match=r"'d{59}…'"):
        check_apart(general[4:], memorized[3:], Path("g"), Path("m"))


def test_a_prompt_cannot_be_listed_as_memorized_and_as_harmless(written: Write) -> None:
    prompts, general = written("p.txt", "a pig\nan owl\n"), written("g.txt", "a bus\nA PIG\n")
    with pytest.raises(InputError, match=r"1 of the general prompts in .*g\.txt .* of .*p\.txt too \('A PIG'\)"):
        read_labelled(prompts, general)
    assert [p.label for p in read_labelled(prompts, written("g.txt", "a bus\n"))] == [True, True, False]
    labelled = written("p.csv", "prompt;type\na pig;VM\na  pig;n\na pig;\n")
    with pytest.raises(InputError, match=r"1 of the general prompts in .*p\.csv"):
        read_labelled(labelled, None)
    assert len(read_labelled(written("p.csv", "prompt;type\na pig;VM\na pig;\n"), None)) == 2


def test_only_a_newline_ends_a_line(written: Write) -> None:
    assert [p.text for p in read_prompts(written("p.txt", "a pig\u2028in the mud\r\nan owl\n"))] == ["a pig\u2028in the mud", "an owl"]
    assert [p.text for p in read_prompts(written("p.jsonl", '{"prompt": "a\u2028pig"}\r\n'))] == ["a\u2028pig"]


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(InputError, match="is a folder"):
        read_prompts(tmp_path)


def test_a_file_over_64_mb_is_refused_unread(written: Write) -> None:
    path = written("p.txt", "a pig\n")
    os.truncate(path, MAX_SIZE_BYTES + 1)
    with pytest.raises(InputError, match="64 MB, more than 64"):
        read_prompts(path)


@pytest.mark.parametrize("general", ["saxophone falafel jubilee.", "Saxophone,  falafel — JUBILEE!", '"saxophone" falafel jubilee'])
def test_punctuation_makes_no_general_prompt_of_a_memorized_one(general: str) -> None:
    memorized = [Prompt(text="saxophone falafel jubilee")]
    with pytest.raises(InputError, match=r"1 of the general prompts in g\.txt stand among the memorized ones of m\.csv too"):
        check_apart([Prompt(text="a red pig"), Prompt(text=general)], memorized, Path("g.txt"), Path("m.csv"))
    check_apart([Prompt(text="saxophone falafel"), Prompt(text="…")], [*memorized, Prompt(text="!")], Path("g.txt"), Path("m.csv"))
