"""A sweep of four points, two at a time on one device: two finish, one runs out of memory, one is killed."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from parts import CONSOLE_FILE, RESULT_FILE, RunRecord, Setting, recorded

ROWS, WORDS = 4096, 500
GREEDY, KILLED = 2, 3
EXPECTED = {0: "finished", 1: "finished", GREEDY: "out_of_memory", KILLED: "failed"}
SWEEP = f"""defaults: [config, override task: glue/sst2, override method: full, override tracking: none, _self_]
model: {{name: random, path: MODEL, pretrained: false}}
task: {{data_dir: DATA, max_length: 512}}
train:
  batch_size: "${{by:${{seed}},{{0: 32, 1: 32, {GREEDY}: {ROWS}, {KILLED}: 32}}}}"
  max_steps: "${{by:${{seed}},{{0: 20, 1: 20, {GREEDY}: 20, {KILLED}: 100000}}}}"
  keep_adapter: false
forgetting: {{text: null}}
measure: {{costs: false}}
sweep: {{slots_per_gpu: 2}}
hydra:
  mode: MULTIRUN
  sweep: {{dir: points}}
  launcher: {{workers: 2}}
  sweeper: {{params: {{seed: "0,1,{GREEDY},{KILLED}"}}}}
"""
# Where there is no GPU, a process may take so much memory beside what this one has mapped.
DRY_BYTES = 3 * 2**30


def main(setting: Setting) -> bool:
    before = setting.written("sweep")
    if any(line["status"] == "finished" and line["device"] == setting.device_name for line in before):
        return True
    folder = setting.work / "sweep"
    (folder / "sweeps").mkdir(parents=True)
    _write_model(folder / "model", setting.dry)
    _write_rows(folder / "data", 120 if setting.dry else WORDS)
    text = SWEEP.replace("MODEL", str(folder / "model")).replace("DATA", str(folder / "data"))
    (folder / "sweeps" / "gpu_points.yaml").write_text(text)
    with recorded(setting, "sweep") as line:
        line["table"], line["exit_status"] = _run(setting, folder, line)
        records = {
            int(path.parent.name): RunRecord.read(path.parent) for path in folder.glob(f"points/*/{RESULT_FILE}")
        }
        line["points"] = [
            {"point": number, "status": record.status, "error": record.error}
            for number, record in sorted(records.items())
        ]
        found = {number: str(record.status) for number, record in records.items()}
        if found != EXPECTED:
            raise AssertionError(f"the points ended as {json.dumps(found)}, not as {json.dumps(EXPECTED)}")
    return line["status"] == "finished"


def _run(setting: Setting, folder: Path, line: dict[str, Any]) -> tuple[str, int]:
    """Start the sweep, kill the worker of one point as soon as it trains, and return the table."""
    command = [sys.executable, "-m", "harness", "-cn", "gpu_points", f"train.device={setting.device.type}"]
    if setting.dry:
        command += ["task.max_length=128"]
    mapped = psutil.Process().memory_info().vms

    def limit_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mapped + DRY_BYTES, mapped + DRY_BYTES))

    out = folder / "out.txt"
    with out.open("w") as file:
        sweep = subprocess.Popen(
            command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, preexec_fn=limit_memory if setting.dry else None
        )
    while sweep.poll() is None:
        log = folder / "points" / str(KILLED) / CONSOLE_FILE
        if "killed_process" not in line and log.exists() and "trains" in log.read_text():
            line["killed_process"] = _kill_writer_of(log, sweep.pid)
        time.sleep(0.1)
    printed = out.read_text()
    print(printed, flush=True)
    # What Python says of semaphores that a killed process left is not of the table.
    table = re.search(r"every point with.*^\d+ points: [^\n]*", printed, re.DOTALL | re.MULTILINE)
    return table[0] if table else printed, sweep.returncode


def _kill_writer_of(log: Path, sweep: int) -> int | None:
    """Kill the worker that a point's log belongs to; null where it ended in this moment."""
    for process in psutil.Process(sweep).children(recursive=True):
        try:
            descriptors = [os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir()]
        except OSError:
            continue
        if str(log.resolve()) in descriptors:
            os.kill(process.pid, signal.SIGKILL)
            return process.pid
    return None


def _write_model(folder: Path, dry: bool) -> None:
    """The configuration of a BERT architecture and a tokenizer of words; its weights are drawn by the run."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, PreTrainedTokenizerFast

    vocabulary = ["<pad>", "<unk>", *(f"word{number}" for number in range(60))]
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    BertConfig(vocab_size=64, **(size if dry else {})).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)


def _write_rows(folder: Path, words: int) -> None:
    """Texts whose words decide the label."""
    folder.mkdir()
    draw = random.Random(0)
    for split, count in (("train", ROWS + 400), ("validation", 64)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for number in range(count):
                label = number % 2
                text = " ".join(f"word{draw.randrange(30) + 30 * label}" for _ in range(words))
                file.write(json.dumps({"sentence": text, "label": label, "idx": number}) + "\n")
