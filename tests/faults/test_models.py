"""Model folders with something wrong in them: refused in one line that names the folder, and nothing of them runs."""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import inputs_models
import pytest
import torch
from safetensors.torch import load_file, save_file

from xalign.backbones.load import load_backbone
from xalign.backbones.node import HubBackbone, HubEncoder, Tiny, TinyEncoder
from xalign.cache import Cache
from xalign.config import XalignError
from xalign.translators.nllb import NLLB, Transformers

RUN = SimpleNamespace(seed=0, plan=False)
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def intact(cache: Path) -> dict[str, Path]:
    nodes = {"causal": Tiny(width=16, vocab=300, layers=2), "encoder": TinyEncoder(width=16, vocab=300)}
    return {kind: Cache(cache).get(node.weights(RUN)).path for kind, node in nodes.items()}


def edit(folder: Path, file: str, **values: object) -> None:
    """Change keys of a JSON file; None takes one out."""
    found = {**json.loads((folder / file).read_text()), **values}
    (folder / file).write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


def change(folder: Path, work: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights by name."""
    tensors = load_file(folder / WEIGHTS)
    work(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def use(folder: Path, kind: str, **more: object) -> float:
    """What a run does with a backbone: check, load, score, answer."""
    node = (HubEncoder if kind == "encoder" else HubBackbone)(name=str(folder), **more)
    node.check_run(RUN)
    backbone = load_backbone(folder, node)
    if kind == "causal":
        backbone.generate(["Hello"], 2)
        backbone.encode_pair("Hello", "you")
    return backbone.score(["Hello"], [["a", "b"]])[0][0].sum


@pytest.mark.parametrize("case", inputs_models.EVERY, ids=[c.name for c in inputs_models.EVERY])
def test_refused_before_anything_is_computed(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case.write(tmp_path)
    name = next(a for a in case.argv if a.startswith("backbone.name=")).partition("=")[2].strip("'")
    node = (HubEncoder if "backbone=xlmr" in case.argv else HubBackbone)(name=name)
    with pytest.raises(XalignError) as caught:
        node.check_run(RUN)
    said = str(caught.value)
    assert "\n" not in said and [w for w in case.words if w not in said] == [], said
    if Path(name).is_dir():  # as a download of the hub, which no node has checked
        with pytest.raises(XalignError):
            load_backbone(Path(name), node)
    assert not Path("it-ran").exists()


def test_a_plan_needs_no_more_than_a_configuration(tmp_path):
    """Of a model that is not here yet; what is there has to be right all the same."""
    (tmp_path / "config.json").write_text(json.dumps(inputs_models.LLAMA))
    node, plan = HubBackbone(name=str(tmp_path)), SimpleNamespace(seed=0, plan=True)
    node.check_run(plan)
    with pytest.raises(XalignError, match="no tokenizer"):
        node.check_run(RUN)
    (tmp_path / "pytorch_model.bin").write_bytes(inputs_models.PICKLE)
    with pytest.raises(XalignError, match="not opened"):
        node.check_run(plan)


@pytest.mark.parametrize("case", inputs_models.TRANSLATORS, ids=[c.name for c in inputs_models.TRANSLATORS])
def test_a_translator_is_refused_before_anything_is_computed(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case.write(tmp_path)
    name = case.argv[-1].partition("=")[2].strip("'")
    with pytest.raises(XalignError) as caught:
        NLLB(name=name).check_run(RUN)
    assert [w for w in case.words if w not in str(caught.value)] == [], str(caught.value)
    assert not Path("it-ran").exists()


def template(text: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        edit(folder, "tokenizer_config.json", chat_template=text)

    return write


def of_config(**values: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder, "config.json", **values)


def of_weights(work: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: change(folder, work)


def small_table(folder: Path, name: str = "model.embed_tokens.weight") -> None:
    change(folder, lambda t: t.update({name: t[name][:100].clone()}))
    edit(folder, "config.json", vocab_size=100)


def soft(**tensors: torch.Tensor) -> Callable[[Path], None]:
    return lambda folder: save_file(tensors, folder / "soft_prompt.safetensors", metadata={"first": "300"}) if tensors else \
        (folder / "soft_prompt.safetensors").write_bytes(b"x")


LAYER, NORM = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
SHAPE = "another shape than config.json says"
BUILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such architecture": (of_config(model_type="nonesuch", architectures=["No"]), "nonesuch"),
    "a vision model": (of_config(model_type="vit", architectures=["ViTModel"]), "ViTConfig"),
    "hidden size of another model": (of_config(hidden_size=32), SHAPE),
    "vocabulary of another model": (of_config(vocab_size=400), SHAPE),
    "a layer too many in config.json": (of_config(num_hidden_layers=3), "lack model.layers.2"),
    "a layer too few in config.json": (of_config(num_hidden_layers=1), r"hold model.layers.1.*no layer"),
    "a weight is missing": (of_weights(lambda t: t.pop(LAYER)), f"lack {LAYER}, which would be random"),
    "an output projection that is not there": (of_config(tie_word_embeddings=False), "lack lm_head.weight"),
    "a weight under another name": (of_weights(lambda t: t.update({"model.nrm.weight": t.pop(NORM)})), f"lack {NORM}"),
    "a weight that is not a number": (of_weights(lambda t: t[NORM].__setitem__(3, float("nan"))), f"{NORM} holds values"),
    "an infinite weight": (of_weights(lambda t: t[LAYER].__setitem__((1, 2), float("-inf"))), f"{LAYER} holds values"),
    "fewer embeddings than tokens": (small_table, "tokens up to 299, its embeddings only 100"),
    "no end of sequence": (lambda f: edit(f, "tokenizer_config.json", eos_token=None, pad_token=None), "no end-of-sequence token"),
    "a tokenizer of another format": (lambda f: (f / "tokenizer.json").write_text('{"model": 3}'), "can open"),
    "a type of weights that does not exist": (of_config(dtype="float7", torch_dtype="float7"), "float7"),
    "heads that do not divide": (of_config(num_attention_heads=5), "can open"),
    "an activation that does not exist": (of_config(hidden_act="nope"), "nope"),
    "quantised by a package that is not there": (of_config(quantization_config={"quant_method": "gptq", "bits": 4}), "optimum|gptq"),
    "quantised by rubbish": (of_config(quantization_config=3), "can open"),
    "template: broken syntax": (template("{% for"), "backbone.template.*TemplateSyntaxError"),
    "template: reaches for Python": (template("{{ ''.__class__.__mro__[1].__subclasses__() }}"), "SecurityError.*backbone.template=alpaca"),
    "template: changes its data": (template("{{ messages.append(1) }}"), "SecurityError"),
    "template: a loop without end": (template("{% for i in range(10**9) %}{% endfor %}"), "Range too big"),
    "template: calls itself": (template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), "RecursionError"),
    "template: divides by nothing": (template("{{ 1 / 0 }}"), "ZeroDivisionError"),
    "template: wrong types": (template("{{ messages + 1 }}"), "TypeError"),
    "template: no such turn": (template("{{ messages[7].content.x }}"), "no element 7"),
    "template: refuses": (template("{{ raise_exception('many\nlines') }}"), "refuses these turns"),
    "template: drops the answer": (template("hello"), "drops the answer"),
    "template: no text": (template(["a"]), "can open"),
    "soft prompts: damaged": (soft(), "soft_prompt.safetensors: holds no soft prompt"),
    "soft prompts: other names": (soft(other=torch.zeros(2, 16)), "soft_prompt.safetensors: holds no soft prompt"),
    "soft prompts: another width": (soft(vectors=torch.zeros(2, 8)), "belongs to another model"),
}
ENCODERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a vision model": (of_config(model_type="vit", architectures=["ViTModel"]), "can open|lack"),
    "a weight is missing": (of_weights(lambda t: t.pop("encoder.layer.0.output.dense.weight")), "lack encoder.layer.0.output.dense.weight"),
    "a weight that is not a number": (of_weights(lambda t: t["embeddings.LayerNorm.bias"].fill_(float("nan"))), "LayerNorm.bias holds"),
    "token types of another model": (of_config(type_vocab_size=1), SHAPE),
    "a layer too few in config.json": (of_config(num_hidden_layers=1), r"hold encoder.layer.1.*no layer"),
    "fewer embeddings than tokens": (lambda f: small_table(f, "embeddings.word_embeddings.weight"), "its embeddings only 100"),
    "a damaged head": (lambda f: (f / "head.safetensors").write_bytes(b"x"), "head.safetensors: is no intact"),
}


SLOW = ("a vision model",)  # as a causal model: transformers then imports all its configurations


@pytest.mark.parametrize("kind, name", [pytest.param("causal", n, marks=[pytest.mark.long] * (n in SLOW)) for n in BUILT]
                         + [("encoder", n) for n in ENCODERS])
def test_refused_when_the_model_is_built(kind, name, intact, tmp_path):
    """transformers makes missing weights up, opens others under its own names, and raises errors of a dozen kinds."""
    folder = tmp_path / "m"
    shutil.copytree(intact[kind], folder)
    work, match = (BUILT if kind == "causal" else ENCODERS)[name]
    work(folder)
    with pytest.raises(XalignError, match=match) as caught:
        use(folder, kind)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 650 and "<class" not in said
    assert str(folder) in said or "backbone.template" in said


def test_every_byte_of_the_header_matters(intact, tmp_path):
    """Some other name, type, shape or place of a tensor: refused, or the same answers."""
    folder = tmp_path / "m"
    shutil.copytree(intact["causal"], folder)
    data, wanted = (folder / WEIGHTS).read_bytes(), use(folder, "causal")
    size, refused = 8 + int.from_bytes(data[:8], "little"), 0
    places = [*range(8), *range(8, size, size // 25)]
    for k, at in enumerate(places):
        spoiled = bytearray(data)
        spoiled[at] ^= 1 << k % 7
        (folder / WEIGHTS).write_bytes(spoiled)
        try:
            assert use(folder, "causal") == pytest.approx(wanted, abs=1e-6), at
        except XalignError:
            refused += 1
    assert refused > len(places) // 2


def test_what_is_unusual_but_whole_is_opened(intact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, wanted = tmp_path / "m", use(intact["causal"], "causal")
    shutil.copytree(intact["causal"], folder)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    half = len(tensors) // 2
    where = {name: f"part-{1 + (k >= half)}.safetensors" for k, name in enumerate(tensors)}
    for part in set(where.values()):
        save_file({n: t for n, t in tensors.items() if where[n] == part}, folder / part, metadata={"format": "pt"})
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    # other files beside safetensors stay closed
    (folder / "pytorch_model.bin").write_bytes(inputs_models.PICKLE)
    assert use(folder, "causal") == wanted
    edit(folder, "tokenizer_config.json", pad_token="<pad beyond the table>")
    assert use(folder, "causal") == wanted
    assert not Path("it-ran").exists()


CODE = """from pathlib import Path
(Path(__file__).parent / "it-ran").touch()
Path({proof!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_folder_runs_only_when_it_is_trusted(file, intact, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, proof = tmp_path / "m", tmp_path / "it-ran"
    shutil.copytree(intact["causal"], folder)
    (folder / "own.py").write_text(CODE.format(proof=str(proof)))
    wanted = use(folder, "causal")
    if file == "config.json":
        edit(folder, file, model_type="own", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"})
    else:
        edit(folder, file, tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.OwnModel", None]})
    with pytest.raises(XalignError, match="needs Python code of its own, which is not run; .*backbone.trust_remote_code=true"):
        use(folder, "causal")
    assert not proof.exists()
    if file == "config.json":
        assert use(folder, "causal", trust_remote_code=True) == pytest.approx(wanted, abs=1e-6) and proof.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_must_not_be_read(intact, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(intact["causal"], folder)
    (folder / WEIGHTS).chmod(0)
    with pytest.raises(XalignError, match=f"backbone.name={folder}: {WEIGHTS} cannot be read .*access rights"):
        use(folder, "causal")


@pytest.fixture(scope="module")
def nllb(intact, tmp_path_factory):
    """A random model of NLLB's kind, with a tokenizer of another."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    folder = tmp_path_factory.mktemp("nllb")
    sizes = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    M2M100ForConditionalGeneration(M2M100Config(vocab_size=300, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16,
                                                max_position_embeddings=32, **sizes)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(intact["causal"] / name, folder)
    return folder


def own_code(file: str, **values: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        edit(folder, file, **values)
        (folder / "own.py").write_text("from pathlib import Path\nPath('it-ran').touch()\n")

    return write


TRANSLATED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a weight is missing": (of_weights(lambda t: t.pop("model.encoder.layers.0.fc1.weight")), "lack model.encoder.layers.0.fc1.weight"),
    "sizes of another model": (of_config(encoder_ffn_dim=32), SHAPE),
    "a weight that is not a number": (of_weights(lambda t: t["model.decoder.layers.0.fc2.bias"].fill_(float("nan"))), "fc2.bias holds"),
    "code of its own": (own_code("config.json", model_type="own", auto_map={"AutoConfig": "own.C"}), "custom code"),
    "a tokenizer's code": (own_code("tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.C", None]}),
                           "does not know eng_Latn"),
    "a tokenizer without languages": (lambda f: None, "does not know eng_Latn; use an NLLB-200 checkpoint"),
}


@pytest.mark.parametrize("name", TRANSLATED)
def test_a_translator_is_refused_when_it_is_built(name, nllb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", None)  # transformers would ask there whether to run the code
    folder = tmp_path / "m"
    shutil.copytree(nllb, folder)
    work, match = TRANSLATED[name]
    work(folder)
    with pytest.raises(XalignError, match=match) as caught:
        if "tokenizer" not in name:
            Transformers(folder, None, "fin", 1, 8, "cpu")
        else:
            next(NLLB(name=str(folder)).batches(folder, ["A lamp."], "eng", "fin"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 650 and not Path("it-ran").exists()
