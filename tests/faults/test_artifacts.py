"""Damage to what was written: not one byte of an artifact or a run can change, go missing or be added unnoticed."""
from __future__ import annotations

import errno
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import TINY
from faultkit import forked, refusal

from xalign import cache as module
from xalign import digests, results
from xalign.cache import RECEIPT, Artifact, Cache, Stage
from xalign.config import XalignError
from xalign.digests import files_below, read_sealed, write_sealed
from xalign.plan import studied
from xalign.report.runs import load_runs
from xalign.runfiles import CARD, FACTS, check, check_path, read_facts, sound, write_facts

CONTENT = {"words.jsonl": b'{"id": "a", "text": "p\xc3\xa4iv\xc3\xa4"}\n{"id": "b", "text": ""}\n', "deep/er/table.tsv": b"1\t2\n",
           "empty": b""}


def small(name: str = "small", **facts) -> Stage:
    """A stage of three little files; its facts hold what JSON has: numbers of all kinds, text, nesting."""
    def work(folder: Path, inputs: list[Artifact]) -> dict:
        for path, content in CONTENT.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return {"n": 2, "share": 1e-07, "by": {3: "ä\u2028", "none": None}, **facts}

    return Stage(name, 1, {"seed": 0}, work)


def damages(content: bytes) -> Iterator[bytes]:
    """Every byte with one bit flipped (which one goes round), then every truncation."""
    for i, byte in enumerate(content):
        yield content[:i] + bytes([byte ^ 1 << i % 8]) + content[i + 1:]
    yield from (content[:i] for i in range(len(content)))


def test_every_flipped_byte_and_every_truncation_of_an_artifact_is_noticed(tmp_path):
    cache, stage = Cache(tmp_path), small()
    folder = cache.get(stage).path
    checked = 0
    for path in files_below(folder):
        content = path.read_bytes()
        for damaged in damages(content):
            path.write_bytes(damaged)
            module._verified.clear()
            assert cache.find(stage) is None and cache.has(stage), (path, damaged)
            checked += 1
        path.write_bytes(content)
    assert checked > 2 * 900  # the receipt alone has more than 900 bytes
    assert Cache(tmp_path).sound(stage) and cache.find(stage)


def test_facts_come_back_as_they_are_given_out_the_first_time(tmp_path):
    first = Cache(tmp_path).get(small())
    assert first.receipt == Cache(tmp_path).get(small()).receipt and first.receipt["facts"]["by"] == {"3": "ä\u2028", "none": None}


def reseal(folder: Path, change: Callable[[dict], object]) -> None:
    value = read_sealed(folder / RECEIPT)
    change(value)
    write_sealed(folder / RECEIPT, value)


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    digests.remove(path)
    make(path)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a receipt that is a list": (lambda f: (f / RECEIPT).write_text("[]\n"), "receipt is damaged"),
    "a receipt without files": (lambda f: (f / RECEIPT).write_text('{"facts": {}}\n'), "receipt is damaged"),
    "a receipt of an older version": (lambda f: (f / RECEIPT).write_text(json.dumps(read_sealed(f / RECEIPT))), "receipt is damaged"),
    "an empty receipt": (lambda f: (f / RECEIPT).write_bytes(b""), "receipt is damaged"),
    "nested without end": (lambda f: (f / RECEIPT).write_text("[" * 200_000), "receipt is damaged"),
    "the receipt of another stage": (lambda f: reseal(f, lambda v: v.update(key="0" * 20)), "receipt is damaged"),
    "a folder for the receipt": (lambda f: replaced(f / RECEIPT, Path.mkdir), "receipt is damaged"),
    "no receipt": (lambda f: (f / RECEIPT).unlink(), ""),
    "a missing file": (lambda f: (f / "empty").unlink(), "file empty is missing or changed"),
    "a folder for a file": (lambda f: replaced(f / "words.jsonl", Path.mkdir), "file words.jsonl is missing or changed"),
    "a file for a folder": (lambda f: replaced(f / "deep", Path.touch), "file deep/er/table.tsv is missing or changed"),
    "a pipe for an empty file": (lambda f: replaced(f / "empty", os.mkfifo), "file empty is missing or changed"),
    "a link to nothing": (lambda f: replaced(f / "empty", lambda p: p.symlink_to("nowhere")), "file empty is missing or changed"),
    "a file for the artifact": (lambda f: replaced(f, Path.touch), ""),
    "a link to nothing for the artifact": (lambda f: replaced(f, lambda p: p.symlink_to("nowhere")), ""),
    "a file for the unfinished folder": (lambda f: (replaced(f, Path.mkdir), f.with_name(f.name + ".partial").touch()), ""),
    "what a killed exchange left": (lambda f: f.rename(f.with_name(f.name + ".old")), ""),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("resumable", [False, True])
