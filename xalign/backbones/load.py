"""Open a model folder as a backbone."""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from xalign.assets import model_folder
from xalign.backbones.causal import CausalBackbone
from xalign.backbones.counting import watch
from xalign.backbones.encoder import HEAD, EncoderBackbone, Scorer
from xalign.backbones.folder import WHAT, check_folder, reason
from xalign.backbones.node import Backbone
from xalign.backbones.soft import SoftEmbedding, embedded, load_soft
from xalign.config import XalignError

_LAYER = re.compile(r"\.\d+\.")  # the number of a layer in the name of a weight


def load_backbone(folder: Path, node: Backbone, train: bool = False) -> CausalBackbone | EncoderBackbone:
    """Load the model and tokenizer of `folder`.

    Args:
        folder: a weights or model artifact, or any folder that `save_pretrained` wrote.
        node: the run's backbone node; its kind says what the folder is opened as.
        train: float32 on the CPU in training mode, for the trainer to move and cast; otherwise evaluation
            mode, without gradients, on CUDA where there is one.
    Raises:
        XalignError: when the folder holds no such model that transformers can open, or not all of its weights.
    """
    import transformers
    from transformers import AutoTokenizer

    folder = model_folder(Path(folder))
    cuda = torch.cuda.is_available() and not train
    dtype = torch.float32 if train or node.dtype == "auto" and not cuda else \
        torch.bfloat16 if node.dtype == "auto" else getattr(torch, node.dtype)
    options = {"trust_remote_code": node.trust_remote_code, "local_files_only": True}
    check_folder(str(folder), folder, node.kind)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            if not train and getattr(node, "engine", "native") == "vllm":
                from xalign.backbones.vllm import VllmBackbone

                return VllmBackbone(folder, tokenizer, node)
            model = (_encoder if node.kind == "encoder" else _causal)(folder, node, train, {**options, "dtype": dtype})
        except XalignError:
            raise
        except Exception as e:  # whatever transformers, the tokenizer's library or the folder's own code make of a wrong file
            if "trust_remote_code" in str(e):
                raise XalignError(f"{folder}: needs Python code of its own, which is not run; read it, and if you trust it set "
                                  "backbone.trust_remote_code=true") from None
            raise XalignError(f"{folder}: no {WHAT[node.kind]} that transformers {transformers.__version__} can open ({reason(e)}); "
                              "name a folder or hub id with config.json, safetensors weights and a tokenizer") from None
    if train and node.kind == "encoder" and not node.train_embeddings:
        model.encoder.get_input_embeddings().requires_grad_(False)
    load_soft(model, folder)  # trained whatever becomes of the table
    _check_vocabulary(folder, model, tokenizer)
    if train:
        model.train()
    else:
        model.eval().requires_grad_(False)
        watch(model)
        if cuda:
            model.to("cuda")
    return (EncoderBackbone if node.kind == "encoder" else CausalBackbone)(model, tokenizer, node)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' warnings to itself, such as its list of weights that a model does not use."""
    from transformers.utils import logging

    noise = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(noise)


def _open(cls: Any, folder: Path, options: dict[str, Any]) -> Any:
    """``cls.from_pretrained``; weights that are missing or of another shape, which it would make up, are an error."""
    model, info = cls.from_pretrained(folder, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **options)
    complete(folder, model, info)
    return model


def complete(folder: Path, model: Any, info: Mapping[str, Any]) -> None:
    """Raise XalignError if `model` has weights that its files do not hold, or the files layers that it does not have.

    Args:
        info: what ``from_pretrained`` gives with ``output_loading_info=True``.
    """
    for found in info["mismatched_keys"]:  # names; transformers 5 adds the two shapes
        name, *shapes = (found,) if isinstance(found, str) else found
        what = f": {list(shapes[0])} in the file, {list(shapes[1])} by config.json" if shapes else ""
        raise XalignError(f"{folder}: the weights' {name} has another shape than config.json says{what}; the two are of two models")
    # a pooler is not used, and language models are pretrained without one
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise XalignError(f"{folder}: its weights lack {missing[0]}{_more(missing)}, which would be random; name a complete model whose "
                          "config.json is its own")
    own = {_LAYER.sub(".#.", name) for name in model.state_dict()}
    prefix = f"{model.base_model_prefix}."
    left = sorted(name for name in info["unexpected_keys"]
                  if _LAYER.search(name) and {n := _LAYER.sub(".#.", name), n.removeprefix(prefix), prefix + n} & own)
    if left:
        raise XalignError(f"{folder}: its weights hold {left[0]}{_more(left)}, for which config.json has no layer; name a model whose "
                          "config.json is its own")
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.element_size() > 1 and not weight.sum(dtype=torch.float32).isfinite():
            raise XalignError(f"{folder}: {name} holds values that are no finite numbers; the file is damaged, or its training diverged")


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if names[1:] else ""


def _check_vocabulary(folder: Path, model: Any, tokenizer: Any) -> None:
    """Raise XalignError if a text could become a token that has no embedding; some models have none for padding or masking."""
    table = embedded(model).get_input_embeddings()
    soft = isinstance(table, SoftEmbedding)
    rows = table.first + len(table.vectors) if soft else getattr(table, "num_embeddings", len(tokenizer))
    if len(tokenizer) <= rows:
        return
    unused = (tokenizer.pad_token_id, tokenizer.mask_token_id)
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows and i not in unused}
    if beyond:
        last = max(beyond, key=beyond.__getitem__)
        raise XalignError(f"{folder}: its tokenizer has tokens up to {beyond[last]}, its embeddings only {rows}; name a folder whose "
                          "tokenizer belongs to the model")


def _causal(folder: Path, node: Any, train: bool, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    try:  # scoring passes 4-D masks, which SDPA and eager attention take, others do not
        return _open(AutoModelForCausalLM, folder, {"attn_implementation": "sdpa", **options})
    except ValueError as e:
        if "scaled_dot_product" not in str(e):
            raise
        return _open(AutoModelForCausalLM, folder, {"attn_implementation": "eager", **options})


def _encoder(folder: Path, node: Any, train: bool, options: dict[str, Any]) -> Scorer:
    """The folder's encoder, without what was pretrained on top of it, under its own head if it has been saved with one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, trust_remote_code=node.trust_remote_code, local_files_only=True)
    rates = {k: v for k, v in config.to_dict().items() if "dropout" in k and isinstance(v, (int, float))}
    for name in rates if train else ():
        setattr(config, name, node.dropout)
    try:
        encoder = _open(AutoModel, folder, {"config": config, "add_pooling_layer": False, **options})
    except TypeError as e:
        if "add_pooling_layer" not in str(e):
            raise
        encoder = _open(AutoModel, folder, {"config": config, **options})
    for name, value in rates.items():  # the layers have theirs; the saved model keeps what it came with
        setattr(encoder.config, name, value)
    model = Scorer(encoder, node.head, node.temperature).to(options["dtype"])
    if (folder / HEAD).is_file():
        try:
            weights = load_file(folder / HEAD)
        except SafetensorError as e:
            raise XalignError(f"{folder / HEAD}: is no intact safetensors file ({e}); fetch or train the model again") from None
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in model.head.state_dict().items()}:
            raise XalignError(f"{folder / HEAD}: is not the head of backbone.head={node.head}; choose the head that the model was "
                              f"trained with ({'cross' if 'bias' in weights else 'similarity'})")
        model.head.load_state_dict(weights)
    return model
