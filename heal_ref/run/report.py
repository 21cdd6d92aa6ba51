"""What a run leaves for people: a table in the terminal, figures, and one page with both."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heal_ref.config import PureConfig
from heal_ref.evaluate import Row, is_genuine, rows_from_report
from heal_ref.model import LM
from heal_ref.plots import LABEL, plot_ceiling, plot_filter, save
from heal_ref.run.folder import read_shard
from heal_ref.tasks.base import Task

NEXT = "notebooks/00_world.ipynb"


def table(rows: Sequence[Row], metric: str = "pass@1", label: Mapping[str, str] = LABEL
          ) -> list[list[str]]:
    """Header and one line per arm: mean and 95 % interval of each kind of problem."""
    rows = [r for r in rows if r.metric == metric]
    kinds = list(dict.fromkeys(r.kind for r in rows))
    lines = [[metric, *(kind or "all" for kind in kinds)]]
    for arm in dict.fromkeys(r.arm for r in rows):
        mine = {r.kind: r for r in rows if r.arm == arm}
        cells = [f"{mine[k].mean:.2f} [{mine[k].low:.2f}, {mine[k].high:.2f}]" for k in kinds]
        lines.append([label.get(arm, arm), *cells])
    return lines


def text_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines in columns, for the terminal."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def draw_figures(folder: Path, report: dict[str, Any], lm: LM, task: Task, pure: PureConfig
                 ) -> dict[str, str]:
    """Figures of a finished run in `folder`/figures: name -> caption. One needs a step checker."""
    figures = {"ceiling": (plot_ceiling(rows_from_report(report)), (
        "Share of sampled solutions that are right, by kind of held-out problem, with 95 % "
        "intervals over problems."))}
    if task.knows_truth:
        files = [f for name in ("guided", "repaired") for f in sorted(
            folder.glob(f"4-scores/{name}/*.jsonl"))]
        scored = [s for f in files for s in read_shard(f)]
        scored = scored[:: max(1, len(scored) // 1500)]
        threshold = report["provenance"]["counts"]["threshold"]
        if scored and threshold is not None:
            genuine = [is_genuine(lm, task, s.trajectory) for s in scored]
            figures["filter"] = plot_filter(scored, genuine, threshold, pure), (
                "PURE: the worst step of helped solutions with the right answer. Colours come from "
                "the exact checker, which the filter never sees.")
    for name, (figure, _) in figures.items():
        save(figure, folder / "figures" / f"{name}.png")
    return {name: caption for name, (_, caption) in figures.items()}


def write_page(folder: Path, report: dict[str, Any], captions: Mapping[str, str]) -> Path:
    """`folder`/index.html: tables, notes, figures, provenance."""
    rows = rows_from_report(report)
    tables = [text_table(table(rows, m)) for m in dict.fromkeys(r.metric for r in rows)]
    origin = json.dumps(report["provenance"], indent=1)
    texts = "".join(f"<pre>{html.escape(t)}</pre>" for t in [*tables, *report["notes"]])
    figures = "".join(f'<p><img src="figures/{name}.png" alt="{html.escape(text)}"><br>{text}</p>'
                      for name, text in captions.items())
    path = folder / "index.html"
    path.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>HEAL</title>'
                    f"<h1>HEAL, one run</h1><p>Mean and 95 % interval over held-out problems; one "
                    f"seed. More in <code>{NEXT}</code>.</p>{texts}{figures}<h2>Provenance</h2>"
                    f"<pre>{html.escape(origin)}</pre></html>\n", encoding="utf-8")
    return path
