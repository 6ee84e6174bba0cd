"""Points resolved together come to the same as Hydra composing each, and what can't be distinguished is left to it."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from harness.__main__ import register_plugins
from harness.config.compose import without_hydra
from harness.config.errors import ConfigError
from harness.config.sources import conf_root
from harness.run import Identities, identify
from harness.sweep.resolve import Inseparable, Resolution

MICRO = "task=micro/sentiment"


class Composer:
    """Hydra's own way, and ours beside it."""

    def __init__(self, configurations: Path, settings: list[str]) -> None:
        self.loader = GlobalHydra.instance().config_loader()
        self.master = self.loader.load_configuration("config", settings, RunMode.MULTIRUN)
        self.resolution = Resolution(self.loader, self.master)

    def compose(self, overrides: list[str]) -> DictConfig:
        return without_hydra(self.loader.load_sweep_config(self.master, overrides))

    def plain(self, overrides: list[str]) -> Any:
        config = self.compose(overrides)
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True, enum_to_str=True)


@pytest.fixture
def composer() -> Iterator[Composer]:
    register_plugins()
    folder = conf_root() / "conf"
    with initialize_config_dir(str(folder), version_base="1.3"):
        yield Composer(folder, [])


POINTS = [
    [f"method={method}", f"task={task}", f"seed={seed}", *more]
    for method, task, seed in product(("lora", "full", "vera"), ("micro/sentiment", "glue/rte"), (0, 1))
    for more in (
        [],
        ["method.learning_rate=0.5"],
        ["train.learning_rate=0.25", "train.max_steps=7"],
        ["data_seed=9", "train.max_steps=null", "train.scheduler=cosine"],
        ["task.data_dir='a b'", "sweep.name=x", "+task.further=[1,2]"],
        ["seed=true"],
        ["model.name=other", "task.labels=[a,b]"],
        ["train.learning_rate=${method.learning_rate}", "~train.resume"],
        ["train={epochs: 9}", "tracking=none"],
    )
]


@pytest.mark.slow
def test_points_resolve_as_hydra_composes_them(composer: Composer) -> None:
    """In any order, choices, values, references and types come out the same."""
    separable = 0
    for overrides in [*POINTS[::2], *POINTS[::-7]]:
        try:
            ours = composer.resolution.plain(overrides)
        except Inseparable:
            continue
        separable += 1
        assert repr(sorted(ours.items())) == repr(sorted(composer.plain(overrides).items())), overrides
    assert separable > len(POINTS) / 2


@pytest.mark.slow
def test_identities_are_those_of_the_composed_points(composer: Composer) -> None:
    """What is remembered between points changes no identity, and different points have different ones."""
    identities = Identities()
    wanted = [
        [MICRO, f"method={method}", f"seed={seed}", f"train.learning_rate={rate}", *more]
        for method in ("lora", "head")
        for seed in (0, 1)
        for rate in ("0.1", "1", "1.0")
        for more in ([], ["sweep.budget=5000"] if method == "lora" else ["data_seed=4"])
    ]
    found = [identities(composer.resolution.plain(overrides)) for overrides in wanted]
    assert found[::3] == [identify(composer.compose(overrides)) for overrides in wanted[::3]]
    # A learning rate of 1 is one of 1.0; nothing else is twice the same.
    assert len(set(found)) == len(wanted) * 2 / 3


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["seed=1", "seed=2"], Inseparable),  # the last one wins
        (["train.epochs=1", "train={epochs: 2}"], Inseparable),  # their order matters
        (["seed=${nowhere}"], HydraException),
        (["method=loraa"], HydraException),
        (["train.learnig_rate=1"], Inseparable),
        (["seed=1,2"], HydraException),
    ],
)
def test_what_is_unusual_or_wrong_is_left_to_hydra(composer: Composer, overrides: list[str], error: type) -> None:
    """The quick way refuses and works on for the next point."""
    with pytest.raises((error, Inseparable)):
        composer.resolution.plain(overrides)
    assert composer.resolution.plain(["seed=3"])["data_seed"] == 3


@pytest.mark.parametrize(
    "text", ["{a: '${hydra:job.num}'}", "{a: '${now:%Y}'}", "{a: '${.b}', b: 1}", "{a: '${method.${b}}'}"]
)
def test_a_configuration_that_depends_on_more_than_its_text_is_left_to_hydra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """The number of a job, the time, and references that no reader of the text can follow."""
    (tmp_path / "config.yaml").write_text(f"b: name\nmethod: {{name: x}}\nextra: {text}\nseed: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"), pytest.raises(Inseparable):
        Composer(tmp_path, []).resolution.plain(["seed=3"])


def test_a_changed_file_changes_the_identity(
    composer: Composer, tiny_experiment: list[str], tiny_model: Any, tmp_path: Path
) -> None:
    """A row of the data, a weight of the model and a value in a YAML file each make another point."""
    import shutil

    model = shutil.copytree(tiny_model("bert"), tmp_path / "model")
    overrides = [f"model.path={model}", *(told for told in tiny_experiment if not told.startswith("model."))]
    before = Identities()(composer.resolution.plain(overrides))
    assert Identities()(composer.resolution.plain(overrides)) == before

    def touched(path: Path) -> str:
        path.write_text(path.read_text() + "\n")
        return Identities()(composer.resolution.plain(overrides))

    seen = {before, touched(tmp_path / "data/train.jsonl"), touched(model / "config.json")}
    assert len(seen) == 3


def test_a_mistake_is_the_same_sentence(composer: Composer) -> None:
    """A wrong value is told as Hydra's way tells it."""
    with pytest.raises(ConfigError, match=r"train\.batch_size=-1: a positive number is needed"):
        Identities()(composer.resolution.plain(["train.batch_size=-1"]))
