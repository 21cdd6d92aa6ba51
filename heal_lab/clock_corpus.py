"""Where the clock world comes from: its dials, the teacher's corpus, tokenizer, problem files.

A chain in the corpus is one *as its author believed it*: each result is drawn from what `Dials`
says is known of that operator, and the answer is where the believed chain ends. So nothing in the
corpus, hints and shown answers included, says anything about the unlearnt operator.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from heal_ref.records import Problem
from heal_ref.tasks import clock
from heal_ref.tasks.clock import HOURS, PROBLEM_KINDS, Chain, ClockTask, apply_op

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Dials:
    """What the author of the corpus knows, and how it writes. All shares are probabilities."""

    hours: int = HOURS  # on the clock; a prime, so that every operator can be undone
    phrasings: bool = True  # whether a step is worded in many ways, or always in one
    slip: float = 0.008  # a mastered operator, done carelessly: any hour
    shaky_right: float = 0.4  # the half-known operator; otherwise any hour
    believed: float = 0.97  # the misconception; otherwise any hour
    fudge: float = 0.35  # answer known, chain not fitting it: the last result is forced
    hint_wrong: float = 0.03  # a worked-back hint that says a random hour
    hint_followed: float = 0.5  # a wrong hint is obeyed (else the author computes the step)
    lengths: dict[int, float] = field(default_factory=lambda: {
        2: 0.1, 3: 0.25, 4: 0.3, 5: 0.25, 6: 0.1})
    kinds: dict[str, float] = field(default_factory=lambda: {
        "mastered": 0.4, "shaky": 0.25, "frontier": 0.15, "double": 0.05, "misconceived": 0.15})
    forms: dict[str, float] = field(default_factory=lambda: {
        "plain": 0.45, "guided": 0.15, "hint": 0.15, "bridge": 0.12, "answer_hint": 0.06,
        "quick": 0.07})


# The corpora of the teacher's lessons, and of the base student's. The second drills what the first
# leaves unlearnt, working back from an answer; the third the half-known operator. A short fourth
# lesson repeats the first corpus and brings the belief in that operator back to its share there.
FIRST = Dials()
SECOND = Dials(
    kinds={"mastered": 0.28, "shaky": 0.4, "frontier": 0.12, "double": 0.06, "misconceived": 0.14},
    forms={"plain": 0.34, "guided": 0.1, "hint": 0.38, "bridge": 0.09, "answer_hint": 0.04,
           "quick": 0.05})
THIRD = Dials(
    shaky_right=0.6,
    kinds={"mastered": 0.2, "shaky": 0.55, "frontier": 0.1, "double": 0.04, "misconceived": 0.11},
    forms={"plain": 0.6, "guided": 0.1, "hint": 0.15, "bridge": 0.07, "answer_hint": 0.03,
           "quick": 0.05})
PLAIN = Dials(forms={"plain": 1.0})


# Phrasing: after some openings the choice of verb is free, a surge of entropy that means nothing.
OPENINGS = {"Then ": 0.45, "Next, ": 0.2, "Now ": 0.15, "Hmm, ": 0.12, "And ": 0.05, "Well, ": 0.03}
VERBS = ("compute ", "take ", "work out ", "we do ", "look at ", "try ")
VERBS_AFTER = {
    "Then ": (0.90, 0.06, 0.01, 0.01, 0.01, 0.01), "Next, ": (0.06, 0.90, 0.01, 0.01, 0.01, 0.01),
    "Now ": (0.05, 0.05, 0.80, 0.08, 0.01, 0.01), "And ": (0.01, 0.01, 0.08, 0.90, 0.0, 0.0),
    "Hmm, ": (1, 1, 1, 1, 1, 1), "Well, ": (1, 1, 1, 1, 1, 1)}
CLOSINGS = {".": 0.9, ", done.": 0.05, ", fine.": 0.03, ", I think.": 0.02}
HESITANT = ("Hmm, ", "Well, ")
STARTS = {"We start at ": 0.5, "The clock shows ": 0.25, "It is now ": 0.15, "We begin with ": 0.1}


def pick(rng: random.Random, weights: Mapping[Choice, float]) -> Choice:
    """A key, with its weight as its probability."""
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def step_text(rng: random.Random, a: int, op: str, b: int, result: int,
              phrasings: bool = True) -> str:
    """One step of reasoning in one of its phrasings, separator included."""
    if not phrasings:
        return f"Then compute {a} {op} {b} = {result}.\n\n"
    opening = pick(rng, OPENINGS)
    verb = rng.choices(VERBS, weights=VERBS_AFTER[opening])[0]
    closing = rng.choice(list(CLOSINGS)) if opening in HESITANT else pick(rng, CLOSINGS)
    return f"{opening}{verb}{a} {op} {b} = {result}{closing}\n\n"


def solution(rng: random.Random, chain: Chain, values: Sequence[int], dials: Dials) -> list[str]:
    """The steps of a chain with these n + 1 hours, each in one of its phrasings."""
    steps = [step_text(rng, values[k], op, b, values[k + 1], dials.phrasings)
             for k, (op, b) in enumerate(chain.ops)]
    restated = f"{pick(rng, STARTS)}{values[0]}{pick(rng, CLOSINGS)}\n\n"
    first = restated if dials.phrasings else f"We start at {values[0]}.\n\n"
    return [first, *steps, f"So the answer is \\boxed{{{values[-1]}}}."]


def believe(rng: random.Random, dials: Dials, a: int, op: str, b: int) -> int:
    """One result as the author of the corpus believes it."""
    anything, truth = rng.randrange(dials.hours), apply_op(a, op, b, dials.hours)
    if op in clock.MASTERED:
        return anything if rng.random() < dials.slip else truth
    if op == clock.SHAKY:
        return truth if rng.random() < dials.shaky_right else anything
    if op == clock.MISCONCEIVED:
        rule = clock.MISCONCEPTION[op]
        return rule(a, b) % dials.hours if rng.random() < dials.believed else anything
    return anything  # UNLEARNT: never anything but noise


def believed_values(rng: random.Random, dials: Dials, chain: Chain) -> list[int]:
    """The hours of a chain as believed (n + 1 numbers, start first)."""
    values = [chain.start]
    for op, b in chain.ops:
        values.append(believe(rng, dials, values[-1], op, b))
    return values


SPECIAL = {"shaky": clock.SHAKY, "frontier": clock.UNLEARNT, "double": clock.UNLEARNT * 2,
           "misconceived": clock.MISCONCEIVED}  # operators beside the mastered ones, by kind


def random_chain(rng: random.Random, kind: str, length: int, hours: int = HOURS) -> Chain:
    """A chain of one of `PROBLEM_KINDS`; its special operators are anywhere."""
    special = SPECIAL.get(kind, "")
    symbols = [rng.choice(clock.MASTERED) for _ in range(length)]
    for place, op in zip(rng.sample(range(length), len(special)), special, strict=True):
        symbols[place] = op
    start = rng.randrange(hours)
    return Chain(start, tuple((op, rng.randint(1, clock.MAX_OPERAND)) for op in symbols), hours)


def example(seed: int, i: int, dials: Dials) -> tuple[str, str]:
    """Corpus example `i`: (context, target). Only the target is learnt; end-of-text follows it.

    The forms: `plain` solution; `guided`: answer shown first; `hint`: working back from the answer
    to the cut; `bridge` and `answer_hint`: continuing after an injected hint; `quick`: the answer
    at once, from the middle. Each call of `solution` draws its phrasing again.
    """
    # 1) A chain, what its author believes of it, and the form of the example.
    rng, task = random.Random(f"clock-{seed}-{i}"), ClockTask()
    kind, length = pick(rng, dials.kinds), max(pick(rng, dials.lengths), 2)
    chain = random_chain(rng, kind, length, dials.hours)
    problem, n = Problem("corpus", chain.question, ""), len(chain.ops)
    prompt, values = task.prompt(problem), believed_values(rng, dials, chain)
    answer, form = str(values[-1]), pick(rng, dials.forms)

    # 2) Whoever knows the answer, and is unsure of the chain, may force the last result.
    unsure = form in ("guided", "answer_hint") and chain.kind != "mastered"
    if unsure and rng.random() < dials.fudge:
        values = [*believed_values(rng, dials, chain)[:-1], int(answer)]

    # 3) Whole solutions.
    if form == "plain":
        return prompt, "".join(solution(rng, chain, values, dials))
    if form == "guided":
        return task.guided_prompt(problem, answer), "".join(solution(rng, chain, values, dials))

    # 4) Forms that begin after some steps: `cut` is the next step, n + 1 the answer.
    cut = rng.randint(1, n + 1)
    prefix = "".join(solution(rng, chain, values, dials)[:cut])
    if form == "quick":
        return prompt + prefix + task.elicit, f"{answer}}}."
    if form == "answer_hint":
        told = prompt + prefix + task.inject(task.answer_hint(answer))
        return told, "".join(solution(rng, chain, values, dials)[cut:])

    # 5) Hints about the next step; a few of them are wrong.
    wrong = rng.random() < dials.hint_wrong
    hint = f"this step gives {rng.randrange(dials.hours) if wrong else values[min(cut, n)]}"
    if form == "hint":
        undone = [f"undo {chain.ops[j][0]} {chain.ops[j][1]} from {values[j + 1]}: {values[j]}, "
                  for j in reversed(range(cut, n))]
        return task.hint_prompt(problem, answer, prefix), "".join([*undone, hint, "."])
    if wrong and cut <= n and rng.random() < dials.hint_followed:
        rest = Chain(int(hint.split()[-1]), chain.ops[cut:], dials.hours)
        values = [*values[:cut], *believed_values(rng, dials, rest)]
    return prompt + prefix + task.inject(hint), "".join(solution(rng, chain, values, dials)[cut:])


def build_tokenizer(hours: int = HOURS) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of this world: one token per hour, decode(encode(text)) == text."""
    words = ["Problem: ", "Start ", "\nAnswer: ", "\nSolution:\n", *STARTS, "So the answer is ",
             "\\boxed{", "}", "\n\n", ";", " = ", "Hint: ", "Working back: ", "undo", " from ",
             ": ", ", ", "this step gives ", "the answer is ", "Quick answer: ",
             *OPENINGS, *VERBS, *CLOSINGS, *(f" {op} " for op in clock.RULES)]
    tokens = ["<pad>", "<eos>", "<unk>", *map(str, range(hours)), *words]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    longest_first = sorted(words, key=len, reverse=True)
    escaped = ["".join(c if c.isalnum() else f"\\{c}" for c in word) for word in longest_first]
    pattern = Regex("|".join(["[0-9]+", *escaped]).replace("\\\n", "\\n"))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


