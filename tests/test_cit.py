"""CIT: its rows one by one, and its contrastive term by the cosines of single sequences."""
from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from test_methods import CONF, FIN, KENYA, PERU, Fakes

from xalign.config import ConfigError, XalignError, build
from xalign.data.packing import Row, pack, pad
from xalign.methods.cit import CIT, draw
from xalign.methods.supervised import SFT

torch = pytest.importorskip("torch")

from test_training import NODE, fit, tiny  # noqa: E402

from xalign.training.losses import supervised  # noqa: E402

# what each of the four subsets asks and answers
TABLE = {
    "LL": ("eng", "Capital of Kenya?\nAnswer in English.", "Nairobi"),
    "TL": ("fin", "Kenian pääkaupunki?\nAnswer in English.", "Nairobi"),
    "LT": ("eng", "Capital of Kenya?\nAnswer in Finnish.", "Nairobi (fi)"),
    "TT": ("fin", "Kenian pääkaupunki?\nAnswer in Finnish.", "Nairobi (fi)"),
}


# rows


def test_languages_are_drawn_as_the_table_says() -> None:
    def share(subsets: str, **how: float) -> float:
        drawn = [draw(f"q{i}", how.get("cross", 0.5), 0, 1) for i in range(4000)]
        return sum(s in subsets.split() for s in drawn) / 4000

    error = 3 * math.sqrt(0.25 / 4000)  # three standard deviations of a share of one half
    assert share("TL TT") == pytest.approx(0.5, abs=error)  # the question's language is uniform
    assert share("TL LT") == pytest.approx(0.5, abs=error) and share("TL") == pytest.approx(0.25, abs=error)
    assert share("TL LT", cross=0.2) == pytest.approx(0.2, abs=error)
    assert share("TL LT", cross=0) == 0 and share("LL TT", cross=1) == 0
    one = [draw(f"q{i}", 0.5, 0, 1) for i in range(64)]
    assert one != [draw(f"q{i}", 0.5, 0, 2) for i in range(64)] != [draw(f"q{i}", 0.5, 1, 1) for i in range(64)]


def test_rows_are_passes_over_the_data(tmp_path: Path) -> None:
    rows, facts = Fakes(tmp_path, CIT(passes=12)).make()
    assert [r.id for r in rows[:4]] == ["capital/KE/t1/1", "capital/PE/t1/1", "capital/KE/t1/2", "capital/PE/t1/2"]
    kenya = [r for r in rows if r.group == "KE"]
    assert [(r.subset, r.lang, r.prompt, r.response) for r in kenya] == [
        (s, *TABLE[s]) for s in (draw(KENYA.id, 0.5, 0, k) for k in range(1, 13))
    ]
    assert {r.subset for r in kenya} == set(TABLE) and len(rows) == 24 and len({r.id for r in rows}) == 24
    assert not any(r.pivot for r in rows)
    assert facts["rows"] == 24 and list(facts["subsets"]) == ["LL", "TL", "LT", "TT"] and facts["not translated"] == {}
    assert len(Fakes(tmp_path, CIT()).make()[0]) == 6


@pytest.mark.parametrize("lost, gone, reason", [("Lima", ("LT", "TT"), "response"), ("Capital of Peru?", ("TL", "TT"), "prompt")])
def test_a_missing_side_costs_only_the_rows_that_need_it(tmp_path: Path, lost: str, gone: tuple[str, ...], reason: str) -> None:
    rows, facts = Fakes(tmp_path, CIT(passes=12), lost=(lost,)).make()
    drawn = Counter(draw(PERU.id, 0.5, 0, k) for k in range(1, 13))
    assert Counter(r.subset for r in rows if r.group == "PE") == {s: n for s, n in drawn.items() if s not in gone}
    assert facts["not translated"] == {f"{reason}: unknown text": sum(drawn[s] for s in gone)} and sum(drawn[s] for s in gone) > 0
    assert sum(r.group == "KE" for r in rows) == 12


def test_without_translations_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(XalignError, match=r"subset TL, LT, TT is empty \(\d+ x (prompt|response): unknown text"):
        Fakes(tmp_path, CIT(passes=9), lost=tuple(FIN)).make()


def test_twins_ask_the_same_in_the_other_language(tmp_path: Path) -> None:
    run = Fakes(tmp_path, CIT(passes=12, contrastive=1.5), lost=("Capital of Peru?",))
    rows, _ = run.make()
    other = {"LL": "TL", "TL": "LL", "LT": "TT", "TT": "LT"}  # the question changes, the requested language does not
    assert [r.pivot for r in rows if r.group == "KE"] == [TABLE[other[r.subset]][1] for r in rows if r.group == "KE"]
    assert {r.pivot for r in rows if r.group == "PE"} == {""}  # its question has no translation
    plain, _ = Fakes(tmp_path, CIT(passes=12), lost=("Capital of Peru?",)).make()
    assert plain == [r.with_(pivot="") for r in rows]  # the term changes nothing else
    assert CIT(contrastive=0.1).rows(run).key == CIT(contrastive=1.5).rows(run).key != CIT().rows(run).key


def test_the_term_is_part_of_the_models_key() -> None:
    assert CIT().loss_params() == CIT(temperature=0.1).loss_params() == SFT().loss_params()
    assert CIT(contrastive=1.0).loss_params() != CIT(contrastive=1.5).loss_params() != CIT(contrastive=1.5, temperature=0.1).loss_params()


