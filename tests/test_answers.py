"""Answers: boxes, spelling, and what counts as the same answer; hints, golds and helped solutions."""

import os
import random
import signal
import subprocess
import sys
import threading

import pytest

from heal_ref.tasks import verifier as verifier_module
from heal_ref.tasks.answers import (
    Verifier,
    final_answer,
    last_boxed,
    reveals_help,
    same_answer,
    spelling,
    states_answer,
)
from heal_ref.tasks.plain_math import exact_number
from tests.conftest import ROOT

# ------------------------------------------------------------------- the table: what is the same?

EQUAL_WITHOUT_MATH_VERIFY = [
    # whole numbers and decimals
    ("7", "7"), ("7", "+7"), ("7", "007"), ("073", "73"), ("-7", "−7"), ("-7", "–7"), ("7", "7."),
    ("7", "$7$"), ("7", "\\(7\\)"), ("7", "\\text{7}"), ("7", "**7**"), ("73", "**73**"),
    ("73", "$\\mathbf{73}$."), ("1000", "1,000"), ("1{,}000", "1000"), ("1\\,000\\,000", "1000000"),
    ("1,\\!000", "1000"), ("12\u00a0500", "12500"), ("12\u202f500", "12,500"), ("4.0", "4"),
    ("4", "4.00"), ("3.50", "3.5"), (".5", "0.5"), ("1,234.50", "1234.5"), ("5", "\\$5"),
    ("0.000000001", "1e-9"), ("3 \\times 10^8", "300000000"), ("2.5·10^{-3}", "0.0025"),
    ("7", "\\boldsymbol{7}"), ("7", "\\color{red}{7}"), ("7", "\\textcolor{blue}{7}"),
    ("7", "\\mathsf{7}"), ("7", "\\displaystyle 7"), ("7", "x = 7"), ("x = 7", "7"), ("n=7", "7.0"),
    ("50\\%", "50%"), ("50.0\\%", "50%"), ("90^\\circ", "90°"), ("90^{\\circ}", "90.0\\degree"),
    # fractions and mixed numbers
    ("\\frac{1}{2}", "0.5"), ("0.5", "\\dfrac12"), ("\\frac{1}{2}", "1/2"), ("\\frac{2}{4}", "1/2"),
    ("-\\frac{1}{2}", "\\frac{-1}{2}"), ("1 1/2", "3/2"), ("1\\frac{1}{2}", "1 1/2"), ("1½", "1.5"),
    ("-1 1/2", "-1.5"), ("\\frac{6}{2}", "3"), ("\\tfrac{7}{4}", "1 \\frac{3}{4}"),
    ("x = \\frac{1}{2}", "x = 0.5"), ("\\frac{7}{27}", "\\cfrac{14}{54}"),
    # the same spelling
    ("\\left( 1 , 2 \\right)", "(1,2)"), ("2\\sqrt3", "$2 \\sqrt{3}$"), ("2\\sqrt{3}", "2√3"),
    ("\\text{Tuesday}", "tuesday"), ("Tuesday", "\\textbf{Tuesday}."), ("\\text{yes}", "Yes"),
    ("7\\text{ hours}", "7 hours"), ("5\\text{ cm}^2", "5 cm^2"), ("17_8", "17_{8}"),
    ("12:30", "12:30"), ("3:4", "3 : 4"), ("x \\in (0, 1)", "x\\in(0,1)"), ("2\\pi r", "2πr"),
    ("\\infty", "∞"), ("AB", "$AB$"), ("A", "\\text{A}"), ("5!", "5!"),
    ("\\frac{1}{2004!}", "\\dfrac{1}{2004!}"), ("2,3", "2, 3"), ("2^{10}", "2^10"), ("12\\sqrt{5}", "12 \\cdot \\sqrt{5}"),
    ("1\\,000", "1,000"), ("\\{1, 2\\}", "\\left\\{1,2\\right\\}"),
    ("1,100 and 2", "1,100 and 2"), ("x=1, y=2", "x = 1, y = 2"), ("\\pm 2", "\\pm2"),
    ("90^\\circ", "90\\text{ degrees}"), ("60°", "60 degrees"), ("5 m", "5.0m"),
    # part by part
    ("(A)", "A"), ("(5)", "5"), ("(0,1)", "x \\in (0,1)"), ("x ∈ (0, 0.5]", "(0,1/2]"), ("x = 1, 2", "1, 2.0"),
    ("x = 2\\sqrt{3}", "2\\sqrt3"), ("y = 0.5x", "y = 0.5 x"), ("y = \\frac{1}{2}", "y = 0.5"),
    ("(1, 0.5)", "(1, \\frac{1}{2})"), ("(0,100)", "(0, 100)"), ("[0, 0.5)", "[0,1/2)"),
    ("\\{2, 1\\}", "\\{1, 2\\}"), ("\\{0.5, 3\\}", "\\{3, \\frac{1}{2}\\}"), ("1, 2.0", "1, 2"),
    ("x = 1234", "x=1,234"), ("(1,234, 5)", "(1234, 5)"), ("(1e-9, 2)", "(0.000000001, 2)"), ("\\{1 1/2, 2\\}", "\\{2, 1.5\\}"),
    ("Green, blue", "green, Blue"), ("x = 1e-9", "x = 0.000000001"), ("x = 3 / 4", "x = 0.75"), ("x \\in A", "x∈A"),
    ("((1,2),0.5)", "((1,2),1/2)"), ("(-\\infty, 0.5]", "(-\\infty,\\frac12]"),
]
EQUAL_WITH_MATH_VERIFY = [
    ("2\\sqrt{3}", "\\sqrt{12}"), ("24\\pi - 18\\sqrt{3}", "6(4\\pi - 3\\sqrt3)"), ("144", "12²"),
    ("10^{-3}", "0.001"), ("1 - \\frac{1}{\\mathrm{e}}", "\\frac{e-1}{e}"),
    ("x^2+2x+1", "(x+1)^2"), ("\\frac{n(n+1)}{2}", "\\frac{n^2+n}{2}"), ("2^{10}", "1024"),
    ("6", "2(3)"), ("\\sqrt[3]{8}", "2"), ("x_1 + x_2", "x_2 + x_1"), ("x = 2\\sqrt{3}", "\\sqrt{12}"),
    ("a^2 - b^2", "(a+b)(a-b)"), ("x=1+\\sqrt{8}", "x = 2\\sqrt{2} + 1"), ("x \\in [0, \\sqrt{8}]", "[0, 2\\sqrt{2}]"),
    ("2xy", "2yx"), ("2e - 9", "2e-8-1"),
    ("\\frac{2x}{4}", "x/2"), ("(\\sqrt{4}, 1)", "(2, 1)"), ("y = 2x + 1", "y=1+2x"),
    ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"), ("3\\pi/4", "0.75\\pi"), ("3+4", "7"),
    ("\\frac{5\\sqrt{17}}{2}", "2.5\\sqrt{17}"), ("\\theta^2", "\\theta \\cdot \\theta"),
    ("10^{-12}\\pi", "\\frac{\\pi}{10^{12}}"), ("12√5", "\\sqrt{720}"),
    ("2\\pi \\times 3", "6\\pi"), ("0", "\\sqrt{4} - 2"),
]
EQUAL_BUT_UNSUPPORTED = [  # on the safe side: they count as wrong
    ("(1,2)", "1<x<2"), ("\\log_2 8", "3"), ("120", "5!"), ("50\\%", "0.5"),
    ("1, 2", "2, 1"), ("5 cm", "5.0 cm"), ("x > 2", "2 < x"), ("\\ln 4", "2\\ln(2)"),
    ("12", "\\text{twelve}"),
    ("e^{\\ln 2}", "2"), ("\\sin\\frac{\\pi}{6}", "0.5"), ("\\frac{1}{3}", "0.\\overline{3}"),
    ("2ab", "2ba"), ("\\{\\sqrt{4}, 3\\}", "\\{2, 3\\}"),
]
UNEQUAL = [
    # K1 as reported
    ("12", "12\\sqrt(5)"), ("12", "12√5"), ("12", "12²"), ("12", "12\\mathrm{i}"),
    ("7", "7\\text{ hours } 30 \\text{ minutes}"), ("7", "7\\text{ million}"), ("AB", "BA"),
    ("A", "a"), ("2,1", "(1,2)"), ("1 - \\frac{1}{\\mathrm{e}}", "1"), ("17_8", "17_9"),
    ("\\frac{1}{2004!}", "\\frac{1}{2006!}"), ("12:30", "0.4"),
    # (a) an unread rest
    ("12", "12!"), ("12", "12\\sqrt{5}"), ("12", "12 \\mod 5"), ("12", "12x"), ("7", "7 or 8"),
    ("7", "7, 8"), ("7", "7 and 8"), ("7", "7 \\pm 1"), ("7", "7\\ldots"), ("7", "\\approx 7"),
    ("7", "> 7"), ("7", "7 < x"), ("7", "\\sqrt{"), ("7", "7?"), ("7", "7 (8)"), ("7", "7;8"),
    ("7", "7 \\choose 2"), ("3", "\\lfloor 3.7 \\rfloor + 1"), ("7", "|7|x"), ("12", "12\\overline{3}"),
    ("0.3", "0.333..."), ("0.3", "0.\\overline{3}"), ("\\frac{1}{3}", "0.33"), ("5", "5^"), ("5", "5_2"),
    ("\\frac{1}{3}", "0.333333"), ("\\pi", "3.14159"), ("1", "1\\begin{pmatrix}2\\end{pmatrix}"),
    ("7", "7\\unknown"), ("7", "7\ud800"), ("7", "((((((((((" ), ("7", ""), ("", ""), ("7", "7⁄2"),
    # (b) number words and units
    ("7", "7 million"), ("7", "7 thousand"), ("7", "7 dozen"), ("7", "7k"), ("7", "7 cm"),
    ("5 m", "5 cm"), ("5 m", "5"), ("60", "60 s"), ("2s", "2"), ("5 cm^2", "5 cm^3"), ("5 ms", "5 sm"),
    ("5 mm^2", "5 m^3"), ("7", "seven hundred"), ("7 feet", "7 inches"), ("5 ft 3 in", "5 ft"),
    ("7 hours", "7 minutes"), ("1 h 30 min", "1 h"), ("30 km/h", "30 m/s"), ("5\\text{ kg}", "5\\text{ g}"),
    ("0.5", "0.5 million"), ("\\frac{1}{2}", "\\frac{1}{2}\\text{ dozen}"), ("5", "5€"), ("5", "5¢"),
    ("50", "50\\%"), ("0.5", "50\\%"), ("50\\%", "50"), ("50\\%", "60\\%"), ("90", "90^\\circ"),
    ("90^\\circ", "90\\%"), ("5°30'", "5°"), ("2 cm", "2 mc"), ("1A", "A"), ("1 h", "h"),
    # (c) letters
    ("a", "A"), ("ABC", "CBA"), ("ABC", "abc"), ("no", "on"), ("x", "X"), ("E", "e"), ("IV", "VI"),
    ("xy", "yx z"), ("Tuesday", "Tuesady"), ("Tuesday", "Wednesday"), ("Ab", "ab"), ("N+2n", "2N+n"),
    ("B", "C"), ("x", "y"), ("x = 7", "y = 7"), ("y", "x = y"), ("2x + 1", "y = 2x + 1"),
    ("x=1, 2", "y=1, 2"), ("x \\in (0,1)", "x \\in [0,1)"), ("f(2)", "2f"),
    ("P(A)", "PA"), ("\\pi(10)", "10\\pi"), ("x_1", "x_2"), ("X_1", "x_1"), ("\\alpha", "a"), ("2ab", "2aB"),
    ("\\mathrm{True}", "\\mathrm{False}"), ("no w", "now"), ("I^5", "I"), ("2AB", "2BA"), ("i", "1"),
    # (d) tuples, sets, lists, intervals
    ("(1,2)", "(2,1)"), ("(1,2)", "\\{1,2\\}"), ("(1,2)", "1,2"), ("[1,2]", "(1,2)"), ("[1,2)", "(1,2]"),
    ("\\{1,2\\}", "1,2"), ("\\{1,2\\}", "\\{1,2,3\\}"), ("\\{1,1\\}", "\\{1\\}"), ("\\{5\\}", "5"),
    ("[5]", "5"), ("{1,2}", "1,2"), ("(1,2,3)", "(1,2)"), ("1,2,3", "1,2"), ("(1,000, 2)", "(1, 0, 2)"),
    ("1,234", "1, 234"), ("(1,234, 5)", "(1, 234, 5)"), ("(1,000)", "(1,0)"), ("x=1,y=2", "y=1,x=2"),
    ("x=1, y=2", "1, 2"), ("(1,2)\\cup(3,4)", "(1,2)\\cup(3,5)"), ("(1,2)\\cup(3,4)", "(1,4)"),
    ("((1,2),3)", "((2,1),3)"), ("(1,2),(3,4)", "(3,4),(1,2)"), ("1<x<2", "(1,2)"), ("(1,2", "(1,2)"),
    ("\\{1,2\\}", "(1,2)"), ("3,5", "3.5"), ("(0,5)", "(0;5)"),
    # a group of thousands begins with 1 to 9
    ("500", "0,500"), ("1", "0,001"), ("-250", "-0,250"), ("125", "00,125"), ("5000", "0,005,000"), ("500", "0{,}500"),
    ("500", "0\\,500"), ("0,500", "0, 500"), ("(500, 2)", "(0,500, 2)"), ("x = 500", "x = 0,500"),
    # ranges, sizes and dates
    ("-1", "2.5-3.5"), ("-0.5", "1.5-2"), ("2", "3.0-1"), ("-0.5", "1/2-1"), ("-0.5", "\\$2.5-3"), ("-1", "2.5–3.5"),
    ("93.5", "8.5 \\times 11"), ("10", "2.5 × 4"), ("14", "3.5*4"), ("66", "3\\times4\\times5.5"), ("-0.5", "(1.5-2)"),
    ("-\\frac{1}{4}", "\\frac{1}{2}-\\frac{3}{4}"), ("-7", "-3-4"), ("x = 10", "x = 2.5 × 4"), ("(10, 1)", "(2.5 × 4, 1)"),
    ("1.75", "07/04"), ("2.4", "12/05"), ("\\frac89", "08/09"), ("8/9", "\\frac{08}{09}"), ("(1.75, 1)", "(07/04, 1)"),
    # letters, and parts that have lost their spaces
    ("x \\in A", "x = A"), ("5 \\in S", "5 = S"), ("x\\in\\mathbb{R}", "x=\\mathbb{R}"), ("x \\in (0,1)", "x = (0,1)"),
    ("x = 2e - 9", "x = 2e-9"), ("(2e - 9, 1)", "(0.000000002, 1)"), ("(2 e-9, 1)", "(0.000000002, 1)"),
    ("(2e 9, 1)", "(2000000000, 1)"), ("x = 1, 234", "x = 1234"), ("(1, 234), 5", "1234, 5"),
    ("xyz", "zyx"), ("xy", "yx"), ("xyyx", "yxxy"), ("(xy)", "yx"), ("x = yz", "x = zy"),
    # (e) clock times, dates, ratios, bases
    ("12:30", "12.5"), ("12:30", "12:03"), ("3:4", "0.75"), ("3:4", "\\frac{3}{4}"), ("3:4", "4:3"),
    ("2024-1-5", "2018"), ("2024-01-05", "2018"), ("1/5/2024", "\\frac{1}{10120}"), ("-1", "3-4"),
    ("17_8", "17"), ("17_8", "15"), ("0x1A", "26"), ("2e-9", "2e - 9"), ("1 1/2", "11/2"),
    ("1 1/2", "1/2"), ("2\\frac{1}{2}", "1"), ("1 2", "12"), ("1 2", "2"), ("1\\,5", "15"), ("555-1234", "-679"),
    ("101_2", "5"), ("3-4", "4-3"), ("2 3/2", "3"), ("3 R 1", "3"), ("12/25/2024", "12/25"),
    # (f) small numbers, and rounding
    ("1e-9", "2e-9"), ("0", "1e-9"), ("0.0000001", "0.0000002"), ("\\frac{\\pi}{10^9}", "\\frac{2\\pi}{10^9}"),
    ("10^{-20}\\sqrt{2}", "10^{-20}\\sqrt{3}"), ("e^{-50}", "e^{-51}"), ("10^{-9}x", "2 \\cdot 10^{-9}x"),
    ("\\frac{1}{7}", "0.142857"), ("0.3333", "\\frac{1}{3}"), ("1.0000001", "1"), ("\\sqrt{2}", "1.41421356"),
    ("\\frac{1}{10^{400}}", "\\frac{2}{10^{400}}"),
    # (g) the same on the gold's side
    ("12\\sqrt(5)", "12"), ("12²", "12"), ("7\\text{ million}", "7"), ("12!", "12"), ("12:30", "12"),
    ("7\\text{ hours } 30 \\text{ minutes}", "7"), ("(1,2)", "2,1"), ("1", "1 - \\frac{1}{\\mathrm{e}}"),
    ("7 or 8", "7"), ("\\sqrt{", "7"), ("x", "1x y"), ("3 \\text{ or } 4", "3"), ("7 cm", "7"),
    # unclear arithmetic
    ("1/2x", "x/2"), ("1/2/3", "1/6"), ("\\ln 2x", "x\\ln 2"), ("\\log 100", "2"), ("\\sin^{-1} x", "1/\\sin x"),
    ("\\frac{1}{0}", "\\frac{2}{0}"), ("x2", "2x"), ("2^3^2", "64"), ("\\sqrt12", "2\\sqrt{3}"), ("2**3", "8"),
    ("\\frac{1}{2", "0.5"), ("\\frac{1}{2}", "{" * 250), ("7", "9^{9^{9^9}}+"), ("\\ln 2^3", "3\\ln 2 "),
    ("A \\times B", "B \\times A"), ("a \\times b", "a \\cdot b"), ("A^2B", "BA^2"), ("A \\cdot B", "B \\cdot A"),
    ("3 \\times 4", "4 \\times 3"), ("3 × 4", "12"), ("\\sqrt{10^{40} + 1}", "10^{20}"), ("0^\\circ", "0^0"),
    ("-2^2", "4"), ("\\sqrt{x^2}", "x"), ("x^{ab}", "x^a b"), ("\\sqrt{x^2}", "-x"), ("p_1(2)", "2p_1"),
    ("7", "7&8"), ("5", "5\\\\6"),
]
EQUAL = EQUAL_WITHOUT_MATH_VERIFY + EQUAL_WITH_MATH_VERIFY + EQUAL_BUT_UNSUPPORTED


