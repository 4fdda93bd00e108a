"""Rows on disk behave as the list that they were made of."""

import tracemalloc

import pytest

from raft.errors import InputError
from raft.row_spool import RowsById, SpooledRows
from raft.rows import iter_rows, normalize_rows

ROWS = normalize_rows(
    [
        {"id": f"r{i}", "question": f"q {i} ä \u2028", "answer": "a" * i or "-", "tags": [i, {"x": None}]}
        for i in range(7)
    ]
)


def test_it_is_the_list():
    spooled = SpooledRows(iter(ROWS))
    assert len(spooled) == 7 and list(spooled) == ROWS and list(reversed(spooled)) == ROWS[::-1]
    for place in range(-7, 7):
        assert spooled[place] == ROWS[place]
    for part in (slice(None), slice(2, 4), slice(5, 99), slice(-2, None), slice(None, None, -3), slice(4, 2)):
        assert spooled[part] == ROWS[part]
    for place in (7, -8):
        with pytest.raises(IndexError):
            spooled[place]
    spooled[0]["answer"] = "changed"
    assert spooled[0] == ROWS[0]
    assert len(SpooledRows([])) == 0 and list(SpooledRows([])) == []


def test_by_id():
    found = RowsById(SpooledRows(ROWS), {row["id"]: i for i, row in enumerate(ROWS) if i != 3})
    assert list(found) == [f"r{i}" for i in range(7) if i != 3] and len(found) == 6
    assert found["r5"] == ROWS[5] and found.get("r3") is None and "r3" not in found


def test_a_wrong_row_ends_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n{"question": "q"}\n')
    with pytest.raises(InputError, match="line 2"):
        SpooledRows(iter_rows(path))


def test_memory_does_not_grow_with_the_texts():
    held = {}
    for size in (10, 10_000):
        tracemalloc.start()
        try:
            spooled = SpooledRows({**ROWS[0], "answer": "x" * size} for _ in range(2_000))
            held[size] = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert spooled[1_999]["answer"] == "x" * size
    assert held[10_000] < held[10] + 100_000 < 500_000
