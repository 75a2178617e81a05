"""NLLB-200 through transformers or CTranslate2: the translator of the SDRRL paper (3.3B, beam 4)."""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.backbones.folder import check_folder, reason
from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, XalignError, choice, within
from xalign.data.examples import read_examples, write_jsonl
from xalign.languages import LANGUAGES
from xalign.training.spread import spread
from xalign.translators import ctranslate
from xalign.translators.base import SIDES, Translator, count_sides, record

if TYPE_CHECKING:
    from xalign.config import Run

# What stays as it is at the start of a line: indentation and list marks.
_MARK = re.compile(r"^(\s*(?:(?:[-*•]|\d{1,3}[.)])\s+)?)(.*?)(\s*)$", re.DOTALL)
# A sentence ends after .!?… (and closing quotes) before whitespace, or after a full-width end mark.
_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[^a-z\s])|(?<=[。！？])[」』）]*|(?<=[។៕])\s*|(?<=।)\s*")
# A dot behind these ends no sentence.
_ABBREVIATION = re.compile(r"(?:^|\s)(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|No|vs|etc|e\.g|i\.e|approx|Jr|Sr)\.$")


def split_sentences(line: str) -> list[str]:
    """The sentences of one line, without the whitespace between them; never an empty one."""
    out: list[str] = []
    start = 0
    for end in _END.finditer(line):
        piece = line[start:end.end()].strip()
        if piece and not _ABBREVIATION.search(piece):
            out.append(piece)
            start = end.end()
    rest = line[start:].strip()
    return [*out, rest] if rest else out


def split_text(text: str) -> list[tuple[str, list[str], str]]:
    """Each line of `text` as (indentation and list mark, sentences, trailing whitespace)."""
    lines = []
    for line in text.split("\n"):
        mark, body, tail = _MARK.match(line).groups()  # type: ignore[union-attr]
        lines.append((mark, split_sentences(body), tail))
    return lines


def translatable(text: str) -> bool:
    """True if there is a letter to translate; numbers and punctuation are kept as they are."""
    return any(c.isalpha() for c in text)


