"""A model folder as far as it can be judged without torch and without running anything of it."""
from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xalign.config import ConfigError

WHAT = {"causal": "causal language model", "encoder": "encoder", "seq2seq": "encoder-decoder"}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# other forms of weights; the first five are pickles, which can run code when they are opened
OTHERS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf", ".onnx")
CONVERT = "convert them where you trust their source (save_pretrained of transformers writes safetensors) and name that folder"
# encoders that transformers would open as causal models, though each token of theirs sees the whole text
ENCODERS = ("bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert", "roberta",
            "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod")
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
FLOATS = ("F", "BF")
_CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")


def reason(e: Exception) -> str:
    """What an exception of a library says, in one line."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    text = " ".join(lines[:1 + (lines[0].endswith(":"))]) if lines else ""
    text = _CLASS.sub(r"\1", text).partition(" Model type should be one of")[0]
    text = f"{text[:237]}..." if len(text) > 240 else text
    return text if text and isinstance(e, (OSError, ValueError, ImportError)) else f"{type(e).__name__}{': ' * bool(text)}{text}"


def check_folder(place: str, folder: Path, kind: str, whole: bool = True) -> None:
    """Refuse a folder that cannot be the model that it is named as.

    Weights have to be safetensors; nothing is unpickled, and no code of the folder runs. What only shows when transformers builds
    the model, `xalign.backbones.load.load_backbone` refuses.

    Args:
        place: key and value that named the folder, for the message.
        kind: causal | encoder | seq2seq.
        whole: False for a plan, which needs no more than config.json: tokenizer and weights may be absent, not wrong.
    Raises:
        ConfigError: for the first file that is missing, damaged or of another kind of model.
    """
    try:
        _check(folder, kind, whole)
    except OSError as e:
        raise ConfigError(f"{place}: {Path(e.filename or folder).name} cannot be read ({e.strerror}); mend its access rights or name "
                          "another folder") from None
    except ValueError as e:
        raise ConfigError(f"{place}: {e}") from None


def _check(folder: Path, kind: str, whole: bool) -> None:
    for path in folder.iterdir():
        if path.is_file() and not os.access(path, os.R_OK):
            raise PermissionError(13, "Permission denied", str(path))
    if (folder / "adapter_config.json").is_file():
        raise ValueError("holds adapter_config.json, an adapter and no model; merge it into its base model (merge_and_unload of peft, "
                         "then save_pretrained) and name that folder")
    others = sorted(p.name for p in folder.iterdir() if p.suffix in OTHERS)
    if not (folder / "config.json").is_file():
        found = f", only {others[0]}" if others else ""
        raise ValueError(f"no config.json in this folder{found}; name a folder that save_pretrained wrote")
    config = _read(folder / "config.json")
    _check_config(config, kind)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        if (folder / name).is_file():
            values = _read(folder / name)
            if name == "generation_config.json":
                _check_ends(name, values)
    _check_ends("config.json", config)
    if whole and not any(any(folder.glob(form)) for form in ("tokenizer*", "vocab*", "*.model", "*.tiktoken")):
        raise ValueError("no tokenizer in this folder; put the model's tokenizer.json and tokenizer_config.json beside its config.json")
    if whole or others or any(folder.glob("*.safetensors*")):
        _check_weights(folder, config, others)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path.name} is not JSON ({e}); the file is damaged: fetch it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no JSON object; the file is damaged: fetch it again")
    return found


def _check_config(config: Mapping[str, Any], kind: str) -> None:
    family = config.get("model_type")
    if not isinstance(family, str) or not family:
        raise ValueError("config.json names no model_type; name a folder that save_pretrained of transformers wrote")
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ValueError(f"config.json: architectures={named}: must be a list of class names")
    for key in SIZES:
        value = config.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"config.json: {key}={value}: must be a whole number above 0; the file is damaged or for something else")
    for key in config:  # transformers would fetch such a kernel from the hub and run it
        if key.endswith("_implementation") and "/" in str(config[key]):
            raise ValueError(f"config.json: {key}={config[key]}: names code of the hub, which is not run; take the line out")
    both = bool(config.get("is_encoder_decoder"))
    heads = [name for name in named if name.endswith(("Classification", "QuestionAnswering", "MultipleChoice", "MaskedLM"))]
    if kind == "encoder" and (both or any("CausalLM" in name for name in named)):
        raise ValueError(f"is a {family} model, not an encoder; name an encoder, or choose backbone=hf for a causal model")
    if kind == "causal" and both:
        raise ValueError(f"is a {family} model, an encoder-decoder and no {WHAT[kind]}; name a causal model")
    if kind == "causal" and family in ENCODERS and not config.get("is_decoder"):
        raise ValueError(f"is a {family} model, an encoder and no {WHAT[kind]}; name a causal model, or choose backbone=xlmr")
    if kind == "causal" and heads:
        raise ValueError(f"is a {heads[0]}, which has another head than a {WHAT[kind]}; name the model that it was made from")
    if kind == "seq2seq" and not both:
        raise ValueError(f"is a {family} model, no {WHAT[kind]}; name an NLLB-200 checkpoint")


def _check_ends(name: str, values: Mapping[str, Any]) -> None:
    ends = values.get("eos_token_id")
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and (not isinstance(end, int) or isinstance(end, bool)):
            raise ValueError(f"{name}: eos_token_id={ends}: must be a token's number or a list of such")


def _check_weights(folder: Path, config: Mapping[str, Any], others: list[str]) -> None:
    """The headers of all files of weights; the tensors themselves are not read."""
    index = folder / INDEX
    if (folder / WEIGHTS).is_file():
        shards: dict[str, set[str]] = {WEIGHTS: set()}
    elif index.is_file():
        shards = {}
        weight_map = _read(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{INDEX} has no weight_map; the file is damaged: fetch it again")
        for tensor, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise ValueError(f"{INDEX} names {file!r}, which is no safetensors file of this folder; fetch the model again")
            shards.setdefault(file, set()).add(tensor)
    elif others:
        raise ValueError(f"its weights are {others[0]}, not safetensors, and are not opened; {CONVERT}")
    else:
        raise ValueError(f"no {WEIGHTS} in this folder; name one with safetensors weights")
    for file, wanted in shards.items():
        if not (folder / file).is_file():
            raise ValueError(f"{INDEX} names {file}, which is missing; fetch the model again")
        _check_header(folder / file, wanted, bool(config.get("quantization_config")))


def _check_header(path: Path, wanted: set[str], quantised: bool) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as f:
            names = set(f.keys())
            kinds = {name: f.get_slice(name).get_dtype() for name in names}
    except SafetensorError as e:
        raise ValueError(f"{path.name} is no intact safetensors file ({e}); fetch it again") from None
    if missing := wanted - names:
        raise ValueError(f"{path.name} lacks {min(missing)}, which {INDEX} says it holds; fetch the model again")
    odd = sorted(n for n, kind in kinds.items() if n.endswith((".weight", ".bias")) and not kind.startswith(FLOATS))
    if odd and not quantised:
        raise ValueError(f"{path.name}: {odd[0]} is of type {kinds[odd[0]]}, not of floating point; the file is damaged: fetch it again")
