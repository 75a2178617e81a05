"""``python -m xalign push RUN USER/NAME``: a run's model, with its card, on the Hugging Face hub. Checked first; no torch.

The command refuses what does not belong on a public page: files other than safetensors, texts and settings, weights cut short, a card
without valid metadata or licence, keys, and folders of the author's machine.
"""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from xalign.config import XalignError
from xalign.runfiles import check_path, read_facts
from xalign.safe import KEYS, printable
from xalign.tables import Grid, show
from xalign.terminal import LineParser, reading

KINDS = {".safetensors", ".json", ".jinja", ".md", ".txt", ".model"}  # .model: a SentencePiece vocabulary
TEXTS = KINDS - {".safetensors", ".model"}
PATHS = re.compile(r"""(?<![\w.])(?:/(?:home|root|Users|tmp|mnt|data|scratch|work|workspace)/[^\s"'`)]+|[A-Z]:\\\\?Users\\[^\s"'`)]+)""")
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")  # their entries look like anything
ANEW = "remove the card and repeat the run's command"  # a card that is there is left as people made it
LOADS = """
import sys, transformers
kind = transformers.AutoModel if sys.argv[2] == "text-ranking" else transformers.AutoModelForCausalLM
model = kind.from_pretrained(sys.argv[1], trust_remote_code=False)
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)
print(f"{type(model).__name__}, {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")
"""


def model_folder(run: Path) -> Path:
    """The model inside a run's folder.

    Raises:
        XalignError: there is none, or the run is not finished.
    """
    if not run.is_dir():
        raise XalignError(f"{run}: no such run folder")
    if (run / "config.yaml").is_file():  # else somebody put a model there
        read_facts(run)
    if not (run / "model").is_dir():
        raise XalignError(f"{run}: holds no model; name the folder of a finished training run (mode=evaluate trains none)")
    return run / "model"


def files_of(folder: Path) -> list[Path]:
    """Every file of the model, in order of name."""
    return sorted(p for p in folder.rglob("*") if p.is_file())


def problems(folder: Path) -> list[str]:
    """What keeps the model from being published, one line each with the remedy; empty for none."""
    files = files_of(folder)
    found = [f"{p}: {p.suffix or 'a file without suffix'} is not published (weights must be safetensors, no pickles); remove it"
             for p in files if p.suffix not in KINDS]
    found += [f"{p}: is a link; what it points to would be published in its place: put the file itself there, or remove it"
              for p in sorted(folder.rglob("*")) if p.is_symlink()]
    names = {str(p.relative_to(folder)) for p in files}
    needs = {"config.json", "README.md", "tokenizer_config.json"} | shards(folder)
    if "README.md" in names and "head.safetensors" in (folder / "README.md").read_text(encoding="utf-8", errors="replace"):  # an encoder's
        needs.add("head.safetensors")
    found += [f"{folder / name}: is missing; repeat the run's command" for name in sorted(needs - names)]
    found += [f"{p}: is cut short; repeat the run's command" for p in files if p.suffix == ".safetensors" and not whole(p)]
    if "README.md" in names:
        found += card_problems(folder / "README.md")
    return found + [line for p in files if p.suffix in TEXTS for line in private(p)]


