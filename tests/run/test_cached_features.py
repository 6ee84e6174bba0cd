"""Cached features: the frozen layers run once per text, and nothing that is concluded changes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from harness import run as runner
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.tracking.record import PREDICTIONS_FILE, STEPS_FILE, RunRecord
from harness.training.hidden_states import Folder, NoRoom

CACHED = "train.cache_features=true"


def carry_out(folder: Path, *overrides: str) -> RunRecord:
    result = runner.run(runner.prepare(compose("config", list(overrides))), folder)
    assert result.status == "finished", result.error
    return result


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / STEPS_FILE).read_text().splitlines()]
    return [value for line in lines for name, value in sorted(line.items()) if name.endswith("loss")]


def without_dropout(folder: Path, model: Path) -> Path:
    """A copy of a backbone whose configuration switches every dropout off."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    names = "hidden_dropout_prob attention_probs_dropout_prob attention_dropout resid_pdrop embd_pdrop attn_pdrop"
    off = dict.fromkeys(names.split(), 0.0)
    (folder / "config.json").write_text(json.dumps(config | off))
    return folder


def both(tmp_path: Path, *overrides: str) -> tuple[RunRecord, RunRecord]:
    """The same run without cached features and with, in folders `plain` and `cached`."""
    return carry_out(tmp_path / "plain", *overrides), carry_out(tmp_path / "cached", *overrides, CACHED)


def assert_same_conclusions(tmp_path: Path, plain: RunRecord, cached: RunRecord) -> None:
    """Losses, the checkpoint that was chosen, scores and every prediction, up to the order of sums."""
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4, abs=1e-5)
    for split in ("development", "validation"):
        assert cached.scores[split] == pytest.approx(plain.scores[split], rel=1e-4, abs=1e-5)
    tables = [pd.read_parquet(tmp_path / name / PREDICTIONS_FILE) for name in ("plain", "cached")]
    assert list(tables[0]["prediction"]) == list(tables[1]["prediction"])


@pytest.mark.parametrize(
    ("model_type", "method"),
    [
        ("bert", "last_layers"),
        ("llama", "head"),
        pytest.param("bert", "head", marks=pytest.mark.slow),
        pytest.param("llama", "last_layers", marks=pytest.mark.slow),
        # Layers that share their weights, and such as give their hidden states with a second thing.
        pytest.param("albert", "head", marks=pytest.mark.slow),
        pytest.param("gpt2", "last_layers", marks=pytest.mark.slow),
        pytest.param("deberta-v2", "last_layers", marks=pytest.mark.slow),
    ],
)
def test_without_dropout_a_run_is_the_same_with_cached_features(
    model_type: str, method: str, tiny_model: Callable[[str], Path], tiny_experiment: list[str], tmp_path: Path
) -> None:
    """An encoder, padded on the right, and a decoder, on the left; frozen layers never run in training."""
    model = without_dropout(tmp_path / "model", tiny_model(model_type))
    told = [*tiny_experiment, f"model.path={model}", "train.epochs=2", f"method={method}"]
    plain, cached = both(tmp_path, *told, "forgetting.text=null")
    assert_same_conclusions(tmp_path, plain, cached)
    said = cached.provenance["cached_features"]
    assert said["used"]
    assert said["passes"]["from_features"] > 0
    assert said["passes"]["computed_anew"] == said["passes"]["whole"] == 0
    assert cached.cost["train_flops_per_token"] < plain.cost["train_flops_per_token"] / (1 if method != "head" else 2)
    # What a model costs that is given a text for the first time is measured without them.
    assert cached.cost["forward_flops_per_token"] == plain.cost["forward_flops_per_token"]