def test_a_damaged_artifact_is_made_again_with_one_line(tmp_path, fault, resumable):
    stage, lines = small(), []
    stage = Stage(stage.name, 1, {}, stage.work, resumable=resumable)
    folder = Cache(tmp_path).get(stage).path
    damage, says = FAULTS[fault]
    damage(folder)
    module._verified.clear()
    cache = Cache(tmp_path, lines.append)
    assert not cache.sound(stage) and cache.find(stage) is None and not lines
    found = cache.get(stage)
    assert {n: found.file(n).read_bytes() for n in CONTENT} == CONTENT
    assert lines == [*([f"small: the cached {says}; making it again" if "receipt" in says else f"small: cached {says}; making it again"]
                       if says else []), "small …"]
    assert cache.made == {stage.key}
    module._verified.clear()
    assert Cache(tmp_path).get(stage).receipt == found.receipt
    assert sorted(p.name for p in folder.parent.iterdir()) == [stage.key, stage.key + ".lock"]


def test_a_file_added_to_an_artifact_is_refused_by_name_and_nothing_is_lost(tmp_path):
    cache, stage = Cache(tmp_path), small()
    folder = cache.get(stage).path
    for name in (".nfs000001", ".DS_Store"):
        (folder / name).write_text("of the file system")
    module._verified.clear()
    assert cache.sound(stage) and cache.find(stage)
    for name in ("more.jsonl", "deep/er/more.tsv", ".hidden.jsonl"):
        added = folder / name
        for make in (Path.touch, lambda p: p.symlink_to("nowhere")):
            make(added)
            module._verified.clear()
            assert not Cache(tmp_path).sound(stage)
            with pytest.raises(XalignError, match=f"{name}: does not belong to this artifact of the cache; move it elsewhere"):
                cache.get(stage)
            assert added.is_symlink() or added.is_file()
            added.unlink()
    assert cache.get(stage).file("words.jsonl").read_bytes() == CONTENT["words.jsonl"]


@pytest.mark.parametrize("name", ["words.jsonl", RECEIPT, ""])
def test_what_cannot_be_read_is_refused_by_name(name):
    root = Path(tempfile.mkdtemp())  # not below pytest's folder, into which nobody else may look
    try:
        root.chmod(0o755)
        stage = small()
        folder = Cache(root).get(stage).path
        (folder / name).chmod(0)
        module._verified.clear()
        child = os.fork()
        if not child:
            code = 1
            try:
                if not os.geteuid():
                    os.setuid(65534)
                Cache(root).get(stage)
            except XalignError as e:
                code = 0 if f"{folder / name}: cannot be read (Permission denied); give yourself" in str(e) else 3
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        (folder / name).chmod(0o755)
        assert Cache(root).find(stage)
    finally:
        shutil.rmtree(root)


def test_a_large_file_is_read_when_it_was_written_to_or_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "LARGE", 8)
    stage = small()
    path = Cache(tmp_path).get(stage).file("words.jsonl")
    whole, times = path.read_bytes(), path.stat()
    path.write_bytes(whole[:-2] + b"!\n")
    module._verified.clear()
    assert not Cache(tmp_path).sound(stage)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a failing disk would
    assert Cache(tmp_path).sound(stage) and Cache(tmp_path).find(stage) is None
    path.write_bytes(whole[:-1])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not Cache(tmp_path).sound(stage)


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOTDIR, errno.ENOLCK, errno.EIO, errno.ENOENT])
def test_every_refusal_of_a_disk_has_a_remedy(number):
    line = str(module.disk_error(OSError(number, os.strerror(number), "/x/y"), Path("/x")))
    assert line.startswith("/x/y: ") and "cache=DIR" in line and os.strerror(number) in line or "quota" in line


# run folders

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


def refused(work: Callable[[], object]) -> str:
    try:
        work()
    except XalignError as e:
        return str(e)
    return ""


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
    assert "the run is not finished, repeat its command" in refused(lambda: load_runs([folder])) and not sound(folder)
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
