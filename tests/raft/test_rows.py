"""Rows: every accepted shape comes out the same, every bad input ends in one line that names the place."""

import csv
import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.errors import InputError
from raft.row_files import FORMATS
from raft.rows import Row, normalize_rows, read_rows

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
PLAIN = {"id": "0", "question": "q", "answer": "a", "prompt": [USER]}


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def error_of(path: Path, **options: bool) -> str:
    with pytest.raises(InputError) as caught:
        read_rows(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": "a"},
        {"prompt": "q", "completion": "a"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": [USER], "completion": "a"},
        {"messages": [USER, ASSISTANT]},
        {"messages": [USER, ASSISTANT], "question": None, "completion": None},
    ],
)
def test_every_shape_gives_the_same_row(tmp_path, row):
    assert read_rows(write(tmp_path / "d.jsonl", row)) == [PLAIN]


def test_chat_keeps_what_stands_before_the_question():
    turns = [SYSTEM, {"role": "user", "content": "first"}, {"role": "assistant", "content": "reply"}, USER]
    [row] = normalize_rows([{"messages": [*turns, ASSISTANT]}])
    assert row == {"id": "0", "question": "q", "answer": "a", "prompt": turns}


def test_fields_beyond_the_known_are_kept_and_ids_are_row_numbers(tmp_path):
    check = {"kind": "f1"}
    lines = [
        {"question": "q", "answer": "a", "check": check},
        "",
        {"id": 7, "question": "r", "answer": "b", "skill": "x"},
    ]
    first, second = read_rows(write(tmp_path / "d.json", *lines))
    assert first["id"] == "0" and first["check"] == check
    assert second["id"] == "7" and second["skill"] == "x"


def test_fused_answer_is_kept_and_null_is_as_good_as_missing(tmp_path):
    lines = [
        {"question": "q", "answer": "a", "fused_answer": "f"},
        {"question": "q", "answer": "a", "fused_answer": None},
    ]
    first, second = read_rows(write(tmp_path / "d.jsonl", *lines))
    assert first["fused_answer"] == "f" and "fused_answer" not in second


def test_an_answer_may_be_missing_where_none_is_needed(tmp_path):
    path = write(tmp_path / "d.jsonl", {"question": "q"}, {"messages": [USER]}, {"prompt": "q", "answer": None})
    assert [row["answer"] for row in read_rows(path, need_answer=False)] == ["", "", ""]


@pytest.fixture
def parquet(tmp_path) -> tuple[Path, list[Row]]:
    """A Parquet file, and what its rows are when they come from JSON Lines."""
    rows = [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b", "fused_answer": "f"}]
    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(dict.fromkeys(rows[1], pyarrow.string()))), path
    )
    return path, read_rows(write(tmp_path / "d.jsonl", *rows))


def test_parquet_reads_like_json(parquet):
    path, expected = parquet
    assert read_rows(path) == expected


def test_a_dataset_reads_like_json(parquet, tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    path, expected = parquet
    assert normalize_rows(datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path))) == expected


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"question": "q", "answer": "a"}\r\n')
    assert read_rows(tmp_path / "d.jsonl") == [PLAIN]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
CHATS = st.lists(TEXTS, min_size=1, max_size=3).map(
    lambda texts: [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]
)


