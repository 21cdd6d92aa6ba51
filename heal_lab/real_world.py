"""The pretrained pair's world: its problems, the folder of its runs, and what the teacher makes.

What is measured there is in `real` (the teacher) and `real_students`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from heal_lab.arms import TeacherData
from heal_lab.word_problems import WordProblems, make_problems
from heal_ref.config import GearConfig, HealConfig, PaceConfig, SampleConfig
from heal_ref.model import LM
from heal_ref.pace import solved_share
from heal_ref.records import (
    Problem,
    Trajectory,
    light,
    read_json,
    select,
    source_commit,
    write_text,
)
from heal_ref.run.folder import RunFolder, identity
from heal_ref.run.pipeline import Method

HARD = 96  # unsolved problems, at most, that are repaired and sampled again


def settings(seed: int = 0) -> HealConfig:
    """What is measured with: the preset `real`, as small as two CPU cores allow."""
    sampling = SampleConfig(n=2, temperature=0.7, max_new_tokens=512, batch=72)
    pace = PaceConfig(updates=20, batch=6, per_problem=2, warmup=2, curve_every=0, save_every=0,
                      save_dtype="own")
    gear = GearConfig(paths=1, hints=1, continuations=2, hint="step")
    return replace(HealConfig.real(seed), sample=sampling, gear=gear, pace=pace, eval_n=4,
                   eval_limit=50)


@dataclass
class World:
    """The teacher, the problems, and where everything is kept."""

    path: Path
    teacher: LM
    task: WordProblems
    splits: Mapping[str, list[Problem]]
    references: Mapping[str, str]  # solutions by their generators, by problem id
    config: HealConfig
    method: Method
    commits: dict[str, None] = field(default_factory=dict)  # that made the stored parts

    @classmethod
    def at(cls, path: Path, teacher: LM, config: HealConfig, limit: int = 0,
           quiet: bool = False) -> "World":
        """The world in folder `path`, with at most `limit` training problems (0: all), and of the
        other splits `config.eval_limit`. What students are shown may not change later; how
        they are trained may, until one is."""
        splits, truth, references = make_problems()
        task = WordProblems(teacher.tokenizer, truth)
        splits = {name: thinned(problems, limit if name == "train" else config.eval_limit)
                  for name, problems in splits.items()}
        made = replace(config, eval_n=1, eval_limit=0, pace=PaceConfig(
            guided_below=config.pace.guided_below, per_problem=config.pace.per_problem))
        what = identity(made, task, {"teacher": teacher}, {"train": splits["train"]})
        folder = RunFolder(path / "teacher", what, quiet)
        return cls(path, teacher, task, splits, references, config,
                   Method(folder, teacher, task, config))

    @property
    def heldout(self) -> list[Problem]:
        """What students are evaluated on: other numbers, and stories never seen."""
        return [*self.splits["heldout"], *self.splits["unseen"]]

    @cached_property
    def base(self) -> Sequence[Trajectory]:
        """The teacher's first samples of the training problems."""
        return self.method.sampled(self.splits["train"])

    @cached_property
    def made(self) -> TeacherData:
        """What the teacher makes for all students."""
        return TeacherData(self.method, self.splits["train"])

    @cached_property
    def hard(self) -> Sequence[Trajectory]:
        """The samples of problems without a correct one, of `HARD` problems at most."""
        solved = solved_share(self.base)
        never = {*thinned([key for key, share in solved.items() if not share], HARD)}
        return select(self.base, [i for i, t in enumerate(light(self.base))
                                  if t.problem.id in never])

    def has(self, name: str) -> bool:
        """Whether part `name` is finished."""
        return self._file(name).exists()

    def kept(self, name: str, make: Any) -> Any:
        """What `make()` returns, which is plain JSON; made once."""
        return self._read(name) if self.has(name) else self.keep(name, make())

    def keep(self, name: str, made: Any) -> Any:
        """Store `made` under `name`, in place of any earlier version."""
        write_text(self._file(name), json.dumps({"commit": source_commit(), "made": made}) + "\n")
        return self._read(name)

    def _read(self, name: str) -> Any:
        file = self._file(name)
        content = read_json(file, "a part of a record; delete it, so that it is made again",
                            commit=str)
        self.commits[content["commit"]] = None
        return content["made"]

    def _file(self, name: str) -> Path:
        """In the folder with the run's identity, so that no other run's is read."""
        return self.method.folder.path / "parts" / f"{name}.json"


def thinned(items: Sequence[Any], limit: int) -> list[Any]:
    """`limit` items (0: all), evenly from the whole list, so that every story has its share."""
    if not limit or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]
