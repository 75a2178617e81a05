"""Packed rows: the same loss, gradient and logits as rows alone, with every attention that is offered."""
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from test_training import make_rows, tiny  # noqa: E402

from xalign.config import ConfigError  # noqa: E402
from xalign.data.packing import pack, pad  # noqa: E402
from xalign.training import attention  # noqa: E402
from xalign.training.attention import use_packed  # noqa: E402
from xalign.training.losses import supervised  # noqa: E402


def reference_varlen(query: Any, key: Any, value: Any, starts_q: Any, starts_k: Any, max_q: int, max_k: int, *, scale: float,
                     window_size: tuple[int, int], enable_gqa: bool) -> Any:
    """What the CUDA kernel is documented to compute: each sequence alone, causal with the last query at the last key."""
    assert max_q == (starts_q[1:] - starts_q[:-1]).max() and max_k >= (starts_k[1:] - starts_k[:-1]).max() and enable_gqa
    out = []
    for a, b, c, d in zip(starts_q[:-1], starts_q[1:], starts_k[:-1], starts_k[1:], strict=True):
        q, k, v = query[a:b], key[c:d], value[c:d]
        k, v = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (k, v))
        at = torch.arange(b - a)[:, None] + (d - c) - (b - a)
        seen = torch.arange(d - c)[None] <= at
        if window_size[0] >= 0:
            seen &= torch.arange(d - c)[None] >= at - window_size[0]
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), v))
    return torch.cat(out)


@pytest.fixture(params=["sdpa", "eager", "flash"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each implementation; where there is no GPU, flash's kernel is replaced by its definition."""
    if request.param == "flash":
        pytest.importorskip("torch.nn.attention.varlen")
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference_varlen)
        monkeypatch.setattr(attention, "flash_reason", lambda model: "")
    return request.param


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("prefix", [0, 5])
def test_packed_loss_and_gradient_equal_those_of_separate_rows(implementation: str, prefix: int, kv_heads: int) -> None:
    rows = make_rows(9, prefix)
    alone, total = tiny(kv_heads), 0.0
    for r in rows:  # arithmetic: -sum over the response of weight * log softmax at the position before
        ids = torch.tensor([r.ids])
        logp = alone(input_ids=ids).logits[0].log_softmax(-1)
        loss = -sum(r.weight * logp[t - 1, r.ids[t]] for t in range(r.n_prompt, len(r.ids)))
        loss.backward()
        total += loss.item()
    for make in (pack, pad):
        model = tiny(kv_heads)
        if make is pack:
            assert use_packed(model, rows, implementation) == implementation
        out = supervised(model, make(rows))
        out.sum.backward()
        assert out.sum.item() == pytest.approx(total, rel=1e-5)
        assert out.count.item() == sum(r.targets for r in rows)
        for p, q in zip(alone.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=2e-4)


def test_rows_do_not_see_their_neighbours(implementation: str) -> None:
    model, rows = tiny(), make_rows(4)
    use_packed(model, rows, implementation)
    changed = [rows[0], replace(rows[1], ids=rows[1].ids[:5] + (49,) * (len(rows[1].ids) - 5)), *rows[2:]]
    logits = []
    for version in (rows, changed):
        batch = pack(version)
        logits.append(model(input_ids=batch.input_ids, position_ids=batch.position_ids, layout=batch.layout).logits[0].detach())
    other = batch.segment_ids[0] != 1
    torch.testing.assert_close(logits[0][other], logits[1][other], rtol=0, atol=1e-6)
    assert (logits[0][~other] - logits[1][~other]).abs().max() > 0.1


def test_without_a_layout_the_model_is_what_it_was(implementation: str) -> None:
    model, rows = tiny(), make_rows(3)
    batch = pad(rows)
    before = model(input_ids=batch.input_ids).logits
    use_packed(model, rows, implementation)
    torch.testing.assert_close(model(input_ids=batch.input_ids).logits, before)


def gpt_oss() -> Any:
    """A random model with attention sinks, which only its own eager attention computes."""
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    config = GptOssConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8,
                          num_attention_heads=4, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1)
    return GptOssForCausalLM(config)


def gemma2(window: int) -> Any:
    """A random model with capped logits and a sliding window."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8, num_attention_heads=4,
                          num_key_value_heads=2, sliding_window=window, attn_logit_softcapping=5.0, attn_implementation="eager")
    return Gemma2ForCausalLM(config)


@pytest.mark.parametrize(("make", "extra"), [(gpt_oss, "s_aux"), (lambda: gemma2(64), "softcap")])
def test_sinks_and_caps_need_the_models_own_attention(make: Any, extra: str) -> None:
    rows = make_rows(3)
    with pytest.raises(ConfigError, match=f"trainer.attention=sdpa: the model's attention uses {extra}, which sdpa lacks; "
                                          "set trainer.attention=eager"):
        use_packed(make(), rows, "sdpa")
    model = make()
    assert use_packed(model, rows) == "eager"
    packed = supervised(model, pack(rows)).sum.item()
    assert packed == pytest.approx(supervised(make(), pad(rows)).sum.item(), rel=1e-4)


def test_a_row_longer_than_the_window_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a row of \d+ tokens exceeds the model's sliding window of 8; set trainer.max_length=8"):
        use_packed(gemma2(8), make_rows(3), "eager")


def test_the_window_reaches_the_flash_kernel(implementation: str) -> None:
    """Mistral's window, shorter than the rows: only flash computes it packed; the others refuse."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=2, head_dim=8, sliding_window=6, attn_implementation="eager", initializer_range=0.3)
    model, rows = MistralForCausalLM(config), make_rows(4)
    if implementation != "flash":
        with pytest.raises(ConfigError, match="exceeds the model's sliding window of 6"):
            use_packed(model, rows, implementation)
    else:
        apart = supervised(model, pad(rows)).sum.item()
        use_packed(model, rows, "flash")
        assert supervised(model, pack(rows)).sum.item() == pytest.approx(apart, rel=1e-4)


def test_what_cannot_keep_packed_rows_apart_is_refused() -> None:
    class Deaf(type(tiny())):  # drops the layout on its way
        def forward(self, layout: object = None, **inputs: object) -> object:
            return super().forward(**inputs)

    with pytest.raises(ConfigError, match="Deaf does not keep packed rows apart with trainer.attention=sdpa; set trainer.packing=false"):
        use_packed(Deaf(tiny().config), make_rows(3))
    with pytest.raises(ConfigError, match=r"trainer.packing=true: Linear .* set trainer.packing=false"):
        use_packed(torch.nn.Linear(2, 2), make_rows(3))
    with pytest.raises(ConfigError, match="trainer.attention=flash: needs a CUDA device; set trainer.attention=auto"):
        if torch.cuda.is_available():
            pytest.skip("there is one")
        use_packed(tiny(), make_rows(3), "flash")


def test_flash_says_what_it_needs() -> None:
    gpu = SimpleNamespace(is_cuda=True, dtype=torch.float32)
    model = SimpleNamespace(parameters=lambda: iter([gpu]))
    assert "half precision only, the model is float32; set trainer.precision=bf16" in attention.flash_reason(model)
