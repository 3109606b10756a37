"""Writes tests/golden/encoders/: tiny random checkpoints, their tokenizers, and what transformers makes of them.

One folder per checkpoint in Hugging Face layout (config.json, tokenizer.json, safetensors), and encoders.json with the
texts, their token ids (cut to max_length by the tokenizer) and the embeddings by mean and last-token pooling. The
forward passes run one text at a time in f32, also where the file holds bf16. Weights are drawn larger than usual, so
that a wrong bias, norm or rotation shows.
Run: python gpu/tests/reference/encoders_reference.py   (torch, transformers, tokenizers)
"""

import json
import pathlib
import shutil

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

OUT = pathlib.Path(__file__).parent.parent / "golden" / "encoders"
TEXTS = [
    "red shirt of wool",
    "hat",
    "the old green shoe of leather, the new blue hat and a small red shoe",
    "a big blue hat; wool and leather",
    "Shoe!",
]
MAX_LENGTH = 20
VOCAB = 60


def unigram():
    """As T5's: pieces with a leading word mark, </s> at the end."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=VOCAB, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    end = [("</s>", tokenizer.token_to_id("</s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A $B </s>", special_tokens=end)
    return tokenizer


def byte_pairs(single, special):
    """As Qwen's and LLaMA 3's: byte-level pairs, with special tokens before or after."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    if single:
        ids = [(token, tokenizer.token_to_id(token)) for token in special]
        template = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=ids)
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


T5 = dict(vocab_size=VOCAB, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=3, dropout_rate=0.0)
T5 |= dict(relative_attention_num_buckets=8, relative_attention_max_distance=12, layer_norm_epsilon=1e-5)
DECODER = dict(vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)
DECODER |= dict(num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 |= dict(original_max_position_embeddings=32)
QWEN = ("$A <|end|>", ["<|end|>"])

# name, model, tokenizer, element type, size of a shard
CASES = [
    ("t5_gated", lambda: T5EncoderModel(T5Config(**T5, feed_forward_proj="gated-gelu")), unigram, "f32", None),
    ("t5_relu", lambda: T5ForConditionalGeneration(T5Config(**T5, feed_forward_proj="relu", num_decoder_layers=1)),
     unigram, "bf16", None),
    ("qwen3", lambda: Qwen3Model(Qwen3Config(**DECODER, head_dim=8, rope_parameters=dict(
        rope_type="default", rope_theta=1000.0))), lambda: byte_pairs(*QWEN), "f32", "12KB"),
    ("qwen2", lambda: Qwen2Model(Qwen2Config(**DECODER, rope_parameters=dict(
        rope_type="default", rope_theta=10000.0))), lambda: byte_pairs(None, ["<|end|>"]), "bf16", None),
    ("llama", lambda: LlamaForCausalLM(LlamaConfig(**DECODER, attention_bias=True, mlp_bias=True,
                                                   rope_parameters=LLAMA3, tie_word_embeddings=False)),
     lambda: byte_pairs("<|begin|> $A", ["<|begin|>"]), "f32", None),
]


def embeddings(model, ids):
    if isinstance(model, T5ForConditionalGeneration):
        model = model.encoder
    if isinstance(model, LlamaForCausalLM):
        model = model.model
    rows = []
    for row in ids:
        with torch.no_grad():
            rows.append(model(input_ids=torch.tensor([row])).last_hidden_state[0])
    digits = lambda x: [round(v, 7) for v in x.tolist()]
    return {"mean": [digits(x.mean(0)) for x in rows], "last": [digits(x[-1]) for x in rows]}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    cases = {}
    for seed, (name, build, tokenizer, kind, shard) in enumerate(CASES):
        torch.manual_seed(seed)
        model = build().eval()
        for key, tensor in model.named_parameters():
            scale = "norm" in key
            torch.nn.init.normal_(tensor, mean=1.0 if scale else 0.0, std=0.2 if scale else 0.35)
        if kind == "bf16":
            model = model.to(torch.bfloat16)
        folder = OUT / name
        options = {} if shard is None else {"max_shard_size": shard}
        model.save_pretrained(folder, **options)
        (folder / "generation_config.json").unlink(missing_ok=True)
        tokenizer = tokenizer()
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        tokenizer.enable_truncation(MAX_LENGTH)
        ids = [tokenizer.encode(text).ids for text in TEXTS]
        assert max(map(len, ids)) == MAX_LENGTH and min(map(len, ids)) > 0, [len(row) for row in ids]
        assert all(max(row) < VOCAB for row in ids)
        # Read anew, not cast: a cast model keeps frequencies of rotations that were rounded to bf16.
        model = type(model).from_pretrained(folder, dtype=torch.float32).eval()
        cases[name] = {"ids": ids} | embeddings(model, ids)
    software = f"transformers {transformers.__version__}, torch {torch.__version__}"
    golden = {"software": software, "max_length": MAX_LENGTH, "texts": TEXTS, "cases": cases}
    (OUT / "encoders.json").write_text(json.dumps(golden) + "\n")


main()