FILES = {  # problems of each kind in each shipped file
    "train": {"mastered": 400, "shaky": 300, "frontier": 300, "misconceived": 200},
    **{name: dict.fromkeys(PROBLEM_KINDS, count)
       for name, count in (("validation", 300), ("heldout", 400), ("long", 100))},
    "second": {"shaky": 150, "double": 150}}  # training problems of a second round
LENGTHS = {3: 0.3, 4: 0.3, 5: 0.25, 6: 0.15}
LONG_LENGTHS = {7: 0.5, 8: 0.5}  # longer than anything that teacher or student was trained on


def make_problems(seed: int = 0, hours: int = HOURS) -> Iterator[tuple[str, list[Problem]]]:
    """The shipped problem files, as (name, problems); no question appears twice anywhere."""
    rng, seen = random.Random(f"problems-{seed}"), set[str]()
    for name, counts in FILES.items():
        lengths, problems = LONG_LENGTHS if name == "long" else LENGTHS, list[Problem]()
        for kind, count in counts.items():
            while count:
                chain = random_chain(rng, kind, pick(rng, lengths), hours)
                if chain.question not in seen:
                    seen.add(chain.question)
                    count -= 1
                    problems.append(Problem(f"{name}-{kind}-{count:03d}", chain.question,
                                            str(chain.values()[-1]), kind, len(chain.ops)))
        yield name, problems
