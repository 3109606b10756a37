"""The comparison of sasrec.sh. Without a fifth argument it starts Sluice and, as processes of their own, itself for PyTorch."""

import glob
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

BATCH, LENGTH, HEADS, LAYERS, DROPOUT, RATE = 128, 50, 2, 2, 0.5, 1e-3


def record(store, stage):
    """The key record of a stage of the last run."""
    run = json.load(open(max(glob.glob(f"{store}/runs/*/run.json"), key=os.path.getmtime)))
    return json.load(open(f"{store}/keys/{run['keys'][stage]}.json"))


def parts(folder):
    return sorted(glob.glob(f"{folder}/*.parquet"))


def sluice(work, data, cores, name):
    """A store in which a pipeline ran. It starts from the sequences alone, so that no training goes on from another."""
    store = f"{work}/{name}"
    shutil.rmtree(store, ignore_errors=True)
    if name != "split":
        shutil.copytree(f"{work}/split", store)
    command = ["taskset", "-c", cores, "target/release/sluice", "run", f"{work}/{name}.yaml", "--data", data]
    environment = {**os.environ, "RAYON_NUM_THREADS": "2"}
    subprocess.run([*command, "--store", store, "--quiet"], check=True, env=environment)
    return store


def training(store):
    """Seconds of the training stage, and its curve's last loss."""
    import pyarrow.parquet as pq

    found = record(store, "model")
    curve = pq.read_table(parts(f"{store}/objects/{found['outputs']['curve']}"))
    return found["seconds"], curve["train_loss"][-1].as_py()


def torch_epoch(work, kind):
    """Seconds and mean loss of the first epoch, after two steps of warming up on a copy of the weights."""
    import copy
    import random

    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(2)
    start = json.load(open(f"{work}/start.json"))
    weights = load_file(f"{start['model']}/model.safetensors")
    numbers = {item: row for row, item in enumerate(json.load(open(f"{start['model']}/items.json")))}
    train = pq.read_table(parts(start["train"]))["sequence"].to_pylist()
    windows = []
    for sequence in train:
        sequence = [numbers[item] for item in sequence]
        at = 0
        while at < len(sequence) - 1:
            length = (len(sequence) - 1 - at) % LENGTH or LENGTH
            windows.append(sequence[at : at + length + 1])
            at += length
    items, width = weights["items"].shape

    class Block(nn.Module):
        def __init__(self, i):
            super().__init__()
            take = lambda name: nn.Parameter(weights[f"blocks.{i}.{name}"].clone())
            self.norm1, self.norm2 = take("attention.norm"), take("feed_forward.norm")
            self.qkv, self.out = take("attention.qkv"), take("attention.out")
            self.up, self.down = take("feed_forward.1"), take("feed_forward.2")

        def forward(self, x, hidden):
            batch, length, _ = x.shape
            h = F.layer_norm(x, (width,), self.norm1, None, 1e-8)
            q, k, v = F.linear(h, self.qkv).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v, hidden, DROPOUT if self.training else 0.0)
            x = x + F.dropout(F.linear(a.transpose(1, 2).reshape(x.shape), self.out), DROPOUT, self.training)
            h = F.layer_norm(x, (width,), self.norm2, None, 1e-8)
            h = F.dropout(torch.relu(F.linear(h, self.up)), DROPOUT, self.training)
            return x + F.dropout(F.linear(h, self.down), DROPOUT, self.training)

    class Sasrec(nn.Module):
        def __init__(self):
            super().__init__()
            take = lambda name: nn.Parameter(weights[name].clone())
            self.items, self.positions, self.norm = take("items"), take("positions"), take("norm")
            self.blocks = nn.ModuleList([Block(i) for i in range(LAYERS)])

        def forward(self, rows, known):
            length = rows.shape[1]
            x = F.embedding(rows, self.items) + self.positions[-length:]
            x = F.dropout(x, DROPOUT, self.training)
            see = torch.tril(torch.ones(length, length, dtype=torch.bool)) & known[:, None, :]
            see = (see | torch.eye(length, dtype=torch.bool))[:, None]
            for block in self.blocks:
                x = block(x, see)
            return F.layer_norm(x, (width,), self.norm, None, 1e-8)

    def step(model, adam, batch):
        longest = LENGTH if kind == "padded" else max(map(len, batch)) - 1
        rows = torch.zeros(len(batch), longest, dtype=torch.long)
        targets = torch.full((len(batch), longest), -100)
        for b, window in enumerate(batch):
            rows[b, longest - len(window) + 1 :] = torch.tensor(window[:-1])
            targets[b, longest - len(window) + 1 :] = torch.tensor(window[1:])
        known = targets >= 0
        x = model(rows, known)
        if kind == "padded":
            x, wanted = x.flatten(0, 1), targets.flatten()
        else:
            x, wanted = x[known], targets[known]
        loss = F.cross_entropy(x @ model.items.T, wanted)
        adam.zero_grad()
        loss.backward()
        adam.step()
        return float(loss.detach())

    random.seed(1)
    random.shuffle(windows)
    if kind == "bucketed":
        groups = [windows[at : at + 50 * BATCH] for at in range(0, len(windows), 50 * BATCH)]
        windows = [window for group in groups for window in sorted(group, key=len)]
    batches = [windows[at : at + BATCH] for at in range(0, len(windows), BATCH)]
    random.shuffle(batches)
    model = Sasrec()
    for some, count in ((copy.deepcopy(model), 2), (model, len(batches))):
        adam = torch.optim.Adam(some.parameters(), lr=RATE)
        begin = time.time()
        losses = [step(some, adam, batch) for batch in batches[:count]]
    print(json.dumps({"seconds": time.time() - begin, "loss": statistics.mean(losses)}))


def main(work, data, cores, rounds):
    sluice(work, data, cores, "split")
    start = sluice(work, data, cores, "start")
    model = f"{start}/objects/{record(start, 'model')['outputs']['model']}"
    train = f"{start}/objects/{record(start, 'split')['outputs']['train']}"
    json.dump({"model": model, "train": train}, open(f"{work}/start.json", "w"))
    times = {"sluice": [], "bucketed": [], "padded": []}
    losses = {}
    for _ in range(int(rounds)):
        (one, losses["sluice"]), (three, _) = (training(sluice(work, data, cores, name)) for name in ("one", "three"))
        times["sluice"].append((three - one) / 2)
        for kind in ("bucketed", "padded"):
            command = ["taskset", "-c", cores, sys.executable, __file__, work, data, cores, rounds, kind]
            answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            times[kind].append(answer["seconds"])
            losses[kind] = answer["loss"]
    names = {"sluice": "sluice", "bucketed": "torch, by length", "padded": "torch, padded to 50"}
    ours = statistics.median(times["sluice"])
    for kind, name in names.items():
        seconds = statistics.median(times[kind])
        print(f"{name:<20} {seconds:7.2f} s an epoch  {seconds / ours:6.2f}  first epoch's mean loss {losses[kind]:.4f}")


if __name__ == "__main__":
    if len(sys.argv) == 6:
        torch_epoch(sys.argv[1], sys.argv[5])
    else:
        main(*sys.argv[1:5])
