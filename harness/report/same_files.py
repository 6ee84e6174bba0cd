"""Runs are alike where the files behind them are the same, whatever these are called and wherever they lie."""

from collections.abc import Mapping

import pandas as pd

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
    """Say of the tasks that were told apart what their names mean."""
    names = sorted({name for name, told in _tasks(frame) if told and name.endswith(f"@{told[:SHOWN]}")})
    if not names:
        return []
    return [
        f"{', '.join(names)}: files of one name that do not hold the same rows, or one before and after a change; "
        "behind the @ is the beginning of their hash."
    ]


def _tasks(frame: pd.DataFrame) -> list[tuple[str, str]]:
    told = frame[["task", "data_revision"]].drop_duplicates()
    return list(zip(told["task"], told["data_revision"], strict=True))


def _different(revisions: pd.Series) -> int:
    return int(revisions[revisions != ""].nunique())