@given(
    st.lists(
        st.one_of(
            st.fixed_dictionaries({"question": TEXTS, "answer": TEXTS}), st.builds(lambda c: {"messages": c}, CHATS)
        )
    )
)
def test_checked_rows_pass_again_unchanged(rows):
    rows = [row for row in rows if len(row.get("messages", [0, 0])) == 2]
    if rows:
        once = normalize_rows(rows)
        assert normalize_rows(once) == once
        assert normalize_rows([json.loads(json.dumps(row)) for row in once]) == once


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"question": "q", ', ["line 2", "expected one JSON object", '{\\"question\\": \\"q\\",']),
        ("[" * 100_000, ["line 2", "expected one JSON object"]),
        ([1, 2], ["line 2", "expected an object", "[1, 2]"]),
        ('"text"', ["line 2", "expected an object", "text"]),
        ("null", ["line 2", "expected an object", "null"]),
        ({}, ["line 2", '"question" and "answer"', "no fields"]),
        ({"text": "x"}, ["line 2", '"messages"', "found text"]),
        ({"question": "q"}, ["line 2", 'field "answer" is missing', "found question"]),
        ({"question": "q", "answer": None}, ["line 2", 'field "answer" is missing']),
        ({"answer": "a"}, ["line 2", 'field "question" is missing', "found answer"]),
        ({"prompt": "q"}, ["line 2", 'field "completion" is missing']),
        ({"completion": "a"}, ["line 2", 'field "prompt" is missing']),
        ({"question": "", "answer": "a"}, ["line 2", 'field "question" is empty', "''"]),
        ({"question": "q", "answer": " \n"}, ["line 2", 'field "answer" is empty', r"' \n'"]),
        ({"question": 3, "answer": "a"}, ["line 2", 'field "question"', "expected a text", "found 3"]),
        ({"question": "q", "answer": ["a"]}, ["line 2", 'field "answer"', "expected a text", '["a"]']),
        ({"question": "q", "answer": "a", "fused_answer": 1}, ["line 2", 'field "fused_answer"', "found 1"]),
        ({"question": "q", "answer": "a", "id": 1.5}, ["line 2", 'field "id"', "found 1.5"]),
        ({"question": "q", "answer": "a", "id": True}, ["line 2", 'field "id"', "found true"]),
        ({"question": "q", "answer": "a", "id": ""}, ["line 2", 'field "id" is empty']),
        ({"question": "q", "answer": "a", "id": "0"}, ["line 2", 'field "id"', '"0"', "line 1"]),
        ('{"question": "\\ud800", "answer": "a"}', ["line 2", 'field "question"', "valid Unicode", r"\ud800"]),
        ({"messages": []}, ["line 2", 'field "messages"', "empty list"]),
        ({"messages": "q"}, ["line 2", 'field "messages"', "a list of messages", '"q"']),
        ({"messages": [USER]}, ["line 2", 'field "messages"', "an assistant message at the end", "'user'"]),
        ({"messages": [ASSISTANT]}, ["line 2", 'field "messages"', "a user message before the answer"]),
        ({"messages": [SYSTEM, ASSISTANT]}, ["line 2", 'field "messages"', "found the roles system"]),
        (
            {"messages": [{"role": "bot", "content": "q"}, ASSISTANT]},
            ["line 2", 'field "messages[0].role"', '"bot"', "user"],
        ),
        ({"messages": [{"content": "q"}, ASSISTANT]}, ["line 2", 'field "messages[0].role"', "found none"]),
        ({"messages": [USER, {"role": "assistant"}]}, ["line 2", 'field "messages[1].content" is missing']),
        (
            {"messages": [USER, {"role": "assistant", "content": ""}]},
            ["line 2", 'field "messages[1].content" is empty'],
        ),
        ({"messages": [USER, "a"]}, ["line 2", 'field "messages[1]"', '"a"']),
        ({"prompt": 1, "completion": "a"}, ["line 2", 'field "prompt"', "a text or a list of messages", "found 1"]),
        (
            {"prompt": [USER, ASSISTANT], "completion": "a"},
            ["line 2", 'field "prompt"', "assistant message at the end"],
        ),
        ({"prompt": [USER], "completion": [USER]}, ["line 2", 'field "completion"', "one assistant message", "user"]),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, parts):
    message = error_of(write(tmp_path / "bad.jsonl", {"question": "q", "answer": "a"}, line))
    for part in parts:
        assert part in message
    assert len(message) < 400 + len(str(tmp_path))


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b'{"question": "q", "answer": "a"}\n{"question": "\xff"}\n')
    message = error_of(tmp_path / "d.jsonl")
    assert "line 2" in message and "UTF-8" in message and "0xff" in message


