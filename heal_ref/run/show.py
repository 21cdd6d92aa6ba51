"""The ledger of a run: each trajectory, what it was made of, and why it was kept or dropped.

Everything is read from the run folder, which may be unfinished; no model is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from heal_ref.config import PaceConfig, PureConfig
from heal_ref.pace import chosen
from heal_ref.pure import pure_threshold
from heal_ref.records import InputError, PureScore, Trajectory, light, read_json, select
from heal_ref.run.folder import SHARDS, refuse_old
from heal_ref.run.shards import records_in

STAGES = {"base": "1-base", "guided": "2-guided", "repair": "3-repaired"}  # by source


class Verdict(NamedTuple):
    """What became of a trajectory: kept, dropped or open (None), and why."""

    kept: bool | None
    why: str


class Ledger:
    """The trajectories of one stage with their verdicts; `settings` is the run's identity."""

    def __init__(self, folder: Path, stage: str, settings: dict[str, Any]):
        def of(part: str) -> dict[str, Any]:
            return {key.removeprefix(part): value for key, value in settings.items()
                    if key.startswith(part)}

        self.pure, self.pace = PureConfig(**of("pure.")), PaceConfig(**of("pace."))
        self.records, self.stage = records_in(folder, stage), stage
        # 1) scores by the place of their trajectories; a threshold, if its reference is complete
        name = stage.partition("-")[2]
        self.helped, self.learnable = stage[0] in "23", stage[0] in "123"
        self.scores = records_in(folder, f"4-scores/{name}") if self.helped else self.records[:0]
        self.score_of = {s.trajectory.place: (i, s.score)
                         for i, s in enumerate(light(self.scores))}
        reference = records_in(folder, "4-scores/reference")
        later = any((folder / part).exists() for part in (
            "4-scores/guided", "4-scores/repaired", "5-students", "report.json"))
        self.limit: float | None = None  # not known yet
        if later:
            self.limit = pure_threshold(reference, self.pure) if reference else float("inf")
        # 2) what students learn: no text twice, and so many of each problem
        passed = [i for i, t in enumerate(light(self.records)) if t.correct and self._passes(t)]
        candidates = select(self.records, passed)
        self.different = {passed[i] for i in chosen(candidates, len(candidates))}
        self.learnt = {passed[i] for i in chosen(candidates, self.pace.per_problem)}
        # 3) where repairs cut the samples
        self.cuts: dict[tuple[str, int | None], int | None] = {}
        if stage == STAGES["base"]:
            self.cuts = {(t.problem.id, t.parent): t.breakpoint
                         for t in light(records_in(folder, STAGES["repair"]))}

    def _passes(self, t: Trajectory) -> bool:
        score = self.score_of.get(t.place)
        return not self.helped or (
            score is not None and self.limit is not None and score[1] <= self.limit)

    def verdict(self, row: int, t: Trajectory) -> Verdict:
        """Of a trajectory by its number in the stage."""
        if t.note:
            return Verdict(False, t.note)
        if not t.correct:
            return Verdict(False, "cut off by the length limit" if not t.finished else
                           "no answer that counts" if t.answer is None else "wrong answer")
        if self.helped and t.place not in self.score_of:
            return Verdict(None, "not scored yet")
        if self.helped and self.limit is None:
            return Verdict(None, "no threshold yet")
        if not self._passes(t):
            return Verdict(False, "score above PURE's threshold")
        if row not in self.different:
            return Verdict(False, "the text of an earlier one")
        if row not in self.learnt:
            return Verdict(False, f"{self.pace.per_problem} of this problem are kept already")
        if not self.helped or self.limit == float("inf"):
            return Verdict(True, "right")
        return Verdict(True, "score within PURE's threshold")

    def said(self, verdict: Verdict) -> str:
        """A verdict in words."""
        state = {True: "kept", False: "dropped", None: "open"}[verdict.kept]
        return f"{state}: {verdict.why}" if self.learnable else verdict.why

    def line(self, t: Trajectory, verdict: Verdict) -> str:
        """A trajectory on one line."""
        score = self.score_of.get(t.place)
        parts = [f"{_place(t):<20}", f"{t.problem.id} {_name(t)}", f"{len(t.steps)} steps",
                 f"answer {t.answer} ({'right' if t.correct else f'not {t.problem.answer}'})"]
        parts += [f"score {score[1]:.3f}"] if score else []
        return "  ".join([*parts, self.said(verdict)])

    def whole(self, t: Trajectory, verdict: Verdict) -> Iterator[str]:
        """A trajectory with its steps, in lines."""
        found = self.score_of.get(t.place)
        score: PureScore | None = self.scores[found[0]] if found else None
        cut = t.breakpoint if t.parent is not None else self.cuts.get((t.problem.id, t.index))
        # 1) what it is
        kind = f"  ({t.problem.kind})" if t.problem.kind else ""
        yield f"{t.problem.id} {_name(t)}{kind}  {_place(t)}"
        yield f"  problem: {' '.join(t.problem.question.split())}   answer: {t.problem.answer}"
        if t.parent is not None:
            hint = "no usable hint" if t.hint is None else f"hint: {t.hint or '(empty)'}"
            yield f"  repairs base #{t.parent}, cut before step {cut}; {hint}"
        # 2) its steps
        yield f"     step  entropy{'    ratio' if score else ''}   (nats)"
        texts = t.step_texts or ["(no text)"] * len(t.steps)
        for k, (h, text) in enumerate(zip(t.step_entropy, texts, strict=True)):
            ratio = f"{score.ratio[k]:9.3f}" if score else ""
            margin = f"{'cut>' if k == cut else '':>5}{k:4d}{h:9.3f}{ratio}   "
            lines = text.strip().splitlines() or [""]
            yield margin + lines[0]
            yield from (" " * len(margin) + line for line in lines[1:])
        # 3) what became of it
        yield (f"  answer: {t.answer}, {'right' if t.correct else 'not right'}; "
               f"{len(t.token_ids)} tokens, {t.tokens_spent} spent")
        if score:
            against = "not known yet" if self.limit is None else f"{self.limit:.6f}"
            yield (f"  PURE ({self.pure.reading}, {self.pure.aggregate}): score {score.score:.6f}, "
                   f"threshold {against}")
        yield f"  {self.said(verdict)}\n"


