"""Encoders with decoders read a prompt in the one and write the answer in the other, from the batch to the card."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from harness import load_adapter, models
from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.sources import conf_root
from harness.methods.skeleton import on_its_backbone
from harness.models.architectures import Backbone, Kind
from harness.plan.costs import plan
from harness.run import prepare, run
from harness.tasks import spans
from harness.tasks.scoring import evaluate
from harness.tracking.record import RunRecord, Status
from harness.training.answers import answers_nll
from harness.training.batches import IGNORED, collator_for, shifted_right
from harness.training.evaluation import Evaluation, Subject
from harness.training.generation import generate

CPU = torch.device("cpu")
PAIRS = ["t5", "mt5", "bart"]
# A method of each kind on T5 in every test run; the rest is marked slow.
QUICK = {("t5", "lora"), ("t5", "prompt_tuning"), ("t5", "prefix_tuning"), ("t5", "prefix_tuning_attention")}


def on_pairs(*methods: str) -> pytest.MarkDecorator:
    """Methods on T5 and on BART."""
    table = [(model_type, name) for model_type in ("t5", "bart") for name in methods]
    rows = [pytest.param(*row, marks=() if row in QUICK else (pytest.mark.slow,)) for row in table]
    return pytest.mark.parametrize(("model_type", "name"), rows)


TinyModel = Callable[[str], Path]
GLUE_TEXT = sorted(path.stem for path in (conf_root() / "conf/task/glue_text").glob("*.yaml"))
MINE = ("text2text", "task.name=mine", "task.data_dir=.", "task.prompt='ask: {ask}'", "task.answer='{reply}'")


def task_of(name: str, *overrides: str) -> Any:
    return build(compose("config", [f"task={name}", *overrides])).task


def tokenizer_of(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@cache
def method_of(name: str, *overrides: str) -> Any:
    return build(compose("config", [f"method={name}", *overrides])).method


def backbone_of(folder: Path, kind: Kind = Kind.seq2seq_lm) -> Backbone:
    experiment = build(compose("config", [f"model.path={folder}", "task=glue/sst2"]))
    labels = 2 if kind is Kind.classification else None
    torch.manual_seed(0)
    return models.load_model(
        folder,
        models.load_config(folder, labels, False),
        replace(experiment, task=SimpleNamespace(kind=kind)),
        torch.float32,
    )


def attached(folder: Path, name: str, *overrides: str) -> tuple[Any, Backbone]:
    """A method with values that change what the model says, as if it had been trained."""
    backbone = backbone_of(folder)
    adapter = method_of(name, *overrides).attach(backbone)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.adapter_parameters().values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return adapter, backbone


# --- Rows and batches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", PAIRS)
def test_a_prompt_and_its_answer_have_lengths_of_their_own(model_type: str, tiny_model: TinyModel) -> None:
    """Each as the tokenizer writes a text for the model, and ended; the loss counts the answer."""
    tokenizer = tokenizer_of(tiny_model(model_type))
    task = task_of(*MINE, "task.max_length=6", "task.max_target_length=4")
    short, long = task.encode(
        [{"ask": "word1 word2", "reply": "word3"}, {"ask": " ".join(["word1"] * 9), "reply": " ".join(["word2"] * 9)}],
        tokenizer,
    )
    begin = ["<s>"] if model_type == "bart" else []
    assert tokenizer.convert_ids_to_tokens(short["input_ids"]) == [*begin, "<unk>", "word1", "word2", "</s>"]
    assert tokenizer.convert_ids_to_tokens(short["labels"]) == [*begin, "word3", "</s>"]
    assert short["length"] == len(short["input_ids"]) + len(short["labels"])
    assert (short["weight"], short["cut"]) == (len(short["labels"]), False)
    assert (len(long["input_ids"]), len(long["labels"]), long["cut"]) == (6, 4, True)


def test_labels_are_shifted_and_padding_is_none_of_them(tiny_model: TinyModel) -> None:
    """The decoder starts from its own token and reads a padding token where a label is ignored."""
    backbone = backbone_of(tiny_model("t5"))
    collate = collator_for(backbone, SimpleNamespace(pad_token_id=0), CPU)  # type: ignore[arg-type]
    rows = [
        {"input_ids": [7] * read, "attention_mask": [1] * read, "labels": [9] * written, "length": read + written}
        | {"weight": written}
        for read, written in ((3, 5), (6, 2))
    ]
    batch = collate(rows, [0, 1])
    assert batch.inputs["input_ids"].tolist() == [[7, 7, 7, 0, 0, 0], [7] * 6]
    assert batch.inputs["labels"].tolist() == [[9] * 5, [9, 9, IGNORED, IGNORED, IGNORED]]
    assert batch.inputs["decoder_input_ids"].tolist() == [[0, 9, 9, 9, 9], [0, 9, 9, 0, 0]]
    assert (batch.tokens, batch.padded_tokens, batch.weight) == (16, 2 * (6 + 5), 7)


@pytest.mark.parametrize("model_type", PAIRS)
def test_the_shift_is_the_models_own(model_type: str, tiny_model: TinyModel) -> None:
    """Given labels alone, the model comes to the same loss."""
    model = backbone_of(tiny_model(model_type)).model.eval()
    tokens = torch.randint(4, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[1, 4:] = IGNORED
    start, padding = model.config.decoder_start_token_id, model.config.pad_token_id
    with torch.no_grad():
        own = model(input_ids=tokens, labels=labels)
        ours = model(input_ids=tokens, labels=labels, decoder_input_ids=shifted_right(labels, start, padding))
    assert torch.allclose(own.logits, ours.logits)
    assert torch.allclose(own.loss, ours.loss)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@on_pairs("lora", "prompt_tuning", "prefix_tuning", "prefix_tuning_attention", "houlsby")
def test_the_likelihood_of_an_answer_does_not_depend_on_the_rows_beside_it(
    model_type: str, name: str, tiny_model: TinyModel
) -> None:
    """Of all rows together it is the model's own loss times what that is a mean over."""
    folder = tiny_model(model_type)
    tokenizer = tokenizer_of(folder)
    adapter, backbone = attached(folder, name)
    rows = [
        {"ask": " ".join(f"word{number}" for number in range(read)), "reply": " ".join(["word7"] * written)}
        for read, written in ((3, 5), (12, 2), (7, 9))
    ]
    features = task_of(*MINE).encode(rows, tokenizer)
    collate = collator_for(backbone, tokenizer, CPU)
    together, alone = (answers_nll(Subject(adapter, tokenizer, collate, size, None), features) for size in (3, 1))
    assert together == pytest.approx(alone, rel=1e-5)
    adapter.model.eval()
    with torch.no_grad():
        loss = float(adapter.model(**collate(features, [0, 1, 2]).inputs).loss)
    assert sum(together) == pytest.approx(loss * sum(row["weight"] for row in features), rel=1e-5)


