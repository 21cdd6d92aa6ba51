"""Problems and trajectories: the two things that flow through HEAL, and their files.

Numbers per token are rounded to 6 decimals when a trajectory is made, and again when it is read
from a shard, which holds them as float32 (`run/shards.py`): memory and file agree.
"""

import contextlib
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent.parent / "data"  # shipped: pair, problems, results


class InputError(ValueError):
    """Invalid user input: what was found, why it matters, what to do.

    The command line prints the message without a traceback and exits with code 2.

    Example:
        >>> heal.GearConfig(window=2)
        Traceback (most recent call last):
        heal_ref.records.InputError: GearConfig.window is 2; it must lie between 1e-06 and 1.0
    """


@dataclass(frozen=True)
class Problem:
    """One problem with a known answer. Only reports read `kind` and `length`.

    Example:
        >>> heal.Problem("p1", "Start 5; + 3; * 4", "9")  # (5 + 3) * 4 = 32, on a clock of 23 hours
        Problem(id='p1', question='Start 5; + 3; * 4', answer='9', kind='', length=0)
    """

    id: str
    question: str
    answer: str
    kind: str = ""
    length: int = 0


@dataclass(frozen=True)
class Trajectory:
    """One sampled solution and all that was measured while it was sampled.

    `entropy` (nats) is that of the model's raw next-token distribution: whole vocabulary,
    temperature 1, before any warping; `logprob` is that of the sampled token under it.

    For a repair, `token_ids` is kept prefix + continuation *without the hint*. If no usable hint
    was written, it ends at the cut: `hint` is None and `note` says why.

    Example:
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> problem = heal.Problem("p", "Start 5; + 3; # 4; * 2", "17")  # "#" was never learnt
        >>> t, = heal.sample(teacher, task, [problem], 1, sampling=heal.SampleConfig(temperature=0))
        >>> t.steps
        [(0, 4), (4, 13), (13, 22), (22, 31), (31, 36)]
        >>> [round(h, 1) for h in t.step_entropy]  # nats: highest where the teacher does not know
        [0.4, 0.3, 0.6, 0.3, 0.0]
    """

    problem: Problem
    source: str  # "base" (unaided), "guided" (with the answer in view) or "repair" (GEAR's)
    prompt: str  # the plain prompt, which the student will see: no answer, no hint
    text: str
    token_ids: list[int]  # T
    entropy: list[float]  # T
    logprob: list[float]  # T
    steps: list[tuple[int, int]]  # K half-open ranges of tokens
    answer: str | None
    correct: bool
    finished: bool
    tokens_spent: int  # all that it cost, end of turn included; their sum is the cost of a call
    index: int = 0
    parent: int | None = None  # index of the broken sample of a repair
    breakpoint: int | None = None  # its step (0-based) at which it was cut
    hint: str | None = None
    note: str = ""
    step_ends: list[int] = field(default_factory=list)  # K: where each ends in `text` (characters)
    place: tuple[str, int] | None = field(default=None, compare=False, repr=False)  # shard and row

    @property
    def step_texts(self) -> list[str]:
        """The text of each step, cut from `text`: no tokenizer is needed."""
        return [self.text[a:b] for a, b in pairwise([0, *self.step_ends])]

    @property
    def step_entropy(self) -> list[float]:
        """Mean token entropy of each step, K numbers in nats (paper: "entropy dynamics")."""
        return [sum(self.entropy[a:b]) / (b - a) for a, b in self.steps]

    def step_ids(self, k: int) -> list[int]:
        """Token ids of step `k`, its closing separator included."""
        a, b = self.steps[k]
        return self.token_ids[a:b]


@dataclass(frozen=True)
class PureScore:
    """A trajectory with its PURE score: one ratio r_k per step (K), and one number to compare.

    Example:
        >>> s = heal.PureScore(None, [1.0, 4.0], [0.1, 0.2], ratio=[-0.1, 1.2], score=1.2)
        >>> s.score == max(s.ratio)  # by default the worst step counts
        True
    """

    trajectory: Trajectory
    perplexity: list[float]  # K, at least 1
    uncertainty: list[float]  # K, in nats
    ratio: list[float]  # K; what it holds depends on the reading (`pure_scores`)
    score: float  # their aggregate; a high one suggests a shortcut


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows so that the file is either complete or absent, even if the machine stops."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: Any) -> None:
    """Write `content`, bytes or a buffer, atomically: temporary name, flush, fsync, rename.

    InputError if it cannot be written (disk full, no permission); the old file then stays.
    """
    path = Path(path)
    tmp = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # one of its own for each process
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(tmp, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            tmp.unlink(missing_ok=True)
        raise InputError(
            f"{path} cannot be written: {e.strerror or e}; make room or mend the permissions, then "
            "start the same command again: what was finished is kept") from e


def read_json(path: Path, what: str, **fields: type) -> dict[str, Any]:
    """The object in a file; InputError, "PATH is not `what`", if it lacks fields of these types."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(content[name], kind) for name, kind in fields.items()):
            return content
        raise ValueError("fields of other types")
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise InputError(f"{path} is not {what}") from e


def light(records: Sequence[Any]) -> Sequence[Any]:
    """The same records; of those in shards without token ids, entropies and log-probs, which are
    then not read: for going through all records of a stage. A list stays as it is."""
    return getattr(records, "light", records)


def select(records: Sequence[Any], rows: Sequence[int]) -> Sequence[Any]:
    """The records with these numbers: a list, or, of records in shards, another sequence that
    reads them while one goes through it."""
    return records.select(rows) if hasattr(records, "select") else [records[i] for i in rows]


def trajectories_of(scored: Sequence[PureScore]) -> Sequence[Trajectory]:
    """The trajectories of these scores: a list, or a sequence that reads them from shards."""
    found = getattr(scored, "trajectories", None)
    return [s.trajectory for s in scored] if found is None else found


def by_problem(trajectories: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    """Trajectories grouped by problem id, in order of first appearance."""
    groups: dict[str, list[Trajectory]] = {}
    for t in trajectories:
        groups.setdefault(t.problem.id, []).append(t)
    return groups


def limit_by_kind(problems: Sequence[Problem], limit: int) -> list[Problem]:
    """The first `limit` problems of each kind; all of them if it is 0."""
    seen, out = Counter[str](), []
    for p in problems:
        seen[p.kind] += 1
        if not limit or seen[p.kind] <= limit:
            out.append(p)
    return out


def source_commit() -> str:
    """The commit of the source tree, or "unknown" outside of one."""
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty"], check=True, text=True,
                              cwd=Path(__file__).parent, capture_output=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
