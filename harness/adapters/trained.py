"""A run whose adapter was kept: found by its folder or in a store, and brought back on its backbone."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from harness import methods, models, tracking
from harness.config.build import component
from harness.config.command import key_values, options
from harness.config.errors import ConfigError
from harness.config.schema import Precision
from harness.methods import saved as saving
from harness.methods.earlier import load_backbone
from harness.methods.saved import MANIFEST_FILE, SavedAdapter
from harness.tracking.record import ADAPTER_FOLDER, RESULT_FILE, RunRecord
from harness.tracking.uri import redact
from harness.training.evaluation import Subject

# The store of a run that was told of none, and the key that names another.
STORE, URI_KEY = "sqlite:///mlflow.db", "tracking.uri"

Options = TypeVar("Options")


@dataclass(frozen=True)
class TrainedRun:
    """A run with its adapter.

    Attributes:
        told: How the user named it.
        result: Its record.
        saved: Its adapter, whose files are whole.
    """

    told: str
    result: RunRecord
    saved: SavedAdapter

    def on_backbone(self, model: str | None, device: str) -> tuple[Any, Subject]:
        """The task as the backbone is given it, and the model with the adapter as the run scored it.

        Args:
            model: Folder or Hub name of the backbone; null for where the run had it.
            device: auto, cpu or cuda.

        Raises:
            ConfigError: The backbone is not there or is another, or the adapter's files are damaged.
        """
        import torch

        config = self.result.config
        place = models.choose_device(device)
        # What auto took where the run was need not be what is fast here.
        asked = Precision.auto if self._took_precision() else Precision(config["train"]["precision"])
        autocast = models.choose_precision(asked, place, models.choose_quantization(self.saved))  # type: ignore[arg-type]
        task = self.task()
        try:
            backbone, tokenizer = load_backbone(self.saved, model, autocast or torch.float32)
            adapter = self.saved.restore(backbone)
        except ConfigError as error:
            hint = "" if model else "; model=FOLDER says where the backbone is now"
            raise ConfigError(f"adapter={self.told}: {error}{hint}") from error
        except ValueError as error:
            raise ConfigError(f"adapter={self.told}: {error}") from error
        methods.prepare_trained(adapter)
        adapter.model.to(place)
        task = task.on(backbone.model.config)
        collate = task.collator(backbone, tokenizer, place)
        return task, Subject(adapter, tokenizer, collate, config["evaluate"]["batch_size"], autocast)

    def _took_precision(self) -> bool:
        """Whether `train.precision=auto` chose the precision that the record has."""
        return (self.result.provenance.get("precision") or {}).get("why") is not None

    def task(self) -> Any:
        """The task as the run has recorded it; its files need not be there.

        Raises:
            ConfigError: The record is of a version whose tasks were others.
        """
        try:
            return component(self.result.config["task"], "task", check=False)
        except ConfigError as error:
            raise ConfigError(
                f"adapter={self.told}: its record is of another version of this package; {error}"
            ) from error


def parse_options(schema: type[Options], arguments: Sequence[str], needed: dict[str, str], command: str) -> Options:
    """The options of a command on the runs of a store, each of its type; `uri` is given as `tracking.uri`.

    Args:
        schema: The options as declared, `uri` among them; those that are needed are empty there.
        arguments: As they were given.
        needed: What each option is that has to be given.
        command: Whose --help has examples.

    Raises:
        ConfigError: One is missing, unknown, or of another type.
    """
    names = [field.name for field in fields(schema) if field.name != "uri"]  # type: ignore[arg-type]
    given = key_values(arguments, [*names, URI_KEY])
    uri = given.pop(URI_KEY, STORE)
    found = replace(options(schema, given), uri=uri)  # type: ignore[type-var]
    for name, what in needed.items():
        if not getattr(found, name):
            raise ConfigError(f"{name}=: {what} is needed; {command} --help has examples")
    return found


def find(told: str, store: str) -> TrainedRun:
    """Find a run by its directory, by the `adapter/` in that, or by the beginning of its id in a store.

    What a server has of it is fetched once and kept in this machine's cache.

    Raises:
        ConfigError: There is no such run, it kept no adapter, or its files are damaged.
        ConnectionError: The store can't be read.
    """
    folder = Path(told).expanduser()
    if not folder.is_dir():
        folder = _in_store(told, store)
    elif not (folder / RESULT_FILE).is_file() and (folder / MANIFEST_FILE).is_file():
        # As `adapter/..` is not the parent of a link.
        folder = folder.absolute().parent
    if not (folder / RESULT_FILE).is_file():
        raise ConfigError(
            f"adapter={told}: {folder} holds no {RESULT_FILE}, which says what the adapter was trained for; name a run "
            f"directory, which has {RESULT_FILE} and {ADAPTER_FOLDER}/"
        )
    try:
        result = RunRecord.read(folder)
    except ValueError as error:
        raise ConfigError(f"adapter={told}: {error}") from error
    if not (folder / ADAPTER_FOLDER).is_dir():
        why = "train.keep_adapter=false" if result.status == "finished" else f"it {result.status}"
        raise ConfigError(f"adapter={told}: the run kept no adapter ({why}); train it again to have one")
    try:
        saved = saving.read(folder / ADAPTER_FOLDER)
    except ValueError as error:
        raise ConfigError(f"adapter={told}: {error}") from error
    if saved.manifest.identity != result.identity:
        raise ConfigError(f"adapter={told}: {ADAPTER_FOLDER}/ and {RESULT_FILE} there are of two runs")
    return TrainedRun(told, result, replace(saved, folder=folder / ADAPTER_FOLDER))


def _in_store(told: str, store: str) -> Path:
    """The folder that a store keeps of a run."""
    runs = tracking.read_runs(store)
    found = [run for run in runs if run["run_id"].startswith(told) or run["mlflow_run_id"].startswith(told)]
    if len(found) != 1:
        how = (
            f"the beginning of {len(found)} ids" if found else f"the beginning of the id of one of the {len(runs)} runs"
        )
        raise ConfigError(
            f"adapter={told}: there is no such folder, and it is {'' if found else 'not '}{how} in {redact(store)}"
            f"{'; write more of it' if found else ''}"
        )
    parts = urlsplit(found[0]["artifact_uri"])
    if parts.scheme not in ("", "file"):
        return _from_server(told, store, found[0]["mlflow_run_id"])
    return Path(unquote(parts.path) if parts.scheme else found[0]["artifact_uri"])


def _from_server(told: str, store: str, run: str) -> Path:
    """The copy on this machine of the record and the adapter that a server has of a run, fetched once."""
    kept = tracking.files(store, run)
    if RESULT_FILE not in kept:
        raise ConfigError(f"adapter={told}: {redact(store)} has no {RESULT_FILE} of it; name its run directory")
    if ADAPTER_FOLDER in kept:
        tracking.download(store, run, ADAPTER_FOLDER)
    return tracking.download(store, run, RESULT_FILE).parent
