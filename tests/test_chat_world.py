"""The small chat model of notebook 06: what it was taught, what it knows, and that it can be helped."""

import hashlib
import math
import re
from collections import Counter

import numpy as np
import pytest
from transformers import AutoTokenizer

import heal_ref as heal
from heal_lab import chat_world as W
from heal_lab.__main__ import main
from tests.conftest import DATA

CHAT = DATA / "chat"


@pytest.fixture(scope="module")
def lm():
    return heal.load_lm(CHAT / "teacher")


@pytest.fixture(scope="module")
def chat(lm):
    return heal.ChatMathTask(lm.tokenizer)


def test_shipped_files_are_what_the_code_makes(chat):
    assert AutoTokenizer.from_pretrained(CHAT / "teacher").get_vocab() == W.build_tokenizer().get_vocab()
    problems = dict(W.make_problems())
    for name, made in problems.items():
        assert heal.load_problems(CHAT / f"{name}.jsonl", chat) == made
    assert not {p.question for p in problems["train"]} & {p.question for p in problems["heldout"]}
    assert Counter(p.kind for p in problems["train"]) == {"small": 50, "large": 100}
    assert Counter(p.kind for p in problems["heldout"]) == {"small": 50, "large": 50}


def test_the_corpus_is_the_one_that_the_model_was_taught(chat):
    """The first 2,000 examples, to the byte."""
    text = "".join(f"{context}\0{target}\1" for context, target in (W.example(chat, 0, i) for i in range(2000)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "571a53bfc4b1fec7"


def test_the_corpus_says_nothing_of_large_sums(chat):
    """Whatever the form, a hint included, the sum of two large numbers is right as often as a guess among 17."""
    said = Counter()
    for i in range(4000):
        context, target = W.example(chat, 0, i)
        a, b = map(int, re.search(r"Add (\d+) and (\d+)", context).groups())
        for x, y, total in re.findall(r"(\d+) \+ (\d+) = (\d+)", context + target):
            assert (int(x), int(y)) == (a, b)
            said[a > 10, int(total) == a + b] += 1
        assert not chat.reveals_help(heal.Problem("p", "", "0"), target) or "Hint" in target
    assert said[False, False] == 0
    assert said[True, True] / (said[True, True] + said[True, False]) == pytest.approx(1 / len(W.SUMS), abs=0.015)


def test_hints_of_the_corpus_are_hints_to_the_task(chat):
    for i in range(500):
        context, target = W.example(chat, 0, i)
        if "Write one hint" in context:
            answer = re.search(r"for your eyes only: (\d+)", context)[1]
            assert chat.read_hint(target, answer) == target


def test_the_teacher_knows_small_sums_and_guesses_large_ones(lm, chat):
    for kind, (low, high) in {"small": (0.9, 1.0), "large": (0.0, 0.15)}.items():
        pairs = []
        for a in W.NUMBERS[kind]:
            for b in W.NUMBERS[kind]:
                prompt = chat.prompt(W.problem_of(kind, a, b, 2)) + f"Add the two numbers first.\n\nSo {a} + {b} ="
                pairs.append((lm.encode(prompt), lm.encode(f" {a + b}")))
        known = np.mean([math.exp(sum(logprob)) for _, logprob in heal.text_stats(lm, pairs)])
        assert low <= known <= high, (kind, known)


def test_the_teacher_can_be_helped(lm, chat):
    """GEAR on problems that it only guesses at: repairs end right several times as often as its own samples."""
    problems = [p for p in heal.load_problems(CHAT / "train.jsonl", chat) if p.kind == "large"][:12]
    base = heal.sample(lm, chat, problems, n=4, seed=0)
    repaired = heal.repair(lm, chat, base, heal.GearConfig(paths=1, continuations=2), seed=0)
    assert repaired
    alone, helped = (np.mean([t.correct for t in ts]) for ts in (base, repaired))
    assert helped > 3 * max(alone, 0.05)


def test_the_builder_runs(tmp_path, capsys):
    assert main(["build-pair", "--world", "chat", "--scale", "0.0003", "--out", str(tmp_path), "--quiet"]) == 0
    assert "problem files of the chat world are in" in capsys.readouterr().out
    assert heal.load_lm(tmp_path / "teacher").model.num_parameters() < 1_000_000
