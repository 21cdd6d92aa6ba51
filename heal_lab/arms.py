"""The arms of the experiment: what each student trains on, and what that cost the teacher.

All arms train for the same number of updates. Only `rft_adaptive_frontier` looks at the kinds of
problems.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle, islice
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from heal_lab.clock_corpus import Dials, solution
from heal_ref import pace, pure
from heal_ref.config import HealConfig
from heal_ref.evaluate import is_genuine
from heal_ref.gear import Cut
from heal_ref.generation import Rollout, make_trajectory, sample
from heal_ref.model import load_lm
from heal_ref.records import InputError, Problem, PureScore, Trajectory, select
from heal_ref.run.folder import RunFolder, batches
from heal_ref.run.pipeline import Method, tokens_of
from heal_ref.tasks.clock import Chain, ClockTask


@dataclass(frozen=True)
class ArmData:
    """What an arm trains on. Cost: teacher tokens generated, and tokens scored by PURE.

    `shares`: of the updates, for each stage; without them those of the configuration.
    """

    stages: Mapping[str, Dataset]
    generated: int
    scored: int = 0
    shares: tuple[float, float, float] | None = None

    @property
    def tokens(self) -> int:
        return self.generated + self.scored


class TeacherData:
    """What the teacher makes with one seed, for all arms; made when an arm first needs it, then
    kept on disk. `problems` are what the arms may train on, `second` those of a second round."""

    def __init__(self, method: Method, problems: Sequence[Problem],
                 second: Sequence[Problem] = ()):
        self.method, self.problems, self.config = method, problems, method.config
        self.second = second

    @cached_property
    def base(self) -> Sequence[Trajectory]:
        return self.method.sampled(self.problems)

    @cached_property
    def guided(self) -> Sequence[Trajectory]:
        return self.method.guided(self.base)

    @cached_property
    def reference(self) -> Sequence[PureScore]:
        return self.method.scored("4-scores/reference", pure.unaided(self.base))

    @cached_property
    def guided_scores(self) -> Sequence[PureScore]:
        return self.method.scored("4-scores/guided", self.guided)

    def repaired(self, variant: str = "", cut: Cut | None = None, **gear: Any
                 ) -> Sequence[Trajectory]:
        """GEAR's repairs; a variant has changed settings or cuts, and a name of its own."""
        config = replace(self.config.gear, **gear)
        return self.method.repaired(self.base, f"3-repaired{variant}", config, cut)

    def scaled(self, x: float) -> "TeacherData":
        """The same with HEAL's settings for x times its tokens, in a folder of its own."""
        method, config = self.method, scaled_config(self.config, x)
        folder = RunFolder(method.folder.path / f"budget-{x:g}", {
            **method.folder.identity, "budget": x}, method.folder.quiet)
        return TeacherData(replace(method, folder=folder, config=config), self.problems)

    def rounds(self, budget: int, stage: str, n: int,
               todo: Callable[[list[Trajectory]], Sequence[Problem]]
               ) -> tuple[list[Trajectory], int]:
        """The base samples, then rounds of n more per problem in `todo(samples)`, until there is
        none or `budget` tokens are spent; the tokens."""
        samples, turn = list(self.base), 0
        spent = _tokens(samples)
        while spent < budget and (left := todo(samples)):
            more = list(self.method.sampled(left, f"{stage}/{turn}", n=n))
            # The last round is cut off: shuffled, so that no kind is favoured.
            random.Random(f"{self.config.seed}/{turn}").shuffle(more)
            for t in more:
                if spent < budget:
                    samples.append(t)
                    spent += t.tokens_spent
            turn += 1
        return samples, spent

    def pure(self, scored: Sequence[PureScore]) -> Sequence[Trajectory]:
        """What PURE keeps."""
        return pure.pure_filter(scored, self.config.pure, self.reference)

    def checked(self, scored: Sequence[PureScore]) -> list[Trajectory]:
        """What the exact checker keeps: an upper bound, as real problems have no such checker."""
        lm, task = self.method.teacher, self.method.task
        return [s.trajectory for s in scored if is_genuine(lm, task, s.trajectory)]

    def stages(self, guided: Sequence[Trajectory], repaired: Sequence[Trajectory],
               keep: Callable | None, variant: str = "", **settings: Any) -> ArmData:
        """PACE's stages, with changed settings, of the helped solutions that `keep` chooses among
        PURE's scores; without it, of all. `variant` is that of the repairs."""
        lengths, config = list[int](), replace(self.config.pace, **settings)
        generated = _tokens(self.base, guided, repaired)
        if keep:
            first = self.guided_scores if guided else []
            then = self.method.scored(f"4-scores/repaired{variant}", repaired) if repaired else []
            lengths = [len(s.trajectory.token_ids) for scored in (self.reference, first, then)
                       for s in scored]
            guided, repaired = keep(first), keep(then)
        stages = pace.build_stages(self.base, guided, repaired, config)
        return ArmData(stages, generated, sum(lengths))

    def heal(self, variant: str = "", cut: Cut | None = None, **gear: Any) -> ArmData:
        """GEAR with changed settings or cuts, PURE and PACE."""
        return self.stages(self.guided, self.repaired(variant, cut, **gear), self.pure, variant)


