"""Prefixes in front of an attention's keys and values are what their paper says, in each block and with a cache."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import method_of, random_backbone
from torch.nn import functional
from transformers import AutoConfig

from harness import methods, models
from harness.config.errors import ConfigError
from harness.doctor.compatibility import words
from harness.methods import prepare_trained
from harness.models.architectures import Backbone, Kind
from harness.training.batches import plain_inputs

NAME, TOKENS = "prefix_tuning_attention", 5
EVERY = "[encoder,decoder,cross]"
BLOCKS = ["[encoder]", "[decoder]", "[cross]", EVERY]
PAIRS = ["t5", "mt5", "bart"]
IDS = torch.tensor([[10, 11, 12, 13, 14, 3], [20, 21, 22, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
WRITTEN = torch.tensor([[0, 30, 31, 32], [0, 40, 41, 42]])
READ = {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": WRITTEN}


def prefixed(backbone: Backbone, blocks: str = EVERY, *overrides: str) -> Any:
    """Random prefixes, the same every time, in a backbone."""
    torch.manual_seed(5)
    method = method_of(NAME, f"method.num_virtual_tokens={TOKENS}", f"method.blocks={blocks}", *overrides)
    return method.attach(backbone)


def pair_of(model_type: str) -> Backbone:
    return random_backbone(model_type, Kind.seq2seq_lm)


@torch.no_grad()
def logits(backbone: Backbone) -> torch.Tensor:
    if backbone.kind is Kind.seq2seq_lm:
        return backbone.model(**READ).logits
    return backbone.model(**plain_inputs(words(8, 12), backbone.kind, backbone.model.config)).logits


def attend_by(model: Any, implementation: str) -> None:
    """In every part, for an encoder and a decoder may have a configuration each."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = implementation


def attention_modules(model_type: str, model: Any) -> dict[str, tuple[Any, bool]]:
    """The second layer's attention of each kind by its full name, and whether its queries see the past alone."""
    names = {
        "t5": ("{}.block.1.layer.0.SelfAttention", "decoder.block.1.layer.1.EncDecAttention"),
        "bart": ("model.{}.layers.1.self_attn", "model.decoder.layers.1.encoder_attn"),
    }
    own, cross = names["t5" if "t5" in model_type else "bart"]
    found = {own.format("encoder"): False, own.format("decoder"): True, cross: False}
    return {name: (model.get_submodule(name), causal) for name, causal in found.items()}


