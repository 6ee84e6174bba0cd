"""A backbone is what its files say, and a folder that holds something else says so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from harness import models
from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.models import checkpoints
from harness.models.architectures import LLAMA, architecture
from harness.run import prepare, run

TinyModel = Callable[[str], Path]


def load(folder: Path, seed: int = 0, *overrides: str):
    experiment = build(compose("config", [f"model.path={folder}", "task=glue/sst2", *overrides]))
    configuration = models.load_config(folder, 2, False, ["no", "yes"])
    torch.manual_seed(seed)
    return models.load_model(folder, configuration, experiment, torch.float32)


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def with_head(folder: Path, labels: int, tmp_path: Path) -> Path:
    """The folder's backbone with a head of an earlier task."""
    torch.manual_seed(3)
    target = copied(folder, tmp_path)
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels).save_pretrained(target)
    return target


def revision(folder: Path) -> str:
    experiment = build(compose("config", [f"model.path={folder}", "task=glue/sst2"]))
    return models.revision(experiment.model, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chat_template.jinja", "added_tokens.json", "spm.model", "sentencepiece.bpe.model"])
def test_every_file_that_is_read_is_part_of_the_revision(name: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    """Adding or changing one gives another revision."""
    folder = copied(tiny_model("bert"), tmp_path)
    seen = [revision(folder)]
    for content in ("one", "two"):
        (folder / name).write_text(content)
        seen.append(revision(folder))
    assert len(set(seen)) == 3


def test_an_adapter_beside_a_model_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    """An adapter's folder is never taken for a model's."""
    folder = copied(tiny_model("bert"), tmp_path)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    with pytest.raises(ConfigError, match=r"adapter_config\.json lies beside the model"):
        prepare(compose("config", [f"model.path={folder}", "task=micro/sentiment"]))
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match="this is a peft adapter of some/base, not a model"):
        prepare(compose("config", [f"model.path={folder}", "task=micro/sentiment"]))


def test_weights_of_the_backbone_that_are_not_used_are_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    """They are counted; a foreign head is not among them."""
    folder = copied(tiny_model("bert"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    further = {"encoder.layer.0.attention.self.query.scale": torch.ones(4), "cls.predictions.bias": torch.ones(4)}
    save_file({**tensors, **further}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"has 1 weights of the backbone that this architecture, bert, does not use"):
        load(folder)


def test_a_head_that_no_one_asked_for_and_tables_are_left_out(tiny_model: TinyModel, tmp_path: Path) -> None:
    """The model gets its own new head."""
    folder = copied(tiny_model("bert"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    further = {"cls.predictions.bias": torch.ones(4), "embeddings.position_ids": torch.arange(4)}
    save_file({**tensors, **further}, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(folder).head == ("classifier",)


@pytest.mark.parametrize("labels", [2, 3])
def test_an_earlier_tasks_head_is_replaced_by_a_new_one(labels: int, tiny_model: TinyModel, tmp_path: Path) -> None:
    """Of the same size and of another: drawn from the seed, while the backbone is the checkpoint's."""
    folder = with_head(tiny_model("bert"), labels, tmp_path)
    stored = load_file(folder / "model.safetensors")
    first, again, other = load(folder), load(folder), load(folder, 1)
    assert first.renewed == ("classifier",)
    weights = [one.model.classifier.weight for one in (first, again, other)]
    assert weights[0].shape[0] == 2
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].std() > 0
    assert not any(torch.equal(weights[0], tensor) for tensor in stored.values() if tensor.shape == weights[0].shape)
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(first.model.get_parameter(name), stored[name])
    assert first.model.config.id2label == {0: "no", 1: "yes"}


def test_a_new_head_is_drawn_as_before(tiny_model: TinyModel) -> None:
    """A checkpoint without a head has none replaced."""
    assert load(tiny_model("bert")).renewed == ()


def test_a_folder_of_another_architecture_than_the_chosen_file_is_refused(tiny_model: TinyModel) -> None:
    """Type and sizes are compared with the file of conf/model."""
    for chosen, told in (("gpt2", "its model_type is bert, and model=gpt2 is of gpt2"), ("bert_base", "hidden_size")):
        with pytest.raises(ConfigError, match=told):
            prepare(compose("config", [f"model={chosen}", f"model.path={tiny_model('bert')}", "task=micro/sentiment"]))


@pytest.mark.slow
def test_weights_stored_in_four_bits_are_recorded_so(tiny_model: TinyModel, tmp_path: Path) -> None:
    """A run has them as nf4; other formats and full fine-tuning are refused."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = copied(tiny_model("llama"), tmp_path)
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=options)
    model.save_pretrained(folder)
    assert checkpoints.stored_quantization(folder).value == "nf4"
    # The tiny model's tokenizer knows words alone, so the task is one of classes.
    given = [f"model.path={folder}", "task=micro/sentiment", "tracking=none", "task.max_train_rows=16"]
    small = ["task.generator_rows.development=8", "task.generator_rows.validation=8", "train.max_steps=1"]
    inputs = prepare(compose("config", [*given, *small, "method=lora", "forgetting.text=null"]))
    assert inputs.experiment.resolved["model"]["quantization"] == "nf4"
    result = run(inputs, tmp_path / "run")
    assert result.status == "finished", result.error
    assert result.config["model"]["quantization"] == "nf4"
    with pytest.raises(ConfigError, match=r"model\.quantization=int8: the weights of .* are stored in nf4 already"):
        prepare(compose("config", [*given, "model.quantization=int8"]))
    with pytest.raises(ConfigError, match="full"):
        run(prepare(compose("config", [*given, *small, "method=full"])), tmp_path / "full")
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="its weights are stored by gptq"):
        prepare(compose("config", given))


def tokenizer_of(folder: Path):
    return models.load_tokenizer(folder, LLAMA)


def test_tokenizer_json_counts_where_the_named_class_changes_it(tmp_path: Path) -> None:
    """Numbers are split into digits as the file says."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds

    pieces = ["<u>", "</s>", *"0123456789abcdefghijklmnopqrstuvwxyz", "20"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    single = Tokenizer(kinds.BPE(vocabulary, [("2", "0")], unk_token="<u>"))
    single.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)
    single.save(str(tmp_path / "tokenizer.json"))
    told = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>", "unk_token": "<u>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    found = tokenizer_of(tmp_path)
    assert found("2020", add_special_tokens=False)["input_ids"] == single.encode("2020").ids
    assert found.eos_token == "</s>"


def test_a_pad_token_beyond_the_table_is_replaced(tiny_model: TinyModel) -> None:
    """The end of sequence pads instead; a further token is refused."""
    folder = tiny_model("llama")
    configuration = models.load_config(folder, None, False)
    tokenizer = models.load_tokenizer(folder, architecture(configuration))
    tokenizer.add_special_tokens({"pad_token": "[MORE]"})
    models.check_fit(folder, tokenizer, configuration, {}, 0)
    assert tokenizer.pad_token == "</s>"
    tokenizer.add_tokens(["further"])
    with pytest.raises(ConfigError, match=r"not of one model, or \[MORE\], further was added"):
        models.check_fit(folder, tokenizer, configuration, {}, 0)


def test_segments_that_the_model_has_no_rows_for_are_left_out(tiny_model: TinyModel) -> None:
    """The tokenizer no longer gives segment numbers."""
    from transformers import BertTokenizer

    folder = tiny_model("bert")
    configuration = models.load_config(folder, 2, False)
    configuration.type_vocab_size = 1
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    tokenizer = BertTokenizer(vocab={name: number for number, name in enumerate(names)})
    assert 1 in tokenizer("a", "b")["token_type_ids"]
    models.check_fit(folder, tokenizer, configuration, {}, 0)
    assert "token_type_ids" not in tokenizer("a", "b")


@pytest.mark.parametrize("name", ["spm.model", "tokenizer.model"])
def test_a_sentencepiece_model_alone_is_a_tokenizer(name: str, tmp_path: Path) -> None:
    """Text is encoded and decoded without a tokenizer.json."""
    import sentencepiece

    Path("text.txt").write_text("the bird sees the baker and the sailor smiled\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input="text.txt", model_prefix="made", vocab_size=40, model_type="bpe", minloglevel=2
    )
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.move("made.model", folder / name)
    kind = "DebertaV2Tokenizer" if name == "spm.model" else "LlamaTokenizer"
    (folder / "config.json").write_text(json.dumps({"model_type": "deberta-v2" if name == "spm.model" else "llama"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    tokenizer = tokenizer_of(folder)
    assert len(tokenizer("the bird sees")["input_ids"]) >= 3
    assert (
        tokenizer.decode(tokenizer("the bird sees", add_special_tokens=False)["input_ids"]).strip() == "the bird sees"
    )


def test_a_folder_with_nothing_but_weights_says_what_is_missing(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Tokenizer and configuration are asked for by name."""
    folder = copied(tiny_model("bert"), tmp_path)
    for path in folder.iterdir():
        if path.name not in ("model.safetensors", "config.json"):
            path.unlink()
    with pytest.raises(ConfigError, match=r"put the model's tokenizer\.json beside its weights"):
        models.load_tokenizer(folder, LLAMA)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"the folder has no config\.json"):
        prepare(compose("config", [f"model.path={folder}"]))
