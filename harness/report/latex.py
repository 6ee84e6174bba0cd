"""A report as LaTeX, with the tables of booktabs; every text is escaped."""

import re
from collections.abc import Sequence

from harness.report.cells import Table, shortened

# Without them the characters start commands, make ligatures, or print as others.
ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    # At the start of a row it would be the argument of the line break before it.
    "[": "{[}",
    "]": "{]}",
    "-": "-{}",
    "–": "--",
    "±": r"$\pm$",
    "★": r"$\star$",
    "≈": r"$\approx$",
}
PREAMBLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{textcomp}
\usepackage[landscape,margin=15mm]{geometry}
\usepackage{booktabs}
\usepackage{longtable}
\setlength{\tabcolsep}{4pt}
\setlength{\LTcapwidth}{\linewidth}
\begin{document}
"""
# The last letter that T1 fonts have in the order of Unicode.
LAST_LETTER = 0x17F
SPECIAL = re.compile(rf"[{re.escape(''.join(ESCAPED))}\x00-\x1f\x7f-\x9f{chr(LAST_LETTER + 1)}-\U0010ffff]")
# Columns of sentences, which break into lines.
SENTENCES = ("remarks", "reason")


def escape(text: str) -> str:
    """Make a text that LaTeX prints as it stands; letters beyond Latin are written as their number, as in U+4E2D."""
    return SPECIAL.sub(lambda found: _escaped(found.group()), text)


def _escaped(character: str) -> str:
    if character in ESCAPED:
        return ESCAPED[character]
    if ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0:
        return " "
    return f"U+{ord(character):04X}"


def document(title: str, lead: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Write a report as a document that pdflatex, xelatex and lualatex set; each table can be copied into a paper."""
    parts = [rf"\section*{{{escape(title)}}}", escape(lead), r"\footnotesize"]
    parts += [_table(shortened(table)) for table in tables]
    parts.append("\n".join([r"\begin{itemize}", *(rf"\item {escape(note)}" for note in notes), r"\end{itemize}"]))
    return PREAMBLE + "\n\n".join(parts) + "\n\\end{document}\n"


def _table(table: Table) -> str:
    """A table that may go over pages, its title and caption above it."""
    kinds = [
        "p{50mm}" if column in SENTENCES else "l" if column in table.text_columns else "r" for column in table.columns
    ]
    caption = rf"\caption*{{\textbf{{{escape(table.title)}}}. {escape(table.caption)}}}"
    rows = [" & ".join(map(escape, row)) + r" \\" for row in table.rows]
    head = " & ".join(map(escape, table.columns)) + r" \\"
    return "\n".join(
        [
            rf"\begin{{longtable}}{{{''.join(kinds)}}}",
            caption + r" \\",
            r"\toprule",
            head,
            r"\midrule",
            r"\endfirsthead",
            r"\toprule",
            head,
            r"\midrule",
            r"\endhead",
            r"\bottomrule",
            r"\endfoot",
            *rows,
            r"\end{longtable}",
        ]
    )
