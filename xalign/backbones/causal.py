"""A causal language model with one prompt format for scoring, generation and training."""
from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.backbones.folder import reason
from xalign.backbones.soft import save_soft
from xalign.backbones.trainable import Trainable, name_tokenizer
from xalign.config import XalignError
from xalign.data.examples import Example
from xalign.data.packing import Row

if TYPE_CHECKING:
    from xalign.backbones.node import Backbone

ALPACA = ("Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n",
          "### Instruction:\n{prompt}\n\n### Response:")
MARK = "ANSWERGOESHERE"


@dataclass(frozen=True)
class OptionScore:
    """Log-likelihood of one option: `sum` in nats over its `tokens`; `bytes` of its UTF-8 text."""

    sum: float
    tokens: int
    bytes: int


class CausalBackbone(Trainable):
    """A transformers model and its tokenizer behind the calls that the rest of xalign makes.

    Attributes:
        model: the transformers model; the trainer may wrap or move it.
        tokenizer: its tokenizer.
        chat: prompts go through the tokenizer's chat template (else Alpaca's).
        end: token ids that close an answer; part of every training target.
        stop: token ids that end a generated answer.
        truncated: prompts cut so far because they were longer than `max_length`.
    """

    def __init__(self, model: Any, tokenizer: Any, node: Backbone) -> None:
        self.model, self.tokenizer, self.node = model, tokenizer, node
        if node.template == "chat" and not tokenizer.chat_template:
            raise XalignError("backbone.template=chat: this tokenizer has no chat template; use backbone.template=alpaca or auto")
        self.chat = bool(tokenizer.chat_template) and node.template != "alpaca"
        self.max_length = min(node.max_length, getattr(model.config, "max_position_embeddings", None) or node.max_length)
        self.truncated = 0
        if tokenizer.eos_token_id is None:
            raise XalignError(f"{tokenizer.name_or_path}: its tokenizer has no end-of-sequence token, so no answer could end; name it as "
                              "eos_token in tokenizer_config.json")
        eos = [tokenizer.eos_token_id]
        self.lead, self.end = self._answer_frame() if self.chat else (" ", eos)
        config = getattr(model, "generation_config", None)
        more = getattr(config, "eos_token_id", None)
        self.stop = set(eos) | set(self.end[-1:]) | set(more if isinstance(more, list) else [more] if more is not None else [])

    @property
    def device(self) -> Any:
        return next(self.model.parameters()).device

    def _answer_frame(self) -> tuple[str, list[int]]:
        """What the chat template writes before an answer (text) and after it (ids up to the end of the turn)."""
        start = self.prompt("x")
        full = self._render([*self._turns("x", ()), {"role": "assistant", "content": MARK}], False)
        at = full.find(MARK)
        if at < 0:
            raise XalignError("backbone.template=chat: the chat template drops the answer; use backbone.template=alpaca")
        lead = full[len(start):at] if full.startswith(start) else ""
        tail = self.tokenizer(full[at + len(MARK):], add_special_tokens=False).input_ids
        special = set(self.tokenizer.all_special_ids)
        cut = next((i for i, t in enumerate(tail) if t in special), None)
        return lead, tail[:cut + 1] if cut is not None else [self.tokenizer.eos_token_id]

    def _turns(self, text: str, shots: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        turns = [] if self.node.system is None else [{"role": "system", "content": self.node.system}]
        for question, answer in shots:
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*turns, {"role": "user", "content": text}]

    def _render(self, turns: list[dict[str, str]], ask: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
        except Exception as e:  # a template is a program of the model's folder: sandboxed, but it may raise anything
            raise XalignError(f"backbone.template: the model's chat template refuses these turns ({reason(e)}); try "
                              "backbone.system=null or backbone.template=alpaca") from None

    def prompt(self, text: str, shots: Sequence[tuple[str, str]] = ()) -> str:
        """The full prompt for instruction `text`, after `shots` of (question, answer)."""
        if self.chat:
            return self._render(self._turns(text, shots), True)
        head, body = ALPACA
        head = head if self.node.system is None else self.node.system and self.node.system + "\n\n"
        done = "".join(body.format(prompt=q) + f" {a}\n\n" for q, a in shots)
        return head + done + body.replace("{prompt}", text)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of prompts; BOS as the tokenizer wants it (a chat template writes its own), never EOS."""
        rows = self.tokenizer(texts, add_special_tokens=not self.chat, return_attention_mask=False).input_ids if texts else []
        eos = self.tokenizer.eos_token_id
        return [row[:-1] if not self.chat and len(row) > 1 and row[-1] == eos else row for row in rows]

    def encode_prompts(self, texts: Sequence[str], shots: Sequence[tuple[str, str]] = ()) -> list[list[int]]:
        """Token ids of each instruction in the template, uncut."""
        return self._ids([self.prompt(text, shots) for text in texts])

    def _answers(self, prompts: list[str], ids: list[list[int]], answers: list[str]) -> list[list[int]]:
        """Token ids of each answer after its prompt; the prompt's own ids never change."""
        whole = self._ids([p + a for p, a in zip(prompts, answers, strict=True)])
        out = []
        for prompt, full, answer in zip(ids, whole, answers, strict=True):
            # A merge across the border would change the prompt's ids: then the answer is tokenised alone.
            fits = full[:len(prompt)] == prompt and len(full) > len(prompt)
            out.append(full[len(prompt):] if fits else self.tokenizer(answer, add_special_tokens=False).input_ids)
        return out

    def encode_pair(self, prompt: str, response: str) -> tuple[list[int], int]:
        """(ids, n_prompt): template, answer and its end tokens; `ids[n_prompt:]` are the training targets."""
        text = self.prompt(prompt)
        ids = self._ids([text])
        answer = self._answers([text], ids, [self.lead + response])[0]
        return ids[0] + answer + self.end, len(ids[0])

    def encode_text(self, text: str) -> tuple[list[int], int]:
        """(ids, 1): plain text as a model is pre-trained on it, without a template: all but its first token are training targets."""
        ids = self.tokenizer(text, return_attention_mask=False).input_ids
        end = self.tokenizer.eos_token_id
        return ids + [end] * (end is not None and ids[-1:] != [end]), 1

    def row(self, example: Example, prompt: str | None = None, options: Sequence[str] = ()) -> Row:
        """`example` tokenised, with another prompt if one is given; a causal model reads no options. No prompt: plain text."""
        prompt = example.prompt if prompt is None else prompt
        ids, n_prompt = self.encode_pair(prompt, example.response) if prompt else self.encode_text(example.response)
        return Row(example.id, tuple(ids), n_prompt, example.subset, example.group, example.weight)

    def _fit(self, ids: list[int], room: int) -> list[int]:
        """`ids`, cut on the left so that `room` more tokens fit into max_length."""
        keep = max(self.max_length - room, 1)
        if len(ids) <= keep:
            return ids
        self.truncated += 1
        return ids[-keep:]

    def score(self, prompts: Sequence[str], options: Sequence[Sequence[str]], raw_text: bool = False,
              shots: Sequence[tuple[str, str]] = ()) -> list[list[OptionScore]]:
        """Log-likelihood in nats of each prompt's options, without the end-of-turn token.

        Whatever token prefixes the prompts share (system prompt, shots, passage) is computed once.

        Args:
            prompts: instructions, or with `raw_text` the literal text before a space and the option.
            options: for each prompt, its answer strings (none empty).
            shots: (question, answer) turns before every prompt; not with `raw_text`.
        """
        texts = list(prompts) if raw_text else [self.prompt(p, shots) for p in prompts]
        lead = " " if raw_text else self.lead
        ids = self._ids(texts)
        counts = [len(o) for o in options]
        answers = iter(self._answers([t for t, n in zip(texts, counts, strict=True) for _ in range(n)],
                                     [row for row, n in zip(ids, counts, strict=True) for _ in range(n)],
                                     [lead + o for row in options for o in row]))
        rows = []
        for prompt, n in zip(ids, counts, strict=True):
            own = [next(answers) for _ in range(n)]
            rows.append((self._fit(prompt, max(map(len, own), default=0)), own))
        sums = self._sums(rows)
        return [[OptionScore(s, len(a), len(text.encode())) for s, a, text in zip(got, own, texts_, strict=True)]
                for got, (_, own), texts_ in zip(sums, rows, options, strict=True)]

    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop_newline: bool = False,
                 shots: Sequence[tuple[str, str]] = (), each: Callable[[int, str], None] | None = None, raw_text: bool = False,
                 stop: Sequence[str] = (), beams: int = 1) -> list[str]:
        """Answers in the prompts' order, without special tokens and the whitespace around them.

        Args:
            prompts: instructions, or with `raw_text` the literal text before the answer.
            max_new_tokens: cap per answer.
            stop_newline: end an answer at its first line break after some text.
            shots: (question, answer) turns before every prompt; not with `raw_text`.
            each: called with (index, answer) as soon as the answer is finished, e.g. to write it down; not in the prompts' order.
            stop: end an answer before the first of these strings.
            beams: 1 decodes greedily.
        """
        rows = [self._fit(ids, max_new_tokens) for ids in (self._ids(list(prompts)) if raw_text else self.encode_prompts(prompts, shots))]
        texts = [""] * len(rows)
        window = max((len(s.encode()) for s in stop), default=0) + 4  # tokens that can hold a stop string

        def ends(tokens: list[int]) -> bool:
            if stop_newline and self._is_break(tokens):
                return True
            tail = self.tokenizer.decode(tokens[-window:], skip_special_tokens=True) if stop else ""
            return any(s in tail for s in stop)

        for i, tokens in self._decode(rows, max_new_tokens, ends if stop_newline or stop else None, beams):
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            text = text[:min((at for at in map(text.find, stop) if at >= 0), default=len(text))].strip()
            texts[i] = text.split("\n")[0].strip() if stop_newline else text
            if each:
                each(i, texts[i])
        return texts

    def _sums(self, rows: list[tuple[list[int], list[list[int]]]]) -> list[list[float]]:
        """Log-likelihood of each row's (prompt ids, ids of the options)."""
        from xalign.backbones.scoring import score_rows

        return score_rows(self.model, rows)

    def _decode(self, rows: list[list[int]], max_new_tokens: int, ends: Callable[[list[int]], bool] | None,
                beams: int) -> Iterator[tuple[int, list[int]]]:
        """(index, ids) of each answer as soon as it is finished."""
        from xalign.backbones.decoding import decode

        return decode(self.model, rows, max_new_tokens, self.stop, ends, beams)

    def _is_break(self, tokens: list[int]) -> bool:
        """True if the last of `tokens` holds a line break and some text stands before it."""
        return "\n" in self.tokenizer.decode(tokens[-1:]) and "\n" in self.tokenizer.decode(tokens).lstrip()

    def save(self, folder: Path) -> None:
        """Write model and tokenizer so that `from_pretrained` of transformers 4.57 and 5 opens them and computes the same.

        Soft prompts go into a file of their own and are taken off the model.
        """
        save_soft(self, Path(folder))
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        name_tokenizer(Path(folder))
        path = Path(folder) / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        theta = (config.get("rope_parameters") or {}).get("rope_theta")
        if theta and "rope_theta" not in config:  # where 4.57 looks; it would silently take 10000
            path.write_text(json.dumps({**config, "rope_theta": theta}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
