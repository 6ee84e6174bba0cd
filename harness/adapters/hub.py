"""Repositories of the Hugging Face Hub: whether one can be written to, and pushing a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.config.errors import ConfigError


def check(name: str) -> None:
    """Make sure that a repository can be pushed, before anything is computed.

    Raises:
        ConfigError: The name is none, there is no token or it is refused, or the Hub can't be reached.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"hub={name}: this is no name of a repository; write ORG/NAME") from error
    if name.count("/") != 1:
        raise ConfigError(f"hub={name}: write ORG/NAME, whose repository it is and what it is called")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"hub={name}: HF_HUB_OFFLINE is set, and a push needs the Hub; unset it, or leave hub= out")
    if get_token() is None:
        raise ConfigError(
            f"hub={name}: a push needs a token that may write; set HF_TOKEN, or log in with hf auth login"
        )
    with _reached(name, ""):
        HfApi().whoami()


def push(name: str, folder: Path) -> str:
    """Push a folder as a private repository, and say where it is.

    Raises:
        ConfigError: The Hub refuses it, or can't be reached; the folder is whole and can be pushed later.
    """
    from huggingface_hub import HfApi

    with _reached(name, f"; {folder} is whole: hf upload {name} {folder}"):
        HfApi().create_repo(name, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload {folder.name} by peft-harness")
    return f"{name} is on the Hub; a new repository is private until you open it."


@contextmanager
def _reached(name: str, advice: str) -> Iterator[None]:
    """Tell of what the Hub says no to, or of its absence, in a sentence."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else "no answer"
        raise ConfigError(
            f"hub={name}: the Hub refused it ({code}); check the name and what the token may{advice}"
        ) from error
    except Exception as error:
        # httpx's connection errors share no base class with OSError.
        if isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise ConfigError(f"hub={name}: the Hugging Face Hub can't be reached{advice}") from error
        raise
