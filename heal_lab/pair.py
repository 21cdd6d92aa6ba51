"""The tiny pair from nothing: tokenizer, teacher, base student, problem files (`build-pair`).

Stock Qwen3 classes, random weights. What the teacher knows is decided by its corpus (`Dials`), not
by changing its weights. Training continues from the last checkpoint.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from tqdm.auto import tqdm
from transformers import Qwen3Config, Qwen3ForCausalLM

from heal_lab import clock_corpus as cc
from heal_lab import evidence
from heal_ref.config import GearConfig
from heal_ref.evaluate import Row, rows_of
from heal_ref.gear import repair
from heal_ref.generation import sample
from heal_ref.model import LM, load_lm
from heal_ref.records import InputError, limit_by_kind, source_commit, write_jsonl, write_text
from heal_ref.run.sources import load_problems
from heal_ref.tasks import ClockTask
from heal_ref.train import encode_example, train

Example = Callable[[int, int, Any], tuple[str, str]]  # (seed, number, dials) -> context, target


@dataclass(frozen=True)
class Lesson:
    """One training run on one corpus; it starts from what the lesson before it left."""

    updates: int
    dials: Any  # of the corpus: `Dials` for the clock world
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class Recipe:
    """Size and training of one model of the pair.

    The update at which arithmetic is suddenly learnt is luck, so a fixed number of updates makes
    weak and strong models. `drill` is repeated after the lessons until the model solves `enough`
    of the long mastered validation problems (`mastered_skill`), at most `drills` times.
    """

    hidden: int
    layers: int
    heads: int
    lessons: tuple[Lesson, ...]
    batch: int = 64
    drill: Lesson | None = None
    drills: int = 8
    enough: float = 0.93

    def scaled(self, share: float) -> Self:
        """The same recipe with a share of its updates, at least one per lesson."""
        shorter = [replace(x, updates=max(1, round(x.updates * share))) for x in self.lessons]
        return replace(self, lessons=tuple(shorter))

    def with_dials(self, **dials: Any) -> Self:
        """The same recipe with some dials of all its corpora changed."""
        def move(lesson: Lesson) -> Lesson:
            return replace(lesson, dials=replace(lesson.dials, **dials))

        drill = self.drill and move(self.drill)
        return replace(self, lessons=tuple(map(move, self.lessons)), drill=drill)


TEACHER = Recipe(hidden=128, layers=3, heads=4, lessons=(
    Lesson(3600, cc.FIRST), Lesson(3000, cc.SECOND, 2e-3), Lesson(1200, cc.THIRD, 2e-3),
    Lesson(400, cc.FIRST, 1e-3)), drill=Lesson(400, cc.FIRST, 1e-3))
STUDENT = Recipe(hidden=96, layers=3, heads=4, lessons=(Lesson(3000, cc.PLAIN),),
                 drill=Lesson(400, cc.PLAIN, 1e-3))
WEAK = Recipe(hidden=96, layers=3, heads=4, lessons=(Lesson(300, cc.PLAIN),))  # cannot calculate
RETAUGHT = replace(TEACHER, lessons=(Lesson(400, cc.FIRST, 1e-3),), drill=None)
SKILL_PROBLEMS = 75  # validation problems that decide whether a model needs another drill


def new_model(recipe: Recipe, tokenizer: Any, seed: int) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 model of the recipe's size."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=recipe.hidden, intermediate_size=3 * recipe.hidden,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads, head_dim=recipe.hidden // recipe.heads,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))


def mastered_skill(lm: LM, task: ClockTask) -> float:
    """pass@1 of 4 samples on mastered validation problems of 5 or 6 operations."""
    problems = [p for name, made in cc.make_problems(hours=task.hours) if name == "validation"
                for p in made if p.kind == "mastered" and p.length >= 5]
    tried = sample(lm, task, problems[:SKILL_PROBLEMS], 4, seed=0)
    return sum(t.correct for t in tried) / len(tried)


def world_of(pair: Path) -> ClockTask:
    """The clock world that the teacher of a pair was trained in."""
    recipe = json.loads((pair / "teacher" / "training.json").read_text(encoding="utf-8"))["recipe"]
    return ClockTask(recipe["lessons"][0]["dials"].get("hours", cc.HOURS))  # old records lack it


def build_model(out: Path, recipe: Recipe, seed: int, progress: Any, tokenizer: Any,
                example: Example, skill: Callable[[LM], float] | None = None,
                start: Path | None = None) -> None:
    """Train one model, lesson by lesson, and put it at `out`, complete or not at all.

    With a measure of `skill`, drills follow the lessons until it is `recipe.enough`. `start`: the
    folder of a model to train on, instead of one from random weights.
    """
    if out.exists():
        return
    began, seen = time.monotonic(), 0
    losses: list[float] = []
    skills: list[float] = []
    model = load_lm(start).own_model().float() if start else new_model(recipe, tokenizer, seed)
    work = out.with_name(f"{out.name}.training")
    drills = [recipe.drill] * recipe.drills if skill and recipe.drill else []
    for number, lesson in enumerate([*recipe.lessons, *drills]):
        numbers = range(seen, seen + lesson.updates * recipe.batch)
        texts = (example(seed, i, lesson.dials) for i in tqdm(numbers, "corpus", leave=False))
        data = [encode_example(tokenizer, *text) for text in texts]
        log = train(model, tokenizer, data, folder=work / f"lesson-{number + 1}", seed=seed,
                    updates=lesson.updates, batch=recipe.batch, warmup=100, save_every=250,
                    learning_rate=lesson.learning_rate, progress=progress)
        losses += [round(row["loss"], 4) for row in log]
        seen = numbers.stop
        if skill and number + 1 >= len(recipe.lessons):
            skills.append(skill(LM(model, tokenizer)))
            if skills[-1] >= recipe.enough:
                break
    done = work / "finished"
    model.save_pretrained(done)
    tokenizer.save_pretrained(done)
    about = {"seed": seed, "recipe": asdict(recipe), "parameters": model.num_parameters(),
             "device": str(model.device), "torch": torch.__version__,
             "transformers": transformers.__version__, "commit": source_commit(),
             "minutes": round((time.monotonic() - began) / 60, 1), "skills": skills,
             "losses": losses}
    write_text(done / "training.json", json.dumps(about, indent=1) + "\n")
    os.replace(done, out)
    shutil.rmtree(work)


def build_clock(out: Path, seed: int = 0, progress: Any = None, scale: float = 1.0,
                limit: int = 0, start: Path | None = None, **dials: Any) -> None:
    """Everything under `out`: models, problem files, and behaviour.json on `limit` problems of each
    kind (0 for all). `progress(label)` returns a callback; `scale`: share of the updates, without
    drills if it is not 1; `dials`: those of the corpora that differ from the shipped world's.

    `start`: a pair whose students are copied, and whose teacher gets one more lesson, of 400
    updates, from a corpus with these dials."""
    if start and "hours" in dials:
        raise InputError("a teacher of one clock cannot go on with another: with a pair to start "
                         "from, leave the dial `hours` out, or build a pair from nothing")
    task = world_of(start) if start else ClockTask(dials.get("hours", cc.HOURS))
    for name, problems in cc.make_problems(hours=task.hours):
        rows = ({**asdict(p), "answer": int(p.answer)} for p in problems)
        write_jsonl(out / "clock" / f"{name}.jsonl", rows)
    skill = partial(mastered_skill, task=task) if scale == 1 else None
    if start:
        for name in ("student", "weak"):
            shutil.copytree(start / name, out / name, dirs_exist_ok=True)
        recipe = RETAUGHT.scaled(scale).with_dials(**dials, hours=task.hours)
        build_model(out / "teacher", recipe, seed + 3000, progress and progress("teacher"),
                    cc.build_tokenizer(task.hours), cc.example, start=start / "teacher")
    new = () if start else (("teacher", TEACHER, seed), ("student", STUDENT, seed + 1000),
                            ("weak", WEAK, seed + 2000))
    for name, recipe, own in new:
        build_model(out / name, recipe.scaled(scale).with_dials(**dials), own,
                    progress and progress(name), cc.build_tokenizer(task.hours), cc.example, skill)
    if not (out / "behaviour.json").exists():
        evidence.write_record(out / "behaviour.json", {"rows": [
            row.to_dict() for row in behaviour(out, seed, limit)]})


def behaviour(folder: Path, seed: int = 0, limit: int = 0) -> list[Row]:
    """What a pair can do on validation problems: accuracy; how often largest rise, highest level
    and a random step are the first wrong step; what guided samples and repairs give."""
    task, readings = world_of(folder), {"rise": GearConfig(), "level": GearConfig(signal="level")}
    teacher, student = load_lm(folder / "teacher"), load_lm(folder / "student")
    problems = load_problems(folder / "clock" / "validation.jsonl", task)
    problems = limit_by_kind(problems, limit)
    base = sample(teacher, task, problems, seed=seed)
    guided = sample(teacher, task, problems, seed=seed + 1, guided=True)
    repaired = repair(teacher, task, base, seed=seed + 2)
    rows = rows_of("student", student, task, sample(student, task, problems, seed=seed), [])
    rows += rows_of("teacher", teacher, task, base, [])
    located = evidence.localisation_counts(teacher, task, base, readings)
    helped = [counts for name, tried in (("guided", guided), ("repair", repaired))
              for counts in evidence.outcome_counts(teacher, task, name, tried)]
    return rows + evidence.localisation_rows(located) + evidence.repair_rows(helped)
