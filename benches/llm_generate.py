"""The peer of benches/llm_generate.sh: transformers. Prints one table."""

import gzip
import html
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import defaultdict

WORK, DATA, CORES, SETTINGS = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
PIN = {int(core) for core in CORES.split(",")}
os.sched_setaffinity(0, PIN)
DEVICE, PRECISION = os.environ.get("DEVICE", "cpu"), os.environ.get("PRECISION", "f32")
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "RAYON_NUM_THREADS": str(len(PIN))}

import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM  # noqa: E402

torch.set_num_threads(len(PIN))
BEAMS, HISTORY, FEW, DEVIATION = 10, 20, 64, 0.1
# Scores that differ by less are taken for the same.
CLOSE = 2e-3 if PRECISION == "f32" else 5e-2
SHAPES = {
    "qwen": dict(vocab_size=151_936, hidden_size=64, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=32),
    "pairs": dict(vocab_size=4096, hidden_size=320, intermediate_size=960, num_hidden_layers=7, num_attention_heads=5,
                  num_key_value_heads=5, head_dim=64),
    "0.6b": dict(vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
                 num_attention_heads=16, num_key_value_heads=8, head_dim=128),
}  # fmt: skip


def qwen_tokenizer():
    folder = os.path.join(WORK, "tokenizer")
    os.makedirs(folder, exist_ok=True)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        with gzip.open(os.path.join(DATA, "tokenizers/qwen3", f"{name}.gz")) as packed:
            with open(os.path.join(folder, name), "wb") as file:
                shutil.copyfileobj(packed, file)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda text: tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id


def pairs_tokenizer(titles):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator(titles, trainer)
    return lambda text: tokenizer.encode(text).ids, 0


def read_data(shape):
    """Prompts of some test users, and all titles, as tokens."""
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
    encode, eos = pairs_tokenizer(titles.values()) if shape == "pairs" else qwen_tokenizer()
    histories = [items[:-1][-HISTORY:] for items in users.values()]
    random.Random(1).shuffle(histories)
    text = lambda history: "Items bought, oldest first:\n" + "\n".join(titles[i] for i in history) + "\nThe next item:\n"
    prompts = [encode(text(history)) for history in histories[:FEW]]
    return {"prompts": prompts, "titles": [encode(title) + [eos] for title in titles.values()]}, eos


def ours(penalty, users):
    arguments = [WORK, str(BEAMS), str(penalty), str(users), "--bench"]
    line = subprocess.run([SETTINGS["bench"], *arguments], check=True, capture_output=True, text=True,
                          preexec_fn=lambda: os.sched_setaffinity(0, PIN))  # fmt: skip
    return [json.loads(line) for line in line.stdout.strip().splitlines()]


def generate(model, data, eos, penalty, users):
    trie = {}
    for title in data["titles"]:
        node = trie
        for token in title:
            node = node.setdefault(token, {})
    longest = max(map(len, data["titles"]))

    def run(prompts):
        width = max(map(len, prompts))
        ids = torch.tensor([[eos] * (width - len(prompt)) + prompt for prompt in prompts], device=DEVICE)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=DEVICE)

        def allowed(_, row):
            node = trie
            for token in row[width:].tolist():
                node = node.get(token, {})
            return list(node) or [eos]

        with torch.inference_mode():
            found = model.generate(
                input_ids=ids, attention_mask=mask, num_beams=BEAMS, num_return_sequences=BEAMS, do_sample=False,
                max_new_tokens=longest, length_penalty=float(penalty), early_stopping=False,
                prefix_allowed_tokens_fn=allowed, return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
        rows = found.sequences[:, width:].tolist()
        rows = [row[: row.index(eos) + 1] for row in rows]
        found = list(zip(rows, found.sequences_scores.tolist()))
        return [found[at : at + BEAMS] for at in range(0, len(found), BEAMS)]

    at_once = SETTINGS["at_once"]
    run([data["prompts"][0][:8]])
    begin, beams = time.perf_counter(), []
    for at in range(0, users, at_once):
        beams += run(data["prompts"][at : min(at + at_once, users)])
    return time.perf_counter() - begin, beams


def compare(ours, theirs):
    """How many lists are the same, where scores closer than their errors may change places; the largest difference."""
    same, worst = 0, 0.0
    for a, b in zip(ours, theirs):
        scores = {tuple(title): score for title, score in b}
        differences = [abs(x["score"] - scores.get(tuple(x["title"]), float("inf"))) for x in a]
        places = [abs(x["score"] - score) for x, (_, score) in zip(a, b)]
        same += len(a) == len(b) and max(differences + places) < CLOSE
        worst = max(worst, *places)
    return same, worst


def main():
    print(f"{DEVICE}, {PRECISION}, cores {CORES}")
    print("shape  vocabulary  penalty  transformers  Sluice   ratio  (one user; children alone)  same beams")
    for shape in SETTINGS["shapes"].split():
        data, eos = read_data(shape)
        with open(os.path.join(WORK, "data.json"), "w") as file:
            json.dump(data, file)
        torch.manual_seed(1)
        config = Qwen3Config(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=4096, eos_token_id=eos,
                             pad_token_id=eos, bos_token_id=None)  # fmt: skip
        model = Qwen3ForCausalLM(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name:
                    parameter.normal_(0.0, DEVIATION)
        model = model.to(torch.bfloat16 if PRECISION == "bf16" else torch.float32)
        model.save_pretrained(os.path.join(WORK, "model"))
        model = model.to(DEVICE)
        parameters = sum(p.numel() for p in model.parameters())
        lengths = [sum(map(len, data[kind])) / len(data[kind]) for kind in ("prompts", "titles")]
        print(f"{shape}: {parameters / 1e6:.1f}M parameters; a prompt has {lengths[0]:.0f} tokens, a title {lengths[1]:.1f}")
        for penalty in SETTINGS["penalties"].split():
            users = SETTINGS["users"]
            whole, children = ours(penalty, 16 * users)
            seconds, beams = generate(model, data, eos, penalty, users)
            same, worst = compare(whole["beams"][:users], beams)
            rate, theirs = 16 * users / whole["seconds"], users / seconds
            print(
                f"{shape:6} {SHAPES[shape]['vocab_size']:10} {penalty:>8} {theirs:10.2f}/s {rate:8.1f}/s {rate / theirs:6.1f}x"
                f"  ({1e3 * whole['alone']:.0f} ms; {16 * users / children['seconds']:.0f}/s)"
                f"  {same} of {users}, scores to {worst:.1e}; {whole['tokens'] / (16 * users):.0f} tokens a user",
                flush=True,
            )


main()
