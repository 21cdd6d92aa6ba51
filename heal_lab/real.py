"""HEAL on a real pretrained pair and word problems by others (`python -m heal_lab real`).

Parts, each resumable and each collected into real.json as far as it is finished:

- `gear`: what a hindsight step at the rise repairs of the problems that two samples leave unsolved,
  against sampling again; `rise`, `level`, `random`: the other hints, and no hint, at each place;
  with `rise` also the answer in view from the start, without a cut.
- `breaks`: after which step a failed chain is lost, by continuing from each of its prefixes; which
  reading of entropy finds that step.
- `pure`: does PURE tell genuine solutions from spurious ones, among those that the parts before it
  guided and repaired?
- `students`: rejection sampling, adaptive rejection sampling, HEAL and its controls.
- `examples`: repairs of problems of our own, with texts.

Records hold numbers per problem and no texts of others.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from heal_lab.evidence import Counts, outcome_counts, reach_rows, repair_rows
from heal_lab.evidence_pure import (
    BASELINES,
    READINGS,
    UNAIDED,
    Raw,
    Score,
    different,
    functions,
    passing_rows,
    raw_scores,
    threshold_of,
)
from heal_lab.real_examples import HINTS, examples
from heal_lab.real_students import kept_students, student_rows
from heal_lab.real_world import World
from heal_lab.stats import auroc, cluster_interval, ratio_difference, ratio_of_ratios
from heal_ref import pure
from heal_ref.config import GearConfig, PureConfig
from heal_ref.evaluate import Row, interval
from heal_ref.gear import Cut, breakpoint_of, repair
from heal_ref.model import LM
from heal_ref.pace import solved_share
from heal_ref.records import DATA, Trajectory, light, select
from heal_ref.run.folder import batches
from heal_ref.run.sources import load_problems
from heal_ref.scoring import text_stats

PLACES = ("rise", "level", "random")  # of the cut: `GearConfig.signal`
PARTS = ("gear", *PLACES, "breaks", "pure", "students", "examples")
FIRST = (HINTS[0], "rise")  # the hint and place that `gear` measures
OTHERS = {f"{hint}-at-{place}": (hint, place) for place in PLACES for hint in HINTS
          if (hint, place) != FIRST}
SAMPLES = "samples"  # the arm of the teacher's first ones
GUIDED = "answer in view from the start"
AGAIN = 2  # samples per problem of the control without GEAR
CHAINS = 64  # failed chains, at most, that are continued from each prefix: one batch of 512
EXAMPLES = 6  # problems of our own
CONTINUED = 8  # continuations from each prefix of a failed chain
SIGNALS = {
    "max rise": GearConfig(), "max level": GearConfig(signal="level"),
    "mean surge": GearConfig(step="mean", signal="surge"),
    "mean level": GearConfig(step="mean", signal="level"),
    "mean surge, first third": GearConfig(step="mean", signal="surge", window=1 / 3)}
FIXED = {"first step": 0, "second step": 1, "last step": -1}  # places without a look at entropy


# ----------------------------------------------------------------------------------------- GEAR


def gear_counts(world: World) -> list[Counts]:
    """Per problem: attempts, right ones, genuine ones and tokens, of the samples (all problems), of
    sampling again and of hindsight steps (unsolved ones), of these also the usable share."""
    lm, task = world.teacher, world.task
    problems = list({t.problem.id: t.problem for t in light(world.hard)}.values())
    again, out = world.method.sampled(problems, "1-again", n=AGAIN), list[Counts]()
    for n in (1, AGAIN):
        some = select(again, [i for i, t in enumerate(light(again)) if t.index < n])
        out += outcome_counts(lm, task, f"sample again, {n} more", some)
    out += outcome_counts(lm, task, SAMPLES, world.base)
    return out + hint_counts(world, *FIRST)


def hint_counts(world: World, hint: Any, place: str) -> list[Counts]:
    """Per problem: attempts, right ones, genuine ones, tokens, usable hints."""
    gear, arm = world.config.gear, f"{hint} at {place}"
    counts = outcome_counts(world.teacher, world.task, arm, repaired(world, hint, place))
    most = min(gear.paths, world.config.sample.n) * gear.hints * gear.continuations
    return [{**c, "usable": c["attempts"] / most} for c in counts]


def repaired(world: World, hint: Any, place: Any = "rise") -> Sequence[Trajectory]:
    """What this hint makes of the unsolved samples, cut at this place."""
    config = replace(world.config.gear, hint=hint, signal=place)
    return world.method.repaired(world.hard, f"3-{hint}-at-{place}", config)


def guided_counts(world: World) -> list[Counts]:
    """The same of solutions with the answer in view from the start: without GEAR's cut."""
    unsolved, made = {t.problem.id for t in light(world.hard)}, world.method.guided(world.base)
    some = select(made, [i for i, t in enumerate(light(made)) if t.problem.id in unsolved])
    return outcome_counts(world.teacher, world.task, GUIDED, some)


