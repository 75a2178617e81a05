"""DeepSpeed, and nothing else: how it is imported, configured and started. The only importer of deepspeed."""
from __future__ import annotations

import io
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from xalign.config import ConfigError
from xalign.training.memory import BUCKET
from xalign.training.node import TrainerNode


def load_deepspeed() -> Any:
    """Import deepspeed quietly, without its just-in-time compiled CPU kernels."""
    import logging

    with quiet_stderr():  # importing it tries to link optional libraries
        import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        # its shared-memory all-reduce compiles for a minute and needs g++; gloo serves
        getattr(deepspeed.ops, "__compatible_ops__", {})["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Send file descriptor 2 to nowhere: what child processes write to it too."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def uses_bf16(node: TrainerNode) -> bool:
    """Whether the node's precision comes to bf16 on this machine."""
    return node.precision == "bf16" or node.precision == "auto" and torch.cuda.is_available()


def clips_itself(node: TrainerNode) -> bool:
    """Whether the trainer clips gradients: where DeepSpeed has no optimizer of its own it clips too, but does not tell the norm."""
    return node.zero_stage(uses_bf16(node)) == 0


def make_engine(model: Any, node: TrainerNode, lr: float, accumulation: int, world: int) -> Any:
    """DeepSpeed's engine around `model`, with AdamW or SGD over its trainable parameters.

    Matrices decay, vectors (norms, biases) do not.
    """
    deepspeed = load_deepspeed()
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in weights if p.ndim >= 2], "weight_decay": node.weight_decay},
              {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    if node.optimizer == "sgd":
        optimizer: Any = torch.optim.SGD(groups, lr=lr, momentum=node.momentum, fused=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=tuple(node.betas), eps=node.eps, fused=True)
    with quiet_stderr():  # ZeRO-3 looks for libaio with the linker
        config = settings(node, accumulation, sum(p.numel() for p in weights))
        engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)[0]
    if world == 1 and clips_itself(node):  # nobody to average with: it would only copy every gradient twice, 10 % of a step
        engine.enable_backward_allreduce = False
    return engine


def settings(node: TrainerNode, accumulation: int, trainable: int) -> dict[str, Any]:
    """DeepSpeed's configuration for so many trainable parameters."""
    zero: dict[str, Any] = {"stage": node.zero_stage(uses_bf16(node)), "reduce_bucket_size": min(BUCKET, trainable)}  # allocated in full
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if node.offload != "none":
        zero["offload_optimizer"] = host
    if node.offload == "all":
        zero["offload_param"] = host
    return {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": accumulation,
            "gradient_clipping": 0.0 if clips_itself(node) else node.clip, "bf16": {"enabled": uses_bf16(node)},
            "zero_optimization": zero, "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW needs no compiler
            "steps_per_print": sys.maxsize}


def to_universal(checkpoint: Path, made: Path) -> None:
    """Convert a ZeRO checkpoint to DeepSpeed's universal format, which any number of processes can load.

    `made` appears only when it is whole. Raises whatever the converter raises.
    """
    from deepspeed.checkpoint import ds_to_universal

    partial = made.with_name(made.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True, "inject_missing_state": True}
    with redirect_stdout(io.StringIO()), quiet_stderr():
        ds_to_universal.main(Namespace(input_folder=str(checkpoint), output_folder=str(partial), **options))
    (made.parent / "latest_universal").unlink(missing_ok=True)
    os.replace(partial, made)


def load_universal(engine: Any, made: Path) -> None:
    """Load a folder that `to_universal` made into the engine, each process its part."""
    groups = engine.optimizer.param_groups
    own = [{k: v for k, v in g.items() if k != "params"} for g in groups]
    engine._config.load_universal_checkpoint = True
    engine.load_checkpoint(str(made.parent), tag=made.name)
    engine._config.load_universal_checkpoint = False
    # ZeRO-3 gives every group the first one's weight decay, and all of them one and the same step counter
    for group, values in zip(groups, own, strict=True):
        group.update(values)
    for values in engine.optimizer.state.values():
        if "step" in values:
            values["step"] = values["step"].clone()


def compile_layers(model: Any) -> None:
    """torch.compile every layer of the model's longest stack, so that one graph serves all of them.

    Raises:
        ConfigError: where there is no compiler.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "gcc")):
        raise ConfigError("trainer.compile=true: needs a C++ compiler, and there is no g++ here; install one, or set "
                          "trainer.compile=false")
    stacks = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    for layer in max(stacks, key=len, default=()):
        layer.compile(dynamic=True)
