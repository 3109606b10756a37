"""The comparison of tiger.sh. With a fifth argument it is one process of PyTorch's side, else it starts them all."""

import gzip
import json
import os
import random
import subprocess
import sys
import time

LEVELS, CODES, MAX_ITEMS, BATCH, BEAM, USERS_AT_ONCE = 4, 256, 20, 256, 10, 32
BOS, SEPARATOR = LEVELS * CODES, LEVELS * CODES + 1
RATE, DECAY, DROPOUT, CHECKED = 1e-3, 1e-4, 0.15, 3
DEVICE, PRECISION = os.environ.get("DEVICE", "cpu"), os.environ.get("PRECISION", "f32")


def read_data(folder):
    """Codes of all items; train sequences and whole histories (less the test item) as item numbers."""
    beauty = f"{folder}/amazon2014-beauty"
    if os.path.isdir(beauty):
        with gzip.open(f"{beauty}/letter_sids.jsonl.gz", "rt") as lines:
            rows = sorted((row["item_id"], row["sid"]) for row in map(json.loads, lines))
        numbers = {item: i for i, (item, _) in enumerate(rows)}
        users = {}
        with gzip.open(f"{beauty}/interactions.tsv.gz", "rt") as lines:
            next(lines)
            for line in lines:
                user, _, item, *_ = line.split("\t")
                users.setdefault(user, []).append(numbers[int(item)])
        codes, sequences = [sid for _, sid in rows], list(users.values())
    else:
        print(f"no {beauty}: samples are made up, with lengths like those of Beauty")
        draw = random.Random(0)
        codes = [[draw.randrange(CODES) for _ in range(LEVELS)] for _ in range(12_101)]
        sequences = [
            [draw.randrange(len(codes)) for _ in range(5 + min(199, int(draw.lognormvariate(0.7, 1.25))))]
            for _ in range(22_363)
        ]
    histories = [s[:-1][-MAX_ITEMS:] for s in sequences]
    random.Random(1).shuffle(histories)
    return {"codes": codes, "sequences": [s[:-2] for s in sequences], "histories": histories}


def all_samples(data):
    """History and target of every contiguous subsequence, in the order of the Sluice side."""
    for s in data["sequences"]:
        for end in range(1, len(s)):
            for start in range(end):
                yield s[max(start, end - MAX_ITEMS) : end], s[end]


def tokens(data, history):
    row = []
    for item in history:
        row += [level * CODES + code for level, code in enumerate(data["codes"][item])] + [SEPARATOR]
    return row


