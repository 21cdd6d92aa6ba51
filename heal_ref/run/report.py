"""What a run leaves for people: a table in the terminal, and a page with tables and figures."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from heal_ref.config import PureConfig
from heal_ref.evaluate import Row, is_genuine, rows_from_report
from heal_ref.model import LM
from heal_ref.plots import LABEL, plot_ceiling, plot_filter, save, with_interval
from heal_ref.run.shards import records_in
from heal_ref.tasks.base import Task


def table(rows: Sequence[Row], metric: str = "pass@1", label: Mapping[str, str] = LABEL
          ) -> list[list[str]]:
    """Header and one line per arm: mean and 95 % interval of each kind of problem."""
    at = {(r.arm, r.kind): with_interval(r) for r in rows if r.metric == metric}
    arms, kinds = (list(dict.fromkeys(part)) for part in zip(*at, strict=True))
    return [[metric, *kinds], *([label.get(arm, arm), *(at[arm, kind] for kind in kinds)]
                                for arm in arms)]


def text_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines in columns, for the terminal."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def write_page(folder: Path, report: dict[str, Any], lm: LM, task: Task, pure: PureConfig) -> Path:
    """`folder`/index.html: tables, notes, figures and provenance of a finished run."""
    rows = rows_from_report(report)
    figures = {"ceiling": plot_ceiling(rows)}
    scored = records_in(folder, "4-scores/guided", "4-scores/repaired")
    threshold = report["provenance"]["counts"]["threshold"]
    if task.knows_truth and scored and threshold is not None:
        some, genuine = list[Any](), list[bool]()
        for s in scored[:: max(1, len(scored) // 1500)]:
            genuine.append(is_genuine(lm, task, s.trajectory))
            some.append(replace(s, trajectory=None))  # the figure needs its numbers only
        figures["filter"] = plot_filter(some, genuine, threshold, pure)
    page = ['<!doctype html><html lang="en"><meta charset="utf-8"><title>HEAL</title>',
            "<h1>HEAL, one run</h1>"]
    for name, figure in figures.items():
        save(figure, folder / "figures" / f"{name}.png")
        page.append(f'<p><img src="figures/{name}.png" alt="{name}"></p>')
    page.append("<p>Means and 95 % intervals over held-out problems.</p>")
    tables = [text_table(table(rows, m)) for m in dict.fromkeys(r.metric for r in rows)]
    origin = json.dumps(report["provenance"], indent=1)
    page += [f"<pre>{html.escape(text)}</pre>" for text in (*tables, *report["notes"], origin)]
    path = folder / "index.html"
    path.write_text("\n".join([*page, "</html>\n"]), encoding="utf-8")
    return path
