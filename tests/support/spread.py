"""Every method with its frozen weights spread over two processes, held against itself with whole ones.

    python -m torch.distributed.run --standalone --nproc-per-node=2 spread.py RESULT FOLDER_OF_BERT FOLDER_OF_LLAMA

Writes what became of each method as JSON: null where the two agree, else the reason.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed

from harness import measure, models
from harness.config.errors import ConfigError
from harness.methods import trained_parameters
from harness.models.architectures import Kind
from harness.training.processes import Processes

sys.path.append(str(Path(__file__).parents[1] / "methods"))
import test_contract as contract


def attached(folder: Path, name: str, kind: Kind):
    backbone, method = contract.make_backbone(folder, name, kind=kind)
    torch.manual_seed(3)
    return backbone, method.attach(backbone)


def scores(adapter, kind: Kind) -> list[torch.Tensor]:
    """The logits after a few steps, with the adapter and without."""
    contract.train(adapter, kind, 1e-3)
    after = contract.logits(adapter.model, kind)
    with adapter.disabled():
        return [after, contract.logits(adapter.model, kind)]


def look(processes: Processes, folder: Path, name: str, kind: Kind) -> str | None:
    """Why a method can't be spread, or where it differs; null where it does not."""
    experiment = contract.experiment_of(folder, name, kind)
    if isinstance(expected := contract.told_beforehand(folder, experiment), str):
        return expected
    if models.choose_quantization(experiment).value != "none":
        return "quantized"
    _, whole = attached(folder, name, kind)
    backbone, spread = attached(folder, name, kind)
    layers = [backbone.model.get_submodule(layer) for layer in backbone.layers()]
    try:
        trained = trained_parameters(spread).values()
        processes.spread_frozen(layers, [*trained, *spread.kept_whole()])
    except ConfigError as refusal:
        return str(refusal)
    held, needed = measure.weight_bytes(spread.model), measure.weight_bytes(whole.model)
    assert held < needed, f"spread weights take {held} bytes of {needed}"
    for switched, ours, theirs in zip(("on", "off"), scores(spread, kind), scores(whole, kind), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5), f"logits, adapter {switched}: {(ours - theirs).abs().max()}"
    return None


def main() -> None:
    warnings.simplefilter("ignore")
    distributed.init_process_group("gloo")
    processes = Processes(distributed.get_rank(), distributed.get_world_size(), torch.device("cpu"), spread=True)
    found = {}
    for name in contract.METHODS:
        only_models = name in contract.LANGUAGE_MODELS_ONLY
        folder, kind = (sys.argv[3], Kind.causal_lm) if only_models else (sys.argv[2], Kind.classification)
        try:
            found[name] = look(processes, Path(folder), name, kind)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    if processes.is_first:
        Path(sys.argv[1]).write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
