"""PURE ablations, scored by the step checker: does it tell breakthroughs from shortcuts?

The record holds the raw step scores of each trajectory, so that anyone can try a filter.
"Positive" always means a *spurious* trajectory: right in its answer, wrong in a step. A false
alarm is a genuine one dropped.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from heal_lab.evidence import collect
from heal_lab.stats import auroc, cluster_interval, detected, share_row
from heal_ref import pure
from heal_ref.config import PureConfig
from heal_ref.evaluate import Row, is_genuine
from heal_ref.gear import repair
from heal_ref.generation import sample
from heal_ref.model import LM
from heal_ref.pace import solved_share
from heal_ref.records import Problem, Trajectory
from heal_ref.run.folder import shard_seed
from heal_ref.tasks.base import Task

Raw = dict[str, Any]  # one trajectory: source, whether it is genuine, and numbers per step
Score = Callable[[Raw], float]  # high means spurious
HELPED = ("guided", "repair")
UNAIDED, WRONG = "unaided", "guided, wrong answer"
EPSILONS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
LAMBDAS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
EASY = (0.0, 0.25, 0.5, 0.75, 0.95)  # share of mastered problems in the reference
GROUPS = {"all": None, "shaky and frontier": ("shaky", "frontier")}  # besides the kinds


def raw_scores(lm: LM, task: Task, source: str, trajectories: Sequence[Trajectory], seed: int = 0,
               m: int = 0, stats: Any = ()) -> list[Raw]:
    """What every reading and baseline needs of these trajectories; rollouts only if m > 0."""
    surprise = pure.step_surprise(lm, trajectories, stats)
    numbers = dict(zip(("log_ppl", "entropy"), surprise, strict=True))
    numbers["forced"] = pure.answer_uncertainty(lm, task, trajectories)
    numbers["rollout"] = [[] for _ in trajectories]
    if m:
        numbers["rollout"] = pure.rollout_uncertainty(lm, task, trajectories, m, seed)
    return [{"source": source, "id": t.problem.id, "kind": t.problem.kind,
             "genuine": is_genuine(lm, task, t), "logprob_with_help": round(sum(t.logprob), 3),
             "tokens": [b - a for a, b in t.steps],
             **{name: [float(f"{x:.3g}") for x in rows[i]] for name, rows in numbers.items()}}
            for i, t in enumerate(trajectories)]


def reading(raw: Raw, config: PureConfig) -> float:
    """The score that PURE gives under `config`; of `numbers` the aggregate "worst" is recorded."""
    if config.reading == "numbers":
        return raw["numbers"]["largest"]
    uncertainty = raw["entropy" if config.reading == "typicality" else config.reading]
    return pure.aggregate(pure.step_ratios(raw["log_ppl"], uncertainty, config), config)


def _surprise(raw: Raw) -> float:
    """−log p of the whole trajectory under the plain prompt, in nats."""
    return sum(s * n for s, n in zip(raw["log_ppl"], raw["tokens"], strict=True))


READINGS = {f"{u}, {a.replace('_', ' ')}": PureConfig(reading=u, aggregate=a)
            for u in ("typicality", "forced", "rollout") for a in ("worst", "worst_share", "mean")}
BASELINES: dict[str, Score] = {  # what a sceptic would try
    "worst perplexity": lambda r: max(r["log_ppl"]),
    "mean perplexity": lambda r: _surprise(r) / sum(r["tokens"]),
    "perplexity of the last step": lambda r: r["log_ppl"][-1],
    "total log-likelihood": _surprise,
    "length": lambda r: sum(r["tokens"]),
    "likelihood ratio of the hint": lambda r: r["logprob_with_help"] + _surprise(r),
}
SWEEPS = {
    **{f"{u}, worst, ε = {e:g}": PureConfig(reading=u, epsilon=e)
       for u in ("forced", "rollout") for e in EPSILONS},
    **{f"{u}, worst share, λ = {x:g}": PureConfig(reading=u, aggregate="worst_share", lam=x)
       for u in ("typicality", "forced", "rollout") for x in LAMBDAS}}


def functions(configs: Mapping[str, PureConfig]) -> dict[str, Score]:
    """The score that each configuration gives, by name."""
    return {name: partial(reading, config=c) for name, c in configs.items()}


def groups_of(raws: Sequence[Raw], source: str) -> dict[str, list[Raw]]:
    """The trajectories of one source by kind, and in the groups of kinds."""
    mine = [r for r in raws if r["source"] == source]
    groups = {kind: (kind,) for kind in dict.fromkeys(r["kind"] for r in mine)} | GROUPS
    return {name: [r for r in mine if kinds is None or r["kind"] in kinds]
            for name, kinds in groups.items()}


def detection_rows(raws: Sequence[Raw]) -> list[Row]:
    """AUROC and detection at 5 % false alarms of every reading and baseline, by source and kind;
    AUROC of the sweeps in the groups of kinds. Intervals over problems."""
    both, rows = {"AUROC": auroc, "detected at 5 % false alarms": detected}, []
    for source in HELPED:
        for kind, mine in groups_of(raws, source).items():
            sweeps = functions(SWEEPS) if kind in GROUPS else {}
            for name, score in {**functions(READINGS), **BASELINES, **sweeps}.items():
                scored = [(r["id"], score(r), not r["genuine"]) for r in mine]
                for metric, statistic in both.items():
                    if metric == "AUROC" or name not in sweeps:
                        values = cluster_interval(scored, statistic)
                        rows.append(Row(f"{source}: {name}", kind, metric, *values, n=len(mine)))
    return rows


def threshold_of(raws: Sequence[Raw], config: PureConfig, seldom: float = 0.5) -> float:
    """The filter's threshold, from the unaided correct trajectories (`pure.unaided`)."""
    mine = [r for r in raws if r["source"] == UNAIDED]
    limit = pure.seldom_limit([r["solved"] for r in mine], seldom)
    mine = [r for r in mine if r["solved"] <= limit]
    tokens = (n for r in mine for n in r["tokens"])
    return pure.limit_of([reading(r, config) for r in mine], tokens, config)