# --- Generation -------------------------------------------------------------------------------------------------------

PROMPTS = [[10, 11, 12, 3], [20, 21, 3], [30, 31, 32, 33, 34, 35, 3]]
NEW = 8


def token_by_token(model: Any, prompt: list[int], end: int) -> tuple[list[int], float]:
    """The whole answer through the whole model for every new token, and the mean of its tokens' log-likelihoods."""
    model.eval()
    written, likelihoods = [model.config.decoder_start_token_id], []
    while len(written) <= NEW:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([written])).logits
        scores = logits[0, -1].log_softmax(-1)
        written.append(int(scores.argmax()))
        likelihoods.append(float(scores.max()))
        if written[-1] == end:
            break
    return [token for token in written[1:] if token != end], sum(likelihoods) / len(likelihoods)


def mean_likelihood(model: Any, prompt: list[int], answer: list[int], end: int) -> float:
    whole = [*answer, end][:NEW]
    read = [model.config.decoder_start_token_id, *whole[:-1]]
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([read])).logits[0]
    return float(scores.log_softmax(-1).gather(1, torch.tensor(whole)[:, None]).mean())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@on_pairs("lora", "houlsby", "prompt_tuning", "p_tuning", "prefix_tuning", "prefix_tuning_attention")
def test_a_generated_answer_is_the_likeliest_token_each_time(model_type: str, name: str, tiny_model: TinyModel) -> None:
    """Whatever else is in the batch; a beam finds an answer that is no less likely."""
    folder = tiny_model(model_type)
    tokenizer = tokenizer_of(folder)
    adapter, _ = attached(folder, name)
    model: Any = adapter.model
    expected = [token_by_token(model, prompt, tokenizer.eos_token_id) for prompt in PROMPTS]
    found = generate(model, tokenizer, PROMPTS, NEW, batch_size=3)
    assert found.tokens == [answer for answer, _ in expected]
    wide = generate(model, tokenizer, PROMPTS, NEW, batch_size=2, num_beams=4)
    for prompt, answer, (_, greedy) in zip(PROMPTS, wide.tokens, expected, strict=True):
        assert mean_likelihood(model, prompt, answer, tokenizer.eos_token_id) >= greedy - 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_every_layers_prefix_is_read_by_its_own_layer(model_type: str, tiny_model: TinyModel) -> None:
    """A change to any key of the prefix changes what is written, so that all of it is learned."""
    adapter, _ = attached(tiny_model(model_type), "prefix_tuning")
    model = adapter.model.eval()
    inputs = {"input_ids": torch.tensor([PROMPTS[0]]), "decoder_input_ids": torch.tensor([[0, 9, 8]])}
    model(**inputs).logits.sum().backward()
    ((_, prefix),) = adapter.adapter_parameters().items()
    assert prefix.grad.view(30, 4, -1).abs().sum((0, 2)).min() > 0


