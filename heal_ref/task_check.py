"""Try a task on a few problems before a long run, and say what is off."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from heal_ref.config import SampleConfig
from heal_ref.evaluate import step_texts
from heal_ref.generation import generate, repeats, sample
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
        >>> teacher, task = heal.load_lm(heal.DATA / "teacher"), heal.ClockTask()
        >>> heal.check_task(teacher, task, [heal.Problem("p", "Start 5; + 3; * 4", "9")])
        []
    """
    tried, sampling = _Tried(lm, task), sampling or SampleConfig()
    for problem in problems:
        _texts(tried, problem)
    if problems and not {"prompt", "guided_prompt", "hint_prompt"} & tried.found.keys():
        _samples(tried, problems, n, seed, sampling)
    return list(tried.found.values()) if problems else ["there are no problems; give a few"]


class _Tried:
    """A task on trial: where a method of it raises, it returns None, and the fault is kept."""

    def __init__(self, lm: LM, task: Task) -> None:
        self.lm, self.task = lm, task
        self.found: dict[str, str] = {}  # one sentence per kind of fault

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.task, name)

        def guarded(*args: Any) -> Any:
            try:
                return value(*args)
            except Exception as e:  # somebody else's code
                self.say(True, name, f"{name} raises {type(e).__name__}: {str(e)[:200]}; repair it")

        return guarded if callable(value) else value

    def say(self, fault: Any, kind: str, sentence: str) -> None:
        if fault:
            self.found.setdefault(kind, sentence)

    def known(self, source: str, text: Any) -> str:
        """The text, looked at for words that the tokenizer lacks; empty if it is no text."""
        if not isinstance(text, str):
            self.say(True, source, f"{source} returns {text!r:.60}; return a str")
            return ""
        ids, unknown = self.lm.encode(text), self.lm.tokenizer.unk_token_id
        if unknown in ids:
            rest = text[len(self.lm.decode(ids[: ids.index(unknown)])) :]
            self.say(True, f"{source} unknown", f"{source} uses a word that the tokenizer lacks, "
                     f"in {rest[:20]!r}; use words that the model knows")
        return text


def _texts(task: Any, problem: Problem) -> None:
    """The right answer must pass and no other; prompts and insertions hold what they should."""
    # 1) the answer
    gold, its = problem.answer, f"{problem.answer!r:.60}, the answer of {problem.id!r}"
    fault = task.validate(problem)
    task.say(fault, "validate", f"validate refuses {problem.id!r}: {'; '.join(fault or ())}")
    task.say(task.read_gold(gold) is None, "read_gold",
             f"read_gold finds nothing in {its}; give the final answer")
    task.say(not task.is_correct(problem, gold), "is_correct",
             f"is_correct refuses {its}: nothing could be right; compare with problem.answer")
    for wrong in (f"{gold}1", None):
        task.say(task.is_correct(problem, wrong), "is_correct",
                 f"is_correct accepts {wrong!r:.60} for {its}; compare whole answers")
    # 2) the three prompts
    plain, other = task.prompt(problem), task.prompt(replace(problem, answer=f"{gold}1"))
    task.say(task.known("prompt", plain) != other, "shown", "prompt shows the answer (it changes "
             "with problem.answer), which no student will have; use problem.question alone")
    guided = task.known("guided_prompt", task.guided_prompt(problem, gold))
    task.say(gold not in guided, "guided_prompt",
             "guided_prompt does not hold the answer; put it in view")
    prefix = "Look at what is given."
    asked = str(task.hint_prompt(problem, gold, prefix))
    for what, part in (("answer", gold), ("prefix", prefix)):
        task.say(part not in asked, "hint_prompt", f"hint_prompt does not hold the {what}; "
                 "show it, so that a hint can lead from the prefix to the answer")
    # 3) what is inserted
    task.known("elicit", task.elicit)
    hint = task.known("answer_hint", task.answer_hint(gold))
    inserted = task.known("inject", task.inject(hint))
    task.say(hint not in inserted or inserted == inserted.rstrip(), "inject",
             f"inject makes {inserted!r:.80} of the hint {hint!r:.60}; it must hold the hint and "
             "end with the separator")


def _samples(task: Any, problems: Sequence[Problem], n: int, seed: int, sampling: SampleConfig
             ) -> None:
    """Solutions must end and have steps and answers; hints must not give the answer away."""
    # 1) n solutions per problem
    solutions, lm = sample(task.lm, task, problems, n, seed=seed, sampling=sampling), task.lm
    for t in solutions:
        verdicts = task.check_steps(t.problem, step_texts(lm, t))
        task.say(verdicts is not None and len(verdicts) != len(t.steps), "check_steps",
                 f"check_steps returns {len(verdicts or ())} verdicts for {len(t.steps)} steps; "
                 "return one per step")
    ends = [t.text[-60:] for t in solutions if t.finished]
    answers = [t.answer for t in solutions if t.answer is not None]
    task.say(not ends, "end", f"no solution of {len(solutions)} ends within "
             f"{sampling.max_new_tokens} tokens; raise max_new_tokens, or look whether the model "
             f"knows how to end its turn after this prompt: {solutions[0].prompt[-60:]!r}")
    task.say(all(len(t.steps) < 2 for t in solutions), "steps", f"no step ends in {len(solutions)} "
             "solutions: the separator is in none of them; set it to what ends a step")
    task.say(ends and not answers, "extract_answer", "extract_answer finds nothing in "
             f"{len(ends)} solutions, such as {ends[:1]}; read what the model writes")
    task.say(answers and not any(t.correct for t in solutions), "is_correct", "is_correct accepts "
             f"none of {len(answers)} answers, such as {answers[:1]}; compare in that form, or try "
             "easier problems")
    task.say(all(task.reveals_help(t.problem, t.text) for t in solutions), "reveals_help",
             f"reveals_help finds help in each of {len(solutions)} unaided solutions, so no helped "
             "one could count; look for other words")
    # 2) n hints per problem, after the first step of its first solution
    prompts = [task.known("hint_prompt", task.hint_prompt(
        t.problem, t.problem.answer, lm.decode(t.step_ids(0)) if len(t.steps) > 1 else ""))
        for t in solutions[::n]]
    contexts, tails = zip(*(repeats(lm.encode(prompt), n) for prompt in prompts), strict=True)
    rollouts = generate(lm, contexts, tails, sampling=sampling, seed=seed)
    hints = [(task.read_hint(lm.decode(r.ids), t.problem.answer), t.problem.answer)
             for t, r in zip(solutions, rollouts, strict=True) if r.finished]
    usable = [(hint, gold) for hint, gold in hints if hint is not None]
    task.say(not usable, "read_hint", f"read_hint finds no hint in {len(rollouts)} texts, such as "
             f"{lm.decode(rollouts[0].ids)[:80]!r}; ask for hints in another way, or allow more "
             "tokens")
    stated = [task.states_answer(hint, gold) for hint, gold in usable]
    task.say(stated and all(stated), "states_answer", f"each of {len(stated)} hints states the "
             f"answer, such as {[hint for hint, _ in usable[:1]]}, and would be refused; ask for "
             "the next step")
