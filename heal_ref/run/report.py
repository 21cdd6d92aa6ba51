"""What a run leaves for people: a table in the terminal, figures, and one page that shows them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heal_ref.config import PureConfig
from heal_ref.evaluate import Row, first_wrong_step, is_genuine, rows_from_report
from heal_ref.model import LM
from heal_ref.pace import read_curve
from heal_ref.plots import LABEL, plot_aligned_entropy, plot_ceiling, plot_filter, plot_stages, save
from heal_ref.records import read_records
from heal_ref.tasks.base import Task

NEXT = "notebooks/00_world.ipynb"


def table(rows: Sequence[Row], metric: str = "pass@1", label: Mapping[str, str] = LABEL) -> list[list[str]]:
    """Header and one line an arm: mean and 95 % interval of each kind of problem."""
    rows = [r for r in rows if r.metric == metric]
    kinds = list(dict.fromkeys(r.kind for r in rows))
    lines = [[metric, *kinds]]
    for arm in dict.fromkeys(r.arm for r in rows):
        mine = {r.kind: r for r in rows if r.arm == arm}
        lines.append([label.get(arm, arm), *(f"{mine[k].mean:.2f} [{mine[k].low:.2f}, {mine[k].high:.2f}]" for k in kinds)])
    return lines


def text_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines in columns, for the terminal."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _records(folder: Path, stage: str) -> list[Any]:
    return [r for f in sorted((folder / stage).glob("*.jsonl")) for r in read_records(f)]


def draw_figures(folder: Path, report: dict[str, Any], lm: LM, task: Task, pure: PureConfig) -> dict[str, str]:
    """Figures of a finished run in `folder`/figures: file name → caption. Two of them need a step checker."""
    rows = rows_from_report(report)
    save(plot_ceiling(rows), folder / "figures" / "ceiling.png")
    captions = {"ceiling.png": "Share of sampled solutions that are right, by kind of held-out problem; 95 % intervals over "
                               "problems. The kinds, and what the teacher knows of each, are explained in the notebook."}
    stages = read_curve(folder / "5-students" / "heal")
    if stages:
        save(plot_stages(stages), folder / "figures" / "stages.png")
        captions["stages.png"] = "The HEAL student through PACE's three stages, greedy, on a part of the held-out problems."
    if not task.knows_truth:
        return captions
    base = _records(folder, "1-base")
    failed = [t for t in base if not t.correct and t.problem.kind in ("frontier", "shaky")]
    wrong = [(t, k) for t in failed if (k := first_wrong_step(lm, task, t)) is not None]
    right = [t for t in base if t.correct and t.problem.kind == "mastered"]
    if wrong and right:
        save(plot_aligned_entropy([t for t, _ in wrong], [k for _, k in wrong], right), folder / "figures" / "entropy.png")
        captions["entropy.png"] = ("Entropy dynamics of the teacher's own attempts: broken ones, aligned on the first wrong "
                                   "step that the exact checker finds. GEAR sees the curve, never the checker.")
    scored = [s for name in ("guided", "repaired") for s in _records(folder, f"4-scores/{name}")]
    if scored:
        genuine = [is_genuine(lm, task, s.trajectory) for s in scored]
        some = range(0, len(scored), max(1, len(scored) // 1500))
        threshold = report["provenance"]["counts"]["threshold"]
        figure = plot_filter([scored[i] for i in some], [genuine[i] for i in some], threshold, pure)
        save(figure, folder / "figures" / "filter.png")
        captions["filter.png"] = ("PURE: the worst step of helped solutions whose answer is right. Colours come from the exact "
                                  "checker, which the filter never sees.")
    return captions


def write_page(folder: Path, report: dict[str, Any], captions: dict[str, str]) -> Path:
    """`folder`/index.html: tables, figures, provenance, where to read on."""
    rows = rows_from_report(report)
    metrics = [m for m in ("pass@1", "pass@1_greedy", "pass@8", "genuine") if any(r.metric == m for r in rows)]

    def html_table(lines: Sequence[Sequence[str]]) -> str:
        head = "".join(f"<th>{html.escape(c)}</th>" for c in lines[0])
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in line) + "</tr>" for line in lines[1:])
        return f"<table><tr>{head}</tr>{body}</table>"

    figures = "".join(f'<figure><img src="figures/{name}" alt="{html.escape(text)}"><figcaption>{html.escape(text)}'
                      "</figcaption></figure>" for name, text in captions.items())
    provenance = "".join(f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(str(value))}</dd>"
                         for key, value in report["provenance"].items())
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>HEAL: one run</title>
<style>body{{font:16px/1.5 sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem}}img{{max-width:100%}}
table{{border-collapse:collapse;margin:1rem 0}}td,th{{padding:.2rem .7rem;border-bottom:1px solid #ccc;text-align:left}}
figure{{margin:2rem 0}}dt{{font-weight:bold}}dd{{margin:0 0 .4rem 1rem;overflow-wrap:anywhere}}</style>
<h1>HEAL, one run</h1>
<p>Mean and 95 % interval over held-out problems; one seed. Read on in <code>{NEXT}</code>.</p>
{"".join(html_table(table(rows, m)) for m in metrics)}{figures}<h2>Provenance</h2><dl>{provenance}</dl></html>
"""
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    return path
