"""A configuration is checked before anything is loaded, and every mistake is one sentence."""

import pytest
from omegaconf import OmegaConf

from harness.config.build import build, component
from harness.config.compose import compose
from harness.config.errors import ConfigError, near_misses
from harness.config.identity import identity
from harness.config.sources import conf_root

MISTAKES = {
    "train.learning_rate=fast": r"train\.learning_rate: Value 'fast'",
    "train.learning_rate=-1": r"train\.learning_rate=-1\.0: a positive number",
    "train.learning_rate=nan": r"train\.learning_rate=nan: a positive number",
    "train.batch_size=0": r"train\.batch_size=0: a positive number",
    "train.batch_size=2.5": r"train\.batch_size: Value '2\.5'",
    "train.warmup_share=2": r"train\.warmup_share=2\.0: a share from 0 to 1",
    "train.scheduler=stepwise": r"train\.scheduler: Invalid value 'stepwise', expected one of \[linear, cosine\]",
    "model.quantization=int3": r"model\.quantization: Invalid value 'int3'",
    "seed=-1": r"seed=-1: a whole number from 0",
    "seed=1.5": r"seed=1\.5: a whole number from 0",
    "method.rank=four": r"method\.rank: Value 'four'",
    "method.rank=0": r"method\.rank=0: a rank of 1 or more",
    "method.dropout=1": r"method\.dropout=1\.0: a share from 0 to below 1",
    "method.target_modules=[]": r"method\.target_modules=\[\]: name a role or modules",
    "+method.rnak=4": r"method\.rnak: no such key; did you mean rank\?",
    "task.primary_metric=f1": r"task\.primary_metric=f1: not among accuracy",
    "task.metrics=[acuracy]": r"task\.metrics=acuracy: no such metric; did you mean accuracy\?",
    "task.max_train_rows=0": r"task\.max_train_rows=0: a positive number",
    "task.development_share=1": r"task\.development_share=1\.0: a share between 0 and 1",
    "method._target_=os.system": r"method\._target_=os\.system: only classes of harness and peft",
    "method._target_=harness.methods.lora.Lroa": r"no such class; did you mean Lora\?",
    "method._target_=harness.nothing.Lora": r"there is no module harness\.nothing",
    "+trian.epochs=1": r"trian: no such key; did you mean train or tracking\?",
}


@pytest.mark.parametrize(("override", "sentence"), MISTAKES.items())
def test_a_mistake_is_named_with_its_key_and_what_is_allowed(override: str, sentence: str) -> None:
    """Every kind of mistake in an override is refused with its own sentence."""
    with pytest.raises(ConfigError, match=sentence):
        build(compose("config", [override]))


def test_all_mistakes_of_a_configuration_are_told_at_once() -> None:
    """Three wrong values give three lines in one error."""
    with pytest.raises(ConfigError) as caught:
        build(compose("config", ["data_seed=-1", "method.rank=0", "train.epochs=soon"]))
    assert len(str(caught.value).splitlines()) == 3


def test_the_default_configuration_is_lora_on_sentiment() -> None:
    """The learning rate of the training is that of the method."""
    experiment = build(compose("config", []))
    assert (experiment.method.name, experiment.task.name) == ("lora", "micro/sentiment")
    assert experiment.train.learning_rate == experiment.method.learning_rate


def test_near_misses_come_before_the_valid_names() -> None:
    """A misspelled name is answered with its correction, then with all names."""
    assert near_misses("loraa", ["full", "lora"]) == "did you mean lora? Valid: full, lora"


def test_a_component_must_name_its_class() -> None:
    """A bare name in place of a mapping with `_target_` is refused with its key."""
    with pytest.raises(ConfigError, match="method="):
        component("lora", "method")


def same(*overrides: str) -> str:
    return identity(build(compose("config", list(overrides))), {"model": "model", "data": "data"})


@pytest.mark.slow
def test_identity_changes_with_what_decides_the_result() -> None:
    """Seeds, hyper-parameters and the weights' revision are part of it."""
    base = same()
    for override in ("seed=1", "data_seed=1", "method.rank=4", "train.learning_rate=0.5", "task.max_length=32"):
        assert same(override) != base, override
    assert identity(build(compose("config", [])), {"model": "other model", "data": "data"}) != base


def test_identity_ignores_where_things_lie_and_how_runs_are_stored() -> None:
    """Paths, stores, names and devices are no part of it."""
    base = same()
    for override in ("tracking=none", "model.path=/elsewhere", "train.resume=true", "sweep.name=x", "train.device=cpu"):
        assert same(override) == base, override


def test_identity_is_the_same_for_one_number_written_two_ways() -> None:
    """2 and 2.0 epochs are one experiment."""
    assert same("train.epochs=2") == same("train.epochs=2.0")


@pytest.mark.slow
def test_every_sweep_is_named_after_its_file_and_composes() -> None:
    """tests/sweep/test_sweeps.py builds every point: some values are given by the sweep's parameters alone."""
    files = sorted((conf_root() / "sweeps").glob("*.yaml"))
    assert files
    for path in files:
        assert OmegaConf.load(path).get("sweep", {}).get("name") in (None, path.stem)
        assert compose(path.stem, [])