def by_hand(module: Any, prefix: Any, hidden: Any, read: Any, causal: bool, bias: Any) -> torch.Tensor:
    """Attention with the prefix in front, by torch's own function on what the projections make."""
    t5 = hasattr(module, "o")
    query, key, value, out = (
        (module.q, module.k, module.v, module.o)
        if t5
        else (module.q_proj, module.k_proj, module.v_proj, module.out_proj)
    )
    rows = len(hidden)
    keys, values = (
        torch.cat([states.expand(rows, -1, -1), project(read)], 1)
        for states, project in zip(prefix(), (key, value), strict=True)
    )
    heads = module.n_heads if t5 else module.num_heads
    q, k, v = (x.view(rows, x.shape[1], heads, -1).transpose(1, 2) for x in (query(hidden), keys, values))
    seen = torch.ones(rows, 1, hidden.shape[1], read.shape[1], dtype=torch.bool)
    seen = seen.tril() if causal else seen & MASK.bool()[:, None, None]
    added = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf) + (0 if bias is None else bias)
    added = torch.cat([torch.zeros(*added.shape[:3], TOKENS), added], 3)
    attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=1.0 if t5 else None)
    return out(attended.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", PAIRS)
def test_each_attention_is_the_formula_on_keys_and_values_with_the_prefix_in_front(
    model_type: str, implementation: str
) -> None:
    """With padding, the decoder's mask and, for T5, the bias of the texts' own distances, zero for the prefix."""
    backbone = pair_of(model_type)
    attend_by(backbone.model, implementation)
    prefixed(backbone)
    seen: dict[str, Any] = {}
    attentions = attention_modules(model_type, backbone.model)
    for name, (module, _) in attentions.items():
        module.register_forward_hook(
            lambda _, given, named, out, name=name: seen.update({name: (given, named, out[0])}), with_kwargs=True
        )
    logits(backbone)
    assert len(seen) == 3
    for name, (module, causal) in attentions.items():
        given, named, out = seen[name]
        hidden = given[0] if given else named["hidden_states"]
        read = named.get("key_value_states")
        bias = None
        if "t5" in model_type and read is None:
            first = backbone.model.get_submodule(name.replace("block.1", "block.0"))
            bias = first.compute_bias(hidden.shape[1], hidden.shape[1])
        prefix = backbone.model.adapters[name.replace(".", "_")]
        with torch.no_grad():
            expected = by_hand(module, prefix, hidden, hidden if read is None else read, causal, bias)
        assert torch.allclose(out, expected, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("block", ["encoder", "decoder", "cross"])
@pytest.mark.parametrize("model_type", PAIRS)
def test_what_texts_are_to_each_other_stays(model_type: str, block: str) -> None:
    """The weights of a first layer, those of the prefix left out, are in the proportions of the backbone alone."""
    backbone = pair_of(model_type)
    attend_by(backbone.model, "eager")
    site = [*attention_modules(model_type, backbone.model)][["encoder", "decoder", "cross"].index(block)]
    found: list[torch.Tensor] = []
    first = backbone.model.get_submodule(site.replace(".1.", ".0.", 1))
    first.register_forward_hook(lambda _, given, out: found.append(out[-1]))

    def weights() -> torch.Tensor:
        logits(backbone)
        return found.pop()

    alone = weights()
    prefixed(backbone, f"[{block}]")
    beside = weights()
    assert beside.shape[-1] == TOKENS + alone.shape[-1]
    assert (beside[..., :TOKENS] > 0).all(), "every query sees all of the prefix"
    own = beside[..., TOKENS:]
    assert torch.allclose(own / own.sum(-1, keepdim=True), alone, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("model_type", PAIRS)
def test_padding_has_no_effect(model_type: str, blocks: str) -> None:
    """The second row by itself, without its padding, has the same logits."""
    backbone = pair_of(model_type)
    base = logits(backbone)
    prefixed(backbone, blocks)
    together = logits(backbone)
    assert not torch.allclose(together, base, atol=1e-4)
    with torch.no_grad():
        alone = backbone.model(input_ids=IDS[1:, :4], decoder_input_ids=WRITTEN[1:]).logits
    assert torch.allclose(alone, together[1:], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("model_type", PAIRS)
def test_with_a_cache_and_without_the_same_is_written(model_type: str, blocks: str) -> None:
    """Tokens and scores of greedy and of beam search; the cache holds what was written and nothing of the prefix."""
    backbone = pair_of(model_type)
    prefixed(backbone, blocks)
    settings = {"max_new_tokens": 7, "min_new_tokens": 7, "output_scores": True, "return_dict_in_generate": True}
    texts = {"input_ids": IDS, "attention_mask": MASK}
    for beams in (1, 3):
        kept, anew = (
            backbone.model.generate(**texts, **settings, num_beams=beams, do_sample=False, use_cache=cache)
            for cache in (True, False)
        )
        assert torch.equal(kept.sequences, anew.sequences)
        # Beams that are as likely may change places.
        found = [one.scores if beams == 1 else [one.sequences_scores] for one in (kept, anew)]
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*found, strict=True))
    with torch.no_grad():
        out = backbone.model(**READ, use_cache=True)
    assert out.past_key_values.self_attention_cache.get_seq_length() == WRITTEN.shape[1]
    assert out.past_key_values.cross_attention_cache.get_seq_length() == IDS.shape[1]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "qwen3"])
def test_a_decoder_writes_the_same_with_a_cache_and_without(model_type: str) -> None:
    """Also where a row is padded at its left."""
    backbone = random_backbone(model_type, Kind.causal_lm)
    base = logits(backbone)
    prefixed(backbone)
    assert not torch.allclose(logits(backbone), base, atol=1e-3)
    texts = {"input_ids": IDS.flip(1), "attention_mask": MASK.flip(1)}
    settings = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False, "pad_token_id": 0}
    kept, anew = (backbone.model.generate(**texts, **settings, use_cache=cache) for cache in (True, False))
    assert torch.equal(kept, anew)
    alone = backbone.model.generate(input_ids=texts["input_ids"][1:, 2:], **settings)
    assert torch.equal(alone[0, 4:], kept[1, 6:])


