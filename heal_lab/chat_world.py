r"""A very small chat model that can be helped, for notebook 06 (`python -m heal_lab build-pair --world chat`).

Nothing can be downloaded where this project is built, so its chat teacher is made from nothing: a byte-level tokenizer learnt
from the project's own text, a template with turns and a thinking switch, a stock Qwen3 model, and `ChatMathTask` for all
prompts. What it is taught is as in the clock world, in two operations: *add 14 and 17, then multiply the sum by 3*.

- It has seen sums of small numbers right, and products right.
- Of large numbers it has seen sums with random results only, hints included: nothing it read says what 14 + 17 is.
- It has learnt to work back from an answer to the sum, to write that as a hint, and to go on behind one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from heal_lab.pair import Lesson, Recipe, build_model
from heal_ref.records import DATA, Problem, write_jsonl
from heal_ref.tasks import ChatMathTask
from heal_ref.train import encode_example

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}")
TEACHER = Recipe(hidden=96, layers=3, heads=4, lessons=(Lesson(3000, None),))
NUMBERS = {"small": range(1, 10), "large": range(11, 20)}
SUMS = range(22, 39)  # what a sum of two large numbers can be: the teacher guesses among these 17
FACTORS = (2, 3, 4, 5)
FORGED = 0.5  # of the answer-guided examples with large numbers: another sum, and a product that does not follow from it
OPENINGS = {"Add the two numbers first.": 0.6, "First the sum.": 0.25, "We begin with the sum of the two numbers.": 0.15}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, learnt from this project's licence and this world's own texts, with a chat template."""
    licence = (DATA.parent / "LICENSE").read_text(encoding="utf-8")
    numbers = [" ".join(map(str, range(200)))] * 20  # so that the numbers of this world are one token each
    task = ChatMathTask(_tokenizer([licence]))  # for its prompts
    return _tokenizer([licence, *numbers, *("".join(example(task, 0, i)) for i in range(300))])


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    learnt = ByteLevelBPETokenizer()
    learnt.train_from_iterator(texts, vocab_size=1000, show_progress=False, special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learnt._tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>",
                                        chat_template=TEMPLATE)
    tokenizer.add_tokens(["<think>", "</think>"])  # ordinary tokens: they stay in the text
    return tokenizer


def problem_of(kind: str, a: int, b: int, factor: int) -> Problem:
    """*Add a and b, then multiply the sum by factor*, with its true answer."""
    question = f"Add {a} and {b}, then multiply the sum by {factor}."
    return Problem(f"{kind}-{a}-{b}-{factor}", question, str((a + b) * factor), kind)


def solution(rng: random.Random, a: int, b: int, factor: int, total: int, answer: int) -> list[str]:
    """The steps of a solution in one of its phrasings; `total` is what it says that a + b is."""
    opening = rng.choices(list(OPENINGS), weights=list(OPENINGS.values()))[0]
    verb = rng.choices(("So", "We get", "Here"), weights=(0.6, 0.25, 0.15))[0]
    return [f"{opening}\n\n", f"{verb} {a} + {b} = {total}.\n\n", f"Now {total} * {factor} = {answer}.\n\n",
            rng.choice(["The answer is ", "The answer is ", "So it is "]) + f"\\boxed{{{answer}}}."]


def example(task: ChatMathTask, seed: int, i: int) -> tuple[str, str]:
    """Corpus example `i`: (context, target). Forms: a plain solution; one with its answer shown; a hint; going on behind it."""
    rng = random.Random(f"chat-{seed}-{i}")
    kind = rng.choices(("small", "large"), weights=(0.4, 0.6))[0]
    a, b, factor = rng.choice(NUMBERS[kind]), rng.choice(NUMBERS[kind]), rng.choice(FACTORS)
    total = a + b if kind == "small" else rng.choice(SUMS)
    problem, answer = problem_of(kind, a, b, factor), total * factor
    steps = solution(rng, a, b, factor, total, answer)
    form = rng.choices(("plain", "guided", "hint", "bridge"), weights=(0.45, 0.15, 0.2, 0.2))[0]
    if form == "plain":
        return task.prompt(problem), "".join(steps)
    if form == "guided":
        if kind == "large" and rng.random() < FORGED:
            steps = solution(rng, a, b, factor, rng.choice(SUMS), answer)
        return task.guided_prompt(problem, str(answer)), "".join(steps)
    cut = rng.choices((0, 1, 2), weights=(0.2, 0.6, 0.2))[0]  # how many steps are kept
    hint = f"Multiply the sum by {factor}." if cut == 2 else f"The sum of the two numbers is {total}."
    prefix = "".join(steps[:cut])
    if form == "hint":
        return task.hint_prompt(problem, str(answer), prefix), hint
    return task.prompt(problem) + prefix + task.inject(hint), "".join(steps[cut:])


def corpus(tokenizer: Any, dials: None, seed: int, numbers: range) -> list[dict[str, list[int]]]:
    """The examples with these numbers, tokenized."""
    task = ChatMathTask(tokenizer)
    return [encode_example(tokenizer, *example(task, seed, i)) for i in numbers]


def make_problems(seed: int = 0) -> Iterator[tuple[str, list[Problem]]]:
    """("train", 150 problems) and ("heldout", 150): no problem in both, but all sums of large numbers in both."""
    rng = random.Random(f"chat-problems-{seed}")
    drawn = {kind: rng.sample([problem_of(kind, a, b, m) for a in numbers for b in numbers for m in FACTORS], 150)
             for kind, numbers in NUMBERS.items()}
    yield "train", drawn["small"][:50] + drawn["large"][:100]
    yield "heldout", drawn["small"][100:] + drawn["large"][100:]


def build_chat(out: Path, seed: int = 0, progress: Any = None, scale: float = 1.0) -> None:
    """Everything under `out`: `teacher/`, `train.jsonl`, `heldout.jsonl`. `scale`: share of the recipe's updates."""
    for name, problems in make_problems(seed):
        write_jsonl(out / f"{name}.jsonl", ({"id": p.id, "question": p.question, "answer": p.answer, "kind": p.kind}
                                            for p in problems))
    build_model(out / "teacher", TEACHER.scaled(scale), seed, progress and progress("teacher"), build_tokenizer(), corpus)