def gear_rows(counts: Sequence[Counts]) -> list[Row]:
    """Shares and yields by arm, and how much more a hint yields per 1,000 tokens than sampling each
    problem again."""
    rows = repair_rows(counts) + reach_rows(counts)
    control = f"sample again, {AGAIN} more"
    arms = dict.fromkeys(c["arm"] for c in counts)
    return rows + [difference(counts, arm, control) for arm in arms
                   if control in arms and "sample" not in arm]


def difference(counts: Sequence[Counts], arm: str, other: str,
               number: Callable[[Counts], float] = itemgetter("genuine")) -> Row:
    """How many more solutions per 1,000 tokens an arm gives than another: genuine ones, or those
    that `number` counts, over the problems of both; ValueError if there are none. Counts of one
    problem, such as those of two runs, are added up.

    Example:
        >>> counts = [{"arm": arm, "id": "p", "genuine": n, "tokens": 500}
        ...           for arm, n in (("step", 1), ("step", 2), ("none", 0))]
        >>> difference(counts, "step", "none").mean
        3.0
    """
    ours, theirs = _yields(counts, arm, other, number)
    return Row(f"{arm} − {other}", "train", "genuine per 1,000 tokens",
               *ratio_difference(ours, theirs, per=1000), n=len(ours))


def times(counts: Sequence[Counts], arm: str, other: str,
          number: Callable[[Counts], float] = itemgetter("genuine")) -> Row:
    """The ratio of two arms' solutions per token; see `difference`.

    Example:
        >>> counts = [{"arm": arm, "id": "p", "genuine": n, "tokens": 500}
        ...           for arm, n in (("step", 3), ("none", 1))]
        >>> times(counts, "step", "none").mean
        3.0
    """
    ours, theirs = _yields(counts, arm, other, number)
    return Row(f"{arm} / {other}", "train", "ratio", *ratio_of_ratios(ours, theirs),
               n=len(ours))


def _yields(counts: Sequence[Counts], arm: str, other: str, number: Callable[[Counts], float]
            ) -> tuple[list[list[float]], list[list[float]]]:
    """Solutions and tokens per problem of two arms, for the problems of both."""
    sides: list[dict[str, list[float]]] = [{}, {}]
    for side, name in zip(sides, (arm, other), strict=True):
        for c in counts:
            if c["arm"] == name:
                solutions, tokens = side.get(c["id"], (0.0, 0.0))
                side[c["id"]] = [solutions + number(c), tokens + c["tokens"]]
    ours, theirs = sides
    both = [key for key in ours if key in theirs]
    if not both:
        raise ValueError(f"{arm} and {other} have no problem in common")
    return [ours[key] for key in both], [theirs[key] for key in both]


# --------------------------------------------------------------------------------------- breaks


def failed_samples(base: Sequence[Trajectory]) -> Sequence[Trajectory]:
    """One failed sample per problem, finished and of at least two steps: of problems that are
    solved at least once first, since a chain whose problem is never solved has nothing to lose."""
    solved, first = solved_share(base), dict[str, int]()
    for i, t in enumerate(light(base)):
        if not t.correct and t.finished and len(t.steps) > 1:
            first.setdefault(t.problem.id, i)
    order = sorted(first, key=lambda key: not solved[key])
    return select(base, [first[key] for key in order])


