"""Every reader of users' files: a small clean file of its own, what stands beside it, and how it is read before anything is computed."""
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from xalign.analysis.allocation import read_laws
from xalign.analysis.recover import read_published
from xalign.backbones.node import Tiny
from xalign.data.alpaca import AlpacaData
from xalign.data.codeswitch import Dictionary, read_muse
from xalign.data.parallel import FileParallel
from xalign.methods.cpt import read_texts
from xalign.metrics.node import Metrics
from xalign.studies.prompts import choose
from xalign.tasks.belebele import BelebeleTask
from xalign.tasks.flores import FloresTask, NtrexTask
from xalign.tasks.learned import answers
from xalign.tasks.mkqa import MkqaTask
from xalign.tasks.openended import OpenTask
from xalign.tasks.pawsx import PawsXTask
from xalign.tasks.squad import MlqaTask, XQuadTask
from xalign.tasks.trainrows import XnliRows
from xalign.tasks.xcopa import XCopaTask
from xalign.tasks.xglue import AdTask, AnswerTask, NewsTask, PageTask, XgluePawsXTask, XglueXnliTask
from xalign.tasks.xglue_tags import NameTask, WordClassTask
from xalign.tasks.xglue_texts import QuestionTask, TitleTask
from xalign.tasks.xlsum import XlSumTask
from xalign.tasks.xnli import XnliTask


def run_of(task: Any = None, lang: str = "deu") -> SimpleNamespace:
    return SimpleNamespace(tasks=(task,), backbone=Tiny(), lang=(lang,), target=lang, source="eng", seed=0, metric=Metrics(),
                           evaluated=(lang,), choices={})


def lines(*rows: Any) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows).encode()


@dataclass(frozen=True)
class Reader:
    """A file, what else has to stand beside it, and what reads it from its folder before anything is computed."""

    name: str
    clean: bytes
    read: Callable[[Path], Any]
    beside: tuple[tuple[str, bytes], ...] = ()
    kind: str = "text"
    spot: bytes = b""  # in the last record's text; empty: its last letter

    def put(self, folder: Path, content: bytes | None = None) -> Path:
        for name, data in (*self.beside, (self.name, self.clean if content is None else content)):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder / self.name


def task(cls: type) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        node = cls(path=str(folder))
        node.check_run(run_of(node))
        return node.load(node.root(), "deu", "eng")

    return read


def alpaca(folder: Path) -> Any:
    path = folder / "alpaca.json"
    node = AlpacaData(str(path))
    node.check_run(run_of())
    return node._rows(path, "eng")


def parallel(folder: Path) -> Any:
    from xalign.data.parallel import _aligned

    node = FileParallel(str(folder))
    node.check_run(run_of())
    return _aligned(*node._files("eng", "deu"))


def dictionary(folder: Path) -> Any:
    Dictionary(str(folder / "en-de.txt")).check_run(run_of())
    return read_muse(folder / "en-de.txt")


def xnli_rows(folder: Path) -> Any:
    from xalign.tasks.trainrows import read_pairs

    XnliRows(str(folder)).check_run(run_of())
    return read_pairs(folder / "XNLI/de.dev", "deu", "dev")


ALPACA = [{"instruction": "Name it.", "input": "", "output": "It"}, {"instruction": "Say it.", "input": "x", "output": "That"}]
QUESTION = {"link": "", "question_number": 1, "flores_passage": "Ein Text.", "question": "Was?", "correct_answer_num": "2",
            **{f"mc_answer{k}": f"Antwort {k}" for k in range(1, 5)}}
PREMISE = {"premise": "Das Glas fiel.", "choice1": "Es brach.", "choice2": "Es regnete.", "question": "effect", "label": 0, "idx": 7}
SQUAD = {"version": "1.1", "data": [{"title": "", "paragraphs": [{"context": "Der Turm ist alt.", "qas": [
    {"id": "q1", "question": "Was ist alt?", "answers": [{"text": "Der Turm", "answer_start": 0}]},
    {"id": "q2", "question": "Wie ist er?", "answers": [{"text": "alt", "answer_start": 13}]}]}]}]}
SQUAD_FILE = json.dumps(SQUAD, ensure_ascii=False, indent=1).encode()
MKQA = {"query": "how old", "example_id": 5, "queries": {"de": "wie alt"}, "answers": {"de": [{"type": "number", "text": "9"}]}}
ARTICLE = {"id": "1", "summary": "Kurz.", "text": "Lang und breit."}
PAWS = lines("id\tsentence1\tsentence2\tlabel", "1\tDie Mühle .\tEine Mühle .\t1", "2\tDas Haus .\tEin Baum .\t0")
XNLI = lines("language\tgold_label\tsentence1\tsentence2\tpairID", "de\tneutral\tEs regnet.\tEs ist kalt.\t1",
             "en\tneutral\tIt rains.\tCold.\t1", "de\tentailment\tEs regnet.\tEs ist naß.\t2")
PAIRS = lines("Es regnet.\tEs ist naß.\tentailment", "Er kam.\tEr ging.\tcontradiction")
DEV = lines("It rains.\tIt is wet.\tentailment", "He came.\tHe left.\tcontradiction")
TRAIN = lines("premise\thypothesis\tlabel", "A b.\tC d.\tneutral")
ENG = lines("The mill stands.", "It rains.", "He came.")
DEU = lines("Die Mühle steht.", "Es regnet.", "Er kam.")

