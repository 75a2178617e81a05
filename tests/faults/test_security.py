"""No code of a model folder or data file runs unless ``backbone.trust_remote_code=true``, and the package itself opens no way to it."""
from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, TINY
from faultkit import forked, refusal

from xalign.backbones.tiny import make_tiny
from xalign.config import XalignError

# what could run code, or write where it should not: (a dotted name's end, a keyword that makes it harmless or harmful) → why
CALLS = {"eval": "runs text as code", "exec": "runs text as code", "__import__": "imports by name", "system": "a shell",
         "popen": "a shell", "extractall": "members may escape the folder", "unpack_archive": "members may escape the folder",
         "mktemp": "another process can take the name", "getoutput": "a shell", "getstatusoutput": "a shell", "chmod": "others' rights",
         "umask": "others' rights", "read_pickle": "a pickle", "from_string": "a template that may come from data"}
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "code", "runpy", "tarfile", "telnetlib"}
ALLOWED = {  # file, what stands there: why it may
    ("metrics/comet.py", "import pickle"): "only its UnpicklingError: torch.load reads weights alone there",
    ("config.py", "import_module"): "the class that a YAML of the user's names; refused unless it is a Node",
    ("__main__.py", "import_module"): "of a fixed table of our own commands",
}


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an expression, as far as it has names."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def suspicious(text: str) -> Iterator[tuple[int, str]]:
    """(line, what) of everything in a module that can run foreign code or trust what it should not."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((node.lineno, f"import {name}") for name in names if name.split(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        name, last = dotted(node.func), dotted(node.func).split(".")[-1]
        options = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else k.value for k in node.keywords}
        # x.eval() of a model and .compile() of a layer are no builtins
        if last in CALLS and not ("." in name and last in ("eval", "exec")) or last == "import_module":
            yield node.lineno, last
        if name == "torch.load" and options.get("weights_only") is not True:
            yield node.lineno, "torch.load"
        if last == "load" and name.startswith(("np.", "numpy.")) and options.get("allow_pickle", False) is not False:
            yield node.lineno, "np.load"
        if name in ("yaml.load", "yaml.load_all") and "SafeLoader" not in ast.unparse(node):
            yield node.lineno, "yaml.load"
        if name.startswith("yaml.") and last in ("unsafe_load", "full_load", "unsafe_load_all", "full_load_all"):
            yield node.lineno, name
        if options.get("shell", False) is not False:
            yield node.lineno, "shell="
        if options.get("verify", True) is not True:
            yield node.lineno, "verify="
        if options.get("trust_remote_code", False) is True:
            yield node.lineno, "trust_remote_code=True"
        if last == "Environment" and options.get("autoescape") is not True and name in ("Environment", "jinja2.Environment"):
            yield node.lineno, "Environment without autoescape"


def test_the_package_opens_no_way_to_foreign_code() -> None:
    files = sorted((ROOT / "xalign").rglob("*.py"))
    found = {(str(p.relative_to(ROOT / "xalign")), what): line for p in files for line, what in suspicious(p.read_text(encoding="utf-8"))}
    assert len(files) > 100
    assert found.keys() - ALLOWED.keys() == set(), {k: found[k] for k in found.keys() - ALLOWED.keys()}
    assert ALLOWED.keys() - found.keys() == set(), "no longer there; strike it from the list"


@pytest.mark.parametrize("text", ["eval('1')", "exec(x)", "import pickle", "from joblib import load", "torch.load(p)", "yaml.load(t)",
                                  "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)", "subprocess.run(c, shell=True)",
                                  "os.system('x')", "z.extractall(d)", "f(trust_remote_code=True)", "tempfile.mktemp()",
                                  "requests.get(u, verify=False)", "yaml.load(t, Loader=yaml.Loader)", "jinja2.Environment()"])
def test_the_walk_finds_what_it_looks_for(text: str) -> None:
    assert list(suspicious(text))


@pytest.mark.parametrize("text", ["model.eval()", "torch.load(p, weights_only=True)", "yaml.safe_load(t)", "yaml.load(t, yaml.SafeLoader)",
                                  "re.compile(x)", "subprocess.run([x])", "f(trust_remote_code=node.trust_remote_code)"])
def test_the_walk_leaves_the_rest_alone(text: str) -> None:
    assert not list(suspicious(text))


class Bomb:
    """Unpickled, it writes the marker."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.system, ("echo pickle >> $XALIGN_TEST_MARKER",)


PLANTED = """import os
with open(os.environ["XALIGN_TEST_MARKER"], "a") as f:
    f.write(__name__ + "\\n")
from transformers import LlamaConfig, LlamaForCausalLM
class C(LlamaConfig):
    model_type = "planted"
class M(LlamaForCausalLM):
    config_class = C
def generate(model, *args, **kwargs):
    return model.generate(*args, **kwargs)
"""


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "model"
    folder.mkdir()
    make_tiny(folder, 64, 2, 1500, 0)
    return folder


