"""Cached features (`train.cache_features=true`): what the frozen front of a model gives, computed once per text."""

import hashlib
import json
import logging
import os
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.identity import RESULTS_VERSION
from harness.config.schema import Experiment
from harness.measure.meters import quantization_state
from harness.training import frozen_front, hidden_states
from harness.training.batches import by_length
from harness.training.frozen_front import TEXT, FrozenFront, Inseparable
from harness.training.hidden_states import GIGABYTE, Folder, HiddenStates, NoRoom, Text, texts_of

if TYPE_CHECKING:
    from harness.models.architectures import Backbone
    from harness.run.loading import Loaded
    from harness.tracking.record import RunRecord
    from harness.training.batches import Features
    from harness.training.evaluation import Subject

log = logging.getLogger(__name__)

NOT_ASKED = "train.cache_features=false"
# How many rows the front is sought and held against whole passes with.
TRIED_ROWS = 4


@dataclass
class CachedFeatures:
    """The features that a run starts its passes from; nothing where none were asked for, or there is nothing frozen."""

    front: FrozenFront | None = None
    told: dict[str, Any] = field(default_factory=dict)

    def off(self) -> AbstractContextManager[None]:
        """Whole passes inside."""
        return self.front.off() if self.front else nullcontext()

    def end(self) -> None:
        """Have every pass be whole from here on, and note how many were not."""
        if self.front is not None:
            self.front.end()
            front = self.front
            self.told["passes"] = {"from_features": front.passes, "computed_anew": front.computed, "whole": front.whole}


def begin(
    experiment: Experiment, loaded: "Loaded", subject: "Subject", backbone: "Backbone", result: "RunRecord"
) -> CachedFeatures:
    """Find the frozen front, have the features of all rows at hand, and start passes from them.

    A model without such a front trains as ever; log and record say why.
    """
    if not experiment.train.cache_features:
        result.unmeasured |= dict.fromkeys(("cost.features_seconds", "cost.features_bytes"), NOT_ASKED)
        return CachedFeatures()
    start = time.perf_counter()
    told: dict[str, Any] = {"used": True}
    result.provenance["cached_features"] = told
    try:
        subject.model.eval()
        front = _front(loaded, subject, backbone)
    except Inseparable as reason:
        log.warning(
            "train.cache_features=true: method=%s has no features to cache on this backbone, and trains as without: %s",
            experiment.method.name,
            reason,
        )
        told |= {"used": False, "reason": str(reason)}
        unused = f"no features were cached: {reason}"
        result.unmeasured |= dict.fromkeys(("cost.features_seconds", "cost.features_bytes"), unused)
        return CachedFeatures()
    told |= {"behind": front.layers[-1], "layers": len(front.layers), "of": front.of, "dropout": "off in front of it"}
    log.info(
        "features behind %s, %d of %d layers, are computed once for each text, dropout off in front of it",
        *(front.layers[-1], len(front.layers), front.of),
    )
    kept = _Keeping(experiment, subject, backbone, front)
    told["splits"] = {split: kept.split(rows) for split, rows in _splits(experiment, loaded).items()}
    front.begin(kept.states.known)
    result.cost["features_bytes"] = sum(one["bytes"] for one in told["splits"].values())
    result.cost["features_seconds"] = time.perf_counter() - start
    return CachedFeatures(front, told)


def _splits(experiment: Experiment, loaded: "Loaded") -> "dict[str, list[Features]]":
    """The encoded rows that the run goes through."""
    splits = {"train": loaded.trained_on}
    if not experiment.train.all_rows:
        splits["development"] = loaded.features["development"]
    if not experiment.untouched:
        splits |= {split: rows for split, rows in loaded.features.items() if split not in ("train", "development")}
    return splits


