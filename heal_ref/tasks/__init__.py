"""What text looks like: the one place that knows prompts, hints, steps and answers.

Every model-facing piece is a string. The method itself cuts and joins on token ids: a context is always
`encode(prompt) + kept token ids + encode(insertion)`, never text that was decoded and encoded again.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from heal_ref.records import Problem


@runtime_checkable
class Task(Protocol):
    """Prompts, hints, steps and answers of one kind of problem. A task of your own is a class with these.

    It may have more: `reveals_help(text)`, whether a solution speaks of the help that it got (then it counts as wrong: nobody
    will help the student); and, where the truth is known, `check_steps(problem, steps)` and `is_genuine(problem, steps)`,
    which only measuring calls.

    Example:
        >>> import heal_ref as heal
        >>> isinstance(heal.ClockTask(), heal.Task)
        True
        >>> isinstance("a question", heal.Task)
        False
    """

    separator: str  # what ends a step, e.g. "\n\n"
    elicit: str  # text after a kept prefix that makes the model state its answer at once

    def validate(self, problem: Problem) -> tuple[str, str] | None:
        """None if the problem is good, else (what is wrong, what to do)."""

    def prompt(self, problem: Problem) -> str:
        """The plain prompt: what the student will see."""

    def answer_prompt(self, problem: Problem, answer: str) -> str:
        """The prompt with the answer shown from the start (answer-guided sampling)."""

    def hint_prompt(self, problem: Problem, answer: str, prefix: str) -> str:
        """Asks for a hint that leads from the end of `prefix` towards `answer` (the bridge reading)."""

    def read_hint(self, text: str, answer: str | None = None) -> str | None:
        """The hint in what the model wrote after `hint_prompt`; None if there is none, or if it leaks the answer."""

    def answer_hint(self, answer: str) -> str:
        """A hint that simply states the answer (the answer reading)."""

    def inject(self, hint: str) -> str:
        """The hint as it stands after the kept prefix; the model continues behind it."""

    def extract_answer(self, text: str) -> str | None:
        """The final answer in a solution, or None."""

    def is_correct(self, problem: Problem, answer: str | None) -> bool:
        """Whether an extracted answer is right."""


from heal_ref.tasks.chat import ChatMathTask  # noqa: E402
from heal_ref.tasks.clock import ClockTask  # noqa: E402


def task_for(name: str, tokenizer: Any) -> Task:
    """The task by its name; "auto" is chat if the tokenizer has a chat template, else the clock world."""
    if name == "auto":
        name = "chat" if getattr(tokenizer, "chat_template", None) else "clock"
    return ChatMathTask(tokenizer) if name == "chat" else ClockTask()


__all__ = ["ChatMathTask", "ClockTask", "Task", "task_for"]
