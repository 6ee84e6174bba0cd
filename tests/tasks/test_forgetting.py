"""Forgetting is the loss of the plain language model before, and of the changed one after."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from harness import models
from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.sources import PACKAGE
from harness.doctor.compatibility import TINY
from harness.methods import trained_parameters
from harness.models.architectures import ARCHITECTURES, Backbone, Kind
from harness.tasks import forgetting
from harness.tasks.forgetting import BorrowedHead, CannotMeasure, Forgetting, mask, masked_loss, measure, read_text
from harness.tasks.micro import corpus
from harness.training import perplexity
from harness.training.batches import IGNORED, collator_for
from harness.training.evaluation import Subject

CPU = torch.device("cpu")
ENCODERS = [name for name in TINY if not (ARCHITECTURES[name].decoder or ARCHITECTURES[name].pair)]
DECODERS = [name for name in TINY if ARCHITECTURES[name].decoder]
VOCABULARY = ["<pad>", "<unk>", "<s>", "</s>", "<mask>", *(f"word{number}" for number in range(59))]
TEXT = [" ".join(f"word{(7 * place + row) % 59}" for place in range(5 + 4 * row)) for row in range(5)]


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a tiny language model of an architecture with its head, and returns its folder."""

    @cache
    def make(model_type: str, **options) -> Path:
        folder = tmp_path_factory.mktemp(model_type)
        factory = AutoModelForCausalLM if ARCHITECTURES[model_type].decoder else AutoModelForMaskedLM
        torch.manual_seed(0)
        model = factory.from_config(AutoConfig.for_model(model_type, **TINY[model_type], **options))
        with torch.no_grad():
            for parameter in model.parameters():
                # Freshly made a model foretells all words alike, whatever it reads.
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        return folder

    return make


