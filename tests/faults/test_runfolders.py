"""Damage to a run's folder: reports refuse it by name, and repeating the command makes it whole."""
from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from conftest import TINY
from faultkit import forked, refusal
from test_artifacts import CONTENT, damages, refused, small

from xalign import results
from xalign.cache import RECEIPT, Cache, Stage
from xalign.digests import files_below, write_sealed
from xalign.plan import studied
from xalign.report.runs import load_runs
from xalign.rows import read_rows
from xalign.runfiles import CARD, FACTS, check, check_path, read_facts, sound, write_facts


def written(folder: Path) -> Path:
    """A run's folder as a run leaves it, in small."""
    row = {"run": folder.name, "method": "sft", "lang": "fin", "source": "eng", "backbone": "tiny", "task": "choice", "metric": "accuracy",
           "value": 0.5, "n": 2, "seed": 0}
    texts = {"config.yaml": "mode: train\nchoices:\n  method: sft\n", "cost.jsonl": '{"kind": "train"}\n', "log.jsonl": '{"step": 1}\n',
             "receipts.json": "[]\n", "rows.jsonl": "".join(json.dumps(row | {"when": w}) + "\n" for w in ("before", "after")),
             "predictions/before/fin/choice.jsonl": '{"id": "a"}\n', "study/letters/before/layers.jsonl": "{}\n",
             "model/config.json": "{}\n", CARD: "---\nlanguage: fi\n---\n"}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    write_sealed(folder / "study/letters/before" / RECEIPT, {"name": "letters", "key": "k", "files": {}, "facts": {}})
    write_facts(folder, {"name": folder.name, "mode": "train", "cost": {"seconds": 1.5}})
    return folder


def test_every_flipped_byte_and_every_truncation_in_a_run_folder_is_refused_by_name(tmp_path):
    folder = written(tmp_path / "run")
    assert sound(folder) and check(folder)["cost"] == {"seconds": 1.5} and load_runs([folder])[0].facts["mode"] == "train"
    checked = 0
    for path in files_below(folder):
        content, name = path.read_bytes(), path.relative_to(folder).as_posix()
        read = check_path if name.startswith("model/") else check  # a report does not read the model
        for i, damaged in enumerate(damages(content)):
            path.write_bytes(damaged)
            said = refused(lambda read=read: read(folder))
            if name == CARD:  # people write into it
                assert sound(folder) and not said
                continue
            assert str(path) in said and "repeat the run's command" in said, (path, damaged)
            assert i % 9 or not sound(folder)
            checked += 1
        path.write_bytes(content)
    assert checked > 3000 and sound(folder)


@pytest.mark.parametrize("name", ["rows.jsonl", "config.yaml", "predictions/before/fin/choice.jsonl", f"study/letters/before/{RECEIPT}",
                                  FACTS])
def test_reports_refuse_a_run_by_the_file_that_was_changed(tmp_path, name):
    folder = written(tmp_path / "run")
    (folder / name).write_bytes((folder / name).read_bytes().replace(b"\n", b"3", 1))
    assert f"{folder / name}: " in refused(lambda: load_runs([folder]))
    (folder / name).unlink()
    assert name.partition("/")[0] in refused(lambda: load_runs([folder])) and not sound(folder)


def test_rows_added_doubled_or_left_out_are_noticed(tmp_path):
    folder = written(tmp_path / "run")
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    for changed in (lines[:1], lines + lines[-1:], lines[::-1], [lines[0].replace("0.5", "0.6"), lines[1]]):
        (folder / "rows.jsonl").write_text("".join(changed))
        assert "rows.jsonl: was changed since the run wrote it; repeat the run's command" in refused(lambda: load_runs([folder]))


