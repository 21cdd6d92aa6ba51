"""The arms of the experiment: what each student trains on, and what that cost the teacher."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from datasets import Dataset

from heal_ref import pace, pure
from heal_ref.evaluate import is_genuine
from heal_ref.generation import sample
from heal_ref.records import Problem, PureScore, Trajectory
from heal_ref.run.folder import batches
from heal_ref.run.pipeline import Method


@dataclass(frozen=True)
class ArmData:
    """What an arm trains on. Cost: teacher tokens generated, and tokens scored by PURE."""

    stages: Mapping[str, Dataset]
    generated: int
    scored: int = 0


class TeacherData:
    """What the teacher makes with one seed, for all arms; made when an arm first needs it, then
    kept on disk. `problems` are what the arms may train on."""

    def __init__(self, method: Method, problems: Sequence[Problem]):
        self.method, self.problems, self.config = method, problems, method.config

    @cached_property
    def base(self) -> list[Trajectory]:
        return self.method.sampled(self.problems)

    @cached_property
    def guided(self) -> list[Trajectory]:
        return self.method.guided(self.base)

    @cached_property
    def reference(self) -> list[PureScore]:
        return self.method.scored("4-scores/reference", pure.unaided(self.base))

    @cached_property
    def guided_scores(self) -> list[PureScore]:
        return self.method.scored("4-scores/guided", self.guided)

    def repaired(self, variant: str = "", **gear: Any) -> list[Trajectory]:
        """GEAR's repairs; a variant has changed settings and a name of its own."""
        config = replace(self.config.gear, **gear)
        return self.method.repaired(self.base, f"3-repaired{variant}", config)

    def pure(self, scored: Sequence[PureScore]) -> list[Trajectory]:
        """What PURE keeps."""
        return pure.pure_filter(scored, self.config.pure, self.reference)

    def checked(self, scored: Sequence[PureScore]) -> list[Trajectory]:
        """What the exact checker keeps: an upper bound, as real problems have no such checker."""
        lm, task = self.method.teacher, self.method.task
        return [s.trajectory for s in scored if is_genuine(lm, task, s.trajectory)]

    def three_stages(self, repaired: Sequence[Trajectory], keep: Callable | None, variant: str = "",
                     **settings: Any) -> ArmData:
        """PACE's stages, with changed settings, of the helped solutions that `keep` chooses among
        PURE's scores; without it, of all."""
        guided, scored = self.guided, list[PureScore]()
        config = replace(self.config.pace, **settings)
        generated = _tokens(self.base, guided, repaired)
        if keep:
            scores = self.method.scored(f"4-scores/repaired{variant}", repaired)
            scored = [*self.reference, *self.guided_scores, *scores]
            guided, repaired = keep(self.guided_scores), keep(scores)
        stages = pace.build_stages(self.base, guided, repaired, config)
        return ArmData(stages, generated, sum(len(s.trajectory.token_ids) for s in scored))


def _tokens(*sources: Sequence[Trajectory]) -> int:
    return sum(t.tokens_spent for source in sources for t in source)


def rft(made: TeacherData) -> ArmData:
    """Rejection sampling: what the teacher solves alone."""
    stages = pace.build_stages(made.base, [], [], made.config.pace)
    return ArmData({"foundation": stages["foundation"]}, _tokens(made.base))


def rft_matched(made: TeacherData) -> ArmData:
    """Rejection sampling until the teacher has spent as many tokens as for HEAL, scored ones
    counted like generated ones, with as many solutions per problem as HEAL's three stages hold."""
    full, samples = heal(made), list(made.base)
    budget, spent, turn = full.generated + full.scored, _tokens(samples), 0
    while spent < budget:
        more = made.method.sampled(made.problems, f"1-base-more/{turn}", n=1)
        # The last round is cut off: shuffled, so that no kind is favoured.
        random.Random(f"{made.config.seed}/{turn}").shuffle(more)
        for t in more:
            if spent < budget:
                samples.append(t)
                spent += t.tokens_spent
        turn += 1
    wider = replace(made.config.pace, per_problem=3 * made.config.pace.per_problem)
    stages = pace.build_stages(samples, [], [], wider)
    return ArmData({"foundation": stages["foundation"]}, spent)


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


def heal(made: TeacherData) -> ArmData:
    """GEAR, PURE and PACE."""
    return made.three_stages(made.repaired(), made.pure)


def heal_no_pace(made: TeacherData) -> ArmData:
    """HEAL's examples in one shuffled stage."""
    full = heal(made)
    return replace(full, stages=pace.shuffled(full.stages))


def heal_restarts(made: TeacherData) -> ArmData:
    """HEAL's examples in each of three stages: PACE's learning-rate cycles without its order."""
    full = heal(made)
    return replace(full, stages=dict.fromkeys(pace.STAGES, pace.shuffled(full.stages)["all"]))


TRAINED: dict[str, Callable[[TeacherData], ArmData]] = {
    "rft": rft,
    "heal": heal,
    "rft_matched": rft_matched,
    "star": star,
    # No repairs: PACE's third stage trains on what the second one had.
    "heal_no_gear": lambda made: made.three_stages([], made.pure, "-none"),
    # No filter: every helped solution whose answer is right.
    "heal_no_pure": lambda made: made.three_stages(made.repaired(), None),
    "heal_no_pace": heal_no_pace,
    "heal_random_breakpoint": lambda made: made.three_stages(
        made.repaired("-random", signal="random"), made.pure, "-random"),
    "heal_answer_hint": lambda made: made.three_stages(
        made.repaired("-answer", hint="answer"), made.pure, "-answer"),
    "heal_oracle_filter": lambda made: made.three_stages(made.repaired(), made.checked),
    "heal_restarts": heal_restarts,
    # Each stage holds its own data only: what does the student forget?
    "heal_stage_only": lambda made: made.three_stages(made.repaired(), made.pure, cumulative=False),
}
ARMS = ("student", "teacher", *TRAINED)
