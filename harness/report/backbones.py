"""Runs are of one backbone where its files are the same, whatever it is called."""

from collections.abc import Mapping

import pandas as pd

# Digits of a hash behind a name that several backbones have.
SHOWN = 8


def by_hash(frame: pd.DataFrame, hashes: Mapping[str, str]) -> pd.DataFrame:
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
