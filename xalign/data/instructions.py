"""The two instruction templates over parallel text (SDRRL Table 1), used in training and in tests alike."""
from __future__ import annotations

from xalign.languages import LANGUAGES


def translation_prompt(text: str, source: str, target: str) -> str:
    """"Translate the following sentence from English to Indonesian." and the sentence; codes are ISO 639-3."""
    return f"Translate the following sentence from {LANGUAGES[source].name} to {LANGUAGES[target].name}.\n{text}"


def completion_prompt(prefix: str, lang: str) -> str:
    """"Complete the following sentence in Indonesian according to its context." and the sentence's beginning."""
    return f"Complete the following sentence in {LANGUAGES[lang].name} according to its context.\n{prefix}"
