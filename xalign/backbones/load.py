"""Open a model folder as a backbone."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from xalign.assets import model_folder
from xalign.backbones.causal import CausalBackbone
from xalign.backbones.counting import watch
from xalign.backbones.encoder import HEAD, EncoderBackbone, Scorer
from xalign.backbones.node import Backbone
from xalign.backbones.soft import load_soft
from xalign.config import XalignError

WHAT = {"causal": "causal language model", "encoder": "encoder"}


def load_backbone(folder: Path, node: Backbone, train: bool = False) -> CausalBackbone | EncoderBackbone:
    """Load the model and tokenizer of `folder`.

    Args:
        folder: a weights or model artifact, or any folder that `save_pretrained` wrote.
        node: the run's backbone node; its kind says what the folder is opened as.
        train: float32 on the CPU in training mode, for the trainer to move and cast; otherwise evaluation
            mode, without gradients, on CUDA where there is one.
    Raises:
        XalignError: when the folder holds no such model that transformers can open.
    """
    import transformers
    from transformers import AutoTokenizer

    folder = model_folder(Path(folder))
    cuda = torch.cuda.is_available() and not train
    dtype = torch.float32 if train or node.dtype == "auto" and not cuda else \
        torch.bfloat16 if node.dtype == "auto" else getattr(torch, node.dtype)
    options = {"trust_remote_code": node.trust_remote_code, "local_files_only": True}
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            if not train and getattr(node, "engine", "native") == "vllm":
                from xalign.backbones.vllm import VllmBackbone

                return VllmBackbone(folder, tokenizer, node)
            model = (_encoder if node.kind == "encoder" else _causal)(folder, node, train, {**options, "dtype": dtype})
        except (OSError, ValueError, KeyError, ImportError) as e:
            reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise XalignError(f"{folder}: no {WHAT[node.kind]} that transformers {transformers.__version__} can open ({reason}); "
                              "name a folder or hub id with config.json, safetensors weights and a tokenizer") from None
    if train and node.kind == "encoder" and not node.train_embeddings:
        model.encoder.get_input_embeddings().requires_grad_(False)
    load_soft(model, folder)  # trained whatever becomes of the table
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


def _causal(folder: Path, node: Any, train: bool, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    try:  # scoring passes 4-D masks, which SDPA and eager attention take, others do not
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", **options)
    except ValueError as e:
        if "scaled_dot_product" not in str(e):
            raise
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **options)


def _encoder(folder: Path, node: Any, train: bool, options: dict[str, Any]) -> Scorer:
    """The folder's encoder, without what was pretrained on top of it, under its own head if it has been saved with one."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, trust_remote_code=node.trust_remote_code, local_files_only=True)
    if getattr(config, "is_encoder_decoder", False) or any("CausalLM" in name for name in config.architectures or ()):
        raise XalignError(f"{folder}: is a {config.model_type} model, not an encoder; name an encoder, or choose backbone=hf "
                          "for a causal model")
    rates = {k: v for k, v in config.to_dict().items() if "dropout" in k and isinstance(v, (int, float))}
    for name in rates if train else ():
        setattr(config, name, node.dropout)
    try:
        encoder = AutoModel.from_pretrained(folder, config=config, add_pooling_layer=False, **options)
    except TypeError as e:
        if "add_pooling_layer" not in str(e):
            raise
        encoder = AutoModel.from_pretrained(folder, config=config, **options)
    for name, value in rates.items():  # the layers have theirs; the saved model keeps what it came with
        setattr(encoder.config, name, value)
    model = Scorer(encoder, node.head, node.temperature).to(options["dtype"])
    if (folder / HEAD).is_file():
        weights = load_file(folder / HEAD)
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in model.head.state_dict().items()}:
            raise XalignError(f"{folder / HEAD}: is not the head of backbone.head={node.head}; choose the head that the model was "
                              f"trained with ({'cross' if 'bias' in weights else 'similarity'})")
        model.head.load_state_dict(weights)
    return model