def break_counts(world: World) -> list[dict[str, Any]]:
    """Per failed chain of K steps: `success`, K shares of right continuations after its first 0 …
    K − 1 steps; the step that each reading of entropy chooses; tokens spent."""
    chains, c = list(failed_samples(world.base))[:CHAINS], world.config
    longest = max((len(t.steps) for t in chains), default=0)
    gear = GearConfig(hint="none", max_correct=10**6, paths=1, hints=1, continuations=CONTINUED)
    tried = world.method.folder.shards("3-prefixes", range(longest), lambda k, seed: repair(
        world.teacher, world.task, [t for t in chains if len(t.steps) > k], gear, seed,
        sampling=c.sample, cut=at(k)), c.seed)  # one shard for each k, which processes share
    success: dict[str, list[float]] = {t.problem.id: [0.0] * len(t.steps) for t in chains}
    spent = dict.fromkeys(success, 0)
    for t in light(tried):
        success[t.problem.id][t.breakpoint or 0] += t.correct / CONTINUED
        spent[t.problem.id] += t.tokens_spent
    return [{"id": t.problem.id, "success": success[t.problem.id], "tokens": spent[t.problem.id],
             "chosen": {name: breakpoint_of(t, how) for name, how in SIGNALS.items()}}
            for t in chains]


def at(k: int) -> Cut:
    """A cut after k steps, whatever the trajectory."""
    return lambda _: k


def drops(success: Sequence[float]) -> list[float]:
    """What each step loses, s_k − s_{k+1}; after the last step nothing is left."""
    return [a - b for a, b in zip(success, [*success[1:], 0.0], strict=True)]


def lost_at(success: Sequence[float]) -> int | None:
    """The step (0-based) at which most success is lost (`drops`). None if no prefix was continued
    rightly at least twice in eight times.

    Example:
        >>> lost_at([0.5, 0.625, 0.125])  # what step 1 says is wrong
        1
    """
    if max(success, default=0.0) < 2 / CONTINUED:
        return None
    return int(np.argmax(drops(success)))


def chosen(chain: Mapping[str, Any], name: str) -> int | None:
    """The step (0-based) that a reading of entropy or a fixed place names; None: there is none."""
    if name in FIXED:
        return FIXED[name] % len(chain["success"])
    return chain["chosen"][name]


def break_rows(chains: Sequence[Mapping[str, Any]]) -> list[Row]:
    """How often each reading's step is the one at which most success is lost, and how much is lost
    at it; fixed places and a random step for comparison, and how much each does better than a
    random step. Only chains that had success to lose; of all chains, the success of what is
    kept before that step, against that of a new sample."""
    lost = [(c, k) for c in chains if (k := lost_at(c["success"])) is not None]
    rows = list[Row]()

    def add(name: str, metric: str, values: Sequence[float], random: Sequence[float] = ()) -> None:
        rows.append(Row(name, "train", metric, *interval(values), n=len(values)))
        if random:
            above = [v - r for v, r in zip(values, random, strict=True)]
            rows.append(Row(f"{name} − random step", "train", metric, *interval(above),
                            n=len(above)))

    hit, fall, kept = "chosen step = break", "success lost at it", "success of what is kept"
    chance = {hit: [1 / len(c["success"]) for c, _ in lost],
              fall: [c["success"][0] / len(c["success"]) for c, _ in lost],  # the sum of all drops
              kept: [float(np.mean(c["success"])) for c in chains]}
    add("chains", "had success to lose", [float(lost_at(c["success"]) is not None) for c in chains])
    for name in (*SIGNALS, *FIXED):
        steps = [chosen(c, name) for c, _ in lost]
        add(name, hit, [float(step == k) for step, (_, k) in zip(steps, lost, strict=True)],
            chance[hit])
        add(name, fall, [0.0 if step is None else drops(c["success"])[step]
                         for step, (c, _) in zip(steps, lost, strict=True)], chance[fall])
        add(name, kept, [c["success"][chosen(c, name) or 0] for c in chains], chance[kept])
    for metric, values in chance.items():
        add("random step", metric, values)
    for name in SIGNALS:
        less = [c["success"][chosen(c, name) or 0] - c["success"][0] for c in chains]
        rows.append(Row(f"{name} − new sample", "train", kept, *interval(less), n=len(less)))
    return rows


# ----------------------------------------------------------------------------------------- PURE