def _front(loaded: "Loaded", subject: "Subject", backbone: "Backbone") -> FrozenFront:
    """The model's frozen front, tried on some rows of different lengths."""
    import torch

    rows = loaded.trained_on
    by_size = sorted(range(len(rows)), key=lambda row: rows[row]["length"])
    some = by_size[:: max(1, len(by_size) // TRIED_ROWS)][:TRIED_ROWS]
    batch = subject.collate(rows, some)
    inputs = {name: tensor for name, tensor in batch.inputs.items() if name in TEXT}
    device = subject.collate.device.type
    with torch.autocast(device, subject.autocast, enabled=subject.autocast is not None):
        front = frozen_front.find(backbone, subject.model, inputs)
        front.check(subject.model, inputs)
    return front


class _Keeping:
    """Has the features of each split at hand, from their file or computed into it."""

    def __init__(self, experiment: Experiment, subject: "Subject", backbone: "Backbone", front: FrozenFront) -> None:
        train = experiment.train
        self.subject, self.front = subject, front
        self.folder = Folder(Path(train.features_dir), round(train.features_gigabytes * GIGABYTE))
        self.states = HiddenStates(subject.collate.device)
        self.needed: set[Path] = set()
        self._decisive = _decisive(experiment, subject, backbone, front)

    def split(self, rows: "list[Features]") -> dict[str, Any]:
        """Have a split's features at hand; returns what the record says of them.

        Where there is no room they are not kept: the front then computes them again in each pass, to the same values.
        """
        content = json.dumps([self._decisive, rows], sort_keys=True, default=str)
        key = hashlib.sha256(content.encode()).hexdigest()
        path = self.folder.file(key)
        try:
            with self.folder.lock(key):
                there = self._mapped(path)
                if there is not None:
                    return {"from": "an earlier run", "rows": len(rows), "bytes": there}
                self._write(path, rows)
                self.needed.add(path)
                return {"from": "this run", "rows": len(rows), "bytes": self.states.add(path)}
        except (NoRoom, OSError) as error:
            reason = str(error) if isinstance(error, NoRoom) else f"{path}: {error.strerror}"
            log.warning("features of %d rows are computed in each pass, as they can't be kept: %s", len(rows), reason)
            return {"from": "each pass", "rows": len(rows), "bytes": 0, "reason": reason}

    def _mapped(self, path: Path) -> int | None:
        """Bytes of a file that is there and whole."""
        try:
            size = self.states.add(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            log.warning("%s; it is computed anew", error)
            path.unlink()
            return None
        with suppress(OSError):  # another process may have made room meanwhile: what is mapped stays
            os.utime(path)  # what was used longest ago goes first
        self.needed.add(path)
        return size

    def _write(self, path: Path, rows: "list[Features]") -> None:
        texts: dict[bytes, Text] = {}
        for indices in by_length([row["length"] for row in rows], self.subject.batch_size):
            inputs = {name: value for name, value in self.subject.collate(rows, indices).inputs.items() if name in TEXT}
            found = texts_of(inputs)
            if found is None:
                raise NoRoom("its rows are packed, and where one ends depends on the batch")
            texts |= {text.digest: text for text in found}
        device, sample = self.subject.collate.device, self.front.sample
        size = hidden_states.size_of(list(texts.values()), sample)
        log.info("%d rows' features take %.3f GB in %s", len(rows), size / GIGABYTE, path.parent)
        with self.folder.place(path, size, self.needed) as file, self.subject.computing():
            hidden_states.write(
                file,
                list(texts.values()),
                sample,
                lambda inputs: self.front.compute({name: tensor.to(device) for name, tensor in inputs.items()}),
            )


def _decisive(experiment: Experiment, subject: "Subject", backbone: "Backbone", front: FrozenFront) -> dict[str, Any]:
    """What decides the features of a text: the frozen weights in front, and how they are computed with."""
    import torch
    import transformers

    model, config = experiment.model, backbone.model.config.to_dict()
    return {
        "version": RESULTS_VERSION,
        "weights": _digest(backbone, front),
        # Activations, heads, norms: what the weights do not tell. Not where they lie.
        "config": {name: value for name, value in config.items() if name != "_name_or_path"},
        "layer": front.layers[-1],
        "dtype": f"{front.sample.dtype} under {subject.autocast}",
        "quantization": f"{backbone.quantization.value} {model.double_quantization}",
        "device": subject.collate.device.type,
        "attention": str(backbone.model.config._attn_implementation),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _digest(backbone: "Backbone", front: FrozenFront) -> str:
    """Hash of the weights and tables in front, of their scales, and of what stays frozen beside the layers."""
    import torch

    behind = tuple(f"{name}." for name in backbone.layers()[len(front.layers) :])
    content = hashlib.sha256()
    named = [*backbone.model.named_parameters(), *backbone.model.named_buffers()]
    for name, module in backbone.model.named_modules():
        named += [(f"{name}.scales", tensor) for tensor in quantization_state(module)]
    for name, tensor in sorted(named, key=lambda one: one[0]):
        if tensor.requires_grad or backbone.is_head(name) or (behind and name.startswith(behind)):
            continue
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        if plain.numel():
            content.update(plain.view(torch.uint8).numpy().data)
    return content.hexdigest()
