import numpy as np
import pytest
from scipy import stats

from icthp.evaluation import statistics


def test_interval_covers_the_mean_as_often_as_it_says():
    """Bootstrap of 60 normal values, 300 times: about 95 % of the intervals hold the truth."""
    rng = np.random.default_rng(0)
    parts = [statistics.bootstrap_ci(rng.normal(1, 2, 60), resamples=400) for _ in range(300)]
    assert 0.90 <= np.mean([p["low"] <= 1 <= p["high"] for p in parts]) <= 0.985
    assert statistics.metric_with_ci("x", [0.0, 1.0]).keys() == {"x", "x_low", "x_high", "x_n"}
    assert statistics.metric_with_ci("x", [0.0, 1.0, 1.0], ["a", "a", "b"]).keys() == {"x", "x_low", "x_high", "x_n", "x_groups"}


def test_the_mean_is_that_of_the_rows():
    """One prompt with 40 rows, all right, and ten with one row each, all wrong: 40 of 50 rows, though 1 of 11 prompts."""
    values = [1] * 40 + [0] * 10
    prompts = ["a"] * 40 + [f"b{i}" for i in range(10)]
    found = statistics.bootstrap_ci(values, prompts)
    assert found["mean"] == 0.8 and found["n"] == 50 and found["groups"] == 11
    assert found["low"] == 0  # the one prompt need not be drawn


def test_rows_of_one_prompt_are_no_independent_draws():
    """The interval over prompts holds the truth as often as it says; one that takes the rows for independent draws does not."""
    rng = np.random.default_rng(1)
    prompts = np.repeat(np.arange(50), 8)
    hits, naive = 0, 0
    for _ in range(300):
        skill = rng.beta(1, 1, 50)
        values = (rng.random((50, 8)) < skill[:, None]).ravel()
        by_prompt = statistics.bootstrap_ci(values, prompts, resamples=400)
        by_row = statistics.bootstrap_ci(values, resamples=400)
        hits += by_prompt["low"] <= 0.5 <= by_prompt["high"]
        naive += by_row["low"] <= 0.5 <= by_row["high"]
    assert 0.9 <= hits / 300 <= 0.985 and naive / 300 < 0.85


def test_groups_keep_all_their_rows():
    """The cluster bootstrap by hand: sums and counts of whole prompts."""
    rng = np.random.default_rng(2)
    prompts, values = rng.integers(12, size=60), rng.random(60)
    order = list(dict.fromkeys(prompts.tolist()))
    rows = [values[prompts == p] for p in order]
    draws = np.random.default_rng(0).integers(len(rows), size=(1000, len(rows)))
    means = [np.concatenate([rows[i] for i in drawn]).mean() for drawn in draws]
    assert statistics.bootstrap_ci(values, prompts)["low"] == pytest.approx(np.quantile(means, 0.025))
    assert statistics.bootstrap_ci(values)["mean"] == statistics.bootstrap_ci(values, prompts)["mean"] == pytest.approx(values.mean())


def test_trainings_are_resampled_too():
    """Three trainings that differ, and prompts that do not: an interval over prompts alone has no width, over both it has theirs."""
    skill = np.repeat([0.2, 0.5, 0.8], 30)
    prompts = np.tile(np.arange(30), 3)
    seeds = np.repeat([0, 1, 2], 30)
    alone = statistics.bootstrap_ci(skill, prompts)
    both = statistics.bootstrap_ci(skill, prompts, seeds)
    assert alone["high"] - alone["low"] < 0.13 and (both["low"], both["high"]) == pytest.approx((0.2, 0.8))
    assert both["mean"] == pytest.approx(0.5) and both["groups"] == 30


@pytest.mark.parametrize("n", [2, 10, 106])
def test_values_that_all_agree_have_exact_bounds(n):
    """Clopper and Pearson's for shares; the same argument for a tie that is always 0.5, and for differences in [-1, 1]."""
    exact = stats.binomtest(n, n).proportion_ci(method="exact")
    one, none, ties = statistics.bootstrap_ci(np.ones(n)), statistics.bootstrap_ci(np.zeros(n)), statistics.bootstrap_ci(np.full(n, 0.5))
    assert (one["low"], one["high"]) == pytest.approx((exact.low, 1)) and (none["low"], none["high"]) == pytest.approx((0, 1 - exact.low))
    assert (ties["low"], ties["high"]) == pytest.approx((exact.low / 2, 1 - exact.low / 2))
    always = statistics.permutation_test(np.ones(n), np.zeros(n))
    assert (always["low"], always["high"]) == pytest.approx((2 * exact.low - 1, 1))
    assert statistics.bootstrap_ci(np.full(n, 7.5))["low"] == 7.5  # kilobytes: nothing is known of those not seen
    if n == 106:
        assert exact.low == pytest.approx(0.966, abs=5e-4)


