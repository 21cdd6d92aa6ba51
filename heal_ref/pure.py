"""PURE, Perplexity-Uncertainty Ratio Estimator: keep breakthroughs, drop shortcuts.

Paper: "a rigorous filtering protocol that decouples genuine cognitive breakthroughs from spurious
shortcuts". The name gives a perplexity over an uncertainty; everything else is our reading:

- A step that surprises its own author where the author was *uncertain* may be a breakthrough. One
  that surprises where the author was confident suggests a forced step: the ratio is large.
- `typicality` (default): the uncertainty is the step's own, PPL(s_k) / exp(H̄_k). It is kept as a
  logarithm, log PPL(s_k) − H̄_k, which has the same order and the same quantiles.
- `forced` and `rollout`: the uncertainty is the answer's, PPL(s_k) / (U_k + ε). In the clock world
  ε then decides everything: before the closing step the answer is known, so U_k is near 0 there,
  and with a small ε this step dominates all others in every solution.
- `numbers`: no uncertainty; the most surprising token with a digit in it. In a step of 41 tokens a
  number that does not follow hardly changes the mean.
- All are measured by the teacher under the plain prompt, without any hint.
- The threshold is calibrated on the teacher's unaided correct trajectories, which had no hint.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from heal_ref.config import PureConfig, SampleConfig
from heal_ref.generation import generate
from heal_ref.model import LM
from heal_ref.records import PureScore, Trajectory, light, select, trajectories_of
from heal_ref.scoring import text_stats
from heal_ref.tasks.base import Task

# ------------------------------------------------------- the two parts of the ratio, per step


def step_surprise(
    lm: LM, trajectories: Sequence[Trajectory], stats: Sequence[Sequence[list[float]]] = ()
) -> tuple[list[list[float]], list[list[float]]]:
    """log PPL(s_k | q, s_<k) and mean entropy H̄_k (nats) of each step, under the plain prompt.

    Two lists with K numbers per trajectory, from one forward pass over prompt and trajectory;
    `stats`: what that pass (`text_stats`) said, if it was made before."""
    surprise, entropy = [], []
    stats = stats or text_stats(lm, [(lm.encode(t.prompt), t.token_ids) for t in trajectories])
    for t, (h, logprob) in zip(trajectories, stats, strict=True):
        surprise.append([-float(np.mean(logprob[a:b])) for a, b in t.steps])
        entropy.append([float(np.mean(h[a:b])) for a, b in t.steps])
    return surprise, entropy


def number_surprise(
    lm: LM, trajectories: Sequence[Trajectory], stats: Sequence[Sequence[list[float]]]
) -> list[list[float]]:
    """The largest −log p (nats) of a token with a digit in each step, 0 in a step without one; K
    numbers per trajectory. `stats`: as in `step_surprise`."""
    out = []
    for t, (_, logprob) in zip(trajectories, stats, strict=True):
        digits = with_digit(lm.pieces(t.token_ids))
        out.append([max([-logprob[i] for i in digits if a <= i < b], default=0.0)
                    for a, b in t.steps])
    return out


def with_digit(pieces: Sequence[str]) -> list[int]:
    """The places of the pieces (text of one token each) that hold a digit."""
    return [i for i, piece in enumerate(pieces) if re.search(r"\d", piece)]


def answer_uncertainty(
    lm: LM, task: Task, trajectories: Sequence[Trajectory]
) -> list[list[float]]:
    """U_k of the reading `forced`: entropy (nats) of an answer's first token, demanded before s_k.

    One list of K numbers per trajectory. Prompt and trajectory are computed once; for step k only
    the tokens before it are visible, and the demand (`task.elicit`) follows them. A server has no
    part in it: only the entropy counts.
    """
    demand, one_token = lm.encode(task.elicit), SampleConfig(temperature=0.0, max_new_tokens=1)
    contexts, tails, visible = [], [], []
    for t in trajectories:
        prompt = lm.encode(t.prompt)
        contexts.append([*prompt, *t.token_ids])
        tails.append([demand] * len(t.steps))
        visible.append([len(prompt) + start for start, _ in t.steps])
    rollouts = iter(generate(lm.alone(), contexts, tails, sampling=one_token, seed=0,
                             visible=visible, ends=False))
    return [[next(rollouts).entropy[0] for _ in t.steps] for t in trajectories]


def rollout_uncertainty(
    lm: LM, task: Task, trajectories: Sequence[Trajectory], m: int = 8, seed: int = 0,
    sampling: SampleConfig | None = None,
) -> list[list[float]]:
    """U_k of the reading `rollout`: entropy (nats) of the final answers of m continuations.

    They are sampled from before step k. One list of K numbers per trajectory, each between 0 and
    log m; "no answer" counts as one answer. Prompt and trajectory are computed once, and m · K
    continuations are generated.
    """
    # `generate` continues from a tail of at least one token, so the last kept token is the tail:
    #   [prompt … kept | last kept → continuation]
    contexts, tails, visible = [], [], []
    for t in trajectories:
        prompt = lm.encode(t.prompt)
        text = [*prompt, *t.token_ids]
        kept = [len(prompt) + start for start, _ in t.steps for _ in range(m)]
        contexts.append(text)
        tails.append([[text[n - 1]] for n in kept])
        visible.append([n - 1 for n in kept])
    rollouts = iter(generate(lm, contexts, tails, sampling=sampling or SampleConfig(), seed=seed,
                             visible=visible))
    out: list[list[float]] = []
    for t in trajectories:
        out.append([])
        for start, _ in t.steps:
            answers: Counter = Counter()
            for r in (next(rollouts) for _ in range(m)):
                solution = lm.decode([*t.token_ids[:start], *r.ids])
                answers[task.extract_answer(solution) if r.finished else None] += 1
            out[-1].append(-sum(c / m * math.log(c / m) for c in answers.values()) + 0.0)
    return out


# ------------------------------------------------------------------ the ratio, and its aggregate


def step_ratios(
    log_ppl: Sequence[float], uncertainty: Sequence[float], config: PureConfig
) -> list[float]:
    """r_k for K steps from log PPL(s_k) and U_k: PPL / (U_k + ε); `typicality`: log PPL − H̄_k;
    `numbers`: the same from what `pure_scores` says of them."""
    pairs = zip(log_ppl, uncertainty, strict=True)
    if config.reading in ("typicality", "numbers"):
        return [s - h for s, h in pairs]
    return [math.exp(s) / (u + config.epsilon) for s, u in pairs]


def aggregate(ratio: Sequence[float], config: PureConfig) -> float:
    """One number from K step ratios: the worst, the mean of the worst share λ, or the mean."""
    if config.aggregate == "worst":
        return max(ratio)
    share = config.lam if config.aggregate == "worst_share" else 1.0
    worst_first = sorted(ratio, reverse=True)
    return float(np.mean(worst_first[: max(1, math.ceil(share * len(ratio)))]))


def _score(
    t: Trajectory, log_ppl: Sequence[float], uncertainty: Sequence[float], config: PureConfig
) -> PureScore:
    """Step ratios and score of one trajectory, rounded as they are written to files."""
    ratio = step_ratios(log_ppl, uncertainty, config)
    return PureScore(
        t, perplexity=[round(math.exp(s), 6) for s in log_ppl],
        uncertainty=[round(u, 6) for u in uncertainty], ratio=[round(r, 6) for r in ratio],
        score=round(aggregate(ratio, config), 6))


def pure_scores(
    lm: LM, task: Task, trajectories: Sequence[Trajectory], config: PureConfig | None = None,
    seed: int = 0, *, sampling: SampleConfig | None = None,
) -> list[PureScore]:
    r"""Score the trajectories whose answer is right (the others are left out), hint-free.

    Paper: "decouples genuine cognitive breakthroughs from spurious shortcuts", by a
    "Perplexity-Uncertainty Ratio". r_k = PPL(s_k | q, s_<k) / (U_k + ε), by `config.reading`:

        typicality  log r_k = log PPL(s_k) − H̄_k. `uncertainty` and `ratio` hold H̄_k and log r_k;
                    ε plays no part.
        forced      U_k: entropy in nats of the answer demanded before step k.
        rollout     U_k: entropy in nats of the final answers of `config.rollouts` continuations
                    (`seed` and `sampling` are theirs).
        numbers     log r_k: the largest −log p of a token with a digit in step k, in nats, 0 if it
                    has none; `uncertainty` is 0, `perplexity` r_k. Ours, for texts in words.

    Returns:
        One `PureScore` per correct trajectory, in order, with K numbers per list.

    Raises:
        InputError: a text is longer than the model's positions.
        FloatingPointError: the model's logits are NaN.

    Example:
        >>> import heal_ref as heal
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> problem = heal.Problem("p", "Start 5; + 3; # 4; * 2", "17")
        >>> greedy = heal.SampleConfig(temperature=0.0)
        >>> t, = heal.sample(teacher, task, [problem], n=1, sampling=greedy, guided=True)
        >>> t.text.split("\n\n")[3]  # with 17 in view, the teacher bends a step to reach it
        'Then compute 8 * 2 = 17.'
        >>> s, = heal.pure_scores(teacher, task, [t])  # without it, that step is a surprise
        >>> s.ratio.index(max(s.ratio)), round(s.score, 1)
        (3, 0.6)
    """
    config = config or PureConfig()
    right = [t for t in trajectories if t.correct]
    stats = text_stats(lm, [(lm.encode(t.prompt), t.token_ids) for t in right])
    surprise, own_entropy = step_surprise(lm, right, stats)
    if config.reading == "typicality":
        uncertainty = own_entropy
    elif config.reading == "numbers":
        surprise = number_surprise(lm, right, stats)
        uncertainty = [[0.0] * len(t.steps) for t in right]
    elif config.reading == "forced":
        uncertainty = answer_uncertainty(lm, task, right)
    else:
        uncertainty = rollout_uncertainty(lm, task, right, config.rollouts, seed, sampling)
    parts = zip(right, surprise, uncertainty, strict=True)
    return [_score(t, log_ppl, u, config) for t, log_ppl, u in parts]


def rescored(scored: Sequence[PureScore], config: PureConfig) -> list[PureScore]:
    """The same steps under another ε, λ or aggregate; the reading must be the one they have."""
    return [_score(s.trajectory, [math.log(p) for p in s.perplexity], s.uncertainty, config)
            for s in scored]


# ------------------------------------------------------------------------------------- the filter


def unaided(
    base: Sequence[Trajectory], seldom: float = 0.5, least: int = 30
) -> Sequence[Trajectory]:
    """What the threshold is calibrated on: the first correct sample of each problem that has one.

    On problems that the teacher always solves, every step is certain, and no score can be far from
    0. With many of them in the reference the threshold is near 0, too, and drops the repairs of
    hard problems, whose steps are not certain; `seldom` leaves them out.

    Args:
        base: all samples of each problem.
        seldom: only problems solved in at most this share of their samples; 1 for all.
        least: with fewer such problems, those solved next most seldom are added until there are
            this many; of problems solved in the same share all or none are taken.

    Example:
        >>> import heal_ref as heal
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> easy = heal.Problem("easy", "Start 5; + 3; * 4", "9")
        >>> len(heal.unaided(heal.sample(teacher, task, [easy], n=4)))
        1
    """
    right: dict[str, list[int]] = {}  # problem -> the correct samples, by their numbers
    tried = Counter[str]()
    for i, t in enumerate(light(base)):
        tried[t.problem.id] += 1
        right.setdefault(t.problem.id, []).extend([i] * t.correct)
    first = [(len(rows) / tried[key], rows[0]) for key, rows in right.items() if rows]
    limit = seldom_limit([share for share, _ in first], seldom, least)
    return select(base, [row for share, row in first if share <= limit])


def seldom_limit(solved: Sequence[float], seldom: float, least: int = 30) -> float:
    """The solved share up to which a problem counts as solved seldom (see `unaided`)."""
    return max([seldom, *sorted(solved)[:least][-1:]])


def pure_threshold(reference: Sequence[PureScore], config: PureConfig | None = None) -> float:
    """The score above which a trajectory counts as a shortcut: a quantile of `reference` scores.

    That the paper filters we know; where it draws the line we do not. This is our reading.

    Args:
        reference: scores of `unaided` trajectories, which had no hint.

    Returns:
        The `config.keep_quantile` quantile, in the unit of the scores. For `typicality` at least
        `config.floor` nats over the number of tokens of a usual step: a teacher that is certain of
        everything would set a threshold of float noise. Infinite, with a RuntimeWarning, if
        `reference` is empty: then PURE is off and nothing is dropped.

    Example:
        >>> import heal_ref as heal
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> easy = heal.Problem("easy", "Start 5; + 3; * 4", "9")
        >>> base = heal.sample(teacher, task, [easy], n=4)
        >>> reference = heal.pure_scores(teacher, task, heal.unaided(base))
        >>> config = heal.PureConfig(keep_quantile=1.0, floor=0.0)
        >>> heal.pure_threshold(reference, config) == max(s.score for s in reference)
        True
    """
    config = config or PureConfig()
    if not reference:
        warnings.warn("PURE is off: there is no unaided correct solution to calibrate its "
                      "threshold on, so nothing is dropped", RuntimeWarning, stacklevel=2)
        return math.inf
    reference = light(reference)
    tokens = (end - start for s in reference for start, end in s.trajectory.steps)
    return limit_of([s.score for s in reference], tokens, config)


def limit_of(scores: Sequence[float], tokens: Iterable[int], config: PureConfig) -> float:
    """The threshold that reference scores set, whose steps have so many `tokens` each."""
    limit = float(np.quantile(scores, config.keep_quantile))
    if config.reading != "typicality":
        return limit
    return max(limit, config.floor / float(np.median(list(tokens))))


def pure_filter(
    scored: Sequence[PureScore], config: PureConfig | None = None,
    reference: Sequence[PureScore] | None = None,
) -> Sequence[Trajectory]:
    """The trajectories whose score is not above the threshold (paper: "filtering protocol").

    Args:
        scored: candidates, all scored by one reading.
        reference: scores of the teacher's unaided correct trajectories, which set the threshold.
            Without it, the share 1 − keep_quantile of `scored` with the highest scores is dropped.

    Example:
        >>> import heal_ref as heal
        >>> of = lambda name, score: heal.PureScore(name, [], [], [], score)  # names, for brevity
        >>> config = heal.PureConfig(reading="forced", keep_quantile=1.0)
        >>> heal.pure_filter([of("kept", 0.1), of("cut", 2.0)], config, [of("unaided", 0.5)])
        ['kept']
    """
    if not scored:
        return []
    limit = pure_threshold(scored if reference is None else reference, config)
    passed = [i for i, s in enumerate(light(scored)) if s.score <= limit]
    return select(trajectories_of(scored), passed)
