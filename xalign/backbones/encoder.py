"""An encoder that ranks the options of a prompt: a sentence encoder by cosine, any encoder by reading the pair."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from xalign.backbones.causal import OptionScore
from xalign.backbones.soft import save_soft
from xalign.backbones.trainable import Trainable, name_tokenizer
from xalign.config import XalignError
from xalign.data.choices import ChoiceBatch, gather
from xalign.data.packing import Row

if TYPE_CHECKING:
    from xalign.backbones.node import Encoder
    from xalign.data.examples import Example

HEAD = "head.safetensors"  # beside the encoder's own weights, which open without it
BATCH_TOKENS = 1024  # padded tokens of one forward pass on CPU; eight times as many elsewhere


class Scorer(torch.nn.Module):
    """An encoder and the head that turns its states into one logit an option.

    Attributes:
        encoder: a transformers model without pooler or language head.
        kind: ``similarity``: a text's vector is the mean of its last states, a logit is cos(W prompt, option) /
            temperature; W starts as the identity, so that a sentence encoder ranks before any training.
            ``cross``: prompt and option are one text, its vector is the first token's last state, a logit is linear
            in it; starting from zero, all options tie.
    """

    def __init__(self, encoder: Any, kind: str, temperature: float) -> None:
        super().__init__()
        self.encoder, self.kind, self.temperature = encoder, kind, temperature
        hidden = encoder.config.hidden_size
        if kind == "similarity":
            self.head = torch.nn.Linear(hidden, hidden, bias=False)
            torch.nn.init.eye_(self.head.weight)
        else:
            self.head = torch.nn.Linear(hidden, 1)
            torch.nn.init.zeros_(self.head.weight)
            torch.nn.init.zeros_(self.head.bias)

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors [N, H] of texts [N, T]."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.kind == "cross":
            return states[:, 0]
        mask = attention_mask[..., None].to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1)

    def rank(self, texts: Tensor, index: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and prompt vectors of rows from their texts' vectors.

        Args:
            texts: [N, H].
            index, mask: [B, P] as in `ChoiceBatch`.
        Returns:
            float32 logits [B, K], the least number where a row has no such option; vectors [B, H]: the prompt's,
            for a cross head the mean over the row's options.
        """
        if self.kind == "similarity":
            prompts, mask = texts[index[:, 0]], mask[:, 1:]
            asked, options = normalize(self.head(prompts).float(), dim=-1), normalize(texts.float(), dim=-1)
            logits = torch.einsum("bh,bkh->bk", asked, options[index[:, 1:]]) / self.temperature
        else:
            logits = self.head(texts)[:, 0].float()[index]
            share = mask.to(texts.dtype)[..., None]
            prompts = (texts[index] * share).sum(1) / share.sum(1)
        return logits.masked_fill(~mask, torch.finfo(logits.dtype).min), prompts

    def forward(self, batch: ChoiceBatch, vectors: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [B, K] of the rows' options; with `vectors` also [B, H], see `rank`."""
        found = self.rank(self.encode(batch.input_ids, batch.attention_mask), batch.index, batch.mask)
        return found if vectors else found[0]

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """As of a transformers model."""
        self.encoder.gradient_checkpointing_enable(**options)


class EncoderBackbone(Trainable):
    """A `Scorer` and its tokenizer behind the calls that the rest of xalign makes.

    Attributes:
        model: the Scorer; the trainer may wrap or move it.
        tokenizer: the encoder's tokenizer.
        max_length: tokens of a text, or of a prompt with its option.
        truncated: prompts cut so far because they were longer than `max_length`.
    """

    def __init__(self, model: Scorer, tokenizer: Any, node: Encoder) -> None:
        self.model, self.tokenizer, self.node = model, tokenizer, node
        self.max_length = min(node.max_length, positions(model.encoder) or node.max_length)
        self.truncated = 0
        self._options: dict[tuple[int, ...], Tensor] = {}  # vectors of options met so far, by their tokens

    @property
    def device(self) -> Any:
        return next(self.model.parameters()).device

    def row(self, example: Example, prompt: str | None = None, options: Sequence[str] = ()) -> Row:
        """`example` tokenised as one choice; `prompt` and `options` replace its own, option by option.

        Raises:
            XalignError: when there are no options, the response is not among them, or `options` are not as many.
        """
        if not example.options:
            raise XalignError(f"row {example.id}: has no options to choose from; an encoder needs data with options (data=lab), "
                              "or choose a causal backbone (smollm2, hf)")
        if example.response not in example.options:
            raise XalignError(f"row {example.id}: the response '{example.response}' is not among its options "
                              f"{list(example.options)}; add it to them")
        if options and len(options) != len(example.options):
            raise XalignError(f"row {example.id}: {len(options)} options replace {len(example.options)}; give as many, "
                              "in the same order")
        parts = self._parts([example.prompt if prompt is None else prompt], [options or example.options])[0]
        return make_row(example.id, parts, subset=example.subset, group=example.group, weight=example.weight,
                        gold=example.options.index(example.response))

    def _parts(self, prompts: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Token ids of each row's texts: prompt, option, option ..., or for a cross head its pairs."""
        if self.model.kind == "cross":
            texts = [[(p, o) for o in own] for p, own in zip(prompts, options, strict=True)]
        else:
            texts = [[(self.node.prefix + t,) for t in (p, *own)] for p, own in zip(prompts, options, strict=True)]
        distinct = list(dict.fromkeys(t for row in texts for t in row))
        got = self.tokenizer(*(list(side) for side in zip(*distinct)), return_special_tokens_mask=True,
                             return_attention_mask=False, verbose=False)
        ids = dict(zip(distinct, got.input_ids, strict=True))
        for text, special in zip(distinct, got.special_tokens_mask, strict=True):
            if len(ids[text]) > self.max_length:
                ids[text] = shorten(ids[text], special, self.max_length)
        cut = {t for t, whole in zip(distinct, got.input_ids, strict=True) if len(whole) > self.max_length}
        self.truncated += sum(any(t in cut for t in row) for row in texts)
        return [[ids[t] for t in row] for row in texts]

    @torch.inference_mode()
    def score(self, prompts: Sequence[str], options: Sequence[Sequence[str]], raw_text: bool = False,
              shots: Sequence[tuple[str, str]] = ()) -> list[list[OptionScore]]:
        """The logit of each prompt's options, as `OptionScore.sum`.

        Args:
            prompts: any texts; an encoder has no template, so `raw_text` changes nothing.
            options: for each prompt, its answer strings (none empty).
        Raises:
            XalignError: for `shots`.
        """
        if shots:
            raise XalignError(f"backbone={self.node.label}: an encoder takes no solved examples before a question; "
                              "set the task's shots to 0, or choose a causal backbone (smollm2, hf)")
        if not prompts:
            return []
        batch = gather([make_row("", parts) for parts in self._parts(prompts, options)])
        logits = self.model.rank(self._vectors(batch), batch.index.to(self.device), batch.mask.to(self.device))[0].tolist()
        distinct = list(dict.fromkeys(o for own in options for o in own))
        tokens = self.tokenizer(distinct, add_special_tokens=False, verbose=False).input_ids
        sizes = {o: (len(ids), len(o.encode())) for o, ids in zip(distinct, tokens, strict=True)}
        return [[OptionScore(s, *sizes[o]) for s, o in zip(row, own, strict=False)] for row, own in zip(logits, options, strict=True)]

    @torch.inference_mode()
    def keep(self, options: Sequence[str]) -> None:
        """Read the vectors of `options` and forget all others: the last digits of a score depend on what was read together."""
        self._options.clear()
        if options and self.model.kind == "similarity":
            self._vectors(gather([make_row("", parts) for parts in self._parts(options[:1], [options])]))

    def _vectors(self, batch: ChoiceBatch) -> Tensor:
        """[N, H] of the batch's texts, those of like length together; options come back in every call, so they are kept."""
        lengths = batch.attention_mask.sum(1).tolist()
        texts = [tuple(ids[:n]) for ids, n in zip(batch.input_ids.tolist(), lengths, strict=True)]
        frozen = not self.model.training and self.model.kind == "similarity"
        vectors = {i: self._options[t] for i, t in enumerate(texts) if t in self._options} if frozen else {}
        todo = sorted((i for i in range(len(texts)) if i not in vectors), key=lengths.__getitem__)
        budget = BATCH_TOKENS if self.device.type == "cpu" else 8 * BATCH_TOKENS
        while todo:
            n = max(sum((k + 1) * lengths[i] <= budget for k, i in enumerate(todo)), 1)  # the lengths grow: a leading part
            part, todo = todo[:n], todo[n:]
            ids, mask = (x[part, :lengths[part[-1]]].to(self.device) for x in (batch.input_ids, batch.attention_mask))
            vectors |= dict(zip(part, self.model.encode(ids, mask), strict=True))
        if frozen:
            self._options |= {texts[i]: vectors[i] for i in set(batch.index[:, 1:][batch.mask[:, 1:]].tolist())}
        return torch.stack([vectors[i] for i in range(len(texts))])

    def generate(self, prompts: Sequence[str], max_new_tokens: int, **more: Any) -> list[str]:
        """Refused, with the remedy."""
        raise XalignError(f"backbone={self.node.label}: an encoder cannot generate text; choose a causal backbone (smollm2, hf) "
                          "or a task that ranks options")

    def save(self, folder: Path) -> None:
        """Write encoder and tokenizer as ``from_pretrained`` of transformers 4.57 and 5 opens them, and the head beside them."""
        from safetensors.torch import save_file

        save_soft(self, Path(folder))
        self.model.encoder.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        name_tokenizer(Path(folder))
        save_file({k: v.contiguous() for k, v in self.model.head.state_dict().items()}, str(Path(folder) / HEAD),
                  metadata={"format": "pt"})


def make_row(id: str, parts: Sequence[Sequence[int]], **more: Any) -> Row:
    """A Row of an encoder's texts; `more`: its other fields."""
    return Row(id, tuple(t for ids in parts for t in ids), len(parts[0]), parts=tuple(map(len, parts)), **more)


def shorten(ids: list[int], special: list[int], length: int) -> list[int]:
    """`ids` without the end of the first text, or of the second where that is not enough; special tokens stay.

    Args:
        special: 1 at the tokens that the tokenizer put around and between the texts.
    """
    excess, drop = len(ids) - length, set()
    for is_special, group in groupby(range(len(ids)), key=special.__getitem__):
        own = list(group)
        if not is_special and excess > 0:
            gone = own[max(len(own) - excess, 1):]
            drop.update(gone)
            excess -= len(gone)
    return [t for i, t in enumerate(ids) if i not in drop]


def positions(encoder: Any) -> int:
    """How many tokens the encoder has positions for; 0 for any number.

    RoBERTa's kind counts its positions from behind the padding token's number, so it has fewer than its table has rows.
    """
    count = getattr(encoder.config, "max_position_embeddings", None) or 0
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    first = getattr(table, "padding_idx", None)
    return max(count - (0 if first is None else first + 1), 0)
