"""xCoT-style tuning: its rows one by one, and its divergence by the softmax of single sequences."""
from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from test_methods import CONF, KENYA, PERU, Fakes

from xalign.config import ConfigError, XalignError, build
from xalign.data.codeswitch import Dictionary
from xalign.data.packing import Row, pack, pad
from xalign.methods.supervised import SFT, TSFT
from xalign.methods.xcot import XCOT, restated

torch = pytest.importorskip("torch")

from test_training import NODE, fit, tiny  # noqa: E402

from xalign.training.losses import supervised  # noqa: E402


def switching(folder: Path, method: XCOT, **more: object) -> Fakes:
    """A run whose dictionary knows "pääkaupunki"."""
    folder.mkdir(exist_ok=True)
    (folder / "capital.txt").write_text("capital pääkaupunki\n", encoding="utf-8")
    return Fakes(folder, method, dictionary=Dictionary(path=str(folder / "capital.txt")), **more)


# rows


def test_rows_follow_the_table(tmp_path: Path) -> None:
    rows, facts = switching(tmp_path, XCOT(code_switch=1.0, restate=1.0)).make()
    assert [(r.id, r.subset, r.lang, r.prompt, r.response, r.pivot, r.group) for r in rows] == [
        ("capital/KE/t1/TL", "TL", "fin", "Kenian capital?", "Capital of Kenya?\nNairobi", "Capital of Kenya?", "KE"),
        ("capital/PE/t1/TL", "TL", "fin", "Perun capital?", "Capital of Peru?\nLima", "Capital of Peru?", "PE"),
        ("capital/KE/t1/TT", "TT", "fin", "Kenian pääkaupunki?", "Nairobi (fi)", "", "KE"),
        ("capital/PE/t1/TT", "TT", "fin", "Perun pääkaupunki?", "Lima (fi)", "", "PE"),
    ]  # TT is neither switched nor restated nor compared, and the pivot is never switched
    assert facts["code-switched questions"] == {"TL": 2} and facts["restated questions"] == 2
    plain, facts = switching(tmp_path / "plain", XCOT(code_switch=0.0, restate=0.0)).make()
    assert [(r.prompt, r.response) for r in plain[:2]] == [("Kenian pääkaupunki?", "Nairobi"), ("Perun pääkaupunki?", "Lima")]
    assert plain[2:] == rows[2:] and facts["restated questions"] == 0 and "code-switched questions" not in facts


def test_every_second_answer_is_restated() -> None:
    rows = [KENYA.with_(id=f"q{i}/TL") for i in range(4000)]
    asked = {r.id: f"x {r.id}" for r in rows}
    new, n = restated(rows, asked, 0.5, 0)
    assert n == sum(r.response != "Nairobi" for r in new) == pytest.approx(2000, abs=3 * math.sqrt(1000))
    assert {r.response for r in new} <= {"Nairobi", *(f"x {r.id}\nNairobi" for r in rows)}
    assert [r.response for r in new] != [r.response for r in restated(rows, asked, 0.5, 1)[0]]
    assert restated(rows, asked, 0.0, 0) == (rows, 0)


@pytest.mark.parametrize("lost, left", [("Lima", ["KE/TL", "PE/TL", "KE/TT"]), (PERU.prompt, ["KE/TL", "KE/TT"])])
def test_a_missing_side_costs_only_its_subsets(tmp_path: Path, lost: str, left: list[str]) -> None:
    rows, facts = switching(tmp_path, XCOT(), lost=(lost,)).make()
    assert [f"{r.group}/{r.subset}" for r in rows] == left and sum(facts["not translated"].values()) == 1


def test_an_empty_subset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(XalignError, match=r"subset TT is empty \(2 x response: unknown text\)"):
        switching(tmp_path, XCOT(), lost=("Lima", "Nairobi")).make()


def test_without_divergence_no_pivots_are_written(tmp_path: Path) -> None:
    run = switching(tmp_path, XCOT(kl=0.0))
    rows, _ = run.make()
    with_pivots, _ = switching(tmp_path / "kl", XCOT()).make()
    assert rows == [r.with_(pivot="") for r in with_pivots] != with_pivots
    assert XCOT(kl=0.5).rows(run).key == XCOT().rows(run).key != XCOT(kl=0.0).rows(run).key
    assert XCOT(kl=0.0).loss_params() == SFT().loss_params() and XCOT(kl=0.5).loss_params() != XCOT().loss_params()


def test_stages_are_shared_and_none_is_made_for_nothing(tmp_path: Path) -> None:
    run = switching(tmp_path, XCOT())
    keys = {s.key for s in XCOT().rows(run).all()}
    assert {s.key for s in TSFT().rows(run).all()} - {TSFT().rows(run).key} <= keys
    assert "dictionary" not in {s.name for s in XCOT(code_switch=0.0).rows(run).all()}


