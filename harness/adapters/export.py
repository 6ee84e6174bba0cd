"""A trained adapter as a folder that transformers, or peft on it, loads without this package."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import models
from harness.adapters import hub
from harness.adapters.trained import STORE, TrainedRun, find, parse_options
from harness.config.command import carry_out, writing
from harness.config.errors import ConfigError
from harness.methods import CONFIG_FILE, EARLIER, WEIGHTS_FILE
from harness.methods import saved as saving
from harness.methods.adapter_set import load_adapter
from harness.methods.card import CARD_FILE, Form, adapter_config, card, why_not_peft_alone
from harness.methods.earlier import earlier_adapter, resolve
from harness.models import architectures
from harness.models.architectures import Kind
from harness.tracking.record import write_atomically

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.methods.adapter_set import LoadedAdapter

USAGE = """harness-export: a trained adapter as a folder for transformers and peft, which needs nothing of this package.

  harness-export adapter=runs/2026-01-31/18-00-00 out=adapter              peft's two files, beside the backbone
  harness-export adapter=4f1c out=model merged=true                        the whole model, for transformers alone
  harness-export adapter=4f1c out=model merged=true hub=my-group/tickets   and as a private repository of the Hub

Each folder has the tokenizer and a card with the scores, the costs and the lines that load it. What was trained is in
the backbone's own weights for full, bitfit, head, last_layers and diff_pruning, and those become whole models. What
peft does not have and no weights can hold, such as bottleneck adapters, is refused with the reason. A merged folder is
loaded again, by transformers alone, and has to give the adapter's answers before it is kept.

  adapter=RUN          a run directory, or the beginning of a run's id in the store
  out=FOLDER           a new folder
  merged=true          the adapter folded into the backbone's weights, in float32
  hub=ORG/NAME         also a private repository of the Hugging Face Hub; needs a token that may write
  model=FOLDER         the backbone, where it is no longer where the run had it
  tracking.uri=URI     where an id is looked up (sqlite:///mlflow.db)
"""

# Tokens of the text that a merged model is asked, rows x length, and how far its answer may be from the adapter's: the
# sums of a merge are rounded in another order.
PROBE = (2, 12)
TOLERANCE = 1e-3


@dataclass
class Options:
    """Options of the command line; the empty ones are needed."""

    adapter: str = ""
    out: str = ""
    merged: bool | None = None
    hub: str | None = None
    model: str | None = None
    uri: str = STORE


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command and return its exit status."""
    return carry_out(export, USAGE, arguments, name="harness-export")


def parse(arguments: Sequence[str]) -> Options:
    """The options, each of its type.

    Raises:
        ConfigError: One is missing, unknown, or of another type.
    """
    needed = {"adapter": "a run directory or id", "out": "a folder to write"}
    return parse_options(Options, arguments, needed, "harness-export")


def export(arguments: list[str]) -> None:
    """Write the folder, and push it where that is wanted.

    Raises:
        ConfigError: An argument is wrong, or the adapter can't be had in this form.
    """
    wanted = parse(arguments)
    out = Path(wanted.out).expanduser()
    if out.exists():
        raise ConfigError(f"out={wanted.out}: it exists and is not overwritten; choose another name")
    if wanted.hub is not None:
        hub.check(wanted.hub)
    run = find(wanted.adapter, wanted.uri)
    form, why = choose_form(run, wanted)
    if why:
        print(f"The whole model is written: {why}.", file=sys.stderr)
    with writing("out", wanted.out), saving.whole_folder(out, keep=True) as folder:
        write = write_whole if form is Form.merged else write_adapter
        told = write(run, folder, wanted.model)
        text = card(run.saved.manifest, run.result, adapter_config(run.saved.folder), form)
        write_atomically(folder / CARD_FILE, text)
    size = sum(path.stat().st_size for path in out.glob(models.WEIGHTS))
    print(f"{out}: {told}; {size / 1e6:,.1f} MB of weights. {CARD_FILE} says how to load it.")
    if wanted.hub is not None:
        print(hub.push(wanted.hub, out))


def choose_form(run: TrainedRun, wanted: Options) -> tuple[Form, str]:
    """What is written, and why it is the whole model where nobody asked for that.

    Raises:
        ConfigError: An adapter alone is asked for, and peft can't load this one, or not from the Hub.
    """
    manifest = run.saved.manifest
    why = why_not_peft_alone(manifest, adapter_config(run.saved.folder).get("peft_type"))
    if wanted.merged is False and why:
        raise ConfigError(f"merged=false: peft can't load the adapter alone: {why}")
    if wanted.merged or why:
        return Form.merged, "" if wanted.merged else why or ""
    if wanted.hub is not None and manifest.model.path and Path(manifest.model.path).expanduser().is_dir():
        raise ConfigError(
            f"hub={wanted.hub}: the adapter's backbone is a folder of this machine, {manifest.model.path}, which "
            "nobody else has; merged=true puts its weights into the repository"
        )
    return Form.adapter, ""


def write_adapter(run: TrainedRun, folder: Path, model: str | None) -> str:
    """Write peft's two files and the tokenizer.

    Raises:
        ConfigError: The backbone is not there.
    """
    where = run.saved.model if model is None else replace(run.saved.model, path=model)
    backbone = resolve(where)
    shutil.copyfile(run.saved.folder / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    content = json.loads((run.saved.folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if earlier_adapter(where) is None:
        # A run reads the Hub's copy in its cache, whose place is of this machine alone.
        local = Path(str(where.path)).expanduser().is_dir()
        content["base_model_name_or_path"] = str(backbone.absolute()) if local else where.path
        content["revision"] = where.revision
    write_atomically(folder / CONFIG_FILE, json.dumps(content, indent=2, sort_keys=True) + "\n")
    configuration = models.load_config(backbone, None, False)
    models.load_tokenizer(backbone, architectures.architecture(configuration)).save_pretrained(folder)
    return f"{content['peft_type']} for peft, on {content['base_model_name_or_path']}"


def write_whole(run: TrainedRun, folder: Path, model: str | None) -> str:
    """Write the model with the adapter folded in, and the tokenizer; load it again and compare.

    Raises:
        ConfigError: The mathematics does not allow it, or what was written answers otherwise.
    """
    import torch

    try:
        loaded = load_adapter(run.saved.folder, model)
    except ValueError as error:
        raise ConfigError(f"adapter={run.told}: {error}") from error
    reference = _answer(loaded.model, loaded)
    whole = merge(loaded)
    _tidy(whole, loaded.tokenizer)
    whole.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    again = models.model_class(loaded.task.kind).from_pretrained(folder, trust_remote_code=False).eval()
    difference = float((_answer(again, loaded) - reference).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(reference.abs().max())):
        raise ConfigError(
            f"merged=true: what transformers loads from the folder answers otherwise (logits differ by "
            f"{difference:.2g}), so it was not kept"
        )
    count = sum(p.numel() for p in again.parameters() if p.dtype.is_floating_point or p.dtype is torch.uint8)
    return (
        f"{type(again).__name__} for transformers, {count:,} weights, logits within {difference:.1g} of the adapter's"
    )


def merge(loaded: "LoadedAdapter") -> "PreTrainedModel":
    """A model of transformers that computes what the adapter on its backbone does.

    Raises:
        ConfigError: There is none.
    """
    try:
        whole: Any = loaded.adapter.merge()
    except ValueError as error:
        raise ConfigError(f"merged=true: {error}") from error
    if any(name.startswith(EARLIER) for name, _ in whole.named_children()):
        raise ConfigError(
            "merged=true: the adapter of an earlier run stands beside the backbone's weights "
            "(model.earlier_adapter=stacked), and transformers has no such modules"
        )
    model: PreTrainedModel = whole
    return model


def _tidy(whole: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Have the configuration say what the run did by itself: where answers begin and end, and what is tied no more."""
    config: Any = whole.config
    embeddings, output = whole.get_input_embeddings(), whole.get_output_embeddings()
    if config.tie_word_embeddings and output is not None and output.weight is not embeddings.weight:
        config.tie_word_embeddings = False
    if hasattr(config, "auto_map"):
        # Of code that a checkpoint brings along, and that was not run.
        del config.auto_map
    generation: Any = getattr(whole, "generation_config", None)
    if generation is not None and whole.can_generate():
        told = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        if config.is_encoder_decoder:
            told["decoder_start_token_id"] = config.decoder_start_token_id
        for name, value in told.items():
            if getattr(generation, name, None) is None:
                setattr(generation, name, value)


def _answer(model: "nn.Module", loaded: "LoadedAdapter") -> "Tensor":
    """Logits of a model for tokens that are the same each time."""
    import torch

    from harness.training.batches import plain_inputs

    rows, length = PROBE
    config: Any = model.config
    tokens = (torch.arange(rows * length).reshape(rows, length) * 7919) % config.vocab_size
    inputs = plain_inputs(tokens, loaded.task.kind, config)
    if loaded.task.kind is not Kind.seq2seq_lm:
        del inputs["labels"]
    with torch.inference_mode():
        return model(**inputs).logits.float()


if __name__ == "__main__":
    sys.exit(main())