# --- Tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("task.packing=true", r"task\.packing=true: an encoder sees all of a row"),
        ("task.chat_template=tokenizer", r"task\.chat_template=tokenizer: an encoder with a decoder reads a text"),
        ("task.num_beams=0", r"task\.num_beams=0: a positive number"),
        ("task.max_target_length=0", r"task\.max_target_length=0: a positive number"),
        ("task.metrics=[accuracy,rouge_l]", r"task\.metrics=accuracy: texts are generated"),
    ],
)
def test_what_goes_with_a_decoder_alone_is_refused(override: str, sentence: str) -> None:
    """In one sentence with the key."""
    with pytest.raises(ConfigError, match=sentence):
        task_of(*MINE, override)


def test_an_instruction_set_is_given_as_it_is(tiny_model: TinyModel) -> None:
    """Templates are those of the YAML, escapes too, and the identity does not know of it."""
    folder = tiny_model("t5")
    given = build(compose("config", [f"model.path={folder}", "task=instruct/alpaca", r"task.answer='{output}\n\\n'"]))
    told = on_its_backbone(given)
    assert told.task.kind is Kind.seq2seq_lm
    assert (told.task.prompt, told.task.answer) == (given.task.prompt, given.task.answer)
    assert told.task.target_length() == given.task.max_length
    assert told.resolved == given.resolved


