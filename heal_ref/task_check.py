"""Try a task on a few problems before a long run, and say what is off."""

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
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> heal.check_task(teacher, task, [heal.Problem("p", "Start 5; + 3; * 4", "9")])
        []
    """
    trial = _Trial(lm, task, sampling or SampleConfig(), n, seed)
    for problem in problems:
        trial.texts(problem)
    if problems and not {"prompt", "guided_prompt", "hint_prompt"} & trial.found.keys():
        trial.hints(problems, trial.solutions(problems))
    return list(trial.found.values()) if problems else ["there are no problems; give a few"]


class _Trial:
    """What was found, one sentence per kind of fault, and the looks that find it."""

    def __init__(self, lm: LM, task: Task, sampling: SampleConfig, n: int, seed: int) -> None:
        self.lm, self.task, self.sampling, self.n, self.seed = lm, task, sampling, n, seed
        self.found: dict[str, str] = {}

    def say(self, fault: Any, kind: str, sentence: str) -> None:
        if fault:
            self.found.setdefault(kind, sentence)

    def call(self, method: str, *args: Any) -> Any:
        """What a method of the task returns; None, and a sentence, if it raises."""
        try:
            return getattr(self.task, method)(*args)
        except Exception as e:  # somebody else's code
            self.say(True, method, f"{method} raises {type(e).__name__}: {str(e)[:200]}; repair it")

    def text(self, method: str, *args: Any) -> str:
        """The text that a method returns, looked at for words that the tokenizer lacks."""
        text = self.call(method, *args)
        self.say(not isinstance(text, str), method, f"{method} returns {text!r:.60}; return a str")
        return self.known(method, text) if isinstance(text, str) else ""

    def known(self, source: str, text: str) -> str:
        ids, unknown = self.lm.encode(text), self.lm.tokenizer.unk_token_id
        if unknown in ids:
            rest = text[len(self.lm.decode(ids[: ids.index(unknown)])) :]
            self.say(True, f"{source} unknown", f"{source} uses a word that the tokenizer lacks, "
                     f"in {rest[:20]!r}; use words that the model knows")
        return text

    def texts(self, problem: Problem) -> None:
        """The right answer must pass and no other; prompts and insertions hold what they should."""
        # 1) the answer
        gold, its = problem.answer, f"{problem.answer!r:.60}, the answer of {problem.id!r}"
        fault = self.call("validate", problem)
        self.say(fault, "validate", f"validate refuses {problem.id!r}: {'; '.join(fault or ())}")
        self.say(self.call("read_gold", gold) is None, "read_gold",
                 f"read_gold finds nothing in {its}; give the final answer")
        self.say(not self.call("is_correct", problem, gold), "is_correct",
                 f"is_correct refuses {its}: nothing could be right; compare with problem.answer")
        for wrong in (f"{gold}1", None):
            self.say(self.call("is_correct", problem, wrong), "is_correct",
                     f"is_correct accepts {wrong!r:.60} for {its}; compare whole answers")
        # 2) the three prompts
        other = self.call("prompt", replace(problem, answer=f"{gold}1"))
        self.say(self.text("prompt", problem) != other, "shown",
                 "prompt shows the answer (it changes with problem.answer), which no student will "
                 "have; use problem.question alone")
        self.say(gold not in self.text("guided_prompt", problem, gold), "guided_prompt",
                 "guided_prompt does not hold the answer; put it in view")
        prefix = "Look at what is given."
        asked = str(self.call("hint_prompt", problem, gold, prefix))
        for what, part in (("answer", gold), ("prefix", prefix)):
            self.say(part not in asked, "hint_prompt", f"hint_prompt does not hold the {what}; "
                     "show it, so that a hint can lead from the prefix to the answer")
        # 3) what is inserted
        self.known("elicit", self.task.elicit)
        hint = self.text("answer_hint", gold)
        inserted = self.text("inject", hint)
        self.say(hint not in inserted or inserted == inserted.rstrip(), "inject",
                 f"inject makes {inserted!r:.80} of the hint {hint!r:.60}; it must hold the hint "
                 "and end with the separator")

    def sampled(self, prompts: Sequence[str]) -> list[tuple[list[int], str, bool]]:
        """n continuations per prompt: token ids, text, and whether the model ended it."""
        contexts, tails = zip(*(repeats(self.lm.encode(prompt), self.n) for prompt in prompts),
                              strict=True)
        rollouts = generate(self.lm, contexts, tails, sampling=self.sampling, seed=self.seed)
        return [(r.ids, self.lm.decode(r.ids), r.finished) for r in rollouts]

    def solutions(self, problems: Sequence[Problem]) -> list[str]:
        """Solutions must end and have steps and answers. Returns the first step of each."""
        tried = self.sampled([self.task.prompt(problem) for problem in problems])
        first, given, right, tells, total = [], [], 0, 0, len(tried)
        for i, (ids, text, finished) in enumerate(tried):
            problem = problems[i // self.n]
            ranges = split_steps(self.lm.pieces(ids), self.task.separator)
            steps = [self.lm.decode(ids[a:b]) for a, b in ranges]
            first.append(steps[0] if len(steps) > 1 else "")
            verdicts = self.call("check_steps", problem, steps)
            self.say(verdicts is not None and len(verdicts) != len(steps), "check_steps",
                     f"check_steps returns {len(verdicts or ())} verdicts for {len(steps)} steps; "
                     "return one per step")
            answer = self.call("extract_answer", text) if finished else None
            given += [answer] if answer is not None else []
            right += answer is not None and bool(self.call("is_correct", problem, answer))
            tells += bool(self.call("reveals_help", problem, text))
        ends = [text[-60:] for _, text, finished in tried if finished]
        self.say(not ends, "end", f"no solution of {total} ends within "
                 f"{self.sampling.max_new_tokens} tokens; raise max_new_tokens, or look whether "
                 f"the model knows how to end its turn after this text: {tried[0][1][-60:]!r}")
        self.say(not any(first), "steps", f"no step ends in {total} solutions: the separator is in "
                 "none of them; set it to what ends a step")
        self.say(ends and not given, "extract_answer", "extract_answer finds nothing in "
                 f"{len(ends)} solutions, such as {ends[:1]}; read what the model writes")
        self.say(given and not right, "is_correct", f"is_correct accepts none of {len(given)} "
                 f"answers, such as {given[:1]}; compare in that form, or try easier problems")
        self.say(tells == total, "reveals_help", f"reveals_help finds help in each of {total} "
                 "unaided solutions, so no helped one could count; look for other words")
        return first

    def hints(self, problems: Sequence[Problem], first: Sequence[str]) -> None:
        """Hints must end, be readable, and not give the answer away."""
        tried = self.sampled([self.text("hint_prompt", problem, problem.answer, first[i * self.n])
                              for i, problem in enumerate(problems)])
        hints, stated = [], 0
        for i, (_, text, finished) in enumerate(tried):
            gold = problems[i // self.n].answer
            hint = self.call("read_hint", text, gold) if finished else None
            hints += [hint] if hint is not None else []
            stated += hint is not None and bool(self.call("states_answer", hint, gold))
        self.say(not hints, "read_hint", f"read_hint finds no hint in {len(tried)} texts, such as "
                 f"{tried[0][1][:80]!r}; ask for hints in another way, or allow more tokens")
        self.say(hints and stated == len(hints), "states_answer", f"each of {stated} hints states "
                 f"the answer, such as {hints[:1]}, and would be refused; ask for the next step")
