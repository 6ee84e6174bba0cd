"""The model card of a saved adapter: what it is, how well it does, what it cost, and the command that made it."""

import html
import json
import re
import shlex
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf

from harness.config.build import component
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.mistakes import choices
from harness.config.schema import EarlierAdapter, ModelConfig, Quantization
from harness.methods import CONFIG_FILE
from harness.methods.saved import MANIFEST_FILE, Manifest, read
from harness.models import MODEL_CLASSES, never_quantized
from harness.models.architectures import Kind
from harness.tracking.record import RunRecord, write_atomically

CARD_FILE = "README.md"
PIPELINES = {
    Kind.classification: "text-classification",
    Kind.causal_lm: "text-generation",
    Kind.seq2seq_lm: "text-generation",
}
# Sections and keys that say where things go and not what is computed; a store's address may hold a password.
PLACES = "resume checkpoint_dir checkpoint_minutes features_dir features_gigabytes".split()
NOT_REPRODUCED = ("tracking", "sweep", *(f"train.{key}" for key in PLACES))
# Names of language models' output layers, whose weights are often those of the embeddings.
OUTPUT_LAYERS = {"lm_head", "embed_out", "output_layer"}
GROUPS = ("model", "task", "method")


class Form(Enum):
    """Forms of what a card lies beside: a run's adapter, the same for peft alone, or a whole model for transformers."""

    run = "run"
    adapter = "adapter"
    merged = "merged"


def write_card(folder: Path, manifest: Manifest, result: RunRecord) -> None:
    """Write `README.md` into an adapter's folder; the run has its scores by now."""
    write_atomically(folder / CARD_FILE, card(manifest, result, adapter_config(folder)))


