"""COMET processes and judge endpoints that fail in every way: a reason in one line, what was obtained is kept, nothing leaks or hangs."""
from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import inputs_services
import pytest
from conftest import TINY
from faultkit import forked, refusal
from test_judge import DUELS, KEY, Endpoint, endpoint, fails, judge, respond  # noqa: F401

from xalign.config import XalignError, build
from xalign.metrics import comet
from xalign.metrics import judge as judging
from xalign.metrics.base import Score
from xalign.metrics.comet import comet_scores
from xalign.metrics.judge import _retry_after, win_rate
from xalign.metrics.node import Comet, Metrics
from xalign.tasks.base import Evaluation, Journal
from xalign.tasks.learned import add_learned

ROWS = [{"src": "a", "mt": "b", "ref": "c"}, {"src": "d", "mt": "e", "ref": "f"}]


@pytest.mark.parametrize("case", inputs_services.EVERY, ids=[c.name for c in inputs_services.EVERY])
def test_refused_before_anything_is_computed(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case.write(tmp_path)
    nodes = {"metric": "xalign.metrics.node.Metrics", "filter": "xalign.data.filters.Filters"}
    values: dict = {name: {"_target_": target} for name, target in nodes.items()}
    for argument in case.argv:
        key, _, value = argument.replace("{dir}", str(tmp_path)).partition("=")
        *path, last = key.split(".")
        place = values
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value.strip("'")
    with pytest.raises(XalignError) as caught:
        build(values["metric"], "metric")
        build(values["filter"], "filter").check_run(None)
    said = str(caught.value)
    assert "\n" not in said and [w for w in case.words if w.replace("{dir}", str(tmp_path)) not in said] == [], said
    assert not Path("it-ran").exists()


def interpreter(folder: Path, scoring: str, asked: str = "echo 2.2.7") -> str:
    """A program that says which COMET it has, and then scores in its own way: $2 is the job, $3 the result."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then {asked}; exit; fi\n{scoring}\n', encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def writes(text: str) -> str:
    return f"cat > $3 <<'END'\n{text}\nEND"


DONE = {"scores": [0.5, 0.25], "sides": ["src", "mt"], "class": "regression_metric", "sha256": "0" * 64, "comet": "2.2.7",
        "transformers": "4.57.6"}


@pytest.mark.parametrize("scoring, reason", [
    ("exit 3", "exit code 3"),
    ("kill -9 $$", "exit code -9"),
    ("echo 'No module named comet' >&2; exit 1", "No module named comet"),
    ("head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 1", "x{300}\\)"),
    ("printf '\\377\\376\\n' >&2; exit 1", "\\("),
    ("exec sleep 20", "no text was scored within 0 s"),
    ("exec yes rubbish", "no text was scored within 0 s"),
    (writes("{"), "no result of COMET"),
    (writes("[" * 100_000), "no result of COMET"),
    (writes("[]"), "no result of COMET"),
    (writes('{"scores": "many"}'), "no result of COMET"),
    (writes(json.dumps({**DONE, "scores": [0.5, None]})), "no result of COMET"),
    (writes(json.dumps({**DONE, "scores": [0.5]})), "1 finite scores for 2 texts"),
    (writes('{"scores": [NaN, 1.0], ' + json.dumps(DONE).partition(", ")[2].partition(", ")[2]), "1 finite scores for 2 texts"),
    (writes('{"error": "the checkpoint is damaged"}'), "the checkpoint is damaged"),
])
def test_a_comet_process_that_fails_is_one_line(scoring, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(comet, "SILENCE", 0.3)
    began = time.monotonic()
    with pytest.raises(XalignError, match=f"^metric.comet.model=x/y: could not be scored by .*{reason}.*metric.comet.python, an") as caught:
        comet_scores(ROWS, "x/y", True, interpreter(tmp_path, scoring))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700 and time.monotonic() - began < 10


@pytest.mark.parametrize("asked", ["sleep 20 & wait", "exec sleep 20"])
def test_an_interpreter_that_does_not_answer(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(comet, "ANSWER", 0.3)
    began = time.monotonic()
    with pytest.raises(XalignError, match="does not answer within 0 s"):
        comet_scores(ROWS, "x/y", True, interpreter(tmp_path, "exit 3", asked))
    assert comet.comet_version(str(tmp_path / "python")) == "none" and time.monotonic() - began < 5


@pytest.mark.parametrize("asked", ["exit 1", "echo hello world", "printf '\\377'", "head -c 100000 /dev/zero", "printf '2.2.7\\n2.2.8'"])
def test_an_interpreter_that_says_rubbish_has_no_comet(asked, tmp_path):
    assert comet.comet_version(interpreter(tmp_path, "", asked)) == "none"


def test_odd_progress_does_no_harm(tmp_path):
    scoring = f"printf '\\302\\262\\n{'9' * 5000}\\n\\377\\n2\\n'\n{writes(json.dumps(DONE))}"
    found = comet_scores(ROWS, "x/y", True, interpreter(tmp_path, scoring))
    assert found.scores == [0.5, 0.25] and "|class:regression_metric|inputs:src+mt|v:2.2.7|" in found.signature


def test_a_metric_that_fails_is_absent_and_the_others_stay(tmp_path):
    ev = Evaluation(tmp_path, lambda: None, (), "fin", "eng", False,
                    metric=Metrics(comet=Comet(model="x/y", kiwi="x/z", python=interpreter(tmp_path, writes("[]")))))
    ev.add("t", "bleu", Score(12.0, 1.0, 2, "bleu"))
    add_learned(ev, "t", [{"id": str(i), "cluster": "c", "text": r["src"], "prediction": r["mt"], "references": [r["ref"]]}
                          for i, r in enumerate(ROWS)], "fin")
    assert [(r["metric"], r["value"]) for r in ev.scores] == [("bleu", 12.0), ("comet", None), ("cometkiwi", None)]
    assert all("no result of COMET" in r["reason"] for r in ev.scores[1:]) and ev.facts["failed"] == ["t comet", "t cometkiwi"]


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server of one's own that answers every request in one way."""
    handler = type("Handler", (BaseHTTPRequestHandler,), {"do_POST": answer, "do_GET": answer, "log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def says(content: object, **more: object) -> Callable[[BaseHTTPRequestHandler], None]:
    return fails(200, json.dumps({"choices": [{"message": {"content": content}, **more}]}))


def refused(endpoint: Endpoint, folder: Path, *script: Callable[[BaseHTTPRequestHandler], None], **more: object) -> str:  # noqa: F811
    endpoint.script = list(script)
    with pytest.raises(XalignError) as caught:
        win_rate(judge(endpoint, retries=0, **more), DUELS[:1], Journal(folder / "v.jsonl"))
    said = str(caught.value)
    assert said.startswith(f"metric.judge.url={endpoint.url}: ") and "\n" not in said and KEY not in said, said
    assert "verdicts so far are kept" in said and not any(ord(c) < 32 or c == "\x9b" for c in said)
    return said


NOT_JSON = "not a chat completion in JSON"


@pytest.mark.parametrize("failure, reason", [
    (fails(200, "<html>Sign in</html>"), NOT_JSON), (fails(200, ""), NOT_JSON), (fails(200, "null"), NOT_JSON),
    (fails(200, '{"choices": null}'), NOT_JSON), (fails(200, '{"choices": [{}]}'), NOT_JSON),
    (fails(200, '{"choices": {"0": 1}}'), NOT_JSON),
    (fails(200, '{"choices": [{"message": {}}]}'), NOT_JSON), (says(["a"]), NOT_JSON), (says(7), NOT_JSON),
    (fails(200, "[" * 200_000), NOT_JSON), (fails(200, '{"choices": ' + "[" * 200_000), NOT_JSON),
    (fails(200, '{"choices": [{"message": {"content": ' + "9" * 10_000 + "}}]}"), NOT_JSON),
    (fails(401), "put a valid key into the environment variable XALIGN_TEST_KEY"), (fails(403), "environment variable XALIGN_TEST_KEY"),
    (fails(404, '{"error": {"message": "no model m"}}'), "HTTP 404: no model m; check metric.judge.url and metric.judge.model"),
    (fails(404, "[" * 9_000), "HTTP 404"), (fails(400, "\x1b[2Jred\x07"), "HTTP 400: "), (fails(500), "HTTP 500, 1 attempts"),
    (fails(502, "<html>"), "HTTP 502"), (fails(503), "HTTP 503"), (fails(429, Retry_After="nan"), "HTTP 429, 1 attempts"),
    (fails(429, Retry_After="inf"), "asks to wait inf s"), (fails(302, "", Location="/elsewhere"), "HTTP 302"),
], ids=lambda v: v[:40] if isinstance(v, str) else "")
def test_an_endpoint_that_fails_is_one_line(endpoint, failure, reason, tmp_path):  # noqa: F811
    said = refused(endpoint, tmp_path, failure)
    assert reason in said, said
    assert Journal(tmp_path / "v.jsonl").done == {} and len(endpoint.asked) == 1


def test_without_a_key_it_says_so(endpoint, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.delenv("XALIGN_TEST_KEY")
    assert "HTTP 401, without a key; put a valid key into" in refused(endpoint, tmp_path, fails(401))


@pytest.mark.parametrize("content, finish", [(None, "stop"), ("", "stop"), ("I cannot say.", "stop"), ("VERDICT: A", "length"),
                                             ("VERDICT: A \ud800", "stop"), ("\ud800\x00\u2028\nVERDICT: A\nVERDICT: B", "stop")])
def test_a_reply_without_a_verdict_counts_and_is_not_asked_again(endpoint, content, finish, tmp_path):  # noqa: F811
    for again in range(2):
        endpoint.script = [says(content, finish_reason=finish)] * 2
        score, values, counts = win_rate(judge(endpoint, retries=0), DUELS[:1], Journal(tmp_path / "v.jsonl"))
        assert (score.value, values, counts["unparsable"], len(endpoint.asked)) == (None, [None], 1, 2), again


def test_half_a_letter_in_a_reply_is_kept(endpoint, tmp_path):  # noqa: F811
    endpoint.script = [says("because \ud83d\nVERDICT: A")] * 2
    assert win_rate(judge(endpoint), DUELS[:1], Journal(tmp_path / "v.jsonl"))[0].value == 0.5
    assert {r["text"] for r in Journal(tmp_path / "v.jsonl").done.values()} == {"because ?\nVERDICT: A"}


def test_a_reply_without_end_is_not_read(endpoint, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(judging, "MAX_REPLY", 1 << 20)
    sent = []

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with suppress(ConnectionError):
            for _ in range(1000):
                sent.append(handler.wfile.write(b" " * 100_000))

    assert "the reply is longer than 1 MiB" in refused(endpoint, tmp_path, endless)
    assert sum(sent) < 20_000_000


def test_a_reply_that_drips_is_given_up(endpoint, tmp_path):  # noqa: F811
    def drips(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with suppress(ConnectionError):
            for _ in range(200):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.02)

    began = time.monotonic()
    assert "the reply does not end within 0.6 s" in refused(endpoint, tmp_path, drips, timeout=0.06)
    assert time.monotonic() - began < 3


def test_the_key_is_not_sent_to_another_host(endpoint, tmp_path):  # noqa: F811
    met = []

    def meets(handler: BaseHTTPRequestHandler) -> None:
        met.append(handler.headers)
        respond(handler, 200, "{}")

    with serving(meets) as url:
        for code in (301, 302, 303, 307, 308):
            assert f"HTTP {code}" in refused(endpoint, tmp_path, fails(code, "", Location=url))
    assert met == []


@pytest.mark.parametrize("url, reason", [("http://127.0.0.1:9/v1", "no connection (Connection refused)"),
                                         ("http://nowhere.invalid/v1", "no connection (")])
def test_nobody_answers(url, reason, tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(XalignError) as caught:
        win_rate(judging.Judge(url=url, model="m", retries=0), DUELS[:1], Journal(tmp_path / "v.jsonl"))
    assert f"metric.judge.url={url}: {reason}" in str(caught.value) and "1 attempts; repeat the command" in str(caught.value)


def test_a_certificate_that_nobody_signed(tmp_path, monkeypatch):
    """Asked once, however many retries there are: it will not pass."""
    import ssl

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1", "-keyout",
                           "key.pem", "-out", "cert.pem"], cwd=tmp_path, capture_output=True)
    if made.returncode:
        pytest.skip("openssl makes no certificate here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    met: list[str] = []
    handler = type("Handler", (BaseHTTPRequestHandler,), {"do_POST": lambda h: met.append(h.path), "log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        node = judging.Judge(url=f"https://127.0.0.1:{server.server_port}/v1", model="m", retries=5)
        with pytest.raises(XalignError, match="its certificate is not trusted .*SSL_CERT_FILE"):
            win_rate(node, DUELS[:1], Journal(tmp_path / "v.jsonl"))
        server.shutdown()
    assert met == []


@pytest.mark.parametrize("value, seconds", [
    (None, None), ("", None), ("soon", None), ("nan", None), ("3", 3.0), ("-5", 0.0), ("1e999", float("inf")),
    ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("Thu, 99 Foo 2020", None), ("Fri, 31 Dec 99999 23:59:59 GMT", None),
    ("Fri, 31 Dec 9999 23:59:59 -2359", None), ("0, 1 2 3 4:5:6 +99999999999", None), ("\x00", None)])
def test_how_long_an_endpoint_asks_to_wait(value, seconds):
    found = _retry_after(value)
    assert found == seconds or seconds is None and (found or 0) > 1e9  # a date in a far century is as good as never


@pytest.mark.long
def test_a_run_whose_judge_fails_goes_on_where_it_stopped(endpoint, tmp_path, cache):  # noqa: F811
    """In the whole run: the predictions and the verdicts so far are kept, and only what is missing is asked for."""
    (tmp_path / "fin.jsonl").write_text("".join(f'{{"id": "{i}", "instruction": "Kysymys {i}?"}}\n' for i in range(3)))
    theirs = [{"id": f"mi_eval/{i}", "prediction": f"vastaus {i}"} for i in range(3)]
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in theirs))
    own = [a for a in TINY if a.startswith(("backbone", "tracker"))]
    argv = ["mode=evaluate", *own, "lang=fin", "task=mi_eval", f"task.mi_eval.path={tmp_path}", "task.mi_eval.max_new_tokens=4",
            f"metric.judge.url={endpoint.url}", "metric.judge.model=m", "metric.judge.key_env=XALIGN_TEST_KEY", "metric.judge.parallel=1",
            "metric.judge.retries=0", f"metric.judge.against={tmp_path / 'theirs.jsonl'}", f"cache={cache}", f"runs={tmp_path / 'runs'}"]
    endpoint.script = [says("VERDICT: A"), says("VERDICT: A"), fails(503)]
    assert "HTTP 503" in refusal(forked(argv, tmp_path))
    assert not list(tmp_path.rglob("rows.jsonl"))
    endpoint.script, endpoint.asked = [], []
    done = forked(argv, tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in next(tmp_path.rglob("rows.jsonl")).read_text().splitlines()]
    assert {r["n"] for r in rows if r["metric"] == "judge_win_rate"} == {3} and len(endpoint.asked) == 4
    assert not any(KEY in p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())
