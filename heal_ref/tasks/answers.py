r"""Answers in mathematics: find them in a text, and compare them with the right answer.

`same_answer` has one rule: two answers are equal only if nothing on either side was left unread.

1. Numbers (7, 1,000, 0.5, 1 1/2, \frac{1}{2}, 3 \cdot 10^8) are compared exactly, here.
2. Anything else is equal if it is spelled alike: units, words, dates, matrices.
3. Tuples, intervals, sets and lists need the same brackets and equal parts.
4. Expressions of plain mathematics go to math-verify, if it is installed (`Verifier`), but only
   after each of their characters was read here (`written_in_full`).

What cannot be decided counts as wrong. Nothing that a model writes can raise an error, or hang.
"""

from __future__ import annotations

import re
from typing import Any

from heal_ref.tasks.plain_math import exact_number, written_in_full
from heal_ref.tasks.verifier import Verifier, math_verify_installed  # noqa: F401

MAX_ANSWER = 500  # characters; a longer text is no final answer

_BOXES = ("\\boxed{", "\\boxed {", "\\fbox{", "\\fbox {")


def closing_brace(text: str) -> int | None:
    r"""The position of the brace that closes one opened just before `text`; `\{` is no brace."""
    depth, escaped = 1, False
    for i, c in enumerate(text):
        if escaped or c == "\\":
            escaped = not escaped
        elif c in "{}":
            depth += 1 if c == "{" else -1
            if depth == 0:
                return i
    return None