def test_settings() -> None:
    values = yaml.safe_load((CONF / "xcot.yaml").read_text(encoding="utf-8"))
    assert build(values, "method") == XCOT()
    for change, message in (({"restate": 1.5}, r"method.restate=1.5: must be in \[0, 1\]"),
                            ({"kl": -1}, "method.kl=-1.0: must be at least 0"),
                            ({"code_switch": 2}, "as in SDRRL: 0.15")):
        with pytest.raises(ConfigError, match=message):
            build({**values, **change}, "method")


# loss


def mixed(n: int = 8) -> list[Row]:
    """Rows of which two in three have a twin: another prompt of another length, the same answer of 1 to 4 tokens."""
    rows = []
    for i in range(n):
        prompt = (1, 2, *((5 * i + 3 * j) % 43 + 6 for j in range(4 + i % 3)))
        twin = (1, 2, *((11 * i + 7 * j) % 43 + 6 for j in range(2 + i % 4)))
        answer = tuple((7 * i + 3 * j) % 43 + 6 for j in range(1 + i % 4))
        row = Row(f"r{i}", prompt + answer, len(prompt), weight=1 + i % 2)
        rows.append(replace(row, twin=Row(row.id, twin + answer, len(twin))) if i % 3 else row)
    return rows


def by_hand(model: torch.nn.Module, rows: list[Row], fixed: bool = True) -> tuple[torch.Tensor, float]:
    """sum of weight * sum_v p_S (log p_S - log p_L), each row and twin alone; and the same without weights."""
    def predictions(row: Row) -> torch.Tensor:
        z = model(input_ids=torch.tensor([row.ids])).logits[0, row.n_prompt - 1:-1]
        return torch.exp(z) / torch.exp(z).sum(-1, keepdim=True)

    total, plain = torch.zeros(()), 0.0
    for r in (r for r in rows if r.twin):
        target, source = predictions(r), predictions(r.twin)
        source = source.detach() if fixed else source
        kl = (source * (source.log() - target.log())).sum()
        total, plain = total + r.weight * kl, plain + kl.item()
    return total, plain


@pytest.mark.parametrize("make", [pack, pad])
def test_the_divergence_is_kl_from_the_fixed_source_side(make: object) -> None:
    from xalign.training.attention import use_packed

    rows, model, alone = mixed(), tiny(), tiny()
    kl, plain = by_hand(alone, rows)
    wanted = supervised(alone, pad(rows)).sum + 0.6 * kl
    wanted.backward()
    if make is pack:
        use_packed(model, rows)
    out = XCOT(kl=0.6).loss(model, make(rows))
    out.sum.backward()
    assert out.sum.item() == pytest.approx(wanted.item(), rel=1e-5) and out.count.item() == sum(r.targets for r in rows)
    assert out.logs["kl"].item() == pytest.approx(plain, rel=1e-4) and plain > 1
    for p, q in zip(alone.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=5e-4)
    both = tiny()
    (supervised(both, pad(rows)).sum + 0.6 * by_hand(both, rows, fixed=False)[0]).backward()
    assert (both.lm_head.weight.grad - model.lm_head.weight.grad).abs().max() > 0.1  # a gradient on the source side would show


def test_without_divergence_the_loss_is_supervised() -> None:
    model, batch = tiny(), pad(mixed())
    out, plain = XCOT(kl=0.0).loss(model, batch), supervised(model, batch)
    assert out.sum.item() == plain.sum.item() and set(out.logs) == {"ce"}


@pytest.mark.parametrize("make", [pack, pad])
@pytest.mark.parametrize("rows", [[r for r in mixed() if not r.twin], [mixed()[1].unlabelled()]])
def test_rows_without_twins_or_labels_add_nothing(make: object, rows: list[Row]) -> None:
    from xalign.training.attention import use_packed

    model = tiny()
    if make is pack:
        use_packed(model, mixed())
    out = XCOT().loss(model, make(rows))
    assert out.logs["kl"].item() == 0 and out.sum.item() == pytest.approx(supervised(model, make(rows)).sum.item(), rel=1e-6)
    out.sum.backward()


def test_training_reduces_both_parts(tmp_path: Path) -> None:
    rows, node = mixed(40), replace(NODE, epochs=8, tokens_per_step=300, patience=0)
    log = fit(tmp_path / "a", rows, node, XCOT())
    steps = [r for r in log if "grad_norm" in r]
    means = [{k: sum(r[k] for r in part) / len(part) for k in ("loss", "ce", "kl")} for part in (steps[:3], steps[-3:])]
    assert all(means[1][k] < 0.8 * means[0][k] for k in means[0]), means


def test_the_trajectory_does_not_depend_on_how_a_step_is_cut(tmp_path: Path) -> None:
    variants = {"whole": {}, "micro": {"micro_tokens": 60}, "zero3": {"zero": 3}, "padded": {"packing": False}}
    node = replace(NODE, tokens_per_step=300)
    logs = {name: fit(tmp_path / name, mixed(30), replace(node, **change), XCOT()) for name, change in variants.items()}
    for name, log in logs.items():
        for key in ("loss", "kl", "valid_kl"):
            values, wanted = ([r[key] for r in one if key in r] for one in (log, logs["whole"]))
            assert values == pytest.approx(wanted, rel=1e-3, abs=1e-6) and len(wanted) > 1, (name, key)