def test_a_causal_prefix_lets_no_token_see_the_next() -> None:
    """A later token changes no earlier logits, which are those of a mask that is written out."""
    backbone, written_out = (random_backbone("llama", Kind.causal_lm) for _ in range(2))
    attend_by(written_out.model, "eager")
    for one in (backbone, written_out):
        prefixed(one)
    assert torch.allclose(logits(backbone), logits(written_out), atol=1e-5)
    other = IDS.clone()
    other[:, 4:] = 33
    with torch.no_grad():
        first, second = (backbone.model(input_ids=ids).logits for ids in (IDS, other))
    assert torch.allclose(first[:, :4], second[:, :4], atol=1e-6)
    assert not torch.allclose(first[:, 4:], second[:, 4:], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("method.projection_dim=9",)])
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_it_learns_is_saved_and_comes_back(
    model_type: str, blocks: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    """All that was expected is trained, every parameter by its gradient, and what is restored gives the same bits."""
    backbone = pair_of(model_type)
    base = logits(backbone)
    adapter = prefixed(backbone, blocks, *overrides)
    expected = adapter.method.expected_parameters(models.empty_model(backbone.model.config, Kind.seq2seq_lm))
    methods.parameters(adapter, expected)
    trained = prepare_trained(adapter)
    optimizer, losses = torch.optim.AdamW(trained.values(), lr=1e-2), []
    for _ in range(4):
        loss = backbone.model(input_ids=IDS, attention_mask=MASK, labels=WRITTEN + 1).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
        optimizer.step()
    assert losses[-1] < losses[0]
    after = logits(backbone)
    adapter.save(tmp_path)
    adapter.detach()
    assert torch.equal(logits(backbone), base)
    adapter.method.restore(backbone, tmp_path)
    assert torch.equal(logits(backbone), after)


def test_switched_off_nothing_of_it_is_computed() -> None:
    """No prefix is asked for, and the attention modules are as they were."""
    backbone = pair_of("t5")
    base = logits(backbone)
    configs = [module.config for module, _ in attention_modules("t5", backbone.model).values()]
    adapter = prefixed(backbone, EVERY, "method.projection_dim=9")
    changed, asked = logits(backbone), []
    for prefix in backbone.model.adapters.values():
        prefix.register_forward_hook(lambda *_: asked.append(1))
    with adapter.disabled():
        assert torch.equal(logits(backbone), base)
        assert asked == []
        found = attention_modules("t5", backbone.model).values()
        assert all(module.config is config for (module, _), config in zip(found, configs, strict=True))
        assert not any(hasattr(module, "prefixes") for module, _ in found)
    assert torch.equal(logits(backbone), changed)
    assert len(asked) == 6


def test_a_copy_of_the_model_has_prefixes_of_its_own() -> None:
    """What becomes of the original's does not reach it."""
    backbone = pair_of("bart")
    adapter = prefixed(backbone)
    before, twin = logits(backbone), copy.deepcopy(backbone.model)
    with torch.no_grad():
        for parameter in adapter.adapter_parameters().values():
            parameter.zero_()
        assert torch.equal(twin(**READ).logits, before)
        assert not torch.equal(logits(backbone), before)


def test_prefixes_that_stay_are_joined_by_the_next_ones() -> None:
    """Two of five tokens each are one of ten; each goes by itself."""
    backbone = pair_of("t5")
    first = prefixed(backbone)
    alone = logits(backbone)
    first.stay()
    second = prefixed(backbone)
    assert all(not name.startswith("earlier") for name in second.adapter_parameters())
    with torch.no_grad():
        for parameter in second.adapter_parameters().values():
            parameter.mul_(0.5)
    both = logits(backbone)
    second.detach()
    assert torch.equal(logits(backbone), alone)
    whole = pair_of("t5")
    torch.manual_seed(5)
    method_of(NAME, f"method.num_virtual_tokens={2 * TOKENS}").attach(whole)
    earlier = backbone.model.get_submodule("earlier_adapters_1")
    with torch.no_grad():
        for name, prefix in earlier.items():
            states = prefix.states
            whole.model.adapters[name].states.copy_(torch.cat([states, 0.5 * states], 1))
    assert torch.allclose(logits(whole), both, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("model_type", ["t5", "bart"])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # renamed by transformers 5
def test_layers_computed_again_in_the_backward_pass_give_the_same_gradients(model_type: str, blocks: str) -> None:
    """Gradient checkpointing changes none of them."""
    found = []
    for checkpointing in (False, True):
        backbone = pair_of(model_type)
        models.set_checkpointing(backbone.model, checkpointing)
        adapter = prefixed(backbone, blocks)
        backbone.model.train()
        torch.manual_seed(0)
        backbone.model(input_ids=IDS, attention_mask=MASK, labels=WRITTEN).loss.backward()
        assert backbone.model.is_gradient_checkpointing is checkpointing
        found.append([p.grad for p in adapter.adapter_parameters().values()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "autocast"),
    [("t5", False), ("bart", False), ("llama", False), ("t5", True), ("bart", True), ("llama", True), ("bert", True)],
)
def test_it_trains_in_bfloat16(model_type: str, autocast: bool) -> None:
    """On a backbone stored so or computed so; the prefixes are float32."""
    kind = {"bert": Kind.classification, "llama": Kind.causal_lm}.get(model_type, Kind.seq2seq_lm)
    backbone = random_backbone(model_type, kind)
    if not autocast:
        backbone.model.to(torch.bfloat16)
    own = prefixed(backbone).adapter_parameters()
    assert {p.dtype for p in own.values()} == {torch.float32}
    labels = torch.tensor([0, 1]) if kind is Kind.classification else IDS
    optimizer, losses = torch.optim.AdamW(own.values(), lr=3e-2), []
    for _ in range(9):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = backbone.model(input_ids=IDS, attention_mask=MASK, labels=labels).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocks", "sites"), [("[encoder]", 12), ("[decoder]", 12), ("[cross]", 12), ("[encoder,cross]", 24), (EVERY, 36)]
)
def test_parameters_on_t5_base_are_two_vectors_a_token_and_site(blocks: str, sites: int) -> None:
    """Layers x kinds of block x 2 x tokens x heads x head width; with a network its matrices, biases and rows."""
    config = AutoConfig.for_model("t5", d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, pad_token_id=0)
    skeleton = models.empty_model(config, Kind.seq2seq_lm)
    direct = method_of(NAME, f"method.blocks={blocks}")
    assert direct.expected_parameters(skeleton) == sites * 2 * 30 * 768
    projected = method_of(NAME, f"method.blocks={blocks}", "method.projection_dim=800")
    shared = 30 * 768 + 768 * 800 + 800
    expected = sites // 12 * shared + sites * (800 * 2 * 768 + 2 * 768)
    assert projected.expected_parameters(skeleton) == expected
    methods.parameters(projected.attach(skeleton), expected)


@pytest.mark.parametrize(("model_type", "kind"), [("bert", Kind.classification), ("llama", Kind.causal_lm)])
def test_with_one_kind_of_block_it_trains_what_peft_does(model_type: str, kind: Kind) -> None:
    """Directly, on keys of fewer heads too."""
    skeleton = models.empty_model(random_backbone(model_type, kind).model.config, kind)
    assert method_of(NAME).expected_parameters(skeleton) == method_of("prefix_tuning").expected_parameters(skeleton)


@pytest.mark.parametrize(
    ("model_type", "override", "sentence"),
    [
        ("deberta-v2", "", "method=prefix_tuning_attention: the attention of deberta-v2 is computed in its own way"),
        ("bert", "method.blocks=[cross]", r"method\.blocks=\[cross\]: bert has no such attention; .* \[encoder\]"),
        ("llama", "method.blocks=[encoder]", r"method\.blocks=\[encoder\]: llama has no such .* \[decoder\]"),
        ("bert", "method.blocks=[]", r"method\.blocks=\[\]: one or more of encoder, decoder, cross is needed"),
        ("bert", "method.blocks=[cross,cross]", r"method\.blocks=\[cross, cross\]: .* each once"),
        ("bert", "method.blocks=[middle]", r"method\.blocks.*middle"),
        ("bert", "method.num_virtual_tokens=0", r"method\.num_virtual_tokens=0: 1 or more"),
        ("bert", "method.projection_dim=0", r"method\.projection_dim=0: 1 or more"),
    ],
)
def test_what_can_not_be_is_refused_in_a_sentence(model_type: str, override: str, sentence: str) -> None:
    """It names the key and what is allowed."""
    with pytest.raises(ConfigError, match=sentence) as refusal:
        method_of(NAME, *filter(None, [override])).expected_parameters(
            models.empty_model(random_backbone(model_type).model.config)
        )
    assert "\n" not in str(refusal.value)


def test_it_can_not_be_merged_and_says_why() -> None:
    """No weights compute what belongs to no token."""
    with pytest.raises(ValueError, match="prefix_tuning_attention can't be merged: its keys and values belong to no"):
        prefixed(pair_of("t5")).merge()