def scaled_config(config: HealConfig, x: float) -> HealConfig:
    """HEAL's settings for x times its teacher tokens.

    Times x, and never below 1: samples per problem, guided samples per problem (and with them the
    examples per problem and stage), and continuations per hint. Paths per problem stay; below 1
    they are fewer by themselves, as a path is one of the n wrong samples. What was really spent is
    recorded.
    """
    def times(number: int) -> int:
        return max(1, round(number * x))

    return replace(
        config, sample=replace(config.sample, n=times(config.sample.n)),
        gear=replace(config.gear, continuations=times(config.gear.continuations)),
        pace=replace(config.pace, per_problem=times(config.pace.per_problem)))


def _tokens(*sources: Sequence[Trajectory]) -> int:
    return sum(map(tokens_of, sources))


def rft(made: TeacherData) -> ArmData:
    """Rejection sampling: what the teacher solves alone."""
    stages = pace.build_stages(made.base, [], [], made.config.pace)
    return ArmData({"foundation": stages["foundation"]}, _tokens(made.base))


def rft_matched(made: TeacherData) -> ArmData:
    """Rejection sampling of all problems until the teacher has spent as many tokens as for HEAL,
    scored ones counted like generated ones, with as many solutions per problem as HEAL's three
    stages hold."""
    samples, spent = made.rounds(made.heal().tokens, "1-base-more", 1, lambda _: made.problems)
    wider = replace(made.config.pace, per_problem=3 * made.config.pace.per_problem)
    stages = pace.build_stages(samples, [], [], wider)
    return ArmData({"foundation": stages["foundation"]}, spent)


def unsolved_first(made: TeacherData, budget: int) -> tuple[Dataset, int]:
    """The different right solutions after rounds of n samples of what is still unsolved, until all
    is solved or the budget is spent; the tokens."""
    def unsolved(samples: list[Trajectory]) -> list[Problem]:
        solved = {t.problem.id for t in samples if t.correct}
        return [p for p in made.problems if p.id not in solved]

    samples, spent = made.rounds(budget, "1-base-unsolved", made.config.sample.n, unsolved)
    return pace.build_stages(samples, [], [], made.config.pace)["foundation"], spent


def weighed(made: TeacherData, solutions: Dataset) -> Dataset:
    """`per_problem` rows for each problem, its different solutions in turn."""
    of_problem: dict[str, list[int]] = {}
    for row, problem in enumerate(solutions["id"]):
        of_problem.setdefault(problem, []).append(row)
    return solutions.select([row for mine in of_problem.values()
                             for row in islice(cycle(mine), made.config.pace.per_problem)])


