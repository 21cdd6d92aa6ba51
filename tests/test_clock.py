"""The clock world: rules, checker against brute force, tokenizer, corpus, shipped files."""

import collections
import hashlib
import json
import random
import re

import pytest
from transformers import AutoTokenizer

from heal_lab import clock_corpus as cc
from heal_ref.records import Problem
from heal_ref.run.sources import load_problems
from heal_ref.tasks import clock
from heal_ref.tasks.clock import HOURS, MAX_OPERAND, RULES, Chain, ClockTask, apply_op
from tests.conftest import DATA


def test_every_operator_is_invertible():
    for op in RULES:
        for b in range(1, MAX_OPERAND + 1):
            assert len({apply_op(a, op, b) for a in range(HOURS)}) == HOURS


@pytest.mark.parametrize(("question", "values"), [
    ("Start 5; + 3; * 4; # 7; - 6", [5, 8, 9, 2, 19]), ("Start 22; @ 9; ^ 1", [22, 6, 4])])
def test_values_by_hand(question, values):
    chain = Chain.parse(question)
    assert chain.values() == values
    assert chain.question == question


@pytest.mark.parametrize(("question", "complaint"), [
    ("Start 5", "not of the form"), ("Start 5; ? 3", "unknown operator"), ("Start 23; + 3", "starting hour"),
    ("Start 5; + 0", "operand"), ("5 + 3", "not of the form"), ("Start 5; + 3;", "not of the form")])
def test_bad_questions(question, complaint):
    with pytest.raises(ValueError, match=complaint):
        Chain.parse(question)


def brute_force(question: str, text: str) -> bool:
    """Whether a solution is right in every step, written a second time and differently: rebuild it, compare it."""
    numbers = re.findall(r"\d+|[-+*@#^]", question)
    value, expected = int(numbers[0]), []
    for op, b in zip(numbers[1::2], map(int, numbers[2::2]), strict=True):
        new = {"+": value + b, "-": value - b, "*": value * b, "@": 3 * value + b, "#": 2 * value + b, "^": value - 2 * b}[op]
        expected.append((value, op, b, new % 23))
        value = new % 23
    found = [(int(a), o, int(b), int(c)) for a, o, b, c in re.findall(r"(\d+) (\S) (\d+) = (\d+)", text)]
    blocks = text.split("\n\n")
    return (found == expected and len(blocks) == len(expected) + 2 and blocks[-1].endswith(f"\\boxed{{{value}}}.")
            and re.findall(r"\d+", blocks[0]) == [numbers[0]] and text.count("\\boxed") == 1)


def test_checker_agrees_with_brute_force():
    rng, task, verdicts = random.Random(0), ClockTask(), collections.Counter()
    for i in range(4000):
        chain = cc.random_chain(rng, rng.choice(cc.PROBLEM_KINDS), rng.randint(2, 6))
        values = chain.values()
        if rng.random() < 0.5:
            values[rng.randrange(len(values))] = rng.randrange(HOURS)
        steps = cc.solution(rng, chain, values)
        damage = rng.random()
        if damage < 0.1:
            steps.pop(rng.randrange(len(steps)))
        elif damage < 0.2:
            k = rng.randrange(len(steps))
            steps.insert(k, steps[k])
        text = "".join(steps)
        parts = [p + "\n\n" for p in text.split("\n\n")[:-1]] + [text.split("\n\n")[-1]]
        expected = brute_force(chain.question, text)
        assert task.is_genuine(Problem("p", chain.question, str(chain.values()[-1])), parts) == expected, (i, text)
        verdicts[expected] += 1
    assert min(verdicts.values()) > 500


def test_first_wrong_step_is_where_the_error_is(task):
    problem = Problem("p", "Start 5; + 3; * 4", "9")
    steps = ["We start at 5.\n\n", "Then compute 5 + 3 = 7.\n\n", "Then compute 7 * 4 = 5.\n\n", "So the answer is \\boxed{5}."]
    assert task.check_steps(problem, steps) == [True, False, True, True]


def test_tokenizer_round_trip_and_autotokenizer(tmp_path):
    cc.build_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for i in range(500):
        context, target = cc.example(3, i, cc.Dials())
        ids = tokenizer(context + target)["input_ids"]
        assert tokenizer.decode(ids) == context + target
        assert tokenizer.unk_token_id not in ids
        assert ids[: len(tokenizer(context)["input_ids"])] == tokenizer(context)["input_ids"]
    assert all(len(tokenizer(str(h))["input_ids"]) == 1 for h in range(HOURS))