def pure_raws(world: World, make: bool = True) -> list[Raw]:
    """Raw scores of right solutions: unaided ones, and those of the parts that are finished: the
    answer in view from the start, each hint at each place. Each source is kept when it is made;
    without `make` only those that are kept count."""
    arms = {"gear": FIRST, **OTHERS}
    guided = {"guided": lambda: world.method.guided(world.base)} if world.has("guided") else {}
    sources: dict[str, Any] = {**guided, UNAIDED: lambda: pure.unaided(world.base, seldom=1.0),
                               **{" at ".join(pair): partial(repaired, world, *pair)
                                  for arm, pair in arms.items() if world.has(arm)}}
    files = {name: f"pure-{name}".replace(" ", "-") for name in sources}
    return [raw for name, source in sources.items() if make or world.has(files[name])
            for raw in world.kept(files[name], partial(source_raws, world, name, source))]


def source_raws(world: World, name: str, make: Any) -> list[Raw]:
    """Raw scores of the different right ones of `make()`, and how often their problem is solved."""
    lm, task, solved, out = world.teacher, world.task, solved_share(world.base), list[Raw]()
    for part in batches(sorted(different(make()), key=lambda t: len(t.token_ids)), 32):
        plain = text_stats(lm, [(lm.encode(t.prompt), t.token_ids) for t in part])
        raws = raw_scores(lm, task, name, part, stats=plain)
        texts = [(lm.encode(task.guided_prompt(t.problem, t.problem.answer)), t.token_ids)
                 for t in part]
        informed = [sum(logprob) for _, logprob in text_stats(lm, texts)]
        out += [{**raw, "informed": round(x, 3), "solved": solved[raw["id"]],
                 "numbers": of_numbers(lm.pieces(t.token_ids), t.steps, *stats)}
                for raw, x, t, stats in zip(raws, informed, part, plain, strict=True)]
    return out


def of_numbers(pieces: Sequence[str], steps: Sequence[tuple[int, int]], entropy: Sequence[float],
               logprob: Sequence[float]) -> dict[str, float]:
    """Of the tokens with a digit: `count`, total and largest surprise −log p, and the largest mean
    of surprise − entropy that they have in a step (`typicality` of numbers alone); in nats.

    Example:
        >>> of_numbers(["3", " and ", "4"], [(0, 2), (2, 3)], [0.5, 1.0, 0.5], [-1.0, -9.0, -2.0])
        {'count': 2, 'total': 3.0, 'largest': 2.0, 'worst': 1.5}
    """
    digits = pure.with_digit(pieces)
    surprise = [-logprob[i] for i in digits]
    excess = [[-logprob[i] - entropy[i] for i in digits if a <= i < b] for a, b in steps]
    return {"count": len(digits), "total": round(sum(surprise), 3),
            "largest": round(max(surprise, default=0.0), 3),
            "worst": round(max((sum(x) / len(x) for x in excess if x), default=0.0), 3)}


def _pmi(raw: Raw) -> float:
    """log p(solution | problem, answer) − log p(solution | problem), in nats."""
    return raw["informed"] + BASELINES["total log-likelihood"](raw)


NUMBERS: dict[str, Score] = {  # looked for after the readings had failed
    "numbers alone: typicality, worst": lambda r: r["numbers"]["worst"],
    "numbers alone: largest surprise": lambda r: r["numbers"]["largest"],
    "numbers alone: mean perplexity": lambda r: (
        r["numbers"]["total"] / (r["numbers"]["count"] or 1)),
    "numbers alone: total log-likelihood": lambda r: r["numbers"]["total"]}


FILTERS = {"filter": PureConfig(), "filter by numbers": PureConfig(reading="numbers")}