def shards(folder: Path) -> set[str]:
    """The files that hold the weights."""
    index = folder / "model.safetensors.index.json"
    try:
        return set(json.loads(index.read_bytes())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise XalignError(f"{index}: is damaged; repeat the run's command to write it again") from None


def whole(path: Path) -> bool:
    """True if a safetensors file has a header and all the bytes that it promises."""
    with open(path, "rb") as f:
        size = int.from_bytes(f.read(8), "little")
        if size > path.stat().st_size:
            return False
        try:
            header = json.loads(f.read(size))
            ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
            return path.stat().st_size == 8 + size + max(ends, default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return False


def card_of(path: Path) -> Any:
    """The card's metadata (`huggingface_hub.ModelCardData`).

    Raises:
        XalignError: it has none, or it is not what the hub reads.
    """
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except Exception as e:  # YAML's and the library's own errors
        raise XalignError(f"{path}: its first block is not valid metadata ({' '.join(str(e).split())[:160]}); mend it, or {ANEW}") \
            from None
    return card.data


def card_problems(path: Path) -> list[str]:
    """What the card lacks."""
    try:
        data = card_of(path)
    except XalignError as e:
        return [str(e)]
    found = [f"{path}: its metadata has no '{key}'; add it, or {ANEW}" for key in ("language", "library_name", "pipeline_tag")
             if not data.get(key)]
    if data.get("base_model") and not data.get("license"):
        found.append(f"{path}: names no licence, and the model derives from {data.base_model}; read the licence there and add "
                     "'license: NAME' to the first block")
    return found


def private(path: Path) -> list[str]:
    """Keys and local folders in a text file."""
    text, shown = path.read_text(encoding="utf-8", errors="replace"), []
    if match := KEYS.search(text):
        shown.append(f"{path}:{line_of(text, match)}: holds what looks like a secret key; remove it, and revoke the key")
    home = str(Path.home())
    local = PATHS.search(text) if path.name not in VOCABULARIES else re.search(re.escape(home) + r"/\S+", text) if len(home) > 1 else None
    if local:
        shown.append(f"{path}:{line_of(text, local)}: names a folder of this machine ({local[0][:60]}); remove it")
    return shown


def line_of(text: str, match: re.Match[str]) -> int:
    return text.count("\n", 0, match.start()) + 1


def loads(folder: Path, kind: str) -> str:
    """What `from_pretrained` finds in `folder`, asked in a process that has transformers alone.

    Raises:
        XalignError: it cannot be loaded.
    """
    done = subprocess.run([sys.executable, "-I", "-c", LOADS, str(folder.resolve()), kind], capture_output=True, text=True,
                          env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"})
    if done.returncode:
        raise XalignError(f"{folder}: from_pretrained fails: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout.strip().splitlines()[-1]


def size_of(size: float) -> str:
    """``538.1 MB`` for a number of bytes."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def listing(folder: Path) -> Grid:
    """What would be created: files with sizes, and the card's metadata."""
    files, data = files_of(folder), card_of(folder / "README.md")
    grid = Grid("", ["file", "size"])
    grid.rows += [[str(p.relative_to(folder)), size_of(p.stat().st_size)] for p in files]
    grid.rows.append([f"{len(files)} files", size_of(sum(p.stat().st_size for p in files))])
    known = {"language": ", ".join(data.language or []), "base model": data.base_model or "none on the hub",
             "licence": data.license or "none named", "task": data.pipeline_tag, "tags": ", ".join(data.tags or []),
             "scores": f"{len(data.eval_results or [])} in model-index"}
    grid.notes += [f"{name}: {value}" for name, value in known.items()]
    return grid


def upload(folder: Path, target: str, private_: bool, revision: str) -> str:
    """Create the repository (and branch) if needed and upload the model in one commit; returns its address.

    Raises:
        XalignError: no token, or what the hub answers.
    """
    from huggingface_hub import HfApi, get_token

    if not get_token():
        raise XalignError("no Hugging Face token found; run `hf auth login` or set HF_TOKEN (--dry-run needs none)")
    api = HfApi()
    try:
        address = api.create_repo(target, private=private_, exist_ok=True)
        if revision != "main":
            api.create_branch(target, branch=revision, exist_ok=True)
        api.upload_folder(repo_id=target, folder_path=str(folder), revision=revision, commit_message="Model and card")
    except Exception as e:  # no network, no permission, the hub's own refusals
        raise XalignError(f"{target}: not uploaded: {type(e).__name__}: {' '.join(str(e).split())[:300]}") from None
    return str(address)


def push(argv: list[str]) -> None:
    """Check, list and, without --dry-run, upload.

    Raises:
        XalignError: the first problem; all of them are printed.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    parser = LineParser(prog="python -m xalign push",
                        description="Publish a run's model with its card on the Hugging Face hub.")
    parser.add_argument("run", type=Path, help="the folder of a finished training run")
    parser.add_argument("name", help="USER/NAME on the hub")
    parser.add_argument("--private", action="store_true", help="visible to you only")
    parser.add_argument("--revision", default="main", help="branch; made if it is not there (default: main)")
    parser.add_argument("--check", action="store_true", help="also load the model with from_pretrained")
    parser.add_argument("--dry-run", action="store_true", help="check and list; upload nothing, needs no token")
    asked = parser.parse_args(argv)
    try:
        validate_repo_id(asked.name)
    except HFValidationError as e:
        raise XalignError(f"{asked.name}: not a name on the hub ({' '.join(str(e).split())[:120]}); write USER/NAME") from None
    if "/" not in asked.name:
        raise XalignError(f"{asked.name}: whose is it? write USER/{asked.name}")
    folder = model_folder(asked.run)
    if found := problems(folder):
        for line in found[1:]:
            print(printable(line))
        raise XalignError(found[0])
    check_path(folder)
    print(f"{'private' if asked.private else 'public'} model {asked.name}, revision {asked.revision}, from {folder}")
    show([listing(folder)])
    if asked.check:
        print(f"from_pretrained: {loads(folder, card_of(folder / 'README.md').pipeline_tag)}")
    if asked.dry_run:
        print("dry run: nothing was uploaded")
        return
    print(f"uploaded to {upload(folder, asked.name, asked.private, asked.revision)}")


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m xalign push``; returns the exit code."""
    return reading(lambda: push(list(sys.argv[1:] if argv is None else argv)))


if __name__ == "__main__":
    sys.exit(main())