def test_groups_whose_means_agree_have_exact_bounds_too():
    """Each prompt has one row right and one wrong: the bootstrap of their means has no width."""
    found = statistics.bootstrap_ci([1, 0] * 5, np.repeat(np.arange(5), 2))
    assert (found["low"], found["high"]) == pytest.approx((0.025**0.2 / 2, 1 - 0.025**0.2 / 2))


@pytest.mark.parametrize("groups", [["a", "b", float("nan"), float("nan"), "c"], np.array([1, 2, np.nan, 3, 4])], ids=["texts", "numbers"])
def test_a_group_that_is_nan_is_missing(groups):
    with pytest.raises(ValueError, match="value 2 has no id"):
        statistics.bootstrap_ci([1, 1, 0, 0, 0], groups)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must be"):
        statistics.permutation_test([1, 1, 1], [0])
    with pytest.raises(ValueError, match="rows of every training"):
        statistics.bootstrap_ci([1, 0, 1, 0], list("abcd"), [0, 1, 0, 1])


def test_exact_bounds_count_groups_not_rows():
    rows = statistics.bootstrap_ci(np.ones(100), np.repeat(np.arange(5), 20))
    assert rows["low"] == pytest.approx(statistics.bootstrap_ci(np.ones(5))["low"])


@pytest.mark.parametrize("values, groups, message", [
    ([1.0], None, "two values"),
    ([1.0, 0.0], ["a", "a"], "two groups"),
    ([], None, "two values"),
    ([1, float("nan"), 0], None, "value 1 is not finite"),
    ([1, 2, float("inf")], ["a", "b", "c"], "value 2 is not finite"),
    ([1, 1, 0, 0, 0], ["a", "b", None, None, None], "value 2 has no id"),
    ([1, 0], ["a"], "as many ids"),
])  # fmt: skip
def test_what_has_no_interval_says_so(values, groups, message):
    with pytest.raises(ValueError, match=message):
        statistics.bootstrap_ci(values, groups)
    with pytest.raises(ValueError, match=f"^clip_acc: .*{message}"):
        statistics.metric_with_ci("clip_acc", values, groups)


def test_an_interval_of_30000_rows_is_drawn_in_parts():
    values = np.random.default_rng(0).normal(size=30_000)
    draws = np.random.default_rng(0).integers(len(values), size=(1000, len(values)))
    assert statistics.bootstrap_ci(values)["low"] == pytest.approx(np.quantile(values[draws].mean(1), 0.025))


def test_a_permutation_test_of_known_differences():
    """Equal scores: 0 and p 1. A difference on every one of ten prompts: the smallest p that sign flips can give, 2 / 2^10."""
    a, prompts = np.arange(20.0), np.repeat(np.arange(10), 2)
    assert statistics.permutation_test(a, a, prompts)["p"] == 1 and statistics.permutation_test(a, a)["mean"] == 0
    found = statistics.permutation_test(a + 1 + 0.1 * (a % 3), a, prompts)
    assert found["p"] == pytest.approx(2 / 2**10) and found["groups"] == 10 and found["n"] == 20 and found["low"] > 1
    rng = np.random.default_rng(0)
    p = [statistics.permutation_test(rng.normal(size=30), rng.normal(size=30), resamples=500)["p"] for _ in range(200)]
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.1  # as often as it says, where there is nothing


def test_a_permutation_test_weighs_rows_as_its_mean_does():
    """A prompt with many rows moves the mean of the rows, and the test with it."""
    a = np.r_[np.ones(90), np.zeros(10)]
    b = np.r_[np.zeros(90), np.ones(10)]
    found = statistics.permutation_test(a, b, np.r_[np.zeros(90), np.arange(1, 11)])
    assert found["mean"] == pytest.approx(0.8)
    assert found["p"] == 1  # no flip of eleven signs gives a sum smaller than that of the one prompt less the ten


def test_a_row_of_a_table_becomes_metric_keys():
    row = {"mean": 1.0, "low": 0.0, "high": 2.0, "n": 3, "axis": "quality"}
    assert statistics.ci_keys("x", row) == {"x": 1.0, "x_low": 0.0, "x_high": 2.0, "x_n": 3}
    assert statistics.ci_keys("x", row | {"mean": float("nan"), "low": float("nan")}) == {"x_high": 2.0, "x_n": 3}
