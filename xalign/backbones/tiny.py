"""Random models and byte-level BPE tokenizers, made in seconds: the backbones of tests and rehearsals."""
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


def train_bpe(vocab: int, special: list[str]) -> Any:
    """A tokenizer of the `tokenizers` library; the special tokens have the first ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(texts(), trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return core


def save_random(folder: Path, cls: Any, config: Any, seed: int) -> dict[str, Any]:
    """Write a freshly initialised model; returns the facts for the receipt."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config)
    model.save_pretrained(folder)
    return {"parameters": sum(p.numel() for p in model.parameters())}


def make_tiny(folder: Path, width: int, layers: int, vocab: int, seed: int) -> dict[str, Any]:
    """Write a Llama's config, weights and tokenizer into `folder`; the same arguments give the same files."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core = train_bpe(vocab, special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=special[2], pad_token=special[2], chat_template=CHAT,
                                        model_input_names=["input_ids", "attention_mask"])
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(vocab_size=core.get_vocab_size(), hidden_size=width, intermediate_size=2 * width,
                         num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
                         tie_word_embeddings=True, bos_token_id=None, eos_token_id=2, pad_token_id=2)
    return save_random(folder, LlamaForCausalLM, config, seed)


def make_tiny_encoder(folder: Path, width: int, layers: int, vocab: int, seed: int) -> dict[str, Any]:
    """Write a BERT, with XLM-R's special tokens around its texts, into `folder`; the same arguments give the same files."""
    from tokenizers import processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from xalign.backbones.trainable import name_tokenizer

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    core = train_bpe(vocab, special)
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>",
                                                        special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                                        cls_token="<s>", sep_token="</s>", model_input_names=["input_ids", "attention_mask"])
    tokenizer.save_pretrained(folder)
    name_tokenizer(folder)
    config = BertConfig(vocab_size=core.get_vocab_size(), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
                        num_attention_heads=4, max_position_embeddings=512, bos_token_id=0, pad_token_id=1, eos_token_id=2)

    def without_pooler(config: Any) -> Any:
        return BertModel(config, add_pooling_layer=False)

    return save_random(folder, without_pooler, config, seed)