def test_task_prompts_are_written_with_known_tokens(task):
    tokenizer = cc.build_tokenizer()
    problem = Problem("p", "Start 5; + 3; # 7", "0")
    for text in (task.prompt(problem), task.guided_prompt(problem, "0"), task.hint_prompt(problem, "0", ""), task.elicit,
                 task.inject("this step gives 3"), task.inject(task.answer_hint("0"))):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_hint_is_read_without_the_answer(task):
    assert task.read_hint("undo - 6 from 19: 2, this step gives 2.") == "this step gives 2"
    assert task.read_hint("undo - 6 from 19: 2, ") is None


@pytest.mark.parametrize("examples", [8_000, pytest.param(40_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dials", [cc.FIRST, cc.SECOND, cc.THIRD, cc.PLAIN], ids=["one", "two", "three", "student"])
def test_corpus_says_nothing_of_the_unlearnt_operator(dials, examples):
    """Over all forms of example, `a # b = c` is right as often as chance, and every hour is as frequent."""
    right, total, hours = 0, 0, collections.Counter()
    for i in range(examples):
        context, target = cc.example(1, i, dials)
        text = context + target
        forward = re.findall(r"(\d+) # (\d+) = (\d+)", text)
        backward = [(a, b, c) for b, c, a in re.findall(r"undo # (\d+) from (\d+): (\d+)", text)]
        for a, b, c in forward + backward:
            right += apply_op(int(a), "#", int(b)) == int(c)
            hours[int(c)] += 1
            total += 1
    assert total > examples / 8
    chance, sd = 1 / HOURS, (1 / HOURS * (1 - 1 / HOURS) / total) ** 0.5
    assert abs(right / total - chance) < 4 * sd
    assert all(abs(hours[h] / total - chance) < 5 * sd for h in range(HOURS))


@pytest.mark.parametrize(("dials", "digest"), [
    (cc.FIRST, "0d53fc126c7e284b"), (cc.SECOND, "4a16396de0c5e71d"), (cc.THIRD, "8f2e53c2f93d5fc2"), (cc.PLAIN, "bccc35b921db160b")],
    ids=["one", "two", "three", "student"])
def test_corpora_are_those_that_the_pair_was_taught(dials, digest):
    """The first 2,000 examples, to the byte."""
    text = "".join(f"{context}\0{target}\1" for context, target in (cc.example(0, i, dials) for i in range(2000)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_examples_depend_on_seed_and_number_alone():
    assert cc.example(0, 7, cc.Dials()) == cc.example(0, 7, cc.Dials())
    assert cc.example(0, 7, cc.Dials()) != cc.example(1, 7, cc.Dials())


def test_shipped_problem_files(task):
    seen = {}
    for name, problems in cc.make_problems():
        path = DATA / "clock" / f"{name}.jsonl"
        assert load_problems(path, task) == problems  # the files are what the generator makes
        assert collections.Counter(p.kind for p in problems) == cc.FILES[name]
        for p in problems:
            assert p.question not in seen, f"{p.id} is {seen[p.question]} again"
            seen[p.question] = p.id
            assert p.kind == Chain.parse(p.question).kind
    assert isinstance(json.loads(path.read_text().splitlines()[0])["answer"], int)


def test_misconception_differs_from_the_truth():
    rule = clock.MISCONCEPTION["^"]
    wrong = sum(rule(a, b) % HOURS != apply_op(a, "^", b) for a in range(HOURS) for b in range(1, MAX_OPERAND + 1))
    assert wrong > 0.9 * HOURS * MAX_OPERAND


# ------------------------------------------------------------------------------------ other worlds


@pytest.mark.parametrize("task", [ClockTask(11), ClockTask(47), ClockTask(restates=False), ClockTask(11, restates=False)])
def test_other_worlds_have_corpora_that_their_task_reads(task):
    tokenizer, dials = cc.build_tokenizer(task.hours), cc.Dials(task.hours, task.restates)
    right = 0
    for i in range(400):
        context, target = cc.example(5, i, dials)
        for text in (context, target):
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
            assert "<unk>" not in text
        if context.endswith("\nSolution:\n") and "Answer" not in context:
            question = context.split(": ")[1].split("\n")[0]
            problem = Problem("p", question, str(Chain.parse(question, task.hours).values()[-1]))
            verdicts = task.check_steps(problem, target.split("\n\n"))
            assert len(verdicts) == len(Chain.parse(question, task.hours).ops) + 1 + task.restates
            right += all(verdicts)
            assert not all(verdicts) or task.is_correct(problem, task.extract_answer(target))
            assert not all(task.check_steps(problem, target.split("\n\n")[1:]))
            assert task.validate(problem) is None
    assert right > 40


def test_the_file_of_a_world_holds_its_hours():
    (name, problems), *_ = cc.make_problems(hours=11)
    assert name == "train"
    assert max(int(p.answer) for p in problems) == 10
    assert ClockTask(11).validate(Problem("p", "Start 12; + 3", "4")) is not None
