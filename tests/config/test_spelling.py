"""Choices are found however people write them."""

import pytest

from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.model_paths import with_paths
from harness.config.spelling import spelled


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("method=LoRA", "method=lora"),
        ("method=Diff-Pruning,FULL", "method=diff_pruning,full"),
        ("task=GLUE/SST-2", "task=glue/sst2"),
        ("model=MiniLM", "model=minilm"),
        ("method=lora", "method=lora"),
        ("method=loraa", "method=loraa"),
        ("method=[LoRA]", "method=[LoRA]"),
        ("method.rank=8", "method.rank=8"),
        ("seed=0,1", "seed=0,1"),
    ],
)
def test_case_hyphens_and_blanks_do_not_matter(given: str, meant: str) -> None:
    """Where exactly one choice has these letters; all else stays as it was written."""
    assert spelled(given) == meant


def test_a_folder_of_that_spelling_stays_a_folder(tmp_path, monkeypatch) -> None:
    """A backbone beside the command is meant by its own name."""
    (tmp_path / "MiniLM").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "model.path='MiniLM'" in with_paths(["model=MiniLM"])


def test_a_configuration_is_composed_so(tmp_path) -> None:
    """And a name that there is none of is still a mistake with near misses."""
    assert compose("config", ["method=LoRA"]).method.name == "lora"
    with pytest.raises(ConfigError, match="did you mean lora"):
        compose("config", ["method=LoRAA"])
