"""Try a task on a few problems before a long run, and say what is off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from heal_ref.config import SampleConfig
from heal_ref.entropy import split_steps
from heal_ref.generation import generate, repeats
from heal_ref.model import LM
from heal_ref.records import Problem
from heal_ref.tasks.base import Task


def check_task(lm: LM, task: Task, problems: Sequence[Problem], *, n: int = 2, seed: int = 0,
               sampling: SampleConfig | None = None) -> list[str]:
    r"""Try a task with a model on a few problems, some of them easy, and say what is off.

    Golds, prompts and insertions are looked at; n solutions and n hints per problem are sampled.

    Returns:
        One sentence per fault: what was found, and what to do. Empty if nothing is off.

    Example:
        >>> import heal_ref as heal
        >>> teacher = heal.load_lm(heal.DATA / "teacher")
        >>> task, problem = heal.ClockTask(), heal.Problem("p", "Start 5; + 3; * 4", "9")
        >>> heal.check_task(teacher, task, [problem])
        []
        >>> task.separator = "9"
        >>> heal.check_task(teacher, task, [problem])[0]  # doctest: +ELLIPSIS
        "inject makes 'Hint: the answer is 9.9' of the hint 'the answer is 9'; it must ..."
    """
    trial = _Trial(lm, task, sampling or SampleConfig(), n, seed)
    for problem in problems:
        trial.golds(problem)
        trial.texts(problem)
    if problems and not {"prompt", "guided_prompt", "hint_prompt"} & trial.found.keys():
        trial.hints(problems, trial.solutions(problems))
    return list(trial.found.values()) if problems else ["there are no problems; give a few"]


class _Trial:
    """What was found, one sentence per kind of fault, and the looks that find it."""

    def __init__(self, lm: LM, task: Task, sampling: SampleConfig, n: int, seed: int) -> None:
        self.lm, self.task, self.sampling, self.n, self.seed = lm, task, sampling, n, seed
        self.found: dict[str, str] = {}

    def say(self, kind: str, sentence: str) -> None:
        self.found.setdefault(kind, sentence)

    def call(self, method: str, *args: Any) -> Any:
        """What a method of the task returns; None, and a sentence, if it raises."""
        try:
            return getattr(self.task, method)(*args)
        except Exception as e:  # somebody else's code
            self.say(method, f"{method} raises {type(e).__name__}: {str(e)[:200]}; repair it")

    def text(self, method: str, *args: Any) -> str:
        """The text that a method returns, looked at for words that the tokenizer lacks."""
        text = self.call(method, *args)
        if isinstance(text, str):
            return self.known(method, text)
        self.say(method, f"{method} returns {text!r:.60}; return a str")
        return ""

    def known(self, source: str, text: str) -> str:
        """A text of the task; a sentence if the tokenizer lacks a word of it."""
        ids, unknown = self.lm.encode(text), self.lm.tokenizer.unk_token_id
        if unknown in ids:
            rest = text[len(self.lm.decode(ids[: ids.index(unknown)])) :]
            self.say(f"{source} unknown", f"{source} uses a word that the tokenizer lacks, in "
                     f"{rest[:20]!r}; use words that the model knows")
        return text

    def golds(self, problem: Problem) -> None:
        """The right answer must pass; a wrong one, or none, must not."""
        gold, its = problem.answer, f"{problem.answer!r:.60}, the answer of {problem.id!r}"
        if fault := self.call("validate", problem):
            self.say("validate", f"validate refuses {problem.id!r}: {'; '.join(fault)}")
        if self.call("read_gold", gold) is None:
            self.say("read_gold", f"read_gold finds nothing in {its}; give the final answer")
        if not self.call("is_correct", problem, gold):
            self.say("is_correct", f"is_correct refuses {its}: nothing could ever be right; "
                     "compare the extracted answer with problem.answer")
        for wrong in (f"{gold}1", None):
            if self.call("is_correct", problem, wrong):
                self.say("is_correct", f"is_correct accepts {wrong!r:.60} for {its}; compare the "
                         "whole answer with problem.answer")

    def texts(self, problem: Problem) -> None:
        """Prompts and insertions must hold what they should, and no more."""
        gold, prefix = problem.answer, "Look at what is given."
        other = replace(problem, answer=f"{gold}1")
        if self.text("prompt", problem) != self.call("prompt", other):
            self.say("shown", "prompt shows the answer (it changes with problem.answer), which no "
                     "student will have; use problem.question alone")
        if gold not in self.text("guided_prompt", problem, gold):
            self.say("guided_prompt", "guided_prompt does not hold the answer; put it in view")
        asked = str(self.call("hint_prompt", problem, gold, prefix))
        for what, part in (("answer", gold), ("prefix", prefix)):
            if part not in asked:
                self.say("hint_prompt", f"hint_prompt does not hold the {what}; show it, so that a "
                         "hint can lead from the prefix to the answer")
        self.known("elicit", self.task.elicit)
        hint = self.text("answer_hint", gold)
        inserted = self.text("inject", hint)
        if hint not in inserted or inserted == inserted.rstrip():
            self.say("inject", f"inject makes {inserted!r:.80} of the hint {hint!r:.60}; it must "
                     "hold the hint and end with the separator")

    def sampled(self, prompts: Sequence[str]) -> list[tuple[list[int], str, bool]]:
        """n continuations per prompt: token ids, text, and whether the model ended it."""
        pairs = [repeats(self.lm.encode(prompt), self.n) for prompt in prompts]
        rollouts = generate(self.lm, [context for context, _ in pairs], [tail for _, tail in pairs],
                            sampling=self.sampling, seed=self.seed)
        return [(r.ids, self.lm.decode(r.ids), r.finished) for r in rollouts]

    def solutions(self, problems: Sequence[Problem]) -> list[str]:
        """Solutions must end and have steps and answers. Returns the first step of each."""
        tried = self.sampled([self.task.prompt(problem) for problem in problems])
        first, given, right, tells, cuts = [], [], 0, 0, 0
        for i, (ids, text, finished) in enumerate(tried):
            problem = problems[i // self.n]
            ranges = split_steps(self.lm.pieces(ids), self.task.separator)
            steps = [self.lm.decode(ids[a:b]) for a, b in ranges]
            verdicts = self.call("check_steps", problem, steps)
            if verdicts is not None and len(verdicts) != len(steps):
                self.say("check_steps", f"check_steps returns {len(verdicts)} verdicts for "
                         f"{len(steps)} steps; return one per step")
            answer = self.call("extract_answer", text) if finished else None
            given += [answer] if answer is not None else []
            right += answer is not None and bool(self.call("is_correct", problem, answer))
            tells += bool(self.call("reveals_help", problem, text))
            cuts += len(steps) - 1
            first.append(steps[0] if len(steps) > 1 else "")
        total, ends = len(tried), [text[-60:] for _, text, finished in tried if finished]
        if not ends:
            self.say("end", f"no solution of {total} ends within {self.sampling.max_new_tokens} "
                     "tokens; raise max_new_tokens, or look whether the model knows how to end "
                     f"its turn after this prompt: {tried[0][1][-60:]!r}")
        if not cuts:
            self.say("steps", f"no step ends in {total} solutions: the separator is in none of "
                     "them; set it to what ends a step")
        if ends and not given:
            self.say("extract_answer", f"extract_answer finds nothing in {len(ends)} solutions, "
                     f"such as {ends[0]!r}; read what the model writes, or ask for another form")
        if given and not right:
            self.say("is_correct", f"is_correct accepts none of {len(given)} answers, such as "
                     f"{given[0]!r:.60}; compare in that form, or try easier problems")
        if tells == total:
            self.say("reveals_help", f"reveals_help finds help in each of {total} unaided "
                     "solutions, so no helped one could count; look for other words")
        return first

    def hints(self, problems: Sequence[Problem], first: Sequence[str]) -> None:
        """Hints must end, be readable, and not give the answer away."""
        prompts = [self.text("hint_prompt", problem, problem.answer, first[i * self.n])
                   for i, problem in enumerate(problems)]
        tried, hints, stated = self.sampled(prompts), [], 0
        for i, (_, text, finished) in enumerate(tried):
            gold = problems[i // self.n].answer
            hint = self.call("read_hint", text, gold) if finished else None
            hints += [hint] if hint is not None else []
            stated += hint is not None and bool(self.call("states_answer", hint, gold))
        if not hints:
            self.say("read_hint", f"read_hint finds no hint in {len(tried)} texts, such as "
                     f"{tried[0][1][:80]!r}; ask for hints in another way, or allow more tokens")
        elif stated == len(hints):
            self.say("states_answer", f"each of {stated} hints states the answer, such as "
                     f"{hints[0]!r:.80}, and would be refused; ask for the next step only")
