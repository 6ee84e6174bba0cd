"""Predicted against measured bytes."""

import pandas as pd

from harness.report.cells import Table, sizes
from harness.report.labels import label
from harness.report.scores import FINISHED, compared
from harness.tracking.record import MEMORY


def predictions(frame: pd.DataFrame) -> pd.DataFrame:
    """Hold predicted against measured figures: one row per configuration, the run that is farthest off.

    Columns: task, configuration, `measured.NAME` in bytes and `deviation.NAME`, predicted over measured less one, for
    the names of `MEMORY`; empty where no run kept a prediction.
    """
    runs = compared(frame)
    runs = runs[runs["status"] == FINISHED]
    if "cost.predicted.train_peak_bytes" not in runs:
        return pd.DataFrame()
    runs = runs[runs["cost.predicted.train_peak_bytes"].notna()]
    rows = runs[["task"]].assign(configuration=label(runs))
    for name in MEMORY:
        measured, predicted = runs[f"cost.{name}"], runs[f"cost.predicted.{name}"]
        rows[f"measured.{name}"] = measured
        # Nothing predicted and nothing measured agree, as for a method that trains the head alone on a frozen one.
        rows[f"deviation.{name}"] = (predicted / measured - 1).where(measured > 0, 0.0)
    farthest = rows["deviation.train_peak_bytes"].abs().sort_values(ascending=False).index
    return rows.loc[farthest].groupby(["task", "configuration"], sort=True).first().reset_index()


def prediction_table(predictions: pd.DataFrame) -> Table | None:
    """Make the table of predicted against measured bytes."""
    if predictions.empty:
        return None
    columns = ["task", "method"]
    for name in MEMORY:
        columns += [name.removesuffix("_bytes").removeprefix("train_"), "off by"]
    in_bytes = {name: sizes(predictions[f"measured.{name}"]) for name in MEMORY}
    cells = [
        (
            str(row["task"]),
            str(row["configuration"]),
            *(
                text
                for name, write in in_bytes.items()
                for text in (write(row[f"measured.{name}"]), f"{100 * row[f'deviation.{name}']:+.2f}%")
            ),
        )
        for _, row in predictions.iterrows()
    ]
    worst = {name: predictions[f"deviation.{name}"].abs().max() for name in MEMORY}
    caption = "Measured bytes, and how far the prediction from the architecture alone is off. Farthest of all: "
    caption += ", ".join(f"{name.removesuffix('_bytes').removeprefix('train_')} {v:.2%}" for name, v in worst.items())
    return Table("Predicted against measured", tuple(columns), cells, caption + ".", ("task", "method"), detail=True)
