r"""Mathematics for real chat models: prompts by the tokenizer's chat template, answers in a box.

- A prompt is a string that ends inside the assistant's open turn. The method encodes it and appends token ids, so a kept
  prefix stands in the turn just as the model wrote it: nothing is rendered twice, no template can strip its thinking.
- A thinking block is part of a solution, and of what the student learns; the final answer stands behind it. Blocks are
  known by <think> and </think>; thoughts that a model marks in another way are text like any other.
- There is no `check_steps`: nothing checks the steps of real mathematics. What can be measured here is the answer.
"""

from __future__ import annotations

import os
import re
from typing import Any

from heal_ref.records import InputError, Problem
from heal_ref.tasks.answers import (
    MAX_ANSWER,
    Verifier,
    as_integer,
    is_balanced,
    last_boxed,
    math_verify_installed,
    same_answer,
    spelling,
)
from heal_ref.tasks.base import Task

THINK, THOUGHT = "<think>", "</think>"
MAX_QUESTION = 20_000  # characters
MAX_HINT = 600  # characters; a longer hint is a solution
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
UNAIDED = "Write the solution as if you had found it yourself: derive every step from the problem, and do not mention " \
          "that you were given the answer."

_LABEL = re.compile(r"\W*hint\W*:[\s*_]*", re.IGNORECASE)
_SAYS_ANSWER = re.compile(r"\banswer\b\W*(?:(?:is|equals|(?:must|should|will|has to) be)\b|[:=])", re.IGNORECASE)
_TELLS = re.compile(r"\bhint(?:s|ed)?\b|\b(?:given|provided|supplied|known|shown)\s+(?:\w+\s+){0,2}answer\b|"
                    r"\banswer\b(?:\s+(?:that|which))?\s+(?:(?:is|was|were|has been|I was|we were|you)\s+)+"
                    r"(?:already\s+)?(?:given|provided|supplied|known|told|shown|gave)\b|\bguidance\b", re.IGNORECASE)
_CONCLUDES = r"(?:=|\b(?:is|be|becomes?|equals?|gets?|gives?|yields?|obtain))\s*"
_NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?!\w|\.\d)")


def behind_thinking(text: str, opened: bool = False) -> str | None:
    """What stands behind the last thinking block, all of `text` if there is none; None if a block was never closed.

    Args:
        opened: whether the prompt has opened a block already, so that `text` begins within it.
    """
    _, closed, after = text.rpartition(THOUGHT)
    return None if THINK in after or (opened and not closed) else after


def states_answer(hint: str, answer: str) -> bool:
    r"""Whether a hint gives the answer away.

    - It does if it holds the answer as a number or expression of its own, whatever the white space and dollars; 3/8 is
      \frac{3}{8}. Other forms of the same value (0.375, a number in words) are not noticed.
    - An answer of one digit or letter may well be a number on the way: "divide by 2". It gives itself away only where the
      hint concludes with it: "so x = 2", "this gives 2".
    """
    plain = re.sub(r"(\d+)\s*/\s*(\d+)", r"\\frac{\1}{\2}", hint.replace("$", "").replace("{,}", ",").replace("dfrac", "frac"))
    value, spelt = as_integer(answer), spelling(answer)
    if value is not None and abs(value) > 9:
        return abs(value) in map(as_integer, _NUMBER.findall(plain))
    if value is not None:
        return re.search(rf"{_CONCLUDES}[-−+]?\s*{abs(value)}\W*$", plain) is not None
    pattern = r"\s*".join(re.escape(c) for c in spelt if not c.isspace())
    if len(spelt) < 2:
        return re.search(rf"{_CONCLUDES}{pattern}\W*$", plain) is not None
    return re.search(rf"(?<![\w.]){pattern}(?!\w|\.\d)", plain) is not None


