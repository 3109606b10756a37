"""The peers of benches/llm_train.sh: transformers and peft. Prints one table."""

import gzip
import html
import json
import os
import random
import subprocess
import sys
import time
from collections import defaultdict

WORK, DATA, CORES, SETTINGS = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
os.sched_setaffinity(0, {int(core) for core in CORES.split(",")})
DEVICE, PRECISION = os.environ.get("DEVICE", "cpu"), os.environ.get("PRECISION", "f32")
SHAPE = os.environ.get("SHAPE", "10m")

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402

torch.set_num_threads(len(CORES.split(",")))
STEPS, BATCH, WARM_UP = SETTINGS["steps"], SETTINGS["batch"], 2
HISTORY, MOST_TOKENS = 20, 512


def prompts():
    """Tokens and where the loss begins, for every prefix of every train sequence."""
    folder = os.path.join(DATA, "amazon2014-beauty")
    titles = {}
    with gzip.open(os.path.join(folder, "items.jsonl.gz"), "rt") as file:
        for line in file:
            item = json.loads(line)
            titles[str(item["item_id"])] = " ".join(html.unescape(item.get("title") or f"item {item['item_id']}").split())
    users = defaultdict(list)
    with gzip.open(os.path.join(folder, "interactions.tsv.gz"), "rt") as file:
        columns = file.readline().rstrip("\n").split("\t")
        user, item = columns.index("user_id"), columns.index("item_id")
        for line in file:
            cells = line.rstrip("\n").split("\t")
            users[cells[user]].append(cells[item])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(titles.values(), trainer)
    encoded = {item: tokenizer.encode(title).ids for item, title in titles.items()}
    head, line_end = tokenizer.encode("Items bought, oldest first:\n").ids, tokenizer.encode("\n").ids
    tail = tokenizer.encode("\nThe next item:\n").ids
    out = []
    for items in users.values():
        train = items[:-2]
        for target in range(1, len(train)):
            history = train[max(0, target - HISTORY):target]
            body = []
            for i, item in enumerate(history):
                body += (line_end if i else []) + encoded[item]
            prompt = head + body + tail
            tokens = prompt + encoded[train[target]] + [0]
            if len(tokens) <= MOST_TOKENS:
                out.append((tokens, len(prompt)))
    return out


def ours(*arguments):
    line = subprocess.run([SETTINGS["bench"], *arguments, "--bench"], check=True, capture_output=True, text=True,
                          preexec_fn=lambda: os.sched_setaffinity(0, {int(c) for c in CORES.split(",")}))
    return json.loads(line.stdout.strip().splitlines()[-1])


