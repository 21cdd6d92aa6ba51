"""What text looks like: prompts, hints, steps and answers of one kind of problem."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from heal_ref.records import Problem
from heal_ref.tasks.answers import reveals_help, states_answer

MAX_HINT = 600  # characters; a longer hint is a solution
SHOWS_ANSWER = "For your guidance only, this is the correct final answer: "
UNAIDED = (
    "Write the solution as if you had found it yourself: derive every step from the problem, "
    "and do not mention that you were given the answer.")
ASKS_FOR_HINT = (
    "Write one hint for the student, two sentences at most: what to do next, so that the solution "
    "gets from here to the correct answer; if something written so far is wrong, what to correct. "
    "Do not state the final answer, do not work the problem out to its end, and do not mention "
    "that the answer is known. Write the hint and nothing else.")
_LABEL = re.compile(r"^\W*hint\W*:[\s*_]*", re.IGNORECASE)
_SAYS_ANSWER = re.compile(
    r"\banswer\b\W*(?:(?:is|equals|(?:must|should|will|has to) be)\b|[:=])", re.IGNORECASE)


class Task:
    r"""One kind of problem. Override three methods; the others have plain-English defaults.

    A prompt ends where the solution begins, white space included: the model continues it. Steps
    are pieces of the solution, the separator included. `elicit` begins a sentence that the final
    answer completes.

    Example:
        >>> import heal_ref as heal
        >>> class Sums(heal.Task):
        ...     separator, elicit = "\n", "So it is "
        ...     def prompt(self, problem):
        ...         return f"Question: {problem.question}\nSolution:\n"
        ...     def extract_answer(self, text):
        ...         return text.rpartition("=")[2].strip() or None
        ...     def is_correct(self, problem, answer):
        ...         return answer == problem.answer
        >>> Sums().inject("count on from 2")
        'Hint: count on from 2\n'
    """

    separator = "\n\n"
    elicit = "The final answer is \\boxed{"
    unaided = UNAIDED  # ends a guided prompt
    knows_thoughts = True  # whether thinking markers mean something to this task's model

    def prompt(self, problem: Problem) -> str:
        """The plain prompt, which the student will see. To be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must define prompt(problem)")

    def extract_answer(self, text: str) -> str | None:
        """The final answer in a finished solution, or None. To be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must define extract_answer(text)")

    def is_correct(self, problem: Problem, answer: str | None) -> bool:
        """Whether an answer equals `problem.answer`; None never does. To be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must define is_correct(problem, answer)")

    def validate(self, problem: Problem) -> tuple[str, str] | None:
        """None if the problem is usable, else (what is wrong, what to do)."""
        return None

    def read_gold(self, text: str) -> tuple[str, str] | None:
        """The final answer in what a data set gives as one, and the rule that found it."""
        return (text.strip(), "as it stands") if text.strip() else None

    def ask(self, problem: Problem, text: str) -> str:
        """A prompt with `text` in the place of the question."""
        return self.prompt(replace(problem, question=text))

    def guided_prompt(self, problem: Problem, answer: str) -> str:
        """The prompt with the answer in view from the start (answer-guided sampling)."""
        return self.ask(
            problem, f"{problem.question}\n\n{SHOWS_ANSWER}{answer}\n\n{self.unaided}")

    def hint_prompt(self, problem: Problem, answer: str, prefix: str) -> str:
        """Asks for a hint that leads from the end of `prefix`, the kept steps, to `answer`."""
        written = f"A student has written this so far:\n\n{prefix.strip()}"
        return self.ask(problem, (
            f"Problem:\n\n{problem.question}\n\n"
            f"Correct final answer, for your eyes only: {answer}\n\n"
            f"{written if prefix.strip() else 'A student is about to start.'}\n\n"
            f"{ASKS_FOR_HINT}"))

    def read_hint(self, text: str, answer: str = "") -> str | None:
        """The hint in what the model wrote after `hint_prompt`, on one line; None if it is empty,
        longer than `MAX_HINT` or holds a box. `answer` is there for formats that need it."""
        hint = _LABEL.sub("", " ".join(text.split()))
        unusable = len(hint) > MAX_HINT or re.search(r"\\(?:boxed|fbox)", hint)
        return None if unusable or not re.search(r"\w", hint) else hint

    def states_answer(self, hint: str, answer: str) -> bool:
        """Whether a hint gives the answer away; such a hint is refused."""
        return _SAYS_ANSWER.search(hint) is not None or states_answer(hint, answer)

    def answer_hint(self, answer: str) -> str:
        """A hint that states the answer (GEAR's reading `answer`)."""
        return f"The answer is {answer}."

    def inject(self, hint: str) -> str:
        """A hint as it follows the kept prefix, the separator at its end. The model continues."""
        return f"Hint: {hint}{self.separator}"

    def reveals_help(self, problem: Problem, text: str) -> bool:
        """Whether a solution mentions help that the student will not get."""
        return reveals_help(problem.question, text)

    def for_tokenizer(self, tokenizer: Any) -> Task:
        """This task for another model, if it is built on a tokenizer."""
        return self

    def without_thoughts(self, text: str) -> str:
        """The solution without its thinking block."""
        return text

    def as_reply(self, text: str) -> str:
        """Another model's solution, as it follows this model's prompts."""
        return text

    def check_steps(self, problem: Problem, steps: Sequence[str]) -> list[bool] | None:
        """One verdict per step, None if no one can tell. For measuring only, never the method."""
        return None

    def is_genuine(self, problem: Problem, steps: Sequence[str]) -> bool | None:
        """Right in every step; None if no one can tell. For measuring only."""
        verdicts = self.check_steps(problem, steps)
        return None if verdicts is None else bool(verdicts) and all(verdicts)

    @property
    def knows_truth(self) -> bool:
        """Whether this task can tell which solutions are genuine."""
        return any(getattr(type(self), name) is not getattr(Task, name)
                   for name in ("check_steps", "is_genuine"))
