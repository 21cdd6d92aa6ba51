"""PURE, Perplexity-Uncertainty Ratio Estimator: keep breakthroughs, drop shortcuts.

Paper: "a rigorous filtering protocol that decouples genuine cognitive breakthroughs from spurious shortcuts".
The name gives a perplexity over an uncertainty; everything else is our reading:

- a step that surprises its own author where the author was *uncertain* may be a breakthrough; one that surprises
  where everything was *settled* is a forced move: perplexity over uncertainty is then large;
- `typicality` (default): the uncertainty is the step's own. PPL(s_k) / exp(H_k), in logarithms log PPL(s_k) − H_k;
- `forced`: the uncertainty is the answer's. PPL(s_k) / (U_k + ε), U_k the entropy of an answer demanded before the
  step. In the clock world ε decides everything: the closing step has U_k near 0 and dominates every other step;
- both are measured by the teacher under the plain prompt, without any hint;
- the threshold is calibrated on the teacher's own unaided correct trajectories, which had no hint to cheat with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from heal_ref.config import PureConfig
from heal_ref.lm import LM, score
from heal_ref.records import Scored, Trajectory
from heal_ref.tasks import Task


def answer_uncertainty(lm: LM, task: Task, trajectories: Sequence[Trajectory]) -> list[list[float]]:
    """U_k by the `forced` reading: entropy (nats) of the answer's first token when it is demanded before step k.

    One list of K numbers for each trajectory. Prefixes that trajectories share are computed once.
    """
    demand = lm.encode(task.elicit)
    wanted = [[(*lm.encode(t.prompt), *t.token_ids[:a], *demand) for a, _ in t.steps] for t in trajectories]
    contexts = sorted({c for row in wanted for c in row}, key=len)
    # Any token may stand behind the context: its entropy is that of the distribution that predicts it.
    entropy = {c: h[0] for c, (h, _) in zip(contexts, score(lm, ((c, [0]) for c in contexts)), strict=True)}
    return [[entropy[c] for c in row] for row in wanted]


def aggregate(ratio: Sequence[float], config: PureConfig) -> float:
    """One number from K step ratios: the worst, the mean of the worst share λ, or the mean."""
    if config.aggregate == "worst":
        return max(ratio)
    share = config.lam if config.aggregate == "worst_share" else 1.0
    return float(np.mean(sorted(ratio, reverse=True)[: max(1, math.ceil(share * len(ratio)))]))


def pure_scores(lm: LM, task: Task, trajectories: Sequence[Trajectory], config: PureConfig | None = None) -> list[Scored]:
    """Score the trajectories whose answer is right (the others are left out), hint-free.

    r_k = PPL(s_k | q, s_<k) / (U_k + ε), with U_k by `config.uncertainty`:
        forced      entropy in nats of the answer demanded before step k;
        typicality  in the log domain: log r_k = log PPL(s_k) − H_k, surprise beyond the model's own mean entropy
                    H_k over the step. `uncertainty` and `ratio` hold H_k and log r_k; ε has no part.
    """
    config = config or PureConfig()
    good = [t for t in trajectories if t.correct]
    plain = score(lm, ((lm.encode(t.prompt), t.token_ids) for t in good))
    log_ppl = [[-float(np.mean(p[a:b])) for a, b in t.steps] for t, (_, p) in zip(good, plain, strict=True)]
    if config.uncertainty == "typicality":
        uncertainty = [[float(np.mean(h[a:b])) for a, b in t.steps] for t, (h, _) in zip(good, plain, strict=True)]
    else:
        uncertainty = answer_uncertainty(lm, task, good)
    out = []
    for t, surprise, open_ in zip(good, log_ppl, uncertainty, strict=True):
        if config.uncertainty == "typicality":
            ratio = [s - u for s, u in zip(surprise, open_, strict=True)]
        else:
            ratio = [math.exp(s) / (u + config.epsilon) for s, u in zip(surprise, open_, strict=True)]
        out.append(Scored(t, *([round(x, 6) for x in row] for row in (map(math.exp, surprise), open_, ratio)),
                          score=round(aggregate(ratio, config), 6)))
    return out


def pure_threshold(reference: Sequence[Scored], config: PureConfig | None = None) -> float:
    """The score above which a trajectory counts as a shortcut: a quantile of `reference` scores."""
    config = config or PureConfig()
    return float(np.quantile([s.score for s in reference], config.keep_quantile)) if reference else math.inf


def pure_filter(scored: Sequence[Scored], config: PureConfig | None = None,
                reference: Sequence[Scored] | None = None) -> list[Trajectory]:
    """The trajectories whose score is not above the threshold.

    Args:
        reference: scores of the teacher's unaided correct trajectories, on which the threshold is calibrated.
            Without it, the share 1 − keep_quantile with the highest scores among `scored` is dropped.
    """
    limit = pure_threshold(scored if reference is None else reference, config)
    return [s.trajectory for s in scored if s.score <= limit]