def test_files_that_cannot_hold_rows(tmp_path):
    assert "no such file" in error_of(tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "is a directory" in error_of(tmp_path / "folder.jsonl")
    assert "'.txt'" in error_of(write(tmp_path / "d.txt", "a,b"))
    assert "unknown extension ''" in error_of(write(tmp_path / "d", {}))
    assert "no rows" in error_of(write(tmp_path / "empty.jsonl", ""))


def test_parquet_that_cannot_hold_rows(tmp_path):
    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"], "label": [1]}), path)
    message = error_of(path)
    assert '"question" and "answer"' in message and "found label, text" in message
    pyarrow.parquet.write_table(pyarrow.table({"question": ["q", "r"], "answer": ["a", None]}), path)
    message = error_of(path)
    assert "row 1" in message and 'field "answer" is missing' in message
    pyarrow.parquet.write_table(pyarrow.table({"question": pyarrow.array([], "string")}), path)
    assert "no rows" in error_of(path)
    path.write_bytes(b"not parquet")
    assert "not a readable Parquet file" in error_of(path)


def test_rows_in_memory_name_their_source():
    with pytest.raises(InputError, match='eval_dataset, row 1: field "answer" is empty'):
        normalize_rows([{"question": "q", "answer": "a"}, {"question": "q", "answer": ""}], source="eval_dataset")
    with pytest.raises(InputError, match="train_dataset: holds no rows"):
        normalize_rows([])


def test_a_thought_and_calls_of_tools_stay_beside_the_answer():
    call = {"type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC", "at": null}'}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [call], "name": None},
    ]
    [row] = normalize_rows([{"messages": messages, "tools": json.dumps([call])}])
    assert row["answer"] == ""
    assert row["answer_turn"] == {
        "reasoning_content": "Hm.",
        "tool_calls": [{"type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}],
    }
    assert row["tools"] == [call]
    assert normalize_rows([row]) == [row]


@pytest.mark.parametrize("calls", [3, "now()", {"function": {"name": "now"}}])
def test_calls_of_tools_are_a_list(calls):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": calls}]
    with pytest.raises(InputError, match=r'"messages\[1\].tool_calls": expected a list, found'):
        normalize_rows([{"messages": messages}])


def test_nulls_of_columnar_formats_go_at_every_depth():
    call = {"function": {"name": "now", "arguments": {"zone": "UTC", "other": None}}, "id": None}
    messages = [{"role": "user", "content": "q", "tool_calls": None}, {"role": "assistant", "tool_calls": [call]}]
    [row] = normalize_rows([{"messages": messages, "chat_template_kwargs": {"a": 1, "b": None}}])
    assert row["prompt"] == [{"role": "user", "content": "q"}]
    assert row["answer_turn"]["tool_calls"] == [{"function": {"name": "now", "arguments": {"zone": "UTC"}}}]
    assert row["chat_template_kwargs"] == {"a": 1}


@pytest.mark.parametrize("name", ["images", "documents", "system", "audio"])
def test_what_the_model_would_not_read_is_refused_by_name(name):
    row = {"question": "q", "answer": "a", name: "x"}
    with pytest.raises(InputError, match=f'row 0: field "{name}": expected'):
        normalize_rows([row])
    assert normalize_rows([{**row, name: None}])


def test_template_arguments_are_checked():
    row = {"question": "q", "answer": "a"}
    with pytest.raises(InputError, match='field "tools": expected a list'):
        normalize_rows([{**row, "tools": "{}"}])
    with pytest.raises(InputError, match=r'"chat_template_kwargs.add_generation_prompt": not for a row'):
        normalize_rows([{**row, "chat_template_kwargs": {"add_generation_prompt": False}}])


def test_contents_in_parts_are_joined():
    parts = [{"type": "text", "text": "What "}, {"type": "text", "text": "now?"}]
    [row] = normalize_rows([{"prompt": [{"role": "user", "content": parts}], "completion": "a"}])
    assert row["question"] == "What now?"
    with pytest.raises(InputError, match="expected parts"):
        normalize_rows([{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "completion": "a"}])


def test_rows_of_alpaca_and_sharegpt():
    alpaca = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    sharegpt = {"system": "brief", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    rows = normalize_rows([alpaca, {"instruction": "Go.", "input": "", "output": "Gone."}, sharegpt])
    assert [(row["question"], row["answer"]) for row in rows] == [
        ("Add.\n\n1 and 2", "3"),
        ("Go.", "Gone."),
        ("q", "a"),
    ]
    assert rows[2]["prompt"][0] == {"role": "system", "content": "brief"}
    for name in ("bot", ["human"]):
        with pytest.raises(InputError, match=r'"conversations\[0\].from": expected one of human'):
            normalize_rows([{"conversations": [{"from": name, "value": "q"}]}])


def test_a_json_file_may_be_an_array(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]')
    assert [row["question"] for row in read_rows(path)] == ["q", "r"]
    path.write_text('[{"question": "q", "answer": "a"},')
    with pytest.raises(InputError, match="expected a JSON array of objects"):
        read_rows(path)


def csv_file(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_cells(row: dict) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}


OPTIONAL = {"fused_answer": TEXTS, "skill": TEXTS, "check": st.fixed_dictionaries({"kind": st.just("contains")})}
TOOLS = st.lists(st.fixed_dictionaries({"name": TEXTS}), min_size=1, max_size=2)
CSV_ROWS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"question": TEXTS, "answer": TEXTS}, optional=OPTIONAL),
        st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS}, optional={"kept": st.booleans()}),
        st.fixed_dictionaries({"prompt": CHATS.filter(lambda c: len(c) % 2), "completion": TEXTS}),
        st.fixed_dictionaries({"messages": CHATS.filter(lambda c: len(c) == 2)}, optional={"tools": TOOLS}),
    ),
    min_size=1,
)


