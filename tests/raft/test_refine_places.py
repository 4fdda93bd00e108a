"""The places of a file's entries against a dict."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from raft.refine.places import Places

HASHES = st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1))


@given(st.lists(st.tuples(HASHES, st.integers(0, 2**62)), max_size=60), st.integers(1, 9))
def test_it_gives_what_a_dict_gives(entries, together):
    places, known = Places(recent=together), {}
    for hashed, begin in entries:
        places.add(hashed, begin)
        known[hashed] = begin
        assert places.get(hashed) == begin
    assert all(places.get(hashed) == begin for hashed, begin in known.items())
    for absent in {-6, 6, 2**62 + 1} - known.keys():
        assert places.get(absent) is None and absent not in places


def test_many_entries_take_few_bytes():
    n = 200_000
    tracemalloc.start()
    try:
        places = Places()
        before = tracemalloc.get_traced_memory()[0]
        for i in range(n):
            places.add(hash((i, "key")), i)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held / n < 30
    assert all(places.get(hash((i, "key"))) == i for i in range(0, n, 997))
