"""Learned metrics over a task's generated texts: COMET, COMETKiwi, e5 similarity, and a judge's comparison of two models."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xalign.cache import Artifact, Stage
from xalign.config import XalignError
from xalign.data.examples import read_jsonl
from xalign.data.reading import numbered
from xalign.metrics.base import Score
from xalign.runfiles import check_path
from xalign.tasks.base import Evaluation, Journal, example_rows

if TYPE_CHECKING:
    from xalign.metrics.node import Metrics


def learned_inputs(metric: Metrics) -> tuple[Stage, ...]:
    """Stages that `add_learned` reads: a task that calls it gives them as its `score_inputs`."""
    from xalign.assets import e5_small_stage

    return (e5_small_stage(),) if metric.similarity else ()


def add_learned(ev: Evaluation, task: str, records: Sequence[dict[str, Any]], lang: str) -> None:
    """Add the rows comet, cometkiwi and e5_similarity, those that ``ev.metric`` asks for.

    A metric that was asked for and cannot be computed is absent with its reason.

    Args:
        records: of a journal: id, cluster, prediction, references and, for COMET, ``text`` (the source text).
        lang: of predictions and references (ISO 639-3).
    """
    comet = ev.metric.comet
    if comet.model:
        _add_comet(ev, task, "comet", records, lang, comet.model, [r for r in records if r.get("text") and r.get("references")])
    if comet.kiwi:
        _add_comet(ev, task, "cometkiwi", records, lang, comet.kiwi, [r for r in records if r.get("text")])
    add_similarity(ev, task, records)


def add_similarity(ev: Evaluation, task: str, records: Sequence[dict[str, Any]]) -> None:
    """Add the row e5_similarity if ``ev.metric`` asks for it and there is a reference."""
    if not ev.metric.similarity or not any(r.get("references") for r in records):
        return
    from xalign.metrics.similarity import E5Similarity

    metric = E5Similarity(_weights(ev.inputs).path)
    values = metric.per_example([r["prediction"] for r in records], [r.get("references") or () for r in records])
    ev.add(task, metric.name, metric.aggregate(values, [r["cluster"] for r in records]), examples=example_rows(records, values))


def _add_comet(ev: Evaluation, task: str, name: str, records: Sequence[dict[str, Any]], lang: str, model: str,
               usable: Sequence[dict[str, Any]]) -> None:
    from xalign.metrics.comet import comet_scores
    from xalign.metrics.judge import Given

    node, references = ev.metric.comet, name == "comet"
    if not usable:
        needs = "source text and reference" if references else "source text"
        ev.add(task, name, Score(None, None, 0, f"{name}|model:{model}|lang:{lang}", f"no example has a {needs}"))
        return
    # COMET reads one reference: the first
    rows = [{"src": r["text"], "mt": r["prediction"], **({"ref": r["references"][0]} if references else {})} for r in usable]
    try:
        found = comet_scores(rows, model, references, node.python, node.batch_size, f"metric.comet.{'model' if references else 'kiwi'}")
    except XalignError as e:
        ev.add(task, name, Score(None, None, 0, f"{name}|model:{model}|lang:{lang}", str(e)))
        ev.facts.setdefault("failed", []).append(f"{task} {name}")  # the next run tries again
        return
    by_id = {r["id"]: s for r, s in zip(usable, found.scores, strict=True)}
    values = [by_id.get(r["id"]) for r in records]
    ev.add(task, name, Given(f"{found.signature}|lang:{lang}").aggregate(values, [r["cluster"] for r in records]),
           examples=example_rows(records, values))


def _weights(inputs: Sequence[Artifact]) -> Artifact:
    return next(a for a in inputs if a.receipt["name"] == "weights" and a.receipt["params"] == {"name": "e5_small"})


def add_judged(ev: Evaluation, task: str, records: Sequence[dict[str, Any]], lang: str,
               theirs: Sequence[dict[str, Any]] | None = None) -> None:
    """Add ``judge_win_rate``, how often the judge prefers our answer to the opponent's, and ``judge_unparsable``, the
    share of questions where it gave no readable verdict.

    Args:
        records: ours: id, cluster, prompt (the question), prediction.
        lang: language (ISO 639-3) that the answers should be in.
        theirs: the opponent's records, matched by id; ``metric.judge.against``, where it is set, comes before them.
    Raises:
        XalignError: when the endpoint fails; verdicts are kept in ``ev.out``, so the same command continues.
    """
    from xalign.metrics.judge import Duel, Given, signature, win_rate

    node = ev.metric.judge
    absent = ""
    if not node.url:
        absent = "no judge: metric.judge.url names no endpoint"
    elif node.against:
        theirs = answers(Path(node.against).expanduser(), task, lang)
        absent = "" if theirs else f"metric.judge.against={node.against}: holds no answers to {task} in {lang}"
    elif not theirs:
        absent = "no opponent: metric.judge.against names no run folder or file of predictions"
    opponent = {r["id"]: r["prediction"] for r in theirs or ()}
    both = [r for r in records if r["id"] in opponent]
    if absent or not both:
        ev.add(task, "judge_win_rate", Score(None, None, 0, signature(node, lang), absent or "no question that both sides have answered"))
        return
    journal = Journal((ev.out or ev.folder) / f"verdicts.{task.replace(':', '.')}.jsonl")
    duels = [Duel(r["id"], r["cluster"], lang, r["prompt"], r["prediction"], opponent[r["id"]]) for r in both]
    score, values, counts = win_rate(node, duels, journal)
    ev.add(task, "judge_win_rate", score, examples=example_rows(both, values))
    missing = [float(v is None) for v in values]
    ev.add(task, "judge_unparsable", Given(score.signature.replace("win_rate", "unparsable", 1)).aggregate(missing),
           examples=example_rows(both, missing))
    ev.facts.setdefault("judge", {})[task] = {**counts, "not answered by both": len(records) - len(both)}


def answers(path: Path, task: str, lang: str) -> list[dict[str, Any]]:
    """Records with id and prediction of one task and language.

    Args:
        path: a file of JSON lines; a run folder, whose trained model's answers are taken, else the untrained one's;
            or a folder of journals. In a folder, records that name another task are left out.
    Raises:
        XalignError: for a line that is no JSON object, or lacks id or prediction in a file that was named.
    """
    check_path(path)
    if path.is_file():
        found = []
        for number, record in numbered(path, own=True):
            if not isinstance(record.get("id"), str) or not isinstance(record.get("prediction"), str):
                raise XalignError(f"{path}:{number}: lacks id or prediction; each line of the opponent's answers needs both, as text")
            found.append(record)
        return [r for r in found if r.get("task", task) == task and r.get("lang", lang) == lang]
    for folder in (path / "predictions" / "after" / lang, path / "predictions" / "before" / lang, path):
        found = [r for file in sorted(folder.glob("*.jsonl")) for r in read_jsonl(file) if "id" in r and "prediction" in r]
        found = [r for r in found if r.get("task", task) == task and r.get("lang", lang) == lang]
        if found:
            return found
    return []
