#!/usr/bin/env bash
# Embeds the texts of the Beauty catalogue with MiniLM: sluice beside sentence-transformers (PyTorch) and ONNX Runtime (the same
# model exported, batches of 32 texts of similar length, its graph optimizations on), each on 2 threads, one after the
# other on the same machine, f32. Prints items/s, their ratios and the largest differences. ITEMS: how many texts.
# Needs SLUICE_DATA; installs its peers into a virtual environment (VENV, default .venv-bench).
set -euo pipefail
cd "$(dirname "$0")/.."
data=${SLUICE_DATA:-$(cd ../shared/data && pwd)}
items=${ITEMS:-12101}
venv=${VENV:-.venv-bench}
[ -d "$venv" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import torch, sentence_transformers, pyarrow, onnx, onnxruntime' 2>/dev/null ||
    "$venv/bin/pip" install -q torch sentence-transformers pyarrow onnx onnxruntime
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --release --quiet
zcat "$data/amazon2014-beauty/items.jsonl.gz" | sed -n "1,${items}p" > "$work/items.jsonl"
ln -s "$data/all-MiniLM-L6-v2-f16" "$work/model"
cat > "$work/p.yaml" <<'YAML'
pipeline: embed
stages:
  items: { op: ingest_items, path: items.jsonl }
  text:  { op: embed_text, input: items, model: model, device: cpu }
YAML
RAYON_NUM_THREADS=2 target/release/sluice run "$work/p.yaml" --data "$work" --store "$work/store" --quiet
"$venv/bin/python" - "$work" <<'PY'
import glob, json, sys, time
import numpy as np, pyarrow.parquet as pq, torch
from sentence_transformers import SentenceTransformer, models
work = sys.argv[1]
torch.set_num_threads(2)
run = json.load(open(sorted(glob.glob(f"{work}/store/runs/*/run.json"))[-1]))
def key(stage):
    return json.load(open(f"{work}/store/keys/{run['keys'][stage]}.json"))
def table(stage):
    digest = key(stage)["outputs"]["out"]
    parts = sorted(glob.glob(f"{work}/store/objects/{digest}/*.parquet"))
    return pq.read_table(parts[0]) if len(parts) == 1 else __import__("pyarrow").concat_tables([pq.read_table(p) for p in parts])
texts = table("items").column("text").to_pylist()
ours = np.array(table("text").column("embedding").to_pylist(), dtype=np.float32)
seconds = key("text")["seconds"]
word = models.Transformer(f"{work}/model", max_seq_length=128)
word.auto_model.float()
peer = SentenceTransformer(modules=[word, models.Pooling(word.get_word_embedding_dimension()), models.Normalize()], device="cpu")
peer.encode(texts[:64])
start = time.time()
theirs = peer.encode(texts, batch_size=32, show_progress_bar=False)
peer_seconds = time.time() - start

import onnxruntime
class Hidden(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = word.auto_model
    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
with torch.inference_mode():
    example = word.tokenizer(texts[:2], padding=True, return_tensors="pt")
    inputs = (example["input_ids"], example["attention_mask"])
    axes = {"input_ids": {0: "texts", 1: "tokens"}, "attention_mask": {0: "texts", 1: "tokens"}, "hidden": {0: "texts", 1: "tokens"}}
    torch.onnx.export(Hidden().eval(), inputs, f"{work}/model.onnx", input_names=["input_ids", "attention_mask"],
                      output_names=["hidden"], dynamic_axes=axes, dynamo=False, opset_version=17)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession(f"{work}/model.onnx", options, providers=["CPUExecutionProvider"])

def embed(texts):
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    found = np.empty((len(texts), 384), dtype=np.float32)
    for at in range(0, len(order), 32):
        rows = order[at : at + 32]
        batch = word.tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=128, return_tensors="np")
        mask = batch["attention_mask"].astype(np.int64)
        hidden = session.run(["hidden"], {"input_ids": batch["input_ids"].astype(np.int64), "attention_mask": mask})[0]
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        found[rows] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return found

embed(texts[:64])
start = time.time()
others = embed(texts)
onnx_seconds = time.time() - start
print(f"sluice                {len(texts) / seconds:7.1f} items/s (loading included)")
for name, took, values in [("sentence-transformers", peer_seconds, theirs), ("ONNX Runtime", onnx_seconds, others)]:
    off = np.abs(ours - values).max()
    print(f"{name:<21} {len(texts) / took:7.1f} items/s, takes {took / seconds:.2f} of our time, largest difference {off:.1e}")
PY
