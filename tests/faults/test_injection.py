"""What data, models, judges and folders are called or say is shown as text, wherever it is shown: page, LaTeX, Markdown, card, CSV,
terminal, plots, file names. (Pages and LaTeX in detail: tests/test_page.py, tests/test_latex.py.)"""
from __future__ import annotations

import csv
import io
import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import TINY
from faultkit import forked, refusal
from matplotlib import rc_context
from test_latex import check
from test_page import Page

from xalign.backbones.node import E5Small
from xalign.backbones.tiny import make_tiny
from xalign.compose import package_folder
from xalign.config import Run, XalignError, make_run
from xalign.modelcard import write_card
from xalign.push import problems
from xalign.report.drawing import STYLE, new_plot, save
from xalign.report.latex import latex
from xalign.report.runs import load_runs
from xalign.safe import printable
from xalign.tables import Grid, markdown, show, write_csv

HTML = ("<script>document.title='owned'</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1)",
        "</title><script>x()</script>",
        "javascript:alert(1)", "<svg onload=alert(1)>",
        "</style><script>x()</script>", "-->", "{{ 7*7 }}{% raw %}", "&lt;b&gt;",
        "<iframe src=//x.example>", "<base href=//x.example>", "<meta http-equiv=refresh content=0>")
TEX = ("\\input{/etc/passwd}", "\\write18{id}", ".5 ±\\input{/etc/passwd}", ".5** ±.1\\write18{id}", "^^5cinput{x}", "% rest",
       "a & b \\\\ c",
       "$\\frac{", "#1 ~ {", "}\\def\\x{", "\r\\input{x}", "\x0c\\par")
TERMINAL = ("\x1b]0;owned\x07", "\x1b[2J\x1b[H", "\x9b31m", "a\rb", "a\bb", "\x1b]8;;http://x.example\x1b\\link\x1b]8;;\x1b\\",
            "[red]red[/]", "[/]",
            "[link=http://x.example]x[/link]", "\u202egnp.exe", "\u2066x", "x\x00y",
            "a\u2028b")
