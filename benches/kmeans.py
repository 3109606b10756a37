"""The measurements of benches/kmeans.sh, see there. Arguments: folder for rows, bench binary, raw f32 rows or nothing."""
import json
import os
import subprocess
import sys
import time

# before the libraries are loaded
CORES = len(os.sched_getaffinity(0))
for name in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"]:
    os.environ[name] = str(CORES)

import faiss
import numpy as np
from sklearn.cluster import KMeans

WORK, BINARY, EMBEDDINGS = sys.argv[1], sys.argv[2], sys.argv[3]
LEVELS, CLUSTERS = 3, 256
faiss.omp_set_num_threads(CORES)


def made_up(rows, width):
    """Rows around 2,000 centres with sizes that fall off, as embeddings of a catalogue have them; unit length."""
    path = f"{WORK}/rows_{rows}_{width}.f32"
    if not os.path.exists(path):
        rng = np.random.default_rng(7)
        centres = rng.normal(size=(2000, width)).astype(np.float32)
        share = 1 / np.arange(1, 2001) ** 0.7
        of = rng.choice(2000, size=rows, p=share / share.sum())
        x = centres[of] + 0.9 * rng.normal(size=(rows, width)).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        x.astype(np.float32).tofile(path)
    return path


def residuals(x, fit):
    """Seconds in all and the mean squared residual after every level."""
    x, seconds, errors = x.copy(), 0.0, []
    for _ in range(LEVELS):
        start = time.perf_counter()
        centres, labels = fit(x)
        x -= centres[labels]
        seconds += time.perf_counter() - start
        errors.append(float((x.astype(np.float64) ** 2).sum(1).mean()))
    return seconds, errors


def by_faiss(iterations):
    def fit(x):
        # all rows, where faiss would by default take 256 per centre
        kmeans = faiss.Kmeans(x.shape[1], CLUSTERS, niter=iterations, seed=42, max_points_per_centroid=10**9)
        kmeans.train(x)
        return kmeans.centroids, kmeans.index.search(x, 1)[1][:, 0]

    return fit


def by_sklearn(iterations):
    def fit(x):
        kmeans = KMeans(CLUSTERS, n_init=1, max_iter=iterations, tol=0.0, random_state=42, algorithm="lloyd").fit(x)
        return kmeans.cluster_centers_, kmeans.labels_

    return fit


def sluice(path, width, iterations):
    command = [BINARY, "kmeans", path, str(width), str(LEVELS), str(CLUSTERS), str(iterations)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found["seconds"], found["mse"]


def line(name, seconds, errors):
    print(f"  {name:<34} {seconds:8.2f} s   mse {' '.join(f'{error:.5f}' for error in errors)}", flush=True)


def compare(path, width, iterations, slow):
    x = np.fromfile(path, dtype=np.float32).reshape(-1, width)
    print(f"{x.shape[0]} x {width}, {LEVELS} x {CLUSTERS}, {iterations} iterations, {CORES} cores")
    ours = sluice(path, width, iterations)
    line("sluice", *ours)
    theirs = residuals(x, by_faiss(iterations))
    line("faiss", *theirs)
    few = next((n for n in range(1, iterations + 1) if sluice(path, width, n)[1][-1] <= theirs[1][-1]), iterations)
    equal = sluice(path, width, few)
    line(f"sluice, {few} iterations", *equal)
    print(f"  faiss / sluice: {theirs[0] / ours[0]:.2f} at equal iterations, {theirs[0] / equal[0]:.2f} at equal error")
    if slow:
        peer = residuals(x, by_sklearn(iterations))
        line("scikit-learn", *peer)
        print(f"  scikit-learn / sluice: {peer[0] / ours[0]:.2f} at equal iterations")


compare(EMBEDDINGS or made_up(12_101, 384), 384, 25, True)
compare(made_up(1_000_000, 128), 128, 10, "SLOW" in os.environ)