@given(CSV_ROWS, st.sampled_from([("csv", ","), ("tsv", "\t")]), st.sampled_from(["utf-8", "utf-8-sig"]))
def test_csv_reads_like_json(tmp_path_factory, rows, kind, encoding):
    folder = tmp_path_factory.mktemp("rows")
    path = folder / f"d.{kind[0]}"
    names = sorted({name for row in rows for name in row})
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, names, delimiter=kind[1])
        writer.writeheader()
        writer.writerows(map(as_cells, rows))
    assert read_rows(path) == read_rows(write(folder / "d.jsonl", *rows))


def test_csv_as_spreadsheets_and_pandas_write_it(tmp_path):
    limit = csv.field_size_limit()
    long = "x" * (limit + 1)
    content = (
        f',question, answer ,fused_answer,kept\r\n0,"q, and\nr","a ""b""",,True\r\n\r\n1,[q],{long},f,False\r\n,,,,\r\n'
    )
    first, second = read_rows(csv_file(tmp_path / "d.csv", content))
    assert (first["question"], first["answer"], first["kept"]) == ("q, and\nr", 'a "b"', True)
    assert "fused_answer" not in first and "" not in first
    assert (second["question"], second["answer"], second["kept"]) == ("[q]", long, False)
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["is empty, expected a header line"]),
        ("question,answer\n", ["holds no rows"]),
        ("q,a\nr,b\n", ["line 1: expected a header line, separated by commas", '"messages", found a, q']),
        ("question;answer\nq;a\n", ["line 1: expected a header line, separated by commas", "found question;answer"]),
        ("question,answer,answer\nq,a,b\n", ["line 1", 'one column of a name, found "answer" twice']),
        ('question,answer\n"q\nr",a\ns\n', ["line 4: expected 2 cells, as in the header, found 1", '"s"']),
        ("question,answer\nq,a,b\n", ["line 2: expected 2 cells, as in the header, found 3"]),
        ('question,answer\n"q\nr",a\n\n"s\nt",\n', ['line 5: field "answer" is missing']),
        ('question,answer\nq,a\nr,"b\ns,c\n', ["line 3: expected a row of CSV, with quotation marks closed"]),
        ('question,answer\n"q"r,a\n', ["line 2: expected a row of CSV"]),
        (b'question,answer\n"q\n\xff",a\n', ["line 3: not UTF-8 text", "0xff"]),
        ("question,answer\n".encode("utf-16"), ["line 1: not UTF-8 text"]),
        ("messages\nq\n", ['line 2: field "messages": expected a list of messages, found "q"']),
        ("messages\n[{'role': 'user'}]\n", ['line 2: field "messages": expected a list of messages or its JSON text']),
        (
            "prompt,completion\n[{'role': 'user'}],a\n",
            ['line 2: field "prompt": expected a text or a list'],
        ),
        ('conversations\n"[{""from"": 1}]"\n', ['line 2: field "conversations[0].from"']),
        ("question,answer,kept\nq,a,1\n", ['line 2: field "kept": expected true or false', '"1"']),
        ("question,answer,kept\nq,a,perhaps\n", ['line 2: field "kept": expected true or false', '"perhaps"']),
        ("question,answer,tools\nq,a,[\n", ['line 2: field "tools": expected a list or its JSON text']),
        (f"messages\n{'[' * 100_000}\n", ['line 2: field "messages"']),
        ("id,question,answer\n1,q,a\n1,r,b\n", ['line 3: field "id": "1" is the id of line 2 too']),
    ],
)
def test_bad_csv_is_named(tmp_path, content, parts):
    message = error_of(csv_file(tmp_path / "bad.csv", content))
    for part in parts:
        assert part in message
    assert len(message) < 400 + len(str(tmp_path))


