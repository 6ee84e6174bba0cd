"""Files of a backbone: found or downloaded, checked and fingerprinted."""

import hashlib
from functools import lru_cache
from pathlib import Path

from harness.config.errors import ConfigError
from harness.config.schema import ModelConfig
from harness.models import checkpoints

WEIGHTS = "*.safetensors"
PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
NEEDED_FILES = ["*.json", "*.txt", "*.model", "*.jinja", WEIGHTS]


def resolve(model: ModelConfig) -> Path:
    """The local folder of a backbone, downloaded from the Hub when it is a Hub name.

    Raises:
        ConfigError: There is no such folder or Hub name, no network, no weights, or only pickled ones.
    """
    if model.path is None:
        raise ConfigError(
            f"model={model.name}: this architecture has no weights here; set model.path to a folder or Hub name"
        )
    folder = Path(model.path).expanduser()
    looks_local = folder.is_absolute() or model.path.startswith((".", "~")) or model.path.count("/") > 1
    if not folder.is_dir():
        if folder.exists() or looks_local:
            raise ConfigError(f"model.path={model.path}: there is no such folder")
        folder = _download(model)
    checkpoints.check_folder(model, folder)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model.path={model.path}: the folder has no config.json; a transformers model is needed")
    if model.pretrained and not any(folder.glob(WEIGHTS)):
        pickled = sorted(path.name for pattern in PICKLED_WEIGHTS for path in folder.glob(pattern))
        if pickled:
            raise ConfigError(
                f"model.path={model.path}: {pickled[0]} is a pickle, which can run code when it is loaded; "
                "only safetensors are read: convert it with model.save_pretrained() where you trust it"
            )
        raise ConfigError(
            f"model.path={model.path}: the folder has no {WEIGHTS} weights; "
            "model.pretrained=false starts from random ones"
        )
    checkpoints.check_architecture(model, folder)
    return folder


def _download(model: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    assert model.path is not None
    patterns = NEEDED_FILES if model.pretrained else [p for p in NEEDED_FILES if p != WEIGHTS]
    try:
        return Path(snapshot_download(model.path, revision=model.revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise ConfigError(f"model.path={model.path}: neither a folder nor a Hub name") from error
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else "no answer"
        raise ConfigError(
            f"model.path={model.path}: the Hub refused it ({code}); check the name, model.revision and your HF_TOKEN"
        ) from error
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"model.path={model.path}: there is no such folder, and the Hugging Face Hub can't be reached; "
            "give model.path=FOLDER with a copy of the model, or try again with a network"
        ) from error
    except Exception as error:
        # httpx's connection errors share no base class with OSError.
        if type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise ConfigError(
                f"model.path={model.path}: there is no such folder, and the Hugging Face Hub can't be reached; "
                "give model.path=FOLDER with a copy of the model, or try again with a network"
            ) from error
        raise


def revision(model: ModelConfig, folder: Path, read: tuple[str, ...] = checkpoints.READ_FILES) -> str:
    """SHA-256 over the files that decide what the backbone computes; not over their place.

    Args:
        read: Patterns of the files that count beside the configuration and the weights.
    """
    patterns = [checkpoints.CONFIG_FILE, *read]
    if model.pretrained:
        patterns.append(WEIGHTS)
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return digest(files)


def digest(files: list[Path]) -> str:
    """SHA-256 over the names and contents of files."""
    whole = hashlib.sha256()
    for path in files:
        status = path.stat()
        whole.update(f"{path.name} {_file_digest(path, status.st_size, status.st_mtime_ns)}\n".encode())
    return whole.hexdigest()


@lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, modified: int) -> str:
    """Size and time are part of the cache's key, so that a changed file is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
