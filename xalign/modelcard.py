"""The README.md of a saved model: what it is, how it was made, what it scores, what it is not good for."""
from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from xalign.config import Run
from xalign.languages import LANGUAGES
from xalign.report.run import before_after
from xalign.rows import Row, arrow
from xalign.safe import hide, printable
from xalign.tables import is_number, markdown
from xalign.training.repeatable import repeatable

# hub id and licence of the backbones that do not name a hub id themselves
KNOWN_BASES = {"smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
               "e5_small": ("intfloat/multilingual-e5-small", "mit")}
PACKAGES = ("xalign", "torch", "transformers", "deepspeed")


def base_of(run: Run) -> tuple[str, str, str]:
    """(hub id or "", licence or "", what to call it) of the untrained backbone; a local folder is named without its path."""
    choice = run.choices.get("backbone", "")
    if choice in KNOWN_BASES:
        hub, licence = KNOWN_BASES[choice]
        return hub, licence, hub
    name = getattr(run.backbone, "name", "")
    if not name:
        return "", "", f"{choice} (random weights)"
    if Path(name).expanduser().is_dir():
        return "", "", f"the local model folder {Path(name).expanduser().resolve().name}"
    return name, "", f"{name} (revision {getattr(run.backbone, 'revision', 'main')})"


def write_card(folder: Path, run: Run, rows: Iterable[Row], cost: Mapping[str, Any]) -> Path:
    """Write ``folder/README.md`` and return its path.

    Args:
        folder: the saved model.
        run: the checked run that made it.
        rows: the run's rows, before and after.
        cost: seconds, train_seconds, device_hours, peak_gib and stages, as run.json stores them.
    """
    hub, licence, base = base_of(run)
    names = [LANGUAGES[code].name for code in (*run.lang, run.source)]
    base = _said(base)
    title = f"{base.split('/')[-1].split(' (')[0]}, {run.choices.get('method')} {run.source} → {', '.join(run.lang)}"
    rows = list(rows)
    parts = [_front_matter(run, hub, licence, title, rows), f"# {title}\n",
             f"{base}, trained with **{run.choices.get('method')}** to carry what it knows in {names[-1]} over to "
             f"{' and '.join(names[:-1])}. Made by xalign.\n",
             "## Load\n", _load_encoder(run) if run.backbone.kind == "encoder" else _load(folder), _prompts(run),
             "## How it was made\n", _making(run, base, cost), "## Scores\n",
             markdown(before_after(rows)), "## Limits\n", _limits(run), "## Licence\n",
             ("The weights began at random, so no other model's licence applies." if "random weights" in base else
              f"The weights derive from {base} and keep its licence" + (f" ({licence})." if licence else "; read it there."))
             + " The training data's own terms apply as well.\n"]
    path = folder / "README.md"
    path.unlink(missing_ok=True)  # it may be a hard link into the cache
    path.write_text(hide(printable("\n".join(parts))), encoding="utf-8")
    return path


def _front_matter(run: Run, hub: str, licence: str, title: str, rows: Iterable[Row]) -> str:
    """The hub's metadata block; the scores after training as its ``model-index``, each with n and signature."""
    from huggingface_hub import EvalResult, ModelCardData

    kind = "text-ranking" if run.backbone.kind == "encoder" else "text-generation"
    scores = [EvalResult(task_type=kind, dataset_type=row["task"].split(":")[0], dataset_name=f"{arrow(row['task'])}, {row['lang']}",
                         dataset_config=LANGUAGES[row["lang"]].iso1, metric_type=row["metric"], metric_value=round(row["value"], 4),
                         metric_name=f"{row['metric']}, {'source' if row['lang'] == run.source else 'target'} language",
                         metric_args={"n": row["n"], "signature": row.get("signature", "")})
              for row in rows if row["when"] == "after" and is_number(row["value"]) and "." not in row["metric"]]
    data = ModelCardData(language=[LANGUAGES[code].iso1 for code in (*run.lang, run.source)], library_name="transformers",
                         pipeline_tag=kind, tags=["xalign", "cross-lingual-alignment", run.choices.get("method")],
                         base_model=hub or None, license=licence or None, model_name=title, eval_results=scores or None)
    return f"---\n{data.to_yaml()}\n{'' if hub else '# base_model: none on the hub' + chr(10)}---\n"


