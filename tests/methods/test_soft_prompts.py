"""The nearest tokens are those that a hand finds, for embeddings and for keys, and a tight neighborhood is seen."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import models
from harness.config.build import build
from harness.doctor.compatibility import TINY
from harness.methods import soft_prompts
from harness.methods.soft_prompts import NoNeighbors, SoftPrompt, Tightness, first_keys, neighbors, table, tightness
from harness.models.architectures import ARCHITECTURES, Backbone, Kind
from harness.plan.__main__ import compose

TinyModel = Callable[[str], Path]
PROMPTS = ["prompt_tuning", "p_tuning", "prefix_tuning", "prefix_tuning_projected"]
# Numbers of tokens; four special ones come before word0.
WORDS = [7, 9, 12]
START = ["method.config.num_virtual_tokens=3"]


def backbone(folder: Path, model_type: str, kind: Kind = Kind.classification, **changes: Any) -> Backbone:
    """A tiny random backbone, the same one every time."""
    from transformers import AutoConfig

    torch.manual_seed(7)
    configuration = AutoConfig.for_model(model_type, num_labels=2, **{**TINY[model_type], **changes})
    model = models.model_class(kind).from_config(configuration).eval()
    model.config.name_or_path = str(folder)
    head = models.empty_model(configuration, kind).head
    return Backbone(model, ARCHITECTURES[model_type], head, kind)


def attach(name: str, plain: Backbone, *overrides: str) -> Any:
    return build(compose("config", [f"method={name}", *overrides])).method.attach(plain)


def tokenizer_of(folder: Path, model_type: str = "bert") -> Any:
    return models.load_tokenizer(folder, ARCHITECTURES[model_type])


def write(adapter: Any, vectors: torch.Tensor) -> None:
    """Put vectors at the start of what each virtual token has learned."""
    with torch.no_grad():
        adapter.model.prompt_encoder["default"].embedding.weight[:, : vectors.shape[1]] = vectors


def first(rows: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(row["token_id"], row["cosine"]) for row in rows if row["rank"] == 1]


PLANE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])


def on_the_plane(vectors: torch.Tensor) -> SoftPrompt:
    return SoftPrompt(list(range(len(vectors))), vectors, None, len(PLANE), lambda ids: PLANE[ids])


def test_neighbors_on_a_plane_are_those_of_a_ruler() -> None:
    """The nearest to (2, 0) are (1, 0), then (1, 1) at 45 degrees; length does not matter."""
    prompt = on_the_plane(torch.tensor([[2.0, 0.0], [0.0, -0.1]]))
    ids, cosines = prompt.nearest(prompt.vectors, 2)
    assert ids[0].tolist() == [0, 2]
    assert cosines[0].tolist() == pytest.approx([1, math.sqrt(0.5)])
    assert set(ids[1].tolist()) == {0, 3}


def test_a_token_without_a_direction_is_nobodys_neighbor() -> None:
    """The zero vector comes after tokens that lie opposite."""
    prompt = on_the_plane(torch.tensor([[0.0, -1.0]]))
    ids, cosines = prompt.nearest(prompt.vectors, 4)
    assert ids[0, 2:].tolist() == [2, 1]
    assert cosines[0, 3] == -1


def test_tightness_is_the_mean_cosine_over_pairs() -> None:
    """(1, 0), (0, 1) and (1, 1) make two pairs at 45 degrees and one at a right angle."""
    tight = on_the_plane(PLANE).tightness(torch.tensor([[0, 1, 2], [0, 0, 0]]))
    assert tight.tolist() == pytest.approx([2 * math.sqrt(0.5) / 3, 1])


def test_parts_of_the_vocabulary_give_the_neighbors_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven tokens at a time or all at once: the same tokens, the same cosines."""
    vocabulary, vectors = torch.randn(40, 8), torch.randn(5, 8)
    prompt = SoftPrompt([0, 1, 2, 3, 4], vectors, None, 40, lambda ids: vocabulary[ids])
    whole = prompt.nearest(vectors, 6)
    monkeypatch.setattr(soft_prompts, "CHUNK", 7)
    parts = prompt.nearest(vectors, 6)
    assert torch.equal(whole[0], parts[0])
    assert torch.allclose(whole[1], parts[1], atol=1e-6)