def _place(t: Trajectory) -> str:
    shard, row = t.place or ("", 0)
    return f"{shard.removesuffix('.parquet')}:{row}"


def _name(t: Trajectory) -> str:
    return f"{t.source} of #{t.parent}" if t.parent is not None else f"{t.source} #{t.index}"


def show(folder: Path, stage: str | None = None, problem: str | None = None,
         kept: bool | None = None, limit: int = 20, full: bool = False) -> Iterator[str]:
    """Lines about trajectories of a run: one each, or with `full` all that is known of them, then
    how many of each stage were kept and dropped, and why.

    Args:
        stage: such as "3-repaired"; without it those that students learn from.
        problem: only those of the problem with this id.
        kept: only those that were kept, or dropped.
        limit: as many at most, 0 for all.

    InputError if the folder is no run's, or has no such stage or problem.
    """
    # 1) the folder
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not the folder of a run (it has no config.json); give the "
                         "--out of a run")
    refuse_old(folder)
    settings = read_json(folder / "config.json", "the config.json of a run", identity=dict)
    there = sorted({file.parent.relative_to(folder).as_posix() for pattern in SHARDS
                    for file in folder.glob(pattern) if "4-scores" not in file.parts})
    if not there:
        raise InputError(f"{folder} holds no trajectories yet")
    if stage and stage not in there:
        raise InputError(f"{folder} has no stage {stage!r}; it has {', '.join(there)}")
    # 2) its trajectories
    shown, matching, seen, ids = 0, 0, list[str](), dict[str, None]()
    for name in [stage] if stage else [s for s in STAGES.values() if s in there]:
        ledger, counts = Ledger(folder, name, settings["identity"]), Counter[str]()
        rows = list[int]()
        for row, t in enumerate(light(ledger.records)):
            verdict = ledger.verdict(row, t)
            counts[ledger.said(verdict)] += 1
            ids.setdefault(t.problem.id)
            if problem in (None, t.problem.id) and kept in (None, verdict.kept):
                matching += 1
                if not limit or matching <= limit:
                    rows.append(row)
        wanted = ledger.records.select(rows)
        for row, t in zip(rows, wanted if full else wanted.light, strict=True):
            verdict = ledger.verdict(row, t)
            yield from ledger.whole(t, verdict) if full else [ledger.line(t, verdict)]
        shown += len(rows)
        seen.append(f"{name}: {len(ledger.records):,} trajectories")
        seen += [f"  {count:>9,}  {said}" for said, count in sorted(counts.items())]
    if problem is not None and problem not in ids:
        raise InputError(f"{folder} has no trajectory of a problem {problem!r}"
                         f"{f' in {stage}' if stage else ''}; ids are such as "
                         f"{', '.join(list(ids)[:3])}")
    # 3) the sums
    more = "; --limit 0 shows all" if shown < matching else ""
    yield "\n".join([f"\n{shown:,} of {matching:,} shown{more}", *seen])