def _load(folder: Path) -> str:
    """Working code for this folder; with the chat template if the tokenizer has one."""
    config = folder / "tokenizer_config.json"
    chat = (folder / "chat_template.jinja").is_file() or \
        config.is_file() and '"chat_template"' in config.read_text(encoding="utf-8")
    prompt = ('inputs = tokenizer.apply_chat_template([{"role": "user", "content": "..."}], add_generation_prompt=True,\n'
              '                                       return_dict=True, return_tensors="pt")') if chat else \
        'inputs = tokenizer("...", return_tensors="pt")'
    return ("```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            "folder = \".\"  # this folder\nmodel = AutoModelForCausalLM.from_pretrained(folder)\n"
            f"tokenizer = AutoTokenizer.from_pretrained(folder)\n{prompt}\n"
            "output = model.generate(**inputs, max_new_tokens=64, do_sample=False)\n"
            "print(tokenizer.decode(output[0][inputs[\"input_ids\"].shape[1]:], skip_special_tokens=True))\n```\n")


def _load_encoder(run: Run) -> str:
    """Working code for an encoder and its head: the logits of a prompt's options."""
    if run.backbone.head == "cross":
        rank = ('inputs = tokenizer([prompt] * len(options), options, padding=True, return_tensors="pt")\n'
                'logits = model(**inputs).last_hidden_state[:, 0] @ head["weight"][0] + head["bias"]\n')
    else:
        prefix = json.dumps(printable(run.backbone.prefix), ensure_ascii=False)
        rank = (f'texts = [{prefix} + text for text in (prompt, *options)]\n'
                'inputs = tokenizer(texts, padding=True, return_tensors="pt")\n'
                'mask = inputs["attention_mask"][..., None]\n'
                'vectors = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)\n'
                'asked, known = vectors[:1] @ head["weight"].T, vectors[1:]\n'
                f'logits = torch.nn.functional.cosine_similarity(asked, known) / {run.backbone.temperature}\n')
    return ("```python\nimport torch\nfrom safetensors.torch import load_file\nfrom transformers import AutoModel, AutoTokenizer\n\n"
            'folder = "."  # this folder\nmodel = AutoModel.from_pretrained(folder).eval()\n'
            'tokenizer = AutoTokenizer.from_pretrained(folder)\nhead = load_file(f"{folder}/head.safetensors")\n'
            f'prompt, options = "...", ["...", "..."]\n{rank}print(options[logits.argmax()])\n```\n')


def _prompts(run: Run) -> str:
    """The prompts around an input that the model was trained with."""
    frame = run.method.frame(run)
    if frame is None:
        return ""
    shown = frame("choice", run.lang[0], "...")
    soft = ("The `<lp_...>` tokens have trained vectors, in `soft_prompt.safetensors`: xalign puts them into the embedding table, "
            "`from_pretrained` alone does not.\n") if frame.language == "soft" else ""
    return f"The model expects its input in this form:\n\n```\n{shown}\n```\n\n{soft}"