MARKDOWN = ("a|b", "a\nb", "a\r\n\r\n# b", "[x](javascript:alert(1))", "![x](http://x.example/p.png)", "`a`", "<b>", "---", "```\n", "\\|")
FORMULAS = ("=1+1", "=cmd|' /C calc'!A0", "+1+cmd", "-2+3+cmd", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1+1")
EVERYTHING = (*HTML, *TEX, *TERMINAL, *MARKDOWN, *FORMULAS)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def hostile_run(root: Path, number: int, lang: str = "fin") -> Path:
    """A run folder as a stranger might send it: whatever can be a text is one of `EVERYTHING`."""
    folder, evil = root / f"run{number}{lang}", " ".join(EVERYTHING[number::2])
    of = {"run": f"run{number} {evil}", "method": f"m{number} {evil}", "source": "eng", "backbone": evil, "seed": 0, "task": f"open {evil}"}
    rows = []
    for code in (lang, "eng"):
        for when, value in (("before", 0.2), ("after", 0.3 + number / 10)):
            rows.append({**of, "lang": code, "metric": "f1", "when": when, "value": value, "se": 0.05, "n": 60, "signature": f"f1|{evil}",
                         "reason": None, **({"diff": value - 0.2, "diff_se": 0.05, "p": 0.001} if when == "after" else {})})
            rows.append({**of, "lang": code, "metric": f"chrf {evil}", "when": when, "value": None, "se": None, "n": 0, "signature": "",
                         "reason": f"none {evil}"})
    config = {"method": {"note": evil, "x": number}, "lang": [lang], "seed": 0, "source": "eng", evil: evil,
              "choices": {"method": of["method"], "backbone": evil, "task": evil, evil: evil}}
    for when in ("before", "after"):
        path = folder / "predictions" / when / lang
        path.mkdir(parents=True)
        records = [{"id": f"{i} {evil}", "task": of["task"], "prompt": evil, "references": [evil], "prediction": f"{when} {evil}",
                    "scores": {"f1": 0.5}} for i in range(4)]
        (path / "open.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps({"name": evil, "versions": {evil: evil}}))
    (folder / "log.jsonl").write_text("".join(json.dumps({"step": s, "loss": 3.0 - s, "valid_loss": 3.0 - s, "stage": evil}) + "\n"
                                              for s in range(3)))
    cost = {**of, "lang": lang, "kind": "train", "stage": evil, "key": "k", "seconds": 100.0, "devices": 1, "device": evil,
            "device_hours": 0.03, "tokens": 1000, "flops": 1e12, "cached": False, "reused": False}
    (folder / "cost.jsonl").write_text(json.dumps(cost) + "\n")
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with every kind of report on two hostile runs, and what the command printed."""
    root = tmp_path_factory.mktemp("hostile")
    runs = [str(hostile_run(root / "runs", n)) for n in (0, 1)]
    out = root / "out"
    out.mkdir()
    done = forked(["report", *runs, "--by", "method,lang", "--cost", "--html", "r.html", "--latex", "r.tex", "--markdown", "r.md",
                   "--csv", "r.csv"], out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stdout + done.stderr


def test_a_report_is_written_where_it_is_asked_for(written: tuple[Path, str]) -> None:
    out, _ = written
    assert {p.name for p in out.parent.iterdir()} == {"runs", "out"}
    assert {p.name for p in out.iterdir()} == {"r.html", "r.tex", "r.md", "r.csv"}


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a\0b", "x" * 300, "a b", "..", "\u202ex", "-x"])
def test_a_plots_file_stays_in_its_folder(name: str) -> None:
    stem = new_plot(f"bars_{name}", 1, 1).name
    assert re.fullmatch(r"bars_[\w+-]*", stem) and len(stem) <= 100 and stem == new_plot(f"bars_{name}", 1, 1).name


def test_the_page_has_no_element_of_theirs(written: tuple[Path, str]) -> None:
    text = (written[0] / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "svg", "iframe", "base", "object", "embed", "form", "b onerror"}
    assert all(not name.startswith("on") for _, attrs in page.elements for name in attrs)
    for _, attrs in page.elements:
        for name in ("src", "href", "srcset", "action"):
            assert (attrs.get(name) or "#").startswith(("data:", "#"))
    assert len([a for a in page.all("meta") if a.get("http-equiv")]) == 1
    assert "document.title='owned'" in page.text()  # it is shown
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202d\u202e]", text)


def test_a_name_does_not_turn_its_neighbours_around(written: tuple[Path, str]) -> None:
    """Names that stand in one line with others are isolated: Arabic names too."""
    text = (written[0] / "r.html").read_text(encoding="utf-8")
    lines = [s for s in re.findall(r"<summary>(.*?)</summary>", text, re.S) if "· seed" in s or "items" in s]
    assert len(lines) > 2 and all("<bdi>" in line for line in lines)


def test_latex_runs_nothing_of_theirs(written: tuple[Path, str]) -> None:
    text = (written[0] / "r.tex").read_text(encoding="utf-8")
    assert not re.search(r"\\(input|write|def|par(?!\n|\\smallskip))\b", text.replace(r"\textbackslash{}", ""))
    assert not CONTROL.search(text)


@pytest.mark.parametrize("evil", EVERYTHING)
def test_a_latex_table_stays_one(evil: str) -> None:
    ascii_ = evil.encode("ascii", "ignore").decode()  # what is in no font is the reader's choice of engine
    rows = [[ascii_], [ascii_, ascii_], ["plain", ".5 ±" + ascii_.replace(" ", "")], ["x", "1.0" + ascii_]]
    grid = Grid(ascii_, ["", ascii_], rows, [ascii_], marks={(2, 1): "best"}, groups=[(1, 1, ascii_)])
    text = latex([grid])
    cells = check(text.replace(r"$\pm$", "+-"))
    assert all(len(row) <= 2 for row in cells)
    assert not re.search(r"\\(input|write|def|frac)\b", text) and "^^" not in text and not CONTROL.search(text)


@pytest.mark.parametrize("evil", EVERYTHING)
def test_a_markdown_table_stays_one(evil: str) -> None:
    text = markdown([Grid(evil, ["", evil], [[evil], [evil, evil]], [evil], marks={(1, 1): "best"})])
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 4 and all(len(re.split(r"(?<!\\)(?:\\\\)*\|", line)) == 4 for line in table), text
    assert not re.search(r"<(?!/?u>)|(?<!\\)\]\(|(?<!\\)`", text) and not CONTROL.search(text)
    assert len([line for line in text.splitlines() if line]) == 6  # title, four of the table, note


@pytest.mark.parametrize("evil", FORMULAS)
def test_a_csv_cell_is_no_formula_and_numbers_are_numbers(evil: str, tmp_path: Path) -> None:
    values = [evil, -0.5, "-0.5", "+3e-4", None, "a=b", "–", 3]
    write_csv(tmp_path / "t.csv", ["name", *map(str, range(6)), evil], [values])
    with open(tmp_path / "t.csv", encoding="utf-8", newline="") as f:
        head, row = list(csv.reader(f))
    shown = f"'{evil}" if evil[0] not in "\r" else "\N{REPLACEMENT CHARACTER}=1"  # and begins no row
    assert row == [shown, "-0.5", "-0.5", "+3e-4", "", "a=b", "–", "3"] and head[-1] == shown


def test_the_terminal_obeys_none_of_it(written: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert not CONTROL.search(written[1])
    for evil in EVERYTHING:
        out = io.StringIO()
        show([Grid(evil, [evil, evil], [[evil], [evil, evil]], [evil], groups=[(1, 1, evil)])], out)
        assert not CONTROL.search(out.getvalue()), evil
        assert not CONTROL.search(str(XalignError(f"{evil}: no")))
    assert "[red]red[/]" in out.getvalue() or "[red]red[/]" in written[1]  # markup is text
    assert printable("a\tb\nčé 日本 عربي 👍🏽 a\u200db") == "a\tb\nčé 日本 عربي 👍🏽 a\u200db"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny(folder, 64, 2, 1500, 0)
    return folder


@pytest.mark.parametrize("name", ["m[red] [bold", "a\x1b[31mb\rc\u202e", "a\nxalign: b"])
def test_a_model_folder_may_be_called_anything(name: str, model: Path, tmp_path: Path) -> None:
    """The plan names it, and stays a plan."""
    folder = tmp_path / "models" / name
    shutil.copytree(model, folder)
    path = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    argv = ["mode=evaluate", "backbone=hf", f"backbone.name='{path}'", "lang=fin", "plan=true", "tracker=none"]
    done = forked(argv, tmp_path, without=("torch",))
    assert done.returncode == 0, done.stderr[-2000:]
    assert not CONTROL.search(done.stdout + done.stderr) and ("red" not in name or "m[red]" in done.stdout)
    assert not any(line.startswith("xalign: b") for line in (done.stdout + done.stderr).splitlines())


@pytest.fixture(scope="module")
def checked() -> Run:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(version_base="1.3", config_dir=str(package_folder("conf"))):
        config = OmegaConf.to_container(compose("config", ["backbone=tiny", "method=sft", "tracker=none", "lang=fin"]), resolve=True)
    chosen = {"method": "sft", "backbone": "tiny", "task": "lab", "data": "lab"}
    return make_run({k: v for k, v in config.items() if k != "experiments"}, chosen)


def card(run: Run, tmp_path: Path, evil: str, backbone: object = None) -> str:
    """A model card in which everything that is not ours says `evil`."""
    (tmp_path / "model").mkdir(exist_ok=True)
    chosen = {"method": "sft", "backbone": evil, "task": "lab", "data": evil}
    run = replace(run, backbone=backbone or run.backbone, choices=chosen)
    rows = [{"run": evil, "method": "sft", "lang": lang, "source": "eng", "backbone": "tiny", "task": evil, "metric": "f1", "value": 0.5,
             "se": 0.1, "n": 3, "seed": 0, "when": "after", "signature": evil, "reason": None} for lang in ("fin", "eng")]
    cost = {"seconds": 1.0, "stages": [{"label": f"model folder {evil}", "seconds": 1.0, "facts": {"n": 1}}]}
    return write_card(tmp_path / "model", run, rows, cost).read_text(encoding="utf-8")


@pytest.mark.parametrize("evil", [e for e in EVERYTHING if "\0" not in e])
def test_a_card_says_what_we_say(evil: str, checked: Run, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    text = card(checked, tmp_path, evil)
    assert not CONTROL.search(text)
    data = ModelCard(text).data
    assert data.license is None and data.library_name == "transformers" and data.language == ["fi", "en"]
    body = text.split("\n---\n", 1)[1]
    fences = body.split("```")
    assert len(fences) == 3, "no code block of theirs"
    outside = re.sub(r"(?m)^(- choices: )`.*`", r"\1", fences[0] + fences[2])
    assert not re.search(r"<(?!/?u>)[a-z!/]|(?<!\\)\]\(", outside), outside
    headings = re.findall(r"(?m)^#+ .*", body)
    assert [h for h in headings if h.startswith("## ")] == ["## Load", "## How it was made", "## Scores", "## Limits", "## Licence"]
    assert len(headings) == 6


@pytest.mark.parametrize("evil", ['" + __import__("os").system("id") + "', "\\", "\n```\n# b", "'"])
def test_the_cards_code_is_ours(evil: str, checked: Run, tmp_path: Path) -> None:
    import ast

    code = card(checked, tmp_path, "x", E5Small(prefix=evil)).split("```python\n")[1].split("\n```")[0]
    names = {n.id for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Name)}
    assert "__import__" not in names


@pytest.mark.parametrize("text", ["$\\frac{", "$x$", "\x1b[31m"])
def test_a_plot_shows_text_as_it_is(text: str, tmp_path: Path) -> None:
    with warnings.catch_warnings(), rc_context(STYLE):
        warnings.simplefilter("ignore")
        figure = new_plot("p", 2, 2)
        axis = figure.subplots()
        axis.set_title(text)
        axis.set_xscale("log")
        save(figure, tmp_path / "p.png")
    assert not axis.title.get_parse_math()


def test_the_command_on_the_page_is_one_command(written: tuple[Path, str], tmp_path: Path) -> None:
    """Pasted into a shell, it starts one program with arguments."""
    import shlex

    from xalign.report.repeat import repeat_command

    for run in load_runs([written[0].parent / "runs"]):
        command = repeat_command(run)
        assert shlex.split(command)[:3] == ["python", "-m", "xalign"] and all("=" in word for word in shlex.split(command)[3:])
        bare = re.sub(r"'[^']*'", "", command)
        assert not re.search(r"[;&|<>$`\n\r(){}*?!#~\\]", bare.replace('"\'"', "")), bare
        assert not CONTROL.search(command)


@pytest.mark.parametrize("argv", [["+x._target_=os.system", "+x.command=touch planted"], ["method._target_=os.system"], ["task=../../x"],
                                  ["backbone=../x"],
                                  ["+hydra.callbacks.x._target_=subprocess.Popen", "+hydra.callbacks.x.args=[touch,planted]"],
                                  ["-m", "hydra.launcher._target_=subprocess.Popen", "plan=false"]])
def test_a_class_or_a_path_on_the_command_line_is_refused(argv: list[str], tmp_path: Path) -> None:
    done = forked(["lang=fin", *TINY[:1], "plan=true", *argv], tmp_path, without=("torch",))
    refusal(done)
    assert not list(tmp_path.rglob("planted")) and (argv[0] == "-m" or not list(tmp_path.rglob("*")))


def test_a_link_in_a_model_is_not_published(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "secret.txt").write_text("private")
    (tmp_path / "model" / "notes.txt").symlink_to(tmp_path / "secret.txt")
    assert any("notes.txt: is a link" in line for line in problems(tmp_path / "model"))
