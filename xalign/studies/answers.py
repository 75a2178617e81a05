"""Answers and the languages that they are in: what the studies `off_target` and `cases` count, test and draw. No torch."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.config import XalignError
from xalign.data.examples import read_jsonl
from xalign.tables import number

if TYPE_CHECKING:
    from xalign.analysis.significance import Paired

Record = dict[str, Any]  # id, lang (asked for), prompt, answer, detected, off_target (1, 0 or None: cannot be told)
OTHER, UNTOLD = "und", "?"
NAMED = 6  # languages other than the asked one that a picture tells apart
LONGEST = 280  # characters of an answer in a table


@dataclass(frozen=True)
class Tally:
    """The languages of the answers to prompts that all ask for `lang`.

    Attributes:
        found: ISO 639-3 code → answers; ``und``: a language that cannot be named; ``?``: nobody can tell whether it is `lang`.
    """

    lang: str
    found: Mapping[str, int]

    @property
    def asked(self) -> int:
        return sum(self.found.values())

    @property
    def judged(self) -> int:
        return self.asked - self.found.get(UNTOLD, 0)

    @property
    def wrong(self) -> int:
        return self.judged - self.found.get(self.lang, 0)

    @property
    def share(self) -> float | None:
        """The off-target rate: wrong of judged answers; None where none could be judged."""
        return self.wrong / self.judged if self.judged else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of `share`."""
        from xalign.report.curves import wilson

        return wilson(self.wrong / self.judged, self.judged) if self.judged else None

    @property
    def instead(self) -> str:
        """``eng 14, fin 6``: the wrong languages, the most frequent first."""
        wrong = [(n, code) for code, n in self.found.items() if code not in (self.lang, UNTOLD) and n]
        return ", ".join(f"{'unknown' if code == OTHER else code} {n}" for n, code in sorted(wrong, key=lambda x: (-x[0], x[1])))


def tally(lang: str, records: Iterable[Record]) -> Tally:
    """Count the languages of `records`."""
    return Tally(lang, Counter(language_of(r) for r in records))


def language_of(record: Record) -> str:
    """The language that an answer is in: the asked one, another one's code, ``und`` or ``?``."""
    if record["off_target"] is None:
        return UNTOLD
    return (record["detected"] or OTHER) if record["off_target"] else record["lang"]


def shown_language(record: Record) -> str:
    """`language_of` in a table: ``fin``, ``eng ✗``, ``unknown ✗``, ``?``."""
    code = language_of(record)
    return f"{'unknown' if code == OTHER else code}{' ✗' if record['off_target'] else ''}"


def read_answers(path: Path) -> list[Record]:
    """The records of a file of answers.

    Raises:
        XalignError: for a record without one of the keys.
    """
    records = list(read_jsonl(path))
    for place, record in enumerate(records, 1):
        lacking = [k for k in ("id", "lang", "prompt", "answer", "detected", "off_target") if k not in record]
        if lacking:
            raise XalignError(f"{path}: record {place} has no '{lacking[0]}'; repeat the run's command to write it again")
    return records


def changed(pairs: Sequence[tuple[Sequence[Record], Sequence[Record]]]) -> Paired | None:
    """Paired randomisation test of the off-target rate on the prompts that were judged both times; None if there are none.

    For one run and a few answers that change it is McNemar's exact test.

    Args:
        pairs: (before, after) of each run; answers of several runs to one prompt count as one cluster.
    """
    from xalign.analysis.significance import paired

    found = []
    for before, after in pairs:
        old, new = ({(r["lang"], r["id"]): r["off_target"] for r in records if r["off_target"] is not None} for records in (before, after))
        found += [(old[k], new[k], k) for k in old if k in new]
    if not found:
        return None
    a, b, ids = zip(*found, strict=True)
    return paired(a, b, ids, bootstrap=False)


def cut(text: str, longest: int = LONGEST) -> str:
    """A text on one line, at most about `longest` characters of it; ``(nothing)`` for an empty one."""
    text = " ⏎ ".join(line.strip() for line in text.splitlines() if line.strip())
    return "(nothing)" if not text else text if len(text) <= longest else f"{text[:longest].rstrip()} … ({len(text):,} characters)"


def rate(t: Tally) -> str:
    """``.700 [.481, .855]``."""
    if t.share is None or t.interval is None:
        return "none judged"
    low, high = t.interval
    return f"{number(t.share)} [{number(low)}, {number(high)}]"


def language_name(code: str) -> str:
    """``Finnish`` for ``fin``, ``Corsican`` for CLD3's ``co``."""
    from babel import Locale

    from xalign.languages import LANGUAGES

    return LANGUAGES[code].name if code in LANGUAGES else Locale("en").languages.get(code.split("-")[0], code)


@dataclass(frozen=True)
class Palette:
    """The parts of a stacked bar, one colour each over all bars of a picture.

    Attributes:
        named: languages that are told apart from the asked one, the most frequent first.
    """

    named: tuple[str, ...]

    @classmethod
    def of(cls, tallies: Iterable[Tally]) -> Palette:
        """The languages that are most often written instead of the asked ones."""
        total: Counter[str] = Counter()
        for t in tallies:
            total.update({code: n for code, n in t.found.items() if code not in (t.lang, OTHER, UNTOLD) and n})
        return cls(tuple(code for code, _ in sorted(total.items(), key=lambda x: (-x[1], x[0]))[:NAMED]))

    def parts(self, t: Tally) -> list[int]:
        """Answers of each part: the asked language, the named ones, any other, cannot be told."""
        named = [0 if code == t.lang else t.found.get(code, 0) for code in self.named]
        return [t.found.get(t.lang, 0), *named, t.wrong - sum(named), t.found.get(UNTOLD, 0)]

    @property
    def styles(self) -> list[tuple[str, dict[str, Any]]]:
        """(legend, style) of each part."""
        from xalign.report.drawing import COLOURS

        colours = [COLOURS[0], *COLOURS[1:1 + NAMED]]
        names = ["the asked language", *map(language_name, self.named)]
        styles = [(name, {"facecolor": colour}) for name, colour in zip(names, colours, strict=False)]
        return [*styles, ("another language", {"facecolor": "#999999"}),
                ("cannot be told", {"facecolor": "white", "edgecolor": "#999999", "lw": 0.5})]

    def draw(self, axis: Any, places: Sequence[float], tallies: Sequence[Tally], thick: float, across: bool = False) -> None:
        """One stacked bar a tally, as counts, with the counts inside; `across`: lying bars."""
        longest, at = max(t.asked for t in tallies), [0] * len(tallies)
        for k, (_, style) in enumerate(self.styles):
            counts = [self.parts(t)[k] for t in tallies]
            bar = axis.barh if across else axis.bar
            bar(places, counts, thick, at, **style)
            for place, base, n in zip(places, at, counts, strict=True):
                if n >= 0.05 * longest:
                    x, y = (base + n / 2, place) if across else (place, base + n / 2)
                    axis.text(x, y, str(n), fontsize=6, ha="center", va="center", color="white" if k == 0 else "black")
            at = [base + n for base, n in zip(at, counts, strict=True)]

    def legend(self, figure: Any, tallies: Sequence[Tally]) -> None:
        """Name the parts that occur above all axes."""
        from matplotlib.patches import Patch

        from xalign.report.drawing import legend_above

        there = [any(self.parts(t)[k] for t in tallies) for k in range(len(self.styles))]
        shown = [s for s, occurs in zip(self.styles, there, strict=True) if occurs]
        legend_above(figure, [Patch(**style) for _, style in shown], [name for name, _ in shown])
