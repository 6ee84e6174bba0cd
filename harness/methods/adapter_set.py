"""Saved adapters brought back: one of them, or several on one backbone."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import models
from harness.config.errors import near_misses
from harness.methods.earlier import load_backbone
from harness.methods.saved import Answers, SavedAdapter, drawn_from, read
from harness.models.architectures import Backbone

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from harness.methods import Adapter


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter on its backbone.

    Attributes:
        model: Ready to call: evaluation mode, float32, on the CPU.
        tokenizer: Pads on the side that the model needs.
        adapter: Switches off, merges, detaches.
        task: What the head answers.
    """

    model: "nn.Module"
    tokenizer: "PreTrainedTokenizerBase"
    adapter: "Adapter"
    task: Answers


def load_adapter(folder: str | Path, model: str | None = None) -> LoadedAdapter:
    """Load what a run saved, with its backbone. Runs no code from the folder and opens no pickle.

    Args:
        folder: The `adapter/` of a run directory, or a copy of it.
        model: Folder or Hub name of the backbone, where it is no longer where the run had it.

    Raises:
        ValueError: Something is missing or damaged, or the backbone is another one; the message says what.
    """
    saved = read(folder)
    backbone, tokenizer = load_backbone(saved, model)
    adapter = saved.restore(backbone)
    return LoadedAdapter(adapter.model, tokenizer, adapter, saved.task)


class AdapterSet:
    """Several saved adapters, of any methods, on one backbone that is loaded once.

    Their heads are exchanged with them, so that tasks of different numbers of classes go together::

        adapters = AdapterSet()
        adapters.add("sentiment", "runs/.../adapter")
        adapters.add("entailment", "runs/.../adapter")
        adapters.use("sentiment")
        adapters.model(**adapters.tokenizer("Fine.", return_tensors="pt"))
    """

    def __init__(self, model: str | None = None) -> None:
        """Start without adapters.

        Args:
            model: Folder or Hub name of the backbone; null for where the first adapter's run had it.
        """
        self._path = model
        self._saved: dict[str, SavedAdapter] = {}
        self._heads: dict[str, dict[str, nn.Module]] = {}
        self._own_head: dict[str, nn.Module] = {}
        self._backbone: Backbone | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._active: Adapter | None = None

    @property
    def model(self) -> "nn.Module":
        """The module to call now: the backbone, with the adapter that is in use."""
        return self._loaded().model if self._active is None else self._active.model

    @property
    def backbone(self) -> Backbone:
        """The backbone that the adapters share."""
        return self._loaded()

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        self._loaded()
        assert self._tokenizer is not None
        return self._tokenizer

    def add(self, name: str, folder: str | Path) -> None:
        """Make a saved adapter known; the first one brings the backbone.

        Raises:
            ValueError: It is damaged, the name is taken, or it was trained on another backbone than the first.
        """
        if name in self._saved:
            raise ValueError(f"{name!r}: an adapter of that name is in the set; choose another name")
        saved = read(folder)
        if self._backbone is None:
            self._backbone, self._tokenizer = load_backbone(saved, self._path)
            self._own_head = {module: self._backbone.model.get_submodule(module) for module in saved.manifest.head}
        else:
            self._check_same_backbone(saved)
        self._heads[name] = self._new_head(saved)
        self._saved[name] = saved

    def use(self, name: str) -> "Adapter":
        """Switch to an adapter; reads its small files, never the backbone's.

        Raises:
            ValueError: There is none of that name, or its files have changed; the backbone is then without adapter.
        """
        if name not in self._saved:
            raise ValueError(f"{name!r}: no such adapter in the set; {near_misses(name, self._saved)}")
        self.off()
        saved, backbone = self._saved[name], self._loaded()
        saved.check_files()
        self._install(self._heads[name], saved.task)
        self._active = saved.restore(backbone)
        return self._active

    def off(self) -> None:
        """Take the adapter off: the backbone computes, to the bit, what it did when it was loaded."""
        if self._active is None:
            return
        self._active.detach()
        self._active = None
        first = next(iter(self._saved.values()))
        # Whatever a method leaves in the head's place, these modules were never its to train.
        self._install(self._own_head, first.task)
        self._loaded().model.eval()

    def _loaded(self) -> Backbone:
        if self._backbone is None:
            raise ValueError("the set is empty: add an adapter, which brings its backbone")
        return self._backbone

    def _check_same_backbone(self, saved: SavedAdapter) -> None:
        first = next(iter(self._saved.values()))
        ours, theirs = _stored(first), _stored(saved)
        for what, value in ours.items():
            if theirs[what] != value:
                raise ValueError(
                    f"{saved.folder} does not go with the adapters of the set: its {what} is {theirs[what]}, "
                    f"theirs {value}"
                )

    def _new_head(self, saved: SavedAdapter) -> "dict[str, nn.Module]":
        """Head modules of the width that an adapter's task needs; restoring fills them."""
        backbone, task = self._loaded(), saved.task
        if not saved.manifest.head:
            return {}
        configuration = copy.deepcopy(backbone.model.config)
        _set_labels(configuration, task)
        skeleton = models.empty_model(configuration, task.kind).model
        heads = {}
        with drawn_from(saved.manifest.seed):
            for name in saved.manifest.head:
                module = skeleton.get_submodule(name).to_empty(device=backbone.model.device)
                for part in module.modules():
                    if callable(reset := getattr(part, "reset_parameters", None)):
                        reset()
                heads[name] = module.eval()
        return heads

    def _install(self, head: "dict[str, nn.Module]", task: Answers) -> None:
        model = self._loaded().model
        for name, module in head.items():
            model.set_submodule(name, module)
        if task.labels_count is not None:
            _set_labels(model.config, task)
            model.num_labels = task.labels_count  # type: ignore[assignment]


def _set_labels(configuration: Any, task: Answers) -> None:
    configuration.num_labels = task.labels_count
    if task.labels:
        configuration.id2label = dict(enumerate(task.labels))
        configuration.label2id = {name: number for number, name in enumerate(task.labels)}
    configuration.problem_type = "regression" if task.regression else "single_label_classification"


def _stored(saved: SavedAdapter) -> dict[str, Any]:
    """Properties in which two adapters must agree to share a backbone in memory."""
    model = saved.model
    return {
        "backbone's SHA-256": saved.manifest.backbone,
        "kind of head": saved.task.kind.name,
        "list of new modules": saved.manifest.head,
        "quantization": models.choose_quantization(saved).value,  # type: ignore[arg-type]
        "model.double_quantization": model.double_quantization,
        "model.pretrained": model.pretrained,
        # Random weights are another backbone with another seed.
        "seed": None if model.pretrained else saved.manifest.seed,
    }
