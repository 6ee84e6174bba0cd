"""LaTeX prints a text as it stands."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.report import latex
from harness.report.cells import Table

EVIL = "\\input{x} $a_1$ 100% & #1 ~ ^ [3] -- <b> | \"q\" 'r' `s` ± ★ ≈ – é 中"


def test_what_latex_would_obey_is_escaped() -> None:
    """No special character stands alone, ligatures are broken, and letters that fonts lack are numbered."""
    assert latex.escape("a_b 50% $x$") == r"a\_b 50\% \$x\$"
    assert latex.escape("\\input{x}") == r"\textbackslash{}input\{x\}"
    assert latex.escape("--x [3]") == "-{}-{}x {[}3{]}"
    assert latex.escape("0.9 ± 0.1 ★ é 中\n") == r"0.9 $\pm$ 0.1 $\star$ é U+4E2D "


def test_a_table_has_its_rows_between_the_rules_of_booktabs() -> None:
    """Titles, cells and captions are escaped, and each row has a cell a column."""
    table = Table(EVIL, ("method", "a_b", "remarks"), [("[x]", "1", EVIL), ("y", "2", "")], EVIL)
    text = latex.document(EVIL, EVIL, [table], [EVIL])
    assert r"\begin{longtable}{lrp{50mm}}" in text
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert "{[}x{]} & 1 & " in text
    assert "\ny & 2 &  \\\\\n" in text
    assert "\\input{" not in text
    body = text.partition(r"\begin{document}")[2]
    assert re.search(r"[^\x00-\u017f]", body) is None


NO_LATEX = "there is no pdflatex; apt-get install texlive-latex-recommended brings it"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason=NO_LATEX)
def test_the_document_can_be_set(tmp_path: Path) -> None:
    """Pdflatex makes a PDF of it."""
    table = Table(EVIL, ("method", "remarks"), [(EVIL, EVIL)], EVIL)
    (tmp_path / "report.tex").write_text(latex.document(EVIL, EVIL, [table], [EVIL]), encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "report.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "report.pdf").stat().st_size > 1000
