"""The prompts of the case study: the project's own, a user's file or folder, or a list in the configuration. No torch."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from xalign.config import ConfigError, XalignError, check_language
from xalign.data.reading import MISSING, numbered, text_lines, text_of_file, trouble
from xalign.languages import LANGUAGES
from xalign.tasks.openended import of

KEY = "study.prompts"
FACTS = 4  # held-out facts of the laboratory among the project's own prompts: one of each relation
TEXTS = ("prompt", "instruction", "text", "question")  # keys that hold a prompt
SUFFIXES = (".jsonl", ".yaml", ".yml", ".txt")
FORMS = "a line of JSON each (.jsonl), a list or a mapping of languages (.yaml), or a line of text each (.txt)"


@dataclass(frozen=True)
class Prompt:
    """A prompt, the language that its answer should be in, and for messages where it stands.

    The same `id` in several languages is the same prompt.
    """

    id: str
    lang: str
    text: str
    where: str


def choose(given: Any, langs: Sequence[str], source: str | None, count: int) -> list[Prompt]:
    """The first `count` prompts (0: all) of each language, target languages first.

    Args:
        given: ``auto``, a path, or the prompts themselves as a list or a mapping of languages.
        langs: target languages; `source`: the source language, None to leave it out.
    Raises:
        ConfigError, XalignError: nothing there, not readable, or no prompt in any target language; one line that names file and line.
    """
    wanted = dict.fromkeys([*langs, *([source] if source else [])])
    found: dict[str, dict[str, Prompt]] = {}
    for prompt in _read(given, tuple(wanted), tuple(langs)):
        own = found.setdefault(prompt.lang, {})
        if prompt.id in own:
            raise ConfigError(f"{prompt.where}: id={prompt.id}: occurs a second time in {LANGUAGES[prompt.lang].name}; "
                              "give each prompt its own")
        own[prompt.id] = prompt
    name = given if isinstance(given, str) else "[...]"
    if not found:
        raise ConfigError(f"{KEY}={name}: holds no prompt; write {FORMS}")
    if not any(lang in found for lang in langs):
        names = ", ".join(f"{LANGUAGES[lang].name} ({lang})" for lang in langs)
        raise ConfigError(f"{KEY}={name}: has no prompt in {names}; it has {' '.join(found)}")
    return [p for lang in wanted for p in list(found.get(lang, {}).values())[:count or None]]


def _read(given: Any, wanted: tuple[str, ...], targets: tuple[str, ...]) -> Iterator[Prompt]:
    if given == "auto":
        for lang in wanted:
            yield from _own(lang)
    elif isinstance(given, str):
        yield from _files(Path(given).expanduser(), given, wanted, targets)
    else:
        yield from _items(given, KEY, targets)


@cache
def _own(lang: str) -> tuple[Prompt, ...]:
    """The project's own prompts in a language: open questions, then facts of the laboratory's test."""
    from importlib.resources import files

    import yaml

    from xalign.data.lab import open_items

    table = yaml.safe_load(files("xalign.studies").joinpath("prompts.yaml").read_text(encoding="utf-8"))
    texts = {**table[lang], **{item.id: item.question for item in open_items(lang, lang, FACTS)}}
    return tuple(Prompt(code, lang, text, f"{KEY}=auto") for code, text in texts.items())


def _files(path: Path, name: str, wanted: tuple[str, ...], targets: tuple[str, ...]) -> Iterator[Prompt]:
    if not (why := trouble(path)):
        yield from _file(path, targets)
        return
    if not path.is_dir():
        raise ConfigError(f"{KEY}={name}: {'no such file or folder' if why == MISSING else why}; name one with {FORMS}, or auto")
    for lang in wanted:
        row = LANGUAGES[lang]
        stems = (f"questions_{row.name}", lang, row.iso1)
        file = next((p for stem in stems for s in SUFFIXES for p in [path / f"{stem}{s}"] if p.is_file()), None)
        if file:
            yield from _file(file, (lang,))
        elif lang in targets:
            raise ConfigError(f"{KEY}={name}: has no file in {row.name}; add {lang}.jsonl, {lang}.yaml or {lang}.txt")


def _file(path: Path, targets: tuple[str, ...]) -> Iterator[Prompt]:
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{KEY}={path}: is no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file; write {FORMS}")
    if path.suffix == ".jsonl":
        for number, record in numbered(path):
            yield _prompt(record, f"{path}:{number}", number, targets)
        return
    if path.suffix == ".txt":
        for number, line in text_lines(path):
            if line.strip():
                yield _prompt(line, f"{path}:{number}", number, targets)
        return
    import yaml

    try:
        content = yaml.safe_load(text_of_file(path))
    except yaml.YAMLError as e:
        mark, problem = getattr(e, "problem_mark", None), getattr(e, "problem", None) or "cannot be read"
        raise XalignError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML ({problem}); write {FORMS}") from None
    except RecursionError:
        raise XalignError(f"{path}: not valid YAML (nested too deeply); write {FORMS}") from None
    yield from _items([] if content is None else content, str(path), targets)


def _items(content: Any, where: str, targets: tuple[str, ...]) -> Iterator[Prompt]:
    """Prompts of a list, or of a mapping: language → a list or a mapping of ids."""
    if isinstance(content, dict):
        for name, own in content.items():
            lang, place = _language(name, where), f"{where}, {name}"
            if isinstance(own, dict):
                own = [{"id": code, "prompt": text} for code, text in own.items()]
            if not isinstance(own, list):
                raise ConfigError(f"{place}: is no list or mapping of prompts; write {FORMS}")
            for number, item in enumerate(own, 1):
                yield _prompt(item, f"{place}, prompt {number}", number, (lang,))
    elif isinstance(content, list):
        for number, item in enumerate(content, 1):
            yield _prompt(item, f"{where}, prompt {number}", number, targets)
    else:
        raise ConfigError(f"{where}={content}: is no list of prompts; write {FORMS}, or auto")


def _prompt(item: Any, where: str, number: int, targets: tuple[str, ...]) -> Prompt:
    """One prompt; `targets`: the language of one that names none, if there is just one."""
    record = item if isinstance(item, dict) else {"prompt": item}
    text = next((record[key] for key in TEXTS if key in record), None)
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{where}: holds no text; write it under 'prompt'")
    if isinstance(more := record.get("input"), str) and more.strip():
        text += f"\n\n{more}"
    if record.get("lang") is not None:
        lang = _language(record["lang"], where)
    elif len(targets) == 1:
        lang = targets[0]
    else:
        raise ConfigError(f"{where}: names no language, and the run has {' '.join(targets)}; add lang (ISO 639-3)")
    return Prompt(str(record.get("id", record.get("question_id", number))), lang, text.strip(), where)


def _language(name: Any, where: str) -> str:
    return of(name) or check_language(str(name), f"{where}: lang")