@pytest.fixture(scope="module")
def verifier():
    pytest.importorskip("math_verify")
    verifier = Verifier(seconds=10)
    verifier.equal("1", "x")  # start it
    yield verifier
    verifier.close()


def test_no_wrong_answer_counts_as_right(verifier):
    assert len(UNEQUAL) >= 130
    assert [pair for pair in UNEQUAL if same_answer(*pair, verifier)] == []
    assert [pair for pair in UNEQUAL if same_answer(*reversed(pair), verifier)] == []
    assert [pair for pair in UNEQUAL if same_answer(*pair)] == []


def test_right_answers_count_as_right(verifier):
    assert len(EQUAL_BUT_UNSUPPORTED) <= len(EQUAL) / 10
    right = EQUAL_WITHOUT_MATH_VERIFY + EQUAL_WITH_MATH_VERIFY
    assert [pair for pair in right if not same_answer(*pair, verifier)] == []
    assert [pair for pair in right if not same_answer(*reversed(pair), verifier)] == []
    assert [pair for pair in EQUAL_WITHOUT_MATH_VERIFY if not same_answer(*pair)] == []
    assert [pair for pair in EQUAL_BUT_UNSUPPORTED if same_answer(*pair, verifier)] == []


ANSWERS = ["12", "0.5", "\\frac{3}{4}", "2\\sqrt{3}", "x+1", "\\pi", "10^{-9}", "3^{20}", "\\ln 2"]
RESTS = ["!", "!!", " million", " dozen", "\\text{ cm}", " km/h", "_7", "²\u00b3", "\\%", "°", ":30", "'",
         "\\pm 1", "\\ldots", "...", " or 5", ", 5", ";5", " mod 5", "\\overline{3}", "i", "\\mathrm{i}",
         "k", "\\text{ hours } 30 \\text{ minutes}", "\\sqrt(5)", "√5", "=6", "<y", "\\cup\\{1\\}", "\\\\7"]


