r"""A table that a paper takes with `\input`."""

import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from harness.config.sources import conf_root
from harness.report import latex_input, names
from harness.report.pairwise import ALIKE, BEST
from harness.report.scores import MAJORITY


def summary() -> pd.DataFrame:
    """Two tasks: one of accuracy with a tie, one of a loss that only one method has."""
    rows = [
        ("glue/sst2", "lora rank=8", "lora", "accuracy", 0.8012, 0.0158, BEST),
        ("glue/sst2", "bitfit", "bitfit", "accuracy", 0.799, float("nan"), ALIKE),
        ("glue/sst2", "mine_&_co", "mine", "accuracy", 0.5, 0.01, ""),
        ("glue/sst2", MAJORITY, "", "accuracy", 0.5092, float("nan"), ""),
        ("lm/mine", "bitfit", "bitfit", "loss", 1.25, 0.002, BEST),
    ]
    return pd.DataFrame(rows, columns="task configuration method metric mean std standing".split())


def test_scores_are_percent_with_their_deviation_and_names_are_those_of_papers() -> None:
    """Bold is the highest observed, underlined what is not distinguished from it; a loss keeps its scale."""
    text = latex_input.table(summary())
    lines = [line.removesuffix(r" \\") for line in text.splitlines()]
    assert r"method & SST-{}2 & lm/mine" in lines
    assert r"LoRA rank=8 & \textbf{80.1} $\pm$ 1.6 & --" in lines
    assert r"BitFit & \underline{79.9} & \textbf{1.250} $\pm$ 0.002" in lines
    assert r"mine\_\&\_co & 50.0 $\pm$ 1.0 & --" in lines
    assert lines.index(r"majority class & 50.9 & --") == lines.index(r"\bottomrule") - 1
    assert " & accuracy & loss (lower is better)" in lines


def test_every_shipped_method_has_a_label_and_no_label_is_part_of_a_configuration() -> None:
    """It stands in a comment; a name that leads elsewhere, or that has none, stays itself."""
    files = sorted((conf_root() / "conf/method").glob("*.yaml"))
    labels = {path.stem: names.label_of("method", path.stem) for path in files}
    assert all(names.LABEL.search(path.read_text()) for path in files)
    assert len({*labels.values()}) == len(labels) > 50
    assert (labels["lora"], labels["ia3"], labels["full"]) == ("LoRA", "IA3", "Full fine-tuning")
    assert (names.label_of("task", "glue/cola"), names.label_of("task", "glue_text/cola")) == ("CoLA", "CoLA as text")
    assert names.label_of("method", "../method/lora") == "../method/lora"
    assert names.configuration_label("mine rank=2", "mine") == "mine rank=2"


@pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="there is no pdflatex; apt-get install texlive-latex-recommended"
)
def test_a_document_takes_the_table(tmp_path: Path) -> None:
    r"""Pdflatex sets `\input{table}`."""
    (tmp_path / "table.tex").write_text(latex_input.table(summary()), encoding="utf-8")
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{table}\end{document}"
    (tmp_path / "paper.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "paper.pdf").stat().st_size > 1000