def load_model(folder, feed_forward, dropout):
    """transformers' T5 with Sluice's weights; GRID's feed-forward block in place of T5's where asked."""
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from torch.nn import functional as F
    from transformers import T5Config, T5ForConditionalGeneration

    weights = load_file(f"{folder}/model.safetensors")
    shape = json.load(open(f"{folder}/config.json"))
    config = T5Config(
        vocab_size=SEPARATOR + 1, d_model=shape["d_model"], d_kv=shape["d_kv"], d_ff=shape["d_ff"],
        num_layers=shape["layers"], num_heads=shape["heads"], dropout_rate=dropout, layer_norm_epsilon=1e-6,
        feed_forward_proj="relu", tie_word_embeddings=False, decoder_start_token_id=BOS, bos_token_id=BOS,
        pad_token_id=SEPARATOR, eos_token_id=None, attn_implementation="sdpa",
    )  # fmt: skip

    class GridFeedForward(nn.Module):
        def __init__(self):
            super().__init__()
            d, ff = config.d_model, config.d_ff
            self.maps = nn.ModuleList([nn.Linear(d, ff), nn.Linear(ff, ff), nn.Linear(ff, d)])

        def forward(self, x):
            x = self.maps[1](torch.relu(self.maps[0](x)))
            return self.maps[2](torch.relu(F.dropout(x, dropout, self.training)))

    class Heads(nn.Module):
        """One output head a level. In generation call number c answers for level c, the other codes get nothing."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.stack([weights[f"heads.{level}"] for level in range(LEVELS)]))
            self.level = 0

        def forward(self, x):
            logits = torch.full((*x.shape[:-1], config.vocab_size), -float("inf"))
            at = self.level * CODES
            logits[..., at : at + CODES] = F.linear(x, self.weight[self.level])
            self.level += 1
            return logits

    model = T5ForConditionalGeneration(config)
    table = torch.cat([weights["codes"], weights["bos"].view(1, -1), weights["separator"].view(1, -1)])

    def put(parameter, name):
        parameter.data.copy_(weights[name].view_as(parameter))

    with torch.no_grad():
        model.shared.weight.copy_(table)
        model.lm_head = Heads()
        for part, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
            stack.embed_tokens = model.shared
            put(stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight, f"{part}.bias")
            put(stack.final_layer_norm.weight, f"{part}.norm")
            for i, block in enumerate(stack.block):
                name, own, last = f"{part}.{i}", block.layer[0], block.layer[-1]
                a = own.SelfAttention
                for map, w in zip((a.q, a.k, a.v), weights[f"{name}.attention.qkv"].chunk(3)):
                    map.weight.copy_(w)
                put(a.o.weight, f"{name}.attention.out")
                put(own.layer_norm.weight, f"{name}.attention.norm")
                if part == "decoder":
                    cross = block.layer[1]
                    a = cross.EncDecAttention
                    put(a.q.weight, f"{name}.cross.q")
                    for map, w in zip((a.k, a.v), weights[f"{name}.cross.kv"].chunk(2)):
                        map.weight.copy_(w)
                    put(a.o.weight, f"{name}.cross.out")
                    put(cross.layer_norm.weight, f"{name}.cross.norm")
                put(last.layer_norm.weight, f"{name}.feed_forward.norm")
                if feed_forward == "grid":
                    last.DenseReluDense = GridFeedForward()
                    maps = last.DenseReluDense.maps
                else:
                    maps = [last.DenseReluDense.wi, last.DenseReluDense.wo]
                for n, map in enumerate(maps, 1):
                    put(map.weight, f"{name}.feed_forward.{n}")
                    if map.bias is not None:
                        put(map.bias, f"{name}.feed_forward.{n}.bias")
    assert sum(p.numel() for p in model.parameters()) == sum(w.numel() for w in weights.values())
    return model


def pad(data, samples, longest):
    """Encoder input, its mask, decoder input and targets."""
    import torch

    histories = [tokens(data, history) for history, _ in samples]
    longest = longest or max(map(len, histories))
    rows = torch.full((len(samples), longest), SEPARATOR)
    known = torch.zeros(len(samples), longest, dtype=torch.long)
    for b, history in enumerate(histories):
        rows[b, : len(history)] = torch.tensor(history)
        known[b, : len(history)] = 1
    targets = torch.tensor([data["codes"][item] for _, item in samples])
    before = torch.cat([torch.full((len(samples), 1), BOS), targets[:, :-1] + CODES * torch.arange(LEVELS - 1)], 1)
    return rows, known, before, targets


def loss_of(model, rows, known, before, targets):
    from torch.nn import functional as F

    known = known.bool()[:, None, None, :]  # so it is never left out: fewer graphs to compile
    memory = model.encoder(input_ids=rows, attention_mask=known)[0]
    hidden = model.decoder(
        input_ids=before, encoder_hidden_states=memory, encoder_attention_mask=known, use_cache=False
    )[0]
    heads = model.lm_head.weight
    return sum(F.cross_entropy(F.linear(hidden[:, c], heads[c]), targets[:, c]) for c in range(LEVELS))


def run_steps(model, loss, batches, warm_up=()):
    """Seconds of the batches, after some that do not count; losses of all. Batches are padded beforehand."""
    import torch

    model.to(DEVICE)
    batches, warm_up = ([[part.to(DEVICE) for part in batch] for batch in some] for some in (batches, warm_up))
    adam = torch.optim.Adam(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    losses, seconds = [], []
    for batch in [*warm_up, *batches]:
        begin = time.perf_counter()
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=PRECISION == "bf16"):
            value = loss(model, *batch)
        adam.zero_grad()
        value.backward()
        adam.step()
        losses.append(float(value.detach()))
        seconds.append(time.perf_counter() - begin)
    return {"seconds": sum(seconds[len(warm_up) :]), "steps": len(batches), "losses": losses,
            "warm_up": sum(seconds[: len(warm_up)])}  # fmt: skip


def torch_side(work, feed_forward, steps, what):
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    data = json.load(open(f"{work}/data.json"))
    if what == "generate":
        return generate(work, data, feed_forward, steps)
    start = f"{work}/{feed_forward}/start"
    known = json.load(open(f"{work}/{feed_forward}/batches.json"))
    rows = list(all_samples(data))
    load = lambda batches, longest=None: [pad(data, [rows[i] for i in batch], longest) for batch in batches]
    longest, few = MAX_ITEMS * (LEVELS + 1), max(3, steps // 4)
    answer = {}
    if what == "eager":
        model = load_model(start, feed_forward, 0.0).train()
        answer["checked"] = run_steps(model, loss_of, load(known["ragged"][:CHECKED]))["losses"]
        model = load_model(start, feed_forward, DROPOUT).train()
        padded = load(known["ragged"][: few + 1], longest)
        answer["padded"] = run_steps(model, loss_of, padded[1:], padded[:1])
        dense = load(known["dense"][:few], longest)
        answer["dense"] = run_steps(model, loss_of, dense)
        return answer
    window = sorted((i for batch in known["ragged"][:50] for i in batch), key=lambda i: len(rows[i][0]))
    window = [window[at : at + BATCH] for at in range(0, len(window), BATCH)]
    # of 50 batches sorted by length every so many-th: a fair draw of an epoch
    draw = lambda count: load([window[(2 * i + 1) * len(window) // (2 * count)] for i in range(count)])
    bucketed, short = draw(steps), draw(few)
    dense = load(known["dense"][: few + 1], longest)
    model = load_model(start, feed_forward, DROPOUT).train()
    answer["bucketed eager"] = run_steps(model, loss_of, short, short[:1])
    try:
        # block by block: the whole model as one graph takes minutes to compile
        for block in [*model.encoder.block, *model.decoder.block]:
            block.compile(dynamic=True)
        answer["bucketed compiled"] = run_steps(model, loss_of, bucketed, [bucketed[steps // 2], bucketed[-1]])
        answer["dense compiled"] = run_steps(model, loss_of, dense[1:], dense[:1])
    except Exception as error:  # whatever the compiler or its C++ toolchain cannot do here
        answer["compile failed"] = f"{type(error).__name__}: {error}"[:500]
    return answer


def generate(work, data, feed_forward, users):
    """transformers' constrained beam search: semantic ids and scores of the first users."""
    import torch

    model = load_model(f"{work}/{feed_forward}/trained", feed_forward, 0.0).eval()
    trie = {}
    for codes in data["codes"]:
        node = trie
        for level, code in enumerate(codes):
            node = node.setdefault(level * CODES + code, {})

    def allowed(_, prefix):
        node = trie
        for token in prefix[1:].tolist():
            node = node[token]
        return list(node)

    def run(histories):
        rows, known, _, _ = pad(data, [(h, 0) for h in histories], None)
        model.lm_head.level = 0
        with torch.inference_mode():
            found = model.generate(
                input_ids=rows, attention_mask=known, num_beams=BEAM, num_return_sequences=BEAM, do_sample=False,
                max_new_tokens=LEVELS, min_new_tokens=LEVELS, length_penalty=0.0, early_stopping=False,
                prefix_allowed_tokens_fn=allowed, return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
        ids = (found.sequences[:, 1:] - CODES * torch.arange(LEVELS)).tolist()
        return list(zip(ids, found.sequences_scores.tolist()))

    run(data["histories"][:USERS_AT_ONCE])
    begin, found = time.perf_counter(), []
    for at in range(0, users, USERS_AT_ONCE):
        found += run(data["histories"][at : at + USERS_AT_ONCE])
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "beams": [found[at : at + BEAM] for at in range(0, len(found), BEAM)]}