def test_a_file_added_to_predictions_is_refused_and_one_beside_the_run_is_not(tmp_path):
    folder = written(tmp_path / "run")
    for name in ("notes.txt", "tracker.json", ".lock", "wandb/x.json", "study/letters/tables.md", "model/extra.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    assert sound(folder) and check(folder)
    added = folder / "predictions" / "before" / "fin" / "more.jsonl"
    added.write_text("{}\n")
    for work in (sound, check):
        assert f"{added}: is no file of this run; move it elsewhere" in refused(lambda work=work: work(folder))
    assert added.is_file()


def test_a_run_copied_without_its_large_folders_is_read_but_not_finished(tmp_path):
    folder = written(tmp_path / "run")
    for name in ("model", "predictions", "study"):
        shutil.rmtree(folder / name)
        assert load_runs([folder]) and not sound(folder)


def test_a_run_cut_off_before_run_json_is_not_finished_and_one_of_an_older_version_is_read(tmp_path):
    folder = written(tmp_path / "run")
    facts = {k: v for k, v in read_facts(folder).items() if k != "files"}
    (folder / FACTS).unlink()
    for read in (lambda: load_runs([folder]), lambda: read_rows(folder)):
        assert "the run is not finished, repeat its command" in refused(read)
    assert not sound(folder)
    (folder / FACTS).write_text(json.dumps(facts))
    assert load_runs([folder])[0].facts == facts and not sound(folder)  # its command writes it anew
    for text in ("", "{", "[]", json.dumps(facts | {"files": {}}), json.dumps(facts | {"digest": ""})):
        (folder / FACTS).write_text(text)
        assert f"{folder / FACTS}: is damaged; repeat the run's command" in refused(lambda: load_runs([folder]))


def test_a_study_that_another_command_left_is_kept_if_it_is_whole(tmp_path):
    folder, said = written(tmp_path / "run"), []
    artifact = Cache(tmp_path / "cache").get(small("other"))
    results.export_studied(folder, {"before": artifact}, said.append)
    assert (folder / "study/other/before/words.jsonl").is_file() and (folder / "study/letters/before").is_dir() and not said
    (folder / "study/other/before/words.jsonl").write_text("")
    results.export_studied(folder, {}, said.append)
    assert len(said) == 1 and "repeat the command with study=other" in said[0] and not (folder / "study/other/before").exists()
    plan = type("P", (), {"studied": {"before": Stage("letters", 1, {}, small().work)}})
    (folder / "study/letters/before" / RECEIPT).write_text("[]")
    assert not studied(folder, plan)


def test_an_edit_in_a_run_leaves_the_cache_alone_and_only_weights_are_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "LARGE", 20)
    artifact = Cache(tmp_path).get(small())
    for name, shared in (("words.jsonl", True), ("deep/er/table.tsv", False)):
        target = tmp_path / "run" / name
        for _ in range(2):  # over one that is there
            results.export(artifact.file(name), target)
        assert target.samefile(artifact.file(name)) is shared and target.read_bytes() == CONTENT[name]


# a whole run, its command repeated

@pytest.fixture(scope="module")
def argv(parallel_files) -> list[str]:
    return ["method=sdrrl", "lang=fin", *TINY, "study=similarity", f"parallel.path={parallel_files}", "cache=cache"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, argv) -> tuple[Path, dict[str, bytes]]:
    """A folder with cache/ and the folder of one run, and what the tests compare: rows and predictions of the undisturbed run."""
    import torch  # noqa: F401  # the forked commands find it imported
    import transformers  # noqa: F401

    folder = tmp_path_factory.mktemp("whole")
    done = forked(argv, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, results_of(folder)


def results_of(folder: Path) -> dict[str, bytes]:
    (run,) = (folder / "runs").glob("sdrrl-fin-*")
    assert not refused(lambda: check(run)) and not refused(lambda: check_path(run))
    return {str(p.relative_to(folder)): p.read_bytes() for p in [run / "rows.jsonl", *files_below(run / "predictions")]}


def kinds(folder: Path) -> dict[str, Path]:
    """Stage and file name, or place in the run's folder → one file of the kind; the card, which people edit, left out."""
    (run,) = (folder / "runs").glob("sdrrl-fin-*")
    found = {f"cache {p.relative_to(folder).parts[1]} {p.name}": p for p in files_below(folder / "cache") if p.suffix != ".lock"}
    for p in files_below(run):
        name = p.relative_to(run).as_posix()
        if p.name != ".lock" and name != CARD and not (name.startswith("study/") and p.parent.name not in ("before", "after")):
            found[f"run {name.partition('/')[0]} {p.name}"] = p
    return found


def damaged(path: Path, damage: str, seed: int = 0) -> None:
    """Flip one bit of a file, or cut it, at a place drawn by its name."""
    content, rng = path.read_bytes(), random.Random(f"{path.name} {seed}")
    place = rng.randrange(len(content))
    path.write_bytes(content[:place] if damage == "cut" else content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)])
                     + content[place + 1:])


