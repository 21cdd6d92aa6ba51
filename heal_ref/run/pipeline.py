"""The whole method as a run folder that survives being killed.

problems → base samples → repairs and answer-guided samples → PURE scores → stages → students → evaluation → report

- Work is cut into shards, one for each batch of problems. A shard's seed follows from the run's seed, the
  stage's name and the shard's number, so a shard is the same whether or not the run was ever interrupted.
- A shard or a student appears complete or not at all. Starting the same command again makes what is missing.
- A folder belongs to one configuration; another one is refused with the difference shown.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

from heal_ref import gear, pace, pure
from heal_ref.config import GearConfig, HealConfig, SampleConfig
from heal_ref.evaluate import Row, is_genuine, rows_of
from heal_ref.generation import sample
from heal_ref.model import LM, load_lm, processes
from heal_ref.records import (
    InputError,
    Problem,
    PureScore,
    Trajectory,
    by_problem,
    limit_by_kind,
    read_records,
    source_commit,
    to_row,
    write_jsonl,
    write_text,
)
from heal_ref.run.sources import load_problems
from heal_ref.tasks.base import Task

ARMS = ("student", "teacher", "rft", "heal")
PROBE = 40  # held-out problems of each kind for the curve through the stages: shown, never used to choose


@dataclass(frozen=True)
class RunSpec:
    """What a run is made of: two models, two problem files, a configuration."""

    teacher: str
    student: str
    train: str
    heldout: str
    config: HealConfig

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the result, flat: dotted name → value. Problem files count by content."""
        flat: dict[str, Any] = {"teacher": self.teacher, "student": self.student}
        for name in ("train", "heldout"):
            flat[name] = file_hash(getattr(self, name))
        for key, value in self.config.to_dict().items():
            for name, inner in value.items() if isinstance(value, dict) else [("", value)]:
                flat[f"{key}.{name}".rstrip(".")] = list(inner) if isinstance(inner, tuple) else inner
        return flat


def file_hash(path: str | Path) -> str:
    """Sixteen hexadecimal digits that stand for a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def shard_seed(seed: int, stage: str, number: int) -> int:
    """The seed of one shard: 31 bits of a hash, so that neighbouring shards share nothing."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}/{number}".encode()).digest()[:4], "big") >> 1


def batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """`items` in consecutive parts of `size`, the last one shorter: the work of one shard each."""
    return [items[i : i + size] for i in range(0, len(items), size)]


class RunFolder:
    """A folder of shards that belongs to one configuration.

    Started by `accelerate launch` or `torchrun` in several processes, each of them makes its part of the missing shards, and
    all of them read all. A shard's seed does not depend on the process, so the shards are the same as with one.
    """

    def __init__(self, path: str | Path, fingerprint: dict[str, Any], quiet: bool = False):
        self.state = processes()
        self.path, self.quiet = Path(path), quiet or not self.state.is_main_process
        with self.state.main_process_first():
            self._claim(fingerprint)

    def _claim(self, fingerprint: dict[str, Any]) -> None:
        recorded = self.path / "config.json"
        for half in self.path.rglob("*.tmp"):  # what a kill left
            half.unlink(missing_ok=True)
        if recorded.exists():
            old = json.loads(recorded.read_text(encoding="utf-8"))
            changed = [f"  {k}: {old.get(k)!r} in the folder, {fingerprint.get(k)!r} now"
                       for k in sorted({*old, *fingerprint}) if old.get(k) != fingerprint.get(k)]
            if changed:
                raise InputError(f"{self.path} belongs to a run with other settings; use another --out, or delete it\n"
                                 + "\n".join(changed))
        else:
            write_text(recorded, json.dumps(fingerprint, indent=1) + "\n")

    def log(self, text: str, **more: Any) -> None:
        """Add a line to log.txt, for people: when, what, and numbers."""
        if self.state.is_main_process:
            with open(self.path / "log.txt", "a", encoding="utf-8") as f:
                f.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}" + "".join(f"; {k} {v}" for k, v in more.items()) + "\n")

    def bar(self, label: str, total: int, done: int = 0, unit: str = "shard") -> tqdm:
        return tqdm(total=total, initial=done, desc=f"{label:<22}", unit=unit, disable=self.quiet, file=sys.stderr)

    def shards(self, stage: str, work: Sequence[Any], make: Callable[[Any, int], Sequence[Any]], seed: int) -> list[Any]:
        """`make(item, shard's seed)` for each item of `work` whose shard is missing; all records, in order."""
        files = [self.path / stage / f"{i:05d}.jsonl" for i in range(len(work))]
        self.state.wait_for_everyone()
        missing = [i for i, f in enumerate(files) if not f.exists()]
        self.state.wait_for_everyone()  # nobody begins before all have looked
        mine = missing[self.state.process_index :: self.state.num_processes]
        with self.bar(stage, len(files), len(files) - len(missing)) as bar:
            for i in mine:
                write_jsonl(files[i], map(to_row, make(work[i], shard_seed(seed, stage, i))))
                bar.update(min(self.state.num_processes, len(files) - bar.n))
        self.state.wait_for_everyone()
        if missing:
            self.log(f"{stage}: {len(missing)} shards made, {len(files) - len(missing)} were there")
        return [record for f in files for record in read_records(f)]


