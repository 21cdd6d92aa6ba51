"""What students of a pretrained pair learn from, and what becomes of them.

Rejection sampling, adaptive rejection sampling, HEAL and its controls, with equal updates; the part
`students` of `python -m heal_lab real`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from heal_lab.arms import TRAINED
from heal_lab.compare import Results
from heal_lab.experiment import GENUINE, Count, Trial
from heal_lab.real_world import World
from heal_lab.stats import ratio_difference, two_way_interval
from heal_lab.word_problems import RESULT, SUM, wrong_sums
from heal_ref.evaluate import Row, interval
from heal_ref.model import LM
from heal_ref.records import Problem
from heal_ref.scoring import positions, text_stats
from heal_ref.tasks import Task

RATES = (5e-5, 1e-4, 2e-4)  # learning rates tried on validation problems
ARMS = ("student", "teacher", "rft", "rft_adaptive", "heal", "heal_no_pure", "heal_no_pace")
SURPRISES = ("nats per result", "nats per solution")


def student_part(world: World, student: LM, seeds: Sequence[int], arms: Sequence[str],
                 quiet: bool = False) -> tuple[dict[str, Any], list[Row]]:
    """The part `students` of the record, numbers and rows. `teacher`: the teacher's surprises."""
    about = {name: [getattr(p, name) for p in world.heldout] for name in ("id", "kind", "length")}
    students = {"unit": "seed", "problems": about, "taught": taught(world, arms),
                "teacher": world.kept(f"surprises-teacher-{len(world.heldout)}", lambda: surprises(
                    world.references, world.teacher, world.task, world.heldout)),
                **student_runs(world, student, seeds, arms, quiet)}
    return students, student_rows(students, len(world.splits["train"]))


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
                 quiet=quiet, made=world.made, counts=COUNTED,
                 measure=partial(surprises, world.references))


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
    """The surprise of the teacher and of each arm, and an arm's minus HEAL's; intervals over seeds
    and problems. An untrained model has one run, which is compared with each seed of HEAL."""
    rows = list[Row]()

    def add(arm: str, metric: str, nats: np.ndarray) -> None:  # (S, P)
        rows.append(Row(arm, "all", metric, *two_way_interval(nats), n=nats.shape[1],
                        seeds=len(nats)))

    runs = [teacher, *results.runs.values()]
    for metric in [name for name in SURPRISES if all(name in run for run in runs)]:
        add("the teacher itself", metric, np.array([teacher[metric]]))
        for arm in results.arms:
            add(arm, metric, results.matrix(arm, "all", metric))
        for arm in [arm for arm in results.arms if "heal" in results.arms and arm != "heal"]:
            both = results.seeds(arm, "heal") if arm in TRAINED else None  # all that each has
            mine, heals = (results.matrix(name, "all", metric, both) for name in (arm, "heal"))
            add(f"{arm} − heal", metric, mine - heals)
    return rows


def taught(world: World, arms: Sequence[str]) -> list[dict[str, Any]]:
    """The different examples that students learn from at the end of training: `id` of the problem,
    `source`, `tokens`, `genuine` by the rule, `sums` and `true sums`, `rows` by arm."""
    problems, found = {p.id: p for p in world.splits["train"]}, dict[tuple[str, str], Any]()
    for arm in [arm for arm in arms if arm in TRAINED]:
        *_, last = TRAINED[arm](world.made).stages.values()
        for row in last:
            key, text = row["id"], row["completion"]
            if (key, text) not in found:
                found[key, text] = {
                    "id": key, "source": row["source"], "tokens": len(row["token_ids"]),
                    "genuine": bool(world.task.is_genuine(problems[key], [text])),
                    **dict(zip(("sums", "true sums"), sums(text), strict=True)), "rows": {}}
            rows = found[key, text]["rows"]
            rows[arm] = rows.get(arm, 0) + 1
    return list(found.values())


