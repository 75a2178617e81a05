"""Sentence vectors from every layer of a backbone, for the analyses of its representations."""
from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xalign.backbones.encoder import BATCH_TOKENS, EncoderBackbone, shorten
from xalign.backbones.soft import embedded

if TYPE_CHECKING:
    from xalign.backbones.causal import CausalBackbone
    from xalign.backbones.node import Backbone


def open_states(folder: Path, node: Backbone) -> CausalBackbone | EncoderBackbone:
    """The backbone of `folder`, opened by transformers whatever ``backbone.engine`` says: vLLM shows no hidden states."""
    from xalign.backbones.load import load_backbone

    return load_backbone(folder, replace(node, engine="native") if hasattr(node, "engine") else node)


@torch.inference_mode()
def sentence_vectors(backbone: CausalBackbone | EncoderBackbone, texts: Sequence[str], instruction: bool = False,
                     progress: Callable[[int], Any] | None = None) -> dict[str, np.ndarray]:
    """Vectors of `texts` from every layer, two of them a text: the mean of its tokens' states, and its last token's state.

    A causal model reads a text behind one start token, the one that its tokenizer puts there, else BOS, else (where it has none, as
    between the documents of its pre-training) EOS, and without an end token. The mean leaves the start token out: models attend to
    their first token whatever it is, and its state is a hundred times longer than all others (SmolLM2-135M: norm 25,000 against
    100 to 800), so that a mean that counts it would tell texts apart by their length alone. With `instruction` the model reads the
    prompt that a question gets, whose template stands in front; the mean is still over the instruction's own tokens, and the last
    token is the prompt's, the one that the answer starts from.

    An encoder reads a text as its similarity head does: with ``backbone.prefix``, and with its special tokens in the mean, so that
    the last layer's mean is the vector that the head compares (before the head's own matrix); the last token is the closing special
    token. It has no template, so `instruction` changes nothing. A cross head's encoder gets no prefix.

    Args:
        texts: N texts; one longer than ``backbone.max_length`` is cut.
        progress: called with the number of texts of each finished batch.
    Returns:
        ``mean`` and ``last``, float32 [L + 1, N, H]: layer 0 is the output of the embeddings, layer i that of the i-th block. The
        last layer's states are those behind the final norm, where transformers gives those (all decoders of Llama's kind).
    """
    rows, own = _encoder_rows(backbone, texts) if isinstance(backbone, EncoderBackbone) else _causal_rows(backbone, texts, instruction)
    model = embedded(backbone.model)
    more = {"output_hidden_states": True}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        more["logits_to_keep"] = 1  # nobody reads them
    pad = backbone.tokenizer.pad_token_id or 0
    budget = BATCH_TOKENS if backbone.device.type == "cpu" else 8 * BATCH_TOKENS
    found: dict[str, np.ndarray] = {}
    for batch in _batches(rows, budget):
        width = max(len(rows[i]) for i in batch)
        ids = torch.tensor([rows[i] + [pad] * (width - len(rows[i])) for i in batch], device=backbone.device)
        at = torch.arange(width, device=backbone.device)[None]
        ends = torch.tensor([len(rows[i]) for i in batch], device=backbone.device)
        start, stop = (torch.tensor(side, device=backbone.device)[:, None] for side in zip(*(own[i] for i in batch), strict=True))
        states = model(input_ids=ids, attention_mask=(at < ends[:, None]).long(), **more).hidden_states
        counts = ((at >= start) & (at < stop)).float()[..., None]
        vectors = {"mean": [(layer.float() * counts).sum(1) / counts.sum(1) for layer in states],
                   "last": [layer[torch.arange(len(batch), device=layer.device), ends - 1].float() for layer in states]}
        for name, layers in vectors.items():
            part = torch.stack([layer.cpu() for layer in layers]).numpy()
            found.setdefault(name, np.empty((len(part), len(rows), part.shape[-1]), np.float32))[:, batch] = part
        if progress:
            progress(len(batch))
    return found


Ids, Spans = list[list[int]], list[tuple[int, int]]  # token ids of each text; where its own tokens begin and end


def _causal_rows(backbone: CausalBackbone, texts: Sequence[str], instruction: bool) -> tuple[Ids, Spans]:
    tokenizer, longest = backbone.tokenizer, backbone.max_length
    if not instruction:
        end, special = tokenizer.eos_token_id, set(tokenizer.all_special_ids)
        begin = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        rows = tokenizer(list(texts), return_attention_mask=False, verbose=False).input_ids
        rows = [row[:-1] if len(row) > 1 and row[-1] == end else row for row in rows]
        rows = [row if begin is None or row[:1] and row[0] in special else [begin, *row] for row in rows]
        rows = [row[:longest] for row in rows]
        return rows, [(int(len(row) > 1 and row[0] in special), len(row)) for row in rows]
    a, b = backbone.encode_prompts(["x", "7"])  # what the template puts around any text is what these two share
    head, tail = _shared(a, b), _shared(a[::-1], b[::-1])
    whole = backbone.encode_prompts(texts)
    rows = [row[-longest:] for row in whole]  # as any prompt: the end is where the answer starts
    spans = [(max(head - len(full) + len(row), 0), len(row) - tail) for full, row in zip(whole, rows, strict=True)]
    return rows, [(start, max(stop, start + 1)) for start, stop in spans]


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _encoder_rows(backbone: EncoderBackbone, texts: Sequence[str]) -> tuple[Ids, Spans]:
    prefix = backbone.node.prefix if backbone.model.kind == "similarity" else ""
    got = backbone.tokenizer([prefix + text for text in texts], return_special_tokens_mask=True, return_attention_mask=False,
                             verbose=False)
    rows = [shorten(ids, special, backbone.max_length) for ids, special in zip(got.input_ids, got.special_tokens_mask, strict=True)]
    return rows, [(0, len(row)) for row in rows]


def _batches(rows: Ids, budget: int) -> list[list[int]]:
    """Indices of texts of like length, about `budget` padded tokens together."""
    out: list[list[int]] = [[]]
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if out[-1] and (len(out[-1]) + 1) * len(rows[i]) > budget:
            out.append([])
        out[-1].append(i)
    return [batch for batch in out if batch]
