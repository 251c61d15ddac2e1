"""Means with intervals, and permutation tests: over rows, where the rows of one prompt are no independent draws."""

import numpy as np
import pandas as pd
from scipy import stats
from torch import Tensor

CHUNK = 10_000_000  # drawn rows at a time, a hundred megabytes


def bootstrap_ci(values, groups=None, trainings=None, *, bounds=(0, 1), confidence=0.95, resamples=1000, seed=0) -> dict:
    """Mean over the rows of `values` (n,) with a percentile bootstrap interval: {"mean", "low", "high", "n", "groups"}.

    groups (n ids, e.g. prompts): whole groups are resampled and keep all their rows (the cluster bootstrap; Field and Welsh 2007), so the
    mean is that of the rows, as published accuracies are, and the interval allows for rows that belong together; by default each row is
    a group. trainings (n ids, e.g. seeds): these are resampled too, crossed with the groups.

    Where the means of all groups agree and lie within `bounds`, the bootstrap has no width: then the bounds are exact, Clopper and
    Pearson's (1934) for shares of 0 or 1 over as many draws as there are groups. ValueError for a value that is not finite, a missing id,
    fewer than two groups, or a group without rows of some training."""
    values = np.asarray(values, dtype=np.float64)
    tail = (1 - confidence) / 2
    _refuse(~np.isfinite(values), "value {} is not finite")
    sums, counts = _sums_and_counts(values, groups, trainings)
    if len(sums) < 2:
        raise ValueError(f"an interval needs at least two values, of two groups, not {len(sums)}")
    mean = values.mean().item()
    if _all_agree(sums, counts) and bounds[0] <= mean <= bounds[1]:
        unseen = 1 - tail ** (1 / len(sums))  # a share so large of the population may differ and never have been drawn
        low, high = ((1 - unseen) * mean + unseen * bound for bound in bounds)
    else:
        low, high = np.quantile(_bootstrap_means(sums, counts, resamples, seed), [tail, 1 - tail])
    return {"mean": mean, "low": float(low), "high": float(high), "n": len(values), "groups": len(sums)}


def _sums_and_counts(values: np.ndarray, groups, trainings) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each group and training, (groups, trainings), in order of first appearance."""
    n = len(values)
    rows = np.arange(n) if groups is None else _codes(groups, n)
    columns = np.zeros(n, dtype=int) if trainings is None else _codes(trainings, n)
    shape = (rows.max(initial=-1) + 1, columns.max(initial=-1) + 1)
    cell = rows * shape[1] + columns
    sums, counts = (np.bincount(cell, weights, minlength=shape[0] * shape[1]).reshape(shape) for weights in (values, np.ones(n)))
    if not counts.all():
        raise ValueError("every group must have rows of every training")
    return sums, counts


def _codes(ids, count: int) -> np.ndarray:
    """(count,) a number for each id, from 0 in order of first appearance."""
    codes, _ = pd.factorize(pd.Series(ids.tolist() if hasattr(ids, "tolist") else list(ids), dtype=object))
    if len(codes) != count:
        raise ValueError(f"{count} values need as many ids, not {len(codes)}")
    _refuse(codes < 0, "value {} has no id of its group")
    return codes


def _all_agree(sums: np.ndarray, counts: np.ndarray) -> bool:
    """Do the means of all groups agree, and those of all trainings?"""
    return all(np.ptp(sums.sum(axis) / counts.sum(axis)) < 1e-12 for axis in (1, 0))


def _bootstrap_means(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples,) means of as many groups, and trainings, drawn with replacement."""
    rng = np.random.default_rng(seed)
    n, m = sums.shape
    means = []
    for part in np.array_split(np.arange(resamples), -(-resamples * n // CHUNK)):
        rows = rng.integers(n, size=(len(part), n))
        columns = rng.integers(m, size=(len(part), m)) if m > 1 else np.zeros((len(part), 1), dtype=int)
        total, count = (np.take_along_axis(cells[rows].sum(1), columns, 1).sum(1) for cells in (sums, counts))
        means.append(total / count)
    return np.concatenate(means)


def permutation_test(a, b, groups=None, trainings=None, *, bounds=(-1, 1), resamples: int = 10_000, seed: int = 0) -> dict:
    """`bootstrap_ci` of a - b (n,), and `p`: two-sided, of a permutation test in which whole groups change sides; it conditions on the
    trainings. ValueError for a and b of different lengths."""
    a = np.asarray(a, dtype=np.float64)
    b = np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"a and b must be (n,) both, not {a.shape} and {b.shape}")
    difference = a - b
    ci = bootstrap_ci(difference, groups, trainings, bounds=bounds, seed=seed)
    sums = _sums_and_counts(difference, groups, None)[0][:, 0]
    test = stats.permutation_test((sums, np.zeros_like(sums)), lambda x, y, axis: (x - y).sum(axis), permutation_type="samples",
                                  vectorized=True, n_resamples=resamples, rng=np.random.default_rng(seed))  # fmt: skip
    return ci | {"p": float(test.pvalue)}


def metric_with_ci(name: str, values, groups=None, **options) -> dict:
    """`bootstrap_ci` as metric keys: name, name_low, name_high, name_n (rows) and, with groups, name_groups. ValueError names the
    metric."""
    try:
        row = bootstrap_ci(values, groups, **options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return ci_keys(name, row if groups is not None else {key: value for key, value in row.items() if key != "groups"})


def ci_keys(name: str, row: dict) -> dict:
    """The metric keys of one row of a table of intervals; those whose value is NaN are left out."""
    keys = {name: row["mean"]} | {f"{name}_{key}": row[key] for key in ("low", "high", "n", "groups") if key in row}
    return {key: value for key, value in keys.items() if value == value}  # a correlation with a constant has no number


def pairwise_accuracy(better: Tensor, worse: Tensor) -> Tensor:
    """float64: 1 where the first score is higher, 0.5 at a tie, else 0. ValueError names a row that is NaN: it would lose in silence."""
    _refuse((better.isnan() | worse.isnan()).cpu().numpy(), "the score of row {} is NaN")
    return (better > worse).double() + 0.5 * (better == worse)


def _refuse(is_bad: np.ndarray, message: str) -> None:
    """ValueError with the number of the first bad row in the message."""
    if is_bad.any():
        first = int(np.flatnonzero(is_bad.reshape(len(is_bad), -1).any(1))[0])
        raise ValueError(message.format(first) + (f" ({is_bad.sum()} of {is_bad.size} are so)" if is_bad.sum() > 1 else ""))
