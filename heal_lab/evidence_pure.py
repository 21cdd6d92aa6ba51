"""Does PURE tell breakthroughs from shortcuts? Every reading, every baseline, against the exact checker.

`python -m heal_lab evidence pure` writes data/results/pure.json: the raw step scores of each trajectory (so that anyone
can try a filter of their own), the rows made of them, and where they come from.
"Positive" is a *spurious* trajectory throughout: right in its answer, wrong in a step. A false alarm is a genuine one dropped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from heal_lab.evidence import interleaved, origin
from heal_lab.scores import Statistic, auroc, cluster_interval, detected
from heal_ref.config import PureConfig
from heal_ref.evaluate import Row, interval, is_genuine
from heal_ref.gear import repair
from heal_ref.generation import sample
from heal_ref.model import LM
from heal_ref.pace import solved_share
from heal_ref.pure import aggregate, answer_uncertainty, rollout_uncertainty, step_ratios, step_surprise, unaided
from heal_ref.records import Problem, Trajectory
from heal_ref.run.folder import batches, shard_seed

Raw = dict[str, Any]  # one trajectory: where it comes from, whether it is genuine, and numbers a step
HELPED = ("guided", "repair")
UNAIDED, WRONG = "unaided", "guided, wrong answer"
EPSILONS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
LAMBDAS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)


def raw_scores(lm: LM, task: Any, source: str, trajectories: Sequence[Trajectory], seed: int = 0, m: int = 0) -> list[Raw]:
    """Everything that any reading or baseline needs of these trajectories; `rollout` only if m > 0."""
    surprise, entropy = step_surprise(lm, trajectories)
    forced = answer_uncertainty(lm, task, trajectories)
    rollout = rollout_uncertainty(lm, task, trajectories, m, seed) if m else [[]] * len(trajectories)
    return [{"source": source, "id": t.problem.id, "kind": t.problem.kind, "genuine": is_genuine(lm, task, t),
             "logprob_with_help": round(sum(t.logprob), 3), "tokens": [b - a for a, b in t.steps],
             **{name: [float(f"{x:.3g}") for x in row] for name, row in
                (("log_ppl", s), ("entropy", h), ("forced", f), ("rollout", r))}}
            for t, s, h, f, r in zip(trajectories, surprise, entropy, forced, rollout, strict=True)]


def reading(raw: Raw, config: PureConfig) -> float:
    """The score that PURE's own functions give under `config`: high means spurious."""
    uncertainty = raw["entropy" if config.reading == "typicality" else config.reading]
    return aggregate(step_ratios(raw["log_ppl"], uncertainty, config), config)


def _surprise(raw: Raw) -> float:
    """−log p of the whole trajectory under the plain prompt, in nats."""
    return sum(s * n for s, n in zip(raw["log_ppl"], raw["tokens"], strict=True))


READINGS: dict[str, PureConfig] = {
    f"{u}, {a.replace('_', ' ')}": PureConfig(reading=u, aggregate=a)
    for u in ("typicality", "forced", "rollout") for a in ("worst", "worst_share", "mean")}
BASELINES: dict[str, Callable[[Raw], float]] = {  # what a sceptic would try
    "worst perplexity": lambda r: max(r["log_ppl"]),
    "mean perplexity": lambda r: _surprise(r) / sum(r["tokens"]),
    "perplexity of the last step": lambda r: r["log_ppl"][-1],
    "total log-likelihood": _surprise,
    "length": lambda r: sum(r["tokens"]),
    "likelihood ratio of the hint": lambda r: r["logprob_with_help"] + _surprise(r),
}
SWEEPS: dict[str, PureConfig] = {
    **{f"{u}, worst, ε = {e:g}": PureConfig(reading=u, epsilon=e) for u in ("forced", "rollout") for e in EPSILONS},
    **{f"{u}, worst share, λ = {x:g}": PureConfig(reading=u, aggregate="worst_share", lam=x)
       for u in ("typicality", "forced", "rollout") for x in LAMBDAS}}


def functions(configs: Mapping[str, PureConfig]) -> dict[str, Callable[[Raw], float]]:
    """The score that each configuration gives, by name."""
    return {name: partial(reading, config=c) for name, c in configs.items()}


GROUPS = {"all": None, "shaky and frontier": ("shaky", "frontier")}  # on top of the kinds themselves


def groups_of(raws: Sequence[Raw]) -> dict[str, list[Raw]]:
    """The trajectories of each kind, and of the groups that the floors speak of."""
    kinds = {kind: [r for r in raws if r["kind"] == kind] for kind in dict.fromkeys(r["kind"] for r in raws)}
    return {**kinds, **{name: [r for r in raws if members is None or r["kind"] in members] for name, members in GROUPS.items()}}