@pytest.mark.parametrize(("model_type", "kind"), [("bert", Kind.classification), ("llama", Kind.causal_lm)])
def test_a_prompt_that_starts_as_words_finds_just_these(model_type: str, kind: Kind, tiny_model: TinyModel) -> None:
    """The first neighbor of each virtual token is the word it started as, with cosine 1."""
    folder = tiny_model(model_type)
    text = ["method.config.prompt_tuning_init=TEXT", "+method.config.prompt_tuning_init_text=word3 word5 word8"]
    # A Llama tokenizer's first token would be <s>; this one adds none.
    adapter = attach("prompt_tuning", backbone(folder, model_type, kind), *START, *text)
    rows = neighbors(adapter, tokenizer_of(folder, model_type))
    assert rows is not None
    assert [row["token"] for row in rows if row["rank"] == 1] == ["word3", "word5", "word8"]
    assert [cosine for _, cosine in first(rows)] == pytest.approx([1, 1, 1])
    assert all(row["layer"] is None for row in rows)
    assert [row["virtual_token"] for row in rows] == [0] * 5 + [1] * 5 + [2] * 5


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mistral", "gemma", "qwen3", "gemma2", "gemma3_text", "phi3"])
def test_a_prefix_of_real_keys_finds_its_text(model_type: str, tiny_model: TinyModel) -> None:
    """Keys that a text leaves in the cache, turned by their positions, are nearest to the tokens of the text."""
    folder = tiny_model(model_type)
    plain = backbone(folder, model_type, Kind.causal_lm)
    with torch.no_grad():
        cache = plain.model(input_ids=torch.tensor([WORDS]), use_cache=True).past_key_values
    keys = cache.layers[0].keys[0].transpose(0, 1).flatten(1)
    adapter = attach("prefix_tuning", plain, *START)
    write(adapter, keys)
    rows = neighbors(adapter, tokenizer_of(folder, model_type))
    assert rows is not None
    assert first(rows) == [(word, pytest.approx(1, abs=1e-5)) for word in WORDS]
    assert {row["layer"] for row in rows} == {0}


def keys_by_hand(model: Any, model_type: str) -> torch.Tensor:
    """Keys of `WORDS` in the first layer, each alone at the first position, from the layer's own modules."""
    ids, start = torch.tensor(WORDS)[:, None], torch.zeros(1, dtype=torch.long)
    if model_type == "gpt2":
        block = model.transformer.h[0]
        read = model.transformer.wte(ids) + model.transformer.wpe(start)
        return block.attn.c_attn(block.ln_1(read)).chunk(3, dim=-1)[1][:, 0]
    inner = getattr(model, model_type)
    return inner.encoder.layer[0].attention.self.key(inner.embeddings(input_ids=ids))[:, 0]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra", "gpt2"])
def test_keys_of_tokens_are_those_of_the_first_layer(model_type: str, tiny_model: TinyModel) -> None:
    """The model's cache is given what its key projection makes of a token's embedding, position and norm included."""
    folder = tiny_model(model_type)
    plain = backbone(folder, model_type)
    with torch.no_grad():
        keys = keys_by_hand(plain.model, model_type)
    assert torch.allclose(first_keys(plain.model, torch.tensor(WORDS)), keys, atol=1e-6)
    adapter = attach("prefix_tuning", plain, *START)
    write(adapter, keys)
    assert first(neighbors(adapter, tokenizer_of(folder, model_type)) or []) == [
        (word, pytest.approx(1, abs=1e-5)) for word in WORDS
    ]


def test_looking_leaves_a_training_model_training_and_drops_nothing_out(tiny_model: TinyModel) -> None:
    """Dropout would give other keys at every call; the model's mode is as it was."""
    plain = backbone(tiny_model("bert"), "bert", hidden_dropout_prob=0.5)
    evaluated = first_keys(plain.model, torch.tensor(WORDS))
    plain.model.train()
    assert torch.equal(first_keys(plain.model, torch.tensor(WORDS)), evaluated)
    assert all(module.training for module in plain.model.modules())