def is_balanced(text: str) -> bool:
    """Whether every brace has its partner."""
    return closing_brace(text + "}") == len(text)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` (or `\fbox{...}`), in linear time.

    None if there is no box, or if the last one is empty, never closed or longer than `MAX_ANSWER`.
    """
    starts = [at + len(box) for box in _BOXES if (at := text.rfind(box)) >= 0]
    inside = text[max(starts, default=len(text)) :][: MAX_ANSWER + 1]
    end = closing_brace(inside)
    return inside[:end].strip() or None if end is not None else None


# ---------------------------------------------------------------------------- one spelling

_FONT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|sf|it)|mbox|boldsymbol|operatorname)\s*"
    r"\{([^{}]*)\}|\\(?:textcolor|color)\s*\{\w*\}\s*\{([^{}]*)\}")
_GAP = r"(?:\\,|\{,\}|[\u00a0\u202f\u2009])"  # between thousands


def _joined(match: re.Match[str]) -> str:
    """1,000 or 1{,}000 without what separates its thousands."""
    return re.sub(r"[^\d.+-]", "", match[0])


_MARKS: list[tuple[str, Any]] = [  # these replacements, in this order, change no value
    (r"\\!", ""), (r"^\s*\*+([^*]+)\*+\s*$", r"\1"), ("[−–]", "-"), ("½", r"\\frac{1}{2}"),
    ("²", "^2"), ("³", "^3"), ("π", r"\\pi "), ("∞", r"\\infty "),
    ("[·⋅]", r"\\cdot "), ("×", r"\\times "),
    (r"√\s*(\d+)(?![\w.(\\])", r"\\sqrt{\1}"), (r"√(?=[({])", r"\\sqrt"),
    (r"\\color\s*\{\w*\}|\\displaystyle(?![a-zA-Z])|\\?\$|\\[()\[\]]", " "),
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])", ""), (r"\\[dtc]frac", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"), (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree(?![a-zA-Z])", "°"), (r"\\%", "%"),
    (r"\^\s*(-?\d+|[a-zA-Z](?![a-zA-Z]))", r"^{\1}"), (r"_\s*(\w)(?!\w)", r"_{\1}"),
    (rf"^\s*[+-]?\d{{1,3}}(?:(?:,|{_GAP})\d{{3}})+(?:\.\d*)?\s*$", _joined),
    (rf"(?<![\d.,])\d{{1,3}}(?:{_GAP}\d{{3}})+(?![\d/])", _joined),
    (r"\\[,;: ]|~|\\q?quad(?![a-zA-Z])", " "), (r"(?<!\.)\.\s*$", ""), (r"\s+", " ")]
_ENDINGS = [
    (r"^([+-]?\d+(?:\.\d*)?)[eE]([+-]?\d{1,3})$", r"\1\\cdot10^{\2}"),  # 1e-9
    (r"^([+-]?\d+) (\d+)/(\d+)$", r"\1\\frac{\2}{\3}"),  # 1 1/2
    (r"^([+-]?\d+) ?/ ?(\d+)$", r"\\frac{\1}{\2}"),
    (r"(?<![A-Za-z]) (?![\d.])|(?<![\d.]) (?![A-Za-z])", "")]  # but "1 2" and "no w" keep theirs
_WORD = re.compile(r"(?=.{4})[A-Za-z][a-z]*[aeiouy][a-z]*|[Yy]es|[Nn]o|[Oo]dd")


def _plain(text: str) -> str:
    """The text without fonts, colours, dollars and other marks that change no value."""
    for _ in range(5):  # fonts within fonts
        text = _FONT.sub(lambda font: f" {font[1] or font[2] or ''} ", text)
    for pattern, plain in _MARKS:
        text = re.sub(pattern, plain, text, flags=re.ASCII)
    return text.strip()


def spelling(answer: str) -> str:
    r"""One spelling for what is often written in several ways, such as \dfrac12 and 1/2.

    A text of more than `MAX_ANSWER` characters comes back as it is. The case of letters stays,
    except in words: Tuesday is tuesday, but AB is not ab.
    """
    if len(answer) > MAX_ANSWER:
        return answer
    text = _plain(answer)
    if ", " in text:  # then (1,234, 5) is not (1, 234, 5)
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "{,}", text)
    for pattern, plain in _ENDINGS:
        text = re.sub(pattern, plain, text)
    return text.casefold() if _WORD.fullmatch(text) else text


def as_integer(answer: str) -> int | None:
    """The integer written as 7, +7, 007, 1,000, 1{,}000, $7$ or 7.; None for anything else."""
    text = spelling(answer)
    if len(text) > MAX_ANSWER or not re.fullmatch(r"[+-]?\d+", text, re.ASCII):
        return None
    return int(text)


# -------------------------------------------------------------------------------- comparing

_LABEL = re.compile(r"([A-Za-z]=)([^=]+)")
_BRACKETS = re.compile(r"(\(|\[|\\\{)(.*)(\)|\]|\\\})")


def same_answer(gold: str, answer: str, verifier: Verifier | None = None) -> bool:
    """Whether `answer` equals the right answer `gold`; False if that cannot be decided.

    Never raises. Without a `verifier`, expressions that are not numbers must be spelled alike.
    """
    if max(len(gold), len(answer)) > MAX_ANSWER:
        return False
    gold, answer = spelling(gold), spelling(answer)
    if max(len(re.findall(r"[(\[{]", text)) for text in (gold, answer)) > 60:
        return gold == answer
    # x = 5 answers as 5 does, but y = 2x is not 2x.
    if ("=" in gold) != ("=" in answer):
        gold, answer = _without_label(gold), _without_label(answer)
    return _same(gold, answer, verifier)


def _without_label(text: str) -> str:
    match = _LABEL.fullmatch(text)
    if match and (exact_number(match[2]) or "x_" not in (written_in_full(match[2]) or "x_")):
        return match[2]  # it holds no letter
    return text


def _same(gold: str, answer: str, verifier: Verifier | None) -> bool:
    # 1. The same spelling, or two numbers.
    if gold == answer:
        return gold != ""
    numbers = exact_number(gold), exact_number(answer)
    if None not in numbers:
        return numbers[0] == numbers[1]
    # 2. The same label, then the rest.
    labels = _LABEL.fullmatch(gold), _LABEL.fullmatch(answer)
    if labels[0] and labels[1]:
        same_label = labels[0][1] == labels[1][1]
        return same_label and _same(labels[0][2], labels[1][2], verifier)
    # 3. Tuples, intervals, sets and lists: the same brackets, then part by part.
    (kind, parts), (other_kind, others) = _parts(gold), _parts(answer)
    if kind != other_kind or len(parts) != len(others):
        return False
    if kind or len(parts) > 1:
        pairs = zip(map(spelling, parts), map(spelling, others), strict=True)
        return all(_same(*pair, verifier) for pair in pairs)
    # 4. Two expressions, each of them read to its end.
    first, second = written_in_full(gold), written_in_full(answer)
    if not first or not second:
        return False
    return first == second or (verifier is not None and verifier.equal(first, second))


def _parts(text: str) -> tuple[str, list[str]]:
    """The kind of brackets, and what the commas within them separate; those of a set sorted."""
    match = _BRACKETS.fullmatch(text)
    kind = match[1] + match[3] if match else ""
    inner = _split(match[2]) if match else []
    if not inner or (kind == "()" and len(inner) == 1):
        kind, inner = "", _split(text) or [text]
    if len(inner) > 1 and any(re.match(r"[+-]?0\d", part) for part in inner):  # (1,000)
        return "", [text]
    if kind == r"\{\}":  # in any order; equal numbers get equal places
        inner.sort(key=lambda part: (str(exact_number(spelling(part))), part))
    return kind, inner


def _split(text: str) -> list[str]:
    """The text at its commas outside all brackets; nothing if the brackets do not match."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if depth < 0:
            return []
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts if depth == 0 else []


# ----------------------------------------------------------------- what a text says of answers

_WORDS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty"]
_NUMBER_WORD = re.compile(rf"(?<![\w-])(?:{'|'.join(_WORDS)})(?![\w-])", re.IGNORECASE)
_IN_TEXT = re.compile(r"(?<![\w.])(?:\\frac\{\d+\}\{\d+\}|\d+(?:,\d{3})*(?:\.\d+)?)(?!\w|\.\d)")
_CONCLUDES = r"(?:=|\b(?:is|be|becomes?|equals?|gets?|gives?|yields?|obtain))\s*"


def states_answer(hint: str, answer: str) -> bool:
    r"""Whether a hint gives the answer away.

    - It does if it holds the answer as a number of its own, in whatever form (3/8, 0.375, twelve),
      or as an expression, whatever the white space and dollars.
    - An answer of one digit or letter may well be a number on the way: "divide by 2". It gives
      itself away only where the hint concludes with it: "so x = 2", "this gives 2".
    """
    hint = _plain(hint.replace("**", ""))
    hint = _NUMBER_WORD.sub(lambda word: str(_WORDS.index(word[0].lower())), hint)
    hint = re.sub(r"(?<!\d)(\d+) ?/ ?(\d+)", r"\\frac{\1}{\2}", hint)
    spelt, number = spelling(answer), exact_number(spelling(answer))
    # 1. A number of two digits, or a fraction.
    if number and not (abs(number[0]) < 10 and number[0].denominator == 1):
        found = (exact_number(spelling(text)) for text in _IN_TEXT.findall(hint))
        return any(abs(other[0]) == abs(number[0]) for other in found if other)
    # 2. A digit or a letter.
    pattern = r"\s*".join(re.escape(c) for c in spelt if not c.isspace())
    if number:
        pattern = rf"[-+]?\s*{abs(number[0])}(?:\.0+)?"
    if number or len(spelt) < 2:
        return re.search(rf"{_CONCLUDES}{pattern}\W*$", hint) is not None
    # 3. An expression or a word.
    case = re.IGNORECASE if _WORD.fullmatch(spelt) else 0
    return re.search(rf"(?<![\w.]){pattern}(?!\w|\.\d)", hint, case) is not None


_NO_ANSWER = ("", "nan", "inf", "+inf", "-inf", "none", "null", "n/a", "nat", "<na>", "-", "?")
_WORKING = re.compile(r"<<|\d\s*=\s*\d.*\d\s*=\s*\d|\banswer\s+is\b|[a-z\d]{2}[.!?]\s+[A-Z]")


def final_answer(text: str) -> tuple[str, str] | None:
    """The right answer in what a data set holds, and the rule that found it.

    The rule is "GSM8K's ####", "box" (the last one of a solution) or "as it stands". None for what
    is certainly no final answer: nothing, several lines, a sentence of working, NaN. "3 or 4" may
    be both solutions of an equation, so it is an answer, and so is a list.
    """
    answer, rule = text.strip(), "as it stands"
    if "####" in text:
        answer, rule = text.rpartition("####")[2].strip(), "GSM8K's ####"
        answer = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)
    elif any(box in text for box in _BOXES):
        answer, rule = last_boxed(text) or "", "box"
    sentence = len(answer) > MAX_ANSWER or len(answer.split()) > 15 or _WORKING.search(answer)
    if sentence or len(answer.splitlines()) != 1 or answer.casefold() in _NO_ANSWER:
        return None
    return (answer, rule) if is_balanced(answer) else None


_GIVEN = r"(?:given|provided|supplied|known|shown|stated|told|expected|reference)"
_HELP = re.compile("|".join((
    r"\b(?:(?:as|by|per|with|from|using|following|to|given)\s+(?:the|this|that|your|a)\s+)?"
    r"hint(?:s|ed|ing)?\b(?:\s+(?:says?|said|suggests?|tells?|gives?|is|was)\b)?",
    rf"\b{_GIVEN}\s+(?:(?:that|the|this|your|our|final|correct|right|numerical)\s+)*answer\b",
    r"\b(?:know|knew|knowing)\s+(?:that\s+)?(?:the|this|your)\s+(?:\w+\s+)?answer\s+"
    r"(?:is|was|must|should|to)\b",
    r"\banswer\b(?:\s+(?:that|which))?\s+(?:(?:is|was|were|has been|I was|we were|you)\s+)+"
    rf"(?:already\s+)?(?:{_GIVEN}|gave)\b(?!\s+by\b)",
    r"\banswer\s+(?:given|provided|supplied)\b(?!\s+(?:by|that)\b)|\banswer\s+key\b",
    r"\b(?:match\w*|agree\w*\s+with)\s+the\s+(?:correct|right)\s+(?:final\s+)?answer\b",
    r"\b(?:for\s+(?:your|my|our)\s+)?guidance\b")), re.IGNORECASE)


def reveals_help(question: str, text: str) -> bool:
    """Whether a solution speaks of a hint or an answer that it was given.

    Words of the question do not count: in "3 hints in each of 4 rounds" they may be counted, but
    "as the hint says" counts, unless the question itself gives a hint.
    """
    asked, gives_hint = _bare_words(question), re.search(r"(?i)\bhint\b", question)
    found = [_bare_words(match[0]) for match in _HELP.finditer(text)]
    return any(words not in asked and not (gives_hint and " hint " in words) for words in found)


def _bare_words(text: str) -> str:
    """Words in lower case, without a plural's s, with a space around each."""
    words = [word.removesuffix("s") for word in re.findall(r"\w+", text.lower())]
    return f" {' '.join(words)} "