def hostile(plain: Path, folder: Path, model_type: str, weights: bool = True) -> Path:
    """A model folder with code and pickles wherever a loader might look; `model_type` llama: transformers knows the class without them."""
    shutil.copytree(plain, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type,
               "auto_map": {"AutoConfig": "planted.C", "AutoModelForCausalLM": "planted.M", "AutoModel": "planted.M"},
               "custom_pipelines": {"text-generation": {"impl": "planted.M", "pt": ["AutoModelForCausalLM"]}}}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"auto_map": {"AutoTokenizer": ["planted.T", "planted.T"]}}))
    for name in ("planted.py", "custom_generate/generate.py", "setup.py", "conftest.py", "model.py", "tokenizer.py", "__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(PLANTED)
    if not weights:
        (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "adapter_model.bin", "optimizer.pt", "training_args.bin", "tokenizer.pkl", "vocab.pt", "rng.npy"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    return folder


def watch(folders: list[Path], log: Path) -> Callable[[], None]:
    """Note in `log` whatever is run that comes from `folders` or from transformers' copies of them, and every shell."""
    places = (*(str(f) for f in folders), "transformers_modules")

    def begin() -> None:
        def hook(event: str, args: tuple) -> None:
            if event == "exec":
                what = getattr(args[0], "co_filename", "")
            elif event == "compile":
                what = args[1].decode() if isinstance(args[1], bytes) else str(args[1])
            elif event == "import":
                what = str(args[1])
            elif event in ("os.system", "os.exec", "pickle.find_class"):
                what = f"{places[0]} {args}" if event != "pickle.find_class" or args[1] == "system" else ""
            else:
                return
            if any(p in what for p in places):
                with open(log, "a") as f:
                    f.write(f"{event} {what[:300]}\n")

        sys.addaudithook(hook)

    return begin


EVALUATE = ["mode=evaluate", "backbone=hf", "lang=fin", *[t for t in TINY if t.startswith(("task.", "tracker"))], "task.open_items=1",
            "task.phrases=0", "task.choice_items=2", "task.max_new_tokens=2", "task.answer_tokens=2"]


def evaluate(model: Path, tmp_path: Path, *more: str):
    """(what was done, lines of the marker, lines of the watch)."""
    marker, log = tmp_path / "marker", tmp_path / "watched"
    done = forked([*EVALUATE, f"backbone.name={model}", f"cache={tmp_path / 'cache'}", *more], tmp_path,
                  {"XALIGN_TEST_MARKER": str(marker), "HF_HUB_OFFLINE": "1"}, before=watch([model], log))
    return done, *(p.read_text().splitlines() if p.exists() else [] for p in (marker, log))


def test_code_beside_a_known_model_is_not_run(plain_model: Path, tmp_path: Path) -> None:
    done, marker, log = evaluate(hostile(plain_model, tmp_path / "model", "llama"), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert marker == log == []


def test_a_model_that_is_only_code_is_refused_without_asking(plain_model: Path, tmp_path: Path) -> None:
    done, marker, log = evaluate(hostile(plain_model, tmp_path / "model", "planted"), tmp_path)
    line = refusal(done)
    assert "trust_remote_code" in line, line
    assert marker == log == [] and "y/N" not in done.stdout + done.stderr


def test_weights_that_are_a_pickle_are_refused_unread(plain_model: Path, tmp_path: Path) -> None:
    done, marker, log = evaluate(hostile(plain_model, tmp_path / "model", "llama", weights=False), tmp_path)
    assert "safetensors" in refusal(done)
    assert marker == log == []


def test_with_trust_the_code_of_the_folder_runs(plain_model: Path, tmp_path: Path) -> None:
    """So the tests above would see it."""
    done, marker, log = evaluate(hostile(plain_model, tmp_path / "model", "planted"), tmp_path, "backbone.trust_remote_code=true")
    assert marker and log, done.stderr[-2000:]


def test_no_script_of_a_data_folder_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in the hub's layout with the loading script that `datasets` once ran, and pickles beside its rows."""
    from xalign.tasks.files import HubFile, fetch

    folder, marker = tmp_path / "planted", tmp_path / "marker"
    folder.mkdir()
    for name in ("planted.py", "__init__.py", "setup.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'a').write(__name__)\n")
    for name in ("rows.pkl", "rows.pt", "state.json.pkl", "x.npy"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    monkeypatch.setenv("XALIGN_TEST_MARKER", str(marker))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    target = tmp_path / "official.jsonl"
    with pytest.raises(XalignError, match=r"planted: test could not be read"):
        fetch(HubFile("official.jsonl", str(folder), None, "test"), "main", target)
    (folder / "test.jsonl").write_text('{"a": 1}\n')
    with suppress(XalignError):  # a release may refuse the folder for its script
        fetch(HubFile("official.jsonl", str(folder), None, "test"), "main", target)
    assert not marker.exists()


def test_a_data_file_is_only_read(tmp_path: Path, parallel_files: Path) -> None:
    """YAML tags, templates and formats in data are text; what Python would import from beside the data is not."""
    texts = ["!!python/object/apply:os.system [touch planted]", "{{ ''.__class__.__mro__ }}", "{0.__class__}", "%(x)s", "__import__('os')",
             "${oc.env:HOME}", "<|im_start|>system"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"instruction": t, "output": t}) + "\n" for t in texts * 4))
    for name in ("alpaca.py", "sitecustomize.py", "a.py"):
        (tmp_path / name).write_text("open('planted', 'a')\n")
    log = tmp_path / "watched"
    done = forked(["method=sft", "data=alpaca", "data.path=a.jsonl", "lang=fin", "parallel=files", f"parallel.path={parallel_files}",
                   "backbone=tiny", "tracker=none", "plan=true", f"cache={tmp_path / 'cache'}"], tmp_path, before=watch([tmp_path], log))
    assert done.returncode == 0, done.stderr[-2000:]
    assert not log.exists() and not (tmp_path / "planted").exists()
