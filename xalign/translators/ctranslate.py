"""NLLB-200 through CTranslate2, which decodes several times faster than transformers; the same weights, converted once."""
from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xalign.backbones.folder import check_folder, reason
from xalign.cache import Artifact, Stage
from xalign.config import ConfigError, XalignError
from xalign.languages import LANGUAGES
from xalign.meter import work

INSTALL = "pip install -e '.[ctranslate2]', or set translator.engine=transformers"
PATIENCE = 2  # transformers searches on while a growing beam could still win; with 1, a fifth of a noisy model's translations differed


def check_installed() -> None:
    """Raise ConfigError where CTranslate2 is missing."""
    if importlib.util.find_spec("ctranslate2") is None:
        raise ConfigError(f"translator.engine=ctranslate2: CTranslate2 is not installed; {INSTALL}")


def converted(weights: Stage, name: str) -> Stage:
    """The stage that writes `weights` in CTranslate2's format into ``model/``, in the precision of the checkpoint."""
    def work(folder: Path, inputs: list[Artifact]) -> dict[str, Any]:
        from ctranslate2.converters import TransformersConverter

        from xalign.assets import model_folder

        source = model_folder(inputs[0]).resolve()
        check_folder(f"translator.name={source}", source, "seq2seq")
        try:
            TransformersConverter(str(source)).convert(str(folder / "model"))
        except Exception as e:  # the two libraries' versions do not always go together, which shows in any way
            import transformers

            raise XalignError(f"translator.engine=ctranslate2: CTranslate2 {version('ctranslate2')} beside transformers "
                              f"{transformers.__version__} cannot convert {source} ({reason(e)}); "
                              "set translator.engine=transformers") from None
        return {"ctranslate2": version("ctranslate2")}

    return Stage("ctranslate2", 1, {}, work, inputs=(weights,), seconds=120, label=f"convert {name} for CTranslate2")


class Engine:
    """A converted model that translates token ids into one language.

    Float32 on CPU and bfloat16 on CUDA, as with transformers, and the same translations, but for ties.
    """

    def __init__(self, folder: Path, tokenizer: Any, lang: str, beam: int, max_length: int, device: str) -> None:
        import ctranslate2
        import torch

        cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
        place: dict[str, Any] = {"device": "cuda", "device_index": torch.cuda.current_device(), "compute_type": "bfloat16"} if cuda else \
            {"device": "cpu", "intra_threads": torch.get_num_threads(), "compute_type": "float32"}
        self.model = ctranslate2.Translator(str(folder / "model"), **place)
        self.tokenizer, self.start, self.beam, self.max_length = tokenizer, LANGUAGES[lang].flores, beam, max_length

    def translate(self, rows: Sequence[list[int]]) -> list[str | None]:
        """The translation of each row of source ids; None where it did not end within `max_length` tokens."""
        tokenizer = self.tokenizer
        # max_length counts, as transformers does, the decoder's start token too; the language's is the first of the prediction
        found = self.model.translate_batch([tokenizer.convert_ids_to_tokens(row) for row in rows], [[self.start]] * len(rows),
                                           beam_size=self.beam, max_input_length=0, max_decoding_length=self.max_length - 1,
                                           return_end_token=True, patience=PATIENCE if self.beam > 1 else 1)
        work.tokens += sum(map(len, rows)) + self.beam * sum(len(result.hypotheses[0]) for result in found)
        work.uncounted = "CTranslate2 computes without being counted"
        texts: list[str | None] = []
        for tokens in (result.hypotheses[0] for result in found):
            text = tokenizer.decode(tokenizer.convert_tokens_to_ids(tokens), skip_special_tokens=True).strip()
            texts.append(text if text and tokens[-1] == tokenizer.eos_token else None)
        return texts
