"""Every command parses its arguments and ends in one way: by an exit status, and by a sentence for a mistake."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.config import command
from harness.config.command import carry_out, key_values, options, writing
from harness.config.errors import ConfigError


@dataclass
class Wishes:
    """Options of a command."""

    count: int = 3
    share: float = 0.5
    loud: bool = False
    name: str | None = None


def test_arguments_are_keys_with_values_and_the_last_of_a_key_counts() -> None:
    """A value may hold equals signs of its own."""
    assert key_values(["a=1", "b=x=y", "a=2"], ["a", "b"]) == {"a": "2", "b": "x=y"}


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("cuont=1", r"cuont=1: there is no key cuont; did you mean count\? Valid: count, name"),
        ("count", "count: a value is needed, write count=VALUE"),
        ("count=", "count=: a value is needed, write count=VALUE"),
        ("folder", "folder: there is no key of this name, and arguments are key=value; Valid: count, name"),
    ],
)
def test_a_wrong_argument_is_named_with_what_there_is(argument: str, sentence: str) -> None:
    """Misspelled keys, keys without values and values without keys."""
    with pytest.raises(ConfigError, match=rf"^{sentence}$"):
        key_values([argument], ["count", "name"])


def test_values_have_the_types_that_are_declared() -> None:
    """What is not given stays as declared; another type is named with what is allowed."""
    assert options(Wishes, {"count": "5", "loud": "true", "name": "7"}) == Wishes(5, 0.5, True, "7")
    for key, kind in (("count", "a whole number"), ("share", "a number"), ("loud", "true or false")):
        with pytest.raises(ConfigError, match=f"^{key}=many: {kind} is allowed$"):
            options(Wishes, {key: "many"})


def test_a_command_ends_with_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing said is 0, help is 0 and does nothing else, and a status is what the command says."""
    assert carry_out(lambda arguments: None, "usage", []) == 0
    assert carry_out(len, "usage", ["a=1", "b=2"]) == 2
    assert carry_out(lambda arguments: pytest.fail("it ran"), "usage", ["a=1", "--help"]) == 0
    assert capsys.readouterr().out == "usage\n"


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (ConfigError("count=0: too few"), 2, "tool: count=0: too few\n"),
        (ConnectionError("the server is away"), 2, "tool: the server is away\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_mistakes_and_interruptions_end_with_one_sentence(
    error: BaseException, status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no stack trace."""

    def fail(arguments: list[str]) -> None:
        raise error

    assert carry_out(fail, "usage", [], name="tool") == status
    assert capsys.readouterr().err == sentence


def test_a_stack_trace_is_there_for_who_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With HYDRA_FULL_ERROR=1 a mistake is raised as it is, and so is always what is no mistake of the user's."""

    def fail(arguments: list[str]) -> None:
        raise ConfigError("count=0: too few")

    with pytest.raises(ZeroDivisionError):
        carry_out(lambda arguments: 1 // 0, "usage", [])
    monkeypatch.setattr(command, "traces_wanted", True)
    with pytest.raises(ConfigError):
        carry_out(fail, "usage", [])


def test_a_file_that_can_not_be_written_is_told_by_its_key() -> None:
    """The sentence has the value, the file and the system's reason."""
    sentence = r"^out=somewhere: /proc/none can't be written \(.+\)$"
    with pytest.raises(ConfigError, match=sentence), writing("out", "somewhere"):
        Path("/proc/none").write_text("")


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_a_reader_that_has_read_enough_costs_no_trace(arguments: list[str]) -> None:
    """As in `harness-doctor | head -1`: whatever is printed after that goes nowhere."""
    program = (
        "import sys\nfrom harness.config.command import carry_out\n"
        "sys.exit(carry_out(lambda given: print('line\\n' * 100_000), 'usage', sys.argv[1:]))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    told = [sys.executable, "-c", program, *arguments]
    ended = subprocess.run(told, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, "")
