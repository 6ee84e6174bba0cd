"""Pretraining of the shipped backbones: `python -m harness.pretrain model=micro_encoder|micro_decoder|micro_seq2seq`.

This is the first of the three usual steps of making a language model: language modeling, supervised fine-tuning,
preference tuning. It reads running text of the micro world (`harness.tasks.micro.corpus`) once, no passage twice, and
writes a folder that transformers loads like any other: weights, configuration, tokenizer, and `pretraining.json`, the
record of how they came to be.

    python -m harness.pretrain model=micro_encoder
    python -m harness.pretrain model=micro_decoder seed=1 steps=500 out=/tmp/decoder

The encoder has BERT's architecture and BERT's two objectives, masked words and whether the second part of a passage
belongs to the first. Masked words alone sit on a plateau for thousands of steps at this size, so it first reads
from left to right, predicting the next word, for `causal_share` of the steps; of the later steps a third goes on so, a
third has BERT's objectives, and a third makes [CLS] sum up what it read (`encoder_summary_loss`). The decoder has
Llama's architecture and predicts the next word throughout. The encoder with a decoder has BART's architecture and its
objective: the one reads a passage with holes, its parts maybe swapped, and the other writes it whole.
"""

import json
import math
import platform
import sys
import time
from dataclasses import asdict, dataclass, fields
from enum import Enum
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from harness.config.command import carry_out, key_values, options, writing
from harness.config.errors import ConfigError, near_misses
from harness.config.sources import PACKAGE
from harness.config.version import __version__
from harness.pretrain.losses import (
    batches,
    decoder_loss,
    encoder_causal_loss,
    encoder_masked_loss,
    encoder_summary_loss,
    infilling_loss,
    read_passages,
)
from harness.tasks.micro import fingerprint, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_WORDS = {
    "micro_encoder": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "micro_decoder": {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>"},
    "micro_seq2seq": {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>", "mask": "<mask>"},
}
MAX_LENGTH = 128


class ShippedModel(Enum):
    micro_encoder = "micro_encoder"
    micro_decoder = "micro_decoder"
    micro_seq2seq = "micro_seq2seq"


@dataclass
class Pretraining:
    """Options of `python -m harness.pretrain`, as `key=value`.

    Attributes:
        model: Which backbone to make.
        seed: Decides the first weights, the text and its order, and what is masked.
        steps: Optimizer steps.
        batch_size: Passages per step.
        learning_rate: Peak of AdamW's rate; it rises over the first 5% of the steps, then falls linearly to zero.
        causal_share: Share of the encoder's steps, at the start, that only read from left to right.
        hidden_size: Width; heads are 32 wide and the feed-forward layer is twice as wide as this.
        layers: Number of transformer layers.
        heldout: Held-out passages that the result is measured on.
        threads: CPU threads; another number can change the last bits of the weights.
        out: Folder to write; the package's own folder of backbones unless given.
    """

    model: ShippedModel
    seed: int = 0
    steps: int = 6000
    batch_size: int = 64
    learning_rate: float = 2.5e-3
    causal_share: float = 0.6
    hidden_size: int = 128
    layers: int = 4
    heldout: int = 1024
    threads: int = 2
    out: str | None = None

    def check(self) -> None:
        """Raises ConfigError where a number is out of its range."""
        for key in ("steps", "batch_size", "learning_rate", "layers", "heldout", "threads"):
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError(f"{key}={getattr(self, key)}: a positive number is needed")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed}: a whole number from 0 to {2**32 - 1} is allowed")
        if not 0 <= self.causal_share <= 1:
            raise ConfigError(f"causal_share={self.causal_share}: a share from 0 to 1 is allowed")
        if self.hidden_size <= 0 or self.hidden_size % 32:
            raise ConfigError(f"hidden_size={self.hidden_size}: a positive multiple of 32 is allowed")


def parse(arguments: list[str]) -> Pretraining:
    """Reads `key=value` arguments.

    Raises:
        ConfigError: A key is unknown, missing or given without a value, or a value is of the wrong type or range.
    """
    given = key_values(arguments, [field.name for field in fields(Pretraining)])
    backbones = [model.name for model in ShippedModel]
    if given.get("model") not in backbones:
        shown = f"model={given['model']}" if "model" in given else "model: a value is needed"
        raise ConfigError(f"{shown}; {near_misses(given.get('model', ''), backbones)}")
    config = options(Pretraining, given)
    config.check()
    return config


# --- Tokenizer and models -------------------------------------------------------------------------------------------


def build_tokenizer(model: str, words: list[str]) -> "PreTrainedTokenizerFast":
    """Makes a lower-casing tokenizer with one token per word."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = SPECIAL_WORDS[model]
    ids = {word: index for index, word in enumerate([*special.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=special["unk"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if model == "micro_encoder":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(word, ids[word]) for word in ("[CLS]", "[SEP]")],
        )
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        # As Llama's: the beginning is marked, the end is left to whoever writes it. BART's marks both.
        end = " </s>" if model == "micro_seq2seq" else ""
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"<s> $A{end}",
            pair=f"<s> $A{end} $B{end}",
            special_tokens=[(word, ids[word]) for word in f"<s>{end}".split()],
        )
        inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        model_input_names=inputs,
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": word for role, word in special.items()},
    )


def build_model(config: Pretraining, tokenizer: "PreTrainedTokenizerFast") -> Any:
    """Makes a model with random weights: `BertForPreTraining`, `LlamaForCausalLM` or `BartForConditionalGeneration`."""
    from transformers import BertConfig, BertForPreTraining, LlamaConfig, LlamaForCausalLM

    if config.model is ShippedModel.micro_seq2seq:
        return _build_pair(config, tokenizer)

    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "intermediate_size": 2 * config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.hidden_size // 32,
        "max_position_embeddings": MAX_LENGTH,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    if config.model is ShippedModel.micro_encoder:
        return BertForPreTraining(
            BertConfig(**shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.05)
        )
    edges = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaForCausalLM(LlamaConfig(**shape, **edges, initializer_range=0.05))


def _build_pair(config: Pretraining, tokenizer: "PreTrainedTokenizerFast") -> Any:
    """An encoder and a decoder of as many layers each."""
    from transformers import BartConfig, BartForConditionalGeneration

    each = {"layers": config.layers, "ffn_dim": 2 * config.hidden_size, "attention_heads": config.hidden_size // 32}
    sides: dict[str, Any] = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in each.items()}
    return BartForConditionalGeneration(
        BartConfig(
            **sides,
            vocab_size=len(tokenizer),
            d_model=config.hidden_size,
            max_position_embeddings=MAX_LENGTH,
            dropout=0.0,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.eos_token_id,
            forced_eos_token_id=None,
            init_std=0.05,
        )
    )


# --- The run --------------------------------------------------------------------------------------------------------


def pretrain(config: Pretraining, progress: bool = True) -> dict[str, Any]:
    """Trains a backbone, writes its folder and returns the record that was written as `pretraining.json`."""
    import torch

    started = time.perf_counter()
    folder_of(config).mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer(config.model.name, vocabulary())
    model = build_model(config, tokenizer)
    rng, generator = Random(f"strangers {config.seed}"), torch.Generator().manual_seed(config.seed)
    decay = [weight for weight in model.parameters() if weight.dim() > 1]
    rest = [weight for weight in model.parameters() if weight.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    warmup = max(1, config.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (config.steps - step) / max(1, config.steps - warmup))
    )
    passages = read_passages("train", config.steps * config.batch_size, config.seed, tokenizer)
    losses: list[float] = []
    model.train()
    bar = tqdm(batches(passages, config.batch_size, config.seed), total=config.steps, disable=not progress, unit="step")
    for step, batch in enumerate(bar):
        if config.model is ShippedModel.micro_decoder:
            loss = decoder_loss(model, batch, tokenizer)
        elif config.model is ShippedModel.micro_seq2seq:
            loss = infilling_loss(model, batch, tokenizer, rng)
        elif step < config.causal_share * config.steps or step % 3 == 0:
            loss = encoder_causal_loss(model, batch, tokenizer)
        elif step % 3 == 1:
            loss = encoder_summary_loss(model, batch, tokenizer, generator)
        else:
            loss = sum(encoder_masked_loss(model, batch, tokenizer, rng, generator))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.3f}")
    heldout = evaluate(model, config, tokenizer)
    record = describe(config, model, losses, heldout, time.perf_counter() - started)
    write(config, model, tokenizer, record)
    return record


def evaluate(model: Any, config: Pretraining, tokenizer: Any) -> dict[str, float]:
    """Returns losses (nats per word) on passages that were held out of training."""
    import torch

    model.eval()
    rng, generator = Random("heldout"), torch.Generator().manual_seed(0)
    passages = read_passages("heldout", config.heldout, 0, tokenizer)
    found: list[tuple[float, ...]] = []
    with torch.inference_mode():
        for batch in batches(passages, 64, 0):
            if config.model is ShippedModel.micro_decoder:
                found.append((decoder_loss(model, batch, tokenizer).item(),))
            elif config.model is ShippedModel.micro_seq2seq:
                found.append((infilling_loss(model, batch, tokenizer, rng).item(),))
            else:
                summary = encoder_summary_loss(model, batch, tokenizer, generator)
                masked, pair = encoder_masked_loss(model, batch, tokenizer, rng, generator)
                found.append((masked.item(), pair.item(), summary.item()))
    means = [sum(values) / len(values) for values in zip(*found, strict=True)]
    names = {
        ShippedModel.micro_decoder: ("causal_loss",),
        ShippedModel.micro_encoder: ("masked_loss", "next_part_loss", "summary_loss"),
        ShippedModel.micro_seq2seq: ("infilling_loss",),
    }[config.model]
    return dict(zip(names, means, strict=True)) | {"perplexity": math.exp(means[0])}


def describe(
    config: Pretraining, model: Any, losses: list[float], heldout: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Returns the record of a pretraining run; the loss curve is thinned to about 100 means."""
    import tokenizers
    import torch
    import transformers

    chosen = {key: value for key, value in asdict(config).items() if key != "out"} | {"model": config.model.name}
    stride = max(1, len(losses) // 100)
    means = [(start, losses[start : start + stride]) for start in range(0, len(losses), stride)]
    return {
        "command": " ".join(["python -m harness.pretrain", *(f"{key}={value}" for key, value in chosen.items())]),
        **chosen,
        "fingerprint": fingerprint(),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "loss_curve": [{"step": start, "loss": round(sum(part) / len(part), 4)} for start, part in means],
        "heldout": {name: round(value, 4) for name, value in heldout.items()},
        "seconds": round(seconds, 1),
        "versions": {
            "harness": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }


def folder_of(config: Pretraining) -> Path:
    """Returns the folder that a run writes."""
    return Path(config.out) if config.out else PACKAGE / "pretrained" / config.model.name


def write(config: Pretraining, model: Any, tokenizer: Any, record: dict[str, Any]) -> Path:
    """Writes weights, configuration, tokenizer and record to the folder and returns it.

    Each file takes its place whole: runs that have the weights there before mapped into their memory keep those.
    """
    folder = folder_of(config)
    with TemporaryDirectory(dir=folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (Path(partial) / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        for path in Path(partial).iterdir():
            path.replace(folder / path.name)
    return folder


def main() -> int:
    """Carry out the command and return its exit status."""
    return carry_out(make, str(__doc__))


def make(arguments: list[str]) -> None:
    """Make the backbone that the arguments describe, and say what it is.

    Raises:
        ConfigError: An argument is wrong, or the folder can't be written.
    """
    config = parse(arguments)
    with writing("out", folder_of(config)):
        record = pretrain(config)
    print(
        f"{record['model']}: {record['parameters']:,} parameters, {record['seconds']} s, held out {record['heldout']}"
    )


if __name__ == "__main__":
    sys.exit(main())