def healed(whole: tuple[Path, dict[str, bytes]], argv: list[str]) -> str:
    """Repeat the command: all is as it was. Returns what was printed."""
    folder, expected = whole
    done = forked(argv, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "finished earlier" not in done.stdout and results_of(folder) == expected
    return " ".join(done.stdout.split())


def test_repeating_the_command_makes_a_damaged_run_whole(whole, argv):
    damaged(kinds(whole[0])["run predictions choice.jsonl"], "flip")
    assert "making it again" not in healed(whole, argv)
    again = forked(argv, whole[0])
    assert again.returncode == 0 and "finished earlier" in again.stdout, again.stderr


def test_repeating_the_command_makes_everything_whole_at_once(whole, argv):
    found = {kind: path for kind, path in kinds(whole[0]).items() if path.stat().st_size}
    assert len(found) > 45
    for i, path in enumerate(found.values()):
        damaged(path, "cut" if i % 2 else "flip")
    said = healed(whole, argv)
    assert said.count("making it again") >= len({kind.split()[1] for kind in found if kind.startswith("cache")})


@pytest.mark.long
@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_every_kind_of_file_of_a_run_and_its_cache_is_made_again(whole, argv, damage, part):
    found = [kind for kind, path in sorted(kinds(whole[0]).items()) if path.stat().st_size]
    assert len(found) > 45
    for kind in found[part::5]:
        damaged(kinds(whole[0])[kind], damage, seed=1)
        assert ("making it again" in healed(whole, argv)) is kind.startswith("cache"), kind


@pytest.mark.long
@pytest.mark.parametrize("shared", [True, False])
def test_weights_that_run_and_cache_share_are_made_again_for_both(whole, argv, shared, monkeypatch):
    monkeypatch.setattr(results, "LARGE", 1000 if shared else 2**40)
    folder, _ = whole
    (run,) = (folder / "runs").glob("sdrrl-fin-*")
    (run / FACTS).unlink()  # so that the model is exported anew
    assert forked(argv, folder).returncode == 0
    weights, artifact = run / "model" / "model.safetensors", next((folder / "cache" / "train").glob("*/model.safetensors"))
    assert weights.samefile(artifact) is shared
    damaged(weights, "flip")
    assert ("making it again" in healed(whole, argv)) is shared


def test_commands_that_read_a_run_refuse_it_by_the_damaged_file(whole):
    folder, _ = whole
    (run,) = (folder / "runs").glob("sdrrl-fin-*")
    commands = {"report": ["report", str(run)], "compare": ["compare", str(run)], "study": ["study", "similarity", str(run)]}
    push = {"push": ["push", str(run), "me/model", "--dry-run"]}
    for name, readers in (("rows.jsonl", commands), ("config.yaml", commands), ("predictions/after/fin/per_example_scores.jsonl", commands),
                          (FACTS, commands | push), ("model/model.safetensors", push), ("model/config.json", push)):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        for argv in readers.values():
            line = refusal(forked(argv, folder, without=("torch",)))
            assert str(run / name) in line and "repeat the run's command" in line
        (run / name).write_bytes(content)
    for argv in (commands | push).values():
        done = forked(argv, folder, without=("torch",))
        assert not done.returncode, done.stderr


def test_planning_with_a_damaged_cache_computes_nothing(whole, argv):
    folder, _ = whole
    saved = {kinds(folder)[kind]: b"" for kind in ("cache score receipt.json", "cache tiny config.json")}
    saved = {path: path.read_bytes() for path in saved}
    for path, content in saved.items():
        path.write_bytes(content[:-5])
    for more in ([], ["-m"]):
        done = forked([*more, *argv, "plan=true"], folder, without=("torch",))
        assert not done.returncode and "making it again" not in done.stdout, done.stderr
    assert all(path.read_bytes() == content[:-5] for path, content in saved.items())
    for path, content in saved.items():
        path.write_bytes(content)