def rft_adaptive(made: TeacherData, budget: int = 0) -> ArmData:
    """Rejection sampling of what is still unsolved, in rounds of n samples per problem, until all
    is solved or HEAL's tokens (or `budget`) are spent. Every solved problem weighs the same."""
    solutions, spent = unsolved_first(made, budget or made.heal().tokens)
    return ArmData({"all": weighed(made, solutions)}, spent)


def rft_unsolved(made: TeacherData) -> ArmData:
    """`rft_adaptive` without equal weights: each different solution is one row."""
    solutions, spent = unsolved_first(made, made.heal().tokens)
    return ArmData({"all": solutions}, spent)


def rft_equal(made: TeacherData) -> ArmData:
    """`rft` with equal weights, as `rft_adaptive` has them, and no more tokens."""
    plain = rft(made)
    return ArmData({"all": weighed(made, plain.stages["foundation"])}, plain.generated)


def rft_adaptive_frontier(made: TeacherData) -> ArmData:
    """`rft_adaptive` with rows repeated until the share of frontier rows is that of HEAL's
    training. It uses the kinds of problems, which no real teacher knows."""
    # 1) HEAL's share: of each stage, weighted by its updates.
    frontier = {p.id for p in made.problems if p.kind == "frontier"}
    stages, plain = made.heal().stages, rft_adaptive(made)
    updates = pace.updates_of(stages, made.config.pace)
    share = sum(count * np.isin(stages[name]["id"], list(frontier)).mean()
                for name, count in updates.items()) / sum(updates.values())
    # 2) Repeat whichever side is too small, in turn.
    of_frontier = np.isin(plain.stages["all"]["id"], list(frontier))
    hard, rest = np.flatnonzero(of_frontier), np.flatnonzero(~of_frontier)
    if len(hard) and len(rest) and 0 < share < 1:
        hard = np.resize(hard, max(len(hard), round(len(rest) * share / (1 - share))))
        rest = np.resize(rest, max(len(rest), round(len(hard) * (1 - share) / share)))
    return replace(plain, stages={"all": plain.stages["all"].select([*hard, *rest])})


def star(made: TeacherData) -> ArmData:
    """STaR's rationalisation: one guided solution per failed sample, no filter, one stage."""
    m, c = made.method, made.config
    failed = [t.problem for t in made.base if not t.correct]
    guided = m.folder.shards(
        "2-rationalized", batches(failed, c.sample.batch * c.sample.n),
        lambda part, seed: sample(m.teacher, m.task, part, 1, seed=seed, sampling=c.sample,
                                  guided=True), c.seed)
    stages = pace.build_stages(made.base, guided, [], replace(c.pace, guided_below=1.0))
    return ArmData(pace.shuffled({"guided": stages["guided"]}), _tokens(made.base, guided))


def gold(made: TeacherData) -> ArmData:
    """True solutions of all training problems, worded as in the corpus; the teacher is not asked.

    What a student can learn from these problems at all: of the facts in them, and of others.
    InputError outside of the clock world, whose solutions nothing here can write.
    """
    m = made.method
    if not isinstance(m.task, ClockTask):
        raise InputError("the arm gold writes solutions of the clock world only; leave it out")
    rng, dials, solved = random.Random(f"{made.config.seed}/gold"), Dials(hours=m.task.hours), []
    for problem in made.problems:
        chain = Chain.parse(problem.question, dials.hours)
        for _ in range(made.config.pace.per_problem):
            ids = m.teacher.encode("".join(solution(rng, chain, chain.values(), dials)))
            nothing = [0.0] * len(ids)
            written = Rollout(ids, nothing, nothing, finished=True)
            solved.append(make_trajectory(m.teacher, m.task, problem, "base", written))
    return ArmData({"all": pace.build_stages(solved, [], [], made.config.pace)["foundation"]}, 0)


def heal_no_pace(made: TeacherData) -> ArmData:
    """HEAL's examples in one shuffled stage."""
    full = made.heal()
    return replace(full, stages=pace.shuffled(full.stages))


def heal_restarts(made: TeacherData) -> ArmData:
    """HEAL's examples in each of three stages: PACE's learning-rate cycles without its order."""
    full = made.heal()
    return replace(full, stages=dict.fromkeys(pace.STAGES, pace.shuffled(full.stages)["all"]))


