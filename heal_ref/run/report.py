"""What a run leaves for people: a table in the terminal, and a page with tables and figures."""

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


def table(rows: Sequence[Row], metric: str = "pass@1", label: Mapping[str, str] = LABEL
          ) -> list[list[str]]:
    """Header and one line per arm: mean and 95 % interval of each kind of problem."""
    rows = [r for r in rows if r.metric == metric]
    kinds = list(dict.fromkeys(r.kind for r in rows))
    lines = [[metric, *kinds]]
    for arm in dict.fromkeys(r.arm for r in rows):
        mine = {r.kind: r for r in rows if r.arm == arm}
        cells = [f"{mine[k].mean:.2f} [{mine[k].low:.2f}, {mine[k].high:.2f}]" for k in kinds]
        lines.append([label.get(arm, arm), *cells])
    return lines


def text_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines in columns, for the terminal."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def write_page(folder: Path, report: dict[str, Any], lm: LM, task: Task, pure: PureConfig) -> Path:
    """`folder`/index.html: tables, notes, figures and provenance of a finished run."""
    rows = rows_from_report(report)
    save(plot_ceiling(rows), folder / "figures" / "ceiling.png")
    figures = ["ceiling"]
    files = [f for name in ("guided", "repaired") for f in folder.glob(f"4-scores/{name}/*.jsonl")]
    scored = [s for f in sorted(files) for s in read_shard(f)]
    threshold = report["provenance"]["counts"]["threshold"]
    if task.knows_truth and scored and threshold is not None:
        some = scored[:: max(1, len(scored) // 1500)]
        genuine = [is_genuine(lm, task, s.trajectory) for s in some]
        save(plot_filter(some, genuine, threshold, pure), folder / "figures" / "filter.png")
        figures.append("filter")
    tables = [text_table(table(rows, m)) for m in dict.fromkeys(r.metric for r in rows)]
    origin = json.dumps(report["provenance"], indent=1)
    texts = "".join(f"<pre>{html.escape(t)}</pre>" for t in [*tables, *report["notes"], origin])
    images = "".join(f'<p><img src="figures/{name}.png" alt="{name}"></p>' for name in figures)
    path = folder / "index.html"
    path.write_text('<!doctype html><html lang="en"><meta charset="utf-8"><title>HEAL</title>'
                    f"<h1>HEAL, one run</h1>{images}<p>Means and 95 % intervals over held-out "
                    f"problems.</p>{texts}</html>\n", encoding="utf-8")
    return path
