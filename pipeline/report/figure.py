"""One style for all plots, and SVG out of them: same input, same bytes; text as outlines, so no font is needed.

Colours are Okabe and Ito's, which people with the common colour vision deficiencies tell apart; what a colour says is
also in a label or a legend.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TEACHER, STUDENT = "#5b6470", "#0072b2"
INK, FAINT, LINE, GRID = "#22262b", "#6a727c", "#9aa2ac", "#e7e9ec"

_WIDTH_INCHES = 10.0
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#b9bec5",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.dpi": 72,  # of SVG: one pixel is one point, so measured text is drawn text
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
}


def new_figure(height: float, columns: int, ratios: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """A figure of page width with its axes side by side; to be made and saved under STYLE."""
    figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
    grid = figure.subplots(1, columns, squeeze=False, gridspec_kw={"width_ratios": ratios or [1] * columns})
    return figure, list(grid[0])


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an SVG document whose ids carry ``name``, so that several fit into one page."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r'\bid="', f'id="{name}-', buffer.getvalue())
    text = re.sub(r'xlink:href="#', f'xlink:href="#{name}-', text)
    return re.sub(r"url\(#", f"url(#{name}-", text)


def inline(svg: str) -> str:
    """An SVG document as an element inside HTML: without prologue, metadata, namespaces and fixed size."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    head, rest = body.split(">", 1)
    head = re.sub(r'\s(?:xmlns(?::xlink)?|width|height|version)="[^"]*"', "", head)
    return f'{head} aria-hidden="true" focusable="false">{rest}'.strip()
