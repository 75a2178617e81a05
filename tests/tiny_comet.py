"""Makes tiny random COMET checkpoints and scores texts with COMET's own `predict`; run by an interpreter that has unbabel-comet.

    python tiny_comet.py FOLDER

FOLDER/samples.json is a list of {"src", "mt", "ref"}. Afterwards FOLDER/<name>/ has hparams.yaml and checkpoints/model.ckpt of a
regression, a referenceless and two unified models over one tiny XLM-R (FOLDER/encoder), and FOLDER/expected.json what COMET gives:
{name: [score of each sample]}, ``unified_full`` with its reference and, as ``unified_full without reference``, without it.
"""
import json
import sys
from pathlib import Path

import torch
from comet import load_from_checkpoint
from comet.models import ReferencelessRegression, RegressionMetric, UnifiedMetric
from pytorch_lightning import Trainer
from pytorch_lightning.core.saving import save_hparams_to_yaml
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizerFast


def make_encoder(folder, texts):
    """A two-layer XLM-R whose pieces are the characters of `texts`, as ``from_pretrained`` opens it."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = special + sorted(set("".join(texts)) - {" "}) + ["\u2581", "<mask>"]
    tokenizer = Tokenizer(Unigram([(p, 0.0 if p in special else -1.0) for p in pieces], unk_id=3))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>",
                                                  special_tokens=[("<s>", 0), ("</s>", 2)])
    XLMRobertaTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = XLMRobertaConfig(vocab_size=len(pieces), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                              max_position_embeddings=130, type_vocab_size=1, initializer_range=0.5)
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)


def make_checkpoint(folder, model):
    """`model` as COMET publishes its models: Lightning's checkpoint, and the hyper-parameters one folder above."""
    (folder / "checkpoints").mkdir(parents=True)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / "checkpoints" / "model.ckpt", weights_only=True)
    save_hparams_to_yaml(str(folder / "hparams.yaml"), model.hparams)


def main(folder):
    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    make_encoder(folder / "encoder", [text for sample in samples for text in sample.values()])
    common = {"pretrained_model": str(folder / "encoder"), "local_files_only": True, "hidden_sizes": [8], "dropout": 0.0,
              "layer_transformation": "softmax"}
    sides = {"regression": ("src", "mt", "ref"), "referenceless": ("src", "mt"), "unified": ("src", "mt"),
             "unified_full": ("src", "mt", "ref"), "unified_full without reference": ("src", "mt")}
    torch.manual_seed(1)
    for name, model in {
        "regression": RegressionMetric(**common),
        "referenceless": ReferencelessRegression(**common, final_activation="Sigmoid"),
        "unified": UnifiedMetric(**common, input_segments=["mt", "src"]),
        "unified_full": UnifiedMetric(**common, input_segments=["mt", "src", "ref"]),
    }.items():
        make_checkpoint(folder / name, model)
    expected = {}
    for name, keys in sides.items():
        model = load_from_checkpoint(str(folder / name.split()[0] / "checkpoints" / "model.ckpt"), local_files_only=True)
        rows = [{key: sample[key] for key in keys} for sample in samples]
        found = model.predict(rows, batch_size=3, gpus=0, progress_bar=False)
        expected[name] = {"scores": [float(s) for s in found.scores], "system_score": float(found.system_score)}
    (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