def collate(batch):
    longest = max(len(tokens) for tokens, _ in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    labels = torch.full((len(batch), longest), -100, dtype=torch.long)
    for row, (tokens, start) in enumerate(batch):
        ids[row, :len(tokens)] = torch.tensor(tokens)
        mask[row, :len(tokens)] = 1
        labels[row, start:len(tokens)] = torch.tensor(tokens[start:])
    return ids, mask, labels


def peer(all_prompts, batches, scored_only, compiled):
    base = Qwen3ForCausalLM.from_pretrained(os.path.join(WORK, "base"))
    model = PeftModel.from_pretrained(base, os.path.join(WORK, "adapter"), is_trainable=True).to(DEVICE)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    inner = base.model
    run_inner = torch.compile(inner, dynamic=True) if compiled else inner

    def loss_of(ids, mask, labels):
        if not scored_only:
            logits = base.lm_head(run_inner(input_ids=ids, attention_mask=mask).last_hidden_state)
            return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        hidden = run_inner(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
        wanted = labels[:, 1:] != -100
        return torch.nn.functional.cross_entropy(base.lm_head(hidden[wanted]), labels[:, 1:][wanted])

    losses, start = [], 0.0
    for step, rows in enumerate(batches[:WARM_UP + STEPS]):
        if step == WARM_UP:
            start = time.perf_counter()
        ids, mask, labels = (part.to(DEVICE) for part in collate([all_prompts[row] for row in rows]))
        optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=PRECISION == "bf16"):
            loss = loss_of(ids, mask, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    seconds = (time.perf_counter() - start) / STEPS
    return {"ms": 1e3 * seconds, "samples_per_second": BATCH / seconds, "losses": losses}


def main():
    all_prompts = prompts()
    with open(os.path.join(WORK, "prompts.json"), "w") as file:
        json.dump(all_prompts, file)
    torch.manual_seed(1)
    shapes = {
        "10m": dict(vocab_size=4096, hidden_size=320, intermediate_size=960, num_hidden_layers=7,
                    num_attention_heads=5, num_key_value_heads=5, head_dim=64),
        "0.6b": dict(vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
                     num_attention_heads=16, num_key_value_heads=8, head_dim=128),
    }
    config = Qwen3Config(**shapes[SHAPE], tie_word_embeddings=True, max_position_embeddings=1024)
    model = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16 if PRECISION == "bf16" else torch.float32).save_pretrained(os.path.join(WORK, "base"))
    parameters = sum(p.numel() for p in model.parameters())
    batches = ours("prepare", WORK, str(BATCH))["batches"]
    lengths = [len(tokens) for tokens, _ in all_prompts]
    print(f"{parameters / 1e6:.1f}M parameters, {len(all_prompts)} prompts, mean {sum(lengths) / len(lengths):.0f} tokens,"
          f" {BATCH} a step, {STEPS} timed steps, {PRECISION}, {DEVICE}, cores {CORES}")
    # Batches of prompts of like length, in a random order; as many prompts in all as the shuffled ones.
    pool = sorted({row for batch in batches for row in batch}, key=lambda row: lengths[row])
    buckets = [pool[i:i + BATCH] for i in range(0, len(pool) - BATCH + 1, BATCH)]
    random.Random(1).shuffle(buckets)
    rows = [("Sluice, packed", ours("train", WORK, str(BATCH), str(STEPS)))]
    padding = lambda all_batches: sum(
        max(lengths[r] for r in b) * len(b) for b in all_batches) / sum(lengths[r] for b in all_batches for r in b)
    # The same prompts for everyone: sorted batches hold other prompts than shuffled ones, so tokens are counted.
    def tokens_a_step(all_batches):
        timed = all_batches[WARM_UP:WARM_UP + STEPS]
        return sum(lengths[r] for b in timed for r in b) / STEPS
    reference = tokens_a_step(batches)
    kinds = [(False, False), (True, False)] + ([(True, True)] if SETTINGS["compiled"] else [])
    for scored_only, compiled in kinds:
        for name, order in [("padded", batches), ("by length", buckets)]:
            result = peer(all_prompts, order, scored_only, compiled)
            result["ms"] *= reference / tokens_a_step(order)
            result["samples_per_second"] = 1e3 * BATCH / result["ms"]
            label = f"peft, {name}, {'scored' if scored_only else 'all'} logits{', compiled' if compiled else ''}"
            rows.append((label, result))
    first = rows[0][1]
    print(f"padding: shuffled {padding(batches[:STEPS + WARM_UP]):.2f}x, by length {padding(buckets[:STEPS + WARM_UP]):.2f}x")
    for label, result in rows:
        print(f"{label:<44} {result['ms']:8.0f} ms  {result['samples_per_second']:7.1f} prompts/s  "
              f"{result['ms'] / first['ms']:5.2f}x")
    # Forward and back to what was frozen: two products each of the maps of the blocks.
    maps = sum(p.numel() for name, p in model.named_parameters() if "proj" in name)
    flops = 4 * maps * reference / (first["ms"] / 1e3)
    peak = float(os.environ.get("PEAK_TFLOPS", "0"))
    print(f"Sluice: {reference / first['ms'] * 1e3:.0f} tokens/s, {flops / 1e12:.2f} TFLOP/s in the blocks' frozen maps"
          + (f", {flops / 1e10 / peak:.1f} % of {peak:.0f}" if peak else "")
          + f"; memory of the CPU's engine estimated at {first['estimated_gib']:.2f} GiB")
    pairs = list(zip(first["losses"], rows[1][1]["losses"]))
    print("losses agree to", f"{max(abs(a - b) for a, b in pairs):.1e}", "over", len(pairs), "steps of the same batches")


main()
