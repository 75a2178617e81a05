"""Disks that are full, read-only, too small for a file, or no folders at all: one line that names the place, exit 2, nothing lost."""
from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from conftest import TINY  # noqa: E402
from faultkit import forked, refusal  # noqa: E402
from moments import damaged, remains, warm  # noqa: E402

from xalign.cache import disk_error, disk_trouble  # noqa: E402

FULL = ("the disk is full; free some space", "cache=DIR", "repeat the command")


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    warm()


@pytest.fixture(scope="module")
def argv(parallel_files: Path) -> list[str]:
    return ["method=sft", "lang=fin", *TINY, "task.open_items=2", "task.phrases=0", "trainer.checkpoint_every=1e-9",
            f"parallel.path={parallel_files}"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, argv: list[str]) -> Path:
    """What a run with enough room leaves."""
    folder = tmp_path_factory.mktemp("whole")
    done = forked([*argv, "cache=cache"], folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@contextmanager
def small_disk(path: Path, options: str) -> Iterator[Path]:
    """A file system in memory; skips where this user may not mount one."""
    path.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(path)], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"may not mount a small disk here: {mount.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def limited(size: int) -> Callable[[], None]:
    """For `faultkit.forked`: no file may grow beyond `size` bytes, as on a file system that refuses larger ones; any user may."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def assert_kept(argv: list[str], folder: Path, whole: Path) -> None:
    """With room again the repeated command goes on from what is there, to what an undisturbed run leaves."""
    done = forked(argv, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert remains(folder / "runs") == remains(whole / "runs")
    assert not damaged(folder / "cache")


@pytest.mark.parametrize("size", [25_000, 400_000])
def test_a_file_that_may_not_grow(tmp_path: Path, argv: list[str], whole: Path, size: int) -> None:
    """In a tokenizer, in a checkpoint: every writer gets the error that it would get from a full disk, and wraps it in its own way."""
    line = refusal(forked([*argv, "cache=cache"], tmp_path, before=limited(size)))
    assert "File too large" in line and "cache" in line and "cache=DIR" in line, line
    assert not list(tmp_path.glob("runs/*/run.json"))
    assert_kept([*argv, "cache=cache"], tmp_path, whole)


@pytest.mark.long
@pytest.mark.parametrize("size", [2_000, 60_000, 150_000, 250_000, 600_000, 900_000])
def test_a_file_that_may_not_grow_anywhere(tmp_path: Path, argv: list[str], whole: Path, size: int) -> None:
    test_a_file_that_may_not_grow(tmp_path, argv, whole, size)


def full_disk(tmp_path: Path, argv: list[str], whole: Path, which: str, size: int) -> None:
    with small_disk(tmp_path / which, f"size={size}k") as disk:
        done = forked([*argv, "cache=cache"], tmp_path)
        line = refusal(done)
        assert all(word in line for word in FULL) and f"{which}" in line.split(": the disk")[0], line
        assert not list(tmp_path.glob("runs/*/run.json"))
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        assert_kept([*argv, "cache=cache"], tmp_path, whole)


@pytest.mark.parametrize(("which", "size"), [("cache", 500), ("runs", 300)])
def test_a_full_disk(tmp_path: Path, argv: list[str], whole: Path, which: str, size: int) -> None:
    full_disk(tmp_path, argv, whole, which, size)


@pytest.mark.long
@pytest.mark.parametrize(("which", "size"), [*(("cache", n) for n in (4, 60, 250, 900, 1300, 2000)), *(("runs", n) for n in (4, 32, 64))])
def test_a_full_disk_at_any_time(tmp_path: Path, argv: list[str], whole: Path, which: str, size: int) -> None:
    full_disk(tmp_path, argv, whole, which, size)


def test_a_read_only_cache_serves_what_it_has_and_says_what_it_cannot(tmp_path: Path, argv: list[str], whole: Path) -> None:
    """Mounted read-only for root, whom no permission binds; by permissions for others."""
    cache = tmp_path / "cache"
    if os.geteuid():
        shutil.copytree(whole / "cache", cache)
        for path in (cache, *cache.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        run_read_only(tmp_path, argv, whole)
        return
    with small_disk(cache, "size=50m"):
        shutil.copytree(whole / "cache", cache, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(cache)], check=True)
        run_read_only(tmp_path, argv, whole)


def run_read_only(folder: Path, argv: list[str], whole: Path) -> None:
    kept = remains(folder / "cache")
    line = refusal(forked([*argv, "cache=cache", "seed=7"], folder))
    assert "cache" in line and "not writable" in line and "cache=DIR" in line, line
    done = forked([*argv, "cache=cache"], folder)
    assert done.returncode == 0 and " miss " not in done.stdout, done.stderr[-2000:]
    assert remains(folder / "cache") == kept
    for name in [n for n in remains(whole / "runs") if n.endswith("rows.jsonl")]:
        assert (folder / "runs" / name).read_bytes() == (whole / "runs" / name).read_bytes()


def file_there(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text("a file")


def dangling(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(folder / "gone" / "away")


PLACES = {"the cache is a file": (["cache=here"], file_there("here"), ("here", "is a file; name a folder")),
          "the runs are below a file": (["cache=cache", "runs=here/runs"], file_there("here"), ("here/runs", "a file stands where")),
          "a circle of links": (["cache=here"], lambda f: (f / "here").symlink_to(f / "here"), ("here", "Too many levels")),
          "a link to nowhere": (["cache=here"], dangling("here"), ("here", "cache=DIR")),
          "too long a name": (["cache=cache", f"runs={'r' * 300}"], lambda f: None, ("rrr", "File name too long", "runs=DIR"))}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be(tmp_path: Path, argv: list[str], place: str) -> None:
    more, prepare, words = PLACES[place]
    prepare(tmp_path)
    line = refusal(forked([*argv, *more], tmp_path, without=("torch",)))
    assert all(word in line for word in words), line
    assert (tmp_path / "here").is_symlink() or not (tmp_path / "here").exists() or (tmp_path / "here").read_text() == "a file"


@pytest.mark.parametrize("command", [["mode=evaluate", "plan=true"], ["-m", "plan=true"]], ids=["run", "sweep"])
def test_a_working_directory_that_is_gone(tmp_path: Path, argv: list[str], command: list[str]) -> None:
    (tmp_path / "gone").mkdir()
    done = forked([*argv, *command, f"cache={tmp_path / 'cache'}"], tmp_path / "gone", before=lambda: (tmp_path / "gone").rmdir())
    assert refusal(done) == "xalign: working directory: No such file or directory; it was deleted or moved, change to one that is there"


@pytest.mark.parametrize("home", [None, "/proc/nowhere"])
def test_no_home(tmp_path: Path, argv: list[str], home: str | None) -> None:
    """An unset HOME, or one that cannot be written to: what is only remembered there is done without."""
    def before() -> None:
        os.environ.pop("HOME", None)
        os.environ.update({"HOME": home} if home else {})

    done = forked([*argv, "cache=cache", "plan=true"], tmp_path, before=before)
    assert done.returncode == 0, done.stderr
    if home:
        line = refusal(forked(argv, tmp_path, {"XALIGN_CACHE": "~/cache"}, before=before, without=("torch",)))
        assert "/proc/nowhere" in line and "cache=DIR" in line, line


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EDQUOT, errno.EIO])
def test_what_a_file_system_can_say_is_one_line(code: int) -> None:
    line = str(disk_error(OSError(code, os.strerror(code), "/disk/cache/x"), Path("/disk")))
    assert line.startswith("/disk/cache/x: ") and "cache=DIR" in line and "\n" not in line


@pytest.mark.parametrize("said", ["Error while serializing: I/O error: No space left on device (os error 28)",
                                  "PytorchStreamWriter failed writing file data/3: file write failed",
                                  "[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22"])
def test_a_full_disk_is_known_in_other_words(said: str) -> None:
    assert disk_trouble(RuntimeError(said)).errno == errno.ENOSPC
    assert disk_trouble(RuntimeError("something else")) is None
