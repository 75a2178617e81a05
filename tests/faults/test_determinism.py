"""The same command and seed give the same bytes; what may not is said."""
from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import TINY
from faultkit import forked

# another order of every directory listing
SHUFFLED = """
import os
listed, scanned = os.listdir, os.scandir
os.listdir = lambda *a: sorted(listed(*a), key=lambda name: str(name)[::-1], reverse=True)
class Scan:
    def __init__(self, *a):
        with scanned(*a) as entries:
            self.entries = iter(sorted(entries, key=lambda e: str(e.name)[::-1], reverse=True))
    __iter__ = lambda self: self
    __next__ = lambda self: next(self.entries)
    __enter__ = lambda self: self
    __exit__ = close = lambda self, *a: None
os.scandir = Scan
"""
SDRRL = ["method=sdrrl", "lang=fin", *TINY]
STUDY = ["mode=study", "backbone=tiny_encoder", "lang=[fin,jpn]", "tracker=none", "study=representations", "study.text=files"]


def start(root: Path, argv: Sequence[str], parallel: Path, env: dict[str, str], *more: str) -> subprocess.Popen[str]:
    """The command in a new process, with a cache of its own."""
    root.mkdir(parents=True)
    given = [f"parallel.path={parallel}"] if "parallel=files" in argv else [f"study.path={parallel}"]
    return subprocess.Popen([sys.executable, "-m", "xalign", *argv, *given, f"cache='{root / 'cache'}'", *more], cwd=root,
                            env={**os.environ, "OMP_NUM_THREADS": "1", **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def content(run: Path) -> dict[str, str]:
    """File → digest of all that a run computed; the rest of its folder is what it cost, when and where."""
    apart = {"run.json", "receipts.json", "cost.jsonl", "config.yaml", "log.jsonl", "README.md", ".lock", "receipt.json"}
    found = {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(run.rglob("*"))
             if p.is_file() and p.name not in apart}
    if (run / "log.jsonl").is_file():
        found["log.jsonl"] = json.dumps([{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"}
                                         for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()])
    return found


def finished(process: subprocess.Popen[str], runs: Path) -> Path:
    out, err = process.communicate(timeout=170)
    assert process.returncode == 0, out[-1500:] + err[-3000:]
    [run] = [p.parent for p in runs.glob("*/run.json")]
    return run


def twice(tmp_path: Path, argv: Sequence[str], parallel: Path) -> tuple[Path, Path]:
    """The runs of two processes at once that share nothing: hash seed, locale, time zone, width, folders and their order all differ."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SHUFFLED, encoding="utf-8")
    one = start(tmp_path / "one", argv, parallel, {"PYTHONHASHSEED": "1", "LC_ALL": "C.UTF-8", "TZ": "UTC", "COLUMNS": "200"})
    other = {"PYTHONHASHSEED": "77", "PYTHONPATH": str(tmp_path / "site"), "LC_ALL": "C", "LANG": "tr_TR.UTF-8", "TZ": "Asia/Tokyo",
             "COLUMNS": "40", "LINES": "5", "NO_COLOR": "1"}
    two = start(tmp_path / "quite another" / "place ü", argv, parallel, other, "runs=else/where")
    return finished(one, tmp_path / "one/runs"), finished(two, tmp_path / "quite another/place ü/else/where")


def same(one: Path, two: Path, least: int) -> None:
    a, b = content(one), content(two)
    assert one.name == two.name and list(a) == list(b) and len(a) >= least, sorted(set(a) ^ set(b))
    assert [name for name in a if a[name] != b[name]] == []


def test_the_same_command_gives_the_same_bytes_elsewhere(tmp_path: Path, parallel_files: Path) -> None:
    one, two = twice(tmp_path, SDRRL, parallel_files)
    same(one, two, 10)
    assert {"rows.jsonl", "model/model.safetensors", "predictions/after/fin/choice.jsonl"} <= set(content(one))
    for run in (one, two):
        assert json.loads((run / "run.json").read_text(encoding="utf-8"))["repeatable"] == "yes, on CPU with 1 thread"
        assert "- repeatable: yes, on CPU with 1 thread\n" in (run / "model/README.md").read_text(encoding="utf-8")
    keys = [[(r["name"], r["key"], {n: f["sha256"] for n, f in r["files"].items() if n != "log.jsonl"})
             for r in json.loads((run / "receipts.json").read_text(encoding="utf-8"))] for run in (one, two)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("kind", ["chat", "similarity", "cross"])
def test_a_model_saved_again_has_the_same_bytes(kind: str, tmp_path: Path) -> None:
    from test_properties_models import backbone

    model, found = backbone(kind), set()
    for k in range(8):  # what a hash map orders is another order at each time
        (tmp_path / str(k)).mkdir()
        model.save(tmp_path / str(k))
        found.add(tuple((p.name, p.read_bytes()) for p in sorted((tmp_path / str(k)).iterdir())))
    assert len(found) == 1


@pytest.mark.long
@pytest.mark.parametrize("argv", [
    ["method=ml_dft", "lang=jpn", *TINY, "backbone=tiny_encoder"], ["method=sft", "lang=fin", *TINY, "backbone=tiny_encoder"],
    ["mode=evaluate", "lang=fin", *TINY, "task.max_new_tokens=40", "task.answer_tokens=40", "task.open_items=30", "task.phrases=30"],
    ["method=rl_ia", "lang=fin", *TINY], ["method=coit", "lang=fin", *TINY], ["method=cit", "lang=fin", *TINY],
    ["method=t_sft", "lang=fin", *TINY, "trainer.adapter=lora", "trainer.lora_dropout=0.2", "trainer.packing=false"], STUDY])
def test_other_commands_give_the_same_bytes_elsewhere_too(argv: list[str], tmp_path: Path, parallel_files: Path) -> None:
    same(*twice(tmp_path, argv, parallel_files), 2)


@pytest.mark.long
def test_another_seed_gives_another_model_and_two_threads_the_same_one_twice(tmp_path: Path, parallel_files: Path) -> None:
    def pair(*runs: tuple[str, dict[str, str], str]) -> list[dict[str, str]]:
        begun = [(name, start(tmp_path / name, SDRRL, parallel_files, env, more)) for name, env, more in runs]
        return [content(finished(process, tmp_path / name / "runs")) for name, process in begun]

    first, second = pair(("first", {}, "seed=0"), ("second", {}, "seed=1"))
    assert first["model/model.safetensors"] != second["model/model.safetensors"] and first["rows.jsonl"] != second["rows.jsonl"]
    threads = {"OMP_NUM_THREADS": "2"}
    two = pair(("third", threads, "seed=0")) + pair(("fourth", threads, "seed=0"))
    assert two[0] == two[1] and set(two[0]) == set(first)


@pytest.mark.long
def test_a_study_of_finished_runs_draws_the_same_resamples(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from test_scaling import LAW, curve

    runs = tmp_path / "runs"
    runs.mkdir()
    for lang in ("fin", "jpn"):
        curve(runs, lang, LAW)
    found = []
    for seed in ("1", "2"):
        out = tmp_path / f"out{seed}"
        done = subprocess.run([sys.executable, "-m", "xalign", "study", "scaling", str(runs), "resamples=200", "--out", str(out)],
                              cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append({p.name: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()} | {"": done.stdout.replace(str(out), "")})
    assert found[0] == found[1] and {"law.yaml", "scaling.csv"} <= set(found[0])


def test_a_terminal_of_another_encoding_shows_what_it_can(tmp_path: Path, parallel_files: Path, cache: Path) -> None:
    def before() -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]

    done = forked([*SDRRL[:2], "backbone=tiny", "parallel=files", f"parallel.path={parallel_files}", "tracker=none", "plan=true",
                   f"cache={cache}"], tmp_path, before=before)
    assert done.returncode == 0 and "eng ? fin" in done.stdout, done.stderr


# ---- what does not repeat is said

@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str, list[str]]]:
    """(plan's line, record, reasons on a GPU) of a composed run; `gpu`: as on a machine that has one."""
    from test_cases import checked

    from xalign.training import memory, repeatable

    def of(*overrides: str, gpu: bool = False, world: int = 1, workspace: str = "") -> tuple[str, str, list[str]]:
        monkeypatch.setattr(repeatable, "has_gpu", lambda: gpu)
        monkeypatch.setattr(memory, "has_gpu", lambda: gpu)
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
        run = checked("study=none", "tracker=none", *overrides)
        return repeatable.planned(run, world), repeatable.repeatable(run, world), repeatable.breaks(run, world)

    return of


def test_on_a_cpu_nothing_is_listed_and_the_threads_are_named(planned) -> None:
    line, record, _ = planned("method=sdrrl")
    assert line == "" and record == "yes, on CPU with 1 thread"
    assert planned("method=sdrrl", world=2)[1] == "yes, on CPU with 1 thread in each of 2 processes"


@pytest.mark.parametrize("overrides, more, said", [
    (["method=sdrrl"], {}, "trainer.attention=auto: the backward pass of flash's kernels adds in no fixed order; eager does not"),
    (["method=sdrrl", "trainer.precision=fp32"], {}, "trainer.attention=auto: the backward pass of SDPA's"),
    (["method=sdrrl", "trainer.attention=sdpa"], {}, "trainer.attention=sdpa"),
    (["method=sft", "backbone=tiny_encoder"], {}, "trainer.attention=auto: the backward pass of SDPA's kernels adds in no fixed order"),
    (["method=sft", "trainer.compile=true"], {}, "trainer.compile=true"), (["method=rl_ia"], {}, "method=rl_ia"),
    (["method=sft"], {"world": 4}, "4 processes: NCCL"), (["method=sft"], {}, "CUBLAS_WORKSPACE_CONFIG is not set to :4096:8"),
    (["mode=evaluate"], {}, "generation: a batch has as many answers")])
def test_on_a_gpu_every_setting_that_breaks_it_is_named(planned, overrides, more, said) -> None:
    line, record, reasons = planned(*overrides, gpu=True, **more)
    assert any(r.startswith(said) for r in reasons), reasons
    assert said in line and line.startswith("not repeatable bit for bit on a GPU: ") and record.startswith("not bit for bit: ")


def test_what_does_not_break_it_is_not_named(planned) -> None:
    for workspace in (":4096:8", ":16:8"):
        line, record, reasons = planned("method=sft", "trainer.attention=eager", "backbone=tiny_encoder", "mode=evaluate", gpu=True,
                                        workspace=workspace)
        assert (line, record, reasons) == ("", "nothing known against it", [])
    reasons = planned("method=sft", "trainer.attention=eager", gpu=True, workspace=":4096:8")[2]
    assert [r.split(":")[0] for r in reasons] == ["generation"]


def test_a_service_is_named_on_a_cpu_too(planned) -> None:
    line, record, _ = planned("method=sft", "metric.judge.url=http://127.0.0.1:9/v1", "metric.judge.model=x")
    assert line == "not repeatable bit for bit: metric.judge: a service need not say the same twice" and line.split(": ", 1)[1] in record


def test_the_plan_of_a_gpu_run_names_them_without_torch(tmp_path: Path, parallel_files: Path) -> None:
    done = forked(["method=sft", "lang=fin", "backbone=tiny", "tracker=none", "plan=true", "trainer.precision=bf16", f"cache={tmp_path}"],
                  tmp_path, without=("torch",))
    assert done.returncode == 0 and "not repeatable bit for bit on a GPU: trainer.attention=auto: " in done.stdout, done.stderr
