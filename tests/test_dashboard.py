"""The dashboard is built offline and names what runs write (`test_recording` compares it with a run's record)."""
from __future__ import annotations

import json

import pytest

from xalign import dashboard

pytest.importorskip("wandb_workspaces")


def test_a_dry_run_writes_the_panels(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    path = tmp_path / "d.json"
    assert dashboard.main(["--entity", "me", "--project", "p", "--score", "open/f1", "--dry-run", str(path)]) == 0
    assert "20 panels in 4 sections" in capsys.readouterr().out
    made = json.loads(path.read_text())
    assert (made["entity"], made["project"]) == ("me", "p")
    sections = {s["name"]: s["panels"] for s in made["spec"]["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == ["Scores", "Training", "Cost", "Tables and pictures"]
    first = sections["Scores"][0]
    assert first["viewType"] == "Bar Chart" and first["config"]["metrics"] == ["target/open/f1"]
    assert first["config"]["groupBy"] == "method.value" and first["config"]["groupAgg"] == "mean"
    assert {p["config"]["xAxis"] for p in sections["Training"]} == {"step"}
    table = made["spec"]["section"]["runSets"][0]
    assert table["sort"]["keys"][0]["key"]["name"] == "target/open/f1" and table["sort"]["keys"][0]["ascending"] is False


@pytest.mark.parametrize(("argv", "says"), [(["--entity", "me"], "no W&B key found"),
                                            (["--entity", "me", "--score", "accuracy", "--dry-run"], "write TASK/METRIC")])
def test_mistakes_are_one_line_and_exit_code_2(argv, says, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.chdir(tmp_path)
    assert dashboard.main(argv) == 2
    err = capsys.readouterr().err
    assert says in err and len(err.strip().splitlines()) == 1 and not list(tmp_path.iterdir())