def heal_equal(made: TeacherData) -> ArmData:
    """HEAL's examples in PACE's order, each seen as often as any other.

    In PACE an example of the foundation is seen in all three stages, a repair in the last only.
    Here each example has six rows, spread over the stages that hold it, and the updates follow the
    rows. `heal_no_pace` is the control: the same examples, the same exposures, no order.
    """
    own = made.stages(made.guided, made.repaired(), made.pure, cumulative=False)
    foundation, guided, repaired = (own.stages[name] for name in pace.STAGES)
    rows = [[foundation] * 2, [foundation] * 2 + [guided] * 3,
            [foundation] * 2 + [guided] * 3 + [repaired] * 6]
    stages = [concatenate_datasets([part for part in mine if len(part)]) for mine in rows]
    first, second, third = (len(stage) / sum(map(len, stages)) for stage in stages)
    return replace(own, stages=dict(zip(pace.STAGES, stages, strict=True)),
                   shares=(first, second, third))


def second_round(made: TeacherData, by_student: bool = True) -> ArmData:
    """HEAL's examples, and what HEAL's student solves of new `shaky` and `double` problems.

    That student was never taught to write hints, so it only samples: `rft_adaptive` of the new
    problems with HEAL's tokens. In the control, `second_round_teacher`, the teacher samples them.
    """
    if not made.second:
        raise InputError("a second round needs problems of its own, which only a pair of the clock "
                         "world has; leave it out")
    first, method = made.heal(), made.method
    folder = method.folder.path / "5-students" / "heal"
    done = sorted(folder.glob("*/curve.json"))
    if by_student and not done:
        raise InputError("the second round begins with HEAL's student: run the arm heal, too")
    lm = load_lm(done[-1].parent) if by_student else method.teacher
    name = "second-student" if by_student else "second-teacher"
    own = RunFolder(method.folder.path / name, {**method.folder.identity, "round": name},
                    method.folder.quiet)
    new = TeacherData(replace(method, folder=own, teacher=lm), made.second)
    more = rft_adaptive(new, first.tokens)
    both = concatenate_datasets([first.stages["repaired"], more.stages["all"]])
    return ArmData({"all": both}, first.generated + more.generated, first.scored)


def heal_first_step(made: TeacherData) -> ArmData:
    """HEAL with every cut at the first step that a surge may choose: it keeps one step."""
    return made.heal("-first", cut=lambda t: 1 if len(t.steps) > 1 else None)


def with_budget(x: float) -> dict[str, Callable[[TeacherData], ArmData]]:
    """`heal@x`, HEAL with settings for x times its tokens, and `rft_adaptive@x` with the tokens of
    that.

    The sampler's rounds have the unscaled n at most: more samples of what is solved would waste
    tokens. So the data of larger budgets begin with those of x = 1, and it keeps as many examples
    per problem. HEAL keeps x times as many, of which each is seen more seldom, as updates are the
    same; `heal_few@x`, for x above 1, is the control that keeps as many as at x = 1.
    """
    def adaptive(made: TeacherData) -> ArmData:
        scaled = made.scaled(x)
        return rft_adaptive(scaled if x < 1 else made, scaled.heal().tokens)

    def few(made: TeacherData) -> ArmData:
        scaled = made.scaled(x)
        return scaled.stages(scaled.guided, scaled.repaired(), scaled.pure,
                             per_problem=made.config.pace.per_problem)

    control = {f"heal_few@{x:g}": few} if x > 1 else {}
    return {f"heal@{x:g}": lambda made: made.scaled(x).heal(), f"rft_adaptive@{x:g}": adaptive,
            **control}