class ChatMathTask(Task):
    r"""Mathematics problems for a chat model, as a `Task`: the same road as the clock world, without its step checker.

    The paper speaks of "hindsight hints", of an "answer-guided curriculum" and of reasoning "breakpoints"; we have none of
    its prompts. All texts here are our reading, in plain English:

    - a step ends at a blank line (hearsay);
    - answer-guided: the answer stands in the question, and the solution is asked for as if it did not;
    - hint: the teacher sees question, answer and kept prefix as a new question, and writes at most two sentences;
    - the hint stands in the assistant's own turn, behind the kept prefix, and the model goes on behind it;
    - `elicit` demands the answer by beginning the sentence that holds the box. A step that it interrupts may lie within a
      thinking block; a fixed text cannot close a block that may not be open, so the demand stands where it is.

    Args:
        tokenizer: of the model that is prompted; it must have a chat template.
        thinking: passed to the template as `enable_thinking`; None leaves it to the template.
        verify: ask math-verify, if it is installed, whether two answers are equal; else they must be spelt alike.
        time_limit: seconds for one such question; what takes longer is wrong.

    Raises:
        InputError: the template cannot be used like that. The message says why and what to do.

    Example:
        A chat model brings its template; here the clock world's tokenizer gets a small one, and marks for thinking.

        >>> import heal_ref as heal
        >>> tokenizer = heal.load_lm(heal.DATA / "teacher").tokenizer
        >>> tokenizer.chat_template = ("{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
        ...                            "{% if add_generation_prompt %}[assistant] {% endif %}")
        >>> tokenizer.add_tokens(["<think>", "</think>"])
        2
        >>> task = heal.ChatMathTask(tokenizer)
        >>> task.prompt(heal.Problem("p", "What is 2 + 2?", "4")).splitlines()[-1]  # ends in the assistant's open turn
        'Please reason step by step, and put your final answer within \\boxed{}.<eos>[assistant] '
        >>> task.extract_answer("<think>Perhaps \\boxed{3}?</think>\n\nNo, it is \\boxed{4}.")  # thoughts do not count
        '4'
    """

    separator = "\n\n"
    elicit = "The final answer is \\boxed{"

    def __init__(self, tokenizer: Any, *, thinking: bool | None = None, verify: bool = True, time_limit: float = 5.0) -> None:
        self.tokenizer, self.thinking = tokenizer, thinking
        self.opened = _check_template(tokenizer, thinking)  # whether a prompt ends within an open thinking block
        self.control = sorted({*tokenizer.all_special_tokens, THINK, THOUGHT})  # what no question may hold
        self.verifier = Verifier(time_limit) if verify and math_verify_installed() else None

    def validate(self, problem: Problem) -> tuple[str, str] | None:
        question, answer = problem.question, problem.answer
        if len(question) > MAX_QUESTION:
            return f"the question has {len(question)} characters, more than {MAX_QUESTION}", "shorten it or leave it out"
        for token in self.control:
            if token in question or token in answer:
                return f"the text holds {token!r}, which would break the chat template's turns", "take it out"
        if not answer.strip():
            return "the answer is empty", "write the final answer"
        if len(answer) > MAX_ANSWER:
            return f"the answer has {len(answer)} characters, more than {MAX_ANSWER}", "write the final answer only"
        if "\\boxed" in answer or "\\fbox" in answer:
            return f"the answer {answer[:60]!r} holds a box", "write only what stands in the box"
        if not is_balanced(answer):
            return f"the braces of the answer {answer[:60]!r} are not balanced", "close every brace"
        return None

    def prompt(self, problem: Problem) -> str:
        return _render(self.tokenizer, f"{problem.question}\n\n{INSTRUCTION}", self.thinking)

    def guided_prompt(self, problem: Problem, answer: str) -> str:
        shown = f"For your guidance only, this is the correct final answer: {answer}"
        return _render(self.tokenizer, f"{problem.question}\n\n{shown}\n\n{UNAIDED} {INSTRUCTION}", self.thinking)

    def hint_prompt(self, problem: Problem, answer: str, prefix: str) -> str:
        for token in self.control:
            prefix = prefix.replace(token, "")
        prefix = prefix.strip()
        written = f"A student has written this so far:\n\n{prefix}" if prefix else "A student is about to start."
        return _render(self.tokenizer, (
            f"Problem:\n\n{problem.question}\n\nCorrect final answer, for your eyes only: {answer}\n\n{written}\n\n"
            "Write one hint for the student, two sentences at most: what to do next, so that the solution gets from here to "
            "the correct answer; if something written so far is wrong, what to correct. Do not state the final answer, do not "
            "work the problem out to its end, and do not mention that the answer is known. Write the hint and nothing else."
        ), self.thinking)

    def read_hint(self, text: str, answer: str | None = None) -> str | None:
        """The hint, on one line, without a thinking block before it or a label such as "Hint:".

        None if it is empty, longer than `MAX_HINT` characters, holds a box, or says what "the answer is"; given the
        `answer`, also if it states it (`states_answer`).
        """
        hint = " ".join((behind_thinking(text, self.opened) or "").split())
        label = _LABEL.match(hint)
        hint = hint[label.end() :] if label else hint
        if not re.search(r"\w", hint) or len(hint) > MAX_HINT or "\\boxed" in hint or "\\fbox" in hint:
            return None
        leaks = _SAYS_ANSWER.search(hint) or (answer is not None and states_answer(hint, answer))
        return None if leaks else hint

    def answer_hint(self, answer: str) -> str:
        return f"The answer is {answer}."

    def inject(self, hint: str) -> str:
        return f"Hint: {hint}\n\n"

    def reveals_help(self, problem: Problem, text: str) -> bool:
        """Whether a solution speaks of a hint or of an answer that it was given: nobody will give the student one."""
        return _TELLS.search(text) is not None

    def extract_answer(self, text: str) -> str | None:
        return last_boxed(behind_thinking(text, self.opened) or "")

    def is_correct(self, problem: Problem, answer: str | None) -> bool:
        return answer is not None and same_answer(problem.answer, answer, self.verifier)


