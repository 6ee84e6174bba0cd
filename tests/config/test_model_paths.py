"""A model is chosen by the name of a file, or by where it is."""

from pathlib import Path

import pytest

from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.model_paths import with_paths
from harness.config.sources import register_resolvers


def test_a_folder_or_hub_name_becomes_a_path_and_a_name() -> None:
    """The name is the last part of the path, and no architecture is assumed."""
    Path("my encoder").mkdir()
    register_resolvers()
    for given, name in (("model='./my encoder'", "my encoder"), ("model=owner/some-model", "some-model")):
        model = compose("config", [given]).model
        assert (model.path, model.name, model.architecture) == (given.partition("=")[2].strip("'"), name, None)


def test_a_file_of_conf_and_other_keys_stay_as_they_are() -> None:
    """A folder called like a file of conf/model does not take its place."""
    Path("gpt2").mkdir()
    given = ["model=gpt2", "model.path=./x", "-m", "seed=0,1", "model=no_such_name"]
    assert with_paths(given) == given


def test_a_sweep_over_folders_names_each_and_takes_no_other_sort() -> None:
    """Folders and names of files can't be mixed in one list."""
    assert with_paths(["model=./a,./b"])[1:] == ["model.path='./a','./b'", "model.name='${base_name:${model.path}}'"]
    with pytest.raises(ConfigError, match=r"\./a is where a model is and minilm is a file of conf/model/"):
        with_paths(["model=./a,minilm"])


def test_a_dimension_may_be_given_that_no_yaml_lists() -> None:
    """Over one that is there, and for an architecture of one's own."""
    assert compose("config", ["model=gpt2", "model.architecture.n_layer=3"]).model.architecture.n_layer == 3
    given = ["model=architecture", "model.architecture.model_type=qwen2", "model.architecture.num_hidden_layers=5"]
    found = compose("config", given).model.architecture
    assert (found.model_type, found.num_hidden_layers) == ("qwen2", 5)
    own = compose("config", ["model=micro_encoder", "model.path=null", "model.architecture.model_type=bert"])
    assert own.model.architecture == {"model_type": "bert"}
