"""What students of a pretrained pair learn from, and what becomes of them.

Rejection sampling, adaptive rejection sampling, HEAL and its controls, with equal updates; the part
`students` of `python -m heal_lab real`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np

from heal_lab.arms import TRAINED
from heal_lab.compare import Results
from heal_lab.experiment import Trial
from heal_lab.real_world import World
from heal_lab.stats import ratio_difference, two_way_interval
from heal_lab.word_problems import RESULT
from heal_ref.evaluate import Row, interval
from heal_ref.model import LM
from heal_ref.records import Problem
from heal_ref.run.folder import short_hash
from heal_ref.scoring import positions, text_stats
from heal_ref.tasks import Task

RATES = (5e-5, 1e-4, 2e-4)  # learning rates tried on validation problems
ARMS = ("student", "rft", "rft_adaptive", "heal", "heal_no_pure", "heal_no_pace")
ELSEWHERE = ("gold", "second_round", "second_round_teacher", "rft_adaptive_frontier")  # the clock's
SURPRISES = ("nats per result", "nats per solution")


def student_part(world: World, student: LM, seeds: Sequence[int], arms: Sequence[str],
                 quiet: bool = False) -> None:
    """Make and keep the part `students` of the record, with the runs of earlier launches that had
    the same settings. `teacher`: the teacher's surprises."""
    settings = short_hash(asdict(world.config))
    before = kept_students(world, student)
    earlier = before["runs"] if before.get("settings") == settings else []
    made = student_runs(world, student, seeds, arms, quiet)
    new = {(run["arm"], run["seed"]) for run in made["runs"]}
    runs = made["runs"] + [run for run in earlier if (run["arm"], run["seed"]) not in new]
    about = {name: [getattr(p, name) for p in world.heldout] for name in ("id", "kind", "length")}
    students = {"unit": "seed", "problems": about, "settings": settings,
                "taught": taught(world, list(dict.fromkeys(run["arm"] for run in runs))),
                "teacher": world.kept(f"surprises-teacher-{len(world.heldout)}", lambda: surprises(
                    world.references, world.teacher, world.task, world.heldout)),
                "rates": made["rates"] or before.get("rates", {}), "runs": runs}
    world.keep("students", {"weights": student.weights, "students": students})


def kept_students(world: World, student: LM) -> dict[str, Any]:
    """What `student_part` stored, or {} if it was for another student."""
    kept = world.kept("students", dict) if world.has("students") else {}
    return kept["students"] if kept and kept["weights"] == student.weights else {}


def student_runs(world: World, student: LM, seeds: Sequence[int], arms: Sequence[str],
                 quiet: bool = False) -> dict[str, Any]:
    """`rates`: what share of its solutions of validation problems, sampled and greedy ones
    together, rejection sampling's student gets right, by learning rate.
    `runs`: every arm with every seed, of training and evaluation, at the best of these rates, on
    held-out numbers and on stories never seen; an untrained model with the first seed only. What
    the teacher made is the same for all."""
    # 1) the rate for all arms: the one that is best for the baseline
    rates = dict[str, float]()
    for rate in RATES if {*arms} & {*TRAINED} else ():
        result = trial(world, student, rate, quiet=quiet).result("rft")
        right = sum(result["correct"]) + sum(result["greedy"])
        rates[f"{rate:g}"] = right / ((result["n"] + 1) * len(result["greedy"]))
    best = float(max(rates, key=lambda rate: rates[rate], default=RATES[0]))
    # 2) the arms
    runs = []
    for seed in seeds:
        mine = trial(world, student, best, seed, quiet)
        runs += [{"pair": "real", "seed": seed, "arm": arm, **mine.result(arm)} for arm in arms
                 if arm in TRAINED or seed == seeds[0]]
    return {"rates": rates, "runs": runs}


def trial(world: World, student: LM, rate: float, seed: int | None = None, quiet: bool = False
          ) -> Trial:
    """Students with this learning rate and seed; without a seed, on validation problems."""
    c, name = world.config, f"rate-{rate:g}" if seed is None else f"seed-{seed}"
    config = replace(c, seed=c.seed if seed is None else seed,
                     pace=replace(c.pace, learning_rate=rate))
    problems = {"train": world.splits["train"], "validation": [],
                "held-out": world.splits["validation"] if seed is None else world.heldout}
    return Trial(world.path / name, world.task, world.teacher, student, problems, config,
                 quiet=quiet, made=world.made, measure=partial(surprises, world.references))


