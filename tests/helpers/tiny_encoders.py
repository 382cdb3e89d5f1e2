"""Folders of tiny networks of transformers, whose tokens are bytes, as `from_pretrained` reads them."""

from pathlib import Path

import torch

VOCABULARY = 384
SIZES = {
    "bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
    "t5": {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2},
    "llama": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8},
}


def save_encoder(folder: Path, kind: str = "bert") -> str:
    """Write a network of that kind with random weights, and its tokenizer; return the folder's name."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, vocab_size=VOCABULARY, **SIZES[kind])
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    transformers.ByT5Tokenizer().save_pretrained(folder)
    return str(folder)
