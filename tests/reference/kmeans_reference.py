"""Writes tests/golden/kmeans.json: Lloyd from given centres by scikit-learn, with and without weights.

Run: python tests/reference/kmeans_reference.py   (scikit-learn, numpy)
"""
import json
import pathlib

import numpy as np
import sklearn
from sklearn.cluster import KMeans

rng = np.random.default_rng(7)
cases = []
for name, n, d, k, weighted in [("plain", 60, 5, 7, False), ("weighted", 47, 3, 6, True), ("wide", 40, 33, 4, False)]:
    rows = (rng.normal(size=(n, d)) + 2.0 * rng.integers(0, 3, size=(n, 1))).astype(np.float32)
    weights = rng.integers(1, 5, size=n).astype(np.float32) if weighted else None
    init = rows[:k].copy()
    fit = KMeans(k, init=init.astype(np.float64), n_init=1, max_iter=300, tol=0.0, algorithm="lloyd")
    fit.fit(rows.astype(np.float64), sample_weight=weights)
    cases.append(
        {
            "name": name,
            "dim": d,
            "rows": rows.ravel().tolist(),
            "weights": None if weights is None else weights.tolist(),
            "init": init.ravel().tolist(),
            "centres": fit.cluster_centers_.ravel().tolist(),
            "labels": fit.labels_.tolist(),
            "inertia": float(fit.inertia_),
        }
    )
out = pathlib.Path(__file__).parent.parent / "golden" / "kmeans.json"
out.write_text(json.dumps({"software": f"scikit-learn {sklearn.__version__}", "cases": cases}) + "\n")