# ------------------------------------------------------------------------------------------- chat template


def _render(tokenizer: Any, content: str, thinking: bool | None, reply: str | None = None, begin: bool = True) -> str:
    """A conversation as text: a question, and the reply or (with `begin`) the beginning of one."""
    turns = [{"role": "user", "content": content}] + ([{"role": "assistant", "content": reply}] if reply else [])
    options = {} if thinking is None else {"enable_thinking": thinking}
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begin and not reply, **options)


def _check_template(tokenizer: Any, thinking: bool | None) -> bool:
    """Whether a prompt ends within a thinking block; InputError if the template does not do what the method needs."""
    name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{name} has no chat template, so nobody knows how a question is put to this model; take a chat "
                         "model, or set tokenizer.chat_template")
    try:
        prompt, asked = _render(tokenizer, "QUESTION", thinking), _render(tokenizer, "QUESTION", thinking, begin=False)
        whole = _render(tokenizer, "QUESTION", thinking, reply="ANSWER")
        variants = {_render(tokenizer, "QUESTION", choice) for choice in (False, True)}
    except Exception as e:  # templates are programs of others
        raise InputError(f"the chat template of {name} fails on a plain question ({type(e).__name__}: {str(e)[:100]}), so no "
                         "prompt can be made; repair tokenizer.chat_template") from e
    if "QUESTION" not in prompt:
        raise InputError(f"the chat template of {name} leaves the question out (it may expect pictures and text in parts), so "
                         "the model would never see it; set a tokenizer.chat_template for plain text")
    if prompt == asked:
        raise InputError(f"the chat template of {name} ignores add_generation_prompt, so a prompt would end outside the "
                         "assistant's turn; set a tokenizer.chat_template that opens the turn")
    if thinking is not None and len(variants) == 1:
        raise InputError(f"the chat template of {name} does not know enable_thinking, so thinking={thinking} would change "
                         "nothing; leave thinking out")
    if tokenizer.eos_token and tokenizer.eos_token not in whole.rpartition("ANSWER")[2]:
        raise InputError(f"the chat template of {name} does not end the assistant's turn with the end-of-text token "
                         f"{tokenizer.eos_token!r}, so solutions would run on behind their end; set tokenizer.eos_token to "
                         "the token that ends a turn")
    if THOUGHT not in tokenizer.decode(tokenizer(THOUGHT, add_special_tokens=False)["input_ids"], skip_special_tokens=True):
        raise InputError(f"decoding with {name} drops {THOUGHT}, so nobody could tell a final answer from a thought; make it "
                         "an ordinary added token (special: false)")
    turn = prompt[len(os.path.commonprefix([prompt, asked])) :]
    return behind_thinking(turn) is None