@cache
def tokenizer_for(decoder: bool):
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A" if decoder else "<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    masks = {} if decoder else {"mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **names, **masks)


@cache
def experiment_of(name: str, *overrides: str):
    return build(compose("config", [f"method={name}", "task=glue/sst2", *overrides]))


def attach(folder: Path, name: str, kind: Kind = Kind.classification, *overrides: str):
    """A backbone with a method on it, and the method's virtual tokens."""
    experiment = replace(experiment_of(name, *overrides), task=SimpleNamespace(kind=kind))
    labels = 2 if kind is Kind.classification else None
    torch.manual_seed(1)
    backbone = models.load_model(folder, models.load_config(folder, labels, False), experiment, torch.float32)
    backbone.model.config.pad_token_id = 0
    return experiment.method.attach(backbone), backbone, experiment.method.virtual_tokens()


def subject(adapter, backbone: Backbone, tokenizer, batch_size: int) -> Subject:
    return Subject(adapter, tokenizer, collator_for(backbone, tokenizer, CPU), batch_size, None)


def measured(adapter, backbone: Backbone, folder: Path, virtual_tokens: int) -> Forgetting:
    tokenizer = tokenizer_for(backbone.architecture.decoder)
    return measure(subject(adapter, backbone, tokenizer, 2), backbone, folder, TEXT, virtual_tokens)


def plain(folder: Path, decoder: bool, changed: dict | None = None) -> float:
    """What the whole language model itself makes of the text, with some weights of its backbone replaced."""
    tokenizer = tokenizer_for(decoder)
    model = (AutoModelForCausalLM if decoder else AutoModelForMaskedLM).from_pretrained(folder)
    # strict=False: what is changed lies in the layers alone, below heads and poolers.
    unknown = model.base_model.load_state_dict(changed or {}, strict=False).unexpected_keys
    assert not unknown
    if decoder:
        return perplexity.score(model, tokenizer, TEXT, 32, 16, 1, CPU).perplexity
    losses, counts = [], []
    for row in mask(TEXT, tokenizer, 32):
        ids, labels = torch.tensor([row.ids]), torch.tensor([row.targets])
        with torch.no_grad():
            losses.append(model.eval()(input_ids=ids, labels=labels).loss.item())
        counts.append(int((labels != IGNORED).sum()))
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


def disturb(parameters: dict[str, torch.nn.Parameter]) -> None:
    """Stand in for training."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1 * torch.randn_like(parameter))


def check_architecture(folder: Path, decoder: bool, kind: Kind) -> None:
    adapter, backbone, _ = attach(folder, "full", kind)
    base = backbone.model.base_model
    within = {name: p for name, p in base.named_parameters() if "layer" in name or ".h." in f".{name}"}
    disturb(within)
    found = measured(adapter, backbone, folder, 0)
    assert found.metric == ("perplexity" if decoder else "masked_loss")
    assert found.before == pytest.approx(plain(folder, decoder), rel=1e-5)
    changed = {name: parameter.detach() for name, parameter in within.items()}
    assert found.after == pytest.approx(plain(folder, decoder, changed), rel=1e-5)
    assert found.after != pytest.approx(found.before, rel=1e-3)
    tokens = sum(len(passage.split()) for passage in TEXT)
    masked = sum(max(1, round(0.15 * len(passage.split()))) for passage in TEXT)
    assert found.tokens == (tokens if decoder else masked)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [*ENCODERS, *DECODERS])
def test_a_classification_model_is_read_by_the_checkpoints_own_head(model_type, language_model):
    """Before and after are the losses of the whole language model with the old and the new layers."""
    check_architecture(language_model(model_type), ARCHITECTURES[model_type].decoder, Kind.classification)


def test_a_head_that_uses_the_embedding_module_finds_it(language_model):
    """DeBERTa-v2's newer head multiplies by the embeddings of its backbone."""
    check_architecture(language_model("deberta-v2", legacy=False), False, Kind.classification)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_language_model_is_scored_itself(model_type, language_model):
    """It has the head that the measurement needs."""
    check_architecture(language_model(model_type), True, Kind.causal_lm)


METHODS = ["head", "bitfit", "houlsby", "lora", "ia3", "prompt_tuning", "p_tuning", "prefix_tuning"]
METHODS += ["prefix_tuning_attention", "diff_pruning"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # peft warns of what does not matter here
@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("name", METHODS)
def test_every_kind_of_method_is_switched_off_for_before_and_on_for_after(name, model_type, language_model):
    """Virtual tokens, hooks, added and changed weights all count; a linear probe forgets nothing."""
    folder = language_model(model_type)
    adapter, backbone, virtual_tokens = attach(folder, name)
    disturb(trained_parameters(adapter))
    requires_grad = {n: p.requires_grad for n, p in adapter.model.named_parameters()}
    found = measured(adapter, backbone, folder, virtual_tokens)
    assert found.before == pytest.approx(plain(folder, model_type == "gpt2"), rel=1e-5)
    if name == "head":
        assert found.after == found.before
    else:
        assert math.isfinite(found.after)
        assert found.after != pytest.approx(found.before, rel=1e-4)
    assert {n: p.requires_grad for n, p in adapter.model.named_parameters()} == requires_grad


@pytest.mark.filterwarnings("ignore")
def test_a_prompt_stands_in_front_and_is_not_asked_about(language_model):
    """The whole language model, given the prompt's vectors before the text's, has the same loss on the text."""
    folder, tokenizer = language_model("bert"), tokenizer_for(decoder=False)
    adapter, backbone, virtual_tokens = attach(folder, "prompt_tuning")
    disturb(adapter.adapter_parameters())
    whole = AutoModelForMaskedLM.from_pretrained(folder).eval()
    losses = []
    with torch.no_grad():
        prompt = adapter.model.get_prompt(batch_size=1)
        for row in mask(TEXT, tokenizer, 32):
            words = whole.get_input_embeddings()(torch.tensor([row.ids]))
            logits = whole(inputs_embeds=torch.cat([prompt, words], 1)).logits[0, virtual_tokens:]
            losses += torch.nn.functional.cross_entropy(logits, torch.tensor(row.targets), reduction="none").tolist()
    expected = sum(losses) / sum(loss > 0 for loss in losses)
    assert measured(adapter, backbone, folder, virtual_tokens).after == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning", "prefix_tuning_attention", "houlsby"])
def test_a_passage_counts_the_same_beside_others_and_alone(name, language_model):
    """Padding beside a longer passage is not seen."""
    folder = language_model("bert")
    adapter, backbone, _ = attach(folder, name)
    disturb(adapter.adapter_parameters())
    rows = mask(TEXT, tokenizer_for(decoder=False), 32)
    model = BorrowedHead(adapter, backbone, folder, CPU)
    assert masked_loss(model, rows, 0, 5, CPU)[0] == pytest.approx(masked_loss(model, rows, 0, 1, CPU)[0], rel=1e-5)


@pytest.mark.filterwarnings("ignore")  # bitsandbytes and torch deprecations on the way to 4 bits
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_a_quantized_backbone_is_measured_as_it_is_stored(model_type, language_model):
    """The loss is near that of the whole weights, and not the same."""
    folder = language_model(model_type)
    adapter, backbone, _ = attach(folder, "qlora")
    found = measured(adapter, backbone, folder, 0)
    assert found.after == pytest.approx(found.before, rel=1e-6), "LoRA starts at zero"
    whole = plain(folder, model_type == "llama")
    assert found.before != whole
    assert found.before == pytest.approx(whole, rel=0.5)


def test_the_second_backbone_does_not_stay_in_memory(language_model):
    """The borrowed language model keeps its head and the embeddings, none of its layers."""
    folder = language_model("bert")
    adapter, backbone, _ = attach(folder, "full")
    names = {name for name, _ in BorrowedHead(adapter, backbone, folder, CPU).language_model.named_parameters()}
    assert names
    assert all(name.startswith(("cls.", "bert.embeddings.")) for name in names)


@pytest.mark.parametrize("model_type", ["bert", "electra"])
def test_a_checkpoint_without_a_head_is_refused(model_type, tiny_model):
    """As sentence encoders and ELECTRA's discriminators are."""
    adapter, backbone, _ = attach(tiny_model(model_type), "full")
    with pytest.raises(CannotMeasure, match="the checkpoint has no language-model head: it lacks"):
        measured(adapter, backbone, tiny_model(model_type), 0)


def test_the_real_sentence_encoder_has_no_head(minilm):
    """The measurement is left out with the reason."""
    adapter, backbone, _ = attach(minilm, "lora")
    with pytest.raises(CannotMeasure, match="the checkpoint has no language-model head: it lacks cls"):
        measured(adapter, backbone, minilm, 0)


def test_an_architecture_without_a_language_model_is_refused(tmp_path):
    """Transformers has no masked language model for vision models."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(CannotMeasure, match="can't be loaded with a language-model head: Unrecognized configuration"):
        forgetting.load_language_model(tmp_path, decoder=False)


def test_no_room_for_text_is_refused(language_model):
    """Virtual tokens may not fill the context."""
    adapter, backbone, _ = attach(language_model("gpt2"), "full")
    with pytest.raises(CannotMeasure, match="60 virtual tokens leave 4 of 64 positions"):
        measured(adapter, backbone, language_model("gpt2"), 60)


def test_the_shipped_encoder_knows_held_out_text():
    """Its record has 0.98 nats, where a tenth of the chosen words were left as they are and a tenth replaced."""
    folder = PACKAGE / "pretrained" / "micro_encoder"
    record = json.loads((folder / "pretraining.json").read_text())["heldout"]["masked_loss"]
    adapter, backbone, _ = attach(folder, "lora")
    tokenizer = models.load_tokenizer(folder, backbone.architecture)
    text = read_text("micro", tokenizer, 4096)
    found = measure(subject(adapter, backbone, tokenizer, 64), backbone, folder, text, 0)
    assert found.before == pytest.approx(record, abs=0.25)
    assert found.after == found.before, "LoRA starts at zero"
    assert found.tokens == pytest.approx(0.15 * 4096, rel=0.05)


def test_the_shipped_decoder_knows_held_out_text():
    """Its record counts the end of each passage too, which is easily told."""
    folder = PACKAGE / "pretrained" / "micro_decoder"
    record = json.loads((folder / "pretraining.json").read_text())["heldout"]["perplexity"]
    adapter, backbone, _ = attach(folder, "lora", Kind.causal_lm)
    tokenizer = models.load_tokenizer(folder, backbone.architecture)
    text = read_text("micro", tokenizer, 4096)
    found = measure(subject(adapter, backbone, tokenizer, 64), backbone, folder, text, 0)
    assert found.before == pytest.approx(record, rel=0.1)
    assert found.tokens == pytest.approx(4096, rel=0.01)


# --- Masks and text -------------------------------------------------------------------------------------------------


def test_masks_are_fixed_and_hide_a_seventh_of_the_words():
    """15% of each row's words, never a special token; targets are what was hidden."""
    tokenizer = tokenizer_for(decoder=False)
    rows = mask(TEXT, tokenizer, 64)
    assert rows == mask(TEXT, tokenizer, 64)
    for row, passage in zip(rows, TEXT, strict=True):
        hidden = [place for place, target in enumerate(row.targets) if target != IGNORED]
        assert len(hidden) == max(1, round(0.15 * len(passage.split())))
        assert all(row.ids[place] == tokenizer.mask_token_id for place in hidden)
        restored = [target if target != IGNORED else token for token, target in zip(row.ids, row.targets, strict=True)]
        assert restored == tokenizer(passage)["input_ids"]
        assert row.ids[0] == tokenizer.bos_token_id
        assert row.ids[-1] == tokenizer.eos_token_id


def test_a_long_passage_is_read_in_rows():
    """Nothing of it is lost, and each row has its special tokens."""
    tokenizer = tokenizer_for(decoder=False)
    passage = " ".join(f"word{number % 59}" for number in range(50))
    rows = mask([passage], tokenizer, 12)
    assert [len(row.ids) for row in rows] == [12] * 5
    words = [t if t != IGNORED else i for row in rows for i, t in list(zip(row.ids, row.targets, strict=True))[1:-1]]
    assert words == tokenizer(passage, add_special_tokens=False)["input_ids"]


def test_the_loss_counts_masked_tokens_alone():
    """A model that gives the masked token half of the probability has ln 2, whatever it says of others."""

    class Half(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            logits = torch.full((*input_ids.shape, 3), -math.inf)
            logits[..., 1:] = 0.0
            return SimpleNamespace(logits=logits)

    rows = [forgetting.MaskedRow([2, 0, 2], [IGNORED, 1, 2]), forgetting.MaskedRow([0], [IGNORED])]
    assert masked_loss(Half(), rows, 0, 2, CPU) == (pytest.approx(math.log(2), abs=1e-6), 2)
    with pytest.raises(CannotMeasure, match="no token to mask"):
        masked_loss(Half(), rows[1:], 0, 2, CPU)


def test_a_tokenizer_without_a_mask_is_refused():
    """Masked words can't be scored without one."""
    with pytest.raises(CannotMeasure, match="no mask token"):
        mask(TEXT, tokenizer_for(decoder=True), 64)


def test_the_micro_worlds_text_is_held_out():
    """About as many tokens as were asked for, of the passages that pretraining never saw."""
    tokenizer = AutoTokenizer.from_pretrained(PACKAGE / "pretrained" / "micro_decoder")
    text = read_text("micro", tokenizer, 500)
    assert text[:-1] == list(corpus("heldout", 500))[: len(text) - 1]
    assert sum(len(tokenizer(passage, add_special_tokens=False)["input_ids"]) for passage in text) in range(480, 501)


def test_a_file_is_read_by_paragraphs_up_to_the_tokens(tmp_path):
    """Blank lines, with spaces or without, divide it; the last passage is cut."""
    tokenizer = tokenizer_for(decoder=False)
    (tmp_path / "text.txt").write_text("\n\nword1 word2\nword3\n\n \n\nword4 word5\n\nword6 word7 word8 word9\n")
    path = str(tmp_path / "text.txt")
    assert read_text(path, tokenizer, 5) == ["word1 word2\nword3", "word4 word5"]
    assert read_text(path, tokenizer, 7) == ["word1 word2\nword3", "word4 word5", "word6 word7"]


def test_a_file_is_read_the_same_however_its_lines_end(tmp_path):
    """Passages are parted by blank lines of any sort."""
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "text.txt").write_bytes(f"word1{end}word2{end} {end}word3{end}{end}word4{end}".encode())
        assert read_text(str(tmp_path / "text.txt"), tokenizer_for(decoder=False), 4) == [
            "word1\nword2",
            "word3",
            "word4",
        ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no such file; micro or a text file is allowed"),
        (b"", "the file is empty"),
        (b" \n\n \n", "the file is empty"),
        (b"caf\xe9", "the file is not UTF-8"),
        (b"word1 word2\n\nword3", "the file has 3 tokens and forgetting.tokens=4 are to be read"),
    ],
)
def test_a_text_that_can_not_be_read_is_refused(content, sentence, tmp_path):
    """The sentence begins with the key and the path."""
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence) as error:
        read_text(str(path), tokenizer_for(decoder=False), 4)
    assert str(error.value).startswith(f"forgetting.text={path}: ")
