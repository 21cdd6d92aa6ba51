"""Word problems with step truth: reasoning-gym's `gsm_symbolic`, generators written by others.

A generator tells one story with other names and numbers each time, and solves it line by line. The
results on these lines are the step truth: a solution is *genuine* if its answer is right and it
holds every one of them. That is a proxy: who takes another route to the same answer is counted as
spurious, and a result that stands there by accident as a step. Of 416 right solutions readers who
did not see the rule's verdict agree on 319 (`data/results/real-truth.json`).
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from heal_ref.records import InputError, Problem
from heal_ref.tasks import ChatMathTask

PACKAGE, VERSION = "reasoning_gym", "0.1.25"
FOLDERS = (PACKAGE, f"{PACKAGE}.arithmetic", f"{PACKAGE}.arithmetic.gsm_symbolic")
Generator = Callable[[Random, float], dict[str, Any]]
DRAWS = 40  # stories by which a generator is judged
NEW = 5  # every fifth sound generator is for `unseen` problems only
PER_GENERATOR = {"train": 6, "validation": 3, "heldout": 4, "unseen": 8}
_NUMBER = r"(?>\d+(?:,\d{3}(?!\d))*(?:\.\d+)?)"  # atomic: no match ends within a number
_MONEY = r"[$€£]?\s*"
_OPERATORS = r"\s*[-+*/×÷x]\s*"
RESULT = re.compile(rf"=\s*{_MONEY}({_NUMBER})(?!\s*[-+*/×÷(]|\s+x\s)")
_SUM = re.compile(rf"(?<![-+*/×÷x.\d)])(?<![-+*/×÷x)]\s){_MONEY}({_NUMBER}(?:{_OPERATORS}{_MONEY}"
                  rf"{_NUMBER})+)\s*=\s*{_MONEY}({_NUMBER})(?!\s*[-+*/×÷(]|\s+x\s)")


def generators() -> dict[int, Generator]:
    """The generators by number; InputError if the package is not installed.

    Its own `__init__` imports a dozen packages that these two modules do not need, one of which
    wants a C compiler. So only the modules are loaded, below empty parents.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"the word problems come from {PACKAGE}, which is not installed; run "
                         f"`pip install --no-deps reasoning-gym=={VERSION}`")
    before = {name: sys.modules.pop(name) for name in list(sys.modules)
              if name.split(".")[0] == PACKAGE}
    try:
        for name in FOLDERS:
            parent = ModuleType(name)
            parent.__path__ = [str(Path(found.submodule_search_locations[0],
                                        *name.split(".")[1:]))]
            sys.modules[name] = parent
        parts = [importlib.import_module(f"{FOLDERS[-1]}.generators_{part}")
                 for part in ("00_49", "50_99")]
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
            del sys.modules[name]
        sys.modules.update(before)
    return {number: getattr(parts[number // 50], f"generate_{number}") for number in range(100)}


def numbers(text: str) -> list[float]:
    """All numbers in a text, "1,200", "1{,}200" and "$1.50" included, rounded to 2 decimals.

    Example:
        >>> numbers(r"It costs $1,200 and 3.5, so 25\\% of it.")
        [1200.0, 3.5, 25.0]
    """
    found = re.findall(_NUMBER, text.replace("{,}", ","))
    return [round(float(number.replace(",", "")), 2) for number in found]


def gold_results(solution: str) -> list[float]:
    """The results in a gold solution: numbers after "=", unless an operation follows.

    Example:
        >>> gold_results("She has 3 + 4 = 7 apples.\\nThus T = 20 - 7 = 13.\\n#### 13")
        [7.0, 13.0]
    """
    return [number for found in RESULT.findall(solution.replace("{,}", ","))
            for number in numbers(found)]


def wrong_sums(solution: str) -> list[str]:
    """The equations of plain numbers, such as "a + b × c = d", of a gold solution that do not hold.

    Example:
        >>> wrong_sums("13*0.5=6 tubes, and 2 x 6 + 1 = 13 brushes")
        ['13*0.5=6']
    """
    wrong = []
    for term, result in _SUM.findall(solution):
        first, *others = numbers(term)
        parts = [first]  # of the sum: products come before sums
        for operator, number in zip(re.findall(r"[-+*/×÷x]", term), others, strict=True):
            if operator in "+-":
                parts.append(number if operator == "+" else -number)
            else:
                parts[-1] *= 1 / (number or math.nan) if operator in "/÷" else number
        if not abs(sum(parts) - numbers(result)[0]) <= 0.01:
            wrong.append(f"{term}={result}")
    return wrong


def intermediate(question: str, answer: str, solution: str) -> tuple[float, ...]:
    """The results that a genuine solution must hold: those of the gold solution that are neither
    its answer nor given in the question."""
    known = {*numbers(question), *numbers(answer)}
    return tuple(dict.fromkeys(r for r in gold_results(solution) if r not in known))


def read_story(made: Mapping[str, Any]) -> tuple[str, str, tuple[float, ...], str] | None:
    """Question, answer, intermediate results and gold solution of a story; None for one without
    results in between, with a broken answer, or with more than two decimals somewhere."""
    question, solution = made["question"], made["metadata"]["answer_cot"].partition("####")[0]
    answer = numbers(made["answer"])
    if len(answer) != 1 or not answer[0].is_integer() or re.search(r"\.\d{3}", question + solution):
        return None
    sign = "-" if "-" in made["answer"] else ""  # kept, so that `holds` refuses it
    between = intermediate(question, made["answer"], solution)
    return (question, f"{sign}{answer[0]:.0f}", between, solution) if between else None


def told(generate: Generator, rng: Random) -> tuple[str, str, tuple[float, ...], str] | None:
    """The next story of a generator that can be used, else None: some fail on some numbers."""
    try:
        return read_story(generate(rng, 1.0))
    except (ValueError, ArithmeticError, IndexError):
        return None


def holds(answer: str, solution: str) -> bool:
    """Whether the equations of a gold solution hold and its last result is the answer."""
    return not wrong_sums(solution) and gold_results(solution)[-1] == float(answer)


def is_sound(generate: Generator) -> bool:
    """Whether a generator's gold solutions can be a truth: of 40 stories at least half can be used,
    and in all of these the equations hold and the last result is the answer."""
    usable = [story for seed in range(DRAWS) if (story := told(generate, Random(seed)))]
    return len(usable) >= DRAWS / 2 and all(
        holds(answer, solution) for _, answer, _, solution in usable)


def make_problems() -> tuple[dict[str, list[Problem]], dict[str, tuple[float, ...]],
                             dict[str, str]]:
    """Four splits; by problem id the results that a genuine solution holds, and the solution that
    the generator gives.

    `train`, `validation` and `heldout` are of the same generators with other numbers; `unseen` are
    of generators that occur nowhere else. `kind` is the split's, `length` counts the results. No
    question occurs twice.
    """
    sound = {number: generate for number, generate in generators().items() if is_sound(generate)}
    splits: dict[str, list[Problem]] = {name: [] for name in PER_GENERATOR}
    truth, solutions, asked = dict[str, tuple[float, ...]](), dict[str, str](), set[str]()
    for place, (number, generate) in enumerate(sound.items()):
        new, rng = place % NEW == NEW - 1, Random(f"{number}/problems")
        for name in ("unseen",) if new else ("train", "validation", "heldout"):
            made: list[Problem] = []
            for _ in range(100):  # some generators tell few different stories
                if len(made) == PER_GENERATOR[name]:
                    break
                story = told(generate, rng)
                if story and story[0] not in asked and holds(story[1], story[3]):
                    question, answer, between, solution = story
                    key = f"{name}-{number}-{len(made)}"
                    made.append(Problem(key, question, answer, name, len(between)))
                    truth[key], solutions[key] = between, solution
                    asked.add(question)
            splits[name] += made
    return splits, truth, solutions


class WordProblems(ChatMathTask):
    """Word problems for a chat model, with step truth.

    Args:
        tokenizer: of the model that is prompted.
        truth: the results that a genuine solution holds, by problem id.
    """

    def __init__(self, tokenizer: Any, truth: Mapping[str, Sequence[float]], **settings: Any):
        super().__init__(tokenizer, **settings)
        self.truth = dict(truth)

    def for_tokenizer(self, tokenizer: Any) -> WordProblems:
        known = "enable_thinking" in str(tokenizer.chat_template)
        return type(self)(tokenizer, self.truth, thinking=self.thinking if known else None,
                          verify=self.verify, time_limit=self.time_limit)

    def is_genuine(self, problem: Problem, steps: Sequence[str]) -> bool | None:
        """Whether a right solution holds all intermediate results; None for unknown problems."""
        if problem.id not in self.truth:
            return None
        return set(self.truth[problem.id]) <= set(numbers("".join(steps)))
