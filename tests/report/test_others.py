"""Results that others published are rows beside ours: what means the same is mapped, the rest is left out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from run_directories import write_run

import harness
from harness.config.errors import ConfigError
from harness.report import __main__ as report
from harness.report import labels, others


def result(name: str = "lora/llama-3.2-3B-rank32", **changes: Any) -> dict[str, Any]:
    """The content of a file in the format of method_comparison/MetaMathQA/results, with figures of our own."""
    steps = [
        {
            "step": step,
            "valid accuracy": 0.2 + step / 1000,
            "train loss": 0.7,
            "train samples": 4 * step,
            "train time": 30.0,
            "eval time": 11.0,
            "tokens / sec": 6000.0,
            "mem allocated avg": 7e9,
            "mem reserved avg": 12e9,
            "elapsed time": 90.0,
        }
        for step in (50, 100)
    ]
    last = {"step": 100, "test accuracy": 0.41, "train loss": 0.6, "train samples": 400, "train total tokens": 90_000}
    told = {
        "model_id": "meta-llama/Llama-3.2-3B",
        "dtype": "bfloat16",
        "max_seq_length": 768,
        "batch_size": 4,
        "batch_size_eval": 50,
        "max_steps": 100,
        "eval_steps": 50,
        "compile": False,
        "query_template": "Question: {query} Think step by step.\nAnswer:",
        "seed": 0,
        "grad_norm_clip": 1.0,
        "optimizer_type": "AdamW",
        "optimizer_kwargs": {"lr": 1e-4, "weight_decay": 0.1},
        "lr_scheduler": "cosine",
        "use_amp": False,
        "autocast_adapter_dtype": True,
        "generation_kwargs": {"max_length": 800, "max_new_tokens": 300},
        "attn_implementation": None,
    }
    peft = {"task_type": "CAUSAL_LM", "peft_type": "LORA", "r": 32, "target_modules": ["v_proj", "q_proj"]}
    run = {
        "created_at": "2026-06-19T19:15:35+00:00",
        "total_time": 200.5,
        "experiment_name": name,
        "peft_branch": "main",
        "train_config": told,
        "peft_config": peft | {"base_model_name_or_path": "meta-llama/Llama-3.2-3B", "inference_mode": False},
        "error_msg": "",
    }
    trained = {
        "accelerator_memory_reserved_avg": 12_000_000_000,
        "accelerator_memory_max": 22_000_000_000,
        "accelerator_memory_reserved_99th": 18_000_000_000,
        "train_time": 140.0,
        "file_size": 36_715_216,
        "num_trainable_params": 9_175_040,
        "num_total_params": 3_221_924_864,
        "status": "success",
        "metrics": [*steps, last],
    }
    meta = {
        "model_info": {"sha": "13afe512", "created_at": "2024-09-18T15:23:48+00:00"},
        "dataset_info": {name: {"sha": "aa", "created_at": "2023-09-21"} for name in ("metamath", "gsm8k")},
        "package_info": {"peft-version": "0.21.2"},
        "system_info": {"system": "Linux", "accelerator": "NVIDIA L40S"},
        "pytorch_info": "PyTorch",
    }
    content = {"run_info": run, "train_info": trained, "meta_info": meta}
    return {part: values | changes.get(part, {}) for part, values in content.items()}


def write(folder: Path, name: str = "lora/llama-3.2-3B-rank32", **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name.replace('/', '--')}.json"
    path.write_text(json.dumps(result(name, **changes)))
    return path


def test_a_published_result_is_a_row(tmp_path: Path) -> None:
    """Scores and costs of the same meaning have our names; what they measure otherwise is missing."""
    frame = harness.load_runs(None, others=[str(write(tmp_path))])
    [row] = frame.to_dict("records")
    assert (row["task"], row["method"], row["model"]) == (others.TASK, "lora", "meta-llama/Llama-3.2-3B")
    assert (row["validation"], row["development"]) == pytest.approx((0.41, 0.3))
    assert (row["seed"], row["status"]) == (0, "finished")
    assert (row["cost.train_seconds"], row["cost.tokens_per_second"]) == (60, 1500)
    assert (row["cost.trainable_parameters"], row["cost.adapter_file_bytes"]) == (9_175_040, 36_715_216)
    assert not {"cost.train_peak_bytes", "cost.cuda_reserved_bytes", "forgetting.after"} & set(frame)
    assert (row["source"], row["mark"]) == (others.SOURCE, f"of {others.SOURCE}")
    assert (row["param.train.learning_rate"], row["param.method.r"]) == ("0.0001", "32")
    assert row["param.method.target_modules"] == '["q_proj", "v_proj"]'
    assert math.isnan(row["majority"])


@pytest.mark.slow
def test_theirs_stand_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one report and, on a task of the same name, in one table; their rows are named and marked as theirs."""
    for name in ("lora/llama-3.2-3B-rank32", "lora/llama-3.2-3B-rank64", "full-finetuning/llama-3.2-3B-lr_0.00001"):
        write(tmp_path / "theirs", name)
    write_run(tmp_path / "runs", task=others.TASK, score=0.5)
    report.main(
        [f"store={tmp_path / 'runs'}", "sweep=grid", f"others={tmp_path / 'theirs'}", f"out={tmp_path / 'out'}"]
    )
    text = (tmp_path / "out" / "report.md").read_text()
    assert "4 runs of 2 methods" in capsys.readouterr().out
    assert text.count(f"1 of {others.SOURCE}") == 3
    assert "| lora variant=llama-3.2-3B-rank64 |" in text
    assert "| full |" in text


def test_labels_tell_their_variants_apart(tmp_path: Path) -> None:
    """By the name that they gave them, whatever else differs."""
    for name, r in (("lora/a", 8), ("lora/b", 16)):
        write(tmp_path, name, run_info={"experiment_name": name, "peft_config": {"r": r, "use_dora": r == 8}})
    frame = harness.load_runs(None, others=[str(tmp_path)])
    assert sorted(labels.label(frame)) == ["lora variant=a", "lora variant=b"]


def test_one_that_did_not_finish_has_no_score(tmp_path: Path) -> None:
    """It is listed with its reason."""
    write(tmp_path, train_info={"status": "canceled", "metrics": []}, run_info={"error_msg": "out of memory"})
    [row] = harness.load_runs(None, others=[str(tmp_path)]).to_dict("records")
    assert (row["status"], row["error"]) == ("interrupted", "out of memory")
    assert math.isnan(row["validation"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices must be integers"),
        ("{}", "it has no 'run_info'"),
        (json.dumps(result(train_info={"file_size": "big"})), "adapter_file_bytes is 'big', not a number"),
        (
            json.dumps(result(meta_info={"dataset_info": {"cats": {}}})),
            "its data sets are cats, not those of MetaMathQA",
        ),
        (json.dumps(result(run_info={"created_at": "yesterday"})), "Invalid isoformat string"),
        (json.dumps(result(train_info={"metrics": 3})), "not iterable"),
    ],
)
def test_a_damaged_file_is_named_and_skipped(tmp_path: Path, content: str, reason: str) -> None:
    """The others are read."""
    write(tmp_path)
    (tmp_path / "broken.json").write_text(content)
    with pytest.warns(UserWarning, match=f"broken.json is no result of .*{reason}"):
        frame = harness.load_runs(None, others=[str(tmp_path)])
    assert len(frame) == 1


def test_the_files_must_be_there(tmp_path: Path) -> None:
    """A path that leads nowhere is a mistake."""
    with pytest.raises(ConfigError, match="there is no such file or folder"):
        harness.load_runs(None, others=[str(tmp_path / "none")])
