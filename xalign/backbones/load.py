"""Open a model folder as a backbone."""
from __future__ import annotations

from pathlib import Path

import torch

from xalign.assets import model_folder
from xalign.backbones.causal import CausalBackbone
from xalign.backbones.node import Backbone
from xalign.config import XalignError


def load_backbone(folder: Path, node: Backbone, train: bool = False) -> CausalBackbone:
    """Load the model and tokenizer of `folder`.

    Args:
        folder: a weights or model artifact, or any folder that `save_pretrained` wrote.
        node: the run's backbone node (template, system prompt, dtype, lengths).
        train: float32 on the CPU in training mode, for the trainer to move and cast; otherwise evaluation
            mode, without gradients, on CUDA where there is one.
    Raises:
        XalignError: when the folder holds no model that transformers can open.
    """
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder(Path(folder))
    cuda = torch.cuda.is_available() and not train
    dtype = torch.float32 if train or node.dtype == "auto" and not cuda else \
        torch.bfloat16 if node.dtype == "auto" else getattr(torch, node.dtype)
    noise = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        options = {"trust_remote_code": node.trust_remote_code, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        try:  # scoring passes 4-D masks, which SDPA and eager attention take, others do not
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa", **options)
        except ValueError as e:
            if "scaled_dot_product" not in str(e):
                raise
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager", **options)
    except (OSError, ValueError, KeyError, ImportError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise XalignError(f"{folder}: no causal language model that transformers {transformers.__version__} can open ({reason}); "
                          "name a folder or hub id with config.json, safetensors weights and a tokenizer") from None
    finally:
        transformers.utils.logging.set_verbosity(noise)
    if train:
        model.train()
    else:
        model.eval().requires_grad_(False)
        if cuda:
            model.to("cuda")
    return CausalBackbone(model, tokenizer, node)
