"""Wrong model folders that are refused before torch is imported; what only shows when the model is built stands in test_models.py."""
from __future__ import annotations

import json
import os
import pickle
from typing import Any

import numpy as np
from inputs import Case, Content
from safetensors.numpy import save

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1,
         "num_attention_heads": 1, "intermediate_size": 4}
WEIGHTS = save({"model.norm.weight": np.ones(4, np.float32)})
SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"


class Plant:
    """A pickle that makes the folder ``it-ran`` wherever it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it-ran",)


PICKLE = pickle.dumps(Plant())


def folder(weights: dict[str, Content] | None = None, more: dict[str, Content] | None = None, **config: Any) -> dict[str, Content]:
    """A model folder ``m`` with changes to its config.json, its weights and its other files."""
    files = {"config.json": json.dumps({**LLAMA, **config}), "tokenizer.json": "{}", "tokenizer_config.json": "{}",
             **({"model.safetensors": WEIGHTS} if weights is None else weights), **(more or {})}
    return {f"m/{name}": content for name, content in files.items() if content is not None}


def case(name: str, *words: str, files: dict[str, Content], model: str = "m", argv: tuple[str, ...] = ()) -> Case:
    return Case(name, ["mode=evaluate", "task=lab", f"backbone.name='{model}'", *argv], (f"backbone.name={model}", *words), files)


def index(**weight_map: Any) -> dict[str, Content]:
    return {INDEX: json.dumps({"metadata": {}, "weight_map": {k.replace("__", "."): v for k, v in weight_map.items()}}), SHARD: WEIGHTS}


# test_models.py asks all of them in one process
EVERY = [
    case("config.json cut short", "config.json is not JSON", "fetch it again", files=folder(more={"config.json": '{"model_type": "ll'})),
    case("config.json without an architecture", "names no model_type", "save_pretrained", files=folder(model_type=None)),
    case("a size of nothing", "max_position_embeddings=0", "above 0", files=folder(max_position_embeddings=0)),
    case("an encoder as causal model", "is a bert model, an encoder", "backbone=xlmr",
         files=folder(model_type="bert", architectures=["BertModel"])),
    case("a classifier as causal model", "LlamaForSequenceClassification", "another head",
         files=folder(architectures=["LlamaForSequenceClassification"])),
    case("an encoder-decoder as causal model", "is a t5 model", "name a causal model",
         files=folder(model_type="t5", is_encoder_decoder=True)),
    case("a causal model as encoder", "is a llama model, not an encoder", "backbone=hf", files=folder(), argv=("backbone=xlmr",)),
    case("no tokenizer", "no tokenizer in this folder", "tokenizer.json",
         files=folder(more={"tokenizer.json": None, "tokenizer_config.json": None})),
    case("a tokenizer cut short", "tokenizer.json is not JSON", "fetch it again", files=folder(more={"tokenizer.json": '{"model": '})),
    case("ends of an answer that are no tokens", "generation_config.json: eos_token_id=[[1]]", "token's number",
         files=folder(more={"generation_config.json": '{"eos_token_id": [[1]]}'})),
    *(case(f"weights as {file}", file, "not opened", "safetensors", files=folder({file: PICKLE}))
      for file in ("pytorch_model.bin", "model.pt", "model.ckpt", "weights.pkl")),
    case("a GGUF file in a folder", "its weights are m.gguf", "convert", files=folder({"m.gguf": b"GGUF"})),
    case("a GGUF file", "is a file", "name the model's folder", files={"m.gguf": b"GGUF"}, model="m.gguf"),
    case("weights cut short", "model.safetensors is no intact safetensors file", "fetch it again",
         files=folder({"model.safetensors": WEIGHTS[:-3]})),
    case("empty weights", "model.safetensors is no intact safetensors file", files=folder({"model.safetensors": b""})),
    case("weights that are a pickle by another name", "model.safetensors is no intact", files=folder({"model.safetensors": PICKLE})),
    case("weights of whole numbers", "is of type I32", files=folder({"model.safetensors": save({"a.weight": np.ones(4, np.int32)})})),
    case("an index that leaves the folder", f"{INDEX} names '../x.safetensors'", "of this folder",
         files=folder(index(model__norm__weight="../x.safetensors")) | {"x.safetensors": WEIGHTS}),
    case("an index that names a pickle", f"{INDEX} names 'x.bin'", "no safetensors file",
         files=folder({**index(model__norm__weight="x.bin"), "x.bin": PICKLE})),
    case("a shard that is missing", "model-2.safetensors, which is missing", "fetch the model again",
         files=folder(index(model__norm__weight=SHARD, a__weight="model-2.safetensors"))),
    case("a shard without what its index says", "lacks a.weight", INDEX, files=folder(index(model__norm__weight=SHARD, a__weight=SHARD))),
    case("an adapter beside a model", "adapter_config.json", "merge", files=folder(more={"adapter_config.json": "{}"})),
    case("an adapter", "adapter_config.json", "merge", files={"m/adapter_config.json": "{}"}),
    case("attention from the hub", "attn_implementation=someone/kernel", "not run", files=folder(attn_implementation="someone/kernel")),
    case("a folder of other things", "no config.json", "save_pretrained", files={"m/readme.txt": "x"}),
    case("a hub id with a space", "no hub id", "meta-llama", files={}, model="my model"),
    case("a hub id that climbs", "no hub id", files={}, model="a..b/c"),
]
SEQ2SEQ = {"model_type": "m2m_100", "architectures": ["M2M100ForConditionalGeneration"], "is_encoder_decoder": True}


def translator(name: str, *words: str, files: dict[str, Content], model: str = "m") -> Case:
    return Case(f"translator: {name}", ["lang=fin", "translator=nllb", f"translator.name='{model}'"], (f"translator.name={model}", *words),
                files)


TRANSLATORS = [
    translator("a causal model", "is a llama model, no encoder-decoder", "NLLB-200", files=folder()),
    translator("weights as pytorch_model.bin", "pytorch_model.bin", "not opened", files=folder({"pytorch_model.bin": PICKLE}, **SEQ2SEQ)),
    translator("weights cut short", "no intact safetensors file", files=folder({"model.safetensors": WEIGHTS[:-1]}, **SEQ2SEQ)),
    translator("an index that leaves the folder", "names '../x.safetensors'",
               files=folder(index(a__weight="../x.safetensors"), **SEQ2SEQ) | {"x.safetensors": WEIGHTS}),
    translator("a file", "is a file", files={"m.gguf": b"GGUF"}, model="m.gguf"),
    translator("no such folder", "no such folder", files={}, model="./nowhere"),
]
SHOWN = ("config.json cut short", "an encoder as causal model", "no tokenizer", "weights as pytorch_model.bin", "a GGUF file",
         "weights cut short", "an index that leaves the folder", "an adapter", "a hub id with a space")
CASES = [*(c for c in EVERY if c.name in SHOWN), TRANSLATORS[0]]
