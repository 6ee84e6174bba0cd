"""A run writes its record whatever happens, and the same configuration and seed give the same bits."""

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from harness import run as runner
from harness import tracking
from harness.config.build import build
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.sources import conf_root
from harness.methods.selective import SelectedWeights
from harness.plan.costs import plan
from harness.run import job
from harness.run.recording import judge
from harness.tracking.record import COST_FIELDS, RunRecord, Status
from harness.training.trainer import Trainer


def carry_out(folder: Path, *overrides: str) -> RunRecord:
    result = runner.run(runner.prepare(compose("config", list(overrides))), folder)
    assert RunRecord.read(folder).status == result.status
    return result


def scores_of(result: RunRecord) -> dict:
    return {key: result.scores[key] for key in ("development", "validation", "majority")}


METHODS = ("full", "head", "bitfit", "lora")
# All but those for language models alone, and but the one that stands for any configuration of peft.
ENCODER_METHODS = sorted(
    {path.stem for path in (conf_root() / "conf/method").glob("*.yaml")}
    - {"peft", "adaption_prompt", "trainable_tokens"}
)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_recorded_whole(method: str, tiny_experiment: list[str], tmp_path: Path) -> None:
    """Every cost has a figure or a reason, and every file is there."""
    result = carry_out(tmp_path / "run", *tiny_experiment, f"method={method}")
    assert result.status == Status.finished
    written = json.loads((tmp_path / "run/result.json").read_text())
    assert set(written["cost"]) == set(COST_FIELDS)
    missing = {name for name, value in written["cost"].items() if value is None}
    explained = {name.removeprefix("cost.") for name in written["unmeasured"] if name.startswith("cost.")}
    assert missing == {name for name in explained if "." not in name}
    elsewhere = {"cuda_allocated_bytes", "cuda_reserved_bytes", "energy_joules"}
    unasked = {"predicted", "seconds_to_target", "reference_bytes", "generated_tokens_per_second"}
    unasked |= {"features_bytes", "features_seconds"}
    assert missing <= elsewhere | unasked
    assert all(written["unmeasured"].values())
    assert written["provenance"]["data"]["rows"] == {"train": 180, "validation": 60, "development": 20}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "adapter",
        "config.yaml",
        "development.parquet",
        "predictions.parquet",
        "result.json",
        "steps.jsonl",
    }


def test_the_same_configuration_and_seed_give_the_same_bits(tiny_experiment: list[str], tmp_path: Path) -> None:
    """Scores, predictions and weights are equal."""
    first, second = (carry_out(tmp_path / name, *tiny_experiment) for name in ("first", "second"))
    assert scores_of(first) == scores_of(second)
    assert first.identity == second.identity
    frames = [pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("first", "second")]
    pd.testing.assert_frame_equal(*frames)
    weights = [(tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_measuring_changes_no_bit(tiny_experiment: list[str], tmp_path: Path) -> None:
    """Predictions and weights are those of a run that measured nothing."""
    for name, measured in (("with", "true"), ("without", "false")):
        overrides = (f"measure.costs={measured}", f"measure.predict={measured}", "train.gradient_accumulation_steps=2")
        result = carry_out(tmp_path / name, *tiny_experiment, *overrides)
        assert (result.cost["activation_bytes"] is None) == (measured == "false")
    frames = [pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("with", "without")]
    pd.testing.assert_frame_equal(*frames)
    weights = [(tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in ("with", "without")]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "prefix_tuning", "boft", "diff_pruning", "compacter", "osf"])
def test_a_step_is_predicted_as_it_is_measured(method: str, tiny_experiment: list[str], tmp_path: Path) -> None:
    """State within a hundredth, activations and peak within a tenth."""
    overrides = ("measure.predict=true", "evaluate.validation=false")
    cost = carry_out(tmp_path / "run", *tiny_experiment, f"method={method}", *overrides).cost
    predicted = cost["predicted"]
    for name in ("weight_bytes", "gradient_bytes", "optimizer_bytes"):
        assert predicted[name] == pytest.approx(cost[name], rel=0.01), name
    # Operations are those of the whole run, as the measured ones are.
    for name in ("activation_bytes", "train_peak_bytes", "train_flops"):
        assert predicted[name] == pytest.approx(cost[name], rel=0.1), name


@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("preference/micro", "full"),
        ("preference/micro", "lora"),
        ("preference/micro", "qlora"),
        ("preference/micro", "prompt_tuning"),
        ("instruct/micro", "lora"),
        ("lm/micro", "lora"),
    ],
)
@pytest.mark.slow
def test_a_step_of_a_language_task_is_predicted_as_it_is_measured(task: str, method: str, tmp_path: Path) -> None:
    """With the loss that the task has: of pairs the reference's pass, and no logits held for all of the vocabulary."""
    options = ["model=micro_decoder", f"task={task}", f"method={method}", "tracking=none", "forgetting.text=null"]
    options += ["task.max_train_rows=64", "task.max_development_rows=8", "train.max_steps=2", "train.batch_size=8"]
    cost = carry_out(tmp_path / "run", *options, "measure.predict=true", "evaluate.validation=false").cost
    for name in ("weight_bytes", "gradient_bytes", "optimizer_bytes", "activation_bytes", "train_peak_bytes"):
        assert cost["predicted"][name] == pytest.approx(cost[name], rel=0.01), name


