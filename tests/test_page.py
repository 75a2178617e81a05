"""The HTML page: complete, self-contained, safe with any text, and as wide as a phone."""
from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from xalign.report.layout import pivot_grids
from xalign.report.page import write_page
from xalign.report.pivot import pivots
from xalign.report.repeat import repeat_command
from xalign.report.runs import FinishedRun, load_runs
from xalign.tables import Grid

EVIL = ("<script>alert(1)</script></pre></details>{{ 7*7 }}{% raw %} \"quote' &amp; <img src=http://x.example/y onerror=alert(2)> "
        "\x00\x1b[31m")
ARABIC, CHINESE = "عاصمة كمبوديا هي بنوم بنه.", "柬埔寨的首都是金边。"
VOID = {"meta", "link", "img", "br", "wbr"}


class Page(HTMLParser):
    """Elements in order with their attributes and, for those that are open, the text in them; complains about wrong nesting."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    def text(self) -> str:
        return "".join(text for where, text in self.texts if "style" not in where)


def make_run(root: Path, method: str, lang: str, answer: str) -> Path:
    """A finished run with hostile text wherever text can stand."""
    folder = root / f"{method}-{lang}-smollm2-s0-0123abcd"
    of = {"run": folder.name, "method": method, "source": "eng", "backbone": "smollm2", "seed": 0, "task": "open", "reason": None}
    rows = []
    for code in (lang, "eng"):
        for when, value in (("before", 0.2), ("after", 0.4 if method == "sdrrl" else 0.3)):
            rows.append({**of, "lang": code, "metric": "f1", "when": when, "value": value, "se": 0.05, "n": 60, "signature": f"f1|{EVIL}",
                         **({"diff": value - 0.2, "diff_se": 0.05, "p": 0.001} if when == "after" else {})})
            rows.append({**of, "lang": code, "metric": "comet", "when": when, "value": None, "se": None, "n": 0, "signature": "",
                         "reason": f"no checkpoint {EVIL}"})
    config = {"method": {"note": EVIL, "code_switch": 0.3 if method == "sdrrl" else 0.0, "api_key": "hunter2"},
              "tracker": {"token": "hunter2"}, "backbone": {"max_length": 2048}, "lang": [lang], "seed": 0, "source": "eng",
              "choices": {"method": method, "backbone": "smollm2", "task": "lab"}}
    for when in ("before", "after"):
        path = folder / "predictions" / when / lang
        path.mkdir(parents=True)
        new = when == "after"
        records = [{"id": f"item/{i}/{EVIL}", "task": "open", "prompt": f"{EVIL} {i}", "references": [EVIL],
                    "prediction": answer if new else EVIL, "scores": {"f1": i / 8 if new else 0.5}} for i in range(9)]
        (path / "open.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps({"name": folder.name}))
    (folder / "log.jsonl").write_text("".join(json.dumps({"step": s, "loss": 3.0 - s, "valid_loss": 3.0 - s}) + "\n" for s in range(3)))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[FinishedRun]:
    root = tmp_path_factory.mktemp("runs")
    for method in ("sft", "sdrrl"):
        make_run(root, method, "ara", ARABIC)
        make_run(root, method, "zho", CHINESE)
    return load_runs([root])


@pytest.fixture(scope="module")
def page(runs: list[FinishedRun], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "new folder" / "report.html"
    found = pivots(runs, metrics=("f1",))
    cost = Grid(f"cost {EVIL}", ["run", *[f"column {i}" for i in range(20)]], [["a long name " * 4, *["1,234.5"] * 20]], notes=[EVIL])
    write_page(path, runs, found, pivot_grids(found), [cost])
    return path


def test_planted_text_is_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)  # every element that was opened is closed in its place
    assert not parsed.all("script") and "7*7" in text and "hunter2" not in text
    assert all(not a.startswith("on") for _, attrs in parsed.elements for a in attrs)
    shown = parsed.text()
    assert shown.count("<script>alert(1)</script></pre></details>{{ 7*7 }}{% raw %} \"quote' &amp;") > 20
    assert "\x00" not in text and "\x1b" not in text


def test_nothing_comes_from_elsewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    for tag, attrs in parsed.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}>"
    style = "".join(t for where, t in parsed.texts if where[-1:] == ("style",))
    assert "url(" not in style and "@import" not in style
    policy = next(a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy or "") and "script" not in (policy or "")
    assert len(text) < 600_000


def test_everything_is_there(page: Path, runs: list[FinishedRun]) -> None:
    parsed = Page(page.read_text(encoding="utf-8"))
    shown = " ".join(parsed.text().split())
    methods = ", ".join(dict.fromkeys(r.method for r in runs))
    for piece in (methods, "Arabic", "Chinese", "no checkpoint", "first 2 by id", "rose most", "fell most", "after training, in ara",
                  "after training, in zho",
                  "Not drawn", "against cost", "Training and validation loss"):
        assert piece in shown, piece
    assert {a["href"] for a in parsed.all("a")} <= {f"#{attrs['id']}" for _, attrs in parsed.elements if attrs.get("id")}
    assert all(len(a["alt"] or "") > 20 for a in parsed.all("img")) and len(parsed.all("img")) >= 3
    assert all(a.get("scope") for a in parsed.all("th")) and len(parsed.all("caption")) == len(parsed.all("table"))
    assert next(a["content"] for a in parsed.all("meta") if a.get("name") == "viewport") == "width=device-width, initial-scale=1"
    bold = [t for where, t in parsed.texts if where[-2:] == ("td", "b")]
    assert bold and set(bold) == {".400"}  # sdrrl's; sft's .300 is not the best
    answers = [a for a in parsed.all("div") if a.get("class") == "text"]
    assert answers and all(a.get("dir") == "auto" for a in answers)
    for run in runs:
        assert repeat_command(run) in parsed.text()
    place = ("html", "body", "main", "section", "details", "dl", "div", "dt")
    keys = "".join(t for where, t in parsed.texts if where == place)
    # what differs in each run, the rest once
    assert keys.count("method.code_switch") == 4 and keys.count("backbone.max_length") == 1


def test_command_repeats_choices_and_changed_keys(tmp_path: Path) -> None:
    def command(config: dict, method: str = "sdrrl", when: str = "after") -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        row = {"run": "r", "method": method, "lang": "fin", "source": "eng", "backbone": "smollm2", "task": "t", "metric": "m",
               "value": 1.0, "n": 1, "seed": 2, "when": when}
        (folder / "rows.jsonl").write_text(json.dumps(row))
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "run.json").write_text("{}")
        return repeat_command(load_runs([folder])[0])

    choices = {"method": "sdrrl", "backbone": "smollm2", "task": "lab,xquad", "trainer": "lab", "hydra/launcher": "basic",
               "tracker": "none"}
    config = {"choices": choices, "lang": ["fin", "jpn"], "method": {"subsets": ["LL", "TT"], "code_switch": 0.15},
              "trainer": {"lr": 0.0001, "epochs": 7}, "tasks": [{"shots": 3}, {"path": "/a folder/it's"}], "cache": "/somewhere"}
    got = command(config)
    assert got.startswith("python -m xalign method=sdrrl backbone=smollm2 'task=[lab,xquad]'")
    assert "'lang=[fin,jpn]' seed=2" in got and "'method.subsets=[LL,TT]'" in got and "trainer.epochs=7" in got
    assert "task.xquad.path=" in got and not re.search("code_switch|trainer.lr|shots|cache|tracker|hydra", got)
    assert command(config | {"tasks": [{}, {}]}, "none", "before").startswith("python -m xalign mode=evaluate backbone=smollm2 'task=")
    assert command({}) == ""


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on the PATH")
def test_a_browser_shows_it_on_a_phone(page: Path, tmp_path: Path) -> None:
    """In a frame of 360 pixels with everything unfolded, nothing is wider than the frame, and tables scroll in themselves."""
    text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page.read_text(encoding="utf-8"))
    text = text.replace("<details>", "<details open>") + """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
        page: document.documentElement.scrollWidth, frame: innerWidth, tables: Math.max(...[...document.querySelectorAll(".scroll")].map(
        e => e.scrollWidth)), rtl: [...document.querySelectorAll(".text")].filter(e => getComputedStyle(e).direction == "rtl").length,
        images: [...document.images].every(i => i.complete && i.naturalWidth > 0)}), "*"))</script>"""
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    (tmp_path / "frame.html").write_text("""<iframe src="page.html" style="width:360px;height:800px;border:0"></iframe><pre></pre>
        <script>addEventListener("message", e => document.querySelector("pre").textContent = e.data)</script>""")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
             "--virtual-time-budget=5000", "--dump-dom"]
    dom = subprocess.run(["chromium", *flags, f"file://{tmp_path / 'frame.html'}"], capture_output=True, text=True, timeout=90)
    measured = json.loads(re.search(r"<pre>({.*})</pre>", dom.stdout)[1])  # type: ignore[index]
    assert measured["page"] <= measured["frame"] == 360
    assert measured["tables"] > 360 and measured["rtl"] >= 2 and measured["images"]
