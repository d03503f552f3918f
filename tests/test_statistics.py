"""Distributions, series and the strip of all steps: small in memory, and right."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firetrace.tracer.journal import ROW_DTYPE
from firetrace.tui.model import series
from firetrace.tui.model.columns import Spans
from firetrace.tui.model.distribution import RECENT, Distribution
from firetrace.tui.model.heat import LOOKED_AT, Heat, shade
from firetrace.tui.model.series import Series

PERCENTS = (0, 1, 50, 95, 99, 100)
RNG = np.random.default_rng(7)
SHAPES = {
    "constant": np.full(5000, 1234567),
    "zeros": np.zeros(5000, np.int64),
    "ones": np.ones(5000, np.int64),
    "two values": np.repeat([3, 3_000_000], [900, 800]),
    "mostly zero": np.repeat([0, 10**9], [950, 50]),
    "tiny": RNG.integers(0, 200, 5000),
    "small": RNG.integers(200, 3000, 5000),
    "huge": RNG.integers(2**40, 2**50, 5000),
    "absurd": RNG.integers(2**53, 2**54, 300),
    "log normal": (RNG.lognormal(16, 2, 5000)).astype(np.int64),
    "uniform": RNG.integers(0, 10**9, 5000),
    "rising": np.arange(5000) ** 2,
}


def assert_close(found: list[int], values: npt.NDArray[np.int64]) -> None:
    for ours, theirs in zip(found, np.percentile(values, PERCENTS), strict=True):
        assert abs(ours - theirs) <= 0.004 * theirs + 0.501


@pytest.mark.parametrize("name", SHAPES)
def test_percentiles_are_within_a_bucket_of_numpys(name: str) -> None:
    """0.4%, for durations of any distribution, in any order, in pieces of any size."""
    values = SHAPES[name].astype(np.int64)
    for pieces in (1, 3, 400):
        distribution = Distribution()
        shuffled = RNG.permutation(values)
        for part in np.array_split(shuffled, pieces):
            distribution.add(part)
        assert distribution.count == len(values)
        assert distribution.largest == values.max()
        assert distribution.total == values.sum()
        assert_close(distribution.percentiles(*PERCENTS), values)
        assert distribution.recent.tolist() == shuffled[-RECENT:].tolist()


@given(st.lists(st.lists(st.integers(0, 2**50), max_size=200), max_size=6))
@settings(max_examples=60, deadline=None)
def test_percentiles_of_anything(parts: list[list[int]]) -> None:
    """Of whatever few or many values come, also none."""
    distribution = Distribution()
    for part in parts:
        distribution.add(np.array(part, np.int64))
    values = np.array([value for part in parts for value in part], np.int64)
    assert distribution.count == len(values)
    if len(values):
        assert distribution.total == sum(values.tolist())
        assert_close(distribution.percentiles(*PERCENTS), values)
        found = distribution.stats(0)
        assert found.p50_ns <= found.p95_ns <= found.p99_ns <= found.max_ns == values.max()


def test_few_values_are_kept_as_they_are() -> None:
    """As many as ``RECENT``: the percentiles are numpy's, rounded."""
    values = RNG.integers(0, 10**9, RECENT)
    distribution = Distribution()
    distribution.add(values)
    assert distribution.percentiles(*PERCENTS) == [
        round(each) for each in np.percentile(values, PERCENTS)
    ]


def test_memory_does_not_grow_with_the_count() -> None:
    """A million values of every size take some thousand buckets."""
    distribution = Distribution()
    for power in range(62):
        distribution.add(np.full(20_000, 2**power + power, np.int64))
    assert len(distribution._buckets) < 128 * 63
    assert len(distribution.recent) == RECENT


@pytest.mark.parametrize(("factor", "drift"), [(1.0, 0.0), (1.5, 0.5), (0.5, -0.5)])
def test_drift_is_the_last_ones_against_all(factor: float, drift: float) -> None:
    """By medians; None while there are too few to say."""
    distribution = Distribution()
    distribution.add(np.full(2 * RECENT - 1, 10**6))
    assert distribution.drift() is None
    distribution.add(np.full(2000, 10**6))
    distribution.add(np.full(RECENT, round(factor * 10**6)))
    found = distribution.drift()
    assert found is not None
    assert abs(found - drift) < 0.01


def test_drift_of_what_takes_no_time_is_not_told() -> None:
    """Nothing is slower by a factor than zero."""
    distribution = Distribution()
    distribution.add(np.zeros(2000, np.int64))
    assert distribution.drift() is None


