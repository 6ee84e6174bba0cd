"""Scores of a run by split, those of the backbone alone among them."""

from typing import TYPE_CHECKING, Any

from harness.config.schema import Experiment
from harness.tracking.record import RunRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.methods import Adapter
    from harness.tasks import TaskData
    from harness.training.evaluation import Evaluation


def score_base(
    experiment: Experiment, adapter: "Adapter", score: "Callable[[str], Evaluation]", result: RunRecord
) -> dict[str, float] | None:
    """The validation scores of the backbone alone, where it can answer without a new head."""
    if experiment.task.labels_count is not None:
        result.unmeasured["scores.base"] = "the task needs a new head, which the backbone alone has not"
    elif experiment.task.against_backbone():
        result.unmeasured["scores.base"] = "the scores are held against the backbone alone already"
    elif experiment.untouched:
        result.unmeasured["scores.base"] = experiment.untouched
    elif not experiment.evaluate.base:
        result.unmeasured["scores.base"] = "evaluate.base=false"
    else:
        with adapter.disabled():
            return score("validation").scores
    return None


def gather_scores(
    experiment: Experiment, data: "TaskData", evaluations: "dict[str, Evaluation]", unmeasured: dict[str, str]
) -> dict[str, Any]:
    """Scores by split; further evaluation splits are validation metrics with the split's name in front."""
    development = evaluations["development"].scores if "development" in evaluations else None
    scores: dict[str, Any] = {"development": development, "validation": None, "majority": None}
    missing = [] if development else ["development"]
    if "validation" not in evaluations:
        missing += ["validation", "majority"]
    unmeasured |= {f"scores.{name}": experiment.untouched for name in missing}
    if "validation" not in evaluations:
        return scores
    validation = dict(evaluations["validation"].scores)
    for split in sorted(set(evaluations) - {"development", "validation"}):
        validation |= {f"{split}.{name}": value for name, value in evaluations[split].scores.items()}
    majority = experiment.task.majority(data, "validation")
    if majority is None:
        unmeasured["scores.majority"] = "no one answer is common to the rows"
    return {**scores, "validation": validation, "majority": majority}