def adapter_config(folder: Path) -> dict[str, Any]:
    """Manifest of an adapter: peft's configuration, or a method's hyper-parameters and what it changed."""
    try:
        return json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def card(manifest: Manifest, result: RunRecord, adapter: dict[str, Any], form: Form = Form.run) -> str:
    """The text: YAML front matter as the Hub reads it, then Markdown.

    Args:
        adapter: The content of `adapter_config.json`. With `peft_type`, peft's name of the method, there
            `PeftModel.from_pretrained` can load the folder.
    """
    peft_type = adapter.get("peft_type")
    method, model, task = result.config["method"]["name"], manifest.model, manifest.task
    by = f"with peft-harness {result.provenance['harness']}"
    what = (
        f"{_code(model.path)} with what {_code(method)} learned for {_code(task.name)} in its weights, trained {by}."
        if form is Form.merged
        else f"The weights that {_code(method)} adds to, or changes in, {_code(model.path)}, trained for "
        f"{_code(task.name)} {by}. The backbone is not in this folder."
    )
    # An export is made apart from the run's own command line, which has it in words that its record keeps.
    again = [] if form is Form.run else result.provenance.get("again", [])
    made_by = shlex.join(again) or command(result.config)
    loading = {Form.run: _loading, Form.adapter: _by_peft, Form.merged: _by_transformers}[form]
    sections = [
        f"---\n{_front_matter(manifest, result, peft_type, form)}\n---",
        f"# {_text(method)} on {_text(model.name)} for {_text(task.name)}",
        what,
        "## Scores",
        _scores(result),
        "## Costs",
        _costs(result, adapter),
        "## Made by",
        _fence("bash", made_by),
        _provenance(manifest, result),
        "## Load",
        loading(manifest, peft_type),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(manifest: Manifest, result: RunRecord, peft_type: str | None, form: Form) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    library = "transformers" if form is Form.merged else "peft" if peft_type else "peft-harness"

    method, model, task = result.config["method"]["name"], manifest.model, manifest.task
    hub = None if result.config["task"].get("data_dir") else result.config["task"].get("hub")
    dataset = hub["path"] if hub else task.name
    results = [
        EvalResult(
            task_type=PIPELINES[task.kind],
            dataset_type=_line(dataset),
            dataset_name=_line(task.name),
            dataset_config=_line(hub["name"]) if hub and hub["name"] else None,
            dataset_split=_line(split),
            metric_type=name,
            metric_value=value,
        )
        for split, scores in _by_split(result).items()
        if split != "development"
        for name, value in scores.items()
        if name != "loss"
    ]
    data = ModelCardData(
        base_model=_line(model.path),
        library_name=library,
        pipeline_tag=PIPELINES[task.kind],
        tags=[_line(method), "peft-harness", *([_line(peft_type.lower())] if peft_type else [])],
        datasets=[_line(dataset)] if hub else None,
        metrics=[name for name in result.scores["development"] or {} if name != "loss"] or None,
        model_name=_line(f"{method} on {model.name} for {task.name}") if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _by_split(result: RunRecord) -> dict[str, dict[str, float]]:
    """Scores of each split; a further split's stand among validation's with its name in front."""
    found = {"development": dict(result.scores["development"])} if result.scores["development"] else {}
    for key, value in (result.scores["validation"] or {}).items():
        split, _, name = key.rpartition(".")
        found.setdefault(split or "validation", {})[name] = value
    return found


def _scores(result: RunRecord) -> str:
    splits, rows = _by_split(result), result.provenance["data"]["rows"]
    if not splits:
        return f"None: all {sum(rows.values())} rows were trained on, and none was left to score."
    names = list(splits["development"])
    lines = [["split", "rows", *names]]
    lines += [
        [_text(split), str(rows[split]), *(_figure(scores[n]) for n in names)] for split, scores in splits.items()
    ]
    if result.scores["majority"]:
        majority = result.scores["majority"]
        figures = (_figure(majority[name]) if name in majority else "" for name in names)
        lines.append(["majority, on validation", str(rows["validation"]), *figures])
    chosen = "The development split was carved from the training rows and chose the weights"
    unseen = "the others were scored once, at the end." if len(splits) > 1 else "no other split was scored."
    return f"{_table(lines)}\n\nThe primary metric is {result.scores['primary_metric']}. {chosen}; {unseen}"


def _costs(result: RunRecord, adapter: dict[str, Any]) -> str:
    cost = result.cost
    share, packed = cost["trainable_parameters"] / cost["total_parameters"], cost["train_seconds"] is None
    figures = {
        "trainable parameters": f"{cost['trainable_parameters']:,} ({share:.3%} of {cost['total_parameters']:,})",
        "of them the adapter's": f"{cost['adapter_parameters']:,}",
        "of them the head's": f"{cost['head_parameters']:,}",
        "bytes of the saved weights": f"{cost['adapter_file_bytes']:,}",
        "seconds of training": "a pack's" if packed else f"{cost['train_seconds']:.1f}",
        "tokens/s in training": "a pack's" if packed else f"{cost['tokens_per_second']:,.0f}",
        "device": f"{_text(result.provenance['device'])}, {result.provenance['threads']} threads, "
        f"{result.provenance['dtype']}",
    }
    if "changed_share" in adapter:
        changed = f"{adapter['changed_parameters']:,} ({adapter['changed_share']:.3%})"
        figures["weights of the backbone that differ"] = f"{changed} of the {adapter['selected_parameters']:,} that may"
    return _table([["figure", "value"], *([name, value] for name, value in figures.items())])


def _provenance(manifest: Manifest, result: RunRecord) -> str:
    git, seeds, data = (result.provenance[key] for key in ("git", "seeds", "revisions"))
    versions = ", ".join(f"{name} {version}" for name, version in manifest.packages.items())
    lines = [
        f"Run {result.run_id}, identity {manifest.identity}",
        f"Seed {seeds['seed']}, data seed {seeds['data_seed']}",
        f"SHA-256 of the backbone's files: {manifest.backbone}; of the data: {_text(data['data'])}",
        f"Python {result.provenance['python']}, {versions}",
    ]
    if git:
        lines.append(f"Commit {git['commit']}{', with changes' if git['dirty'] else ''}")
    return "\n".join(f"- {line}" for line in lines)


def why_not_peft_alone(manifest: Manifest, peft_type: str | None) -> str | None:
    """Why peft can't load an adapter without this package; null where it can."""
    if peft_type is None:
        return f"{manifest.method['name']} is none of peft's methods"
    if not manifest.model.pretrained:
        return "its backbone's weights are random, drawn from the run's seed"
    if peft_type == "PREFIX_TUNING" and manifest.task.kind is Kind.seq2seq_lm:
        return "it lays a prefix before a decoder beside an encoder in another way, and gives other answers"
    if _below(manifest.model) is None:
        return (
            f"the adapter below it, {_code(manifest.model.path)}, is none of peft's, or changes an output layer, which "
            "peft would merge into tied embeddings too"
        )
    return None


def _loading(manifest: Manifest, peft_type: str | None) -> str:
    """How a run's adapter is loaded: with this package, and with peft alone where that can."""
    answer, further = (".generate", ", max_new_tokens=64") if manifest.task.kind is Kind.seq2seq_lm else ("", "")
    ours = [
        "import harness",
        "",
        'loaded = harness.load_adapter("FOLDER")  # model=PATH where the backbone lies elsewhere now',
        f'loaded.model{answer}(**loaded.tokenizer("A text.", return_tensors="pt"){further})',
    ]
    text = f"With peft-harness; it refuses a backbone other than the one above:\n\n{_fence('python', *ours)}"
    if classes := _classes(manifest):
        text += f"\n\n{classes}"
    why = why_not_peft_alone(manifest, peft_type)
    if why is None:
        return f"{text}\n\nWith peft alone:\n\n{_fence('python', *_with_peft(manifest))}"
    of_ours = peft_type is None or not manifest.model.pretrained
    return text if of_ours else f"{text}\n\nNot with peft alone: {why}."


def _by_peft(manifest: Manifest, peft_type: str | None) -> str:
    """How an exported adapter is loaded."""
    return "\n\n".join(filter(None, [_fence("python", *_with_peft(manifest)), _classes(manifest)]))


def _by_transformers(manifest: Manifest, peft_type: str | None) -> str:
    """How an exported model is loaded."""
    cls = MODEL_CLASSES[manifest.task.kind]
    inputs = '**tokenizer("A text.", return_tensors="pt")'
    used = f"model({inputs}).logits" if manifest.task.labels_count else f"model.generate({inputs}, max_new_tokens=64)"
    lines = [
        f"from transformers import {cls}, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        f'model = {cls}.from_pretrained("FOLDER").eval()',
        used,
    ]
    return "\n\n".join(filter(None, [_fence("python", *lines), _classes(manifest)]))


def _classes(manifest: Manifest) -> str:
    labels = manifest.task.labels
    return f"Classes, in the order of the logits: {', '.join(map(_code, labels))}." if labels else ""


def _with_peft(manifest: Manifest) -> list[str]:
    """The lines that load an adapter with peft alone, which must be able to."""
    below = _below(manifest.model)
    assert below is not None
    first, earlier = below
    task = manifest.task
    width = "" if task.labels_count is None else f", num_labels={task.labels_count}"
    cls, where = MODEL_CLASSES[task.kind], repr(_line(first))
    quantized, how = _quantized(manifest)
    return [
        "from peft import PeftModel",
        f"from transformers import {cls}, AutoTokenizer{', BitsAndBytesConfig' if quantized else ''}",
        "",
        *quantized,
        f"tokenizer = AutoTokenizer.from_pretrained({where})  # padding_side='left' for a decoder",
        f"backbone = {cls}.from_pretrained({where}{width}{how})",
        *(f"backbone = PeftModel.from_pretrained(backbone, {_line(one)!r}).merge_and_unload()" for one in earlier),
        "backbone.config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id",
        'model = PeftModel.from_pretrained(backbone, "FOLDER").eval()',
    ]


def _quantized(manifest: Manifest) -> tuple[list[str], str]:
    """The lines that say how a run stored its backbone, and the argument that takes it; nothing where it did not."""
    wanted = component(manifest.method, "method", check=False).quantization() or manifest.model.quantization
    if wanted is Quantization.none:
        return [], ""
    whole = never_quantized(manifest.head)
    if wanted is Quantization.int8:
        told = "load_in_8bit=True"
    else:
        told = f"load_in_4bit=True, bnb_4bit_quant_type={wanted.value!r}"
        told += ", bnb_4bit_use_double_quant=True" if manifest.model.double_quantization else ""
    return [f"stored = BitsAndBytesConfig({told}, llm_int8_skip_modules={whole!r})"], ", quantization_config=stored"


def _below(model: ModelConfig) -> tuple[str | None, list[str]] | None:
    """Where the backbone is without adapters, and the adapters that are merged into it, in their order.

    Null where one of them is not peft's, or is not merged.
    """
    merged: list[str] = []
    while model.path and (Path(model.path).expanduser() / MANIFEST_FILE).is_file():
        folder = Path(model.path).expanduser()
        config = adapter_config(folder)
        on_output = OUTPUT_LAYERS.intersection(config.get("target_modules") or ())
        if model.earlier_adapter is not EarlierAdapter.merged or "peft_type" not in config or on_output:
            return None
        merged.insert(0, model.path)
        model = read(folder).model
    return model.path, merged


def command(config: dict[str, Any]) -> str:
    """The command line that makes a run with this resolved configuration, wherever its values came from."""
    return " ".join(["harness", *map(shlex.quote, overrides(config))])


def overrides(config: dict[str, Any]) -> list[str]:
    """Choices of conf/, and a `key=value` for everything in which a resolved configuration differs from them."""
    chosen = [f"{group}={name}" for group, name in _choices(config).items()]
    try:
        composed = compose("config", chosen)
    except ConfigError:  # a choice of the user's own folder that is no longer there
        chosen, composed = [], compose("config", [])
    base = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False, enum_to_str=True)
    assert isinstance(base, dict)
    return [*chosen, *_differences(base, config, "")]  # type: ignore[arg-type]


def _choices(config: dict[str, Any]) -> dict[str, str]:
    """Choice of each group: Hydra's word for it inside a job, else a file of the component's name."""
    told = dict(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else {}
    named = {group: told.get(group, config[group].get("name")) for group in GROUPS}
    return {group: name for group, name in named.items() if name in choices(group)}


def _differences(base: dict[str, Any], wanted: dict[str, Any], prefix: str) -> list[str]:
    found = []
    for name in [*base, *sorted(set(wanted) - set(base))]:  # in the order of the YAML files
        key, value = prefix + name, wanted.get(name)
        if key.startswith(NOT_REPRODUCED) or (name in base and name in wanted and base[name] == value):
            continue
        if name not in wanted:
            found.append(f"~{key}")
        elif isinstance(value, dict) and isinstance(base.get(name), dict):
            found += _differences(base[name], value, f"{key}.")
        else:
            found.append(f"{'' if name in base else '+'}{key}={_value(value)}")
    return found


def _value(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_value(key)}:{_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_value, value)) + "]"
    if isinstance(value, str):
        word = re.fullmatch(r"[A-Za-z_/][\w./-]*", value) and value.lower() not in (
            "null",
            "true",
            "false",
            "nan",
            "inf",
        )
        return value if word else QuotedString(value, Quote.single).with_quotes()
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _table(lines: list[list[str]]) -> str:
    head, *rest = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([head, "|" + " --- |" * len(lines[0]), *rest])


def _line(value: Any) -> str:
    """One line without control characters: nothing in it can end a front matter, a table row or a heading."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def _text(value: Any) -> str:
    """Text that Markdown and HTML show as it is."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(_line(value), quote=False))


def _code(value: Any) -> str:
    """A code span, whose delimiter is longer than any run of backticks inside."""
    text = _line(value)
    ticks = _ticks(text, 1)
    return f"{ticks} {text} {ticks}" if "`" in text else f"{ticks}{text}{ticks}"


def _fence(language: str, *lines: str) -> str:
    text = "\n".join(lines)
    ticks = _ticks(text, 3)
    return f"{ticks}{language}\n{text}\n{ticks}"


def _ticks(text: str, least: int) -> str:
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", text))])