def test_what_trains_in_every_layer_trains_as_ever(tiny_experiment: list[str], tmp_path: Path) -> None:
    """Bit for bit, with the reason in the record."""
    told = [*tiny_experiment, "method=lora", "train.max_steps=4", "measure.costs=false", "forgetting.text=null"]
    plain, cached = both(tmp_path, *told)
    assert cached.scores == plain.scores
    assert losses(tmp_path / "cached") == losses(tmp_path / "plain")
    assert cached.provenance["cached_features"] == {
        "used": False,
        "reason": "it trains in front of its first layer, or in it",
    }
    assert "first layer" in cached.unmeasured["cost.features_bytes"]
    assert plain.unmeasured["cost.features_bytes"] == "train.cache_features=false"


def test_the_front_is_found_by_what_trains_and_not_by_a_name(
    tiny_model: Callable[[str], Path], tiny_experiment: list[str], tmp_path: Path
) -> None:
    """LoRA in the top layer alone leaves the layer below it frozen."""
    model = without_dropout(tmp_path / "model", tiny_model("bert"))
    told = [*tiny_experiment, f"model.path={model}", "train.max_steps=6", "measure.costs=false", "forgetting.text=null"]
    plain, cached = both(
        tmp_path, *told, "method=lora", "method.target_modules=['encoder.layer.1.attention.self.query']"
    )
    assert_same_conclusions(tmp_path, plain, cached)
    assert cached.provenance["cached_features"]["layers"] == 1


def test_seeds_and_rates_share_the_features_and_other_weights_do_not(
    tiny_model: Callable[[str], Path], tiny_experiment: list[str], tmp_path: Path
) -> None:
    """Found in the folder by what decides them; an encoder of other weights finds none."""
    told = [*tiny_experiment, "method=head", "train.max_steps=2", "measure.costs=false", "forgetting.text=null", CACHED]
    runs = [
        carry_out(tmp_path / "first", *told),
        carry_out(tmp_path / "second", *told, "seed=5", "train.learning_rate=0.1"),
    ]
    origins = [{one["from"] for one in run.provenance["cached_features"]["splits"].values()} for run in runs]
    assert origins == [{"this run"}, {"an earlier run"}]
    assert runs[0].cost["features_bytes"] == runs[1].cost["features_bytes"] > 0
    files = set(Path("runs/features").glob("*.safetensors"))
    assert runs[0].cost["features_bytes"] == sum(path.stat().st_size for path in files)
    other = carry_out(tmp_path / "third", *told, "model.pretrained=false", "seed=5")
    assert {one["from"] for one in other.provenance["cached_features"]["splits"].values()} == {"this run"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "loaded"),
    [
        ({"hidden_act": "relu", "num_attention_heads": 1}, []),
        # The packed bits are the same, the scales beside them are not.
        (2, ["model.quantization=nf4"]),
        (2, ["model.quantization=int8"]),
    ],
    ids=["other configuration", "other scales of 4 bits", "other scales of 8 bits"],
)
def test_what_computes_otherwise_with_the_same_parameters_is_not_served(
    changes: dict[str, Any] | int,
    loaded: list[str],
    tiny_model: Callable[[str], Path],
    tiny_experiment: list[str],
    tmp_path: Path,
) -> None:
    model = without_dropout(tmp_path / "model", tiny_model("bert"))
    other = without_dropout(tmp_path / "other", model)
    if isinstance(changes, dict):
        config = json.loads((other / "config.json").read_text())
        assert config.keys() >= changes.keys()
        (other / "config.json").write_text(json.dumps(config | changes))
    else:
        weights = load_file(other / "model.safetensors")
        scaled = {name: tensor * changes if ".layer." in name else tensor for name, tensor in weights.items()}
        save_file(scaled, other / "model.safetensors", {"format": "pt"})
    told = [*tiny_experiment, "method=head", "train.max_steps=4", "measure.costs=false", "forgetting.text=null"]
    told += loaded
    carry_out(tmp_path / "first", *told, f"model.path={model}", CACHED)
    plain, cached = both(tmp_path, *told, f"model.path={other}")
    assert_same_conclusions(tmp_path, plain, cached)
    assert {one["from"] for one in cached.provenance["cached_features"]["splits"].values()} == {"this run"}