@dataclass
class Method:
    """GEAR, PURE and the sampling around them, for one teacher; every step is a set of shards."""

    folder: RunFolder
    teacher: LM
    task: Task
    config: HealConfig

    def base(self, problems: Sequence[Problem], stage: str = "1-base", n: int = 0) -> list[Trajectory]:
        """n samples of each problem (0: the configured number) under the plain prompt."""
        c = self.config
        return self.folder.shards(stage, batches(problems, c.sample.batch), lambda part, seed: sample(
            self.teacher, self.task, part, n=n or c.sample.n, seed=seed, sampling=c.sample), c.seed)

    def guided(self, base: Sequence[Trajectory]) -> list[Trajectory]:
        """Answer-guided samples of the problems that the teacher mostly fails."""
        c, solved = self.config, pace.solved_share(base)
        hard = [g[0].problem for key, g in by_problem(base).items() if solved[key] < c.pace.guided_below]
        return self.folder.shards("2-guided", batches(hard, c.sample.batch), lambda part, seed: sample(
            self.teacher, self.task, part, n=c.pace.per_problem, seed=seed, sampling=c.sample, guided=True), c.seed)

    def repaired(self, base: Sequence[Trajectory], stage: str = "3-repaired", config: GearConfig | None = None
                 ) -> list[Trajectory]:
        """GEAR's repairs, by the configured reading or by another one."""
        c = self.config
        groups = batches([t for g in by_problem(base).values() for t in g], c.sample.batch * c.sample.n)
        return self.folder.shards(stage, groups, lambda part, seed: gear.repair(
            self.teacher, self.task, part, config or c.gear, seed, sampling=c.sample), c.seed)

    def scored(self, stage: str, trajectories: Sequence[Trajectory]) -> list[PureScore]:
        c = self.config
        right = [t for t in trajectories if t.correct]
        return self.folder.shards(stage, batches(right, 256), lambda part, seed: pure.pure_scores(
            self.teacher, self.task, part, c.pure, seed, sampling=c.sample), c.seed)