@pytest.mark.slow
@pytest.mark.parametrize("name", GLUE_TEXT)
def test_glue_is_text_with_the_published_prefix_and_names(name: str, tmp_path: Path) -> None:
    """As Raffel et al. print it, appendix D; what is not a class's name is wrong."""
    columns = {"sentence1": "a", "sentence2": "b", "question1": "a", "question2": "b", "premise": "b"}
    columns |= {"hypothesis": "a", "question": "a", "sentence": "b"}
    splits = ("train", "validation_matched") if name == "mnli" else ("train", "validation")
    for split in splits:
        rows = [{**columns, "label": number % 2 if name != "stsb" else 3.74, "idx": number} for number in range(20)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = task_of(f"glue_text/{name}", f"task.data_dir={tmp_path}")
    row = next(row for row in task.load().splits["validation"] if row["idx"] == 1)
    expected = {
        "cola": ("cola sentence: b", "acceptable"),
        "sst2": ("sst2 sentence: b", "positive"),
        "mrpc": ("mrpc sentence1: a sentence2: b", "equivalent"),
        "qqp": ("qqp question1: a question2: b", "duplicate"),
        "mnli": ("mnli hypothesis: a premise: b", "neutral"),
        "qnli": ("qnli question: a sentence: b", "not_entailment"),
        "rte": ("rte sentence1: a sentence2: b", "not_entailment"),
        "wnli": ("wnli sentence1: a sentence2: b", "entailment"),
        "stsb": ("stsb sentence1: a sentence2: b", "3.8"),
    }
    assert (task.shown(row), task._answer(row)) == expected[name]
    assert set(task.majority(task.load(), "validation")) == set(task.metrics)
    assert task._value("maybe") == -1


def test_a_class_is_read_by_its_place_or_its_name_and_anything_else_is_refused(tmp_path: Path) -> None:
    """The sentence has the place of the row."""
    for split in ("train", "validation"):
        rows = [{"sentence": f"word{n}", "label": ["negative", "positive", 0, 1][n % 4]} for n in range(20)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = task_of("glue_text/sst2", f"task.data_dir={tmp_path}").load()
    assert {row["label"] for row in data.splits["train"]} == {"negative", "positive"}
    with (tmp_path / "validation.jsonl").open("a") as file:
        file.write(json.dumps({"sentence": "word1", "label": 2}) + "\n")
    with pytest.raises(ConfigError, match=r"row 21: label='2' is none of negative, positive"):
        task_of("glue_text/sst2", f"task.data_dir={tmp_path}").load()


def verbalized(values: list[Any], folder: Path, *overrides: str) -> tuple[Any, list[str]]:
    """A task of one's own on rows with these labels, and what the decoder is to write for each."""
    for split in ("train", "validation"):
        rows = [{"ask": f"word{n}", "label": values[n % len(values)]} for n in range(6 * len(values))]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = task_of("verbalized", "task.name=mine", f"task.data_dir={folder}", "task.prompt='{ask}'", *overrides)
    return task, [row["label"] for row in task.load().splits["validation"][: len(values)]]


@pytest.mark.parametrize(
    ("names", "values", "written"),
    [
        ("['1','2','3']", [1, 2, 3], ["1", "2", "3"]),
        ("['1','2','3']", [1.0, "2", "3.0"], ["1", "2", "3"]),
        ("[bad,good]", [1, "0", "good", False], ["good", "bad", "good", "bad"]),
        ("['yes','no']", [True, False], ["yes", "no"]),
    ],
)
def test_a_class_is_written_by_its_name_before_its_place(
    names: str, values: list[Any], written: list[str], tmp_path: Path
) -> None:
    """By the same rule as where a head predicts it."""
    assert verbalized(values, tmp_path, f"task.verbalizers={names}")[1] == written


@pytest.mark.parametrize(
    ("names", "value", "sentence"),
    [
        ("['1','2','3']", 0, "label='0' is none of 1, 2, 3"),
        ("[bad,good]", ["good"], r"label=\['good'\] is a list; an answer is a text, a number"),
        ("[]", {"good": 1}, "is an object; an answer is a text, a number"),
    ],
)
def test_a_value_that_is_no_class_to_write_is_refused(names: str, value: Any, sentence: str, tmp_path: Path) -> None:
    """A list of one name is no name."""
    numbers = ["task.metrics=[pearson]", "task.primary_metric=pearson"] if names == "[]" else []
    with pytest.raises(ConfigError, match=sentence):
        verbalized([value], tmp_path, f"task.verbalizers={names}", *numbers)


@pytest.mark.parametrize(
    ("step", "value", "text"),
    [
        ("0.2", 3.74, "3.8"),
        ("0.2", 3, "3.0"),
        ("10", 27, "30"),
        ("1", "2.6", "3"),
        ("0.25", 0.3, "0.25"),
        ("0.00001", 0.123456, "0.12346"),
        ("0.0000005", 0.0000012, "0.0000010"),
        ("0.1234567", 0.25, "0.2469134"),
    ],
)
def test_a_number_is_written_with_the_digits_of_its_step(step: str, value: Any, text: str, tmp_path: Path) -> None:
    """However small it is."""
    numbers = ["task.verbalizers=[]", "task.metrics=[pearson]", "task.primary_metric=pearson"]
    assert verbalized([value], tmp_path, *numbers, f"task.step={step}")[1] == [text]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("task.metrics=[accuracy,f1]", "metrics=f1: it is of two classes, and there are 3; f1_macro is the mean"),
        ("task.metrics=[accuracy,pearson]", "metrics=pearson: it compares numbers, and a class is predicted"),
        ("task.verbalizers=[a,b,'a ']", "two or more different texts"),
        ("task.step=inf", r"task\.step=inf: a positive number"),
    ],
)
def test_settings_of_classes_in_words_that_can_not_be_right_are_refused(override: str, sentence: str) -> None:
    """As they are where a head predicts the class."""
    mine = ["verbalized", "task.name=mine", "task.data_dir=.", "task.prompt='{ask}'", "task.verbalizers=[a,b,c]"]
    with pytest.raises(ConfigError, match=sentence):
        task_of(*mine, override)