def test_a_file_holds_real_tokens_only(tiny_experiment: list[str], tmp_path: Path) -> None:
    """As many hidden states as the different texts have tokens."""
    told = [*tiny_experiment, "method=head", "train.max_steps=1", "measure.costs=false", "forgetting.text=null", CACHED]
    carry_out(tmp_path / "run", *told)
    texts: set[str] = set()
    for path in (tmp_path / "data").glob("*.jsonl"):
        texts |= {json.loads(line)["sentence"] for line in path.read_text().splitlines()}
    held = 0
    for path in Path("runs/features").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            held += len(file.get_tensor("hidden"))
    # A text that comes in two splits is held twice.
    lines = [line for path in (tmp_path / "data").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert held <= sum(len(json.loads(line)["sentence"].split()) for line in lines)
    assert held >= sum(len(text.split()) for text in texts)


def test_a_damaged_file_is_computed_anew_and_one_that_was_cut_off_is_no_file(
    tiny_experiment: list[str], tmp_path: Path
) -> None:
    told = [*tiny_experiment, "method=head", "train.max_steps=2", "measure.costs=false", "forgetting.text=null", CACHED]
    first = carry_out(tmp_path / "first", *told)
    files = sorted(Path("runs/features").glob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:100])
    # As long as it was, with a few bytes of hidden states that are others.
    content = bytearray(files[1].read_bytes())
    content[len(content) // 3 : len(content) // 3 + 64] = bytes(64)
    files[1].write_bytes(content)
    left = Path(f"{files[0]}.1.partial")
    left.write_bytes(b"a process was killed here")
    second = carry_out(tmp_path / "second", *told)
    assert second.scores == first.scores
    assert sorted(one["from"] for one in second.provenance["cached_features"]["splits"].values()) == [
        "an earlier run",
        "this run",
        "this run",
    ]
    assert not left.exists()


@pytest.mark.parametrize("gigabytes", [2e-5, pytest.param(1e-9, marks=pytest.mark.slow)])
def test_without_room_the_run_is_the_same_and_says_so(
    gigabytes: float, tiny_experiment: list[str], tmp_path: Path
) -> None:
    """Dropout is off in front all the same, so the identity, which knows nothing of the disk, stays true."""
    told = [*tiny_experiment, "method=head", "train.max_steps=4", "measure.costs=false", "forgetting.text=null", CACHED]
    there = carry_out(tmp_path / "there", *told)
    for path in Path("runs/features").glob("*.safetensors"):
        path.unlink()
    short = carry_out(tmp_path / "short", *told, f"train.features_gigabytes={gigabytes}")
    assert short.identity == there.identity
    assert losses(tmp_path / "short") == pytest.approx(losses(tmp_path / "there"), rel=1e-4)
    splits = short.provenance["cached_features"]["splits"]
    assert "features_gigabytes" in splits["train"]["reason"]
    assert short.provenance["cached_features"]["passes"]["computed_anew"] > 0
    assert sum(path.stat().st_size for path in Path("runs/features").glob("*.safetensors")) <= gigabytes * 1e9


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    """But for what the run itself still needs."""
    folder = Folder(tmp_path, 250)
    for age, name in enumerate("abc"):
        folder.file(name).write_bytes(b"x" * 80)
        os.utime(folder.file(name), (1000 + age, 1000 + age))
    folder.make_room(80, {folder.file("a")})
    assert [folder.file(name).exists() for name in "abc"] == [True, False, True]


def test_what_others_write_at_the_time_counts_and_what_a_killed_one_left_does_not(tmp_path: Path) -> None:
    """Two of 80 bytes do not go into 100, whoever writes them."""
    folder = Folder(tmp_path, 100)
    with folder.place(folder.file("a"), 80, set()) as file:
        with pytest.raises(NoRoom, match="write now"), folder.place(folder.file("b"), 80, set()):
            pass
        file.write(b"x" * 80)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == [folder.file("a").name]
    killed = (
        "import os, signal, sys; from pathlib import Path; from harness.training.hidden_states import Folder\n"
        "folder = Folder(Path(sys.argv[1]), 100)\n"
        "with folder.place(folder.file('c'), 80, set()): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", killed, tmp_path], check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.partial"))) == 1
    with folder.place(folder.file("d"), 80, set()) as file:
        file.write(b"x" * 80)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == [folder.file("d").name]


@pytest.mark.slow
def test_two_processes_that_want_one_file_compute_it_once(tiny_experiment: list[str], tmp_path: Path) -> None:
    told = [*tiny_experiment, "method=head", "train.max_steps=2", "measure.costs=false", "forgetting.text=null", CACHED]
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "harness", *told, f"seed={seed}", f"hydra.run.dir=run{seed}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(2)
    ]
    for run in runs:
        _, told_by = run.communicate(timeout=300)
        assert run.returncode == 0, told_by
    origins = [
        [one["from"] for one in RunRecord.read(Path(f"run{seed}")).provenance["cached_features"]["splits"].values()]
        for seed in range(2)
    ]
    assert [sorted(pair) for pair in zip(*origins, strict=True)] == 3 * [["an earlier run", "this run"]]


