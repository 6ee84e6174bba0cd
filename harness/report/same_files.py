"""Runs are alike where the files behind them are the same, whatever these are called and wherever they lie."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.report.labels import read_list

# Digits of a hash behind a name that several things have.
SHOWN = 8
GENERAL_TEXT = "param.forgetting.general_text"


def backbones(frame: pd.DataFrame, hashes: Mapping[str, str]) -> pd.DataFrame:
    """Name backbones apart that are called the same, and alike that are the same; runs without a hash keep the name.

    Weights that were drawn at random are no files: with and without them is one backbone.

    Args:
        frame: Of `harness.report.scores.tidy`.
        hashes: Run -> SHA-256 over its backbone's files, of those that recorded one.
    """
    if frame.empty:
        return frame
    pretrained = frame["param.model.pretrained"] if "param.model.pretrained" in frame else pd.Series("", frame.index)
    known = pd.DataFrame(
        {"model": frame["model"], "pretrained": pretrained.fillna(""), "hash": frame["run_id"].map(hashes).fillna("")}
    )
    told = known[known["hash"] != ""]
    if told.empty:
        return frame
    first = told.groupby(["pretrained", "hash"])["model"].transform("first")
    several = told.assign(model=first).groupby(["pretrained", "model"])["hash"].transform("nunique") > 1
    names = first.where(~several, first + "@" + told["hash"].str[:SHOWN])
    return frame.assign(model=frame["model"].where(known["hash"] == "", names))


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """Name tasks apart whose rows are not the same, and say which general text a run lost, where there are several.

    Scores on the rows of a file before and after it was changed, or of two files of one name, are no repetitions.
    """
    if frame.empty:
        return frame
    several = frame.groupby("task")["data_revision"].transform(_different) > 1
    apart = several & (frame["data_revision"] != "")
    frame = frame.assign(task=frame["task"].where(~apart, frame["task"] + "@" + frame["data_revision"].str[:SHOWN]))
    texts = frame["forgetting_revision"]
    return frame.assign(**{GENERAL_TEXT: texts.str[:SHOWN]}) if _different(texts) > 1 else frame


def notes(frame: pd.DataFrame) -> list[str]:
    """Say of the tasks that were told apart what their names mean, and where the latest run of each found its rows."""
    told = frame["data_revision"].str[:SHOWN]
    apart = frame[[str(name).endswith(f"@{digits}") for name, digits in zip(frame["task"], told, strict=True)]]
    latest = apart[(apart["data_revision"] != "")].groupby("task", sort=True).last()
    if latest.empty:
        return []
    names = [f"{task} ({place})" if (place := _place(run)) else str(task) for task, run in latest.iterrows()]
    return [
        f"{', '.join(names)}: files of one name that do not hold the same rows, or one before and after a change; "
        "behind the @ is the beginning of their hash."
    ]


def _place(run: "pd.Series[Any]") -> str:
    """Where a run's rows lay; empty where that is not known."""
    found = [run.get(f"param.task.{key}") for key in ("file", "data_dir")]
    place = next((one for one in found if isinstance(one, str) and one), "")
    return ", ".join(map(str, read_list(place))) or place


def _different(revisions: pd.Series) -> int:
    return int(revisions[revisions != ""].nunique())
