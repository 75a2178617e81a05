"""Wrong data files as a run meets them: refused before torch is imported. `test_readers` has every reader and every kind of damage."""
from __future__ import annotations

import gzip
import os

from inputs import Case

TRAIN = ["method=sft", "lang=fin", "backbone=tiny", "tracker=none"]
PARALLEL = [*TRAIN, "parallel=files", "parallel.path={dir}/p"]
ALPACA = [*TRAIN, "data=alpaca", "data.path=a.jsonl"]
ROW = '{"instruction": "Name it.", "input": "", "output": "It."}\n'
ENG, FIN = "The lamp is on.\nIt rains.\n", "Lamppu on päällä.\nSataa.\n"


def pairs(fin: bytes | str, eng: bytes | str = ENG) -> dict[str, bytes | str]:
    return {"p/eng.txt": eng, "p/fin.txt": fin}


def evaluate(task: str, *more: str) -> list[str]:
    return ["mode=evaluate", "lang=deu", "backbone=tiny", "tracker=none", f"task={task}", f"task.{task}.path={{dir}}", *more]


CASES = [
    Case("an Alpaca line cut short", ALPACA, ("a.jsonl:2: not valid JSON", "one JSON object a line"), {"a.jsonl": ROW + '{"instr'}),
    Case("an Alpaca record without output", ALPACA, ("a.jsonl:2: has no 'output'",), {"a.jsonl": ROW + '{"instruction": "a"}\n'}),
    Case("a number for a text", ALPACA, ("a.jsonl:1: 'output' must be text, found a number",),
         {"a.jsonl": '{"instruction": "a", "output": 3}'}),
    Case("Alpaca in Latin-1", ALPACA, ("a.jsonl:2: not UTF-8", "convert the file"),
         {"a.jsonl": ROW.encode() + ROW.replace("I", "Ä").encode("latin-1")}),
    Case("Alpaca in UTF-16", ALPACA, ("a.jsonl:1: not UTF-8 (begins as UTF-16", "convert the file"), {"a.jsonl": ROW.encode("utf-16")}),
    Case("an empty Alpaca file", ALPACA, ("a.jsonl: holds no records", "one JSON object a line"), {"a.jsonl": ""}),
    Case("a NUL byte in Alpaca", ALPACA, ("a.jsonl:2: holds a NUL byte", "convert"), {"a.jsonl": ROW + ROW.replace("It", "\0")}),
    Case("half a surrogate pair", ALPACA, ("a.jsonl:1: holds half a surrogate pair", "remove it"),
         {"a.jsonl": ROW.replace("It", r"\ud83d")}),
    Case("a gzip file under another name", ALPACA, ("a.jsonl: is a gzip file", "unpack"), {"a.jsonl": gzip.compress(ROW.encode())}),
    Case("no output at all", ALPACA, ("a.jsonl: no record has an output", "fill"), {"a.jsonl": ROW.replace("It.", "")}),
    Case("a folder for a file", ALPACA, ("data.path=a.jsonl: is a folder", "data.path=FILE"), {"a.jsonl/b": ""}),
    Case("a pipe for a file", ALPACA, ("data.path=a.jsonl: is a pipe or a device", "data.path=FILE"), {"a.jsonl": os.mkfifo}),
    Case("a link to nothing", ALPACA, ("data.path=a.jsonl: is a link to nothing",), {"a.jsonl": lambda p: p.symlink_to("gone")}),
    Case("unequal parallel files", PARALLEL, ("fin.txt: has 3 lines but eng.txt has 2", "aligned"), pairs(FIN + "Ja.\n")),
    Case("parallel text in Latin-1", PARALLEL, ("fin.txt:1: not UTF-8", "convert"), pairs(FIN.encode("latin-1"))),
    Case("parallel text with NUL", PARALLEL, ("eng.txt:2: holds a NUL byte", "convert"), pairs(FIN, ENG.replace("rains", "ra\0ins"))),
    Case("no line with both sides", PARALLEL, ("fin.txt: holds no line that is filled on both sides", "aligned"), pairs("\n\n")),
    Case("a dictionary with semicolons", [*TRAIN, "dictionary.path=d.txt"], ("d.txt:2: expected 'word TAB translation'", "one pair a line"),
         {"d.txt": "house talo\nmill;mylly\n"}),
    Case("a dictionary of one side", [*TRAIN, "dictionary.path=d.txt"], ("d.txt:1: expected 'word TAB translation'",),
         {"d.txt": "house\t\n"}),
    Case("a dictionary that switches nothing", [*TRAIN, "dictionary.path=d.txt"], ("d.txt: holds no pair of different words", "write"),
         {"d.txt": "taxi\ttaxi\n"}),
    Case("a text file that is binary", ["method=cpt", "method.path=t.txt", *TRAIN[1:]], ("t.txt: is a Parquet file", "export"),
         {"t.txt": b"PAR1\x15\0"}),
    Case("a right answer out of range", evaluate("belebele"), ("deu_Latn.jsonl:1: correct_answer_num=5", "official file"),
         {"deu_Latn.jsonl": (
        '{"flores_passage": "a", "question": "b", "mc_answer1": "c", "mc_answer2": "d", "mc_answer3": "e", "mc_answer4": "f", '
        '"correct_answer_num": "5"}\n')}),
    Case("an id twice", evaluate("pawsx"), ("test_2k.tsv:3: id=1: occurs a second time", "official file"),
         {"de/test_2k.tsv": "id\tsentence1\tsentence2\tlabel\n1\ta\tb\t0\n1\tc\td\t1\n"}),
    Case("SQuAD that is cut short", evaluate("xquad"), ("xquad.de.json:2: not valid JSON", "official file"),
         {"xquad.de.json": '{"data":\n [{"par'}),
    Case("SQuAD that is nested too deeply", evaluate("xquad"), ("xquad.de.json: not valid JSON (nested too deeply)",),
         {"xquad.de.json": '{"data": ' + "[" * 100_000}),
    Case("a label that is none", evaluate("xglue_xnli"), ("de.test:1: label 'maybe': must be one of entailment",),
         {"XNLI/de.test": "a\tb\tmaybe\n"}),
    Case("aligned files of two releases", evaluate("flores"), ("deu_Latn.devtest:1: ends here, but", "one release"),
         {"devtest/deu_Latn.devtest": "a\n", "devtest/eng_Latn.devtest": "a\nb\n"}),
    Case("a number of 5,000 digits", evaluate("mi_eval"), ("deu.jsonl:1: holds a number of more than 4,300 digits", "write it as text"),
         {"deu.jsonl": f'{{"instruction": "a", "id": {"9" * 5000}}}\n'}),
]

OLD, NEW = "\r", "\r\n"  # line ends of old Macs and of Windows
BOM = b"\xef\xbb\xbf"
# what an editor or another system does to a file without harm
CASES_ACCEPTED = [
    Case("byte order marks, other line ends, blank lines", [*PARALLEL, *ALPACA[4:], "dictionary.path=d.txt", "plan=true"], ("results",),
         {"a.jsonl": BOM + ROW.replace("\n", 2 * NEW).encode() + ROW.encode(), "d.txt": BOM + b"mill\tmylly\r\n\r\n",
          **pairs(FIN.replace("\n", OLD), BOM + ENG.replace("\n", NEW).encode())}),
    Case("a line of 10 MB and signs that end no line", [*PARALLEL, *ALPACA[4:], "plan=true"], ("results",),
         {"a.jsonl": ROW + ROW.replace("It", "so\u2028it\x85is " * 900_000), **pairs("a\u2028b\x0bc\x0cd\x85e\n" * 2)}),
]