@pytest.mark.slow
def test_identities_of_runs_without_it_stay_and_places_do_not_count(tiny_experiment: list[str]) -> None:
    def identity(*overrides: str) -> str:
        return runner.prepare(compose("config", [*tiny_experiment, *overrides])).identity

    assert identity("train.cache_features=false") == identity()
    assert identity(CACHED) != identity()
    assert identity(CACHED, "train.features_dir=elsewhere", "train.features_gigabytes=1") == identity(CACHED)


@pytest.mark.parametrize(
    ("told", "named"),
    [
        (["train.features_gigabytes=0"], "train.features_gigabytes=0"),
        ([CACHED, "train.distributed=ddp"], "train.distributed=ddp"),
    ],
)
def test_what_can_not_be_is_refused(told: list[str], named: str, tiny_experiment: list[str]) -> None:
    with pytest.raises(ConfigError, match=named):
        runner.prepare(compose("config", [*tiny_experiment, *told]))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["head", "last_layers"])
def test_the_plan_is_of_what_the_steps_really_hold(method: str, tiny_experiment: list[str], tmp_path: Path) -> None:
    """The predicted step starts behind the front as the counted one does."""
    told = [*tiny_experiment, f"method={method}", "train.max_steps=3", "forgetting.text=null"]
    cost = carry_out(tmp_path / "run", *told, CACHED, "measure.predict=true").cost
    for name in ("gradient_bytes", "optimizer_bytes", "activation_bytes", "train_peak_bytes"):
        assert cost["predicted"][name] == pytest.approx(cost[name], rel=0.02), name
    assert cost["predicted"]["train_flops"] == pytest.approx(cost["train_flops"], rel=0.02)
    whole: dict[str, Any] = carry_out(tmp_path / "whole", *told, "measure.predict=true").cost["predicted"]
    assert cost["predicted"]["train_flops"] < whole["train_flops"]


@pytest.mark.slow
def test_bfloat16_features_are_kept_as_such(tiny_experiment: list[str], tmp_path: Path) -> None:
    told = [*tiny_experiment, "method=head", "train.max_steps=2", "train.precision=bfloat16", "measure.costs=false"]
    run = carry_out(tmp_path / "run", *told, "forgetting.text=null", CACHED)
    assert run.provenance["cached_features"]["passes"]["computed_anew"] == 0
    types = set()
    for path in Path("runs/features").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            types.add(file.get_tensor("hidden").dtype)
    assert types <= {torch.bfloat16, torch.float32}
