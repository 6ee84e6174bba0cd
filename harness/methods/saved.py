"""Saved adapters: what brings one back beside its weights, and several on one backbone."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from harness import models
from harness.config.build import component, typed
from harness.config.errors import ConfigError
from harness.config.schema import Experiment, ModelConfig
from harness.models import hub
from harness.models.architectures import Backbone, Kind
from harness.tracking.record import write_atomically

if TYPE_CHECKING:
    from harness.methods import Adapter, Method

MANIFEST_FILE = "harness.json"
# Changes when the meaning of a field of the manifest does.
FORMAT = 2


@dataclass
class Answers:
    """Labels that the head answers with.

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

    def restore(self, backbone: Backbone) -> "Adapter":
        """Put the adapter on its backbone, ready to predict.

        Raises:
            ValueError: The files are damaged.
        """
        self.check_files()
        with drawn_from(self.manifest.seed):
            adapter = self.method.restore(replace(backbone, head=tuple(self.manifest.head)), self.folder)
        adapter.model.eval()
        return adapter


def read(folder: str | Path) -> SavedAdapter:
    """Read and check a saved adapter's manifest and files; loads no model.

    Raises:
        ValueError: Something is missing or damaged, or only pickled weights are there.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    pickled = sorted(path.name for pattern in hub.PICKLED_WEIGHTS for path in folder.glob(pattern))
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


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Draw as the run did at its start, and leave the caller's random state alone."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