def detection_rows(raws: Sequence[Raw]) -> list[Row]:
    """AUROC and detection at 5 % false alarms of every reading and baseline, by source and kind, and AUROC of the
    sweeps over the groups; intervals over problems."""
    both: dict[str, Statistic] = {"AUROC": auroc, "detected at 5 % false alarms": detected}
    rows = []
    for source in HELPED:
        for kind, mine in groups_of([r for r in raws if r["source"] == source]).items():
            scores = {name: (f, both) for name, f in {**functions(READINGS), **BASELINES}.items()}
            if kind in GROUPS:
                scores |= {name: (f, {"AUROC": auroc}) for name, f in functions(SWEEPS).items()}
            for name, (function, statistics) in scores.items():
                triples = [(r["id"], function(r), not r["genuine"]) for r in mine]
                rows += [Row(f"{source}: {name}", kind, metric, *cluster_interval(triples, statistic), n=len(triples))
                         for metric, statistic in statistics.items()]
    return rows


def threshold_of(raws: Sequence[Raw], config: PureConfig) -> float:
    """The filter's threshold: a quantile of the unaided correct trajectories' scores."""
    return float(np.quantile([reading(r, config) for r in raws if r["source"] == UNAIDED], config.keep_quantile))


def filter_rows(raws: Sequence[Raw], config: PureConfig | None = None) -> list[Row]:
    """What the filter does: genuine shares before and after, genuine ones kept, and what passes of each source."""
    config = config or PureConfig()
    threshold, rows = threshold_of(raws, config), []

    def passes(r: Raw) -> bool:
        return reading(r, config) <= threshold

    for source in (*HELPED, WRONG, UNAIDED):
        for kind, mine in groups_of([r for r in raws if r["source"] == source]).items():
            passed = [r for r in mine if passes(r)]
            good = [r for r in mine if r["genuine"]]
            shares = {"passed": (mine, passes)}
            if source in HELPED:
                shares |= {"genuine before": (mine, lambda r: r["genuine"]), "genuine after": (passed, lambda r: r["genuine"]),
                           "genuine kept": (good, passes)}
            rows += [_share_row(f"{source}: filter", kind, metric, *members) for metric, members in shares.items()]
    return rows


def _share_row(arm: str, kind: str, metric: str, raws: Sequence[Raw], holds: Callable[[Raw], bool]) -> Row:
    clusters: dict[str, list[bool]] = {}
    for r in raws:
        clusters.setdefault(r["id"], []).append(holds(r))
    sums, sizes = [sum(c) for c in clusters.values()], [len(c) for c in clusters.values()]
    return Row(arm, kind, metric, *interval(sums, sizes), n=len(raws))


# ---------------------------------------------------------------------------------------------- record


def wrongly_guided(lm: LM, task: Any, problems: Sequence[Problem], seed: int) -> list[Trajectory]:
    """The negative control: a wrong answer is shown, and what ends in it counts as "right". None of it can be genuine."""
    lies = []
    for p in problems:
        others = sorted({q.answer for q in problems} - {p.answer})
        lies.append(replace(p, answer=random.Random(f"{seed}/{p.id}").choice(others)))
    led = sample(lm, task, lies, n=1, seed=seed, guided=True)
    truth = {p.id: p for p in problems}
    return [replace(t, problem=truth[t.problem.id]) for t in led if t.correct]


def _different(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Those that end right, no text of a problem twice."""
    return list({(t.problem.id, t.text): t for t in trajectories if t.correct}.values())


def pure_batch(lm: LM, task: Any, problems: Sequence[Problem], number: int, seed: int, m: int = 8) -> list[Raw]:
    """Raw scores of one batch of problems, from the trajectories that the method would filter; one seed a batch."""
    def seed_of(name: str) -> int:
        return shard_seed(seed, f"evidence/pure/{name}", number)

    base = sample(lm, task, problems, n=8, seed=seed_of("base"))
    solved = solved_share(base)
    hard = [p for p in problems if solved[p.id] < 0.5]
    guided = _different(sample(lm, task, hard, n=3, seed=seed_of("guided"), guided=True))
    mended = _different(repair(lm, task, base, seed=seed_of("repair")))
    wrong = wrongly_guided(lm, task, problems, seed_of("wrong"))
    return [raw for source, trajectories, rollouts in (("guided", guided, m), ("repair", mended, m),
                                                       (UNAIDED, unaided(base), 0), (WRONG, wrong, 0))
            for raw in raw_scores(lm, task, source, trajectories, seed_of(f"rollouts/{source}"), rollouts)]


def pure_evidence(lm: LM, task: Any, problems: Sequence[Problem], *, seed: int = 0, batch: int = 100,
                  command: str = "") -> dict[str, Any]:
    """Every reading, baseline and sweep on these problems: rows, the raw scores they are made of, provenance."""
    began, raws = time.monotonic(), []
    for number, part in enumerate(tqdm(batches(interleaved(problems), batch), "evidence", unit="batch")):
        raws += pure_batch(lm, task, part, number, seed)
    rows = detection_rows(raws) + filter_rows(raws)
    threshold = threshold_of(raws, PureConfig())
    return {"rows": [r.to_dict() for r in rows],
            "provenance": {**origin(lm, problems, command, seed, batch, began), "threshold": threshold}, "raw": raws}