def taught_rows(examples: Sequence[Mapping[str, Any]], problems: int) -> list[Row]:
    """By arm: the share of all training problems that have an example, and a genuine one; the share
    of its examples that is genuine, and of their sums that is true. The same minus HEAL's.
    Intervals over problems."""
    keys = list(dict.fromkeys(e["id"] for e in examples))
    arms = dict.fromkeys(arm for e in examples for arm in e["rows"])
    rows, pairs = list[Row](), dict[tuple[str, str], np.ndarray]()
    for arm in arms:
        counts = np.zeros((problems, 4))  # examples, genuine ones, sums, true sums
        for e in examples:
            counts[keys.index(e["id"])] += e["rows"].get(arm, 0) * np.array(
                [1, e["genuine"], e["sums"], e["true sums"]])
        number, genuine, written, true = counts.T
        for name, pair in {"problems with an example": (number > 0, np.ones(problems)),
                           "problems with a genuine example": (genuine > 0, np.ones(problems)),
                           "genuine examples": (genuine, number),
                           "true sums in examples": (true, written)}.items():
            pairs[arm, name] = np.array(pair, dtype=float).T
            rows.append(Row(arm, "train", name, *interval(*map(list, pair)), n=problems))
    return rows + [
        Row(f"{arm} − heal", "train", name, *ratio_difference(pair, pairs["heal", name]),
            n=problems)
        for (arm, name), pair in pairs.items() if "heal" in arms and arm != "heal"]


def sums(text: str) -> tuple[int, int]:
    """How many equations of plain numbers, such as "14 × 18 = 252", a solution holds, in LaTeX or
    not, and how many of them are true.

    Example:
        >>> sums(r"So \\( 54 \\times 10 = 540 \\) and \\frac{12}{4} = 4, which is 540 + 4 = 544.")
        (3, 2)
    """
    for latex, plain in ((r"\{,\}", ","), (r"\\(?:times|cdot)", "*"), (r"\\div", "/"),
                         (r"\\(?:text|mathrm){[^{}]*}", " "),
                         (r"\\[dt]?frac{([^{}]+)}{([^{}]+)}", r"\1 / \2"),
                         (r"\\[a-z]+|[\\$]", " ")):
        text = re.sub(latex, plain, text)
    written = len(SUM.findall(text))
    return written, written - len(wrong_sums(text))


def student_rows(students: Mapping[str, Any], problems: int) -> list[Row]:
    """All rows of this part: arms and differences, sums, and what was learnt from, of so many
    training problems."""
    results = Results(students)
    results.groups = {"all": np.arange(len(students["problems"]["id"])), **results.groups}
    return [*results.rows(), *results.differences(("heal", "rft", "rft_adaptive")),
            *sum_rows(students), *surprise_rows(results, students["teacher"]),
            *taught_rows(students["taught"], problems)]


def sum_rows(students: Mapping[str, Any]) -> list[Row]:
    """The share of the sums in sampled solutions that is true, by arm, over its seeds; each
    other arm's share minus HEAL's, over the seeds that both have. Intervals over problems."""
    seeds, rows = dict[str, set[int]](), list[Row]()
    for run in students["runs"]:
        seeds.setdefault(run["arm"], set()).add(run["seed"])

    def counts(arm: str, among: set[int]) -> np.ndarray:  # (P, 2): true sums, sums
        return np.sum([np.transpose([run["true sums"], run["sums"]]) for run in students["runs"]
                       if run["arm"] == arm and run["seed"] in among], axis=0)

    for arm, mine in seeds.items():
        true, written = counts(arm, mine).T.tolist()
        rows.append(Row(arm, "all", "true sums", *interval(true, written), n=len(true),
                        seeds=len(mine)))
    for arm in [arm for arm in seeds if "heal" in seeds and arm != "heal"]:
        both = seeds["heal"] & seeds[arm]
        ours, heals = counts(arm, both), counts("heal", both)
        rows.append(Row(f"{arm} − heal", "all", "true sums", *ratio_difference(ours, heals),
                        n=len(ours), seeds=len(both)))
    return rows


COUNTED: Mapping[str, Count] = {**GENUINE, "sums": lambda lm, task, t: sums(t.text)[0],
                                "true sums": lambda lm, task, t: sums(t.text)[1]}
