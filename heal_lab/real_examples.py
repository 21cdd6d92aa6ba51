"""Real repairs on problems of our own (`data/math`), texts included: for notebook 06.

Made by `python -m heal_lab real --parts examples`. The word problems of the other parts are by
others, so their texts are not kept.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from heal_ref.config import HealConfig
from heal_ref.gear import breakpoint_of, repair
from heal_ref.generation import sample
from heal_ref.model import LM
from heal_ref.pure import pure_scores
from heal_ref.records import Problem, Trajectory, by_problem
from heal_ref.tasks.base import Task

HINTS: tuple[Any, ...] = ("step", "none", "answer", "bridge")


def as_json(t: Trajectory) -> dict[str, Any]:
    """A trajectory as plain JSON, its numbers rounded to 4 decimals."""
    row = asdict(replace(t, entropy=[round(x, 4) for x in t.entropy],
                         logprob=[round(x, 4) for x in t.logprob]))
    del row["place"]
    return row


def from_json(row: dict[str, Any]) -> Trajectory:
    """The trajectory that `as_json` made plain; `ratio`, which repairs have beside it, is left out.

    Example:
        >>> t = Trajectory(Problem("p", "1 + 1?", "2"), "base", "", "2", [7], [0.5], [-0.5],
        ...                [(0, 1)], "2", True, True, 2, step_ends=[1])
        >>> from_json(as_json(t)) == t
        True
    """
    own = {key: value for key, value in row.items() if key != "ratio"}
    return Trajectory(**{**own, "problem": Problem(**row["problem"]),
                         "steps": [(a, b) for a, b in row["steps"]]})


def examples(lm: LM, task: Task, problems: Sequence[Problem], config: HealConfig
             ) -> list[dict[str, Any]]:
    """Per problem: how many of its samples are right. Of a problem without a right one also the
    first failed chain of at least two steps (finished, if one is) with the text of each token, the
    step at which it is cut, and for each hint the repairs, the right ones with PURE's ratio of each
    step."""
    base = by_problem(sample(lm, task, problems, seed=config.seed, sampling=config.sample))
    rows: dict[str, dict[str, Any]] = {
        key: {"problem": asdict(mine[0].problem), "right": sum(t.correct for t in mine)}
        for key, mine in base.items()}
    chains = list[Trajectory]()
    for key, mine in base.items():
        long = sorted((t for t in mine if len(t.steps) > 1), key=lambda t: not t.finished)
        if long and not rows[key]["right"]:
            chains.append(long[0])
            rows[key] |= {"chain": as_json(long[0]), "cut": breakpoint_of(long[0], config.gear),
                          "pieces": lm.pieces(long[0].token_ids),
                          "repairs": {hint: [] for hint in HINTS}}
    for hint in HINTS:
        made = repair(lm, task, chains, replace(config.gear, hint=hint), config.seed,
                      sampling=config.sample)
        scores = iter(pure_scores(lm, task, made))  # of the right ones, in order
        for t in made:
            ratio = next(scores).ratio if t.correct else None
            rows[t.problem.id]["repairs"][hint].append({**as_json(t), "ratio": ratio})
    return list(rows.values())
