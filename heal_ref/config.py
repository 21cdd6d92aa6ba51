"""All settings, as frozen dataclasses with checked fields and three named presets.

- `HealConfig.tiny()`: the shipped pair on two cores; chosen on validation problems.
- `HealConfig.smoke()`: the same, as small as it runs, for tests.
- `HealConfig.paper()`: the constants of second-hand summaries of the paper (we have only its abstract): leads,
  not facts. Which of them are sure is listed in PAPER.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from heal_ref.records import InputError

CHOICES = {
    "hint": ("bridge", "answer", "wrong_answer"),
    "step": ("mean", "max", "first"),
    "signal": ("surge", "level", "relative", "random"),
    "reading": ("typicality", "forced", "rollout"),
    "aggregate": ("worst", "worst_share", "mean"),
}


class _Checked:
    """Checks every field against the range in its metadata when a config is made."""

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            value, where = getattr(self, f.name), f"{type(self).__name__}.{f.name}"
            low, high = f.metadata.get("range", (None, None))
            if f.name in CHOICES and value not in CHOICES[f.name]:
                raise InputError(f"{where} is {value!r}; it must be one of {', '.join(CHOICES[f.name])}")
            if low is not None:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise InputError(f"{where} is {value!r}; it must be a number")
                if f.type == "int" and not isinstance(value, int):
                    raise InputError(f"{where} is {value!r}; it must be a whole number")
                if not low <= value <= high:
                    raise InputError(f"{where} is {value}; it must lie between {low} and {high}")


def _number(default: float, low: float, high: float = float("inf")) -> Any:
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True)
class SampleConfig(_Checked):
    """How trajectories are sampled. `batch` is the number of problems in one shard.

    `n` samples a problem; `temperature` 0 is greedy; `top_p` 1 is the whole distribution; lengths are in tokens.

    Raises:
        InputError: a field lies outside its range.

    Example:
        >>> import heal_ref as heal
        >>> heal.SampleConfig(n=4, temperature=0.7)
        SampleConfig(n=4, temperature=0.7, top_p=1.0, max_new_tokens=96, batch=64)
        >>> heal.SampleConfig(temperature=-1)
        Traceback (most recent call last):
            ...
        heal_ref.records.InputError: SampleConfig.temperature is -1; it must lie between 0.0 and inf
    """

    n: int = _number(8, 1)
    temperature: float = _number(1.0, 0.0)
    top_p: float = _number(1.0, 1e-6, 1.0)
    max_new_tokens: int = _number(96, 1)
    batch: int = _number(64, 1)


@dataclass(frozen=True)
class GearConfig(_Checked):
    """Guided Entropy-Assisted Repair: which problems, which step, which hint, how many tries.

    Only the name is the paper's; the fields are our reading, and what hearsay gives for them is in `HealConfig.paper()`.
    `hint` is "bridge", "answer" or "wrong_answer" (`repair`); `step` is "mean", "max" or "first" (`step_values`); `signal`
    is "surge", "level", "relative" or "random" (`breakpoint_of`). "wrong_answer" and "random" are controls.

    Raises:
        InputError: a field lies outside its range, or is none of its choices.

    Example:
        >>> import heal_ref as heal
        >>> config = heal.GearConfig(paths=2, hints=1, continuations=3)
        >>> config.paths * config.hints * config.continuations  # repairs of one problem, at most
        6
        >>> heal.GearConfig(hint="guess")
        Traceback (most recent call last):
            ...
        heal_ref.records.InputError: GearConfig.hint is 'guess'; it must be one of bridge, answer, wrong_answer
    """

    max_correct: int = _number(0, 0)  # problems with at most this many correct samples are repaired
    paths: int = _number(3, 1)  # wrong trajectories taken of each such problem
    hints: int = _number(1, 1)  # hints written for each of them
    continuations: int = _number(2, 1)  # continuations of each hint
    hint: str = "bridge"
    step: str = "mean"  # one entropy a step: mean or max of its tokens, or its first token
    signal: str = "surge"  # what is largest at the breakpoint; "random" is the control
    window: float = _number(1.0, 1e-6, 1.0)  # share f of the steps that is searched, from the start


@dataclass(frozen=True)
class PureConfig(_Checked):
    """Perplexity-Uncertainty Ratio Estimator: the reading of U_k, the aggregate over steps, the threshold.

    Only the name is the paper's. `reading` is "typicality" (ours), "forced" or "rollout" (`pure_scores`); `aggregate` is
    "worst", "worst_share" or "mean" of the K step ratios. ε is in nats, like the uncertainty it is added to.

    Raises:
        InputError: a field lies outside its range, or is none of its choices.

    Example:
        >>> import heal_ref as heal
        >>> heal.PureConfig().reading, heal.PureConfig().aggregate
        ('typicality', 'worst')
        >>> strict, lax = heal.PureConfig(keep_quantile=0.5), heal.PureConfig(keep_quantile=1.0)
        >>> reference = [heal.PureScore(None, [], [], [], score=x) for x in (0.0, 0.25, 1.0)]  # only scores count here
        >>> heal.pure_threshold(reference, strict), heal.pure_threshold(reference, lax)
        (0.25, 1.0)
    """

    reading: str = "typicality"
    aggregate: str = "worst"
    epsilon: float = _number(3.0, 1e-9)  # of the `forced` and `rollout` readings
    rollouts: int = _number(8, 2)  # continuations of each prefix in the `rollout` reading
    lam: float = _number(0.2, 1e-6, 1.0)  # share of steps that `worst_share` averages
    keep_quantile: float = _number(0.85, 0.0, 1.0)  # of unaided correct trajectories' scores: the threshold


@dataclass(frozen=True)
class PaceConfig(_Checked):
    """Progressive Answer-guided Curriculum Evolution: what enters which stage, and how long each one trains.

    Name and three stages are the paper's; the fields are our reading. Lengths are in updates (optimizer steps), `batch` in
    examples, `shares` are of `updates` and follow the order foundation, guided, repaired.

    Raises:
        InputError: a field lies outside its range, or the shares are not three that sum to 1.

    Example:
        >>> import heal_ref as heal
        >>> config = heal.PaceConfig(updates=100)
        >>> [round(config.updates * share) for share in config.shares]  # updates of each stage
        [20, 20, 60]
        >>> heal.PaceConfig(shares=(0.5, 0.1, 0.1))
        Traceback (most recent call last):
            ...
        heal_ref.records.InputError: PaceConfig.shares is (0.5, 0.1, 0.1); it must be three shares that sum to 1
    """

    guided_below: float = _number(0.5, 0.0, 1.0)  # accuracy under which a problem gets answer-guided samples
    per_problem: int = _number(4, 1)  # at most so many trajectories of one problem in one stage
    cumulative: bool = True
    updates: int = _number(600, 1)
    shares: tuple[float, float, float] = (0.2, 0.2, 0.6)  # of the updates, stage by stage
    batch: int = _number(64, 1)
    learning_rate: float = _number(1e-3, 0.0)
    warmup: int = _number(20, 0)
    accumulate: int = _number(1, 1)  # parts that a batch is computed in: less memory, same gradient
    save_every: int = _number(200, 0)  # updates between checkpoints, 0 for none
    curve_every: int = _number(60, 0)  # updates between points of the learning curve, 0 for the ends of stages only

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.cumulative, bool):
            raise InputError(f"PaceConfig.cumulative is {self.cumulative!r}; it must be True or False")
        shares = self.shares if isinstance(self.shares, tuple | list) else ()
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise InputError(f"PaceConfig.shares is {self.shares}; it must be three shares that sum to 1")


@dataclass(frozen=True)
class HealConfig(_Checked):
    """One run of the whole method: the settings of its parts, and how much is trained and evaluated on.

    Take a preset, `tiny`, `smoke` or `paper`, and change what should differ. `eval_n` is samples a held-out problem.

    Example:
        >>> import heal_ref as heal
        >>> from dataclasses import replace
        >>> tiny = heal.HealConfig.tiny(seed=1)
        >>> tiny.seed, tiny.sample.n, tiny.pace.updates
        (1, 4, 600)
        >>> short = replace(tiny, pace=replace(tiny.pace, updates=60))  # a config never changes: make another
        >>> short.pace.updates, tiny.pace.updates
        (60, 600)
    """

    seed: int = 0
    sample: SampleConfig = SampleConfig()
    gear: GearConfig = GearConfig()
    pure: PureConfig = PureConfig()
    pace: PaceConfig = PaceConfig()
    eval_n: int = _number(8, 1)
    train_limit: int = _number(0, 0)  # problems of each kind used for training, 0 for all
    eval_limit: int = _number(0, 0)  # held-out problems of each kind, 0 for all

    @classmethod
    def tiny(cls, seed: int = 0) -> HealConfig:
        """The shipped pair on two CPU cores."""
        return cls(seed=seed, sample=SampleConfig(n=4), pace=PaceConfig(learning_rate=3e-3), eval_limit=100)

    @classmethod
    def smoke(cls, seed: int = 0) -> HealConfig:
        """Every stage, as small as it runs: for tests."""
        return cls(seed=seed, sample=SampleConfig(n=4, batch=32), gear=GearConfig(paths=1),
                   pace=PaceConfig(updates=12, batch=16, warmup=2, learning_rate=3e-3), eval_n=2, train_limit=16, eval_limit=16)

    @classmethod
    def paper(cls, seed: int = 0) -> HealConfig:
        """Constants that second-hand summaries give for the paper. Leads, not facts: see PAPER.md."""
        return cls(
            seed=seed,
            sample=SampleConfig(n=30, temperature=0.6, top_p=0.95, max_new_tokens=32768, batch=4),
            gear=GearConfig(max_correct=1, paths=10, hints=1, continuations=20, window=1 / 3),
            pure=PureConfig(reading="forced", aggregate="worst_share", epsilon=0.01, lam=0.2),
            pace=PaceConfig(updates=5000, per_problem=30, batch=8, learning_rate=1e-5, warmup=100),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, as written to a run's config.json."""
        return asdict(self)


PRESETS = {"smoke": HealConfig.smoke, "tiny": HealConfig.tiny, "paper": HealConfig.paper}
