"""An architecture that nobody has described is adapted by its modules' names and shapes, and the record says so."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, SequenceClassifierOutput

from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.doctor.compatibility import TINY
from harness.models import empty_model, roles
from harness.models.architectures import ARCHITECTURES, Kind, architecture
from harness.run import prepare, run
from harness.tracking.record import Status


class NovelConfig(PretrainedConfig):
    """Of a decoder that no library knows."""

    model_type = "novel"
    vocab_size: int = 64
    hidden_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 2


class NovelAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wq, self.wk, self.wv = (nn.Linear(width, width) for _ in range(3))
        self.exit = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rows, length, width = hidden.shape
        split = (rows, length, self.heads, width // self.heads)
        query, key, value = (one(hidden).view(split).transpose(1, 2) for one in (self.wq, self.wk, self.wv))
        read = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.exit(read.transpose(1, 2).reshape(rows, length, width))


class NovelCell(nn.Module):
    def __init__(self, config: NovelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.causal_attention = NovelAttention(width, config.num_attention_heads)
        self.widen, self.narrow = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.causal_attention(self.first(hidden))
        return hidden + self.narrow(functional.gelu(self.widen(self.second(hidden))))


class NovelPreTrained(PreTrainedModel):
    config_class = NovelConfig
    base_model_prefix = "core"


class NovelModel(NovelPreTrained):
    def __init__(self, config: NovelConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.cells = nn.ModuleList(NovelCell(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, **_: Any) -> BaseModelOutput:
        hidden = self.words(input_ids)
        for cell in self.cells:
            hidden = cell(hidden)
        return BaseModelOutput(last_hidden_state=hidden)


class NovelForCausalLM(NovelPreTrained, GenerationMixin):
    def __init__(self, config: NovelConfig) -> None:
        super().__init__(config)
        self.core = NovelModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, labels: Any = None, **_: Any) -> Any:
        logits = self.lm_head(self.core(input_ids).last_hidden_state)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)


class NovelForSequenceClassification(NovelPreTrained):
    def __init__(self, config: NovelConfig) -> None:
        super().__init__(config)
        self.core = NovelModel(config)
        self.answer = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, labels: Any = None, **_: Any) -> Any:
        logits = self.answer(self.core(input_ids).last_hidden_state[:, -1])
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


@pytest.fixture(scope="module")
def novel(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Path:
    """A folder with a model of the new architecture, as somebody else's package makes one."""
    AutoConfig.register("novel", NovelConfig, exist_ok=True)
    AutoModel.register(NovelConfig, NovelModel, exist_ok=True)
    AutoModelForCausalLM.register(NovelConfig, NovelForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(NovelConfig, NovelForSequenceClassification, exist_ok=True)
    folder = tmp_path_factory.mktemp("novel")
    torch.manual_seed(0)
    NovelForCausalLM(NovelConfig(pad_token_id=0)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model("llama") / name, folder / name)
    return folder


def test_its_modules_are_found(novel: Path) -> None:
    """By the names of projections, and by the width of what leaves a block."""
    found = architecture(AutoConfig.from_pretrained(novel))
    assert found.found
    assert found.decoder
    assert not found.pair
    assert found.layers == "cells"
    assert found.query_value == ("causal_attention.wq", "causal_attention.wv")
    assert found.key_value == ("causal_attention.wk", "causal_attention.wv")
    assert found.attention_output == "causal_attention.exit"
    assert (found.mlp_input, found.mlp_output) == ("widen", "narrow")
    assert found.head == ("answer",)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "adapted"), [("classification", 2 * 2 * 8 * 64), ("text", 2 * 2 * 8 * 64)], ids=["classification", "text"]
)
def test_lora_trains_on_it_and_the_record_names_what_was_found(
    task: str, adapted: int, novel: Path, tmp_path: Path
) -> None:
    """Rank 8 on query and value of two layers, 32 wide."""
    order = random.Random(0)
    for split, count in (("train", 120), ("validation", 40)):
        texts = [(number % 2, order.choices(range(20), k=6)) for number in range(count)]
        rows = [
            {"sentence": " ".join(f"word{word + 20 * label}" for word in words), "label": label, "idx": number}
            for number, (label, words) in enumerate(texts)
        ]
        lines = (json.dumps(row if task == "classification" else {"text": row["sentence"]}) for row in rows)
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    chosen = ["task=glue/sst2"] if task == "classification" else ["task=lm/text", "task.documents=row", "task.stride=4"]
    overrides = [
        f"model={novel}",
        *chosen,
        f"task.data_dir={tmp_path}",
        "task.max_length=8",
        "train.epochs=4",
        "train.learning_rate=0.02",
        "tracking=none",
        "forgetting.text=null",
    ]
    result = run(prepare(compose("config", overrides)), tmp_path / "run")
    assert result.status is Status.finished, result.error
    assert result.cost["adapter_parameters"] == adapted
    assert result.provenance["found_roles"]["layers"] == "cells"
    assert result.provenance["found_roles"]["attention"][-1] == "causal_attention.exit"
    if task == "classification":
        assert result.scores["validation"]["accuracy"] > 0.9
    else:
        assert result.scores["validation"]["loss"] < result.scores["base"]["loss"]


DESCRIBED = sorted(set(TINY) - {"albert", "t5", "mt5"})


@pytest.mark.parametrize("model_type", DESCRIBED)
def test_what_is_found_in_a_described_architecture_is_what_was_described(model_type: str) -> None:
    """The same modules for each role; but for ALBERT and T5, whose layers are lists themselves."""
    config = AutoConfig.for_model(model_type, num_labels=2, **TINY[model_type])
    described = ARCHITECTURES[model_type]
    found = type(described)(**roles.find(config), found=True)
    import re

    names = [name for name, _ in empty_model(config, Kind.classification).model.named_modules()]
    for role in ("query", "attention_qv", "attention_kv", "attention", "mlp", "mlp_output"):
        ours, theirs = ({name for name in names if re.fullmatch(one.targets(role), name)} for one in (described, found))
        assert ours == theirs, role
    assert (found.decoder, found.pair) == (described.decoder, described.pair)
    assert set(described.head) == set(found.head)


def test_a_model_without_clear_roles_is_refused_with_what_to_write() -> None:
    """Experts are many modules of one name, of which a row sees some."""
    config = AutoConfig.for_model("mamba", vocab_size=64, hidden_size=64, num_hidden_layers=2)
    with pytest.raises(ConfigError, match=r"'mamba' is not described, and its parts are not clear .*ARCHITECTURES"):
        architecture(config)


def test_an_architecture_without_the_common_keys_is_refused() -> None:
    """Methods read widths and numbers of layers from the configuration."""
    with pytest.raises(ConfigError, match="its configuration has no hidden_size"):
        architecture(SimpleNamespace(model_type="mystery"))  # type: ignore[arg-type]
