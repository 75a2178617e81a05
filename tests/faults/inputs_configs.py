"""Wrong configurations, and wrong folders for the commands on finished runs; all are refused before torch is imported."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from inputs import Case

RUN = {"name": "a", "mode": "train", "choices": {"method": "sft", "backbone": "tiny", "task": "lab"}, "lang": ["fin"], "source": "eng",
       "seed": 0, "model": "x", "overlap": None, "versions": {}, "cost": {}}
ROW = {"run": "a", "method": "sft", "lang": "fin", "source": "eng", "backbone": "tiny", "seed": 0, "when": "after", "evaluated": "fin",
       "role": "target", "task": "lab", "metric": "em", "name": "model", "value": 0.5, "n": 4, "low": 0.4, "high": 0.6, "signature": "s"}
TOUCH = "touch executed"  # what must never run: the test looks for this file


def line(argv: str, *words: str, files: dict | None = None, env: dict[str, str] | None = None, name: str = "") -> Case:
    """A case whose arguments have no spaces in them, named by its command line."""
    return Case(name or " ".join([*(f"{k}={v}" for k, v in (env or {}).items()), argv]), argv.split(), words, files or {}, env=env or {})


def own(name: str, yaml: str | bytes, *words: str, argv: str = "method=mine", file: str = "method/mine.yaml") -> Case:
    """A case with one YAML file under ``--config-dir``."""
    return Case(f"own YAML: {name}", ["--config-dir", "conf", *argv.split()], words, {f"conf/{file}": yaml})


def experiment(name: str, yaml: str, *words: str, argv: str = "") -> Case:
    text = f"# @package _global_\n# an experiment\n{yaml}"
    return own(name, text, *words, argv=f"experiment=mine {argv}", file="experiments/mine.yaml")


def run(name: str, argv: str, *words: str, **files: str | bytes) -> Case:
    """A case of a command on the folder runs/a with these files (``run__json`` is run.json)."""
    return Case(f"{argv}: {name}", argv.split(), words, {f"runs/a/{k.replace('__', '.')}": v for k, v in files.items()})


def is_file(path: Path) -> None:
    path.write_text("no folder")


ENCODER, MUIT = "backbone=tiny_encoder", "method=muit lang=[fin,jpn] method.budget=30 method.allocation=optimised"

KEYS = [
    line("method.code_swich=0", "method.code_swich", "did you mean 'method.code_switch'"),
    line("langs=jpn", "langs", "did you mean 'lang'"),
    line("+method.extra=1", "method.extra: unknown key", "code_switch"),
    line("++method.extra=1", "method.extra: unknown key"),
    line("+method.filter.html=false", "method.filter: unknown key"),
    line("metric.comet.bach_size=3", "metric.comet.bach_size", "did you mean 'metric.comet.batch_size'"),
    line("+metric.judge.extra=3", "metric.judge.extra: unknown key", "max_tokens"),
    line("task.nope=1", "task.nope: unknown key", "shots"),
    line("+task.lab.nope=1", "task.lab.nope: unknown key", "shots"),
    line("task.xquad.limit=5", "task.xquad.limit", "add task=xquad"),
    line("task=xquad,xnli task.limit=5", "task.limit", "'task=[xquad,xnli]'"),
    line("trainer.adamw.lr=1", "trainer.adamw.lr: unknown key"),
    line("~lang", "~lang: no key can be left out", "another value"),
    line("~method.code_switch", "no key can be left out"),
    line("~backbone", "no key can be left out"),
    line("=1", "=1: names no key", "key=value"),
    line("sdrrl", "sdrrl: not understood", "key=value"),
    line("lang==jpn", "lang==jpn: cannot be read", "key=value"),
    line("runs=${oc.env:HOME", "cannot be read", "quotes"),
    Case("control characters", ["lang=\x1b[31mfin"], ("\\x1b[31mfin: cannot be read",)),
    Case("not UTF-8", ["lang=\udcff"], ("\\udcff: is not UTF-8",)),
    line("lang=${missing}", "lang: Interpolation key 'missing' not found", "write the value"),
    line("runs=${oc.env:XALIGN_NOPE}", "runs: ", "'XALIGN_NOPE' not found"),
    line("runs=${nope:1}", "runs: Unsupported interpolation type nope"),
    line("seed=${seed}", "seed: Recursive"),
    line("trainer.epochs=${oc.env:HOME}", "trainer.epochs=", "must be a whole number, at least 1"),
]

VALUES = [
    line("lang=jpm", "lang=jpm", "did you mean 'jpn'"),
    line("lang=Japanese", "lang=Japanese", "did you mean 'jpn'"),
    line("lang=", "lang=: name at least one target language"),
    line("lang=[]", "lang=[]: name at least one"),
    line("lang=null", "lang=null: name at least one"),
    line("lang=[fin,null]", "lang=[fin,null]: name at least one"),
    line("lang={a:1}", "lang={a:1}: name at least one"),
    line("lang=[fin,fin]", "lang=[fin,fin]: lists a language twice"),
    line("lang=fin,jpn", "lang=fin,jpn", "-m"),
    line("lang=eng", "lang=eng: is also the source language", "choose another"),
    line("source=[eng]", "source=[eng]: unknown language"),
    line("source=null", "source=null: unknown language"),
    line("seed=-1", "seed=-1", "[0, 2147483647]"),
    line("seed=1.0", "seed=1.0: must be a whole number"),
    line("seed=true", "seed=true: must be a whole number"),
    line("seed=99999999999", "seed=99999999999"),
    line("seed=[1,2]", "seed=[1,2]: must be a whole number"),
    line("plan=yes", "plan=yes: must be true or false"),
    line("plan=1", "plan=1: must be true or false"),
    line("runs=", "runs=: must name a folder"),
    line("cache=[a]", "cache=[a]: must name a folder"),
    line("mode=evaluat", "mode=evaluat", "did you mean 'evaluate'"),
    line("mode=null", "mode=null: must be one of train, evaluate, study"),
    line("method.code_switch=1.5", "method.code_switch=1.5: must be in [0, 1]", "0.15"),
    line("method.code_switch=yes", "method.code_switch=yes: must be a number, in [0, 1]"),
    line("method.self_distill=yes", "method.self_distill=yes: must be true or false"),
    line("method.self_distill=2", "method.self_distill=2: must be true or false"),
    line("method.subsets=LL", "method.subsets=LL: must be a list of LL"),
    line("method.subsets=[]", "method.subsets=[]: must name some of LL"),
    line("method.subsets=[LL,XX]", "'XX' is not one of LL"),
    line("method.subsets=[LL,LL]", "method.subsets=[LL,LL]: lists a member twice"),
    line("method.subsets={a:1}", "method.subsets={a:1}", "YAML file"),
    line("task.scores=[]", "task.lab.scores=[]: must name some of raw"),
    line("trainer.epochs=many", "trainer.epochs=many: must be a whole number"),
    line("trainer.epochs=1.5", "trainer.epochs=1.5: must be a whole number, at least 1"),
    line("trainer.epochs=null", "trainer.epochs=null: must be a whole number"),
    line("trainer.epochs=99999999999999999999999999", "must be at most 2147483647"),
    Case("unicode digits", ["trainer.epochs='١٢'"], ("trainer.epochs=١٢: must be a whole number",)),
    Case("value of two lines", ["trainer.epochs='1\n2'"], ("trainer.epochs=1\\n2: must be a whole number",)),
    line(f"trainer.epochs={'9' * 5000}", "trainer.epochs=999", "cannot be read", name="an override of 5,000 digits"),
    line(f"trainer.epochs={'a' * 5000}", "(5000 characters)", name="a value of 5,000 characters"),
    line(f"study.nope={'[' * 3000}", "cannot be read", name="3,000 brackets"),
    line("trainer.lr=-1", "trainer.lr=-1: must be auto or a number in (0, 1]"),
    line("trainer.lr=null", "trainer.lr=", "must be auto or a number"),
    line("trainer.lr=nan", "trainer.lr=nan: must be auto or a number"),
    line("trainer.clip=1e400", "trainer.clip=inf: must be a finite number, greater than 0"),
    line("trainer.betas=[0.9,x]", "trainer.betas=[0.9,x]: must be a list of numbers"),
    line("trainer.betas=[0.9]", "must be two numbers"),
    line("tracker.tags=x", "tracker.tags=x: must be a list"),
    line("backbone=hf backbone.name=x backbone.revision=1e5", "backbone.revision=100000.0: must be text", "quotes"),
    line("metric.judge.temperature=3", "metric.judge.temperature=3.0: must be in [0, 2]"),
    line("tracker=both tracker.wandb.timeout=0", "tracker.wandb.timeout=0.0: must be greater than 0"),
    line("data.questions=-3", "data.questions=-3: must be auto or a whole number"),
]

CHOICES = [
    line("method=sdrl", "method=sdrl", "did you mean 'sdrrl'", "t_sft"),
    line("backbone=smollm", "did you mean 'smollm2'"),
    line("backbone=null", "backbone=null: chooses nothing", "smollm2"),
    line("study=null", "study=null: chooses nothing", "none"),
    line("method=[sft,t_sft]", "takes one choice", "-m method=sft,t_sft"),
    line("task=[]", "task=[]: name at least one task"),
    line("task=", "task=: chooses nothing"),
    line("task=null", "task=null: chooses nothing"),
    line("task=[lab,lab]", "task=[lab,lab]: lists a task twice"),
    line("task=[lab,null]", "task=[lab,null]: must be a name"),
    line("task=[lab,nope]", "task=nope: no such task"),
    line("+backbone=tiny", "+backbone=tiny", "write backbone=tiny"),
    line("backbone@x=tiny", "backbone@x=tiny: a choice has one place"),
    line("experiment=nope", "experiments=nope: no such experiment"),
    line("hydra.run.dir=elsewhere", "hydra.run.dir=elsewhere", "runs=FOLDER"),
    line("hydra.mode=MULTIRUN", "hydra.mode=MULTIRUN", "-m"),
    line("hydra.searchpath=[file:///tmp]", "hydra.searchpath", "--config-dir"),
    line("hydra/launcher=joblib", "hydra/launcher=joblib", "add -m"),
    line("-m hydra/launcher=nope lang=fin,jpn", "hydra/launcher=nope"),
    line("hydra.launcher.n_jobs=2", "hydra.launcher.n_jobs=2", "n_jobs"),
    line("--foo", "unrecognized arguments: --foo", "--help"),
    line("--config-dir nowhere", "--config-dir=nowhere: no such folder"),
    line("--config-dir", "expected one argument"),
    line("--config-name nope", "--config-name: ", "'nope'", "--config-dir"),
    line("--config-path conf", "--config-path", "--config-dir"),
    line("--experimental-rerun x.pickle", "--experimental-rerun: cannot be used"),
    line("--resolve", "--cfg job --resolve"),
    line("--cfg nope", "argument --cfg", "nope"),
    line("-m --cfg job", "-m: --cfg", "leave one of them out"),
    line("-m method=sft,sdrl lang=fin", "method=sdrl", "did you mean 'sdrrl'"),
    line("-m method=sft lang=fin trainer.lr=0.001,-1", "trainer.lr=-1"),
    line("-m method=sft lang=fin seed=${missing}", "Interpolation key 'missing' not found"),
    line("-m method=sft,null lang=fin", "method=sft,null: chooses nothing"),
    line("-m seed=range(0,100000000)", "seed=range(0,100000000): makes a sweep of more than 10,000 jobs"),
    line("-m seed=range(0,1e300)", "makes a sweep of more than 10,000 jobs"),
    line("-m seed=glob(*) lang=fin", "seed=glob(*): glob stands for choices"),
    line("-m hydra/launcher=null lang=fin,jpn", "hydra/launcher=null: chooses nothing"),
    line("-m trainer.lr=interval(0,1)", "trainer.lr=interval(0,1)", "lists"),
    line("-m method=sft lang=[fin,fin],jpn", "lists a language twice"),
]

FITS = [
    line(f"{ENCODER} method=sdrrl", "method=sdrrl: trains causal backbones", "smollm2"),
    line(f"{ENCODER} method=ml_ipd task=flores", "task.flores: needs a causal backbone"),
    line(f"{ENCODER} method=sft trainer.adapter=lora", "trainer.adapter=lora", "set trainer.adapter=none"),
    line(f"{ENCODER} method=sft trainer.probe_prompts=3", "trainer.probe_prompts=3", "set trainer.probe_prompts=0"),
    line(f"{ENCODER} backbone.dropout=1.5", "backbone.dropout=1.5"),
    line("lang=[fin,jpn] method=sft", "method sft trains for one target language", "multirun"),
    line("lang=fin task=xnli", "XNLI has no Finnish", "deu"),
    line("lang=eng source=jpn task=xcopa", "XCOPA has no English"),
    line("lang=jpn data=xnli data.path=.", "XNLI has no Japanese"),
    line("mode=evaluate lang=eng task=flores", "task.flores: eng is the source language"),
    line("mode=study", "mode=study: study=none", "study=similarity"),
    line("mode=study study=scaling", "study=scaling", "trains nothing"),
    line("study=allocation", "study=allocation", "method=muit"),
    line("study=off_target", "trainer.probe_prompts=0", "set trainer.probe_prompts=20"),
    line("study=representations study.text=files", "study.path=", "study.path=DIR"),
    line("study=representations study.path=nowhere", "study.path=nowhere", "study.text=files"),
    line("study=similarity study.layer=99", "study.layer=99", "-1 is the last"),
    line("study=cases study.prompts=nowhere.txt", "study.prompts=nowhere.txt: no such file"),
    line("study=scaling study.gamma=2", "study.gamma=2", "study.mode=shared"),
    line("trainer.offload=all", "trainer.offload=all: needs ZeRO 3", "trainer.zero=3"),
    line("trainer.zero=3 trainer.compile=true", "trainer.compile=true", "trainer.zero=2"),
    line("trainer.attention=flash trainer.packing=false", "trainer.attention=flash", "trainer.packing=true"),
    line("task=mi_eval task.shots=3 task.path=.", "task.mi_eval.shots=3", "use 0"),
    line("metric.comet.python=nowhere", "metric.comet.python=nowhere: no such interpreter"),
    line("metric.comet.model=nowhere.ckpt", "metric.comet.model=nowhere.ckpt: no such file"),
    line("filter.cometkiwi=nowhere.ckpt", "filter.cometkiwi=nowhere.ckpt: no such file"),
    line("metric.judge.url=localhost", "metric.judge.url: must be the address", "http://"),
    line("metric.judge.url=http://localhost:1/v1", "metric.judge.model: is empty"),
    line("metric.flores200=nowhere", "metric.flores200=nowhere: no such file"),
    line("backbone=hf", "backbone.name: is empty"),
    line("backbone=hf backbone.name=./nowhere", "./nowhere"),
    line("data=alpaca method=t_sft", "data.path: names no file", "data.path=FILE"),
    line("data=alpaca method=sft data.path=nowhere.json", "nowhere.json"),
    line("task=belebele task.path=nowhere", "task.belebele.path=nowhere: no such folder"),
    line("dictionary.path=nowhere.txt", "dictionary.path=nowhere.txt: no such file"),
    line("parallel=files parallel.path=nowhere", "parallel.path=nowhere"),
    line("tracker.mode=online", "tracker.mode=online: no W&B key", "tracker.mode=offline", env={"WANDB_API_KEY": "", "NETRC": "/nowhere"}),
    line("method=muit lang=[fin,jpn] method.allocation=optimised", "set method.budget=N"),
    *(Case(f"laws file: {name}", [*MUIT.split(), "method.law=l.yaml"], ("method.law=l.yaml: ", word), {"l.yaml": text})
      for name, text, word in (("empty", "", "has nothing for fin, jpn"), ("a number", "3", "neither YAML nor JSON"),
                               ("itself", "&a [*a]", "neither YAML nor JSON"), ("a lone language", "{fin: {alpha: 1, beta: -0.3}}", "jpn"),
                               ("code", "!!python/object/apply:os.system ['x']", "could not determine a constructor"))),
]

YAML = [
    *(own(target, f"# mine\n_target_: {target}\nargs: {TOUCH}\ncommand: {TOUCH}\n", f"method._target_={target}: is not a subclass", "conf/")
      for target in ("os.system", "subprocess.Popen", "builtins.eval", "pathlib.Path", "xalign.terminal.fail")),
    own("no such module", "_target_: nowhere.Class\n", "method._target_=nowhere.Class: cannot be imported"),
    own("target of another group", "_target_: xalign.backbones.node.Tiny\n", "method: xalign.backbones.node.Tiny is no class", "group"),
    own("the base class", "_target_: xalign.config.Node\n", "method: xalign.config.Node is no class of this group"),
    own("target is a number", "_target_: 3\n", "method._target_=3: cannot be imported", "package.module.Class"),
    own("target in a value", f"_target_: xalign.methods.sdrrl.SDRRL\ncode_switch: {{_target_: os.system, command: {TOUCH}}}\n",
        "method.code_switch={_target_:os.system", "must be a number"),
    own("Hydra's own key", "_target_: xalign.methods.supervised.SFT\n_partial_: true\n", "method._partial_: unknown key"),
    own("no class", "code_switch: 0.1\n", "method: the YAML names no class", "_target_"),
    own("tabs", "# mine\n\tcode_switch: 0.1\n", "mine.yaml:2: ", "spaces instead of tabs"),
    own("a key twice", "_target_: a.b\n_target_: a.b\n", "mine.yaml:2: found duplicate key", "each key once"),
    own("a list", "- a\n- b\n", "method=[a,b]: must be a group of keys"),
    own("empty", "", "method: the YAML names no class"),
    own("not UTF-8", b"# \xff\xfe\n", "mine.yaml: is not UTF-8 (byte 2)"),
    own("code", f"_target_: !!python/object/apply:os.system ['{TOUCH}']\n", "mine.yaml:1: could not determine a constructor"),
    own("itself", "code_switch: &a [*a]\n", "cannot be put together", "method=mine"),
    own("NUL", '_target_: xalign.methods.cpt.CPT\npath: "a\\0b"\n', "method.path=a\\x00b: holds a NUL character"),
    own("unset value", "_target_: xalign.methods.sdrrl.SDRRL\ncode_switch: ???\n", "method.code_switch: Missing mandatory value"),
    own("default that is not there", "defaults: [nope]\n", "'method/nope'"),
    own("task without a place", "_target_: xalign.tasks.flores.FloresTask\n", "# @package task.NAME",
        argv="task=mine", file="task/mine.yaml"),
    own("task that is none", "# @package task.mine\n_target_: xalign.metrics.node.Metrics\n", "xalign.metrics.node.Metrics is no class",
        argv="task=mine", file="task/mine.yaml"),
    own("experiment without a place", "lang: fin\n", "# @package _global_", argv="experiment=mine", file="experiments/mine.yaml"),
    experiment("experiment of a method that is not there", "defaults: [override /method: nope]\n", "'method/nope'"),
    experiment("experiment that sets a group", "method: sft\n", "method=sft: must be a group of keys", "- override /method: sft"),
    experiment("experiment that sets the task", "task: lab\n", "task=lab", "- override /task: [lab]"),
    experiment("experiment with a stray key", "nonsense: 3\n", "nonsense: unknown key"),
    experiment("experiment with a method's stray key", "method: {nope: 3}\n", "method.nope: unknown key"),
    experiment("experiment that is no YAML", "lang: [fin\n", "mine.yaml:4: "),
    experiment("experiment whose task is a list", "task: [lab]\n", "experiments/mine", "a list"),
    experiment("sweep of an experiment", "hydra: {sweeper: {params: {method: 'sft,nope'}}}\n", "method=nope: no such method", argv="-m"),
    experiment("callbacks", f"hydra: {{callbacks: {{x: {{_target_: subprocess.Popen, args: {TOUCH}}}}}}}\nlang: eng\n", "lang=eng"),
    experiment("launcher", "hydra: {launcher: {_target_: os.system}}\nlang: eng\n", "lang=eng", argv="-m"),
]

ENVIRONMENT = [
    line("lang=fin", "WORLD_SIZE=abc", "whole numbers", env={"WORLD_SIZE": "abc"}),
    line("lang=fin", "WORLD_SIZE=0", "whole numbers", env={"WORLD_SIZE": "0"}),
    line("lang=fin", "RANK=1", "RANK below WORLD_SIZE", env={"RANK": "1"}),
    line("lang=fin", "RANK=2", "WORLD_SIZE=2", env={"RANK": "2", "WORLD_SIZE": "2"}),
    line("lang=fin", "cache=: must name a folder", env={"XALIGN_CACHE": ""}),
    line("lang=fin", "cache=", "a-file: is a file; name a folder", env={"XALIGN_CACHE": "{dir}/a-file"}, files={"a-file": is_file}),
    line("lang=fin runs=a-file", "runs=a-file: is a file; name a folder", files={"a-file": is_file}),
    line("lang=fin cache={dir}/a-file/x", "a-file", files={"a-file": is_file}),
]

RUNS = [case for command in ("report", "compare", "study scaling") for case in (
    run("no argument", command, "are required", "--help"),
    run("not there", f"{command} nowhere", "nowhere: no such run folder"),
    run("no run", f"{command} runs/a", "runs/a: has no rows.jsonl", x__txt="a"),
    run("never finished", f"{command} runs/a", "runs/a", rows__jsonl=json.dumps(ROW)),
    run("run.json cut", f"{command} runs/a", "runs/a/run.json", "repeat", rows__jsonl=json.dumps(ROW), run__json='{"name": '),
    run("run.json is a list", f"{command} runs/a", "runs/a/run.json", "repeat", rows__jsonl=json.dumps(ROW), run__json="[]"),
    run("rows empty", f"{command} runs/a", "runs/a/rows.jsonl: is empty", rows__jsonl="", run__json=json.dumps(RUN)),
    run("rows cut", f"{command} runs/a", "rows.jsonl:2: not valid JSON",
        rows__jsonl=f'{json.dumps(ROW)}\n{{"run', run__json=json.dumps(RUN)),
    run("rows of another kind", f"{command} runs/a", "rows.jsonl", "no 'run'", rows__jsonl="{}\n", run__json=json.dumps(RUN)),
    run("rows not UTF-8", f"{command} runs/a", "rows.jsonl:1: not UTF-8", rows__jsonl=b"\xff\xfe{}", run__json=json.dumps(RUN)),
    run("a value that is text", f"{command} runs/a", "runs/a/rows.jsonl", "value", rows__jsonl=json.dumps({**ROW, "value": "x"}),
        run__json=json.dumps(RUN)),
    run("a file", f"{command} runs/a/rows.jsonl", "runs/a/rows.jsonl", rows__jsonl=json.dumps(ROW), run__json=json.dumps(RUN)),
)]

COMMANDS = [
    line("report runs --nope", "unrecognized arguments: --nope", "--help"),
    line("report experiment=nope runs", "nope"),
    line("compare runs --tests x", "--tests", "ar"),
    line("study nope runs", "study=nope: no such study", "scaling"),
    line("study scaling runs nope=3", "nope: is no key of study=scaling", "score"),
    line("study scaling runs mode=foo", "study.mode=foo: must be one of per_language, shared"),
    line("study scaling runs resamples=abc", "study.resamples=abc: must be a whole number, at least 200"),
    line("allocate", "needs LAWS and --budget N"),
    line("allocate nowhere.yaml --budget 3", "nowhere.yaml: no such file"),
    *(Case(f"allocate, laws: {name}", ["allocate", "l.yaml", "--budget", "300"], ("LAWS=l.yaml: ", word), {"l.yaml": text})
      for name, text, word in (("empty", "", "is empty"), ("a list", "[]", "must be a mapping"), ("a number", "3", "neither YAML nor JSON"),
                               ("no law", "{fin: 3}", "the law of fin must be like"), ("tab", "\ta: b", "neither YAML nor JSON"),
                               ("not a number", "{fin: {alpha: .nan, beta: -0.1}}", "alpha of fin"),
                               ("true", "{fin: {alpha: true, beta: -0.1}}", "alpha of fin"),
                               ("a language twice", "{fin: {alpha: 1, beta: -0.1}, fin: {alpha: 2, beta: -0.1}}", "neither"),
                               ("itself", "&a [*a]", "neither YAML nor JSON"))),
    Case("allocate, laws: not UTF-8", ["allocate", "l.yaml", "--budget", "300"], ("l.yaml:1: not UTF-8",), {"l.yaml": b"\xff"}),
    *(line(f"allocate l.yaml --budget {budget}", "--budget", files={"l.yaml": "{fin: {alpha: 300, beta: -0.3}}"})
      for budget in ("x", "-3", "0", "1e400", "nan")),
    line("contamination", "are required"),
    line("contamination nowhere.jsonl nowhere.jsonl", "nowhere.jsonl: no such file"),
    line("push runs/a USER/NAME --dry-run", "runs/a", "no", name="push what is no run"),
    line("push nowhere USER/NAME --dry-run", "nowhere: no such run folder"),
    line("push runs/earlier a/b/c --dry-run", "a/b/c: not a name on the hub", "USER/NAME"),
    line("dashboard", "--entity", "--help"),
    line("dashboard runs/a", "--entity"),
]



def thinned(cases: list[Case], keep: int) -> list[Case]:
    """One in `keep` runs by default: a case composes a whole configuration, a fifth of a second."""
    return [replace(case, long=i % keep > 0) for i, case in enumerate(cases)]


CASES = [*thinned(KEYS, 3), *thinned(VALUES, 8), *thinned(CHOICES, 3), *thinned(FITS, 6), *thinned(YAML, 3), *thinned(ENVIRONMENT, 3),
         *thinned(RUNS, 3), *thinned(COMMANDS, 3)]
