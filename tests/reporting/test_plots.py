"""Pictures are the same for the same numbers, and a method looks the same in all of them."""

import pandas as pd

from harness.reporting import plots

EVIL = "_<script>alert(1)</script> $x^{"


def frames(method: str, parameters: float = 1000.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    common = {"task": "sst2", "metric": "accuracy", "split": "validation", "std": float("nan")}
    rows = [
        {**common, "configuration": method, "method": method, "mean": 0.9, "trainable_parameters": parameters},
        {**common, "configuration": "majority class", "method": "", "mean": 0.5, "trainable_parameters": float("nan")},
    ]
    point = {"task": "sst2", "method": method, "score": 0.9, "trainable_parameters": parameters}
    return pd.DataFrame(rows), pd.DataFrame([point])


def test_the_same_numbers_give_the_same_bytes() -> None:
    """Neither picture holds a date, a random identifier or a path."""
    first, second = (plots.score_against_parameters(*frames("lora")) for _ in range(2))
    assert first == second
    assert first["png"].startswith(b"\x89PNG")


def test_a_method_name_is_only_a_text() -> None:
    """Markup, mathematics and a leading underscore in a name do no harm."""
    pictures = plots.score_against_parameters(*frames(EVIL))
    assert b"<script" not in pictures["svg"]


def test_nothing_trained_can_be_drawn() -> None:
    """Zero trainable parameters fit on the axis."""
    assert plots.score_against_parameters(*frames("zero", 0.0))["svg"]


def test_listed_methods_look_different() -> None:
    """No two methods of the list share colour and marker, and an unlisted one keeps its own."""
    assert len({plots.appearance(method) for method in plots.METHODS}) == len(plots.METHODS)
    assert plots.appearance("of my own") == plots.appearance("of my own")