def test_settings(tmp_path: Path) -> None:
    values = yaml.safe_load((CONF / "cit.yaml").read_text(encoding="utf-8"))
    assert build(values, "method") == CIT()
    for change, message in (({"passes": 0}, "method.passes=0: must be at least 1"),
                            ({"cross": 2}, r"method.cross=2.0: must be in \[0, 1\]"),
                            ({"temperature": 0}, "method.temperature=0.0: must be greater than 0")):
        with pytest.raises(ConfigError, match=message):
            build({**values, **change}, "method")
    run = Fakes(tmp_path, CIT())
    run.backbone.kind = "encoder"
    with pytest.raises(ConfigError, match="method=cit: trains causal backbones"):
        CIT().check_run(run)


# loss


def pairs(n: int = 6, passes: int = 1) -> list[Row]:
    """Rows whose prompts start alike, with twins of other lengths; answers of 1 to 4 tokens."""
    rows = []
    for i in range(n):
        for k in range(passes):
            prompt = (1, 2, *((5 * i + 3 * j + k) % 43 + 6 for j in range(4 + i % 3)))
            twin = (1, 2, *((11 * i + 7 * j + k) % 43 + 6 for j in range(3 + i % 4)))
            answer = tuple((i + j) % 43 + 6 for j in range(1 + i % 4))
            rows.append(Row(f"q{i}/{k}", prompt + answer, len(prompt), group=f"g{i}", twin=Row(f"q{i}/{k}", twin + answer, len(twin))))
    return rows


def by_hand(model: torch.nn.Module, rows: list[Row], temperature: float) -> torch.Tensor:
    """Sum over rows of targets * -log(exp(cos(own twin) / t) / sum over own twin and other questions' twins of the same)."""
    def state(row: Row) -> torch.Tensor:
        ids = torch.tensor([row.ids[:row.n_prompt]])
        return model(input_ids=ids, output_hidden_states=True).hidden_states[1][0, -1]

    rows = [r for r in rows if r.twin]
    anchors, others = [state(r) for r in rows], [state(r.twin) for r in rows]
    total = torch.zeros(())
    for i, r in enumerate(rows):
        cosines = {j: anchors[i] @ o / (anchors[i].norm() * o.norm()) for j, o in enumerate(others)}
        kept = [j for j in cosines if j == i or rows[j].id.split("/")[0] != r.id.split("/")[0]]
        total = total - r.weight * r.targets * torch.log(torch.exp(cosines[i] / temperature)
                                                         / sum(torch.exp(cosines[j] / temperature) for j in kept))
    return total


@pytest.mark.parametrize("make", [pack, pad])
def test_the_contrastive_term_is_infonce_of_first_layer_states(make: object) -> None:
    from xalign.training.attention import use_packed

    rows = pairs(5, passes=2)
    rows[3] = replace(rows[3], twin=None)
    rows[4] = replace(rows[4], weight=2.0)
    method, model, alone = CIT(contrastive=0.7, temperature=0.2), tiny(), tiny()
    wanted = supervised(alone, pad(rows)).sum + 0.7 * by_hand(alone, rows, 0.2)
    wanted.backward()
    if make is pack:
        use_packed(model, rows)
    out = method.loss(model, make(rows))
    out.sum.backward()
    assert out.sum.item() == pytest.approx(wanted.item(), rel=1e-5) and out.count.item() == sum(r.targets for r in rows)
    with torch.no_grad():
        assert out.logs["contrastive"].item() == pytest.approx(by_hand(alone, rows, 0.2).item(), rel=1e-4)
    assert out.logs["contrastive"].item() > 1  # there was something to tell apart
    for p, q in zip(alone.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=5e-4)


def test_without_the_term_the_loss_is_supervised() -> None:
    model, batch = tiny(), pad(pairs())
    out, plain = CIT().loss(model, batch), supervised(model, batch)
    assert out.sum.item() == plain.sum.item() and set(out.logs) == {"ce"}
    out.sum.backward()
    with_twins = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    supervised(model, pad([replace(r, twin=None) for r in pairs()])).sum.backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(with_twins, model.parameters(), strict=True))


@pytest.mark.parametrize("make", [pack, pad])
@pytest.mark.parametrize("rows", [pairs(1), [replace(r, twin=None) for r in pairs(3)], pairs(1, passes=3),
                                  [pairs(2)[0], replace(pairs(2)[1], twin=None)], [pairs(2)[0].unlabelled()]])
def test_fewer_than_two_questions_have_nothing_to_be_told_apart(make: object, rows: list[Row]) -> None:
    from xalign.training.attention import use_packed

    model = tiny()
    if make is pack:
        use_packed(model, pairs())
    out = CIT(contrastive=1.5).loss(model, make(rows))
    assert out.logs["contrastive"].item() == pytest.approx(0, abs=1e-6)
    assert out.sum.item() == pytest.approx(supervised(model, make(rows)).sum.item(), abs=1e-5)


def test_training_brings_the_two_languages_together(tmp_path: Path) -> None:
    rows = pairs(24)
    log = fit(tmp_path / "a", rows, replace(NODE, tokens_per_step=200), CIT(contrastive=1.0))
    steps = [r for r in log if "grad_norm" in r]
    assert len(steps) >= 4 and steps[-1]["loss"] < steps[0]["loss"] - 0.3
    assert steps[-1]["contrastive"] < 0.8 * steps[0]["contrastive"]
    assert steps[0]["loss"] == pytest.approx(steps[0]["ce"] + steps[0]["contrastive"], rel=1e-5)
    for name, change in {"zero3": {"zero": 3}, "padded": {"packing": False}, "recompute": {"activation_checkpointing": True}}.items():
        other = fit(tmp_path / name, rows, replace(NODE, tokens_per_step=200, **change), CIT(contrastive=1.0))
        assert [r["loss"] for r in other if "grad_norm" in r] == pytest.approx([r["loss"] for r in steps], rel=1e-3), name