@pytest.fixture
def saved(tmp_path):
    """Saves a dataset of two rows, and again under every name that is given, as the splits of a `DatasetDict`."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")

    def save(*splits: str, **columns: list) -> Path:
        folder = tmp_path / "saved"
        rows = datasets.Dataset.from_dict(
            columns or {"messages": [[USER, ASSISTANT], [SYSTEM, USER, ASSISTANT]], "fused_answer": ["f", None]}
        )
        rows = rows.with_format("numpy")  # which is saved too
        (datasets.DatasetDict(dict.fromkeys(splits, rows)) if splits else rows).save_to_disk(folder)
        return folder

    return save


@pytest.mark.parametrize("splits", [(), ("train",), ("train", "test"), ("test",)])
def test_a_folder_of_datasets_reads_like_json(saved, tmp_path, splits):
    first = {"messages": [USER, ASSISTANT], "fused_answer": "f"}
    expected = read_rows(write(tmp_path / "d.jsonl", first, {"messages": [SYSTEM, USER, ASSISTANT]}))
    folder = saved(*splits)
    assert read_rows(folder) == expected
    for split in splits:
        assert read_rows(folder / split) == expected


def test_the_split_is_to_be_named_where_there_are_several(saved):
    folder = saved("test", "validation")
    message = error_of(folder)
    assert "found test, validation" in message and str(folder / "NAME") in message


def test_folders_that_cannot_hold_rows(saved, tmp_path, monkeypatch):
    (tmp_path / "d.csv").mkdir()
    assert f"is a directory without the files of a saved dataset, expected {FORMATS}" in error_of(tmp_path / "d.csv")
    folder = saved("train", "test", question=["q", "r"], answer=["a", ""])
    assert 'split train, row 1: field "answer" is empty' in error_of(folder)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "datasets", None)
        assert "pip install datasets" in error_of(folder)
    (folder / "train" / "data-00000-of-00001.arrow").write_bytes(b"no arrow")
    assert "not a readable folder of datasets" in error_of(folder)


def test_a_dataset_without_the_columns_is_named(saved):
    assert "split train, expected the columns" in error_of(saved("train", text=["x"]))