def with_forged(name: str, share: float) -> Callable[[TeacherData], ArmData]:
    """The arm `name` with `share` of its guided examples forged, before PURE if it filters.

    They are drawn from the right guided solutions by the exact checker. For each kind of problem
    all shares have equally many, the most that 0 and the largest of FORGED allow, and two shares
    have as many of them in common as they can.
    """
    def drawn(made: TeacherData) -> set[tuple[str, str]]:
        rng = random.Random(f"{made.config.seed}/forged")
        kinds: dict[str, dict[bool, list[tuple[str, str]]]] = {}
        for t in select(made.guided, pace.chosen(made.guided, made.config.pace.per_problem)):
            genuine = is_genuine(made.method.teacher, made.method.task, t)
            sides = kinds.setdefault(t.problem.kind, {True: [], False: []})
            sides[genuine].append((t.problem.id, t.text))
        out = set[tuple[str, str]]()
        for sides in kinds.values():
            count = int(min(len(sides[True]), len(sides[False]) / max(FORGED)))
            forged = round(count * share)
            out |= {*rng.sample(sides[True], len(sides[True]))[:count - forged],
                    *rng.sample(sides[False], len(sides[False]))[:forged]}
        return out

    def arm(made: TeacherData) -> ArmData:
        whole, mine = TRAINED[name](made), drawn(made)
        return replace(whole, stages={stage: rows.select([
            i for i, row in enumerate(rows)
            if row["source"] != "guided" or (row["id"], row["completion"]) in mine])
            for stage, rows in whole.stages.items()})

    return arm


BUDGETS = (0.25, 0.5, 2.0, 4.0)  # times HEAL's tokens; once is the arm without @
FORGED = (0.0, 0.2, 0.35, 0.5, 0.7)  # shares of the guided examples
TRAINED: dict[str, Callable[[TeacherData], ArmData]] = {
    "rft": rft,
    "heal": TeacherData.heal,
    "rft_matched": rft_matched,
    "rft_adaptive": rft_adaptive,
    "rft_adaptive_frontier": rft_adaptive_frontier,
    "rft_unsolved": rft_unsolved,
    "rft_equal": rft_equal,
    "star": star,
    "gold": gold,
    # What each part earns: {repairs, guided, both} × {PURE, no filter}; both with PURE is `heal`.
    # Without repairs PACE's third stage trains on what the second one had, and so on.
    "repairs": lambda made: made.stages([], made.repaired(), made.pure),
    "repairs_unfiltered": lambda made: made.stages([], made.repaired(), None),
    "heal_no_gear": lambda made: made.stages(made.guided, [], made.pure),
    "guided_unfiltered": lambda made: made.stages(made.guided, [], None),
    "heal_no_pure": lambda made: made.stages(made.guided, made.repaired(), None),
    "heal_no_pace": heal_no_pace,
    "heal_random_breakpoint": lambda made: made.heal("-random", signal="random"),
    "heal_first_step": heal_first_step,
    "heal_answer_hint": lambda made: made.heal("-answer", hint="answer"),
    "heal_step_hint": lambda made: made.heal("-step", hint="step"),
    "heal_no_hint": lambda made: made.heal("-none", hint="none"),
    "heal_oracle_filter": lambda made: made.stages(made.guided, made.repaired(), made.checked),
    "heal_restarts": heal_restarts,
    "heal_equal": heal_equal,
    "second_round": second_round,
    "second_round_teacher": lambda made: second_round(made, by_student=False),
    # Each stage holds its own data only: what does the student forget?
    "heal_stage_only": lambda made: made.stages(
        made.guided, made.repaired(), made.pure, cumulative=False),
    **{name: arm for x in BUDGETS for name, arm in with_budget(x).items()},
}
TRAINED |= {f"{name}_forged@{x:g}": with_forged(name, x)
            for x in FORGED for name in ("heal", "heal_no_pure")}
ARMS = ("student", "teacher", *TRAINED)
FACTORIAL = {  # (what is added to rejection sampling, filter) -> arm
    ("repairs", "PURE"): "repairs", ("repairs", "none"): "repairs_unfiltered",
    ("guided", "PURE"): "heal_no_gear", ("guided", "none"): "guided_unfiltered",
    ("both", "PURE"): "heal", ("both", "none"): "heal_no_pure"}
