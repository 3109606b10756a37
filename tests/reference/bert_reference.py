"""Writes tests/golden/bert.json: last hidden states of a tiny BERT by transformers, for each activation.

The weights are a formula that the test repeats: entry i of tensor number n (in the order of the names below) is
0.4 sin(0.37 i + n) for tensors of the network, 1 + 0.1 sin(...) for the scales of layer norm.

Run: python tests/reference/bert_reference.py   (torch, transformers)
"""
import json
import pathlib

import numpy as np
import torch
import transformers
from transformers import BertConfig, BertModel

shape = dict(
    vocab_size=50,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=16,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
)
sequences = [[2, 11, 5, 7, 3], [2, 49, 3], [2, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 3]]

cases = []
for activation in ["gelu", "gelu_new", "relu"]:
    model = BertModel(BertConfig(**shape, hidden_act=activation), add_pooling_layer=False).eval()
    state = model.state_dict()
    names = sorted(name for name in state if name.endswith((".weight", ".bias")))
    for n, name in enumerate(names):
        size = state[name].numel()
        wave = np.sin(0.37 * np.arange(size) + n)
        values = 1 + 0.1 * wave if name.endswith("LayerNorm.weight") else 0.4 * wave
        state[name] = torch.tensor(values.astype(np.float32)).reshape(state[name].shape)
    model.load_state_dict(state)
    with torch.no_grad():
        hidden = [model(torch.tensor([ids])).last_hidden_state[0].numpy() for ids in sequences]
    rounded = [[round(float(x), 7) for x in h.ravel()] for h in hidden]
    cases.append(dict(hidden_act=activation, hidden=rounded))
out = pathlib.Path(__file__).parent.parent / "golden" / "bert.json"
software = f"transformers {transformers.__version__}, torch {torch.__version__}"
out.write_text(json.dumps(dict(software=software, config=shape, names=names, sequences=sequences, cases=cases)) + "\n")