@dataclass(frozen=True)
class NLLB(Translator):
    """Neural translation with an NLLB-200 checkpoint.

    Attributes:
        name: hub id, or a local folder with the model and its tokenizer.
        revision: branch, tag or commit of a hub id.
        beam: beam size.
        batch_tokens: source tokens of a batch, padding included.
        max_length: longest source sentence and longest translation, in tokens; a text with a longer one fails.
        device: auto is CUDA where there is one.
        engine: ctranslate2 decodes faster, from the same weights converted once; an extra of the installation.
    """

    name: str = "facebook/nllb-200-3.3B"
    revision: str = "main"
    beam: int = within(4, low=1, high=32, note="the paper's value is 4")
    batch_tokens: int = within(4096, low=1)
    max_length: int = within(200, low=8, high=1024)
    device: str = choice("auto", "auto", "cpu", "cuda")
    engine: str = choice("transformers", "transformers", "ctranslate2")

    def check_run(self, run: Run) -> None:
        """Raise ConfigError when `name` can only be a folder and is none, or when the engine is not installed."""
        if self.engine == "ctranslate2":
            ctranslate.check_installed()
        if not self.name:
            raise ConfigError("translator.name: is empty; name a hub id such as facebook/nllb-200-3.3B, or a model folder")
        path = Path(self.name).expanduser()
        if not path.is_dir() and (self.name.startswith(("/", ".", "~")) or self.name.count("/") > 1):
            raise ConfigError(f"translator.name={self.name}: no such folder")
        if path.is_file():
            raise ConfigError(f"translator.name={self.name}: is a file; name the model's folder")
        if path.is_dir():
            check_folder(f"translator.name={self.name}", path, "seq2seq")

    def stage(self, run: Run, examples: Stage, lang: str, sides: Sequence[str] = SIDES) -> Stage:
        """See `Translator.stage`. All processes translate; a killed run continues behind their last finished batches."""
        from xalign.assets import folder_stage
        from xalign.hub import hub_stage

        path = Path(self.name).expanduser()
        weights = folder_stage(path) if path.is_dir() else hub_stage(self.name, self.revision)
        source = run.source

        def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
            from xalign.assets import model_folder

            rows = read_examples(inputs[0].file("examples.jsonl"))
            texts = [getattr(row, side) for row in rows for side in sides]
            model, engine = model_folder(inputs[1]).resolve(), inputs[2].path.resolve() if inputs[2:] else None
            done, counts = self._translate(Sentences(self, model, source, lang, engine), texts, folder / "sentences.jsonl")
            results, records = iter(done), []
            for row in rows:
                got = {side: next(results) for side in sides}
                texts_of, reasons = {s: text for s, (text, _) in got.items()}, {s: why for s, (_, why) in got.items() if why}
                records.append(record(row.id, texts_of, reasons))
            write_jsonl(folder / "examples.jsonl", records)
            return {**count_sides(records, sides), **counts}

        params = {"source": source, "lang": lang, "sides": list(sides), "beam": self.beam, "max_length": self.max_length}
        inputs: tuple[Stage, ...] = (examples, weights)
        if self.engine == "ctranslate2":  # whose key tells the two engines' translations apart
            inputs += (ctranslate.converted(weights, self.name),)
        return Stage("translate", 2, params, work, inputs=inputs, seconds=3600, resumable=True,
                     label=f"translate {source}→{lang} ({self.name}, {' and '.join(sides)})")

    def _translate(self, writer: Sentences, texts: Sequence[str], log: Path) -> tuple[list[tuple[str | None, str]], dict[str, int]]:
        """Each text as (translation or None, reason); each distinct sentence is translated once and logged."""
        lines = [split_text(text) for text in texts]
        wanted = {s: s for text in lines for _, sentences, _ in text for s in sentences if translatable(s)}
        known: dict[str, str | None] = {r["id"]: r["text"] for r in spread(writer, wanted, log)}
        glue = " " if LANGUAGES[writer.lang].spaced else ""
        out: list[tuple[str | None, str]] = []
        for text in lines:
            if not any(sentences for _, sentences, _ in text):
                out.append((None, "empty text"))
            elif any(known.get(s, s) is None for _, sentences, _ in text for s in sentences):
                out.append((None, f"a sentence is longer than {self.max_length} tokens, or its translation did not end"))
            else:
                out.append(("\n".join(mark + glue.join(str(known.get(s, s)) for s in sentences) + tail
                                      for mark, sentences, tail in text), ""))
        return out, {"sentences": len(wanted), "unfinished": sum(known.get(s) is None for s in wanted)}

    def batches(self, folder: Path, sentences: Sequence[str], source: str, lang: str,
                engine: Path | None = None) -> Iterator[dict[str, str | None]]:
        """Translate `sentences`, longest first in batches of `batch_tokens`; None for one that did not end.

        Args:
            folder: the checkpoint.
            engine: the checkpoint as `xalign.translators.ctranslate` converted it.
        """
        from xalign.progress import bar
        from xalign.training.ranks import is_helper

        check_folder("translator.name", folder, "seq2seq")
        tokenizer = load_tokenizer(folder, source, lang)
        if engine:
            model: Any = ctranslate.Engine(engine, tokenizer, lang, self.beam, self.max_length, self.device)
        else:
            model = Transformers(folder, tokenizer, lang, self.beam, self.max_length, self.device)
        ids = tokenizer(list(sentences)).input_ids
        for i in (i for i, row in enumerate(ids) if len(row) > self.max_length):
            yield {sentences[i]: None}
        order = sorted((i for i, row in enumerate(ids) if len(row) <= self.max_length), key=lambda i: -len(ids[i]))
        with bar(total=len(order), desc=f"translate {source}→{lang}", unit="sentence", disable=is_helper()) as progress:
            for batch in by_tokens(order, lambda i: len(ids[i]), self.batch_tokens):
                yield dict(zip((sentences[i] for i in batch), model.translate([ids[i] for i in batch]), strict=True))
                progress.update(len(batch))