def test_an_answer_that_names_no_class_costs_its_rows_class_alone(tmp_path: Path) -> None:
    """It is no class of its own in the mean over the classes."""
    scores = ["task.metrics=[f1_macro,accuracy]", "task.primary_metric=f1_macro"]
    task, _ = verbalized(["a", "b", "c"], tmp_path, "task.verbalizers=[a,b,c]", *scores)
    labels = ["a", "b", "c"] * 33 + ["a"]
    evaluation = Evaluation({}, {"label": labels})
    task._score([*labels[:-1], "none of them"], evaluation)
    assert evaluation.columns["prediction"][-1] == -1
    assert evaluation.scores == pytest.approx({"f1_macro": (2 * 33 / 67 + 1 + 1) / 3, "accuracy": 0.99})


@pytest.mark.parametrize(
    ("model", "task", "sentence"),
    [
        ("t5_base", "lm/text", r"task=lm/text: it is learned by decoders, and t5 is an encoder with a decoder"),
        ("mt0_large", "preference/micro", r"task=preference/micro: it is learned by decoders, and mt5"),
        ("bert_base", "summarize/micro", r"task=summarize/micro: it is learned by an encoder with a decoder"),
        ("bert_base", "lm/text", r"task=lm/text: it is learned by decoders, such as gpt2 and llama, and bert is an"),
        ("roberta_base", "instruct/dolly", r"task=instruct/dolly: it is learned by decoders, .* is an encoder"),
        ("gpt2", "glue_text/rte", r"task=glue_text/rte: .* gpt2 is none; task=instruction takes the same columns"),
    ],
)
def test_a_task_that_a_backbone_cannot_learn_is_refused_in_a_sentence(model: str, task: str, sentence: str) -> None:
    """Before anything is built, as a plan or as a run."""
    further = ["task.data_dir=."] if task == "lm/text" else []
    with pytest.raises(ConfigError, match=sentence):
        plan(build(compose("config", [f"model={model}", f"task={task}", *further])))


# --- Whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Documents whose summary is their first two words, and whose label is the kind of them."""
    folder, order = tmp_path / "data", random.Random(0)
    folder.mkdir()
    for split, count in (("train", 160), ("validation", 40)):
        rows = []
        for number in range(count):
            words = [f"word{order.randrange(10) + 20 * (number % 2)}" for _ in range(order.randint(3, 8))]
            rows.append({"document": " ".join(words), "summary": f"word{20 * (number % 2)} word1", "idx": number})
            rows[-1] |= {"sentence": rows[-1]["document"], "label": number % 2}
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


SMALL = ["task.max_length=16", "task.max_target_length=4", "task.max_new_tokens=4", "tracking=none"]
SMALL += ["forgetting.tokens=128", "measure.predict=true"]


