"""Speed of training, as ratios in one run on SST-2 with MiniLM.

    HARNESS_REAL_DATA=FOLDER python -m pytest -m slow -s tests/benchmarks

Two things are timed in turn, batch by batch, so that a machine that slows down slows both. The median over the pairs
is what is asserted. `-s` prints the figures.
"""

import copy
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch
from training_steps import bare_step, harness_step

from harness import models
from harness.config.build import build
from harness.config.compose import compose
from harness.config.schema import Precision
from harness.methods import Adapter, prepare_trained
from harness.models import cpu_precision
from harness.models.architectures import Backbone, architecture
from harness.models.products import computed_in
from harness.training.batches import Batch, bucketed, collator_for
from harness.training.trainer import Trainer

pytestmark = pytest.mark.slow

STEPS = 24
WARM_UP = 3
BATCH = 32


class Setting:
    """MiniLM with LoRA and 2,000 rows of SST-2, encoded."""

    def __init__(self, minilm: Path, real_data: Path) -> None:
        options = ["model=minilm", f"model.path={minilm}", "task=glue/sst2", f"task.data_dir={real_data}/glue/sst2"]
        self.experiment = build(compose("config", [*options, "task.max_train_rows=2000", "train.epochs=1"]))
        models.quiet_libraries()
        self.folder = minilm
        self.configuration = models.load_config(minilm, 2, False)
        tokenizer = models.load_tokenizer(minilm, architecture(self.configuration))
        self.backbone, self.adapter = self.attached(torch.float32)
        self.features = self.experiment.task.encode(self.experiment.task.load().splits["train"], tokenizer)
        self.collate = collator_for(self.backbone, tokenizer, torch.device("cpu"))

    def attached(self, dtype: torch.dtype) -> tuple[Backbone, Adapter]:
        """The backbone as a run stores it in a precision, and LoRA on it."""
        torch.manual_seed(0)
        backbone = models.load_model(self.folder, self.configuration, self.experiment, dtype)
        adapter = self.experiment.method.attach(backbone)
        prepare_trained(adapter)
        return backbone, adapter

    @property
    def lengths(self) -> list[int]:
        return [row["length"] for row in self.features]

    def shuffled(self) -> list[list[int]]:
        rows = list(range(len(self.features)))
        random.Random(0).shuffle(rows)
        return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]

    def our_step(self, autocast: torch.dtype | None = None) -> Callable[[Batch], None]:
        """A step of a run, its bookkeeping included, in float32 or in another precision."""
        adapter = self.adapter if autocast is None else self.attached(autocast)[1]
        trainer = Trainer(
            adapter,
            self.features,
            collate=self.collate,
            settings=self.experiment.train,
            data_seed=0,
            autocast=autocast,
            loss=lambda batch: self.experiment.task.loss(adapter, batch),
            score=lambda: pytest.fail("no evaluation is timed"),
            primary_metric="accuracy",
            identity="benchmark",
        )
        return harness_step(trainer)

    def plain_step(self) -> Callable[[Batch], None]:
        """The loop that anyone would write, on a copy of the model."""
        return bare_step(copy.deepcopy(self.adapter.model), self.experiment.train)


@pytest.fixture(scope="module")
def setting(minilm: Path) -> Setting:
    import os

    root = os.environ.get("HARNESS_REAL_DATA")
    if not root:
        pytest.skip("set HARNESS_REAL_DATA to a folder with glue/sst2/train.jsonl")
    return Setting(minilm, Path(root))


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def test_a_step_takes_at_most_a_twentieth_longer_than_a_plain_loops(setting: Setting) -> None:
    """Its masks of dropout come faster, and its bookkeeping is beside; two threads gain more, as torch draws on one."""
    assert against_a_plain_loop(setting, setting.our_step(), "step time") <= 1.05


def test_bfloat16_is_faster_than_a_plain_loop_in_float32_where_the_processor_is_made_for_it(setting: Setting) -> None:
    """What `train.precision=auto` takes there; twice the tokens of a float32 step are what is aimed at."""
    here = cpu_precision.processor()
    if here is None or not here.flags & cpu_precision.INSTRUCTIONS:
        pytest.skip("this processor has no instructions for bfloat16")
    ratio = against_a_plain_loop(setting, setting.our_step(torch.bfloat16), "step time in bfloat16")
    assert ratio < 1


