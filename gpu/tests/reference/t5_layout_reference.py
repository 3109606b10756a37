"""Writes tests/golden/t5_layout.json: what transformers' T5 makes of the exported folder tests/golden/t5_layout.

Run with torch and transformers installed:  python tests/reference/t5_layout_reference.py
The folder is written by  SLUICE_BLESS=1 cargo test --release -p sluice-gpu --test t5_layout. Nothing may be missing or
unexpected in it. Inputs are built here from the config alone, padded and masked.
"""
import json
import pathlib
import random

import torch
from transformers import T5ForConditionalGeneration

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
model, info = T5ForConditionalGeneration.from_pretrained(GOLDEN / "t5_layout", output_loading_info=True)
for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
    assert not info.get(kind), (kind, info[kind])
assert next(model.parameters()).dtype == torch.float32
model.eval()
config = model.config
sizes = config.codebook_sizes
first = [sum(sizes[:level]) for level in range(len(sizes))]
users = config.separator_token_id + 1
assert config.decoder_start_token_id == sum(sizes) and config.vocab_size == users + config.user_buckets

draw = random.Random(5)
cases = []
for items in (1, 2, 6, 9, 3):
    code = lambda: [draw.randrange(size) for size in sizes]
    history = sum((code() for _ in range(items)), [])
    cases.append({"user": draw.randrange(config.user_buckets), "history": history, "target": code()})

rows = []
for case in cases:
    row = [users + case["user"]]
    items = [case["history"][i : i + len(sizes)] for i in range(0, len(case["history"]), len(sizes))]
    for item in items[-config.max_items :]:
        row += [start + code for start, code in zip(first, item)] + [config.separator_token_id]
    rows.append(row)
longest = max(map(len, rows))
ids = torch.tensor([row + [config.pad_token_id] * (longest - len(row)) for row in rows])
mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
starts = [
    [config.decoder_start_token_id] + [start + code for start, code in zip(first, case["target"][:-1])] for case in cases
]
with torch.no_grad():
    logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor(starts)).logits
    # It generates as it is: an id a level, where only codes of the level are allowed.
    allowed = lambda _, tokens: list(range(first[len(tokens) - 1], first[len(tokens) - 1] + sizes[len(tokens) - 1]))
    made = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=len(sizes), num_beams=2, prefix_allowed_tokens_fn=allowed
    )
assert made.shape == (len(cases), len(sizes) + 1), made.shape
assert torch.all(logits[..., sum(sizes) :] == 0)
for case, by_level in zip(cases, logits.tolist()):
    case["logits"] = [row[start : start + size] for row, start, size in zip(by_level, first, sizes)]
(GOLDEN / "t5_layout.json").write_text(json.dumps({"cases": cases}) + "\n")
