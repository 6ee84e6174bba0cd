"""The precision that auto took: in a run's identity and its record, and the same for all points of a sweep."""

from pathlib import Path

import pytest

from harness import run as runner
from harness.__main__ import main
from harness.config.build import resolved
from harness.config.compose import compose
from harness.measure import speed
from harness.models.cpu_precision import VARIABLE
from harness.run import Identities, identify
from harness.tracking.entries import run_params, run_provenance
from harness.tracking.record import RunRecord

MICRO = "task=micro/sentiment"


def test_identity_holds_what_auto_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that moves to another machine does not mix two precisions; a name and auto that took it are one run."""
    named = {name: identify(compose("config", [MICRO, f"train.precision={name}"])) for name in ("float32", "bfloat16")}
    assert len(set(named.values())) == 2
    for name, expected in named.items():
        monkeypatch.setenv(VARIABLE, name)
        assert identify(compose("config", [MICRO])) == expected
        assert Identities()(resolved(compose("config", [MICRO]))) == expected


@pytest.mark.parametrize(
    ("overrides", "taken", "why"),
    [
        (["train.device=cpu"], "bfloat16", "HARNESS_CPU_PRECISION fixes it"),
        (["train.device=cuda"], "bfloat16", "a GPU has it"),
        (["method=qlora"], "float32", "nf4 weights are unpacked into it on a CPU"),
        (["train.precision=float32"], "float32", None),
    ],
)
def test_a_sweep_settles_the_precision_of_its_points(
    overrides: list[str], taken: str, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By where they compute and how their backbone is stored, and says why it took what nobody named."""
    monkeypatch.setenv(VARIABLE, "bfloat16")
    identities = Identities(lambda asked: "cpu" if asked == "auto" else asked)
    plain = resolved(compose("config", [MICRO, *overrides]))
    settled, reason = identities.settle(plain)
    assert (settled["train"]["precision"], reason) == (taken, why)
    assert identities(plain) == identities(settled)


def test_the_record_says_what_was_taken_and_why(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its configuration, so that reports keep two apart, and in its making; a name needs no reason."""
    records = {}
    for precision in ("auto", "float32"):
        options = [*tiny_experiment, "train.max_steps=2", "measure.costs=false", f"train.precision={precision}"]
        records[precision] = runner.run(runner.prepare(compose("config", options)), tmp_path / precision)
    taken, named = records["auto"], records["float32"]
    assert taken.identity == named.identity
    assert run_params(taken.config)["train.precision"] == run_params(named.config)["train.precision"] == "float32"
    assert run_provenance(taken)["provenance.precision"] == "float32: HARNESS_CPU_PRECISION fixes it"
    assert "provenance.precision" not in run_provenance(named)


def test_the_ceiling_is_asked_for_at_several_moments_and_no_step_is_above_it(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the precision of the run; where products were slowed more than steps, the steps themselves are the ceiling."""
    asked = []
    monkeypatch.setattr(speed, "flops_ceiling", lambda device, dtype: asked.append(str(dtype)) or 1.0)
    options = [*tiny_experiment, "train.max_steps=3", "forgetting.text=null", "measure.predict=false"]
    record = runner.run(runner.prepare(compose("config", options)), tmp_path / "run")
    assert record.cost["flops_ceiling_share"] == 1
    assert asked == ["torch.float32"] * 3
    assert record.provenance["flops_ceiling"] == 1.0


@pytest.mark.slow
def test_points_compute_in_what_their_sweep_took(
    tiny_experiment: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What their worker would take does not matter, as on another machine, and the records have the sweep's reason."""
    monkeypatch.setenv(VARIABLE, "bfloat16")
    elsewhere = f"+hydra.job.env_set.{VARIABLE}=float32"
    options = [*tiny_experiment, "train.max_steps=2", "measure.costs=false", "forgetting.text=null", elsewhere]
    options += ["seed=1,2", f"hydra.sweep.dir={tmp_path}/points", "hydra.launcher.workers=1"]
    monkeypatch.setattr("sys.argv", ["harness", "-m", *options])
    main()
    found = [RunRecord.read(path.parent) for path in sorted((tmp_path / "points").glob("*/result.json"))]
    assert len(found) == 2
    for record in found:
        assert record.config["train"]["precision"] == record.provenance["dtype"] == "bfloat16"
        told = record.provenance["precision"]
        assert (told["taken"], told["why"]) == ("bfloat16", "HARNESS_CPU_PRECISION fixes it")