def test_bfloat16_costs_half_of_a_step_more_than_float32_where_the_processor_is_not(setting: Setting) -> None:
    """Its products are computed in float32; a step with the processor's own is timed beside."""
    if computed_in("cpu", Precision.bfloat16) is Precision.bfloat16:
        pytest.skip("this processor has instructions for bfloat16")
    ours, own, plain = setting.our_step(torch.bfloat16), setting.our_step(torch.bfloat16), setting.our_step()
    timed: dict[str, list[float]] = {"ours": [], "own": [], "float32": []}
    for indices in bucketed(setting.lengths, BATCH, 0, 0)[: STEPS // 4 + WARM_UP]:
        batch = setting.collate(setting.features, indices)
        timed["float32"].append(seconds(lambda batch=batch: plain(batch)))
        with models.fast_products("cpu", Precision.bfloat16):
            timed["ours"].append(seconds(lambda batch=batch: ours(batch)))
        timed["own"].append(seconds(lambda batch=batch: own(batch)))
    ratio = {}
    for name in ("ours", "own"):
        pairs = zip(timed[name], timed["float32"], strict=True)
        ratio[name] = median([one / other for one, other in pairs][WARM_UP:])
    told = f"{ratio['ours']:.2f}, with the processor's own products {ratio['own']:.2f}"
    print(f"\nstep time in bfloat16 against float32's: {told} (median of {STEPS // 4})")
    assert ratio["ours"] < min(2, ratio["own"])


def against_a_plain_loop(setting: Setting, ours: Callable[[Batch], None], what: str) -> float:
    """The median ratio of the times of two loops that take turns on the same batches."""
    steps = {"ours": ours, "plain": setting.plain_step()}
    order = bucketed(setting.lengths, BATCH, 0, 0)[: STEPS + WARM_UP]
    timed: dict[str, list[float]] = {name: [] for name in steps}
    for number, indices in enumerate(order):
        batch = setting.collate(setting.features, indices)
        # Whoever goes second finds the caches warm: they take turns.
        for name in sorted(steps, reverse=number % 2 == 1):
            timed[name].append(seconds(lambda name=name, batch=batch: steps[name](batch)))
    ratios = [one / plain for one, plain in zip(timed["ours"], timed["plain"], strict=True)]
    ratio = median(ratios[WARM_UP:])
    print(f"\n{what} against a plain loop's: {ratio:.3f} (median of {STEPS}; {median(timed['ours']):.3f} s a step)")
    return ratio


def test_length_buckets_double_the_real_tokens_a_second(setting: Setting) -> None:
    """Buckets and shuffled batches take turns on the same rows; padding is not counted."""
    step = setting.plain_step()
    figures = {}
    orders = {"buckets": bucketed(setting.lengths, BATCH, 0, 0), "shuffled": setting.shuffled()}
    for name in orders:
        figures[name] = {"tokens": 0, "padded": 0, "seconds": 0.0}
    for number, pair in enumerate(zip(*orders.values(), strict=False)):
        for name, indices in zip(orders, pair, strict=True):
            batch = setting.collate(setting.features, indices)
            took = seconds(lambda batch=batch: step(batch))
            if WARM_UP <= number < STEPS + WARM_UP:
                figures[name]["tokens"] += batch.tokens
                figures[name]["padded"] += batch.padded_tokens
                figures[name]["seconds"] += took
    speed = {name: figure["tokens"] / figure["seconds"] for name, figure in figures.items()}
    padding = {name: 1 - figure["tokens"] / figure["padded"] for name, figure in figures.items()}
    print(f"\nreal tokens/s: {speed}, ratio {speed['buckets'] / speed['shuffled']:.2f}; padding share: {padding}")
    assert speed["buckets"] >= 2 * speed["shuffled"]


def test_less_than_15_percent_of_an_epoch_is_padding(setting: Setting) -> None:
    """Counted over all batches of one epoch, each as long as its longest row."""
    order = bucketed(setting.lengths, BATCH, 0, 0)
    padded = sum(len(batch) * max(setting.lengths[row] for row in batch) for batch in order)
    share = 1 - sum(setting.lengths) / padded
    print(f"\npadding share of an epoch: {share:.3f}")
    assert share < 0.15


def test_the_loop_is_no_slower_than_transformers_trainer(setting: Setting, tmp_path: Path) -> None:
    """What decided for a loop of our own: the same rows through both, an epoch each."""
    from transformers import DataCollatorWithPadding, TrainingArguments
    from transformers import Trainer as TransformersTrainer

    tokenizer = models.load_tokenizer(Path(str(setting.experiment.model.path)), setting.backbone.architecture)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    model = copy.deepcopy(setting.adapter.model)
    theirs = TransformersTrainer(
        model=model,
        args=arguments,
        train_dataset=setting.features,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    step = setting.our_step()
    share_of_epoch = STEPS * BATCH / len(setting.features)
    theirs_seconds = seconds(theirs.train)
    ours_seconds = 0.0
    for indices in bucketed(setting.lengths, BATCH, 0, 0)[:STEPS]:
        ours_seconds += seconds(lambda indices=indices: step(setting.collate(setting.features, indices)))
    print(f"\n{share_of_epoch:.0%} of an epoch: Trainer {theirs_seconds:.1f} s, length buckets {ours_seconds:.1f} s")
    assert ours_seconds < theirs_seconds