def run(spec: RunSpec, out: str | Path, task: Task, *, lms: Sequence[LM] = (), quiet: bool = False, command: str = ""
        ) -> dict[str, Any]:
    """Run the whole method in folder `out`, or what is left of it; returns the report (also `out`/report.json).

    Args:
        lms: teacher and student, if they are loaded already.

    Raises:
        InputError: a bad problem file or model, or a folder that belongs to other settings.
    """
    began, c = time.monotonic(), spec.config
    train_set = limit_by_kind(load_problems(spec.train, task), c.train_limit)
    heldout = limit_by_kind(load_problems(spec.heldout, task), c.eval_limit)
    teacher, student = lms or (load_lm(spec.teacher), load_lm(spec.student))
    pace.check_tokenizers(teacher, student)
    folder = RunFolder(out, spec.fingerprint(), quiet)
    folder.log("started", processes=folder.state.num_processes, **provenance(teacher, command, c.seed, began))
    method = Method(folder, teacher, task, c)

    base = method.base(train_set)
    guided, repaired = method.guided(base), method.repaired(base)
    reference = method.scored("4-scores/reference", pure.unaided(base))
    scored = {"guided": method.scored("4-scores/guided", guided), "repaired": method.scored("4-scores/repaired", repaired)}
    kept = {name: pure.pure_filter(s, c.pure, reference) for name, s in scored.items()}
    stages = pace.build_stages(base, kept["guided"], kept["repaired"], c.pace)

    students = {"student": student, "teacher": teacher}
    for arm, data in (("rft", {"foundation": stages["foundation"]}), ("heal", stages)):
        with folder.bar(f"5-students/{arm}", c.pace.updates, unit="update") as bar:
            students[arm] = pace.distill(student, task, data, c.pace, c.seed, folder=folder.path / "5-students" / arm,
                                         probe=limit_by_kind(heldout, PROBE),
                                         progress=lambda done, _, bar=bar: bar.update(done - bar.n))
    rows = [row for arm in ARMS for row in _evaluate_arm(folder, arm, students[arm], task, heldout, c)]
    counts = {"train problems": len(train_set), "held-out problems": len(heldout), "base": len(base),
              "base correct": sum(t.correct for t in base), "guided": len(guided), "repaired": len(repaired),
              "reference": len(reference), "threshold": round(pure.pure_threshold(reference, c.pure), 6),
              **{f"{name} correct": len(s) for name, s in scored.items()},
              **{f"{name} kept": len(k) for name, k in kept.items()},
              **_repair_counts(base, repaired, c.gear),
              **{f"stage {name}": len(data) for name, data in stages.items()},
              "teacher tokens": sum(t.tokens_spent for t in [*base, *guided, *repaired])}
    report = {"rows": [r.to_dict() for r in rows], "provenance": {
        **provenance(teacher, command, c.seed, began), "config": spec.fingerprint(), "counts": counts,
        "genuine": {name: _genuine_shares(teacher, task, scored[name], kept[name]) for name in scored}}}
    if folder.state.is_main_process:
        write_text(folder.path / "report.json", json.dumps(report, indent=1) + "\n")
    folder.log("finished: report.json")
    return report


def provenance(lm: LM, command: str, seed: int | list[int], began: float) -> dict[str, Any]:
    """Where a result comes from; `began` is what time.monotonic() said at the start."""
    return {"command": command, "commit": source_commit(), "seed": seed, "torch": torch.__version__,
            "transformers": transformers.__version__, "device": str(lm.device), "machine": platform.machine(),
            "minutes": round((time.monotonic() - began) / 60, 2)}


def _evaluate_arm(folder: RunFolder, arm: str, lm: LM, task: Task, heldout: Sequence[Problem], c: HealConfig) -> list[Row]:
    """Sampled (temperature 1) and greedy solutions of the held-out problems, as shards; report rows from them."""
    plain = SampleConfig(max_new_tokens=c.sample.max_new_tokens)
    greedy = SampleConfig(temperature=0.0, max_new_tokens=c.sample.max_new_tokens)
    parts = batches(heldout, c.sample.batch)
    # The same seeds for every arm: differences between arms are paired.
    many = folder.shards(f"6-eval/{arm}", parts, lambda part, seed: sample(
        lm, task, part, n=c.eval_n, seed=seed, sampling=plain), c.seed)
    one = folder.shards(f"6-eval/{arm}-greedy", parts, lambda part, seed: sample(
        lm, task, part, n=1, seed=seed, sampling=greedy), c.seed)
    return rows_of(arm, lm, task, many, one)


def _repair_counts(base: Sequence[Trajectory], repaired: Sequence[Trajectory], config: GearConfig) -> dict[str, int]:
    """What GEAR passed over and why. Counted anew, so that it is the same after any number of interruptions."""
    paths, passed = gear.choose_paths(base, config, lambda t: gear.breakpoint_of(t, config))
    return {"paths repaired": len(paths),
            "hints unusable": len(paths) * config.hints - len(repaired) // config.continuations,
            **{f"not repaired: {reason}": count for reason, count in sorted(passed.items())}}


def _genuine_shares(lm: LM, task: Task, scored: Sequence[PureScore], kept: Sequence[Trajectory]) -> dict[str, float]:
    """What the checker says of PURE's work, where there is a checker: shares before and after the filter."""
    if not task.knows_truth or not scored:
        return {}
    before = [is_genuine(lm, task, s.trajectory) for s in scored]
    after = [is_genuine(lm, task, t) for t in kept]
    return {"before": round(sum(before) / len(before), 4), "after": round(sum(after) / max(len(after), 1), 4),
            "genuine kept": round(sum(after) / max(sum(before), 1), 4)}