def test_nothing_may_follow_or_precede_an_answer(verifier):
    pairs = [(answer, answer + rest) for answer in ANSWERS for rest in RESTS]
    pairs += [(answer, rest + answer) for answer in ANSWERS for rest in ("1:", "5 or ", "-", "\\neq", "2^")]
    assert [p for p in pairs if same_answer(*p, verifier) or same_answer(*reversed(p), verifier)] == []


def test_order_brackets_and_length_of_collections_matter(verifier):
    choose = random.Random(0)
    for _ in range(200):
        parts = choose.sample([str(k) for k in range(20)] + ["\\frac{1}{3}", "\\sqrt{2}", "x"], 3)
        turned = [*parts[1:], parts[0]]
        opening, closing = choose.choice([("(", ")"), ("[", "]"), ("(", "]"), ("", ""), ("\\{", "\\}")])
        gold = opening + ", ".join(parts) + closing
        assert same_answer(gold, opening + ",".join(parts) + closing, verifier)
        assert same_answer(gold, opening + ",".join(turned) + closing, verifier) == (opening == "\\{")
        assert not same_answer(gold, opening + ",".join(parts[:2]) + closing, verifier)
        assert not same_answer(gold, "[" + ",".join(parts) + ")", verifier)


def test_random_texts_raise_nothing_and_equal_no_other(verifier):
    choose = random.Random(1)
    pieces = ["1", "0", "7", ",", ".", "-", "/", "^", "_", "{", "}", "(", ")", "x", "\\frac", "\\sqrt", "%", " ", "\\"]
    for _ in range(2000):
        text = "".join(choose.choices(pieces, k=choose.randint(1, 9)))
        assert not same_answer("12345", text, verifier)
        assert isinstance(states_answer(text, text), bool)
        assert not same_answer(text, "\\pi", verifier)
        assert same_answer(text, text) == (spelling(text) != "")


