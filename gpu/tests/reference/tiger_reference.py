"""Writes tests/golden/tiger_{grid,t5,injected}.{safetensors,json}: the model of src/tiger.rs built from transformers' T5Stack.

Run with torch, transformers and safetensors installed:  python tests/reference/tiger_reference.py
Weights are stored under the names of src/tiger.rs; the batch is padded and masked here, packed there.
`injected` is `t5` with one head for all levels and a token per item that carries a vector.
"""
import json
import pathlib

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5LayerFF, T5Stack

SIZES, LAYERS, D, H, K, FF, USERS = [7, 5, 6, 3], 2, 12, 3, 5, 10, 4
C, V, WIDTH = len(SIZES), sum(SIZES), 6
GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


class GridFF(nn.Module):
    def __init__(self):
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(D, FF), nn.Linear(FF, FF), nn.Linear(FF, D)])

    def forward(self, x):
        return self.maps[2](torch.relu(self.maps[1](torch.relu(self.maps[0](x)))))


class Tiger(nn.Module):
    def __init__(self, kind):
        super().__init__()
        config = dict(vocab_size=V, d_model=D, d_kv=K, d_ff=FF, num_layers=LAYERS, num_heads=H, dropout_rate=0.0,
                      relative_attention_num_buckets=32, relative_attention_max_distance=128, feed_forward_proj="relu",
                      use_cache=False)
        self.encoder = T5Stack(T5Config(**config, is_decoder=False, is_encoder_decoder=False))
        self.decoder = T5Stack(T5Config(**config, is_decoder=True, is_encoder_decoder=False))
        for stack in (self.encoder, self.decoder):
            stack.embed_tokens = None
            for block in stack.block:
                assert isinstance(block.layer[-1], T5LayerFF)
                if kind == "grid":
                    block.layer[-1].DenseReluDense = GridFF()
        self.codes = nn.Parameter(torch.randn(V, D))
        self.bos = nn.Parameter(torch.randn(D))
        self.separator = nn.Parameter(torch.randn(D))
        self.injected = kind == "injected"
        self.heads = nn.ParameterList([nn.Parameter(torch.randn(size, D) * D**-0.5) for size in SIZES])
        if self.injected:
            self.heads = nn.ParameterList([nn.Parameter(torch.randn(V, D) * D**-0.5)])
            self.vectors = nn.Parameter(torch.randn(D, WIDTH))
        for name, p in self.named_parameters():
            if "layer_norm" in name:
                p.data = 1 + 0.1 * torch.randn_like(p)
            elif "relative" in name or "bias" in name:
                p.data = 0.3 * torch.randn_like(p)
            elif "block" in name:
                p.data = torch.randn_like(p) * p.shape[1] ** -0.5

    def embed(self, code, level):
        return self.codes[sum(SIZES[:level]) + code]

    def logits(self, hidden, level):
        return hidden[:, level] @ self.heads[0 if self.injected else level].T

    def loss(self, histories, targets, vectors):
        """`vectors`: one row per item of the histories, in their order."""
        longest = max(len(h) // C * (C + 1 + self.injected) for h in histories)
        vectors = iter(nn.functional.normalize(vectors, dim=-1))
        x = torch.zeros(len(histories), longest, D)
        mask = torch.zeros(len(histories), longest)
        rows = []
        for b, h in enumerate(histories):
            row = []
            for i, code in enumerate(h):
                row.append(self.embed(code, i % C))
                if i % C == C - 1:
                    if self.injected:
                        row.append(self.vectors @ next(vectors))
                    row.append(self.separator)
            mask[b, : len(row)] = 1
            rows.append(torch.cat([torch.stack(row), torch.zeros(longest - len(row), D)]))
        memory = self.encoder(inputs_embeds=torch.stack(rows), attention_mask=mask).last_hidden_state
        y = torch.stack([torch.stack([self.bos] + [self.embed(t[i], i) for i in range(C - 1)]) for t in targets])
        hidden = self.decoder(inputs_embeds=y, encoder_hidden_states=memory, encoder_attention_mask=mask).last_hidden_state
        targets = torch.tensor(targets)
        first = [sum(SIZES[:l]) if self.injected else 0 for l in range(C)]
        return sum(nn.functional.cross_entropy(self.logits(hidden, l), first[l] + targets[:, l]) for l in range(C))

    def ours(self, of=lambda p: p.detach()):
        """Tensors under the names of src/tiger.rs."""
        out = {"codes": of(self.codes), "bos": of(self.bos), "separator": of(self.separator)}
        for part, stack in (("encoder", self.encoder), ("decoder", self.decoder)):
            attention = stack.block[0].layer[0].SelfAttention
            out[f"{part}.bias"] = of(attention.relative_attention_bias.weight)
            out[f"{part}.norm"] = of(stack.final_layer_norm.weight)
            for i, block in enumerate(stack.block):
                name = f"{part}.{i}"
                a = block.layer[0].SelfAttention
                out[f"{name}.attention.norm"] = of(block.layer[0].layer_norm.weight)
                out[f"{name}.attention.qkv"] = torch.cat([of(a.q.weight), of(a.k.weight), of(a.v.weight)])
                out[f"{name}.attention.out"] = of(a.o.weight)
                if part == "decoder":
                    a = block.layer[1].EncDecAttention
                    out[f"{name}.cross.norm"] = of(block.layer[1].layer_norm.weight)
                    out[f"{name}.cross.q"] = of(a.q.weight)
                    out[f"{name}.cross.kv"] = torch.cat([of(a.k.weight), of(a.v.weight)])
                    out[f"{name}.cross.out"] = of(a.o.weight)
                ff = block.layer[-1]
                out[f"{name}.feed_forward.norm"] = of(ff.layer_norm.weight)
                dense = ff.DenseReluDense
                if isinstance(dense, GridFF):
                    for j, m in enumerate(dense.maps):
                        out[f"{name}.feed_forward.{j + 1}"] = of(m.weight)
                        out[f"{name}.feed_forward.{j + 1}.bias"] = of(m.bias)
                else:
                    out[f"{name}.feed_forward.1"] = of(dense.wi.weight)
                    out[f"{name}.feed_forward.2"] = of(dense.wo.weight)
        for l, head in enumerate(self.heads):
            out["heads" if self.injected else f"heads.{l}"] = of(head)
        if self.injected:
            out["vectors"] = of(self.vectors)
        return {name: t.detach().clone().contiguous() for name, t in out.items()}


def item(generator):
    return [int(torch.randint(size, (1,), generator=generator)) for size in SIZES]


for kind in ("grid", "t5", "injected"):
    torch.manual_seed({"grid": 1, "t5": 2, "injected": 4}[kind])
    generator = torch.Generator().manual_seed(3)
    model = Tiger(kind).eval()
    histories = [sum((item(generator) for _ in range(n)), []) for n in (3, 1, 7, 2, 5)]
    targets = [item(generator) for _ in histories]
    vectors = torch.randn(sum(len(h) // C for h in histories), WIDTH, generator=generator)
    tensors = {f"weights/{k}": v for k, v in model.ours().items()}
    loss = model.loss(histories, targets, vectors)
    loss.backward()
    tensors |= {f"gradients/{k}": v for k, v in model.ours(lambda p: p.grad).items()}
    numbers = {"codebook_sizes": SIZES, "layers": LAYERS, "d_model": D, "heads": H, "d_kv": K, "d_ff": FF,
               "feed_forward": "grid" if kind == "grid" else "t5", "histories": histories, "targets": targets, "loss": float(loss)}
    if kind == "injected":
        numbers["vectors"] = vectors.tolist()
    adam = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-2)
    losses = []
    for _ in range(3):
        adam.zero_grad()
        loss = model.loss(histories, targets, vectors)
        losses.append(float(loss))
        loss.backward()
        adam.step()
    losses.append(float(model.loss(histories, targets, vectors)))
    numbers["adam"] = {"lr": 1e-2, "weight_decay": 1e-2, "losses": losses}
    tensors |= {f"after/{k}": v for k, v in model.ours().items()}
    save_file(tensors, GOLDEN / f"tiger_{kind}.safetensors")
    (GOLDEN / f"tiger_{kind}.json").write_text(json.dumps(numbers) + "\n")
