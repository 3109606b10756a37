"""Small random language models with LoRA: logits, losses, gradients and three steps by transformers and peft.

Writes gpu/tests/golden/llm/<name>/: the checkpoint (config.json, model.safetensors), an adapter (adapter_config.json,
adapter_model.safetensors), and expected.json / expected.safetensors. Run from the repository:

    python gpu/tests/reference/llm_reference.py

Made with torch 2.15, transformers 5.23, peft 0.21.
"""

import json
import os
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "llm")
SMALL = dict(vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, max_position_embeddings=64,
             attn_implementation="eager")
MODELS = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=6,
                                            tie_word_embeddings=True)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SMALL, num_attention_heads=2, num_key_value_heads=2,
                                            tie_word_embeddings=False, rope_theta=1000.0)),
    "llama": (LlamaForCausalLM, LlamaConfig(**SMALL, num_attention_heads=4, num_key_value_heads=1,
                                            tie_word_embeddings=False)),
}
TARGETS = {"qwen3": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
           "qwen2": ["q_proj", "v_proj"], "llama": ["o_proj", "gate_proj", "up_proj", "down_proj"]}
# Prompts, and from where on the loss counts.
PROMPTS = [([5, 9, 2, 44, 17, 30, 1], 4), ([60, 3, 3, 8, 12, 12, 12, 50, 7, 1], 8), ([10, 11, 1], 1)]


def mean_loss(model):
    """Mean over all scored tokens of all prompts, each read alone: no padding is involved."""
    total, terms = 0.0, 0
    for tokens, start in PROMPTS:
        logits = model(torch.tensor([tokens[:-1]])).logits[0]
        scored = logits[start - 1:]
        total = total + torch.nn.functional.cross_entropy(scored, torch.tensor(tokens[start:]), reduction="sum")
        terms += len(tokens) - start
    return total / terms


def main():
    for name, (kind, config) in MODELS.items():
        torch.manual_seed(len(name) + sum(map(ord, name)))
        folder = os.path.join(HERE, name)
        shutil.rmtree(folder, ignore_errors=True)
        model = kind(config).eval()
        with torch.no_grad():
            for tensor_name, p in model.named_parameters():
                if "norm" in tensor_name:
                    p.copy_(1 + 0.2 * torch.randn_like(p))
                else:
                    p.copy_(0.3 * torch.randn_like(p))
        model.save_pretrained(folder)
        tensors = {}
        with torch.no_grad():
            for i, (tokens, _) in enumerate(PROMPTS):
                tensors[f"logits.{i}"] = model(torch.tensor([tokens[:-1]])).logits[0].clone()
        # All weights: gradients, and three steps of AdamW.
        model.train()
        full = {"loss": mean_loss(model).item()}
        loss = mean_loss(model)
        loss.backward()
        for tensor_name, p in model.named_parameters():
            tensors[f"full.grad.{tensor_name}"] = p.grad.clone()
        model.zero_grad()
        # Adapters.
        lora = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, lora_dropout=0.0, target_modules=TARGETS[name],
                                                task_type="CAUSAL_LM"))
        with torch.no_grad():
            for tensor_name, p in lora.named_parameters():
                if "lora_" in tensor_name:
                    p.copy_(0.3 * torch.randn_like(p))
        lora.save_pretrained(folder)
        with torch.no_grad():
            for i, (tokens, _) in enumerate(PROMPTS):
                tensors[f"adapted.{i}"] = lora(torch.tensor([tokens[:-1]])).logits[0].clone()
        trained = {n: p for n, p in lora.named_parameters() if p.requires_grad}
        short = lambda n: n.replace("base_model.model.", "", 1).replace(".default", "")
        optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.1)
        losses = []
        for step in range(3):
            optimizer.zero_grad()
            loss = mean_loss(lora)
            loss.backward()
            if step == 0:
                for n, p in trained.items():
                    tensors[f"lora.grad.{short(n)}"] = p.grad.clone()
            losses.append(loss.item())
            optimizer.step()
        for n, p in trained.items():
            tensors[f"lora.after.{short(n)}"] = p.detach().clone()
        save_file({n: t.contiguous() for n, t in tensors.items()}, os.path.join(folder, "expected.safetensors"))
        expected = {"prompts": [{"tokens": t, "loss_from": s} for t, s in PROMPTS], "full": full, "losses": losses,
                    "lr": 1e-2, "weight_decay": 0.1}
        with open(os.path.join(folder, "expected.json"), "w") as file:
            json.dump(expected, file, indent=1)
            file.write("\n")
        for extra in ["README.md", "generation_config.json"]:
            path = os.path.join(folder, extra)
            if os.path.exists(path):
                os.remove(path)


main()
