"""Reference of gpu/tests/llm_generation_golden.rs: transformers' logits, greedy and beam search inside a catalogue of titles.

Run from the repository: python gpu/tests/reference/llm_generation_reference.py (needs torch and transformers). Writes
small random checkpoints (Qwen3 with one table and shared heads of keys, Qwen2 with biases, LLaMA with a head of its own)
and the numbers that they give to gpu/tests/golden/llm_generation. Weights are normal with deviation .3, so that scores
differ; made with torch 2.15 and transformers 5.23.
"""

import json
import random
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

OUT = Path(__file__).parent.parent / "golden/llm_generation"
EOS, PAD, VOCABULARY = 0, 1, 64
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=EOS, pad_token_id=PAD,
)  # fmt: skip
CASES = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
}


def make_titles(draw):
    """Distinct titles that share prefixes, with one-token ones and long tails, and the end of text."""
    titles = set()
    while len(titles) < 90:
        titles.add(tuple(draw.randrange(2, 7) for _ in range(draw.randint(1, 4))) + (EOS,))
    while len(titles) < 100:
        titles.add(tuple(draw.randrange(2, VOCABULARY) for _ in range(draw.randint(5, 9))) + (EOS,))
    return sorted(titles, key=lambda _: draw.random())


def allowed_in(titles, prompt_length):
    after = {}
    for title in titles:
        for at, token in enumerate(title):
            after.setdefault(title[:at], set()).add(token)

    # What fills a beam that has nothing left may be anything: its score says so.
    return lambda _, row: sorted(after.get(tuple(row[prompt_length:].tolist()), {EOS}))


def titles_of(found, prompt_length):
    return [tuple(row[: row.index(EOS) + 1]) for row in found.sequences[:, prompt_length:].tolist()]


@torch.inference_mode()
def run(model, prompts, titles):
    case = {"log_probabilities": [], "greedy": [], "beams": []}
    for prompt in prompts:
        ids = torch.tensor([prompt])
        case["log_probabilities"].append(torch.log_softmax(model(ids).logits[0, -1], -1).tolist())
        options = dict(
            attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16, return_dict_in_generate=True,
            output_scores=True, prefix_allowed_tokens_fn=allowed_in(titles, len(prompt)),
        )  # fmt: skip
        (greedy,) = titles_of(model.generate(ids, **options), len(prompt))
        assert greedy in titles
        case["greedy"].append(greedy)
    for width, penalty in [(2, 0.0), (10, 0.0), (10, 1.0), (30, 0.0)]:
        beams = []
        for prompt in prompts:
            options["prefix_allowed_tokens_fn"] = allowed_in(titles, len(prompt))
            ids = torch.tensor([prompt])
            options["attention_mask"] = torch.ones_like(ids)
            found = model.generate(
                ids, num_beams=width, num_return_sequences=width, length_penalty=penalty, early_stopping=False, **options
            )
            rows = zip(titles_of(found, len(prompt)), found.sequences_scores.tolist())
            beams.append([{"title": title, "score": score} for title, score in rows if score > -1e6])
            assert all(beam["title"] in titles for beam in beams[-1])
        case["beams"].append({"width": width, "length_penalty": penalty, "lists": beams})
    return case


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    draw = random.Random(7)
    titles = make_titles(draw)
    prompts = [[draw.randrange(2, VOCABULARY) for _ in range(length)] for length in (1, 5, 12, 33, 50)]
    golden = {"titles": titles, "prompts": prompts, "cases": {}}
    for seed, (name, make) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        model = make().eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                parameter.normal_(1.0 if "norm" in parameter_name else 0.0, 0.3)
        model.save_pretrained(OUT / name)
        (OUT / name / "generation_config.json").unlink(missing_ok=True)
        golden["cases"][name] = run(model, prompts, titles)
    (OUT / "llm_generation.json").write_text(json.dumps(golden) + "\n")


main()
