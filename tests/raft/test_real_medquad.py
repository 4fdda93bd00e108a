"""The rows that are trained and asked: drawn by seed, asked otherwise, with wrong answers to choose from."""

import json

import pytest

from raft.errors import ConfigError, InputError
from raft.real.files import data_folder
from raft.real.general import read_arc, read_ifeval
from raft.real.medquad import FILE, read_medquad
from raft.real.rephrase import PATTERNS, rephrase
from tests.raft.real_rows import write

ASKED = {
    "What is (are) Sea Legs ?": "Could you give me an overview of Sea Legs?",
    "Do you have information about Tide Tables": "What should I know about Tide Tables?",
    "What are the treatments for Sea Legs ?": "How can Sea Legs be treated?",
    "what are the symptoms of sea legs?": "Which signs can point to sea legs?",
    "Who is at risk for Sea Legs? ?": "Which people are more likely to have Sea Legs?",
    "What is the outlook for Sea Legs?": "What can people with Sea Legs expect in the long run?",
    "What causes Sea Legs?": "What can lead to Sea Legs?",
    "How to prevent Sea Legs?": "What can be done to avoid Sea Legs?",
    "How to diagnose Sea Legs?": "Which tests can show that someone has Sea Legs?",
    "how are sea legs diagnosed?": "Which tests can show that someone has sea legs?",
    "How many people are affected by Sea Legs?": "What is the prevalence of Sea Legs?",
    "how common are sea legs?": "What is the prevalence of sea legs?",
    "Is Webbed Toe, type 2 inherited?": "Can Webbed Toe, type 2 be passed on from parents to their children?",
    "what research (or clinical trials) is being done for Sea Legs ?": "Which studies are under way on Sea Legs?",
    "What are the genetic changes related to Webbed Toe?": "Which genes are involved in Webbed Toe?",
    "What are the complications of Sea Legs?": "Which further health problems can arise from Sea Legs?",
    "What to do for Sea Legs?": "What can be done about Sea Legs?",
    "What are the stages of Sea Legs?": "Into which stages can Sea Legs be divided?",
}


def test_every_pattern_is_asked_otherwise():
    assert {question: rephrase(question) for question in ASKED} == ASKED
    used = {template.partition("{}")[0] for _, template in PATTERNS}
    assert used == {
        question.partition("Sea")[0].partition("sea")[0].partition("Web")[0].partition("Tide")[0]
        for question in ASKED.values()
    }


@pytest.mark.parametrize(
    ("question", "other"),
    [
        ("What causes Parasites - Barnacles - Goose Barnacles?", "What can lead to Goose Barnacles?"),
        ("What to do for What I need to know about Sea Legs?", "What can be done about Sea Legs?"),
        ("What causes Sea Legs: Trouble on Land?", "What can lead to Sea Legs?"),
        ("What is (are) Prevent sea legs: Keep ashore?", None),
        ("What causes Sea Legs: What You Need to Know?", None),
        ("how common is wobbling for Sea Legs?", None),
        ("When did sea legs begin?", None),
    ],
)
def test_titles_and_questions_that_do_not_fit(question, other):
    assert rephrase(question) == other


def test_rows_are_drawn_by_seed(tmp_path):
    folder = write(tmp_path)
    data = read_medquad(folder, seed=0, train=18, validation=6)
    ids = [row["id"] for row in data.train]
    assert len(ids) == len(set(ids)) == 18 and any(name.endswith("#2") for name in ids)  # two isles share each id
    asked = [item.id for item in data.validation + data.rephrased]
    assert len(data.validation) == 6 and len(set(asked)) == len(asked) and set(asked) < set(ids)
    assert data == read_medquad(folder, seed=0, train=18, validation=6)
    assert data.train != read_medquad(folder, seed=1, train=18, validation=6).train
    assert len(data.unseen) == 12 and len(asked) + data.not_rephrased == 18 and data.not_rephrased > 0


def test_asked_otherwise_for_the_same_answer(tmp_path):
    data = read_medquad(write(tmp_path), seed=0, train=24, validation=0)
    rows = {row["id"]: row for row in data.train}
    assert len(data.rephrased) == 16 and data.not_rephrased == 8
    for item in data.rephrased:
        row = rows[item.id]
        assert item.answer == row["answer"] and item.question != row["question"] and row["focus"] in item.question


def test_wrong_answers_are_of_the_same_type_about_others(tmp_path):
    data = read_medquad(write(tmp_path), seed=0, train=24, validation=0)
    kinds = {row["answer"]: row["qtype"] for row in data.train}
    for item in data.rephrased:
        assert len(set(item.wrong)) == 3 and item.answer not in item.wrong
        assert {kinds[answer] for answer in item.wrong} == {kinds[item.answer]}  # and so all trained
    few = read_medquad(tmp_path, seed=0, train=3, validation=0)
    assert all(item.wrong == () for item in few.rephrased)


def test_missing_folder_or_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("RAFT_DATA_DIR", raising=False)
    with pytest.raises(ConfigError, match=r"^RAFT_DATA_DIR: not set, expected the folder with the data files$"):
        data_folder()
    monkeypatch.setenv("RAFT_DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"none: no such folder, .* RAFT_DATA_DIR$"):
        data_folder()
    monkeypatch.setenv("RAFT_DATA_DIR", str(tmp_path))
    for read in (read_medquad, read_arc, read_ifeval):
        with pytest.raises(ConfigError, match=r"\.jsonl: no such file, .*RAFT_DATA_DIR") as error:
            read(data_folder(), seed=0)
        assert "\n" not in str(error.value)


def test_wrong_rows_are_named(tmp_path):
    folder = write(tmp_path)
    with pytest.raises(ConfigError, match="expected 1 to 24, found 25"):
        read_medquad(folder, seed=0, train=25, validation=5)
    rows = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    rows[4]["qtype"] = ""
    (folder / FILE).write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r'row 5: field "qtype": expected str, found \'\''):
        read_medquad(folder, seed=0)


def test_arc_and_ifeval_are_drawn(tmp_path):
    folder = write(tmp_path)
    drawn = read_arc(folder, seed=0, n=6)
    assert {q.id for q in drawn} == {f"a{n}" for n in range(6)}  # arc-easy alone
    assert all(q.choices[q.answer] == str(int(q.question.split()[2]) + 1) for q in drawn)
    assert len({item["key"] for item in read_ifeval(folder, seed=0, n=2)}) == 2
