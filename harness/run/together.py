"""Several runs in one pack: each goes its own way down the page, and they train together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.config.errors import ConfigError
from harness.methods.packed import SharedWeights
from harness.models.streams import Stream
from harness.run.inputs import Inputs
from harness.run.pipeline import Course, Page, begun
from harness.tracking.record import RunRecord, Status
from harness.training.together import Member, fit_together


@dataclass
class _Run:
    """A run of a pack: its page, and either where it trains or how it ended."""

    page: Page
    member: Member | None = None
    ended: RunRecord | ConfigError | None = None

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
        record = self.ended
        if not isinstance(record, RunRecord) or record.status != Status.interrupted:
            return False
        return not record.provenance.get("stopped_alone")


def run_together(points: Sequence[tuple[Inputs, Path]]) -> list[RunRecord | ConfigError | None]:
    """Carry out runs that train on the same batches of the same backbone, and write the record of each.

    None of them is measured: a pack's seconds and bytes are no run's. What one of them raises ends that one alone.

    Returns:
        Each run's record, or the user's mistake that kept it from having one; null for one that had not begun when all
        were interrupted.
    """
    weights = SharedWeights()
    runs = [_Run(begun(Course.of(_unmeasured(inputs), folder, None, weights))) for inputs, folder in points]
    for run in runs:
        if not any(other.interrupted for other in runs):
            run.go()
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


def _unmeasured(inputs: Inputs) -> Inputs:
    measure = replace(inputs.experiment.measure, costs=False, predict=False)
    return replace(inputs, experiment=replace(inputs.experiment, measure=measure))
