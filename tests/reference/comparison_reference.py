"""Writes tests/golden/comparison.json: paired randomisation tests and intervals by scipy, Holm by statsmodels.

Run: python tests/reference/comparison_reference.py   (scipy, statsmodels, numpy)
"""
import json
import pathlib

import numpy as np
import scipy
import statsmodels
from scipy.stats import bootstrap, permutation_test
from statsmodels.stats.multitest import multipletests

rng = np.random.default_rng(11)


def hits(n, share):
    return (rng.random(n) < share).astype(float)


def gains(n, share):
    return hits(n, share) / np.log2(1 + rng.integers(1, 11, size=n))


pairs = [
    ("few gains", gains(9, 0.7), gains(9, 0.4)),
    ("sixteen normal", rng.normal(0.4, 1.0, 16), rng.normal(0.0, 1.0, 16)),
    ("hits with many equal", hits(14, 0.6), hits(14, 0.3)),
    ("all equal", np.full(5, 0.25), np.full(5, 0.25)),
    ("two users", np.array([1.0, 0.5]), np.array([0.5, 0.75])),
    ("many gains", gains(90, 0.5), gains(90, 0.4)),
    ("many hits", hits(120, 0.5), hits(120, 0.35)),
]
cases = []
for name, a, b in pairs:
    a, b = np.round(a, 6), np.round(b, 6)
    exact = len(a) <= 16
    test = permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        alternative="two-sided",
        vectorized=True,
        n_resamples=np.inf if exact else 200_000,
        batch=None if exact else 20_000,
        rng=np.random.default_rng(1),
    )
    interval = bootstrap(
        (a - b,), np.mean, n_resamples=100_000, method="percentile", batch=10_000, rng=np.random.default_rng(2)
    ).confidence_interval
    cases.append(
        {
            "name": name,
            "a": a.tolist(),
            "b": b.tolist(),
            "exact": exact,
            "mean": float(np.mean(a - b)),
            "p": float(test.pvalue),
            "low": float(interval.low),
            "high": float(interval.high),
        }
    )

families = [[0.01, 0.04, 0.03], [0.5], [0.2, 0.2, 0.001, 0.9, 0.049, 0.012], [1.0, 1.0], [0.025, 0.025, 0.025, 0.0001]]
holm = [{"p": p, "holm": multipletests(p, method="holm")[1].tolist()} for p in families]
seeds = [gains(7, 0.5).round(6) for _ in range(4)]
means = [float(np.mean(seed)) for seed in seeds]
summary = {
    "runs": [seed.tolist() for seed in seeds],
    "mean": float(np.mean(means)),
    "deviation": float(np.std(means, ddof=1)),
}

out = pathlib.Path(__file__).parent.parent / "golden" / "comparison.json"
software = f"scipy {scipy.__version__}, statsmodels {statsmodels.__version__}, numpy {np.__version__}"
out.write_text(json.dumps({"software": software, "cases": cases, "holm": holm, "summary": summary}) + "\n")
print(out, out.stat().st_size, "bytes")
