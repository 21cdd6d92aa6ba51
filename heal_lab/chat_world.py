r"""A very small chat model that responds to hints, for notebook 06 (`build-pair --world chat`).

Nothing can be downloaded where this project is built, so its chat teacher is made from nothing. As
in the clock world, what it is taught decides what it knows of *add 14 and 17, then multiply the sum
by 3*: sums of small numbers and all products right; sums of large numbers with random results only,
hints included; to work back from an answer to the sum, and to continue after a hint.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from heal_lab.clock_corpus import pick
from heal_lab.pair import Lesson, Recipe, build_model
from heal_ref.records import DATA, Problem, write_jsonl
from heal_ref.tasks import ChatMathTask

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}")
TEACHER = Recipe(hidden=96, layers=3, heads=4, lessons=(Lesson(3000, None),))
NUMBERS = {"small": range(1, 10), "large": range(11, 20)}
SUMS = range(22, 39)  # what two large numbers can sum to: the teacher guesses among these 17
FACTORS = (2, 3, 4, 5)
FORGED = 0.5  # of the guided examples with large numbers: a sum that does not give the answer
OPENINGS = {"Add the two numbers first.": 0.6, "First the sum.": 0.25,
            "We begin with the sum of the two numbers.": 0.15}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, learnt from the licence and this world's own texts, with a chat template."""
    licence = (DATA.parent / "LICENSE").read_text(encoding="utf-8")
    numbers = " ".join(map(str, range(200)))  # so that each number of this world is one token
    task = ChatMathTask(_tokenizer([licence]))  # for its prompts
    examples = ["".join(example(task, 0, i)) for i in range(300)]
    return _tokenizer([licence, *[numbers] * 20, *examples])


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    learnt = ByteLevelBPETokenizer()
    marks, end = ["<|im_start|>", "<|im_end|>"], "<|im_end|>"
    learnt.train_from_iterator(texts, vocab_size=1000, show_progress=False, special_tokens=marks)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learnt._tokenizer, chat_template=TEMPLATE,
                                        eos_token=end, pad_token=end)
    tokenizer.add_tokens(["<think>", "</think>"])  # ordinary tokens: they stay in the text
    return tokenizer


def problem_of(kind: str, a: int, b: int, factor: int) -> Problem:
    """*Add a and b, then multiply the sum by factor*, with its true answer."""
    question = f"Add {a} and {b}, then multiply the sum by {factor}."
    return Problem(f"{kind}-{a}-{b}-{factor}", question, str((a + b) * factor), kind)


def solution(rng: random.Random, a: int, b: int, factor: int, total: int, answer: int) -> list[str]:
    """The steps of a solution in one of its phrasings; `total` is what it says that a + b is."""
    opening = pick(rng, OPENINGS)
    verb = pick(rng, {"So": 0.6, "We get": 0.25, "Here": 0.15})
    closing = rng.choice(["The answer is ", "The answer is ", "So it is "])
    return [f"{opening}\n\n", f"{verb} {a} + {b} = {total}.\n\n",
            f"Now {total} * {factor} = {answer}.\n\n", f"{closing}\\boxed{{{answer}}}."]


def example(task: ChatMathTask, seed: int, i: int) -> tuple[str, str]:
    """Corpus example `i`: (context, target)."""
    # 1) A problem, and a sum for it: the true one, or for large numbers any.
    rng = random.Random(f"chat-{seed}-{i}")
    kind = pick(rng, {"small": 0.4, "large": 0.6})
    a, b, factor = rng.choice(NUMBERS[kind]), rng.choice(NUMBERS[kind]), rng.choice(FACTORS)
    total = a + b if kind == "small" else rng.choice(SUMS)
    problem, answer = problem_of(kind, a, b, factor), total * factor
    steps = solution(rng, a, b, factor, total, answer)

    # 2) Whole solutions.
    form = pick(rng, {"plain": 0.45, "guided": 0.15, "hint": 0.2, "bridge": 0.2})
    if form == "plain":
        return task.prompt(problem), "".join(steps)
    if form == "guided":
        if kind == "large" and rng.random() < FORGED:
            steps = solution(rng, a, b, factor, rng.choice(SUMS), answer)
        return task.guided_prompt(problem, str(answer)), "".join(steps)

    # 3) A hint after 0, 1 or 2 steps, and what continues after it.
    cut = pick(rng, {0: 0.2, 1: 0.6, 2: 0.2})
    hint = f"The sum of the two numbers is {total}."
    hint = hint if cut < 2 else f"Multiply the sum by {factor}."
    prefix = "".join(steps[:cut])
    if form == "hint":
        return task.hint_prompt(problem, str(answer), prefix), hint
    return task.prompt(problem) + prefix + task.inject(hint), "".join(steps[cut:])


def make_problems(seed: int = 0) -> Iterator[tuple[str, list[Problem]]]:
    """("train", 50 small and 100 large problems) and ("heldout", 50 and 50), none in both; nearly
    all sums of large numbers are."""
    rng, drawn = random.Random(f"chat-problems-{seed}"), {}
    for kind, numbers in NUMBERS.items():
        every = [problem_of(kind, a, b, m) for a in numbers for b in numbers for m in FACTORS]
        drawn[kind] = rng.sample(every, 150)
    yield "train", drawn["small"][:50] + drawn["large"][:100]
    yield "heldout", drawn["small"][100:] + drawn["large"][100:]


def build_chat(out: Path, seed: int = 0, progress: Any = None, scale: float = 1.0) -> None:
    """`teacher/`, `train.jsonl`, `heldout.jsonl` under `out`; `scale`: share of the updates."""
    for name, problems in make_problems(seed):
        fields = ("id", "question", "answer", "kind")
        write_jsonl(out / f"{name}.jsonl", ({x: getattr(p, x) for x in fields} for p in problems))
    tokenizer = build_tokenizer()
    task = ChatMathTask(tokenizer)
    build_model(out / "teacher", TEACHER.scaled(scale), seed, progress and progress("teacher"),
                tokenizer, lambda seed, i, dials: example(task, seed, i))
