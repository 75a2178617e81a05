"""Scoring and decoding by vLLM instead of transformers: the same prompts, options and stop rules.

Written to vLLM's documented interface (0.10 and later: `LLM.generate` over token ids, `prompt_logprobs`) and tested against a stand-in of
it only: vLLM needs a GPU. Compare a few scores with backbone.engine=native before trusting a large run.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from xalign.backbones.causal import CausalBackbone
from xalign.backbones.soft import FILE
from xalign.config import XalignError
from xalign.meter import work

if TYPE_CHECKING:
    from xalign.backbones.node import HubBackbone

CHUNK = 512  # answers that are asked for, and then written down, together


class VllmBackbone(CausalBackbone):
    """A model that vLLM serves in this process. It cannot be trained or saved, and decodes greedily only.

    Raises:
        XalignError: when the model has soft prompts, which vLLM does not read.
    """

    def __init__(self, folder: Path, tokenizer: Any, node: HubBackbone) -> None:
        from transformers import AutoConfig, GenerationConfig
        from vllm import LLM

        if (folder / FILE).is_file():
            raise XalignError(f"backbone.engine=vllm: {folder} has trained soft prompts, which vLLM does not read; "
                              "set backbone.engine=native")
        options = {"trust_remote_code": node.trust_remote_code}
        own = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").is_file() else None
        super().__init__(SimpleNamespace(config=AutoConfig.from_pretrained(folder, **options), generation_config=own), tokenizer, node)
        # generation_config=vllm: not the model's own repetition penalty
        self.engine = LLM(model=str(folder), dtype=node.dtype, max_model_len=self.max_length, generation_config="vllm", **options)
        self.max_length -= 1  # even to score, vLLM writes a token

    def _ask(self, rows: list[list[int]], **params: Any) -> list[Any]:
        from vllm import SamplingParams, TokensPrompt

        found = self.engine.generate([TokensPrompt(prompt_token_ids=row) for row in rows], SamplingParams(temperature=0.0, **params),
                                     use_tqdm=False)
        work.tokens += sum(map(len, rows)) - sum(getattr(answer, "num_cached_tokens", None) or 0 for answer in found)
        work.uncounted = "vLLM computes without being counted"
        return found

    def _sums(self, rows: list[tuple[list[int], list[list[int]]]]) -> list[list[float]]:
        """See `CausalBackbone`; the log-probability of a prompt's own tokens is always among those that vLLM returns."""
        found = iter(self._ask([prompt + option for prompt, options in rows for option in options], max_tokens=1, prompt_logprobs=0))
        return [[sum(at[token].logprob for at, token in zip(next(found).prompt_logprobs[len(prompt):], option, strict=True))
                 for option in options] for prompt, options in rows]

    def _decode(self, rows: list[list[int]], max_new_tokens: int, ends: Callable[[list[int]], bool] | None,
                beams: int) -> Iterator[tuple[int, list[int]]]:
        """See `CausalBackbone`; answers are decoded to their end or cap, and cut at stop strings afterwards."""
        if beams > 1:
            raise XalignError(f"backbone.engine=vllm: decodes greedily, not with beams={beams}; set backbone.engine=native")
        for start in range(0, len(rows), CHUNK):
            found = self._ask(rows[start:start + CHUNK], max_tokens=max_new_tokens, stop_token_ids=sorted(self.stop))
            for i, answer in enumerate(found, start):
                tokens = list(answer.outputs[0].token_ids)
                work.tokens += len(tokens)
                end = next((k for k, token in enumerate(tokens) if token in self.stop or ends and ends(tokens[:k + 1])), None)
                yield i, tokens if end is None else tokens[:end + (tokens[end] not in self.stop)]
