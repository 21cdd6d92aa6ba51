"""The tiny pair from nothing: tokenizer, teacher, base student and problem files (`heal_lab build-pair`).

- Stock Qwen3 classes, random weights, trained on the clock corpus: nothing that a big model would not also do.
- What the teacher knows is decided by its corpus (`Dials`), not by an intervention on its weights.
- Resumable: training goes on from the last complete checkpoint, a finished model is not trained again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm
from transformers import Qwen3Config, Qwen3ForCausalLM

from heal_lab.clock_corpus import FIRST, PLAIN, SECOND, THIRD, Dials, build_tokenizer, example, make_problems
from heal_lab.scores import cluster_interval, share
from heal_ref.evaluate import Row, first_wrong_step, interval, is_genuine, rows_of
from heal_ref.gear import find_breakpoint, repair
from heal_ref.generation import sample
from heal_ref.model import LM, load_lm
from heal_ref.pure import pure_scores
from heal_ref.records import Trajectory, by_problem, limit_by_kind, source_commit, write_jsonl, write_text
from heal_ref.run.sources import load_problems
from heal_ref.tasks import ClockTask
from heal_ref.train import encode_example, train


@dataclass(frozen=True)
class Lesson:
    """One training run on one corpus; it starts from what the lesson before it left."""

    updates: int
    dials: Any  # of the corpus: `Dials` for the clock world
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class Recipe:
    """Size and training of one model of the pair."""

    hidden: int
    layers: int
    heads: int
    lessons: tuple[Lesson, ...]
    batch: int = 64

    def scaled(self, share: float) -> Recipe:
        """The same recipe with a share of its updates, at least one a lesson."""
        return replace(self, lessons=tuple(replace(x, updates=max(1, round(x.updates * share))) for x in self.lessons))


TEACHER = Recipe(hidden=128, layers=3, heads=4, lessons=(
    Lesson(3600, FIRST), Lesson(3000, SECOND, 2e-3), Lesson(1200, THIRD, 2e-3), Lesson(400, FIRST, 1e-3)))
STUDENT = Recipe(hidden=96, layers=3, heads=4, lessons=(Lesson(3000, PLAIN),))


Corpus = Callable[[Any, Any, int, range], list[dict[str, list[int]]]]  # (tokenizer, dials, seed, numbers) -> examples


def corpus(tokenizer: Any, dials: Dials, seed: int, numbers: range) -> list[dict[str, list[int]]]:
    """The examples of a corpus with these numbers, tokenized."""
    bar = tqdm(numbers, "corpus", leave=False, mininterval=1)
    return [encode_example(tokenizer, *example(seed, i, dials)) for i in bar]


def new_model(recipe: Recipe, tokenizer: Any, seed: int) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 model of the recipe's size."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=recipe.hidden, intermediate_size=3 * recipe.hidden,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, num_key_value_heads=recipe.heads,
        head_dim=recipe.hidden // recipe.heads, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))


def build_model(out: Path, recipe: Recipe, seed: int, progress: Any, tokenizer: Any, corpus: Corpus) -> None:
    """Train one model, lesson by lesson, and put it at `out`, complete or not at all."""
    if out.exists():
        return
    start, seen = time.monotonic(), 0
    losses: list[float] = []
    model, work = new_model(recipe, tokenizer, seed), out.with_name(out.name + ".training")
    for number, lesson in enumerate(recipe.lessons):
        folder = work / f"lesson-{number + 1}"
        numbers = range(seen, seen := seen + lesson.updates * recipe.batch)
        log = train(model, tokenizer, corpus(tokenizer, lesson.dials, seed, numbers), folder=folder,
                    updates=lesson.updates, batch=recipe.batch, learning_rate=lesson.learning_rate, warmup=100,
                    seed=seed, save_every=250, progress=progress)
        losses += [row["loss"] for row in log]
    done = work / "finished"
    model.save_pretrained(done)
    tokenizer.save_pretrained(done)
    write_text(done / "training.json", json.dumps(
        {"seed": seed, "recipe": asdict(recipe), "parameters": model.num_parameters(), "device": str(model.device),
         "torch": torch.__version__, "transformers": transformers.__version__, "commit": source_commit(),
         "minutes": round((time.monotonic() - start) / 60, 1), "losses": [round(x, 4) for x in losses]}, indent=1) + "\n")
    os.replace(done, out)
    shutil.rmtree(work)


def write_problem_files(folder: Path, seed: int = 0) -> None:
    """The train, validation and held-out files."""
    for name, problems in make_problems(seed):
        write_jsonl(folder / f"{name}.jsonl", ({**asdict(p), "answer": int(p.answer)} for p in problems))


def build_pair(out: Path, seed: int = 0, progress: Any = None, scale: float = 1.0, limit: int = 0) -> None:
    """Everything under `out`: `teacher/`, `student/`, `clock/*.jsonl`, and `behaviour.json`, what they can do.

    Args:
        scale: share of the recipe's updates (for tests).
        limit: problems of each kind on which the pair is measured, 0 for all.
        progress: `progress(label)` returns a callback `(done, total)`.
    """
    write_problem_files(out / "clock")
    for name, recipe in (("teacher", TEACHER), ("student", STUDENT)):
        build_model(out / name, recipe.scaled(scale), seed if name == "teacher" else seed + 1000, progress and progress(name),
                    build_tokenizer(), corpus)
    if not (out / "behaviour.json").exists():
        rows = measure_pair(out, seed, limit)
        write_text(out / "behaviour.json", json.dumps({"rows": [r.to_dict() for r in rows]}, indent=1) + "\n")


# ------------------------------------------------------------------------------------------- behaviour


def measure_pair(folder: Path, seed: int = 0, limit: int = 0) -> list[Row]:
    """What a pair can do, on its validation problems: rows of competence, ceiling, localisation, repairs and
    shortcuts, with 95 % intervals. The held-out problems are not touched.

    Args:
        limit: problems of each kind, 0 for all.
    """
    task = ClockTask()
    teacher, student = load_lm(folder / "teacher"), load_lm(folder / "student")
    problems = limit_by_kind(load_problems(folder / "clock" / "validation.jsonl", task), limit)
    base = sample(teacher, task, problems, seed=seed)
    guided = sample(teacher, task, problems, seed=seed + 1, guided=True)
    repaired = repair(teacher, task, base, seed=seed + 2)
    rows = rows_of("student", student, task, sample(student, task, problems, seed=seed), [])
    rows += rows_of("teacher", teacher, task, base, [])
    for kind in dict.fromkeys(p.kind for p in problems):
        mine, shown, mended = ([t for t in source if t.problem.kind == kind] for source in (base, guided, repaired))
        rows += _ceiling_rows(kind, mine) + _localisation_rows(kind, teacher, task, mine)
        rows += _helped_rows(kind, "guided", teacher, task, shown) + _helped_rows(kind, "repair", teacher, task, mended)
    for name, source in (("guided", guided), ("repair", repaired)):
        triples = [(s.trajectory.problem.id, max(s.perplexity), not is_genuine(teacher, task, s.trajectory))
                   for s in pure_scores(teacher, task, source)]
        rows.append(Row("teacher", "all", f"{name}: AUROC of worst-step perplexity for spurious",
                        *cluster_interval(triples), n=len({t[0] for t in triples})))
    return rows


def _share_row(kind: str, metric: str, trajectories: list[Trajectory], holds: Callable[[Trajectory], bool]) -> Row:
    return Row("teacher", kind, metric, *share(trajectories, holds), n=len(by_problem(trajectories)))


def _ceiling_rows(kind: str, base: list[Trajectory]) -> list[Row]:
    """How often the teacher is right by chain length, and how many problems it never solves."""
    unsolved = [float(not any(t.correct for t in g)) for g in by_problem(base).values()]
    return [_share_row(kind, "pass@1, 3-4 operations", [t for t in base if t.problem.length <= 4], lambda t: t.correct),
            _share_row(kind, "pass@1, 5-6 operations", [t for t in base if t.problem.length > 4], lambda t: t.correct),
            Row("teacher", kind, "problems unsolved in all samples", *interval(unsolved), n=len(unsolved))]


def _localisation_rows(kind: str, lm: LM, task: ClockTask, base: list[Trajectory]) -> list[Row]:
    """How often the breakpoint is the first wrong step, for each signal and for a random step."""
    wrong = {id(t): first_wrong_step(lm, task, t) for t in base if not t.correct}
    failed = [t for t in base if wrong.get(id(t)) is not None]

    def hits(signal: str, t: Trajectory) -> bool:
        return find_breakpoint(t.step_entropy, signal=signal) == wrong[id(t)]

    rows = [_share_row(kind, f"{signal} = first wrong step", failed, partial(hits, signal)) for signal in ("surge", "level")]
    guess = [1 / (len(t.steps) - 1) for t in failed if len(t.steps) > 1]
    return [*rows, Row("teacher", kind, "random step = first wrong step", *interval(guess), n=len(by_problem(failed)))]


def _helped_rows(kind: str, name: str, lm: LM, task: ClockTask, helped: list[Trajectory]) -> list[Row]:
    """How often helped solutions end right, how many of those are right in every step, problems reached."""
    reached = [float(any(is_genuine(lm, task, t) for t in g)) for g in by_problem(helped).values()]
    return [_share_row(kind, f"{name}: correct", helped, lambda t: t.correct),
            _share_row(kind, f"{name}: genuine if correct", [t for t in helped if t.correct],
                       lambda t: is_genuine(lm, task, t)),
            Row("teacher", kind, f"{name}: problems with a genuine one", *interval(reached), n=len(reached))]
