"""Writes tests/golden/scaling.json: scaling laws fitted by scipy, with Huber's loss and positive parameters in log space.

Run: python tests/reference/scaling_reference.py   (scipy, numpy)
"""
import itertools
import json
import pathlib

import numpy as np
import scipy
from scipy.optimize import least_squares

rng = np.random.default_rng(5)
RS = [336e3, 778e3, 1.9e6, 3.3e6, 6.7e6, 13e6, 21e6, 43e6, 88e6, 192e6]


def power(p, s, sign):
    r0, a, e = p[0], np.exp(p[1]), np.exp(p[2])
    return r0 + sign * a * (s[:, 0] / 1e7) ** -e


def sid_gr(p, s, sign):
    r0, a, b, ea, eb, g1, g2 = p[0], *np.exp(p[1:])
    si = s[:, 0] / 1e7 + g1 * s[:, 1] / 1e9 + g2 * s[:, 2] / 1e6
    return r0 + sign * (a * si**-ea + b * (s[:, 0] / 1e7) ** -eb)


def llm(p, s, sign):
    r0, a, b, ea, eb, gamma = p[0], *np.exp(p[1:])
    si = s[:, 3] / 1e8 + gamma * s[:, 1] / 1e10
    return r0 + sign * (a * si**-ea + b * (s[:, 3] / 1e8) ** -eb)


def additive(p, s, sign):
    e, a, b, ea, eb = p[0], *np.exp(p[1:])
    return e + sign * (a * (s[:, 0] / 1e9) ** -ea + b * (s[:, 4] / 1e11) ** -eb)


def log(p, s, sign):
    return p[0] + p[1] * np.log(s[:, 0] / 1e7)


def constant(p, s, sign):
    return p[0] + 0 * s[:, 0]


def rows(rs=(None,), llms=(None,), quantizers=(None,), loras=(None,), data=(None,)):
    return list(itertools.product(rs, llms, quantizers, loras, data))


grid = rows([1e7, 3e7, 1e8, 3e8, 1e9, 3e9, 1e10], data=[1e9, 4e9, 1.6e10, 6e10, 2e11, 1e12])
adapters = [(None, n, None, n * share, None) for n in [0.6e9, 1.7e9, 4e9, 8e9, 14e9] for share in [0.002, 0.005, 0.01, 0.02]]
systems = rows(RS[::3], [77e6, 248e6, 783e6, 3e9], [1e5, 4e5, 3e6])
CASES = [
    ("power", power, rows(RS * 3), [0.045, np.log(1e-3), np.log(0.6)], -1, 4e-4),
    # Noise beyond delta, so that lines count and not squares alone.
    ("power", power, rows(RS * 3), [0.045, np.log(1e-3), np.log(0.6)], -1, 2e-3),
    ("additive", additive, grid, [1.8172, np.log(0.35), np.log(0.2), np.log(0.3478), np.log(0.3658)], 1, 5e-3),
    ("sid_gr", sid_gr, systems, [0.06, np.log(4e-3), np.log(2e-3), np.log(0.5), np.log(0.8), np.log(1.0), np.log(0.05)], -1, 1e-4),
    ("llm", llm, adapters, [0.3, np.log(0.02), np.log(0.07), np.log(0.5), np.log(0.2), np.log(0.9)], -1, 1e-4),
    ("log", log, rows(RS * 2), [0.04, 0.003], -1, 2e-3),
    ("constant", constant, rows(RS * 2), [0.04], -1, 3e-3),
]
DELTA = 1e-3
cases = []
for name, law, sizes, truth, sign, noise in CASES:
    s = np.array(sizes, dtype=float)
    values = np.round(law(truth, s, sign) + noise * rng.normal(size=len(s)), 9)
    best = None
    for start in range(40):
        at = np.array(truth) + (0.5 * rng.normal(size=len(truth)) if start else 0)
        fit = least_squares(lambda p: law(p, s, sign) - values, at, loss="huber", f_scale=DELTA,
                            xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=4000, x_scale="jac")
        if best is None or fit.cost < best.cost:
            best = fit
    cases.append({
        "law": name, "delta": DELTA, "sizes": sizes, "values": values.tolist(),
        "loss": best.cost, "fitted": law(best.x, s, sign).tolist(),
    })
    print(name, noise, best.cost, best.x)
path = pathlib.Path(__file__).parent.parent / "golden" / "scaling.json"
text = json.dumps({"scipy": scipy.__version__, "cases": cases}).replace('}, {"law"', '},\n{"law"')
path.write_text(text + "\n")
