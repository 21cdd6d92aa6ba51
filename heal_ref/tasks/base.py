"""What text looks like: prompts, hints, steps and answers of one kind of problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from heal_ref.records import Problem

ASKS_FOR_ANSWER = "Please reason step by step, and put your final answer within \\boxed{}."
SHOWS_ANSWER = "For your guidance only, this is the correct final answer: "
UNAIDED = (
    "Write the solution as if you had found it yourself: derive every step from the problem, and do not mention "
    "that you were given the answer."
)
ASKS_FOR_HINT = (
    "Write one hint for the student, two sentences at most: what to do next, so that the solution gets from here to "
    "the correct answer; if something written so far is wrong, what to correct. Do not state the final answer, do not "
    "work the problem out to its end, and do not mention that the answer is known. Write the hint and nothing else."
)


class Task:
    r"""Prompts, hints, steps and answers of one kind of problem. Override three methods; the rest has defaults.

    Example:
        >>> import heal_ref as heal
        >>> class Sums(heal.Task):
        ...     def prompt(self, problem):
        ...         return f"Question: {problem.question}\nSolution: "
        ...     def extract_answer(self, text):
        ...         return text.rpartition("=")[2].strip() or None
        ...     def is_correct(self, problem, answer):
        ...         return answer == problem.answer
        >>> task, problem = Sums(), heal.Problem("p", "2 + 2", "4")
        >>> task.is_correct(problem, task.extract_answer("2 + 2 = 4"))
        True
    """

    separator = "\n\n"
    elicit = "The final answer is \\boxed{"

    # ---------------------------------------------------------------- three methods to override

    def prompt(self, problem: Problem) -> str:
        """The plain prompt: what the student will see."""
        raise NotImplementedError(f"{type(self).__name__} must define prompt(problem)")

    def extract_answer(self, text: str) -> str | None:
        """The final answer in a solution, or None."""
        raise NotImplementedError(f"{type(self).__name__} must define extract_answer(text)")

    def is_correct(self, problem: Problem, answer: str | None) -> bool:
        """Whether an extracted answer is right."""
        raise NotImplementedError(f"{type(self).__name__} must define is_correct(problem, answer)")

    # ------------------------------------------------------------------------ what has defaults

    def validate(self, problem: Problem) -> tuple[str, str] | None:
        """None if the problem is good, else (what is wrong, what to do)."""
        return None

    def guided_prompt(self, problem: Problem, answer: str) -> str:
        """The prompt with the answer in view from the start (answer-guided sampling)."""
        shown = f"{problem.question}\n\n{SHOWS_ANSWER}{answer}\n\n{UNAIDED}"
        return self.prompt(replace(problem, question=shown))

    def hint_prompt(self, problem: Problem, answer: str, prefix: str) -> str:
        """Asks for a hint that leads from the end of `prefix` towards `answer` (the bridge reading)."""
        written = f"A student has written this so far:\n\n{prefix.strip()}" if prefix.strip() else "A student is about to start."
        asked = (f"Problem:\n\n{problem.question}\n\nCorrect final answer, for your eyes only: {answer}\n\n"
                 f"{written}\n\n{ASKS_FOR_HINT}")
        return self.prompt(replace(problem, question=asked))

    def read_hint(self, text: str, answer: str) -> str | None:
        """The hint in what the model wrote after `hint_prompt`; None if there is none."""
        hint = " ".join(text.split())
        return hint or None

    def answer_hint(self, answer: str) -> str:
        """A hint that simply states the answer (the answer reading)."""
        return f"The answer is {answer}."

    def inject(self, hint: str) -> str:
        """The hint as it is inserted after the kept prefix; the model continues from there."""
        return f"Hint: {hint}\n\n"

    def reveals_help(self, problem: Problem, text: str) -> bool:
        """Whether a solution speaks of help that the student will not get."""
        return False

    # ------------------------------------------- for measuring only, where the truth is known

    def check_steps(self, problem: Problem, steps: Sequence[str]) -> list[bool] | None:
        """Which steps are right, each on its own; None where no one can tell."""
        return None

    def is_genuine(self, problem: Problem, steps: Sequence[str]) -> bool | None:
        """Right in every step; None where no one can tell."""
        verdicts = self.check_steps(problem, steps)
        return None if verdicts is None else bool(verdicts) and all(verdicts)

    @property
    def knows_truth(self) -> bool:
        """Whether this task can tell which solutions are genuine."""
        mine = type(self)
        return mine.check_steps is not Task.check_steps or mine.is_genuine is not Task.is_genuine

    def states_answer(self, hint: str, answer: str) -> bool:
        """Whether a hint gives the answer away."""
        return answer.strip() in hint.split()