def carry_out(folder: Path, *overrides: str) -> RunRecord:
    result = run(prepare(compose("config", [*SMALL, *overrides])), folder)
    assert result.status is Status.finished, result.error
    return result


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model_type", "method", "rate"),
    [
        ("t5", "full", 0.01),
        pytest.param("bart", "lora", 0.02, marks=pytest.mark.slow),
        pytest.param("t5", "prompt_tuning", 0.3, marks=pytest.mark.slow),
        pytest.param("bart", "prefix_tuning", 0.1, marks=pytest.mark.slow),
        pytest.param("t5", "prefix_tuning_attention", 0.1, marks=pytest.mark.slow),
        pytest.param("mt5", "houlsby", 0.01, marks=pytest.mark.slow),
    ],
)
def test_a_summary_is_learned_measured_saved_and_brought_back(
    model_type: str, method: str, rate: float, data: Path, tiny_model: TinyModel, tmp_path: Path
) -> None:
    """One run from the rows to the card, with every figure that other kinds have."""
    folder = tiny_model(model_type)
    text = tmp_path / "general.txt"
    text.write_text("\n\n".join(" ".join(f"word{(3 * n + m) % 50}" for n in range(24)) for m in range(12)))
    result = carry_out(
        tmp_path / "run",
        f"model.path={folder}",
        "task=summarize/text",
        f"task.data_dir={data}",
        f"method={method}",
        f"forgetting.text={text}",
        "train.epochs=5",
        f"train.learning_rate={rate}",
        "train.batch_size=16",
    )
    scores, cost = result.scores, result.cost
    assert set(scores["validation"]) == {"loss", "perplexity", "rouge_1", "rouge_2", "rouge_l", "generated_words"}
    # A random decoder hardly heeds what it attends to, so that keys and values alone teach it little.
    assert scores["validation"]["loss"] < (1 if method == "prefix_tuning" else 0.9) * scores["base"]["loss"]
    if method == "full":
        assert scores["validation"]["rouge_1"] > 0.7
    forgotten = scores["forgetting"]
    assert forgotten["metric"] == "span_loss"
    assert math.isfinite(forgotten["after"])
    assert forgotten["tokens"] > 10
    assert (forgotten["after"] == forgotten["before"]) is False
    assert cost["latency_ms"]["attached"]["1"] > 0
    assert cost["generated_tokens_per_second"] > 0
    predicted = cost["predicted"]
    for name, tolerance in {"weight_bytes": 0.01, "gradient_bytes": 0.01, "optimizer_bytes": 0.01}.items():
        assert predicted[name] == pytest.approx(cost[name], rel=tolerance), name
    for name in ("activation_bytes", "train_peak_bytes", "train_flops"):
        assert predicted[name] == pytest.approx(cost[name], rel=0.1), name
    predictions = pd.read_parquet(tmp_path / "run/predictions.parquet")
    assert {"prompt", "label", "prediction", "rouge_l", "generated_words"} <= set(predictions)
    loaded = load_adapter(tmp_path / "run/adapter")
    task = task_of("summarize/text", f"task.data_dir={data}", *SMALL[:3])
    rows = task.load().splits["validation"]
    collate = collator_for(backbone_of(folder), loaded.tokenizer, CPU)
    subject = Subject(loaded.adapter, loaded.tokenizer, collate, 16, None)
    again = evaluate(task, subject, task.encode(rows, loaded.tokenizer), rows)
    assert again.scores == pytest.approx(scores["validation"], rel=1e-4)
    told = loaded.tokenizer("word1 word2", return_tensors="pt")
    assert loaded.model.generate(**told, max_new_tokens=4).shape[0] == 1
    card = (tmp_path / "run/adapter/README.md").read_text()
    assert "loaded.model.generate(" in card
    assert ("AutoModelForSeq2SeqLM" in card) == (method in ("lora", "prompt_tuning"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("task", "model_type"),
    [
        pytest.param("glue_text/sst2", "t5", marks=pytest.mark.slow),
        pytest.param("glue/sst2", "t5", marks=pytest.mark.slow),
        pytest.param("glue/sst2", "bart", marks=pytest.mark.slow),
    ],
)
def test_a_class_is_learned_as_text_or_by_a_head(
    task: str, model_type: str, data: Path, tiny_model: TinyModel, tmp_path: Path
) -> None:
    """Some architectures have a head in transformers; a name that is written out needs none."""
    as_text = task.startswith("glue_text")
    names = ["task.verbalizers=[word41,word42]"] if as_text else []
    small = SMALL if as_text else ["task.max_length=16", *SMALL[3:]]
    # A classifier looks for the end of sequence, which a prediction without values must not.
    assert "measure.predict=true" in small
    overrides = [f"model.path={tiny_model(model_type)}", f"task={task}", f"task.data_dir={data}", "method=lora"]
    overrides += [*names, "train.epochs=8", "train.learning_rate=0.02", "train.batch_size=16"]
    result = run(prepare(compose("config", [*small, *overrides])), tmp_path / "run")
    assert result.status is Status.finished, result.error
    assert result.scores["validation"]["accuracy"] > 0.85
    assert result.scores["majority"]["accuracy"] == 0.5
    for name in ("weight_bytes", "gradient_bytes", "activation_bytes", "train_peak_bytes", "train_flops"):
        assert result.cost["predicted"][name] == pytest.approx(result.cost[name], rel=0.1), name
    if not as_text:
        assert result.scores["forgetting"] is None
        assert "no output layer" in result.unmeasured["scores.forgetting"]


# --- Spans to fill in -------------------------------------------------------------------------------------------------


def test_t5_is_asked_for_spans_behind_their_sentinels(tiny_model: TinyModel) -> None:
    """What is read and what is written make the text again; a sixth or so of the tokens is asked for."""
    tokenizer = tokenizer_of(tiny_model("t5"))
    text = " ".join(f"word{number}" for number in range(40))
    (row,) = spans.rows([text], tokenizer, 64)
    (again,) = spans.rows([text], tokenizer, 64)
    assert row == again
    read, written = (tokenizer.convert_ids_to_tokens(ids) for ids in (row.read, row.written))
    parts: dict[str, list[str]] = {}
    for token, asked in zip(written, row.asked, strict=True):
        if asked:
            parts[last].append(token)  # noqa: F821
        else:
            last = token
            parts[last] = []
    whole = [word for token in read for word in parts.get(token, [token]) if word != "</s>"]
    assert " ".join(whole) == text
    assert sum(row.asked) == round(0.15 * 40)
    assert written[0] == "<extra_id_0>"


def test_bart_is_asked_for_the_whole_text_with_a_mask_for_each_span(tiny_model: TinyModel) -> None:
    """Only the tokens of the spans count."""
    tokenizer = tokenizer_of(tiny_model("bart"))
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    text = " ".join(f"word{number}" for number in range(40))
    vocabulary = {token: number for token, number in tokenizer.get_vocab().items() if "extra" not in token}
    tokenizer.get_vocab = lambda: vocabulary  # type: ignore[method-assign]
    (row,) = spans.rows([text], tokenizer, 64)
    assert tokenizer.convert_ids_to_tokens(row.written) == ["<s>", *text.split(), "</s>"]
    hidden = [token for token, asked in zip(row.written, row.asked, strict=True) if asked]
    kept = [token for token, asked in zip(row.written, row.asked, strict=True) if not asked]
    assert [token for token in row.read if token != tokenizer.mask_token_id] == kept
    assert len(hidden) == 6
    assert row.read.count(tokenizer.mask_token_id) == 2


def test_a_tokenizer_with_nothing_to_stand_for_a_span_has_no_rows(tiny_model: TinyModel) -> None:
    """The reason is a sentence that a record keeps."""
    with pytest.raises(spans.NoSpans, match="neither sentinels"):
        spans.rows(["word1 word2"], tokenizer_of(tiny_model("llama")), 16)


def test_the_loss_of_spans_is_that_of_their_tokens(tiny_model: TinyModel) -> None:
    """Whatever is beside them in a batch."""
    folder = tiny_model("t5")
    tokenizer, model = tokenizer_of(folder), backbone_of(folder).model
    texts = [" ".join(f"word{(number * k) % 50}" for number in range(8 * k)) for k in (1, 2, 4)]
    rows = spans.rows(texts, tokenizer, 64)
    loss, count = spans.span_loss(model, rows, 0, 2, CPU)
    total = 0.0
    for row in rows:
        read = torch.tensor([[0, *row.written[:-1]]])
        with torch.no_grad():
            scores = model.eval()(input_ids=torch.tensor([row.read]), decoder_input_ids=read).logits[0].log_softmax(-1)
        total -= sum(float(scores[place, token]) for place, token in enumerate(row.written) if row.asked[place])
    assert count == sum(sum(row.asked) for row in rows)
    assert loss == pytest.approx(total / count, rel=1e-5)
