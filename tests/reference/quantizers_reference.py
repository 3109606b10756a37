"""Writes tests/golden/optimizers.json and tests/golden/quantizers.json from PyTorch.

Optimizers: weights after each of three steps of torch.optim.SGD, Adagrad and AdamW.
Quantizers: loss, gradient of every weight, and weights after one step of AdamW, of R-VQ and of RQ-VAE with each
estimator, written with autograd as the papers have them: straight-through, Gumbel-softmax over negative squared
distances, and the rotation trick (arXiv 2410.06424) of the latent to the sum of its entries.

Run: python tests/reference/quantizers_reference.py   (torch)
"""
import json
import pathlib

import torch
import torch.nn.functional as F

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
torch.manual_seed(7)


def numbers(tensor):
    return [float(f"{x:.9g}") for x in tensor.detach().flatten().tolist()]


def write(name, content):
    content = {"software": f"torch {torch.__version__}", **content}
    (GOLDEN / name).write_text(json.dumps(content) + "\n")


def optimizers():
    start = torch.randn(9)
    gradients = [torch.randn(9) for _ in range(3)]
    cases = []
    for config, lr, make in [
        ({"sgd": {}}, 0.1, lambda w: torch.optim.SGD(w, lr=0.1)),
        ({"sgd": {"momentum": 0.9, "weight_decay": 0.01}}, 0.1,
         lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=0.01)),
        ({"adagrad": {}}, 0.4, lambda w: torch.optim.Adagrad(w, lr=0.4)),
        ({"adagrad": {"lr_decay": 0.1, "weight_decay": 0.01}}, 0.4,
         lambda w: torch.optim.Adagrad(w, lr=0.4, lr_decay=0.1, weight_decay=0.01)),
        ({"adam": {"decoupled": True, "weight_decay": 0.01}}, 0.01,
         lambda w: torch.optim.AdamW(w, lr=0.01, weight_decay=0.01)),
    ]:
        weight = torch.nn.Parameter(start.clone())
        optimizer = make([weight])
        after = []
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
            after.append(numbers(weight))
        cases.append({"optimizer": config, "lr": lr, "weights": after})
    write("optimizers.json", {"start": numbers(start), "gradients": [numbers(g) for g in gradients], "cases": cases})


def stack(x, maps):
    for at, (weight, bias) in enumerate(maps):
        x = F.linear(x, weight, bias)
        if at + 1 < len(maps):
            x = F.relu(x)
    return x


def rotated(z, q):
    """z turned and scaled to q, with turn and scale as constants."""
    z_unit, q_unit = F.normalize(z, dim=-1).detach(), F.normalize(q, dim=-1).detach()
    between = F.normalize(z_unit + q_unit, dim=-1)
    scale = (q.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True)).detach()
    dot = lambda a, b: (a * b).sum(-1, keepdim=True)
    return scale * (z - 2 * between * dot(between, z) + 2 * q_unit * dot(z_unit, z))


def loss_of(x, encoder, decoder, codebooks, beta, estimator, temperature, noise):
    z = stack(x, encoder)
    residual, total, quantization = z, 0, 0
    for level, codebook in enumerate(codebooks):
        distance = (residual[:, None] - codebook[None]).pow(2).sum(-1)
        if estimator == "gumbel_softmax":
            chosen = F.softmax((noise[level] - distance) / temperature, dim=-1) @ codebook
        else:
            chosen = codebook[distance.argmin(-1)]
        quantization = quantization + (residual.detach() - chosen).pow(2).sum(-1).mean()
        quantization = quantization + beta * (residual - chosen.detach()).pow(2).sum(-1).mean()
        residual = residual - chosen.detach()
        total = total + chosen
    if estimator == "gumbel_softmax":
        q = total
    elif estimator == "rotation":
        q = rotated(z, total.detach())
    else:
        q = z + (total - z).detach()
    reconstruction = (stack(q, decoder) - x).pow(2).sum(-1).mean()
    return reconstruction + quantization, reconstruction


def quantizers():
    rows, dim, sizes, beta, temperature = 11, 6, [5, 4, 3], 0.25, 0.7
    cases = []
    for name, layers, estimator in [
        ("rvq", [], "straight_through"),
        ("rqvae", [5, 3], "straight_through"),
        ("rotation", [5, 3], "rotation"),
        ("gumbel", [5, 3], "gumbel_softmax"),
        ("rvq_gumbel", [], "gumbel_softmax"),
    ]:
        widths = [dim, *layers]
        x = torch.randn(rows, dim)
        named, encoder, decoder = [], [], []
        for part, maps, widths_of in [("encoder", encoder, widths), ("decoder", decoder, widths[::-1])]:
            for at, (i, o) in enumerate(zip(widths_of, widths_of[1:])):
                weight = torch.nn.Parameter(torch.randn(o, i) / i**0.5)
                bias = torch.nn.Parameter(torch.randn(o) * 0.3)
                named += [(f"{part}.{at}.weight", weight), (f"{part}.{at}.bias", bias)]
                maps.append((weight, bias))
        codebooks = [torch.nn.Parameter(torch.randn(size, widths[-1])) for size in sizes]
        named += [(f"codebook.{level}", codebook) for level, codebook in enumerate(codebooks)]
        noise = [-torch.log(-torch.log(torch.rand(rows, size))) for size in sizes]
        before = [numbers(weight) for _, weight in named]
        optimizer = torch.optim.AdamW([weight for _, weight in named], lr=1e-2, weight_decay=0.01)
        loss, reconstruction = loss_of(x, encoder, decoder, codebooks, beta, estimator, temperature, noise)
        loss.backward()
        gradients = [numbers(weight.grad) for _, weight in named]
        optimizer.step()
        cases.append({
            "name": name,
            "config": {"dim": dim, "layers": layers, "codebook_sizes": sizes},
            "estimator": {estimator: {"temperature": temperature}} if estimator == "gumbel_softmax" else estimator,
            "beta": beta,
            "x": numbers(x),
            "noise": [numbers(of) for of in noise],
            "weights": [{"name": name, "data": data} for (name, _), data in zip(named, before)],
            "loss": loss.item(),
            "reconstruction": reconstruction.item(),
            "gradients": gradients,
            "lr": 1e-2,
            "weight_decay": 0.01,
            "after": [numbers(weight) for _, weight in named],
        })
    write("quantizers.json", {"cases": cases})


optimizers()
quantizers()