@pytest.mark.parametrize("name", PROMPTS)
def test_a_saved_prompt_has_the_neighbors_it_had(name: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    """Loaded, a prompt is kept without the network that made it, and stands where it stood."""
    folder = tiny_model("bert")
    tokenizer, method = tokenizer_of(folder), build(compose("config", [f"method={name}"])).method
    adapter = method.attach(backbone(folder, "bert"))
    with torch.no_grad():
        for parameter in adapter.adapter_parameters().values():
            parameter += 0.02 * torch.randn(parameter.shape)
    before = table(adapter, tokenizer)
    adapter.save(tmp_path / "adapter")
    assert table(method.restore(backbone(folder, "bert"), tmp_path / "adapter"), tokenizer) == before
    assert before is not None
    assert [row["virtual_token"] for row in before] == list(range(method.virtual_tokens()))


def test_a_virtual_token_that_is_zero_has_no_row(tiny_model: TinyModel) -> None:
    """A prompt may start as the padding token, which points nowhere; the others keep their numbers."""
    folder = tiny_model("bert")
    adapter = attach("prompt_tuning", backbone(folder, "bert"), *START)
    embedding = adapter.model.get_base_model().get_input_embeddings().weight.detach().clone()
    write(adapter, torch.stack([embedding[7], torch.zeros(64), embedding[9]]))
    near, rows = neighbors(adapter, tokenizer_of(folder), k=2), table(adapter, tokenizer_of(folder))
    assert near is not None
    assert rows is not None
    assert [(row["virtual_token"], row["token"]) for row in near if row["rank"] == 1] == [(0, "word3"), (2, "word5")]
    assert [(row["virtual_token"], row["token_1"]) for row in rows] == [(0, "word3"), (2, "word5")]


@pytest.mark.parametrize(("name", "model_type"), [("lora", "bert"), ("bitfit", "bert"), ("adaption_prompt", "llama")])
def test_a_method_without_virtual_tokens_has_no_table(name: str, model_type: str, tiny_model: TinyModel) -> None:
    """It is peft that says which methods learn a prompt; adaption prompts are no place for tokens."""
    kind = Kind.causal_lm if model_type == "llama" else Kind.classification
    adapter = attach(name, backbone(tiny_model(model_type), model_type, kind))
    tokenizer = tokenizer_of(tiny_model(model_type), model_type)
    assert table(adapter, tokenizer) is None
    assert neighbors(adapter, tokenizer) is None
    assert tightness(adapter, tokenizer) is None


def test_rows_of_the_embedding_that_are_no_tokens_are_never_found(tiny_model: TinyModel) -> None:
    """A table of 80 rows for 64 tokens: a prompt right at row 70 gets real tokens for neighbors."""
    folder = tiny_model("bert")
    adapter = attach("prompt_tuning", backbone(folder, "bert", vocab_size=80), *START)
    write(adapter, adapter.model.get_base_model().get_input_embeddings().weight[[70, 71, 72]])
    rows = neighbors(adapter, tokenizer_of(folder), k=64)
    assert rows is not None
    assert {row["token_id"] for row in rows} <= set(range(64))


def test_a_prompt_amid_like_words_is_tighter_than_chance(tiny_model: TinyModel) -> None:
    """Twelve words around one direction are found by a prompt that points there, and not by a random prompt."""
    folder = tiny_model("bert")
    adapter, tokenizer = attach("prompt_tuning", backbone(folder, "bert"), *START), tokenizer_of(folder)
    embedding = adapter.model.get_base_model().get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(64, generator=generator)
    with torch.no_grad():
        embedding.copy_(torch.randn(64, 64, generator=generator))
        embedding[20:32] = direction + 0.3 * torch.randn(12, 64, generator=generator)
    write(adapter, direction + 0.1 * torch.randn(3, 64, generator=generator))
    rows, tight = table(adapter, tokenizer), tightness(adapter, tokenizer)
    assert rows is not None
    assert tight is not None
    assert all(
        tokenizer.convert_tokens_to_ids(row[f"token_{rank}"]) in range(20, 32) for row in rows for rank in (1, 5)
    )
    for control in (tight.directions, tight.words):
        difference, p = tight.against(control)
        assert difference > 0.3
        assert p < 0.01
    write(adapter, torch.randn(3, 64, generator=generator))
    random = tightness(adapter, tokenizer)
    assert random is not None
    assert random.against(random.directions)[1] > 0.05


def test_a_p_value_is_the_share_of_ways_to_share_out() -> None:
    """Of six ways to pick two of (1, 1, 0, 0) one gives the difference 1, and five one of at least 0."""
    difference, p = Tightness([1, 1], [0, 0], []).against([0, 0])
    assert difference == 1
    assert p == pytest.approx(1 / 6, abs=0.02)
    assert Tightness([1, 0], [1, 0], []).against([1, 0])[1] == pytest.approx(5 / 6, abs=0.02)


def test_a_table_says_the_same_for_the_same_seed(tiny_model: TinyModel) -> None:
    """Everything but the random vectors is the same for another seed as well; shares lie between 0 and 1."""
    folder = tiny_model("bert")
    adapter, tokenizer = attach("prompt_tuning", backbone(folder, "bert")), tokenizer_of(folder)
    one, again, other = (table(adapter, tokenizer, seed=seed) for seed in (0, 0, 1))
    assert one is not None
    assert other is not None
    assert one == again
    assert one[0]["random_directions"] != other[0]["random_directions"]
    assert one[0]["tightness"] == other[0]["tightness"]
    for row in one:
        assert row["cosine_1"] == pytest.approx(1)  # it starts as words of the vocabulary
        assert row["cosine_1"] >= row["cosine_5"]
        assert 0 <= row["random_directions_as_tight"] <= 1
        assert 0 <= row["random_words_as_tight"] <= 1


@pytest.mark.parametrize(("value", "sentence"), [(math.nan, "not finite"), (0.0, "all learned vectors are zero")])
def test_vectors_without_a_direction_have_no_neighbors(value: float, sentence: str, tiny_model: TinyModel) -> None:
    """A diverged run and an empty prompt are distinguished from a found one."""
    adapter = attach("prompt_tuning", backbone(tiny_model("bert"), "bert"))
    write(adapter, torch.full((20, 64), value))
    with pytest.raises(NoNeighbors, match=sentence):
        table(adapter, tokenizer_of(tiny_model("bert")))


def test_a_model_without_a_cache_has_no_keys_to_compare_with(tiny_model: TinyModel) -> None:
    """It reads the tokens to the end, and nothing was asked of a cache."""
    with pytest.raises(NoNeighbors, match="ModernBertModel keeps no keys"):
        first_keys(backbone(tiny_model("modernbert"), "modernbert").model, torch.tensor(WORDS))