def surprises(references: Mapping[str, str], lm: LM, task: Task, problems: Sequence[Problem]
              ) -> dict[str, list[float]]:
    """How surprising each problem's reference solution is to a model, −log p in nats: of all its
    tokens, and of those of its results, the mean over results. Each token is given what stands
    before it, so that a model too weak to solve a problem can still be better or worse at a step.
    Lower is better; a number is worth no more than the style of the reference allows. Nothing at
    all if a text is longer than the model's context: arms are compared on the same problems."""
    texts = [references[p.id].strip() for p in problems]
    encoded = [lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
               for text in texts]
    pairs = [(lm.encode(task.prompt(p)), e["input_ids"])
             for p, e in zip(problems, encoded, strict=True)]
    if any(len(prompt) + len(ids) > positions(lm.config) for prompt, ids in pairs):
        return {}
    stats = text_stats(lm, pairs)
    out: dict[str, list[float]] = {name: [] for name in SURPRISES}
    for text, e, (_, logprob) in zip(texts, encoded, stats, strict=True):
        results = [found.span(1) for found in RESULT.finditer(text)]
        inside = [i for i, (a, b) in enumerate(e["offset_mapping"])
                  if any(a < end and start < b for start, end in results)]
        out["nats per result"].append(round(-sum(logprob[i] for i in inside) / len(results), 4))
        out["nats per solution"].append(round(-sum(logprob), 3))
    return out


def surprise_rows(results: Results, teacher: Mapping[str, Sequence[float]]) -> list[Row]:
    """The surprise of the teacher and of each arm, and an arm's minus HEAL's and minus the base
    student's; intervals over seeds and problems. An untrained model has one run, which is compared
    with each seed of the other."""
    rows = list[Row]()

    def add(arm: str, metric: str, nats: np.ndarray) -> None:  # (S, P)
        rows.append(Row(arm, "all", metric, *two_way_interval(nats), n=nats.shape[1],
                        seeds=len(nats)))

    runs = [teacher, *results.runs.values()]
    for metric in [name for name in SURPRISES if all(name in run for run in runs)]:
        add("the teacher itself", metric, np.array([teacher[metric]]))
        for arm in results.arms:
            add(arm, metric, results.matrix(arm, "all", metric))
        for arm, other in permutations(results.arms, 2):
            trained = {arm, other} <= {*TRAINED}
            both = results.seeds(arm, other) if trained else None  # all that each has
            if other in ("heal", "student") and both != []:
                mine, theirs = (results.matrix(a, "all", metric, both) for a in (arm, other))
                add(f"{arm} − {other}", metric, mine - theirs)
    return rows


def taught(world: World, arms: Sequence[str]) -> list[dict[str, Any]]:
    """The different examples that students learn from at the end of training: `id` of the problem,
    `source`, `tokens`, `genuine` by the rule, `rows` by arm."""
    problems, found = {p.id: p for p in world.splits["train"]}, dict[tuple[str, str], Any]()
    for arm in [arm for arm in arms if arm in TRAINED]:
        *_, last = TRAINED[arm](world.made).stages.values()
        for row in last:
            key, text = row["id"], row["completion"]
            if (key, text) not in found:
                found[key, text] = {
                    "id": key, "source": row["source"], "tokens": len(row["token_ids"]),
                    "genuine": bool(world.task.is_genuine(problems[key], [text])), "rows": {}}
            rows = found[key, text]["rows"]
            rows[arm] = rows.get(arm, 0) + 1
    return list(found.values())


def taught_rows(examples: Sequence[Mapping[str, Any]], problems: int, arms: Sequence[str]
                ) -> list[Row]:
    """By arm: the share of all training problems that have an example, and a genuine one; the share
    of its examples that is genuine. The same minus HEAL's. Intervals over problems."""
    keys = list(dict.fromkeys(e["id"] for e in examples))
    rows, pairs = list[Row](), dict[tuple[str, str], np.ndarray]()
    for arm in arms:
        counts = np.zeros((problems, 2))  # examples, genuine ones
        for e in examples:
            counts[keys.index(e["id"])] += e["rows"].get(arm, 0) * np.array([1, e["genuine"]])
        number, genuine = counts.T
        for name, pair in {"problems with an example": (number > 0, np.ones(problems)),
                           "problems with a genuine example": (genuine > 0, np.ones(problems)),
                           "genuine examples": (genuine, number)}.items():
            if any(pair[1]):  # an arm without examples has no share of genuine ones
                pairs[arm, name] = np.array(pair, dtype=float).T
                rows.append(Row(arm, "train", name, *interval(*map(list, pair)), n=problems))
    return rows + [
        Row(f"{arm} − heal", "train", name, *ratio_difference(pair, pairs["heal", name]),
            n=problems)
        for (arm, name), pair in pairs.items() if ("heal", name) in pairs and arm != "heal"]


def student_rows(students: Mapping[str, Any], problems: int) -> list[Row]:
    """All rows of this part: arms and differences, surprises, and what was learnt from, of so many
    training problems."""
    results = Results(students)
    results.groups = {"all": np.arange(len(students["problems"]["id"])), **results.groups}
    return [*results.rows(), *results.differences(("heal", "rft", "rft_adaptive")),
            *surprise_rows(results, students["teacher"]),
            *taught_rows(students["taught"], problems, [a for a in results.arms if a in TRAINED])]
