"""No point of a sweep writes where another point, or an earlier run, has its record."""

from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import open_dict
from toy_sweep import ToySweep

from harness.config.build import build, resolved
from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.sources import sweep_of
from harness.sweep import points
from harness.sweep.outcome import Outcome
from harness.sweep.points import Point, next_command
from harness.tracking.record import RESULT_FILE, RunRecord

POINTS = [["act=finish", f"seed={seed}"] for seed in range(3)]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToySweep:
    return ToySweep(tmp_path, monkeypatch)


def records(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob(RESULT_FILE))}


@pytest.mark.parametrize("subdir", ["out", "${method.name}", "${method.name}/x"])
def test_two_points_of_one_folder_are_refused_before_anything_runs(toy: ToySweep, subdir: str) -> None:
    """The sentence names both points and the key; nothing is written or sent."""
    with pytest.raises(
        ConfigError, match=r"hydra\.sweep\.subdir=.*: points 0 and 1 would both write .*each has its own folder"
    ):
        toy.launch(POINTS, f"hydra.sweep.subdir='{subdir}'")
    assert not records(toy.folder)
    assert not toy.sent


@pytest.mark.parametrize("subdir", ["seed_${seed}", "${method.name}/${seed}"])
def test_points_of_their_own_folders_run(toy: ToySweep, subdir: str) -> None:
    """Each leaves one record in a folder of its own."""
    outcomes = toy.launch(POINTS, f"hydra.sweep.subdir='{subdir}'", "sweep.name=one")
    assert [outcome["status"] for outcome in outcomes] == ["finished"] * 3
    assert len({outcome["run_dir"] for outcome in outcomes}) == 3
    assert len(records(toy.folder / "sweep")) == 3


@pytest.mark.slow
def test_records_of_another_sweep_in_the_same_folder_stay(toy: ToySweep) -> None:
    """Refused before anything runs; the same sweep may go on there."""

    def launch(seeds: range, name: str) -> None:
        toy.launch([[f"seed={seed}", "tracking.kind=none", f"sweep.name={name}"] for seed in seeds])

    launch(range(3), "one")
    before = records(toy.folder)
    for seeds, name in ((range(5, 7), "one"), (range(5, 7), "two"), (range(3), "two")):
        with pytest.raises(ConfigError, match=r"hydra\.sweep\.dir=.*result\.json there is of another run and is not"):
            launch(seeds, name)
        assert records(toy.folder) == before
    launch(range(3), "one")
    assert records(toy.folder).keys() == before.keys()


def test_a_record_that_came_meanwhile_stays(tmp_path: Path) -> None:
    """Its own record lies beside it, under a name of its own."""
    theirs = tmp_path / "sweep/1"

    theirs.mkdir(parents=True)
    RunRecord("1" * 32, "finished", None, "another", {"name": "two"}, {}).write(theirs)
    point = points.Point(1, [], theirs, identity="own")
    point.settle(Outcome("failed", "refused"))
    points.write_record(point)
    assert RunRecord.read(theirs).identity == "another"
    assert RunRecord.read(point.folder).identity == "own"
    assert point.folder.parent == theirs.parent


def test_the_record_of_a_point_that_could_not_write_its_own_has_each_value_of_its_type(tmp_path: Path) -> None:
    """As the run itself would have written it, so that reports take both for one configuration."""
    experiment = compose("config", ["method=lora", "train.epochs=2", "tracking=none"])
    point = points.Point(1, [], tmp_path / "typed", settings=resolved(experiment), identity="own")
    point.settle(Outcome("failed", "its worker died"))
    points.write_record(point)
    config = RunRecord.read(point.folder).config
    assert config == build(experiment).resolved
    assert (type(config["train"]["epochs"]), type(config["method"]["alpha"])) == (float, float)
    told = {**resolved(experiment), "seed": -1}
    wrong = points.Point(2, [], tmp_path / "wrong", settings=told, identity="other")
    wrong.settle(Outcome("failed", "no seed"))
    points.write_record(wrong)
    assert RunRecord.read(wrong.folder).config == told


def test_a_point_that_can_not_be_written_is_told_of_and_the_others_run(toy: ToySweep) -> None:
    """As on a full disk: here a file lies where the folder should be."""
    (toy.folder / "sweep").mkdir()
    (toy.folder / "sweep/1").write_text("in the way")
    outcomes = toy.launch(POINTS, "sweep.name=one", "hydra.launcher.workers=1")
    assert [outcome["status"] for outcome in outcomes] == ["finished", "failed", "finished"]
    assert "result.json can't be written" in outcomes[1]["error"]


def test_a_sweeps_folder_that_can_not_be_made_is_a_sentence(toy: ToySweep) -> None:
    """It has the key, the path and the system's reason."""
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.dir=/dev/null/x: the folder can't be made \(Not a directory"):
        toy.launch(POINTS, "hydra.sweep.dir=/dev/null/x")


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [
        ("ranks", "config", "runs/ranks/"),
        ("a b/../c", "config", "runs/a_b_.._c/"),
        ("..", "config", "runs/multirun/"),
        ("null", "config", "runs/multirun/"),
        ("null", "demo", "runs/demo/"),
    ],
)
def test_the_runs_of_a_named_sweep_lie_below_its_name(name, file, folder):
    """As one folder, whatever the name; without a name below that which its points are given."""
    composed = compose("config", [f"sweep.name='{name}'" if name != "null" else "sweep.name=null"], keep_hydra=True)
    with open_dict(composed):
        composed.hydra.job.config_name = file
    assert composed.hydra.sweep.dir.startswith(folder)
    assert name != "null" or folder == f"runs/{sweep_of(file)}/"


def test_a_sweep_ends_with_the_command_that_shows_it(tmp_path):
    """With the store's name for it, and the folder where no store has its runs; not after trials alone."""
    said = {"name": "two words", "stage": "run"}
    point = Point(0, [], tmp_path, settings={"sweep": said}, outcome=Outcome("finished", tracked=True))
    assert next_command([point], tmp_path) == "Next: harness-report sweep='two words'"
    point.outcome = Outcome("finished")
    assert next_command([point], tmp_path) == f"Next: harness-report store={tmp_path} sweep='two words'"
    assert next_command([replace(point, settings={"sweep": {**said, "stage": "tune"}})], tmp_path) == ""
    point.outcome = Outcome("failed")
    assert next_command([point], tmp_path) == ""
