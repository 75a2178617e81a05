"""LaTeX tables: what a strict reading of them finds, escaping, marks, blocks. There is no TeX here: a small checker stands for it."""
from __future__ import annotations

import re

import pytest

from xalign.report.latex import escape, latex
from xalign.tables import Grid

NASTY = "a&b 50% $5 #1 x_y {z} ~ ^ \\cmd <t> |p| \"q\" [o] * ±.1 →"


def check(text: str) -> list[list[str]]:
    """Braces and environments balance, specials are escaped, every row of a tabular fills its columns; returns the cells."""
    text = re.sub(r"(?m)(?<!\\)%.*$", "", text)
    assert text.isascii(), set(re.findall(r"[^\x00-\x7f]", text))
    bare = re.sub(r"\\[\\{}%&$#_]", "", text)
    depth = 0
    for c in bare:
        depth += (c == "{") - (c == "}")
        assert depth >= 0
    assert depth == 0 and bare.count("$") % 2 == 0
    math = re.sub(r"\$[^$]*\$", "", bare)
    assert not re.search(r"[_^#~<>|\"]", re.sub(r"\\(label|cmidrule)\S*|\\begin{tabular}{.*}|p\$<\$", "", math)), math
    stack: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    cells = []
    for columns, body in re.findall(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}(.*?)\\end\{tabular\}", text, re.S):
        body = re.sub(r"\\(toprule|midrule|bottomrule|cmidrule(\(lr\))?\{\d+-\d+\})", "", body)
        rows = re.split(r"(?<!\\)\\\\\s", body)
        assert not rows.pop().strip()
        for row in rows:
            assert not re.match(r"\s*[\[*]", row)  # an argument of the \\ before it
            parts = re.split(r"(?<!\\)&", row)
            spans = [int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", row)]
            assert len(parts) + sum(spans) == len(columns), row
            cells.append([part.strip() for part in parts])
    return cells


def grid() -> Grid:
    rows = [["target languages"], ["untrained", ".269 ±.032", "–"], ["sdrrl code_switch=0.15", ".331** ±.036", "12.4"],
            ["sft", "absent", "-3.0*"], ["[x] 100%", ".5 ±.1", "405–410"], ["source: English (eng)"], ["*", "a", "b_c"]]
    return Grid("choice accuracy_raw by method & lang", ["", "fin", "jpn"], rows, ["* p<.05; off_target: lower is better"], dim={1},
                marks={(2, 1): "best", (4, 1): "second", (3, 2): "best"}, groups=[(1, 1, "choice raw_x"), (2, 2, "open f1")])


def test_a_table_is_sound_and_marked():
    cells = check(latex([grid()]))
    assert cells[0] == ["", r"\multicolumn{1}{c}{choice raw\_x}", r"\multicolumn{1}{c}{open f1}"] and cells[1] == ["", "fin", "jpn"]
    assert cells[2] == [r"\multicolumn{3}{@{}l}{\textit{target languages}}"]
    assert cells[3] == ["untrained", r".269 {\scriptsize$\pm$.032}", "--"]
    assert cells[4] == [r"sdrrl code\_switch=0.15", r"\textbf{.331}$^{**}$ {\scriptsize$\pm$.036}", "12.4"]
    assert cells[5] == ["sft", "absent", r"\textbf{$-$3.0}$^{*}$"]
    assert cells[6][1:] == [r"\underline{.5} {\scriptsize$\pm$.1}", "405--410"] and cells[6][0] == r"{[}x] 100\%"
    text = latex([grid()])
    assert r"\caption{choice accuracy\_raw by method \& lang}" in text and r"\label{tab:choice-accuracy-raw-by-method-lang}" in text
    assert text.count(r"\cmidrule{1-3}") == 1  # between the reference rows and the systems
    assert r"{*} p$<$.05; off\_target: lower is better\par" in text
    assert text.startswith("% \\usepackage{booktabs} in the preamble\n")


def test_every_text_is_escaped():
    g = Grid(NASTY, ["", NASTY], [[NASTY], [NASTY, NASTY], ["plain", NASTY + "\nsecond line"]], [NASTY], groups=[(1, 1, NASTY)])
    cells = check(latex([g]))
    assert cells[-1][0] == "plain"
    assert escape(NASTY) == (r"a\&b 50\% \$5 \#1 x\_y \{z\} \textasciitilde{} \textasciicircum{} \textbackslash{}cmd $<$t$>$ $|$p$|$ "
                             r"''q'' {[}o] {*} $\pm$.1 $\rightarrow$")


def test_wide_tables_span_the_page_and_labels_are_unique():
    wide = Grid("t", ["", *"abcdefghijkl"], [["x", *[".1"] * 12]])
    text = latex([wide, wide])
    assert len(check(text)) == 4 and "graphicx" in text and text.count(r"\resizebox{\textwidth}{!}{%") == 2
    assert re.findall(r"\\label\{(.*)\}", text) == ["tab:t", "tab:t-2"]


@pytest.mark.parametrize("broken", [r"\begin{tabular}{@{}lr@{}} a & b & c \\ " + "\n" + r"\end{tabular}", r"\textbf{a", "50 $", "x_y"])
def test_the_checker_finds_what_is_wrong(broken):
    with pytest.raises(AssertionError):
        check(broken)
