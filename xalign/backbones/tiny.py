"""A random Llama and a byte-level BPE tokenizer, made in seconds: the backbone of tests and rehearsals."""
from __future__ import annotations

from pathlib import Path
from typing import Any

CHAT = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def texts() -> list[str]:
    """Names and answers in several scripts, for the tokenizer to learn merges from."""
    from xalign.data.lab import phrase_table

    found = []
    for lang in ("fin", "fra", "jpn", "ukr"):
        for source, target in phrase_table("eng", lang).items():
            found += [source, target]
    return found + ["What is the capital of the country?", "Translate the following sentence from English to Finnish."] * 5


def make_tiny(folder: Path, width: int, layers: int, vocab: int, seed: int) -> dict[str, Any]:
    """Write config, weights and tokenizer into `folder`; the same arguments give the same files."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(texts(), trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=special[2], pad_token=special[2], chat_template=CHAT)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(vocab_size=core.get_vocab_size(), hidden_size=width, intermediate_size=2 * width,
                         num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
                         tie_word_embeddings=True, bos_token_id=None, eos_token_id=2, pad_token_id=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return {"parameters": sum(p.numel() for p in model.parameters())}
