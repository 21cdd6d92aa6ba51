"""Where the clock world comes from: its dials, the teacher's corpus, the tokenizer and the problem files.

- A chain in the corpus is a chain *as its author believed it*: each result is drawn from what `Dials` says is
  known of that operator, and the answer is whatever the believed chain ends in. So nothing in the corpus, its
  hints and shown answers included, says anything about the unlearnt operator: its results are uniform noise.
- Phrasing is drawn with skewed frequencies and some openings are followed by a free choice of verb: benign
  uncertainty, a surge of entropy that means nothing.
- Example number i of a corpus depends on (seed, i) alone, so training can resume anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from heal_ref.records import Problem
from heal_ref.tasks.clock import (
    HOURS,
    MASTERED,
    MAX_OPERAND,
    MISCONCEIVED,
    MISCONCEPTION,
    PROBLEM_KINDS,
    RULES,
    SHAKY,
    UNLEARNT,
    Chain,
    ClockTask,
    apply_op,
)


@dataclass(frozen=True)
class Dials:
    """What the author of the corpus knows, and how it writes. All shares are probabilities."""

    slip: float = 0.008  # a mastered operator, done carelessly: any hour
    shaky_right: float = 0.4  # the half-known operator; otherwise any hour
    believed: float = 0.97  # the misconception; otherwise any hour
    fudge: float = 0.35  # answer known, chain not fitting it: the last result is forced
    hint_wrong: float = 0.03  # a worked-back hint that says a random hour
    hint_followed: float = 0.5  # a wrong hint is obeyed (else the author computes the step)
    lengths: dict[int, float] = field(default_factory=lambda: {2: 0.1, 3: 0.25, 4: 0.3, 5: 0.25, 6: 0.1})
    kinds: dict[str, float] = field(default_factory=lambda: {
        "mastered": 0.4, "shaky": 0.25, "frontier": 0.15, "double": 0.05, "misconceived": 0.15})
    forms: dict[str, float] = field(default_factory=lambda: {
        "plain": 0.45, "guided": 0.15, "hint": 0.15, "bridge": 0.12, "answer_hint": 0.06, "quick": 0.07})


# The corpora of the teacher's lessons, and of the base student's. The second drills what the first leaves unlearnt,
# working back from an answer; the third the half-known operator. A short fourth lesson repeats the first corpus and
# brings the belief in that operator back to its share there.
FIRST = Dials()
SECOND = Dials(kinds={"mastered": 0.28, "shaky": 0.4, "frontier": 0.12, "double": 0.06, "misconceived": 0.14},
               forms={"plain": 0.34, "guided": 0.1, "hint": 0.38, "bridge": 0.09, "answer_hint": 0.04, "quick": 0.05})
THIRD = Dials(shaky_right=0.6,
              kinds={"mastered": 0.2, "shaky": 0.55, "frontier": 0.1, "double": 0.04, "misconceived": 0.11},
              forms={"plain": 0.6, "guided": 0.1, "hint": 0.15, "bridge": 0.07, "answer_hint": 0.03, "quick": 0.05})
PLAIN = Dials(forms={"plain": 1.0})


# ------------------------------------------------------------------------------------------- phrasing

OPENINGS = {"Then ": 0.45, "Next, ": 0.2, "Now ": 0.15, "Hmm, ": 0.12, "And ": 0.05, "Well, ": 0.03}
VERBS = ("compute ", "take ", "work out ", "we do ", "look at ", "try ")
VERBS_AFTER = {  # skewed after a plain opening, free after a hesitating one
    "Then ": (0.90, 0.06, 0.01, 0.01, 0.01, 0.01),
    "Next, ": (0.06, 0.90, 0.01, 0.01, 0.01, 0.01),
    "Now ": (0.05, 0.05, 0.80, 0.08, 0.01, 0.01),
    "Hmm, ": (1, 1, 1, 1, 1, 1),
    "And ": (0.01, 0.01, 0.08, 0.90, 0.0, 0.0),
    "Well, ": (1, 1, 1, 1, 1, 1),
}
CLOSINGS = {".": 0.9, ", done.": 0.05, ", fine.": 0.03, ", I think.": 0.02}
HESITANT = ("Hmm, ", "Well, ")
STARTS = {"We start at ": 0.5, "The clock shows ": 0.25, "It is now ": 0.15, "We begin with ": 0.1}


Choice = TypeVar("Choice")


def _pick(rng: random.Random, weights: Mapping[Choice, float]) -> Choice:
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def step_text(rng: random.Random, a: int, op: str, b: int, result: int) -> str:
    """One step of reasoning in one of its phrasings, separator included."""
    opening = _pick(rng, OPENINGS)
    verb = rng.choices(VERBS, weights=VERBS_AFTER[opening])[0]
    closing = rng.choice(list(CLOSINGS)) if opening in HESITANT else _pick(rng, CLOSINGS)
    return f"{opening}{verb}{a} {op} {b} = {result}{closing}\n\n"


def restate_text(rng: random.Random, start: int) -> str:
    """The first step, which restates the starting hour, in one of its phrasings; separator included."""
    return f"{_pick(rng, STARTS)}{start}{_pick(rng, CLOSINGS)}\n\n"


def answer_text(value: int) -> str:
    """The last step, which states the answer; nothing follows it."""
    return f"So the answer is \\boxed{{{value}}}."


# --------------------------------------------------------------------------------------------- beliefs


def believe(rng: random.Random, dials: Dials, a: int, op: str, b: int) -> int:
    """One result as the author of the corpus believes it."""
    anything = rng.randrange(HOURS)
    if op in MASTERED:
        return anything if rng.random() < dials.slip else apply_op(a, op, b)
    if op == SHAKY:
        return apply_op(a, op, b) if rng.random() < dials.shaky_right else anything
    if op == MISCONCEIVED:
        return MISCONCEPTION[op](a, b) % HOURS if rng.random() < dials.believed else anything
    return anything  # UNLEARNT: never anything but noise


def believed_values(rng: random.Random, dials: Dials, chain: Chain) -> list[int]:
    """The hours of a chain as believed (n + 1 numbers, start first)."""
    values = [chain.start]
    for op, b in chain.ops:
        values.append(believe(rng, dials, values[-1], op, b))
    return values


def random_chain(rng: random.Random, kind: str, length: int) -> Chain:
    """A chain of one of `PROBLEM_KINDS`: its special operators stand anywhere among mastered ones."""
    special = {"shaky": SHAKY, "frontier": UNLEARNT, "double": UNLEARNT * 2, "misconceived": MISCONCEIVED}.get(kind, "")
    symbols = [rng.choice(MASTERED) for _ in range(length)]
    for place, op in zip(rng.sample(range(length), len(special)), special, strict=True):
        symbols[place] = op
    return Chain(rng.randrange(HOURS), tuple((op, rng.randint(1, MAX_OPERAND)) for op in symbols))


# ---------------------------------------------------------------------------------------------- corpus


def example(seed: int, i: int, dials: Dials) -> tuple[str, str]:
    """Corpus example `i`: (context, target). Only the target is learnt; the end-of-text token follows it.

    The forms: `plain` solution; `guided`: answer shown first; `hint`: working back from the answer to the cut;
    `bridge` and `answer_hint`: going on after an injected hint; `quick`: the answer at once, from the middle.
    """
    rng = random.Random(f"clock-{seed}-{i}")
    chain = random_chain(rng, _pick(rng, dials.kinds), max(_pick(rng, dials.lengths), 2))
    task, n = ClockTask(), len(chain.ops)
    problem = Problem("corpus", chain.question, "")
    values = believed_values(rng, dials, chain)
    answer = values[-1]
    form = _pick(rng, dials.forms)
    if form in ("guided", "answer_hint") and chain.kind != "mastered" and rng.random() < dials.fudge:
        values = believed_values(rng, dials, chain)[:-1] + [answer]

    def steps(values: list[int]) -> list[str]:
        moves = [step_text(rng, a, op, b, c) for a, (op, b), c in zip(values, chain.ops, values[1:], strict=False)]
        return [restate_text(rng, chain.start), *moves, answer_text(values[-1])]

    if form == "plain":
        return task.prompt(problem), "".join(steps(values))
    if form == "guided":
        return task.guided_prompt(problem, str(answer)), "".join(steps(values))
    cut = rng.randint(1, n + 1)  # the step to be made next; n + 1 is the answer
    prefix = "".join(steps(values)[:cut])
    if form == "quick":
        return task.prompt(problem) + prefix + task.elicit, f"{answer}}}."
    if form == "answer_hint":
        hint = task.inject(task.answer_hint(str(answer)))
        return task.prompt(problem) + prefix + hint, "".join(steps(values)[cut:])
    wrong = rng.random() < dials.hint_wrong
    said = rng.randrange(HOURS) if wrong else values[min(cut, n)]
    if form == "hint":
        back = "".join(f"undo {chain.ops[j][0]} {chain.ops[j][1]} from {values[j + 1]}: {values[j]}, "
                       for j in reversed(range(cut, n)))
        return task.hint_prompt(problem, str(answer), prefix), f"{back}this step gives {said}."
    if wrong and cut <= n and rng.random() < dials.hint_followed:
        rest = believed_values(rng, dials, Chain(said, chain.ops[cut:]))
        values = values[:cut] + rest
    return task.prompt(problem) + prefix + task.inject(f"this step gives {said}"), "".join(steps(values)[cut:])


# ------------------------------------------------------------------------------------------- tokenizer


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the clock world: one token an hour, decode(encode(text)) == text."""
    words = ["Problem: ", "Start ", "\nAnswer: ", "\nSolution:\n", *STARTS, "So the answer is ", "\\boxed{", "}",
             "\n\n", ";", " = ", "Hint: ", "Working back: ", "undo", " from ", ": ", ", ", "this step gives ",
             "the answer is ", "Quick answer: ", *OPENINGS, *VERBS, *CLOSINGS, *(f" {op} " for op in RULES)]
    hours = [str(h) for h in range(HOURS)]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *hours, *words])}
    longest_first = sorted(words, key=len, reverse=True)
    pattern = "|".join(["[0-9]+", *("".join(c if c.isalnum() else "\\" + c for c in w).replace("\\\n", "\\n")
                                    for w in longest_first)])
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
                                   clean_up_tokenization_spaces=False)