READERS = {label: r for label, r in {
    "alpaca lines": Reader("alpaca.json", lines(*ALPACA), alpaca, kind="jsonl"),
    "alpaca array": Reader("alpaca.json", json.dumps(ALPACA, indent=1).encode(), alpaca, kind="json"),
    "data=xnli": Reader("XNLI/de.dev", PAIRS, xnli_rows, (("XNLI/en.dev", DEV), ("XNLI/multinli.train.en.tsv", TRAIN)),
                        spot=b"ging"),
    "parallel": Reader("deu.txt", DEU, parallel, (("eng.txt", ENG),)),
    "dictionary": Reader("en-de.txt", lines("mill\tMühle", "rain Regen"), dictionary),
    "cpt": Reader("deu.txt", DEU, lambda f: read_texts(f / "deu.txt")),
    "belebele": Reader("deu_Latn.jsonl", lines(QUESTION, {**QUESTION, "question": "Wer?"}), task(BelebeleTask), kind="jsonl"),
    "xcopa": Reader("de/test.de.jsonl", lines(PREMISE, {**PREMISE, "idx": 8}), task(XCopaTask), kind="jsonl"),
    "pawsx": Reader("de/test_2k.tsv", PAWS, task(PawsXTask)),
    "xnli": Reader("xnli.test.tsv", XNLI, task(XnliTask)),
    "xquad": Reader("xquad.de.json", SQUAD_FILE, task(XQuadTask), kind="json", spot=b"lt\""),
    "mlqa": Reader("test/test-context-de-question-de.json", SQUAD_FILE, task(MlqaTask), kind="json", spot=b"lt\""),
    "mkqa": Reader("mkqa.jsonl", lines(MKQA, {**MKQA, "example_id": 6}), task(MkqaTask), kind="jsonl"),
    "flores": Reader("devtest/deu_Latn.devtest", DEU, task(FloresTask), (("devtest/eng_Latn.devtest", ENG),)),
    "ntrex": Reader("newstest2019-ref.deu.txt", DEU, task(NtrexTask), (("newstest2019-src.eng.txt", ENG),)),
    "xlsum": Reader("german_test.jsonl", lines(ARTICLE, {**ARTICLE, "id": "2"}), task(XlSumTask), kind="jsonl"),
    "mi_eval": Reader("deu.jsonl", lines({"instruction": "Nenne Länder."}, {"instruction": "Was?", "id": "b"}), task(OpenTask),
                      kind="jsonl"),
    "xglue nc": Reader("NC/xglue.nc.de.test", lines("Tor\tEs endete 2:1.\tsports", "Woche\tMan nehme Äpfel.\tfoodanddrink"), task(NewsTask),
                        spot=b"ehme"),
    "xglue xnli": Reader("XNLI/de.test", PAIRS, task(XglueXnliTask), spot=b"ging"),
    "xglue pawsx": Reader("PAWSX/de/test_2k.tsv", PAWS, task(XgluePawsXTask)),
    "xglue qadsm": Reader("QADSM/xglue.qadsm.de.test", lines("rote schuhe\tSchuhe\tGünstig.\tGood", "auto\tb\t\tBad"), task(AdTask),
                           spot=b"uto"),
    "xglue qam": Reader("QAM/xglue.qam.de.test", lines("Wie hoch?\tDer Turm ist hoch.\t1", "Wie?\tÄpfel.\t0"), task(AnswerTask)),
    "xglue wpr": Reader("WPR/xglue.wpr.de.test", lines("wetter\tHeute\tSonnig.\t4", "wetter\tLäden\tSchuhe.\t0"), task(PageTask)),
    "xglue ner": Reader("NER/de.test", lines("Anna I-PER", "wohnt O", "", "Mühle O"), task(NameTask)),
    "xglue pos": Reader("POS/de.test", lines("Die DET", "Mühle NOUN", "", "Berlin PROPN"), task(WordClassTask)),
    "xglue qg": Reader("QG/xglue.qg.de.tgt.test", DEU, task(QuestionTask), (("QG/xglue.qg.de.src.test", DEU),)),
    "xglue ntg": Reader("NTG/xglue.ntg.de.src.test", DEU, task(TitleTask), (("NTG/xglue.ntg.de.tgt.test", DEU),)),
    "prompts lines": Reader("deu.jsonl", lines({"prompt": "Wer?"}, {"prompt": "Was?"}),
                            lambda f: strip(choose(str(f / "deu.jsonl"), ["deu"], None, 0)), kind="jsonl"),
    "prompts text": Reader("deu.txt", DEU, lambda f: strip(choose(str(f / "deu.txt"), ["deu"], None, 0))),
    "prompts yaml": Reader("p.yaml", lines("deu:", "  - Wer?", "  - Was?"), lambda f: strip(choose(str(f / "p.yaml"), ["deu"], None, 0)),
                           kind="yaml"),
    "judge's opponent": Reader("theirs.jsonl", lines({"id": "a", "prediction": "x"}, {"id": "b", "prediction": "y"}),
                               lambda f: answers(f / "theirs.jsonl", "mi_eval", "deu"), kind="own"),
    "laws": Reader("law.yaml", lines("deu: {alpha: 300, beta: -0.3, gamma: 0.5}", "fin: {alpha: 2, beta: -0.1}"),
                   lambda f: read_laws(str(f / "law.yaml"), "method.law", ["deu"]), kind="yaml"),
    "published": Reader("papers.yaml", lines("1000: {rows: {fin: 400, deu: 600}, score: 60}"),
                        lambda f: read_published(str(f / "papers.yaml")), kind="yaml"),
}.items()}


def strip(prompts: list[Any]) -> list[Any]:
    return [(p.id, p.lang, p.text) for p in prompts]
