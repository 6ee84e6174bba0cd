"""Views of a sweep on MLflow's pages: which columns its table has, and which charts come first."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from harness.tracking.record import RunRecord
from harness.tracking.uri import _quoted

VIEW_TAG = "mlflow.sharedViewState."
# What comes after the loss and the scores in the chart view.
MEASURED_BY_STEP = {
    "train.tokens_per_second": "Tokens per second",
    "system/system_memory_usage_megabytes": "Memory of the machine in use, MB",
    "train.learning_rate": "Learning rate",
}
# Costs that people ask for first.
COSTS = ("cost.trainable_parameters", "cost.train_peak_bytes", "cost.train_seconds")


def ensure_view(client: Any, experiment_id: str, sweep: str, record: RunRecord, moment: int) -> None:
    """Give a sweep a view from its first run on; a report replaces it by one that knows what was measured."""
    key = VIEW_TAG + _view_key(sweep)
    if key in client.get_experiment(experiment_id).tags:
        return
    metric = str(record.scores.get("primary_metric"))
    # Development first: it is there from the first evaluation on.
    columns = [f"development.{metric}", f"validation.{metric}", *COSTS]
    costs = [f"cost.{name}" for name in record.cost]
    client.set_experiment_tag(experiment_id, key, _view(sweep, columns, False, moment, costs))


def _view_key(sweep: str) -> str:
    return hashlib.sha256(sweep.encode()).hexdigest()[:16]


def _view(sweep: str, columns: Sequence[str], lowest_first: bool, moment: int, costs: Sequence[str] = ()) -> str:
    """Describe a view as MLflow's pages keep those that their users save.

    Args:
        sweep: Whose runs it shows.
        columns: Metrics that it shows after the method and its size.
        lowest_first: How its runs are sorted by the first of them; by a moment, they would hide below the sweep itself.
        moment: Milliseconds since the epoch.
        costs: Metrics of one value a run: the table shows them, and as charts each would be a bar.
    """
    metrics = [f"metrics.`{name}`" for name in columns]
    sections, charts = _charts([name for name in columns if name.startswith("development.")], costs)
    state = {
        "searchFilter": f"tags.sweep = {_quoted(sweep)}",
        "orderByKey": metrics[0],
        "orderByAsc": lowest_first,
        "selectedColumns": ["tags.`method`", "params.`method.rank`", *metrics, "attributes.`Duration`"],
        "compareRunSections": sections,
        "compareRunCharts": charts,
    }
    named = {"name": f"sweep {sweep}", "createdAt": moment, "updatedAt": moment, "state": json.dumps(state)}
    return json.dumps(named)


def _charts(scores: Sequence[str], costs: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The first section of the chart view, its charts, and those that are not to be made of costs."""
    section = {
        "uuid": "training",
        "name": "Training",
        "display": True,
        "isReordered": False,
        "deleted": False,
        "isGenerated": False,
    }
    shared = {"runsCountToCompare": 10, "metricSectionId": section["uuid"], "useGlobalXaxisKey": True}
    wanted = {"train.loss": "Training loss", **{name: name.replace(".", " ") for name in scores}, **MEASURED_BY_STEP}
    charts = [
        {"type": "LINE", "uuid": key, "metricKey": key, "displayName": name, "deleted": False, "isGenerated": False}
        | {"selectedMetricKeys": [key], "xAxisKey": "step", "lineSmoothness": 0, "scaleType": "linear"}
        | shared
        for key, name in wanted.items()
    ]
    charts += [
        {"type": "BAR", "uuid": key, "metricKey": key, "deleted": True, "isGenerated": True} | shared for key in costs
    ]
    return [section], charts


def address(experiment: str | int, share: str | None = None) -> str:
    """Path of an experiment's runs on the server: where runs are compared, not where prompts are traced."""
    query = {"workflowType": "machine_learning"} | ({} if share is None else {"viewStateShareKey": share})
    return f"/#/experiments/{experiment}/runs?{urlencode(query)}"