@pytest.mark.parametrize("piece", [1, 7, 2048, 50_000])
def test_a_series_keeps_means_of_equally_many(piece: int) -> None:
    """However it came: each point is the mean of as many values, the last of the rest."""
    values = RNG.normal(size=30_001).cumsum()
    kept = Series()
    for first in range(0, len(values), piece):
        part = values[first : first + piece]
        kept.add(np.arange(first, first + len(part)), part)
        assert len(kept.points()) <= series.MOST_POINTS + 1
    points = kept.points()
    assert (kept.count, kept.last, kept.last_ns) == (len(values), values[-1], len(values) - 1)
    each = 2 ** int(np.ceil(np.log2(len(values) / series.MOST_POINTS)))
    whole = len(values) // each * each
    assert len(points) == len(values) // each + 1
    assert np.allclose(points[:-1], values[:whole].reshape(-1, each).mean(axis=1))
    assert np.isclose(points[-1], values[whole:].mean())


def test_a_short_series_is_its_values() -> None:
    """Nothing is averaged while there is room."""
    kept = Series()
    values = RNG.normal(size=series.MOST_POINTS)
    kept.add(np.arange(len(values)), values)
    assert np.array_equal(kept.points(), values)
    assert len(Series().points()) == 0
    assert np.isnan(Series().last)


@pytest.mark.filterwarnings("error")
def test_a_loss_that_is_no_number_stays_where_it_was() -> None:
    """NaN, infinities and what overflows: in their own points, without a warning on the screen."""
    values = np.ones(10_000)
    values[100], values[5000], values[5001] = np.nan, np.inf, -np.inf
    values[7000:7010] = 1e308
    kept = Series()
    for part in np.array_split(values, 13):
        kept.add(np.zeros(len(part), np.int64), part)
    points = kept.points()
    each = len(values) / len(points)
    for at in (100, 5000):
        assert not np.isfinite(points[int(at / each)])
    assert np.count_nonzero(points == 1.0) > 0.98 * len(points)
    assert kept.last == 1.0


def spans_of(lasted: npt.NDArray[np.int64]) -> Spans:
    rows = np.zeros(len(lasted), ROW_DTYPE)
    rows["start"] = 10**18 + np.cumsum(lasted)
    rows["end"] = rows["start"] + lasted
    spans = Spans()
    for part in np.array_split(np.arange(len(rows)), 3):
        spans.append(rows[part], (1000 + 3 * part).astype(np.uint32))
    return spans


@pytest.mark.parametrize("count", [1, 2, 59, 60, 61, 300, 3840, 3841, 20_000])
@pytest.mark.parametrize("most", [1, 7, 60])
def test_cells_are_all_steps_in_order(count: int, most: int) -> None:
    """They share the steps out evenly, and name the slowest of each; medians are near."""
    lasted = RNG.integers(1, 10**9, count)
    cells = Heat(spans_of(lasted)).cells(most)
    assert len(cells) == min(most, count)
    assert sum(cell.count for cell in cells) == count
    assert max(c.count for c in cells) - min(c.count for c in cells) <= 1
    at = 0
    for cell in cells:
        mine = lasted[at : at + cell.count]
        assert cell.first == at
        assert cell.slowest_ns == mine.max()
        assert cell.number == 1000 + 3 * (at + int(mine.argmax()))
        if cell.count <= LOOKED_AT:  # of cells with one step less than others one counts twice
            rank = np.searchsorted(np.sort(mine), cell.median_ns)
            assert abs(rank - cell.count / 2) <= 1
        assert mine.min() <= cell.median_ns <= mine.max()
        at += cell.count


def test_cells_follow_growing_steps() -> None:
    """What has been looked at is not forgotten, nor is what came since."""
    spans = spans_of(RNG.integers(1, 10**9, 1000))
    heat = Heat(spans)
    for _ in range(5):
        assert heat.cells(13) == Heat(spans).cells(13)
        more = spans_of(RNG.integers(1, 10**9, 777))
        rows = np.zeros(777, ROW_DTYPE)
        rows["start"], rows["end"] = more.start.values, more.end.values
        spans.append(rows, more.number.values + np.uint32(10**6))


def test_without_steps_or_room_there_are_no_cells() -> None:
    """An empty run, and a screen without columns."""
    assert Heat(Spans()).cells(60) == []
    assert Heat(spans_of(np.ones(5, np.int64))).cells(0) == []
    assert Heat(spans_of(np.ones(5, np.int64))).cells(-3) == []


@given(st.floats(0, 1e18), st.integers(-1, 10**18), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_a_shade_is_one_of_them(ns: float, usual: int, shades: int) -> None:
    """Slower is never lighter; what is usual is in the middle, twice that the last one."""
    found = shade(ns, usual, shades)
    assert 0 <= found < shades
    assert shade(ns * 1.5, usual, shades) >= found
    if usual > 0:
        assert abs(shade(usual, usual, shades) - (shades - 1) / 2) <= 0.5
        assert shade(2 * usual, usual, shades) == shades - 1
