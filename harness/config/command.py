"""Command lines: how the commands parse their `key=value` arguments, and how they end."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from enum import Enum
from types import NoneType
from typing import Any, TypeVar, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.errors import ConfigError, near_misses, write_anywhere

# Exit statuses: done, done with failures or differences to tell of, a user's mistake, Ctrl-C.
DONE, FAILED, MISTAKEN, INTERRUPTED = 0, 1, 2, 130
# The variable that brings stack traces back; read once, for `harness` itself sets it so that Hydra raises.
FULL_ERROR = "HYDRA_FULL_ERROR"
traces_wanted = os.environ.get(FULL_ERROR) == "1"

Options = TypeVar("Options")

KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def carry_out(
    command: Callable[[list[str]], int | None], usage: str, arguments: Sequence[str] | None = None, name: str = ""
) -> int:
    """Carry out a command and return its exit status; a user's mistake ends it with one sentence.

    Args:
        command: Takes the arguments; returns the exit status, null for `DONE`.
        usage: What --help prints.
        arguments: Null for those of the command line.
        name: What the sentence begins with, where commands of several names share a screen.
    """
    write_anywhere()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if {"-h", "--help"} & set(arguments):
            print(usage, flush=True)
            return DONE
        status = command(arguments) or DONE
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Who reads, such as `head`, has read enough; Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ConfigError, ConnectionError) as error:
        if traces_wanted:
            raise
        return refuse(f"{name}: {error}" if name else str(error))
    except KeyboardInterrupt:
        return interrupted()


def refuse(sentence: str) -> int:
    """Tell of a user's mistake."""
    print(sentence, file=sys.stderr)
    return MISTAKEN


def interrupted(sentence: str = "interrupted") -> int:
    """Tell of an interruption."""
    print(sentence, file=sys.stderr)
    return INTERRUPTED


def key_value(argument: str, names: Sequence[str], shown: Callable[[str], str] = str) -> tuple[str, str]:
    """Take a `key=value` argument apart.

    Args:
        argument: As it was given.
        names: The keys there are.
        shown: Removes secrets from a text that is quoted.

    Raises:
        ConfigError: There is no such key, or no value.
    """
    key, equals, value = argument.partition("=")
    if key not in names:
        how = f"there is no key {shown(key)}" if equals else "there is no key of this name, and arguments are key=value"
        raise ConfigError(f"{shown(argument)}: {how}; {near_misses(key, names)}")
    if not value:
        raise ConfigError(f"{shown(argument)}: a value is needed, write {key}=VALUE")
    return key, value


def key_values(arguments: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Take `key=value` arguments apart; of a key that comes twice the last counts.

    Raises:
        ConfigError: An argument has no value, or a key that is none of `names`.
    """
    return dict(key_value(argument, names) for argument in arguments)


def options(schema: type[Options], given: dict[str, str]) -> Options:
    """Values of the types that a dataclass declares; what was not given is as declared there.

    Raises:
        ConfigError: A value is of another type.
    """
    try:
        checked: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
    except OmegaConfBaseException as error:
        key = str(error.full_key)
        declared = {field.name: field.type for field in fields(schema)}[key]  # type: ignore[arg-type]
        raise ConfigError(f"{key}={given[key]}: {_kind(declared)} is allowed") from error
    found: Options = checked
    return found


def _kind(declared: Any) -> str:
    """A type in words; of an optional one, what it is where it is given."""
    given = next((one for one in get_args(declared) if one is not NoneType), declared)
    if isinstance(given, type) and issubclass(given, Enum):
        return " or ".join(one.name for one in given)
    return KINDS.get(given, str(given))


@contextmanager
def writing(key: str, folder: object) -> Iterator[None]:
    """Files written within go where a key says; that they can't be written is a user's mistake.

    Raises:
        ConfigError: One can't be written.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{key}={folder}: {error.filename} can't be written ({error.strerror})") from error
