r"""The clock world: chains of operations on a 23-hour clock, where every step can be checked.

    Start 5; + 3; * 4; # 7; - 6     the question
    We start at 5.                  step 0 restates; then one step per operation, then the answer;
    Then compute 5 + 3 = 8. ...     a blank line ends a step
    So the answer is \boxed{20}.

The *teacher's* training corpus (heal_lab/clock_corpus.py) decides what it knows of each operator:
`+ - *` are right there, `@` is mostly wrong, `#` random, and `^` follows a wrong rule. Every
operator is invertible in its left value, so a teacher can work back from an answer to a hint.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from heal_ref.records import Problem
from heal_ref.tasks.base import Task

HOURS, MAX_OPERAND = 23, 9
RULES = {  # operator -> the true rule, before taking it modulo 23
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
    "@": lambda a, b: 3 * a + b, "#": lambda a, b: 2 * a + b, "^": lambda a, b: a - 2 * b}
MISCONCEPTION = {"^": lambda a, b: a + b + b + 1}  # the rule that the teacher's corpus teaches
MASTERED, SHAKY, UNLEARNT, MISCONCEIVED = "+-*", "@", "#", "^"
PROBLEM_KINDS = ("mastered", "shaky", "frontier", "double", "misconceived")
_QUESTION = re.compile(r"Start (\d+)((?:; \S \d+)+)")
_STEP = re.compile(r"(\d+) ([-+*@#^]) (\d+) = (\d+)")
_BOXED = re.compile(r"\\boxed\{(\d+)\}")


def apply_op(a: int, op: str, b: int, hours: int = HOURS) -> int:
    """The true result of one operation, an integer in 0..hours − 1."""
    return RULES[op](a, b) % hours


@dataclass(frozen=True)
class Chain:
    """A question in parsed form: a starting hour and n pairs of operator and operand."""

    start: int
    ops: tuple[tuple[str, int], ...]
    hours: int = HOURS

    @classmethod
    def parse(cls, question: str, hours: int = HOURS) -> Chain:
        """Read `Start 5; + 3; * 4`. Raises ValueError (what is wrong) for anything else."""
        match = _QUESTION.fullmatch(question.strip())
        if not match:
            raise ValueError(f"the question {question[:60]!r} is not of the form 'Start 5; + 3'")
        parts = (part.split() for part in match[2].strip("; ").split("; "))
        ops = tuple((op, int(operand)) for op, operand in parts)
        for op, b in ops:
            if op not in RULES:
                raise ValueError(f"unknown operator {op!r} (known: {' '.join(RULES)})")
            if not 1 <= b <= MAX_OPERAND:
                raise ValueError(f"operand {b} is outside 1..{MAX_OPERAND}")
        if not 0 <= int(match[1]) < hours:
            raise ValueError(f"starting hour {match[1]} is outside 0..{hours - 1}")
        return cls(int(match[1]), ops, hours)

    @property
    def question(self) -> str:
        return f"Start {self.start}" + "".join(f"; {op} {b}" for op, b in self.ops)

    def values(self) -> list[int]:
        """The true hour after each operation, starting hour first (n + 1 numbers)."""
        out = [self.start]
        for op, b in self.ops:
            out.append(apply_op(out[-1], op, b, self.hours))
        return out

    @property
    def kind(self) -> str:
        """Which of `PROBLEM_KINDS` this chain belongs to."""
        symbols = "".join(op for op, _ in self.ops)
        if MISCONCEIVED in symbols:
            return "misconceived"
        if UNLEARNT in symbols:
            return "frontier" if symbols.count(UNLEARNT) == 1 else "double"
        return "shaky" if SHAKY in symbols else "mastered"


class ClockTask(Task):
    r"""The clock world as a `Task`, in the texts that its models were trained on.

    The world is ours, not the paper's. Answers are hours, 0 to 22; a step ends at a blank line.
    Models of another world need its `hours`. Without `restates`, the step that restates the start
    is part of the prompt: then the first step can be wrong.

    Example:
        >>> import heal_ref as heal
        >>> task, problem = heal.ClockTask(), heal.Problem("p", "Start 5; + 3; * 4", "9")
        >>> steps = ["We start at 5.", "Then compute 5 + 3 = 8.", "Then compute 8 * 4 = 10.",
        ...          "So the answer is \\boxed{10}."]
        >>> task.check_steps(problem, steps)  # each step on its own: only the product is wrong
        [True, True, False, True]
    """

    elicit = "Quick answer: \\boxed{"

    def __init__(self, hours: int = HOURS, restates: bool = True) -> None:
        self.hours, self.restates = hours, restates

    def validate(self, problem: Problem) -> tuple[str, str] | None:
        try:
            chain = Chain.parse(problem.question, self.hours)
        except ValueError as e:
            return str(e), "write the chain as 'Start 5; + 3; * 4' with known operators"
        true, answer = chain.values()[-1], problem.answer
        if not re.fullmatch(r"\d{1,9}", answer):
            what = f"the answer {answer[:40]!r} is not an hour from 0 to {self.hours - 1}"
            return what, "write a plain integer"
        if int(answer) != true:
            return f"the answer {answer} does not follow from the chain", f"the chain gives {true}"
        for name, given, own in (("kind", problem.kind, chain.kind),
                                 ("length", problem.length, len(chain.ops))):
            if given and given != own:
                return f"{name} {given!r} does not fit the chain", f"write {own!r} or leave it out"
        return None

    def prompt(self, problem: Problem) -> str:
        return f"Problem: {problem.question}\nSolution:\n{self._restated(problem)}"

    def guided_prompt(self, problem: Problem, answer: str) -> str:
        shown = f"Problem: {problem.question}\nAnswer: {answer}\nSolution:\n"
        return shown + self._restated(problem)

    def _restated(self, problem: Problem) -> str:
        """What the prompt already says of the solution."""
        if self.restates:
            return ""
        return f"We start at {Chain.parse(problem.question, self.hours).start}.\n\n"

    def hint_prompt(self, problem: Problem, answer: str, prefix: str) -> str:
        return self.guided_prompt(problem, answer) + prefix + "Working back: "

    def read_hint(self, text: str, answer: str = "") -> str | None:
        match = re.search(r"this step gives \d+", text)
        return match[0] if match else None

    def answer_hint(self, answer: str) -> str:
        return f"the answer is {answer}"

    def inject(self, hint: str) -> str:
        return super().inject(f"{hint}.")

    def extract_answer(self, text: str) -> str | None:
        found = _BOXED.findall(text)
        return found[-1] if found else None

    def is_correct(self, problem: Problem, answer: str | None) -> bool:
        return answer is not None and len(answer) < 10 and int(answer) == int(problem.answer)

    def check_steps(self, problem: Problem, steps: Sequence[str]) -> list[bool]:
        """One verdict per step: each must follow from the value written before it.

        Step 0 (if the world restates) must name the starting hour, step k apply the k-th operation
        to the value before it, the last one give that value. A step too many is wrong; one too few
        makes the last wrong.
        """
        chain, verdicts = Chain.parse(problem.question, self.hours), list[bool]()
        first, value = (0, None) if self.restates else (1, chain.start)
        for k, step in enumerate(steps, first):
            if k == 0:
                numbers = re.findall(r"\d+", step)
                value = int(numbers[0]) if len(numbers) == 1 else None
                verdicts.append(value == chain.start)
            elif k <= len(chain.ops):
                match, right = _STEP.search(step), False
                if match and "\\boxed" not in step:
                    a, op, b, result = int(match[1]), match[2], int(match[3]), int(match[4])
                    right = (op, b) == chain.ops[k - 1] and a == value
                    right = right and result == apply_op(a, op, b, self.hours)
                    value = result
                verdicts.append(right)
            else:
                last = k == len(chain.ops) + 1
                verdicts.append(last and [str(value)] == _BOXED.findall(step))
        if verdicts and first + len(steps) < len(chain.ops) + 2:
            verdicts[-1] = False
        return verdicts