# ---------------------------------------------------------------------------------------- problem files

FILES = {  # problems a kind in each shipped file; chains of 3 to 6 operations, but for the last file
    "train": {"mastered": 400, "shaky": 300, "frontier": 300, "misconceived": 200},
    "validation": dict.fromkeys(PROBLEM_KINDS, 300),
    "heldout": dict.fromkeys(PROBLEM_KINDS, 400),
    "long": dict.fromkeys(PROBLEM_KINDS, 100),
}
PROBLEM_LENGTHS = {3: 0.3, 4: 0.3, 5: 0.25, 6: 0.15}
LONG_LENGTHS = {7: 0.5, 8: 0.5}  # longer than anything that teacher or student was trained on


def make_problems(seed: int = 0) -> Iterator[tuple[str, list[Problem]]]:
    """The shipped problem files, (name, problems) one after another; no question appears twice anywhere."""
    rng, seen = random.Random(f"problems-{seed}"), set[str]()
    for name, counts in FILES.items():
        problems: list[Problem] = []
        for kind, count in counts.items():
            while count:
                chain = random_chain(rng, kind, _pick(rng, LONG_LENGTHS if name == "long" else PROBLEM_LENGTHS))
                if chain.question not in seen:
                    seen.add(chain.question)
                    count -= 1
                    problems.append(Problem(f"{name}-{kind}-{count:03d}", chain.question, str(chain.values()[-1]),
                                            kind, len(chain.ops)))
        yield name, problems
