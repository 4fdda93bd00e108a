"""The file of embeddings: nothing is embedded twice, whatever was in the file."""

import numpy as np
import pytest

from raft.refine.vectors import StoredVectors


class Counting:
    """An embedder whose vectors follow from the texts, and which counts them."""

    def __init__(self, name="counting", d=3):
        self.name, self.d, self.seen = name, d, []

    def encode(self, texts):
        self.seen += texts
        return np.array([[len(text), *map(ord, text.ljust(self.d)[: self.d - 1])] for text in texts], np.float32)


def test_a_text_is_embedded_once_also_by_a_later_process(tmp_path):
    plain, first, later = Counting(), Counting(), Counting()
    texts = ["one", "two", "one", "three"]
    vectors = StoredVectors(first, tmp_path / "refine" / "vectors.bin")
    assert np.array_equal(vectors.encode(texts), plain.encode(texts)) and first.seen == ["one", "two", "three"]
    again = StoredVectors(later, tmp_path / "refine" / "vectors.bin")
    asked = ["four", "three", "one", "four"]
    found = again.encode(asked)
    assert np.array_equal(found, plain.encode(asked)) and later.seen == ["four"]
    assert found.dtype == np.float32 and found.flags.writeable and again.name == "counting"
    assert again.encode(["one", "two"]).shape == (2, 3) and later.seen == ["four"]


@pytest.mark.parametrize("lost", [1, 8, 12, 27, 28, 29])  # of 28 bytes a record: parts of it, all of it, of two
def test_what_a_kill_has_torn_is_embedded_again(tmp_path, lost):
    path = tmp_path / "vectors.bin"
    StoredVectors(Counting(), path).encode(["one", "two", "three"])
    path.write_bytes(path.read_bytes()[:-lost])
    later = Counting()
    vectors = StoredVectors(later, path)
    asked = ["three", "two", "one", "four"]
    assert np.array_equal(vectors.encode(asked), Counting().encode(asked))
    assert later.seen == (["three", "two", "four"] if lost > 28 else ["three", "four"])
    last = Counting()
    assert np.array_equal(StoredVectors(last, path).encode(asked), Counting().encode(asked)) and not last.seen


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]\n", b'{"name": "counting", "d": 3}', b'{"name": "other", "d": 3}\n', b"\xff\x00\n"]
)
def test_a_file_of_another_model_or_of_nothing_is_begun_anew(tmp_path, content):
    path, embedder = tmp_path / "vectors.bin", Counting()
    path.write_bytes(content + (bytes(40) if content.endswith(b"\n") else b""))
    for _ in range(2):
        assert np.array_equal(StoredVectors(embedder, path).encode(["one"]), Counting().encode(["one"]))
    assert embedder.seen == ["one"]


def test_the_vectors_of_another_model_are_not_taken(tmp_path):
    path = tmp_path / "vectors.bin"
    StoredVectors(Counting("small", d=3), path).encode(["one"])
    other = Counting("large", d=5)
    assert np.array_equal(StoredVectors(other, path).encode(["one"]), Counting(d=5).encode(["one"]))
    assert other.seen == ["one"]


def test_texts_that_are_no_valid_unicode_have_a_hash_too(tmp_path):
    assert StoredVectors(Counting(), tmp_path / "v").encode(["\ud800", "x"]).shape == (2, 3)
