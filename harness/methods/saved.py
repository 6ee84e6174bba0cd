"""Saved adapters: what brings one back beside its weights, and several on one backbone."""

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from harness import checkpoints, models, tokenization
from harness.architectures import Backbone, Kind
from harness.config import ConfigError, Experiment, ModelConfig, component, near_misses, typed
from harness.record import write_atomically

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from harness.methods import Adapter, Method

MANIFEST_FILE = "harness.json"
# Changes when the meaning of a field of the manifest does.
FORMAT = 2


@dataclass
class Answers:
    """What the head answers.

    Attributes:
        name: The task.
        kind: What the head is for.
        labels: Names of the classes; none for a number or for text.
        labels_count: Width of the head; null for a language model.
        regression: Whether the answer is a number.
    """

    name: str
    kind: Kind
    labels: list[str]
    labels_count: int | None
    regression: bool


@dataclass
class Manifest:
    """The content of `harness.json`.

    Attributes:
        format: The version of these fields.
        identity: Of the run that trained it.
        seed: Of that run; a new head, and a backbone that is not pretrained, are drawn from it.
        model: The backbone as the run was told.
        backbone: SHA-256 over the backbone's files.
        head: Dotted names of the modules that were new and trained with the adapter.
        task: What the head answers.
        method: The method's hyper-parameters, and its class as `_target_`.
        files: File name -> SHA-256, of everything that is read back.
        packages: Package -> version.
    """

    format: int
    identity: str
    seed: int
    model: ModelConfig
    backbone: str
    head: list[str]
    task: Answers
    method: dict[str, Any]
    files: dict[str, str]
    packages: dict[str, str]


@dataclass(frozen=True)
class SavedAdapter:
    """A folder whose manifest was read and checked; `model`, `task` and `method` are what an experiment's are."""

    folder: Path
    manifest: Manifest
    model: ModelConfig
    task: Answers
    method: "Method"

    def check_files(self) -> None:
        """Compare the files with the manifest; a file that has not changed is read once in a process.

        Raises:
            ValueError: One is missing, cut off or changed.
        """
        for name, expected in self.manifest.files.items():
            path = self.folder / Path(name).name
            if not path.is_file():
                raise ValueError(f"{self.folder} is not whole: {name} is missing; save the adapter again")
            if models.digest([path]) != expected:
                raise ValueError(f"{path} is not what was saved: it was cut off or changed; save the adapter again")

    def load_backbone(self, model: str | None) -> "tuple[Backbone, PreTrainedTokenizerBase]":
        """The backbone that the adapter was trained on, in float32, and its tokenizer.

        Args:
            model: Where it is now; null for where it was.

        Raises:
            ValueError: It is not there, or is another.
        """
        import torch

        where = self.model if model is None else replace(self.model, path=model)
        folder = models.resolve(where)
        found = models.revision(where, folder)
        if self.manifest.backbone not in (found, models.revision(where, folder, checkpoints.EARLIER_READ_FILES)):
            raise ValueError(
                f"{self.folder} was saved for the backbone {self.model.path} (SHA-256 {self.manifest.backbone[:12]}), "
                f"and {where.path} is another one ({found[:12]})"
            )
        models.quiet_libraries()
        configuration = models.load_config(folder, self.task.labels_count, self.task.regression, self.task.labels)
        with _drawn_from(self.manifest.seed):
            backbone = models.load_model(folder, configuration, replace(self, model=where), torch.float32)  # type: ignore[arg-type]
        tokenizer = models.load_tokenizer(folder, backbone.architecture)
        tokenization.fit(folder, tokenizer, configuration)
        backbone.model.config.pad_token_id = tokenizer.pad_token_id
        return backbone, tokenizer

    def restore(self, backbone: Backbone) -> "Adapter":
        """Put the adapter on its backbone, ready to predict.

        Raises:
            ValueError: The files are damaged.
        """
        self.check_files()
        with _drawn_from(self.manifest.seed):
            adapter = self.method.restore(replace(backbone, head=tuple(self.manifest.head)), self.folder)
        adapter.model.eval()
        return adapter


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
    backbone, tokenizer = saved.load_backbone(model)
    adapter = saved.restore(backbone)
    return LoadedAdapter(adapter.model, tokenizer, adapter, saved.task)


def read(folder: str | Path) -> SavedAdapter:
    """Read and check a saved adapter's manifest and files; loads no model.

    Raises:
        ValueError: Something is missing or damaged, or only pickled weights are there.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    pickled = sorted(path.name for pattern in models.PICKLED_WEIGHTS for path in folder.glob(pattern))
    if pickled and not any(folder.glob(models.WEIGHTS)):
        raise ValueError(
            f"{folder / pickled[0]} is a pickle, which can run code when it is loaded; only safetensors are read"
        )
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {MANIFEST_FILE}: it is not an adapter that a run saved")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("format") != FORMAT:
            raise ValueError(
                f"format {content.get('format')!r} is of another version of this package; {FORMAT} is read"
            )
        manifest = typed(Manifest, content, "manifest")
        saved = SavedAdapter(folder, manifest, manifest.model, manifest.task, component(manifest.method, "method"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be used: {error}") from error
    saved.check_files()
    return saved


def write_manifest(
    folder: Path, experiment: Experiment, identity: str, revision: str, head: tuple[str, ...], packages: dict[str, str]
) -> Manifest:
    """Write `harness.json` beside the weights that `Adapter.save` has written."""
    task = experiment.task
    answers = Answers(task.name, task.kind, list(getattr(task, "labels", [])), task.labels_count, task.regression)
    files = {path.name: models.digest([path]) for path in sorted(folder.iterdir()) if path.is_file()}
    manifest = Manifest(
        format=FORMAT,
        identity=identity,
        seed=experiment.seed,
        model=experiment.model,
        backbone=revision,
        head=list(head),
        task=answers,
        method=experiment.resolved["method"],
        files=files,
        packages=packages,
    )
    content = OmegaConf.to_container(OmegaConf.structured(manifest), enum_to_str=True)
    write_atomically(folder / MANIFEST_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return manifest


def check_free(folder: Path, identity: str) -> None:
    """Refuse a folder that holds anything but an earlier save of the same run.

    Raises:
        ConfigError: Something else would be overwritten.
    """
    if not folder.exists():
        return
    try:
        held = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        held = None
    if held != identity:
        raise ConfigError(
            f"hydra.run.dir={folder.parent}: {folder.name}/ there is of another run and is not overwritten; "
            "choose another folder"
        )


@contextmanager
def whole_folder(folder: Path, keep: bool) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when all is written; a crash leaves no half of an adapter there.

    Args:
        keep: false throws away what was written.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if keep:
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
        """What to call now: the backbone, with the adapter that is in use."""
        return self._loaded().model if self._active is None else self._active.model

    @property
    def backbone(self) -> Backbone:
        """What the adapters share."""
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
            self._backbone, self._tokenizer = saved.load_backbone(self._path)
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
        with _drawn_from(saved.manifest.seed):
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
    """What two adapters must agree in to share a backbone in memory."""
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


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """Draw as the run did at its start, and leave the caller's random state alone."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
