"""Memory of two workers that train on one frozen backbone, of which they hold one copy.

    python -m pytest -m slow -s tests/benchmarks/test_shared_memory.py

The workers are processes that load and train as a run does. Linux tells what is theirs alone (USS) and their share of
what they hold together (PSS). "Before" are weights that each copies, as a load without a mapping does.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MEGABYTE = 10**6
# Of a backbone of so many layers of 768: 28 MB each, beside 94 MB of embeddings.
LAYERS = int(os.environ.get("HARNESS_SHARED_LAYERS", "4"))
WORKER = """
import json, sys
from pathlib import Path
import torch
from harness import models
from harness.config.build import build
from harness.config.compose import compose
from harness.models.architectures import Kind

folder, copied = Path(sys.argv[1]), sys.argv[2] == "copied"
experiment = build(compose("config", [f"model.path={folder}", "method=lora"]))
models.quiet_libraries()
configuration = models.load_config(folder, 2, False)
backbone = models.load_model(folder, configuration, experiment, torch.float32)
if copied:
    for parameter in backbone.model.parameters():
        parameter.data = parameter.data.clone()
adapter = experiment.method.attach(backbone)
adapter.model.train()
inputs = {"input_ids": torch.randint(5, 1000, (2, 16)), "labels": torch.tensor([0, 1])}
optimizer = torch.optim.AdamW([p for p in adapter.model.parameters() if p.requires_grad])
adapter.model(**inputs).loss.backward()
optimizer.step()
print("ready", flush=True)
sys.stdin.readline()
told = dict(line.split()[:2] for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
alone = int(told["Private_Clean:"]) + int(told["Private_Dirty:"])
print(json.dumps({"pss": 1024 * int(told["Pss:"]), "uss": 1024 * alone, "rss": 1024 * int(told["Rss:"])}), flush=True)
sys.stdin.readline()
"""


def resident(folder: Path, way: str, count: int = 2) -> list[dict[str, int]]:
    """What each of several processes holds while all of them are there."""
    told = [sys.executable, "-c", WORKER, str(folder), way]
    workers = [subprocess.Popen(told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        found = []
        for worker in workers:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            found.append(json.loads(worker.stdout.readline()))
        return found
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def make_backbone(folder: Path) -> int:
    """A random backbone with the micro encoder's tokenizer; returns the bytes of its weights."""
    import torch
    from transformers import BertConfig, BertModel

    from harness.config.sources import PACKAGE

    torch.manual_seed(0)
    BertModel(BertConfig(num_hidden_layers=LAYERS)).save_pretrained(folder)
    for path in (PACKAGE / "pretrained" / "micro_encoder").glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    os.sync()  # pages that wait to be written count as the writer's own
    return (folder / "model.safetensors").stat().st_size


def test_two_workers_hold_one_copy_of_what_is_frozen(tmp_path: Path) -> None:
    size = make_backbone(tmp_path)
    figures = {way: resident(tmp_path, way) for way in ("copied", "mapped")}
    print(f"\nbackbone {size / MEGABYTE:.0f} MB, two workers with LoRA after a step:")
    for way, workers in figures.items():
        for name in ("uss", "pss", "rss"):
            listed = " + ".join(f"{worker[name] / MEGABYTE:.0f}" for worker in workers)
            print(f"  {way}: {name} {listed} = {sum(worker[name] for worker in workers) / MEGABYTE:.0f} MB")
    total = {way: sum(worker["pss"] for worker in workers) for way, workers in figures.items()}
    print(f"  together {total['copied'] / MEGABYTE:.0f} MB before, {total['mapped'] / MEGABYTE:.0f} MB after")
    assert total["copied"] - total["mapped"] >= 0.8 * size
    for worker in figures["mapped"]:
        assert worker["uss"] <= min(one["uss"] for one in figures["copied"]) - 0.8 * size