def pure_rows(raws: Sequence[Raw]) -> list[Row]:
    """AUROC for spurious of every reading and baseline, and what the thresholds keep, for guided
    and repaired solutions alone and together. Of the latter also by halves of the problems: a
    reading is chosen on the first and tested on the second one."""
    rows = list[Row]()
    scores = {**functions({n: c for n, c in READINGS.items() if not n.startswith("rollout")}),
              **BASELINES, "PMI with the answer": _pmi, **NUMBERS}
    helped = [r for r in raws if r["source"] != UNAIDED]
    first = {*sorted({r["id"] for r in helped})[::2]}
    groups = {"all helped": helped,
              "to choose on": [r for r in helped if r["id"] in first],
              "to test on": [r for r in helped if r["id"] not in first],
              **{s: [r for r in helped if r["source"] == s]
                 for s in dict.fromkeys(r["source"] for r in helped)}}
    calibrated = any(r["source"] == UNAIDED for r in raws)
    limits = {name: threshold_of(raws, config) if calibrated else math.inf
              for name, config in FILTERS.items()}
    for kind, mine in groups.items():
        if not mine:
            continue
        for name, score in scores.items():
            scored = [(r["id"], score(r), not r["genuine"]) for r in mine]
            rows.append(Row(name, kind, "AUROC", *cluster_interval(scored, auroc), n=len(mine)))
        rows += [r for name, config in FILTERS.items()
                 for r in passing_rows(name, kind, mine, limits[name], config) if r.n]
    return rows


def counted_as_read(counts: Sequence[Counts], truth: Sequence[Mapping[str, Any]]) -> list[Counts]:
    """Counts of one run whose genuine solutions are those that a reader finds sound (`as_read`)."""
    sound = Counter((t["source"], t["id"]) for t in truth if t["reader"])
    return [{**c, "genuine": sound[c["arm"], c["id"]]} for c in counts]


def as_read(raws: Sequence[Raw], truth: Sequence[Mapping[str, Any]]) -> list[Raw]:
    """Raw scores with a reader's verdicts (`rows` of real-truth.json, of one run) in the place of
    the rule's. Unaided solutions stay as they are. KeyError if one was not read, ValueError if
    different verdicts are of one source, problem and length."""
    verdict = dict[Any, bool]()
    for t in truth:
        key = t["source"], t["id"], t["tokens"]
        if verdict.setdefault(key, t["reader"]) != t["reader"]:
            raise ValueError(f"two solutions cannot be told apart, and only one is sound: {key}")
    return [raw if raw["source"] == UNAIDED else {**raw, "genuine": verdict[
        {"guided": GUIDED}.get(raw["source"], raw["source"]), raw["id"], sum(raw["tokens"])]}
        for raw in raws]


def own_examples(world: World) -> list[dict[str, Any]]:
    """What `examples` keeps of the first problems of our own."""
    own = load_problems(DATA / "math" / "train.jsonl", world.task)
    return examples(world.teacher, world.task, own[:EXAMPLES], world.config)


# --------------------------------------------------------------------------------------- record


def collect(world: World, student: LM, parts: Sequence[str]) -> dict[str, Any]:
    """Make the missing `parts`, except `students`, and return all finished ones as a record:
    `rows`, and for each part the numbers per problem that they are made of; of `examples` there are
    no rows. `students`: what `student_part` kept of this student."""
    # 1) per problem or chain
    make = {"gear": lambda: gear_counts(world),
            **{arm: partial(hint_counts, world, *pair) for arm, pair in OTHERS.items()},
            "guided": lambda: guided_counts(world), "breaks": lambda: break_counts(world),
            "examples": lambda: own_examples(world)}
    wanted = {*parts, *(arm for arm, (_, place) in OTHERS.items() if place in parts),
              *(["guided"] if "rise" in parts else [])}
    made = {name: world.kept(name, make[name]) for name in make
            if name in wanted or world.has(name)}
    # 2) one list of GEAR, since every arm is compared with sampling again
    gear = [c for name in ("gear", "guided", *OTHERS) for c in made.pop(name, [])]
    found = {"gear": gear, **made, "pure": pure_raws(world, "pure" in parts),
             "students": kept_students(world, student)}
    record: dict[str, Any] = {"rows": [], **{name: x for name, x in found.items() if x}}
    # 3) means and intervals
    rows_of: dict[str, Callable[[Any], list[Row]]] = {
        "gear": gear_rows, "breaks": break_rows, "pure": pure_rows,
        "students": lambda part: student_rows(part, len(world.splits["train"]))}
    for part in [part for part in rows_of if part in record]:
        record["rows"] += [{"part": part, **row.to_dict()} for row in rows_of[part](record[part])]
    return record
