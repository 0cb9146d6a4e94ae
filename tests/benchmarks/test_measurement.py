"""Statistics against numpy, textbook ranks and simulation."""

import numpy as np
import pytest

from basnet_benchmarks.measurement import Estimate, Measurement, median_estimate, ratio_estimate


def turns_of(array):
    return tuple(tuple(map(float, row)) for row in array)


def test_percentiles_are_numpys_over_all_calls():
    times = np.random.default_rng(0).lognormal(size=(8, 3))
    measured = Measurement(turns=turns_of(times), pictures=4)
    assert measured.median.value == np.median(times)
    assert [measured.percentile(q) for q in (90, 99)] == list(np.percentile(times, (90, 99)))
    assert measured.pictures_per_second == 4 / np.median(times)
    quartiles = np.percentile(times, (25, 75))
    assert measured.spread == pytest.approx((quartiles[1] - quartiles[0]) / np.median(times))
    middle = np.sort(np.median(times, axis=1))
    assert (measured.median.low, measured.median.high) == (middle[0], middle[-1])


@pytest.mark.parametrize(("count", "rank"), [(5, 0), (6, 1), (8, 1), (9, 2), (10, 2), (15, 4), (20, 6), (30, 10)])
def test_interval_ranks_are_the_tabled_ones(count, rank):
    found = median_estimate(list(range(1, count + 1)))
    assert (found.low, found.high) == ((rank, count + 1 - rank) if rank else (None, None))


def test_interval_holds_the_median_as_often_as_it_says():
    samples = np.random.default_rng(1).lognormal(size=(2000, 10))
    found = [median_estimate(sample) for sample in samples]
    share = np.mean([estimate.low <= 1 <= estimate.high for estimate in found])
    assert 0.965 < share < 0.99  # 97.9 % is exact for ten values


def test_ratio_is_taken_round_by_round_so_that_drift_cancels():
    drift = np.linspace(1, 5, 8)
    slow, fast = (Measurement(turns=turns_of(drift[:, None] * factor)) for factor in (3.0, 2.0))
    ratio = ratio_estimate(slow, fast)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.5, 1.5, 1.5))
    shuffled = Measurement(turns=slow.turns[::-1])
    assert ratio_estimate(shuffled, fast).low < 1 < ratio_estimate(shuffled, fast).high
    with pytest.raises(ValueError, match="same rounds"):
        ratio_estimate(slow, Measurement(turns=fast.turns[:-1]))


def test_warnings_say_what_speaks_against_the_numbers():
    quiet = Measurement(turns=((1.0, 1.01),) * 6, idle=(0.0,) * 6)
    assert quiet.warnings == ()
    wide = Measurement(turns=((1.0, 2.0),) * 6)
    assert "vary by 100%" not in wide.warnings[0]
    assert f"vary by {wide.spread:.0%}" in wide.warnings[0]
    few = Measurement(turns=((1.0,),) * 5)
    assert few.median == Estimate(value=1.0, low=None, high=None)
    assert "5 rounds are too few" in few.warnings[0]
    assert "disturb the next" in Measurement(turns=((1.0,),) * 6, idle=(1.2,)).warnings[0]


@pytest.mark.parametrize("turns", [(), ((),), ((1.0,), ())])
def test_a_measurement_without_times_is_refused(turns):
    with pytest.raises(ValueError, match="turns"):
        Measurement(turns=turns)
