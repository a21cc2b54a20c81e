"""Lists of prompts: every form that is read, every file that is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import shared_data

from nemo_edge.recipe._tables import MAX_SIZE_BYTES
from nemo_edge.recipe.prompts import Prompt, as_prompts, check_apart, distinct, read_labelled, read_prompts
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
        ("p.jsonl", '"a pig, red"\r{"Text": "an öwl"}\r'),
        ("p.txt", b"a pig, red\ran \xc3\xb6wl\r"),
        ("p.csv", 'Caption,URL\r"a pig, red",u\ran öwl,v\r'),
        ("p.csv", "URL\tTEXT\nu\ta pig, red\nv\tan öwl\n"),
        ("p.csv", "TEXT, URL\n'a',u\n".replace("'a'", '"a pig, red"') + "an öwl,v\n"),
        ("p.tsv", "Caption\tURL\na pig, red\tu\nan öwl\tv\n"),
        ("p.tsv", "prompt\na pig, red\nan öwl\n"),
        ("p.tsv", '\n"Caption, in English"\tprompt\nx\ta pig, red\ny\tan öwl\n'),
        ("p.json", '["a pig, red", {"caption": "an öwl"}]'),
        ("p.json", '[\n {"TEXT": "a pig, red", "similarity": 0.3},\n {"TEXT": "an öwl", "similarity": NaN}\n]\n'),
        ("p.txt", "a pig, red\nan öwl\n".encode("utf-16")),
        ("p.txt", "a pig, red\nan öwl\n".encode("utf-16-le")),
        ("p.txt", "a pig, red\nan öwl\n".encode("utf-32")),
        ("p.csv", "\ufeffCaption;URL\r\na pig, red;u\r\nan öwl;v\r\n".encode("utf-16-be")),
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


def test_an_image_folder_s_own_list_names_its_pictures(written: Write) -> None:
    written("folder/images/a.png", b"png")
    row = {"file_name": "images/a.png", "text": "a pig", "width": 64}
    path = written("folder/metadata.jsonl", json.dumps(row) + "\n" + json.dumps({"file_name": None, "text": "an owl"}))
    assert read_prompts(path) == [Prompt(text="a pig", image=path.parent / "images/a.png"), Prompt(text="an owl")]


def test_what_holds_no_prompt_is_left_out_and_told_with_its_line(written: Write) -> None:
    told: list[str] = []
    path = written("p.csv", ';Caption;type\n0;a pig;nan\n1;nan;VM\n2;;VM\n;;\n\n5;A Pig;N\n6;"an owl,\nall grey";\n\n'.replace("\\", ""))
    prompts = read_prompts(path, limit=2, tell=told.append)
    assert [(p.text, p.label) for p in prompts] == [("a pig", None), ("A Pig", False)]
    assert told == [f"prompts file {path}: 3 read, 4 left out (line 3, line 4, line 5, …), 1 duplicate; 1 over several lines (line 8)"]
    for name, content in (("p.json", '["a", null, NaN, {"prompt": "nan"}, {"prompt": NaN}]'), ("p.txt", "a\n\nnan\n \nNaN\n\n\n")):
        told.clear()
        assert texts(written(name, content)) == ["a"]
        read_prompts(written(name, content), tell=told.append)
        assert ": 1 read, 4 left out (" in told[0]


def test_of_two_columns_of_prompts_the_first_is_read_and_that_is_told(written: Write) -> None:
    told: list[str] = []
    path = written("p.csv", "prompt;Caption\nx;a pig\ny;\n")
    assert [p.text for p in read_prompts(path, tell=told.append)] == ["a pig"]
    assert told[0].endswith("1 left out (line 3), 0 duplicates; of the columns Caption, prompt the first was read")


def test_nothing_is_told_of_a_list_that_is_read_whole(written: Write) -> None:
    told: list[str] = []
    assert len(read_prompts(written("p.csv", "Caption\na pig\nan owl\n"), tell=told.append)) == 2
    assert told == []


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
        ("p.csv", "Caption;URL\n;v\nnan;w\n", "holds no prompt"),
        ("p.jsonl", '{"prompt": ""}\n', "holds no prompt"),
        ("p.json", "", "holds no prompt"),
        ("p.json", "[]", "holds no prompt"),
        ("p.parquet", "PAR1", r"the ending \.parquet: give one of \.txt, \.csv, \.tsv, \.json, \.jsonl"),
        ("p", "a pig\n", r"no ending: give one of \.txt"),
        ("p.csv", "Caption;URL\na pig;u\nan owl; grey;v\n", "line 3 has 3 fields, its header in line 1 2 fields"),
        ("p.csv", 'Caption;URL\n"two\nlines";u\nan owl\n', "line 4 has 1 field, its header in line 1 2 fields"),
        ("p.tsv", "Caption\tURL\na pig\tu\tv\n", "line 2 has 3 fields"),
        ("p.csv", "prompt\na pig, red\n", "line 2 has 2 fields, its header in line 1 1 field: put a field"),
        ("p.csv", 'Caption;URL\na pig;u\n"an owl;v\na cat;w\n', "the row of line 3 opens a quote that is not closed"),
        ("p.csv", 'Caption;URL\na pig;u\n"an owl;v\n"a cat";w\n', "the row of line 3 has letters after a closing quote, or a quote that"),
        ("p.csv", 'Caption;URL\n"Listen" to this;u\n', "the row of line 2 has letters after a closing quote"),
        ("p.csv", "Caption;Caption\na;b\n", "the column 'Caption' twice"),
        ("p.csv", "Caption;caption\na;b\n", "the columns 'Caption' and 'caption'"),
        ("p.csv", "Caption,URL\na pig,u\n".encode("utf-16")[:-1], r"not UTF-16 \(line 2\)"),
        ("p.csv", b"Caption,URL\ra pig,u\ra caf\xe9,v\r", r"not UTF-8 \(line 3\)"),
        ("p.txt", b"PK\x03\x04\0\0\0\0", "is binary"),
        ("p.json", '{"prompt": "a"}', "expected an array"),
        ("p.json", '{"prompt": "a"}\n{"prompt": "b"}\n', r"line 2 is not JSON: Extra data; one object a line is \.jsonl"),
        ("p.json", '["a",\n "b"', "line 2 is not JSON"),
        ("p.json", '["a", 3]', "entry 2: expected a text or an object"),
        ("p.json", '[{"URL": "a"}]', "entry 1 has no column of prompts: expected Caption, prompt or text, found 'URL'"),
        ("p.json", '[{"prompt": "a", "prompt": "b"}]', "the key 'prompt' is there twice"),
        ("p.jsonl", '\n{"prompt": "a", "prompt": "b"}', "line 2 is not JSON that can be read: the key 'prompt' is there twice"),
        ("p.txt", b"a pig\0\n", "is binary"),
        ("p.txt", b"a pig\nan owl\na caf\xe9\n", r"not UTF-8 \(line 3\)"),
        ("p.csv", "Title;URL\na pig;u\n", "expected Caption, prompt or text, found 'Title', 'URL'"),
        ("p.jsonl", '{"prompt": "a"}\nnonsense\n', "line 2 is not JSON"),
        ("p.jsonl", '["a"]\n', "line 1: expected a text or an object"),
        ("p.jsonl", '{"prompt": 3}\n', "line 1: prompt is not a text but 3"),
        ("p.jsonl", '{"prompt": "a", "image": 3}\n', "line 1: image is not a text but 3"),
        ("p.csv", "Caption;image\na;none.png\n", r"line 2: the picture .*none\.png does not exist"),
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


def test_texts_are_taken_in_place_of_a_list(written: Write) -> None:
    path = written("p.txt", "a pig\nan öwl\n")
    listed = [Prompt(text="a pig"), Prompt(text="an öwl")]
    assert as_prompts(["a pig\n", " an öwl"]) == as_prompts(("a pig", "an öwl")) == as_prompts(path) == as_prompts(str(path)) == listed
    with pytest.raises(InputError, match="no prompt is given: give the path of a list, or texts"):
        as_prompts([])
    for wrong in (" ", None, 3):
        with pytest.raises(InputError, match=rf"prompt 2 of those given is not a text but {wrong!r}: write it, or leave it out"):
            as_prompts(["a pig", wrong])  # type: ignore[list-item]
    assert [p.label for p in read_labelled(["a pig"], ["a bus"])] == [True, False]
