r"""Mathematics for chat models: prompts by the tokenizer's chat template, answers in a box.

A thinking block, marked by <think> and </think>, is part of a solution and of what the student
learns; the final answer comes after it.
"""

from __future__ import annotations

import re
from typing import Any

from heal_ref import template
from heal_ref.records import Problem
from heal_ref.tasks import answers
from heal_ref.tasks.base import UNAIDED, Task
from heal_ref.template import THINK, THOUGHT, after_thoughts

MAX_QUESTION = 20_000  # characters
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
ASKS_WHAT_NEXT = (
    "What has to be calculated next, so that the solution gets to this answer? Reply with one "
    "sentence that says what to do, not what comes out.")
HINT_BEGINS = "Next,"  # without a space after it: in many tokenizers that belongs to the next word
_SENTENCE_ENDS = re.compile(
    r"(?:(?<=[A-Za-z]{3}[.!?])(?<!Mrs\.)|(?<=[\d)%][.!?]))\s+(?=[A-Z])")
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:/\d+)?(?!\w)")


class ChatMathTask(Task):
    r"""Mathematics problems for a chat model.

    The paper speaks of "hindsight hints", of an "answer-guided curriculum" and of reasoning
    "breakpoints", and gives no prompts: all texts are our reading. A step ends at a blank line
    (secondary sources). Nothing checks the steps. `elicit` may interrupt a thinking block.

    Args:
        tokenizer: of the model that is prompted; InputError if its chat template cannot be used.
        thinking: passed to the template as `enable_thinking`; None leaves it to the template.
        verify: whether math-verify, if installed, compares expressions; else spelling decides.
        time_limit: seconds for one comparison; what takes longer is wrong.

    Example:
        >>> import heal_ref as heal
        >>> task = heal.ChatMathTask(heal.load_lm(heal.DATA / "chat" / "teacher").tokenizer)
        >>> task.extract_answer("<think>Is it \\boxed{3}?</think>\n\nNo, it is \\boxed{4}.")
        '4'
    """

    unaided = f"{UNAIDED} {INSTRUCTION}"

    def __init__(self, tokenizer: Any, *, thinking: bool | None = None, verify: bool = True,
                 time_limit: float = 5.0) -> None:
        self.tokenizer, self.thinking = tokenizer, thinking
        self.opened = template.check_template(tokenizer, thinking)  # whether a prompt opens a block
        marks = str(tokenizer.chat_template), tokenizer.get_added_vocab()
        self.knows_thoughts = any(THINK in where for where in marks)
        self.verify, self.time_limit = verify, time_limit
        asks = verify and answers.math_verify_installed()
        self.verifier = answers.Verifier(time_limit) if asks else None
        self._control = re.compile("|".join(map(re.escape, template.control_tokens(tokenizer))))

    def for_tokenizer(self, tokenizer: Any) -> ChatMathTask:
        known = "enable_thinking" in str(tokenizer.chat_template)
        return type(self)(tokenizer, thinking=self.thinking if known else None, verify=self.verify,
                          time_limit=self.time_limit)

    def validate(self, problem: Problem) -> tuple[str, str] | None:
        question, answer = problem.question, problem.answer
        if len(question) > MAX_QUESTION:
            return (f"the question has {len(question)} characters, more than {MAX_QUESTION}",
                    "shorten it or leave it out")
        if token := self._control.search(question) or self._control.search(answer):
            return (f"the text holds {token[0]!r}, which would break the chat template's turns",
                    "take it out")
        if (found := answers.final_answer(answer)) is None:
            return (f"the answer {answer[:60]!r} ({len(answer)} characters) is no final answer: it "
                    "is empty, too long, a sentence or a placeholder, or not balanced",
                    "write the final answer alone")
        if found != (answer.strip(), "as it stands"):
            return f"the answer {answer[:60]!r} holds a {found[1]}", f"write {found[0]!r} alone"
        return None

    def ask(self, problem: Problem, text: str) -> str:
        return template.render(self.tokenizer, text, self.thinking)

    def prompt(self, problem: Problem) -> str:
        return self.ask(problem, f"{problem.question}\n\n{INSTRUCTION}")

    def hint_prompt(self, problem: Problem, answer: str, prefix: str) -> str:
        while (cleaned := self._control.sub("", prefix)) != prefix:  # the rest may form another
            prefix = cleaned
        if self.knows_thoughts:  # it can plan before it writes the hint
            return super().hint_prompt(problem, answer, prefix)
        asked = (f"Problem: {problem.question}\n\nSolution so far:\n\n"
                 f"{prefix.strip() or '(nothing yet)'}\n\nThe final answer is {answer}.\n\n")
        return self.ask(problem, asked + ASKS_WHAT_NEXT) + HINT_BEGINS

    def read_hint(self, text: str, answer: str = "") -> str | None:
        """As `Task.read_hint`. Of a model without thoughts, whose hint the prompt has begun, the
        first sentence; where it states the answer, that number becomes "…"."""
        if self.knows_thoughts:
            return super().read_hint(after_thoughts(text, self.opened) or "", answer)
        if not (text := text.strip()):
            return None
        line = text.partition("\n")[0]
        sentence = _SENTENCE_ENDS.split(f"{HINT_BEGINS} {line}")[0]
        if answer and self.states_answer(sentence, answer):
            sentence = _NUMBER.sub(
                lambda n: "…" if answers.same_answer(answer, n[0]) else n[0], sentence)
        return super().read_hint(sentence, answer)

    def read_gold(self, text: str) -> tuple[str, str] | None:
        return answers.final_answer(text)

    def extract_answer(self, text: str) -> str | None:
        return answers.last_boxed(after_thoughts(text, self.opened) or "")

    def is_correct(self, problem: Problem, answer: str | None) -> bool:
        return answer is not None and answers.same_answer(problem.answer, answer, self.verifier)

    def without_thoughts(self, text: str) -> str:
        after = after_thoughts(text)
        return text if after is None or after == text else after.lstrip()

    def as_reply(self, text: str) -> str:
        """Opens and closes a thinking block where this template's prompts leave that to a reply."""
        if THOUGHT not in text:
            return f"{THOUGHT}\n\n{text}" if self.opened else text
        begun = text.lstrip().removeprefix(THINK).lstrip("\n")  # as after a prompt that opens it
        return begun if self.opened else f"{THINK}\n{begun}"
