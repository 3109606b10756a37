"""Writes tests/golden/sasrec_{softmax,binary_cross_entropy,sampled_softmax}.{safetensors,json}: the model of src/sasrec.rs in plain torch.

Run with torch and safetensors installed:  python tests/reference/sasrec_reference.py
Weights are stored under the names of src/sasrec.rs; the batch is padded on the left and masked here, packed there.
"""
import json
import pathlib

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

ITEMS, LAYERS, D, H, LENGTH, NEGATIVES, EPS = 37, 2, 14, 2, 9, 11, 1e-8
GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D, EPS, bias=False), nn.LayerNorm(D, EPS, bias=False)
        self.attention = nn.MultiheadAttention(D, H, bias=False, batch_first=True)
        self.up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

    def forward(self, x, hidden):
        h = self.norm1(x)
        x = x + self.attention(h, h, h, attn_mask=hidden, need_weights=False)[0]
        return x + self.down(torch.relu(self.up(self.norm2(x))))


class Sasrec(nn.Module):
    def __init__(self):
        super().__init__()
        self.items, self.positions = nn.Embedding(ITEMS, D), nn.Embedding(LENGTH, D)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(D, EPS, bias=False)
        for name, p in self.named_parameters():
            p.data = 1 + 0.1 * torch.randn_like(p) if "norm" in name else torch.randn_like(p) * 0.4

    def hidden(self, histories):
        """Hidden states of all positions of all histories, one after the other."""
        rows = torch.zeros(len(histories), LENGTH, dtype=torch.long)
        known = torch.zeros(len(histories), LENGTH, dtype=torch.bool)
        for b, h in enumerate(histories):
            rows[b, LENGTH - len(h):], known[b, LENGTH - len(h):] = torch.tensor(h), True
        x = self.items(rows) + self.positions.weight
        see = torch.tril(torch.ones(LENGTH, LENGTH, dtype=torch.bool)) & known[:, None, :]
        see |= torch.eye(LENGTH, dtype=torch.bool)  # a padded position sees itself, so that no row is empty
        hidden = (~see).repeat_interleave(H, dim=0)
        for block in self.blocks:
            x = block(x, hidden)
        return self.norm(x)[known]

    def loss(self, kind, histories, targets, negatives):
        x, targets = self.hidden(histories), torch.tensor(sum(targets, []))
        negatives = torch.tensor(negatives)
        if kind == "softmax":
            return F.cross_entropy(x @ self.items.weight.T, targets)
        own = (x * self.items(targets)).sum(-1)
        if kind == "binary_cross_entropy":
            other = (x * self.items(negatives)).sum(-1)
            return (F.binary_cross_entropy_with_logits(own, torch.ones_like(own))
                    + F.binary_cross_entropy_with_logits(other, torch.zeros_like(other)))
        others = (x @ self.items(negatives).T).masked_fill(targets[:, None] == negatives, -torch.inf)
        return F.cross_entropy(torch.cat([own[:, None], others], 1), torch.zeros_like(targets))

    def ours(self, of=lambda p: p.detach()):
        """Tensors under the names of src/sasrec.rs."""
        out = {"items": of(self.items.weight), "positions": of(self.positions.weight), "norm": of(self.norm.weight)}
        for i, block in enumerate(self.blocks):
            name = f"blocks.{i}"
            out[f"{name}.attention.norm"] = of(block.norm1.weight)
            out[f"{name}.attention.qkv"] = of(block.attention.in_proj_weight)
            out[f"{name}.attention.out"] = of(block.attention.out_proj.weight)
            out[f"{name}.feed_forward.norm"] = of(block.norm2.weight)
            out[f"{name}.feed_forward.1"] = of(block.up.weight)
            out[f"{name}.feed_forward.2"] = of(block.down.weight)
        return {name: t.detach().clone().contiguous() for name, t in out.items()}


for seed, kind in enumerate(["softmax", "binary_cross_entropy", "sampled_softmax"]):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(3)
    model = Sasrec()
    walks = [torch.randint(ITEMS, (n + 1,), generator=generator).tolist() for n in (3, 1, 9, 2, 7)]
    histories, targets = [w[:-1] for w in walks], [w[1:] for w in walks]
    count = {"softmax": 0, "binary_cross_entropy": sum(map(len, targets)), "sampled_softmax": NEGATIVES}[kind]
    negatives = torch.randint(ITEMS, (count,), generator=generator).tolist()
    if kind == "sampled_softmax":
        negatives[2] = targets[0][1]  # one negative is a target
    batch = (kind, histories, targets, negatives)
    tensors = {f"weights/{k}": v for k, v in model.ours().items()}
    tensors["hidden"] = model.hidden(histories).detach().clone()
    model.loss(*batch).backward()
    tensors |= {f"gradients/{k}": v for k, v in model.ours(lambda p: p.grad).items()}
    adam = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-2)
    losses = []
    for _ in range(3):
        adam.zero_grad()
        loss = model.loss(*batch)
        losses.append(loss.item())
        loss.backward()
        adam.step()
    losses.append(model.loss(*batch).item())
    numbers = {"config": {"items": ITEMS, "layers": LAYERS, "d_model": D, "heads": H, "dropout": 0.0, "max_items": LENGTH,
                          "loss": kind, "negatives": NEGATIVES},
               "histories": histories, "targets": targets, "drawn": negatives,
               "adam": {"lr": 1e-2, "weight_decay": 1e-2, "losses": losses}}
    tensors |= {f"after/{k}": v for k, v in model.ours().items()}
    save_file(tensors, GOLDEN / f"sasrec_{kind}.safetensors")
    (GOLDEN / f"sasrec_{kind}.json").write_text(json.dumps(numbers) + "\n")