@pytest.mark.parametrize("unit", ["1", "1,", "x", " ", "{", "(", "\\frac", "\\text{", "= 7 ", "hint ", "answer is ", "*"])
def test_long_texts_take_linear_time(unit):
    text = unit * (100_000 // len(unit))  # at quadratic cost these cases would run for minutes, not for seconds
    for answer in ("12", "7", "2\\sqrt{3}", text):
        assert isinstance(states_answer(text, answer), bool)
    assert final_answer(text) is None
    assert reveals_help("", text) == ("hint" in unit)
    assert not same_answer(text, "7")
    assert exact_number(spelling(text)) is None


def test_random_arithmetic_is_read_as_it_is_meant(verifier):
    choose = random.Random(2)
    for _ in range(60):
        a, b, c = (choose.randint(2, 30) for _ in range(3))
        text, value = choose.choice([
            (f"{a}({b}+{c})", a * (b + c)), (f"{a}\\cdot {b}-{c}", a * b - c), (f"-{a}^2+{b}({c})", b * c - a * a),
            (f"({a}-{b})({b}+{c})", (a - b) * (b + c)), (f"\\sqrt{{{a}^4}}-{b}*{c}", a * a - b * c)])
        assert same_answer(str(value), text, verifier), text
        assert not same_answer(str(value + 1), text, verifier), text


@pytest.mark.parametrize(("hint", "answer", "leaks"), [
    ("There are 1,042 of them, 142 and 4.2 and 42.5.", "42", False), ("It has 42 left over.", "42", True),
    ("It has 1,000 left.", "1000", True), ("It has 12\\,000 left.", "12000", True),
    ("So $n = -42$ fits.", "-42", True), ("Take $n=42$, say.", "42", True),
    ("Divide both sides by 2.", "2", False), ("Write it as 2x + 3 = 7.", "2", False), ("So $x = 2$.", "2", True),
    ("This gives 2!", "2", True), ("It is -2.", "-2", True), ("Try $2 \\sqrt{3}$ here.", "2\\sqrt{3}", True),
    ("Try $12\\sqrt{3}$ here.", "2\\sqrt{3}", False), ("It is 3/8 of it.", "\\frac{3}{8}", True), ("So it is $n$.", "n", True),
    ("Solve for $n$ next.", "n", False), ("It is \\dfrac{3}{8} then", "3/8", True), ("Half of 13/8.", "3/8", False)])
def test_hints_that_state_the_answer(hint, answer, leaks):
    assert states_answer(hint, answer) == leaks


@pytest.mark.parametrize(("text", "answer"), [
    ("\\boxed{7}", "7"), ("\\boxed{1} then \\boxed{ 2 }", "2"), ("\\boxed{\\frac{1}{\\sqrt{2}}}.", "\\frac{1}{\\sqrt{2}}"),
    ("\\fbox{7} \\boxed {8}", "8"), ("\\boxed{8} \\fbox{7}", "7"), ("\\boxed{\\boxed{3}}", "3"),
    ("\\boxed{\\{1\\}}", "\\{1\\}"), ("\\boxed{1} \\boxed{{2}", None), ("\\boxed{1", None), ("\\boxed{}", None),
    ("\\boxed 7", None), ("7", None), ("", None), ("\\boxed{" + "7" * 501 + "}", None), ("\\boxed{7\\}", None)])
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


# ------------------------------------------------------------------------------------ comparing answers


@pytest.mark.parametrize(("text", "value"), [
    ("7", 7), ("+7", 7), ("007", 7), ("-7", -7), ("−7", -7), ("7.", 7), (" $7$ ", 7), ("$7.$", 7), ("$$7$$.", 7),
    ("\\(7\\)", 7), ("\\text{7}", 7), ("\\mathbf{7}", 7), ("1,000", 1000), ("1{,}000", 1000), ("1\\,000,000", 10**6),
    ("12,34", None), ("7.0", 7), ("x", None), ("", None), ("٣", None), ("1 2", None), ("9" * 501, None),
    ("3$ and $4", None)])
def test_numbers_are_read_exactly(text, value):
    assert exact_number(spelling(text)) == (None if value is None else (value, ""))


@pytest.mark.parametrize(("a", "b", "alike"), [
    ("\\dfrac12", "1/2", True), ("\\left( 1 , 2 \\right)", "(1,2)", True), ("2\\sqrt3", "$2 \\sqrt{3}$", True),
    ("\\text{Tuesday}", "tuesday", True), ("1 1/2", "11/2", False), ("x", "X", False), ("\\leftarrow", "arrow", False),
    ("-3/4", "\\frac{-3}{4}", True)])
def test_spelling(a, b, alike):
    assert (spelling(a) == spelling(b)) == alike


def test_one_process_answers_many_questions(verifier):
    first = verifier._process.pid
    assert all(same_answer(f"\\sqrt{{{4 * k}}}", f"2\\sqrt{{{k}}}", verifier) for k in range(100, 150))
    assert verifier._process.pid == first


def test_integers_are_compared_without_a_process():
    verifier = Verifier()
    assert same_answer("1000", "$1{,}000$.", verifier)
    assert not same_answer("7", "8", verifier)
    assert not same_answer("7", "9" * 501, verifier)
    assert not same_answer("9" * 400, "9" * 399, verifier)
    assert verifier._process is None


def test_answers_that_no_computer_finishes_are_wrong_in_time_and_never_asked_again(verifier, monkeypatch):
    for tower in ("9^{9^{9^{9^9}}}", "\\sqrt{9^{9^{9^9}}}+1"):
        n = len(tower)
        assert same_answer("\\sqrt{8}", f"{n}\\sqrt{{2}} - {n - 2}\\sqrt{{2}}", verifier)
        first = verifier._process
        with monkeypatch.context() as patch:
            patch.setattr(verifier, "seconds", 0.3)
            assert not same_answer("7", tower, verifier)
        assert first.returncode == -signal.SIGALRM  # dead of its alarm, and no zombie
        assert not same_answer("7", tower, verifier)
        assert verifier._process is None  # no second process was started: it was not asked again
    assert same_answer("\\sqrt{12}", "2\\sqrt{3}", verifier)  # the next question is answered
    assert same_answer("\\sqrt{32}", "4\\sqrt{2}", verifier)


def test_an_answer_that_eats_memory_is_wrong_before_its_time_is_up():
    pytest.importorskip("math_verify")
    verifier = Verifier(seconds=600, memory=100 * 2**20)
    assert same_answer("\\sqrt{8}", "2\\sqrt{2}", verifier)
    first = verifier._process
    assert not same_answer("7", "2^{2^{40}}", verifier)
    assert first.returncode != -signal.SIGALRM  # its memory limit ended the question, not its alarm
    assert same_answer("\\sqrt{8}", "2\\sqrt{2}", verifier)
    verifier.close()


def test_a_process_killed_from_outside_is_replaced(verifier):
    for k, answer in enumerate(("\\sqrt{4}", "\\sqrt[3]{8}", "6/3+0")):
        if k:
            os.kill(verifier._process.pid, signal.SIGKILL)
            os.waitid(os.P_PID, verifier._process.pid, os.WEXITED | os.WNOWAIT)  # it is dead by now
        assert same_answer("2", answer, verifier)


def test_a_crash_while_comparing_counts_as_wrong(verifier):
    assert same_answer("2", "\\sqrt{4}", verifier)
    first = verifier._process
    crash = threading.Timer(0.2, os.kill, (first.pid, signal.SIGKILL))
    crash.start()
    assert not same_answer("7", "9^{9^{9^9}}", verifier)
    assert first.returncode == -signal.SIGKILL
    assert not same_answer("7", "9^{9^{9^9}}", verifier)  # not asked again
    assert verifier._process is None
    crash.join()


def test_a_process_that_does_not_start_is_named_once(monkeypatch):
    monkeypatch.setattr(verifier_module, "__file__", "no such file")
    verifier = Verifier()
    with pytest.warns(RuntimeWarning, match="does not start"):
        assert not same_answer("2", "\\sqrt{4}", verifier)
    assert not same_answer("3", "\\sqrt{9}", verifier)
    assert same_answer("\\frac{1}{2}", "1/2", verifier)


def test_the_process_ends_with_the_program():
    pytest.importorskip("math_verify")
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import verifier; v = verifier.Verifier(); v.equal('1', 'x');"
            "print(v._process.pid)")
    done = subprocess.run([sys.executable, "-c", code, str(ROOT / "heal_ref" / "tasks")], capture_output=True, text=True,
                          check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


# ------------------------------------------------------------------------------- golds of a data set


SOLUTION = "Tom has 3*4=<<3*4=12>>12 nuts.\nHe eats 5, so 12-5=<<12-5=7>>7 are left.\n"


@pytest.mark.parametrize(("text", "answer"), [
    ("3*4=12\n12-5=7\n#### 7", ("7", "GSM8K's ####")), (SOLUTION + "#### 7", ("7", "GSM8K's ####")),
    ("#### 1,234,567", ("1234567", "GSM8K's ####")), ("#### -3.5", ("-3.5", "GSM8K's ####")),
    ("#### 0,500", ("0,500", "GSM8K's ####")),
    ("#### 1\n#### 2 ", ("2", "GSM8K's ####")), ("a\n####", None), ("#### Steps\nFirst add.\nThen stop.", None),
    ("So $\\boxed{\\frac{1}{2}}$.", ("\\frac{1}{2}", "box")), ("\\boxed{1} or\n\n\\fbox{2}", ("2", "box")),
    ("\\boxed{", None), ("It is \\boxed{}.", None), (" 7 ", ("7", "as it stands")), ("4.0", ("4.0", "as it stands")),
    ("1, 2, 3", ("1, 2, 3", "as it stands")), ("3 or 4", ("3 or 4", "as it stands")),
    ("x = 3", ("x = 3", "as it stands")), ("\\text{Ann and Bob}", ("\\text{Ann and Bob}", "as it stands")),
    ("5 cm", ("5 cm", "as it stands")), ("3*4=12", ("3*4=12", "as it stands")), ("-", None), ("", None), (" \n", None),
    ("Dr. Smith", ("Dr. Smith", "as it stands")), ("NaN", None), ("nan", None), ("inf", None), ("-inf", None),
    ("None", None), ("null", None), ("\\infty", ("\\infty", "as it stands")), ("\\frac{1}{2", None), ("7\n8", None),
    (SOLUTION, None), ("3*4=12, 12-5=7", None), ("The answer is 7.", ("7", "label")), ("Tom has 12. He eats 5. So 7.", None),
    ("He has " + "many " * 20 + "nuts", None), ("7" * 501, None), ("\\boxed{NaN}", None)])
def test_final_answers_of_a_data_set(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize("text", [
    "Infinity", "-nan", "NaN.", "NA", "#N/A", "\\text{N/A}", "n.a.", "\u200b", ".", "$", "...", "[]", "{}", '""', "\\{\\}",
    "(1,2", "1,2)", "??", "TBD", "see solution", "See the solution.", "Therefore 7", "He has 7 apples.", '["7"]',
    "Let x be 4. Then x+3=7", '{"answer": 7}', "{'answer': 7}", "### 7", "\\boxed 7", "1/0", "\\frac{1}{0}", "\\dfrac{x}{0}",
    "Answer: see solution", "The answer is", "Answer:", "#### N/A", "\\boxed{TBD}", "___", "So 7"])
def test_a_gold_that_no_answer_can_match_is_refused(text):
    assert final_answer(text) is None


@pytest.mark.parametrize("text", [
    "\\infty", "-\\infty", "∞", "no solution", "No solution.", "(0, 1]", "]0, 1[", "5\"", "5'6\"", "1. Alice", "a + b + c.",
    "N", "A", "1/0.5", "07/04", "\\frac{0}{5}", "sofa", "seven", "2 square feet.", "undefined", "\\sqrt[3]{2}",
    "\\left(0, 1\\right]", "NaCl", "\\emptyset", "\\begin{pmatrix} 1 \\\\ 0 \\end{pmatrix}", "x^2 + 2x + 1"])
def test_an_answer_that_can_be_matched_is_kept(text):
    assert final_answer(text) == (text, "as it stands")


@pytest.mark.parametrize("text", [
    "Answer: 7", "Final answer: 7", "The Answer Is 7", "ANSWER = 7", "**Answer:** 7", "the final answer is: 7.", "#### Answer: 7"])
def test_a_label_is_taken_off(text):
    assert final_answer(text) == ("7", "label")


# ------------------------------------------------------------------------------- more about hints


@pytest.mark.parametrize(("hint", "answer", "leaks"), [
    ("Half of it, 0.5, is left.", "\\frac{1}{2}", True), ("It is \\frac{1}{2} of it.", "0.5", True),
    ("There are 1000 in all.", "1,000", True), ("There are 1,000 in all.", "1000", True),
    ("You end up with twelve.", "12", True), ("So it is **12**.", "12", True), ("Add $\\mathbf{12}$.", "12", True),
    ("So the rest is two.", "2", True), ("Divide by two.", "2", False), ("**Divide by 2.**", "2", False),
    ("There are twenty-one of them.", "20", False), ("Twelve-sided dice.", "12", False), ("Use 12.5 here.", "12", False),
    ("It is 1/2, so 2/4.", "\\frac{2}{4}", True), ("It falls on a Tuesday.", "Tuesday", True),
    ("It is (1, 2).", "(1,2)", True), ("Look at $x^2 + 1$.", "x^2+1", True), ("Look at x^2.", "x^2+1", False),
    ("Take 0.05 of it.", "5%", False), ("Take 50% of it.", "50\\%", True), ("Then x=7.0", "7", True),
    ("Add 4.", "4.0", False), ("", "12", False), ("Go on.", "", False), ("Twice 12 000", "24", False),
    ("it is thirty", "30", True), ("Then there are forty-two.", "42", True), ("Forty two are left.", "42", True),
    ("x = 7, so we stop", "7", True), ("The result is 7, so box 7.", "7", True), ("there are 7 apples left", "7", True),
    ("x is equal to 7", "7", True), ("So 7.", "7", True), ("You find 1 1/2", "3/2", True), ("It is 1e3", "1000", True),
    ("Add to get 1 234", "1234", True), ("it equals minus three", "-3", True), ("the roots are 2 and 3", "2, 3", True),
    ("So choose B", "B", True), ("gives 5 dollars", "\\$5", True), ("It is three quarters", "3/4", True),
    ("So one half is left", "0.5", True), ("It is ninety-nine", "99", True), ("42% of them", "42", False),
    ("42\\% of them", "42", False), ("It is 42°.", "42", True), ("Write it as 2x + 3 = 7.", "3", False),
    ("So 2 is subtracted next.", "2", False), ("It is a square.", "a", False), ("Thirty-two of them", "30", False),
    ("It is 7.5.", "7", False), ("They are 2, 3 and 5.", "2", False), ("So divide by 2.", "2", False)])
def test_hints_that_state_the_answer_in_another_form(hint, answer, leaks):
    assert states_answer(hint, answer) == leaks


# ------------------------------------------------------------------------------- helped solutions


@pytest.mark.parametrize("text", [
    "Following the hint, we add first.", "As the hint says, add.", "Hint: add them.", "The hints suggest adding.",
    "As hinted, add.", "As the given answer is 12, x = 12.", "Given the answer is 12, x = 12.",
    "Given that the final answer is 12, x = 12.", "We know that the answer is given as 7.",
    "we know the final answer is 12", "We know that the correct answer must be 12.", "Knowing the answer is 12, stop.",
    "according to the provided answer", "Since the correct answer was provided, stop.", "For guidance only.",
    "The answer you gave is 4.", "The answer we were given is 4.", "the known correct answer",
    "This matches the correct answer.",
    "It agrees with the right final answer.", "The answer provided is 12.", "By the answer key it is 12.",
    "working backwards from the given result 7", "the desired answer of 7", "the answer is supposed to be 7",
    "without mentioning the answer", "Working backward from the answer, we add.", "without revealing the final answer",
    "This is the expected answer.", "I was told the answer: the supplied answer is 4."])
def test_a_helped_solution_must_not_speak_of_its_help(text):
    assert reveals_help("What is 7 + 5?", text)


@pytest.mark.parametrize("text", [
    "We are given that x = 2.", "So the correct answer is \\boxed{12}.", "The answer is 12.", "Given three numbers, add them.",
    "It is known that 7 is prime. The final answer follows.", "The answer is given by 3 \\cdot 4.", "", "Our answer is 12.",
    "Given the radius, the answer follows.", "We now know the radius. The answer is 4.", "Check the answer.",
    "Do we know the answer?", "The chintz costs 4.", "The final answer must be positive.",
    "The pattern hints at n = 4", "Work backwards from the last day.", "without using a calculator, the answer"])
def test_a_solution_of_its_own_may_speak_of_its_answer(text):
    assert not reveals_help("What is 7 + 5?", text)


@pytest.mark.parametrize(("question", "text", "reveals"), [
    ("A quiz has 3 hints in each of 4 rounds. How many?", "3 times 4, so 12 hints. \\boxed{12}.", False),
    ("A quiz has 3 hints in each of 4 rounds. How many?", "In one round a hint costs 2.", False),
    ("A quiz has 3 hints in each of 4 rounds. How many?", "As the hint says, 3 times 4.", True),
    ("A quiz has 3 hints in each of 4 rounds. How many?", "Following the hint, multiply.", True),
    ("A riddle has a clue.", "The pattern hints at n = 4", False),
    ("They train under the guidance of the coach.", "Under the guidance of the coach, 4 run.", False),
    ("They train under the guidance of the coach.", "For your guidance, 4 run.", True),
    ("They train under the guidance of the coach.", "The hint says 4.", True),
    ("Compare with the known correct answer key.", "The known correct answer key has 4.", False),
    ("Compare with the known correct answer key.", "As the given answer is 4, stop.", True),
    ("Given 3 numbers, give your answer as a sum.", "The given answer is 4.", True)])
def test_words_of_the_question_reveal_nothing(question, text, reveals):
    assert reveals_help(question, text) == reveals
