"""Several runs in one pack: each goes its own way down the page, and they train together."""

import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

from harness.config.errors import ConfigError
from harness.methods.packed import SharedWeights
from harness.models.products import products_of
from harness.models.streams import Stream
from harness.run.inputs import Inputs
from harness.run.pipeline import Course, Page, begun
from harness.tracking.record import RESULT_FILE, RunRecord, Status
from harness.training.checkpoint import CHECKPOINT_FILE
from harness.training.together import Member, fit_together

log = logging.getLogger(__name__)

Ended = RunRecord | ConfigError | None


@dataclass
class _Run:
    """A run of a pack: its page, and either where it trains or how it ended."""

    page: Page
    member: Member | None = None
    ended: Ended = None

    def go(self, error: BaseException | None = None) -> None:
        """Go on to where it is ready to train, or to its end."""
        try:
            trainer = next(self.page) if error is None else self.page.throw(error)
            self.member = Member(trainer, Stream(trainer.collate.device))
        except StopIteration as end:
            self.ended = end.value
        except ConfigError as mistake:
            self.ended = mistake

    @property
    def interrupted(self) -> bool:
        """Whether the user stopped everything while this run was on its way."""
        return _interrupted(self.ended)


def run_together(points: Sequence[tuple[Inputs, Path]]) -> list[Ended]:
    """Carry out runs that train on the same batches of the same backbone, and write the record of each.

    None of them is measured: a pack's seconds and bytes are no run's. What one of them raises ends that one alone. One
    that the pack left too little memory for runs again by itself, and that end is its end.

    Returns:
        Each run's record, or the user's mistake that kept it from having one; null for one that had not begun, or not
        begun again, when all were interrupted.
    """
    with products_of(points[0][0].experiment):
        return _run_together(points)


def _run_together(points: Sequence[tuple[Inputs, Path]]) -> list[Ended]:
    began = time.time()
    ended = _pack(points)
    left = {number: record for number, record in enumerate(ended) if _out_of_memory(record)} if len(points) > 1 else {}
    for number in left:
        # What is lost from here on has not run out of memory by itself.
        (points[number][1] / RESULT_FILE).unlink(missing_ok=True)
        ended[number] = None
    for number, record in left.items():
        if not any(map(_interrupted, ended)):
            _release()
            ended[number] = _alone(*points[number], record, len(points), began)
    return ended


def _pack(points: Sequence[tuple[Inputs, Path]]) -> list[Ended]:
    weights = SharedWeights()
    runs = [_Run(begun(Course.of(_unmeasured(inputs), folder, None, weights))) for inputs, folder in points]
    for run in runs:
        if not any(other.interrupted for other in runs):
            run.go()
            if _out_of_memory(run.ended):
                _release()
    ready = [run for run in runs if run.member]
    members = [run.member for run in ready if run.member]
    try:
        fit_together(members)
    except BaseException as error:
        for member in members:
            member.error = member.error or error
    for run, member in zip(ready, members, strict=True):
        run.member = None
        with member.stream:
            run.go(member.error or (KeyboardInterrupt() if any(other.interrupted for other in runs) else None))
    return [run.ended for run in runs]


def _alone(inputs: Inputs, folder: Path, record: RunRecord, together: int, began: float) -> Ended:
    """Carry out a run by itself, from a checkpoint where the pack wrote one.

    Args:
        record: Of its end in the pack; a page that it has in the store goes on.
        together: How many runs the pack had.
        began: When the pack began, in seconds since the epoch.
    """
    train = inputs.experiment.train
    kept = Path(train.checkpoint_dir) / inputs.whole / CHECKPOINT_FILE
    # An older one is of a run that this one was not asked to resume.
    resume = train.resume or (kept.is_file() and kept.stat().st_mtime >= began)
    place = "from its checkpoint" if resume and kept.is_file() else "from the start"
    log.warning("memory was not enough for %s in a pack of %s runs: it runs again alone, %s", folder, together, place)
    experiment = replace(inputs.experiment, train=replace(train, resume=resume))
    course = Course.of(replace(inputs, experiment=experiment), folder, None)
    course.result.run_id = record.run_id
    run = _Run(begun(course))
    run.go()
    if run.member:
        course.result.provenance["out_of_memory_in_pack"] = together
        trainer, run.member, error = run.member.trainer, None, None
        try:
            trainer.fit()
        except BaseException as raised:
            error = raised
        run.go(error)
    return run.ended


def _interrupted(ended: Ended) -> bool:
    """Whether a run ended since the user stopped everything."""
    if not isinstance(ended, RunRecord) or ended.status != Status.interrupted:
        return False
    return not ended.provenance.get("stopped_alone")


def _out_of_memory(ended: Ended) -> TypeGuard[RunRecord]:
    return isinstance(ended, RunRecord) and ended.status == Status.out_of_memory


def _release() -> None:
    """Give back the memory of runs that have ended: their models hold on to themselves in circles."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _unmeasured(inputs: Inputs) -> Inputs:
    measure = replace(inputs.experiment.measure, costs=False, predict=False)
    return replace(inputs, experiment=replace(inputs.experiment, measure=measure))
