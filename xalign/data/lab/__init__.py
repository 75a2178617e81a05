"""The embedded laboratory: facts, questions, names, phrases and sentences in 26 languages, from CLDR.

Everything here is deterministic and imports babel only when it is used.
"""
from __future__ import annotations

from xalign.data.lab.categories import CATEGORIES, term_examples, term_items
from xalign.data.lab.facts import KINDS, Fact, by_id, facts, name, split_of
from xalign.data.lab.items import ChoiceItem, OpenItem, choice_items, open_items, options_of, train_shots
from xalign.data.lab.node import LabData, training_examples
from xalign.data.lab.pairs import Pair, name_lists, names, phrases, sentences
from xalign.data.lab.templates import neutral, parse_sentence, question, render, render_sentence
from xalign.data.lab.terms import phrase_table, term_kinds

__all__ = [
    "CATEGORIES", "KINDS", "ChoiceItem", "Fact", "LabData", "OpenItem", "Pair", "by_id", "choice_items", "facts", "name",
    "name_lists", "names", "neutral", "open_items", "options_of", "parse_sentence", "phrase_table", "phrases", "question", "render",
    "render_sentence", "sentences", "split_of", "term_examples", "term_items", "term_kinds", "train_shots", "training_examples",
]
