"""Tokenizers that give the ids which their files say, with a pad token and segments that the model has rows for."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILES = ("spm.model", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
NO_FILE = "the folder has no file of a tokenizer; put the model's tokenizer.json beside its weights"
# Digits, capitals, accents, spaces, scripts, punctuation: what tokenizers of one kind treat in different ways.
PROBE = (
    "It cost 345 in 2023, didn't it?  \u00dcber-\u00c9COLE\tnai\u0308ve\nnew line_x CamelCase \u5317\u4eac "
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0645\u0650\u0635\u0631 \U0001f44d e.g. 1,000.5% (a+b)/c <b>"
)


def load(folder: Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a folder as its tokenizer.json describes it, whatever class its configuration names.

    Raises:
        ConfigError: The folder has no usable tokenizer, or it has no token to pad with.
    """
    from transformers import AutoTokenizer

    try:
        named = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise ConfigError(f"model.path={folder}: the tokenizer can't be loaded: {_reason(folder, error)}") from error
    tokenizer = _as_the_file_says(folder, named)
    # transformers makes one of nothing, to which every text is unknown.
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise ConfigError(f"model.path={folder}: {NO_FILE}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ConfigError(f"model.path={folder}: the tokenizer has no pad, end-of-sequence or unknown token to use")
    return tokenizer


def _reason(folder: Path, error: Exception) -> str:
    import importlib.util

    pieces = [name for name in SENTENCEPIECE_FILES if (folder / name).is_file()]
    if pieces and importlib.util.find_spec("sentencepiece") is None:
        return f"{pieces[0]} needs a package: pip install sentencepiece"
    if not pieces and not (folder / TOKENIZER_FILE).is_file() and not list(folder.glob("vocab*")):
        return NO_FILE
    return str(error).strip().split("\n")[0]


def _as_the_file_says(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """The tokenizer, or one made of tokenizer.json alone where the class named beside it changes the ids."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    path = folder / TOKENIZER_FILE
    if not path.is_file():
        return tokenizer
    file = Tokenizer.from_file(str(path))
    file.no_truncation()
    file.no_padding()
    expected = file.encode(PROBE, add_special_tokens=False).ids
    if tokenizer(PROBE, add_special_tokens=False)["input_ids"] == expected:
        return tokenizer
    other = PreTrainedTokenizerFast.from_pretrained(folder)
    log.warning(
        "%s, which the tokenizer's configuration names, gives other tokens than tokenizer.json; that file is followed",
        type(tokenizer).__name__,
    )
    return other


def fit(folder: Path, tokenizer: "PreTrainedTokenizerBase", config: "PretrainedConfig") -> None:
    """Keep to the rows of a model's tables: another token pads, and segments are left out, where they lie beyond.

    Raises:
        ConfigError: Other tokens lie beyond the model's table.
    """
    vocabulary = tokenizer.get_vocab()
    beyond = sorted(token for token, number in vocabulary.items() if number >= config.vocab_size)
    if beyond == [tokenizer.pad_token]:
        others = (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token)
        within = next((token for token in others if token and vocabulary.get(token, 0) < config.vocab_size), None)
        if within is not None:
            log.warning("the model has no row for the pad token %s; %s pads in its place", beyond[0], within)
            tokenizer.pad_token = within
            beyond = []
    if beyond:
        raise ConfigError(
            f"model.path={folder}: the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}; "
            f"they are not of one model, or {', '.join(beyond[:3])} was added and the weights were not resized"
        )
    segments = getattr(config, "type_vocab_size", None)
    if segments and "token_type_ids" in tokenizer.model_input_names:
        given: Any = tokenizer("a", "b").get("token_type_ids", [0])
        if max(given) >= segments:
            log.warning("the model has %d segment(s), and pairs have two; they are left out", segments)
            tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
