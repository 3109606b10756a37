#!/usr/bin/env bash
# Embeds the texts of the Beauty catalogue with MiniLM: sluice beside sentence-transformers, both on 2 threads, one
# after the other on the same machine. Prints items/s of both, their ratio and the largest difference.
# Needs SLUICE_DATA; installs its peer into a virtual environment (VENV, default .venv-bench).
set -euo pipefail
cd "$(dirname "$0")/.."
data=${SLUICE_DATA:-$(cd ../shared/data && pwd)}
items=${ITEMS:-12101}
venv=${VENV:-.venv-bench}
[ -d "$venv" ] || { python3 -m venv "$venv"; "$venv/bin/pip" install -q torch sentence-transformers pyarrow; }
"$venv/bin/python" -c 'import pyarrow' 2>/dev/null || "$venv/bin/pip" install -q pyarrow
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
print(f"sluice                {len(texts) / seconds:7.1f} items/s (loading included)")
print(f"sentence-transformers {len(texts) / peer_seconds:7.1f} items/s")
print(f"ratio {peer_seconds / seconds:.2f}, largest difference {np.abs(ours - theirs).max():.1e}")
PY
