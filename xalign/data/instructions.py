"""Instructions over parallel text: SDRRL's two templates (Table 1), CoIT's many, and the rows made of them."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xalign.data.examples import Example
from xalign.languages import LANGUAGES

# What CoIT asks with; the first is x-LLM's own, the others say the same in other words. The text follows on its own line.
TEMPLATES = (
    "Translate the following sentences from {src} to {tgt}.",
    "Please translate this text from {src} into {tgt}.",
    "Turn the {src} text below into {tgt}.",
    "How would you say this {src} text in {tgt}?",
    "Give the {tgt} translation of the {src} text below.",
    "Write the following {src} text in {tgt}.",
    "Render this {src} passage in {tgt}.",
    "What does the {src} text below read like in {tgt}?",
    "I have a text in {src}. Please give it to me in {tgt}.",
    "Here is some {src}. Put it into {tgt}.",
    "Act as a translator from {src} to {tgt} and translate what follows.",
    "Produce a faithful {tgt} version of this {src} text.",
    "Convert what is written below from {src} to {tgt}.",
    "My friend reads only {tgt}. Translate this {src} text for them.",
    "Express the meaning of this {src} text in {tgt}.",
    "Below stands a text in {src}. Answer with its {tgt} translation.",
    "From {src} to {tgt}, please:",
    "Rewrite the text below, which is in {src}, so that it is in {tgt}.",
    "Could you help me put this {src} into natural {tgt}?",
    "Translate into {tgt}. The original is in {src}.",
    "Provide a {tgt} translation; the language of the original is {src}.",
    "The following was written in {src}. State it in {tgt} without leaving anything out.",
    "Task: translation. Original language: {src}. Wanted language: {tgt}.",
    "Read the {src} text and write it down in {tgt}.",
    "Say the same in {tgt} as this {src} text does.",
    "An article in {src} contains the lines below. How should they be printed in {tgt}?",
    "Translate each part of this {src} text, and answer in {tgt} only.",
    "I am learning {tgt}. Show me how this {src} text is said there.",
    "Supply the {tgt} counterpart of the {src} text that follows.",
    "Carry this text over from {src} to {tgt} and keep its meaning.",
    "This is {src}. What is it in {tgt}?",
    "Work as an interpreter: you hear {src} and you speak {tgt}.",
    "Find the right words in {tgt} for the {src} text given here.",
)


def translation_prompt(text: str, source: str, target: str) -> str:
    """"Translate the following sentence from English to Indonesian." and the sentence; codes are ISO 639-3."""
    return f"Translate the following sentence from {LANGUAGES[source].name} to {LANGUAGES[target].name}.\n{text}"


def coit_prompt(text: str, src: str, tgt: str, index: int = 0) -> str:
    """The instruction number `index` of `TEMPLATES` (counted round), with the languages' English names, and the text on a new line."""
    return TEMPLATES[index % len(TEMPLATES)].format(src=LANGUAGES[src].name, tgt=LANGUAGES[tgt].name) + f"\n{text}"


def completion_prompt(prefix: str, lang: str) -> str:
    """"Complete the following sentence in Indonesian according to its context." and the sentence's beginning."""
    return f"Complete the following sentence in {LANGUAGES[lang].name} according to its context.\n{prefix}"


def translation_rows(pairs: Sequence[Mapping[str, Any]], source: str, target: str, prompt: Callable[[str, str, str, int], str],
                     reverse: bool = False) -> list[Example]:
    """Every pair as an instruction to translate, subset ``mt``.

    Args:
        pairs: records of ``pairs.jsonl`` (id, src, tgt, kind).
        source, target: ISO 639-3 codes of the pairs' src and tgt.
        prompt: ``prompt(text, from, to, index)``, `index` being the pair's place.
        reverse: from target to source.
    """
    a, b, x, y = (target, source, "tgt", "src") if reverse else (source, target, "src", "tgt")
    return [Example(f"mt/{p['id']}/{a}-{b}", a, prompt(p[x], a, b, i), p[y], source=f"parallel:{p['kind']}", subset="mt",
                    group=f"pair/{p['id']}") for i, p in enumerate(pairs)]