@dataclass(frozen=True)
class Sentences:
    """Writes the translations of sentences (`xalign.training.spread.Writer`)."""

    node: NLLB
    model: Path
    source: str
    lang: str
    engine: Path | None = None

    def write(self, items: Mapping[str, str], note: Callable[[dict[str, Any]], None]) -> None:
        """See `xalign.training.spread.Writer`; a sentence is its own id, its text is None where it did not end."""
        for batch in self.node.batches(self.model, list(items), self.source, self.lang, self.engine):
            for sentence, text in batch.items():
                note({"id": sentence, "text": text})


class Transformers:
    """The checkpoint in transformers: bfloat16 on CUDA, float32 on CPU.

    Raises:
        XalignError: if the folder holds no encoder-decoder.
    """

    def __init__(self, folder: Path, tokenizer: Any, lang: str, beam: int, max_length: int, device: str) -> None:
        import torch
        from transformers import AutoModelForSeq2SeqLM

        from xalign.backbones.counting import watch
        from xalign.backbones.load import complete

        place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        dtype = torch.bfloat16 if place == "cuda" else torch.float32
        with opened(folder):
            # without trust_remote_code transformers would ask on stdin; a tensor that does not fit would be random, but for `complete`
            model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype, local_files_only=True, trust_remote_code=False,
                                                                use_safetensors=True, output_loading_info=True,
                                                                ignore_mismatched_sizes=True)
            complete(folder, model, info)
        self.model, self.tokenizer, self.start = model.eval().requires_grad_(False).to(place), tokenizer, language_token(tokenizer, lang)
        self.beam, self.max_length = beam, max_length
        watch(self.model)

    def translate(self, rows: Sequence[list[int]]) -> list[str | None]:
        """The translation of each row of source ids; None where it did not end within `max_length` tokens."""
        import torch

        tokenizer, width = self.tokenizer, max(map(len, rows))
        padded = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        with torch.inference_mode():
            out = self.model.generate(input_ids=padded.to(self.model.device), attention_mask=mask.to(self.model.device), do_sample=False,
                                      num_beams=self.beam, forced_bos_token_id=self.start, max_length=self.max_length)
        ended = (out == tokenizer.eos_token_id)[:, 1:].any(1).tolist()  # position 0 is the decoder's start token, also </s>
        texts = [t.strip() for t in tokenizer.batch_decode(out, skip_special_tokens=True)]
        return [text if ok and text else None for text, ok in zip(texts, ended, strict=True)]


def load_tokenizer(folder: Path, source: str, lang: str) -> Any:
    """The tokenizer of `folder`, set to source → lang.

    Raises:
        XalignError: if there is none, or if it does not know both languages.
    """
    from transformers import AutoTokenizer

    with opened(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, src_lang=LANGUAGES[source].flores, tgt_lang=LANGUAGES[lang].flores,
                                                  local_files_only=True, trust_remote_code=False)
    for code in (source, lang):
        language_token(tokenizer, code)
    return tokenizer


@contextmanager
def opened(folder: Path) -> Iterator[None]:
    """Turn what transformers raises about `folder` into one line."""
    try:
        yield
    except XalignError:
        raise
    except Exception as e:  # transformers and safetensors raise all kinds for a folder that is no such model
        raise XalignError(f"translator.name: {folder} cannot be opened as an NLLB model ({reason(e)}); name what save_pretrained wrote "
                          "of an NLLB-200 checkpoint") from None


def language_token(tokenizer: Any, lang: str) -> int:
    """The id of a language's FLORES code, e.g. ``fin_Latn``: the decoder's first token."""
    code = LANGUAGES[lang].flores
    token = tokenizer.convert_tokens_to_ids(code)
    if token is None or token == tokenizer.unk_token_id:
        raise XalignError(f"translator: its tokenizer does not know {code}; use an NLLB-200 checkpoint")
    return token


def by_tokens(items: Sequence[int], length: Callable[[int], int], budget: int) -> Iterator[list[int]]:
    """Consecutive batches whose size times longest length stays within `budget`; never an empty one."""
    batch: list[int] = []
    longest = 0
    for item in items:
        longest = max(longest, length(item))
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch, longest = [], length(item)
        batch.append(item)
    if batch:
        yield batch
