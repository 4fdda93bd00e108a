"""Scores read off a curve at a level that all methods reach."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.evaluate.curve import at_level, common_level

CURVE = [(0.1, 1.0), (0.3, 0.8), (0.2, 0.9), (0.5, 0.4)]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0.05, 1.0),  # known from the start
        (0.1, 1.0),
        (0.2, 0.9),  # half of the way from the first point to the second
        (0.3, 0.8),
        (0.4, 0.9 + 2 / 3 * (0.4 - 0.9)),  # after the setback, from the point before
        (0.5, 0.4),
        (0.6, None),
    ],
)
def test_where_the_curve_first_reaches_the_level(level, expected):
    found = at_level(CURVE, level)
    assert found is None if expected is None else found == pytest.approx(expected)


def test_a_curve_that_does_not_move_is_read_at_its_start():
    assert at_level([(0.2, 0.7), (0.2, 0.1)], 0.2) == 0.7


def test_the_common_level_is_what_the_one_that_knows_least_reached():
    assert common_level([CURVE, [(0.1, 1.0), (0.45, 0.0), (0.2, 0.0)]]) == 0.45


unit = st.floats(0, 1)


@given(st.lists(st.lists(st.tuples(unit, unit), min_size=1, max_size=6), min_size=1, max_size=4))
def test_every_curve_has_a_value_at_the_common_level_within_its_own(curves):
    level = common_level(curves)
    for points in curves:
        found = at_level(points, level)
        assert found is not None and min(y for _, y in points) - 1e-9 <= found <= max(y for _, y in points) + 1e-9
