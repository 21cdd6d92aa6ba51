"""All settings, as frozen dataclasses with checked fields and three named presets.

Only the names GEAR, PURE and PACE and the three stages are the paper's; the fields are our reading.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from heal_ref.records import InputError


def choices(config: type, name: str) -> tuple[str, ...]:
    """What the field `name` of a config may be, if it is one of several words; else empty."""
    values = get_args(get_type_hints(config)[name])
    return tuple(v for v in values if isinstance(v, str))


class _Checked:
    """Checks every field when a config is made: its words, its truth value, or its range."""

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for f in fields(self):  # type: ignore[arg-type]
            value, kind, must = getattr(self, f.name), types[f.name], ""
            if words := choices(type(self), f.name):
                must = "" if value in words else f"be one of {', '.join(words)}"
            elif kind is bool:
                must = "" if isinstance(value, bool) else "be True or False"
            elif "range" in f.metadata:
                low, high = f.metadata["range"]
                if isinstance(value, bool) or not isinstance(value, int | kind):
                    must = "be a whole number" if kind is int else "be a number"
                elif not low <= value <= high:
                    must = f"lie between {low} and {high}"
            if must:
                raise InputError(f"{type(self).__name__}.{f.name} is {value!r}; it must {must}")


def _number(default: float, low: float, high: float = float("inf")) -> Any:
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True)
class SampleConfig(_Checked):
    """How trajectories are sampled. InputError if a field lies outside its range.

    Example:
        >>> heal.SampleConfig(n=4, temperature=0.7)
        SampleConfig(n=4, temperature=0.7, top_p=1.0, max_new_tokens=96, batch=64)
    """

    n: int = _number(8, 1)  # samples per problem
    temperature: float = _number(1.0, 0.0)  # 0 is greedy
    top_p: float = _number(1.0, 1e-6, 1.0)  # 1 is the whole distribution
    max_new_tokens: int = _number(96, 1)
    batch: int = _number(64, 1)  # problems per shard of a run


@dataclass(frozen=True)
class GearConfig(_Checked):
    """Guided Entropy-Assisted Repair: which problems, which step, which hint, how many tries.

    The hints "wrong_answer" and "none" and the signal "random" are controls.

    Example:
        >>> config = heal.GearConfig(paths=2, hints=1, continuations=3)
        >>> config.paths * config.hints * config.continuations  # repairs per problem, at most
        6
    """

    max_correct: int = _number(0, 0)  # repair problems with at most this many correct samples
    paths: int = _number(3, 1)  # wrong trajectories repaired per such problem
    hints: int = _number(1, 1)  # hints written per wrong trajectory
    continuations: int = _number(2, 1)  # continuations per hint
    hint: Literal["bridge", "answer", "wrong_answer", "none"] = "bridge"  # see `gear.write_hints`
    refuse_answers: bool = True  # a bridge hint that states the answer is not used
    step: Literal["mean", "max", "first"] = "max"  # one entropy per step, from its tokens
    signal: Literal["surge", "rise", "level", "relative", "random"] = "rise"  # see find_breakpoint
    window: float = _number(1.0, 1e-6, 1.0)  # share f of the steps that is searched, from the start


@dataclass(frozen=True)
class PureConfig(_Checked):
    """Perplexity-Uncertainty Ratio Estimator: the reading, the aggregate over steps, the threshold.

    Example:
        >>> heal.PureConfig().reading, heal.PureConfig().aggregate
        ('typicality', 'worst')
    """

    reading: Literal["typicality", "forced", "rollout"] = "typicality"  # see `pure_scores`
    aggregate: Literal["worst", "worst_share", "mean"] = "worst"  # of the K step ratios
    epsilon: float = _number(3.0, 1e-9)  # ε in nats, of the readings `forced` and `rollout`
    rollouts: int = _number(8, 2)  # continuations per prefix in the reading `rollout`
    lam: float = _number(0.2, 1e-6, 1.0)  # λ: share of the steps that `worst_share` averages
    keep_quantile: float = _number(0.85, 0.0, 1.0)  # of the reference scores: the threshold
    floor: float = _number(2.0, 0.0)  # nats per step below which `typicality` suspects nothing


@dataclass(frozen=True)
class PaceConfig(_Checked):
    """Progressive Answer-guided Curriculum Evolution: what enters a stage, how long it trains.

    Example:
        >>> config = heal.PaceConfig(updates=100)
        >>> [round(config.updates * share) for share in config.shares]  # updates of each stage
        [20, 20, 60]
    """

    guided_below: float = _number(0.5, 0.0, 1.0)  # accuracy below which a problem is guided
    per_problem: int = _number(4, 1)  # trajectories per problem and stage, at most
    cumulative: bool = True  # a stage also holds the data of the stages before it
    updates: int = _number(600, 1)  # optimizer steps
    shares: tuple[float, float, float] = (0.2, 0.2, 0.6)  # foundation, guided, repaired
    batch: int = _number(64, 1)  # examples per update
    learning_rate: float = _number(1e-3, 0.0)
    warmup: int = _number(20, 0)
    accumulate: int = _number(1, 1)  # parts that a batch is computed in: less memory, same gradient
    save_every: int = _number(200, 0)  # updates between checkpoints, 0 for none
    curve_every: int = _number(60, 0)  # updates between points of the curve, 0: ends of stages only
    thoughts: Literal["keep", "drop"] = "keep"  # thinking blocks in what the student learns
    save_dtype: Literal["float32", "own"] = "float32"  # of the final student: or its checkpoint's

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.shares if isinstance(self.shares, tuple | list) else ()
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise InputError(
                f"PaceConfig.shares is {self.shares}; it must be three shares that sum to 1")


@dataclass(frozen=True)
class HealConfig(_Checked):
    """One run of the whole method. Take a preset and change what should differ.

    Example:
        >>> from dataclasses import replace
        >>> replace(heal.HealConfig.tiny(), eval_n=4).eval_n  # makes another config
        4
    """

    seed: int = 0
    sample: SampleConfig = SampleConfig()
    gear: GearConfig = GearConfig()
    pure: PureConfig = PureConfig()
    pace: PaceConfig = PaceConfig()
    eval_n: int = _number(8, 1)  # samples per held-out problem
    train_limit: int = _number(0, 0)  # training problems of each kind, 0 for all
    eval_limit: int = _number(0, 0)  # held-out problems of each kind, 0 for all

    @classmethod
    def tiny(cls, seed: int = 0) -> HealConfig:
        """For the shipped pair on two CPU cores; chosen on validation problems."""
        return cls(seed=seed, sample=SampleConfig(n=4), pace=PaceConfig(learning_rate=3e-3),
                   eval_limit=100)

    @classmethod
    def smoke(cls, seed: int = 0) -> HealConfig:
        """Every stage, as small as it runs: for tests."""
        pace = PaceConfig(updates=12, batch=16, warmup=2, learning_rate=3e-3)
        return cls(seed=seed, sample=SampleConfig(n=4, batch=32), gear=GearConfig(paths=1),
                   pace=pace, eval_n=2, train_limit=16, eval_limit=16)

    @classmethod
    def paper(cls, seed: int = 0) -> HealConfig:
        """Constants that secondary sources give for the paper, of which we have only the abstract:
        leads, not facts (PAPER.md)."""
        return cls(
            seed=seed,
            sample=SampleConfig(n=30, temperature=0.6, top_p=0.95, max_new_tokens=32768, batch=4),
            gear=GearConfig(max_correct=1, paths=10, hints=1, continuations=20, window=1 / 3,
                            step="mean", signal="surge"),
            pure=PureConfig(reading="forced", aggregate="worst_share", epsilon=0.01, lam=0.2),
            pace=PaceConfig(updates=5000, per_problem=30, batch=8, learning_rate=1e-5, warmup=100),
        )


PRESETS = {"smoke": HealConfig.smoke, "tiny": HealConfig.tiny, "paper": HealConfig.paper}