def _making(run: Run, base: str, cost: Mapping[str, Any]) -> str:
    """Choices, the method's and the trainer's settings, and what each stage cost."""
    command = " ".join(shlex.quote(f"{group}=[{run.choices[group]}]" if "," in run.choices[group] else f"{group}={run.choices[group]}")
                       for group in Run.NODES if run.choices.get(group) and group != "tracker")
    command = " ".join(command.replace("`", "").split())
    lang = f"lang={run.lang[0]}" if len(run.lang) == 1 else f"'lang=[{','.join(run.lang)}]'"
    lines = [f"- base model: {base}", f"- choices: `python -m xalign {command} {lang} source={run.source} seed={run.seed}`, "
             "with the settings below"]
    for group in ("method", "data", "parallel", "translator", "trainer"):
        settings = ", ".join(f"{k}={_said(_plain(v))}" for k, v in dataclasses.asdict(getattr(run, group)).items())
        lines.append(f"- {group}: {settings or 'no settings'}")
    lines += [_trained_on(cost), f"- cost: {_minutes(cost.get('seconds'))} in all stages, {_minutes(cost.get('train_seconds'))} of it "
              f"training; {cost.get('device_hours', '?')} device-hours; {_amount(cost, 'tokens', 'tokens computed')}; "
              f"{_amount(cost, 'flops', 'FLOPs of the model')}; {_amount(cost, 'energy_kwh', 'kWh')}; "
              f"peak memory {cost.get('peak_gib', '?')} GiB"]
    installed = ", ".join(f"{name} {v}" for name, v in versions().items())
    lines += [f"- versions: {installed}", f"- repeatable: {repeatable(run, int(os.environ.get('WORLD_SIZE', '1')))}", "",
              "| stage | seconds | counts |", "| :--- | ---: | :--- |"]
    for stage in cost.get("stages", ()):
        counts = ", ".join(f"{k} {v:g}" for k, v in (stage.get("facts") or {}).items() if is_number(v))
        lines.append(f"| {_said(stage['label'])} | {stage['seconds']:.1f} | {counts} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def _trained_on(cost: Mapping[str, Any]) -> str:
    """How much data the last training stage read."""
    facts = next((s["facts"] for s in reversed(list(cost.get("stages", ()))) if "train_rows" in (s.get("facts") or {})), {})
    if not facts:
        return "- training data: not recorded"
    return (f"- training data: {facts['train_rows']:,} rows and {facts.get('valid_rows', 0):,} held out to choose the weights; "
            f"{facts.get('tokens', 0):,} tokens read in {facts.get('steps', 0):,} steps")


def _amount(cost: Mapping[str, Any], key: str, unit: str) -> str:
    """``2.4e+13 FLOPs``; what lacks where not every stage tells, and why."""
    reason = f"{key.removesuffix('_kwh')}: {cost[f'{key}_reason']}" if cost.get(f"{key}_reason") else ""
    value = cost.get(key)
    if not is_number(value):
        return reason or f"{key.removesuffix('_kwh')} not measured"
    return f"{value:,.4g} {unit}" + f" ({reason})" * bool(reason)


def _plain(value: Any) -> str:
    """A setting as text; of a path only its last part, so that no folder of the author's machine is published."""
    if isinstance(value, str) and "/" in value and (value.startswith(("/", "~", ".")) or Path(value).exists()):
        return Path(value).name
    return str(value)


def _said(text: str) -> str:
    """Text from a folder's name or a setting on one line of the card: no HTML, no link, no cell or code that ends early."""
    text = " ".join(printable(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([`|]|(?<=\])\()", r"\\\1", text)


def _minutes(seconds: Any) -> str:
    return f"{seconds / 60:.1f} min" if is_number(seconds) else "? min"


def versions() -> dict[str, str]:
    """Package → version, of those that decide what a run computes and are installed."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _limits(run: Run) -> str:
    """What a reader must know before using the model or quoting the table."""
    lines = ["- One run with one seed. The standard errors cover the choice of test items, not the choice of seed.",
             "- No safety tuning or safety test was done; the model keeps its base model's faults and may state false facts.",
             "- Scores of a trained model may reflect the format of the test as well as knowledge; compare with the baselines."]
    if run.choices.get("data") == "lab" or any(t.name == "lab" for t in run.tasks):
        lines.append("- Data of the built-in laboratory: short questions about capitals, languages, currencies and cities, "
                     "split by territory. Nothing is claimed about long answers or other subjects.")
    if run.choices.get("translator") == "lab":
        lines.append(f"- Translations come from CLDR and a phrase table (noise {getattr(run.translator, 'noise', 0)}), "
                     "not from a translation model.")
    if run.choices.get("backbone") in ("tiny", "tiny_encoder"):
        lines.append("- Random weights for rehearsals: this model is good for nothing.")
    return "\n".join(lines) + "\n"