def call(command, cores):
    # as it is, glibc gives large tensors back to the system at every step, which slows PyTorch
    memory = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
              "MALLOC_TOP_PAD_": str(1 << 28)} if command[0] == sys.executable else {}  # fmt: skip
    environment = {**os.environ, **memory, "RAYON_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1",
                   "TORCHINDUCTOR_CACHE_DIR": f"{command[2]}/inductor"}  # fmt: skip
    command = ["taskset", "-c", cores, *map(str, command)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(text.strip().splitlines()[-1])


def main(work, folder, cores, settings):
    settings = json.loads(settings)
    bench, steps, users = settings["bench"], int(settings["steps"]), int(settings["users"])
    few = max(3, steps // 4)
    with open(f"{work}/data.json", "w") as file:
        json.dump(read_data(folder), file)
    for kind in settings["feed_forward"].split():
        batches = call([bench, "prepare", work, kind], cores)
        with open(f"{work}/{kind}/batches.json", "w") as file:
            json.dump(batches, file)
        ours = lambda lengths, steps, dropout=DROPOUT: call([bench, "train", work, kind, lengths, steps, dropout], cores)
        theirs = lambda what, n=steps: call([sys.executable, __file__, work, kind, n, "-", what], cores)
        checked = ours("ragged", CHECKED - 2, 0.0)["losses"]
        ragged, dense = ours("ragged", steps), ours("dense", few)
        eager, compiled = theirs("eager"), theirs("compiled")
        print(f"TIGER 13M, feed-forward {kind}, {batches['samples']} samples, batch {BATCH}, dropout {DROPOUT}, {PRECISION}, {DEVICE}")
        differences = [abs(a - b) for a, b in zip(checked, eager["checked"])]
        print(f"  losses without dropout {[round(x, 5) for x in checked]}, largest difference from PyTorch's: "
              f"{max(differences):.1e}")  # fmt: skip
        lines = [("sluice, ragged", ragged["seconds"] / steps, 0), ("sluice, dense", dense["seconds"] / few, 1)]
        named = {"padded": ("torch eager, padded to 100", 0), "bucketed eager": ("torch eager, by length", 0),
                 "bucketed compiled": ("torch compiled, by length", 0), "dense": ("torch eager, dense", 1),
                 "dense compiled": ("torch compiled, dense", 1)}  # fmt: skip
        for key, (name, which) in named.items():
            found = eager.get(key) or compiled.get(key)
            if found:
                lines.append((name, found["seconds"] / found["steps"], which))
        for name, seconds, which in lines:
            epoch = f"{seconds * batches['samples'] / BATCH / 60:7.1f} min an epoch" if which == 0 else " " * 20
            print(f"  {name:<28} {1e3 * seconds:8.0f} ms a step {BATCH / seconds:7.0f} samples/s {epoch} "
                  f"{seconds / lines[which][1]:6.2f}")  # fmt: skip
        if "compile failed" in compiled:
            print(f"  torch.compile failed: {compiled['compile failed']}")
        else:
            print(f"  compiling took {compiled['bucketed compiled']['warm_up']:.0f} s, not counted")
        if DEVICE != "cpu":
            continue
        search, peer = call([bench, "search", work, kind, 16 * users], cores), theirs("generate", users)
        compare(search, 16 * users, peer, users)


def compare(search, many, peer, users):
    """Speeds of generation, and whether the beams are the same."""
    same, largest = 0, 0.0
    for a, b in zip(search["beams"], peer["beams"]):
        ours, theirs = ([(tuple(id), score) for id, score in beam] for beam in (a, b))
        same += [id for id, _ in ours] == [id for id, _ in theirs]
        scores = dict(theirs)
        largest = max([largest, *(abs(score - scores[id]) for id, score in ours if id in scores)])
    fast, slow = many / search["seconds"], users / peer["seconds"]
    print(f"  beam {BEAM}: sluice {fast:.0f} users/s, transformers' generate {slow:.1f} users/s, {fast / slow:.1f} times")
    print(f"  identical top {BEAM} for {same} of {users} users, scores differ by at most {largest:.1e}")


if __name__ == "__main__":
    if len(sys.argv) == 6:
        print(json.dumps(torch_side(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[5])))
    else:
        main(*sys.argv[1:5])