@pytest.mark.slow
def test_the_time_to_a_score_is_that_of_the_evaluation_that_reached_it(
    tiny_experiment: list[str], tmp_path: Path
) -> None:
    """A score that was never reached has a reason instead."""
    result = carry_out(tmp_path / "run", *tiny_experiment, "measure.target_score=0.5")
    assert 0 < result.cost["seconds_to_target"] <= result.cost["train_seconds"]
    never = carry_out(tmp_path / "never", *tiny_experiment, "measure.target_score=2")
    assert never.cost["seconds_to_target"] is None
    assert "never had 2.0" in never.unmeasured["cost.seconds_to_target"]


@pytest.mark.slow
def test_another_seed_gives_another_result(tiny_experiment: list[str], tmp_path: Path) -> None:
    """Two seeds differ in their scores."""
    first = carry_out(tmp_path / "first", *tiny_experiment)
    second = carry_out(tmp_path / "second", *tiny_experiment, "seed=1")
    assert scores_of(first) != scores_of(second)


@pytest.mark.slow
def test_predictions_score_what_the_record_says(tiny_experiment: list[str], tmp_path: Path) -> None:
    """The file's rows give the recorded accuracy."""
    result = carry_out(tmp_path / "run", *tiny_experiment)
    frame = pd.read_parquet(tmp_path / "run/predictions.parquet")
    rows = frame[frame.split == "validation"]
    assert list(rows.idx) == list(range(60))
    assert (rows.label == rows.prediction).mean() == result.scores["validation"]["accuracy"]
    assert result.scores["validation"]["accuracy"] > 0.8 > result.scores["majority"]["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_plan_counts_what_the_run_counts(method: str, tiny_experiment: list[str], tmp_path: Path) -> None:
    """Parameters exactly, memory within a hundredth, for every method."""
    options = [*tiny_experiment, f"method={method}", "train.epochs=1"]
    measured = carry_out(tmp_path / "run", *options).cost
    planned = plan(runner.prepare(compose("config", options)).experiment)
    for name in ("adapter_parameters", "head_parameters", "trainable_parameters", "total_parameters"):
        assert measured[name] == planned[name], name
    for name in ("weight_bytes", "gradient_bytes", "optimizer_bytes"):
        assert measured[name] == pytest.approx(planned[name], rel=0.01), name


def test_a_trial_leaves_the_validation_split_untouched(tiny_experiment: list[str], tmp_path: Path) -> None:
    """There is no score and no prediction of it, and the record says why."""
    result = carry_out(tmp_path / "run", *tiny_experiment, "evaluate.validation=false")
    assert result.scores["validation"] is None
    assert "evaluate.validation=false" in result.unmeasured["scores.validation"]
    assert set(pd.read_parquet(tmp_path / "run/predictions.parquet").split) == {"development"}


@pytest.mark.slow
def test_a_run_on_all_rows_scores_nothing_and_keeps_the_last_weights(
    tiny_experiment: list[str], tmp_path: Path
) -> None:
    """Development and validation rows are trained on as well; the adapter is kept, and can be asked."""
    overrides = [*tiny_experiment, "method=lora", "train.all_rows=true"]
    result = carry_out(tmp_path / "run", *overrides)
    assert result.status == "finished", result.error
    data = result.provenance["data"]
    assert data["trained_rows"] == sum(data["rows"].values()) > data["rows"]["train"]
    for split in ("development", "validation", "majority"):
        assert result.scores[split] is None
        assert result.unmeasured[f"scores.{split}"] == "train.all_rows=true: no row is left to score"
    lines = [json.loads(line) for line in (tmp_path / "run/steps.jsonl").read_text().splitlines()]
    assert not [line for line in lines if any(name.startswith("development") for name in line)]
    assert not (tmp_path / "run/predictions.parquet").exists()
    assert "none was left to score" in (tmp_path / "run/adapter/README.md").read_text()
    again = carry_out(tmp_path / "again", *overrides)
    assert adapter_bytes(tmp_path / "again") == adapter_bytes(tmp_path / "run")
    assert again.identity == result.identity != carry_out(tmp_path / "plain", *overrides[:-1]).identity
    assert adapter_bytes(tmp_path / "plain") != adapter_bytes(tmp_path / "run")


def adapter_bytes(folder: Path) -> bytes:
    (weights,) = (folder / "adapter").glob("*.safetensors")
    return weights.read_bytes()


@pytest.mark.parametrize(
    "wrong", ["train.early_stopping_patience=2", "measure.target_score=0.8", "+sweep.stop_share=0.5"]
)
def test_what_goes_by_development_rows_is_refused_where_there_are_none(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"with train.all_rows=true there are no development rows"):
        build(compose("config", ["train.all_rows=true", wrong.removeprefix("+")]))


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(tiny_experiment: list[str], tmp_path: Path) -> None:
    """The record advises a smaller learning rate and has the costs so far."""
    result = carry_out(tmp_path / "run", *tiny_experiment, "method=full", "train.learning_rate=1e30")
    assert result.status == Status.diverged
    assert "smaller learning rate" in str(result.error)
    assert (tmp_path / "run/steps.jsonl").exists()
    assert result.cost["train_seconds"] > 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_recorded_with_advice(
    error: Exception, tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the three errors tells of it."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Trainer, "_step", fail)
    result = carry_out(tmp_path / "run", *tiny_experiment)
    assert result.status == Status.out_of_memory
    assert "smaller train.batch_size" in str(result.error)


def test_what_a_gpu_says_of_its_allocator_is_cut() -> None:
    """One sentence of what was wanted and what there is, and what needs less."""
    said = (
        "CUDA out of memory. Tried to allocate 11.58 GiB. GPU 0 has a total capacity of 139.80 GiB of which 10.98 GiB "
        "is free. Including non-PyTorch memory, this process has 128.81 GiB memory in use. Of the allocated memory ..."
    )
    status, sentence = judge(torch.OutOfMemoryError(said))
    assert status is Status.out_of_memory
    assert "10.98 GiB is free; a smaller train.batch_size" in sentence
    assert "non-PyTorch" not in sentence


def test_memory_that_no_machine_has_is_out_of_memory(tiny_experiment: list[str], tmp_path: Path) -> None:
    """The allocator's own error, not one of ours: a batch of 10^15 numbers."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert judge(caught.value)[0] is Status.out_of_memory


def interrupt_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[Trainer, list, int], torch.Tensor]:
    """Press Ctrl-C when a step begins; returns the undisturbed step, to be put back."""
    step = Trainer._step

    def interrupted_step(trainer: Trainer, batches: list, weight: int) -> torch.Tensor:
        if trainer.state.step == number:
            signal.raise_signal(signal.SIGINT)
        return step(trainer, batches, weight)

    monkeypatch.setattr(Trainer, "_step", interrupted_step)
    return step


@pytest.mark.slow
def test_an_interrupted_run_is_recorded_and_goes_on_to_the_same_scores(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is gone afterwards, and the log has each step once."""
    whole = carry_out(tmp_path / "whole", *tiny_experiment)
    step = interrupt_at(14, monkeypatch)
    cut = carry_out(tmp_path / "cut", *tiny_experiment)
    assert cut.status == Status.interrupted
    assert list(Path("runs/checkpoints").glob("*/checkpoint.pt"))
    monkeypatch.setattr(Trainer, "_step", step)
    resumed = carry_out(tmp_path / "resumed", *tiny_experiment, "train.resume=true")
    assert scores_of(resumed) == scores_of(whole)
    assert not list(Path("runs/checkpoints").glob("*/*"))
    steps = [json.loads(line)["step"] for line in (tmp_path / "resumed/steps.jsonl").read_text().splitlines()]
    assert steps == [json.loads(line)["step"] for line in (tmp_path / "whole/steps.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_not_taken_and_the_difference_named(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run starts from the beginning, and the other run's checkpoint stays."""
    anew = carry_out(tmp_path / "first", *tiny_experiment, "train.max_steps=6", "train.resume=true")
    assert "runs/checkpoints holds no checkpoint that says which run it is of; training starts anew" in caplog.text
    step = interrupt_at(3, monkeypatch)
    assert carry_out(tmp_path / "cut", *tiny_experiment, "train.max_steps=6", "seed=5").status == Status.interrupted
    monkeypatch.setattr(Trainer, "_step", step)
    caplog.clear()
    other = carry_out(tmp_path / "other", *tiny_experiment, "train.max_steps=6", "train.resume=true")
    assert scores_of(other) == scores_of(anew)
    assert "differs in data_seed (5 there, 0 here), seed (5 there, 0 here); training starts anew" in caplog.text
    assert list(Path("runs/checkpoints").glob("*/run.json")), "the other run's stays"


@pytest.mark.slow
def test_a_record_of_another_run_is_not_overwritten(tiny_experiment: list[str], tmp_path: Path) -> None:
    """Without an adapter beside it too; the same run may be done again."""
    options = [*tiny_experiment, "train.max_steps=1", "train.keep_adapter=false"]
    carry_out(tmp_path / "run", *options)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(
        ConfigError, match=r"hydra\.run\.dir=.*result\.json there is of another run and is not overwritt"
    ):
        carry_out(tmp_path / "run", *options, "seed=1")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    carry_out(tmp_path / "run", *options)


@pytest.mark.slow
def test_a_checkpoint_that_was_cut_short_is_no_obstacle(
    tiny_experiment: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a machine that lost its power may leave one: the run says so and starts anew."""
    options = [*tiny_experiment, "train.epochs=1"]
    inputs = runner.prepare(compose("config", [*options, "train.resume=true"]))
    checkpoint = Path("runs/checkpoints", inputs.identity, "checkpoint.pt")
    checkpoint.parent.mkdir(parents=True)
    whole = carry_out(tmp_path / "whole", *options)
    for content in (b"", b"PK\x03\x04 the beginning of an archive"):
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_bytes(content)
        resumed = carry_out(tmp_path / "resumed", *options, "train.resume=true")
        assert scores_of(resumed) == scores_of(whole)
        assert "is damaged" in caplog.text
        assert not checkpoint.parent.exists()


@pytest.mark.slow
def test_a_store_that_fails_after_the_run_loses_nothing(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The record stays, and the log says how to send it, without passwords."""
    inputs = runner.prepare(compose("config", [*tiny_experiment, "tracking=local"]))
    result = runner.run(inputs, tmp_path / "run")

    def fail(*_: object) -> None:
        raise ConnectionError("no answer from https://me:secret@host")

    monkeypatch.setattr(tracking, "send", fail)
    with caplog.at_level(logging.ERROR):
        assert not job._track(result, tmp_path / "run", inputs.experiment)
    assert f"harness-report --sync {tmp_path / 'run'}" in caplog.text
    assert "secret" not in caplog.text
    assert (tmp_path / "run/result.json").exists()


def test_a_disk_that_is_full_while_saving_fails_the_run_with_a_sentence(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are recorded all the same."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(SelectedWeights, "save", fail)
    result = carry_out(tmp_path / "run", *tiny_experiment, "method=head")
    assert result.status == Status.failed
    assert "No space left on device" in str(result.error)
    assert result.scores["validation"] is not None


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from harness.config.build import build
from harness.config.compose import compose
from harness.run import prepare, run

inputs = prepare(compose("config", sys.argv[3:]))
# No file may grow beyond this: what writing to a full disk looks like to a process.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
result = run(inputs, Path(sys.argv[1]))
print(result.status, result.error, sep="|")
"""


@pytest.mark.parametrize(
    ("space", "sentence", "recorded"), [(20_000, "File too large", True), (1_000, "can't be written", False)]
)
@pytest.mark.slow
def test_a_process_that_can_write_no_more_fails_with_a_sentence(
    space: int, sentence: str, recorded: bool, tiny_experiment: list[str], tmp_path: Path
) -> None:
    """The adapter does not fit, or not even the record does: no trace, and no half-written result.json."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "run"), str(space), *tiny_experiment, "method=full"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    status, error = ended.stdout.strip().splitlines()[-1].split("|")
    assert status == "failed"
    assert sentence in error
    assert (tmp_path / "run/result.json").exists() == recorded
    assert not list((tmp_path / "run").glob("*.partial"))


def test_user_mistakes_in_the_data_are_raised_and_not_recorded(tiny_experiment: list[str], tmp_path: Path) -> None:
    """Nothing is written for a column that is not there."""
    with pytest.raises(ConfigError, match="no column 'text'"):
        carry_out(tmp_path / "run", *tiny_experiment, "task.text=[text]")
    assert not (tmp_path / "run/result.json").exists()


def test_a_gpu_that_is_not_there_is_refused(tiny_experiment: list[str], tmp_path: Path) -> None:
    """train.device=cuda without one is a sentence."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"train\.device=cuda: torch sees no GPU"):
        carry_out(tmp_path / "run", *tiny_experiment, "train.device=cuda")


@pytest.mark.parametrize("method", ENCODER_METHODS)
@pytest.mark.slow
def test_a_run_in_bfloat16_measures_everything(method: str, tiny_experiment: list[str], tmp_path: Path) -> None:
    """Frozen weights of 16 bits and what is trained in 32 go together in every pass, latency's and merging too."""
    overrides = (f"method={method}", "train.precision=bfloat16", "train.device=cpu", "task.max_train_rows=40")
    result = carry_out(tmp_path / "run", *tiny_experiment, *overrides, "train.epochs=1")
    assert (result.status, result.error) == (Status.finished, None)
    assert result.provenance["dtype"] == "bfloat16"
    assert result.cost["latency_ms"]["attached"]["1"] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("method", ENCODER_METHODS)
def test_a_run_on_a_gpu_finishes_in_bfloat16(method: str, tiny_experiment: list[str], tmp_path: Path) -> None:
    """With every method, and with the plainest ones better than the majority."""
    result = carry_out(tmp_path / "run", *tiny_experiment, f"method={method}", "train.device=cuda")
    assert (result.status, result.error) == (Status.finished, None)
    assert result.provenance["dtype"] == "bfloat16"
    assert result.cost["cuda_allocated_bytes"] >= result.cost["train_peak_bytes"]
    if method in METHODS:
        assert result.scores["validation"]["accuracy"] > result.scores["majority"]["accuracy"]