def mix_rows(raws: Sequence[Raw], config: PureConfig | None = None) -> list[Row]:
    """What the filter makes of the repairs of shaky and frontier problems if the training problems
    hold another share of mastered ones: calibrated on all solved problems, or on the seldom solved
    ones (the default)."""
    config, rows = config or PureConfig(), []
    reference = [r for r in raws if r["source"] == UNAIDED]
    easy = [r for r in reference if r["kind"] == "mastered"]
    hard = [r for r in reference if r["kind"] != "mastered"]
    repairs = groups_of(raws, "repair")["shaky and frontier"]
    for share in EASY:
        size = min(len(easy) / share if share else len(hard), len(hard) / (1 - share))
        some = easy[: round(share * size)] + hard[: round((1 - share) * size)]
        for name, seldom in (("all solved", 1.0), ("seldom solved", 0.5)):
            threshold = threshold_of(some, config, seldom)
            cases = [(r["id"], reading(r, config) <= threshold, r["genuine"]) for r in repairs]
            metrics = {"genuine kept": [(key, p) for key, p, genuine in cases if genuine],
                       "genuine after": [(key, g) for key, passed, g in cases if passed]}
            rows += [share_row(f"reference {name}: filter", f"{share:.0%} mastered", metric, x)
                     for metric, x in metrics.items()]
            rows.append(Row(f"reference {name}: filter", f"{share:.0%} mastered", "threshold",
                            threshold, threshold, threshold, n=len(some)))
    return rows


def passing_rows(arm: str, kind: str, raws: Sequence[Raw], threshold: float,
                 config: PureConfig, helped: bool = True) -> list[Row]:
    """The share that passes the filter; of helped solutions also genuine shares before and after
    it, and the share of genuine ones that it keeps."""
    cases = [(r["id"], reading(r, config) <= threshold, r["genuine"]) for r in raws]
    metrics = {"passed": [(key, passed) for key, passed, _ in cases]}
    if helped:
        metrics |= {"genuine before": [(key, genuine) for key, _, genuine in cases],
                    "genuine after": [(key, g) for key, passed, g in cases if passed],
                    "genuine kept": [(key, p) for key, p, genuine in cases if genuine]}
    return [share_row(arm, kind, name, x) for name, x in metrics.items()]


def filter_rows(raws: Sequence[Raw], config: PureConfig | None = None) -> list[Row]:
    """What passes the filter of each source; genuine shares before and after, genuine ones kept."""
    config = config or PureConfig()
    threshold, rows = threshold_of(raws, config), []
    for source in (*HELPED, WRONG, UNAIDED):
        for kind, mine in groups_of(raws, source).items():
            rows += passing_rows(f"{source}: filter", kind, mine, threshold, config,
                                 source in HELPED)
    return rows


def wrongly_guided(lm: LM, task: Task, problems: Sequence[Problem], seed: int) -> list[Trajectory]:
    """The negative control: solutions guided to a wrong answer that end in it; none is genuine."""
    shown = []
    for p in problems:
        others = sorted({q.answer for q in problems} - {p.answer})
        shown.append(replace(p, answer=random.Random(f"{seed}/{p.id}").choice(others)))
    guided = sample(lm, task, shown, n=1, seed=seed, guided=True)
    truth = {p.id: p for p in problems}
    return [replace(t, problem=truth[t.problem.id]) for t in guided if t.correct]


def different(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The correct ones, no text of a problem twice."""
    return list({(t.problem.id, t.text): t for t in trajectories if t.correct}.values())


def pure_batch(lm: LM, task: Task, problems: Sequence[Problem], number: int, seed: int,
               m: int = 8) -> list[Raw]:
    """Raw scores of one batch of problems, from the trajectories that the method would filter."""
    def own(name: str) -> int:
        return shard_seed(seed, f"evidence/pure/{name}", number)

    base = sample(lm, task, problems, 8, seed=own("base"))
    solved = solved_share(base)
    hard = [p for p in problems if solved[p.id] < 0.5]
    guided = sample(lm, task, hard, 3, seed=own("guided"), guided=True)
    repaired = repair(lm, task, base, seed=own("repair"))
    sources = {"guided": (different(guided), m), "repair": (different(repaired), m),
               UNAIDED: (pure.unaided(base, seldom=1.0), 0),
               WRONG: (wrongly_guided(lm, task, problems, own("wrong")), 0)}
    return [raw | {"solved": solved[raw["id"]]}
            for name, (trajectories, rollouts) in sources.items()
            for raw in raw_scores(lm, task, name, trajectories, own(f"rollouts/{name}"), rollouts)]


def pure_evidence(lm: LM, task: Task, problems: Sequence[Problem], *, seed: int = 0,
                  command: str = "") -> dict[str, Any]:
    """`evidence pure`: every reading, baseline and sweep, and the filter."""
    record = collect(lm, problems, seed, command,
                     lambda part, number: {"raw": pure_batch(lm, task, part, number, seed)},
                     lambda raw: detection_rows(raw) + filter_rows(raw) + mix_rows(raw))
    record["provenance"]["threshold"] = threshold_of(record["raw"], PureConfig())
    return record
