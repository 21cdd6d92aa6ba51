r"""Answers in mathematics: find them in a text, and compare them with the right answer.

Two answers are equal only if nothing on either side was left unread: numbers are compared exactly;
tuples, intervals, sets, lists and equations part by part; plain mathematics by math-verify, if it
is installed (`Verifier`); anything else (units, words, dates) by its spelling. What cannot be
decided counts as wrong.
"""

from __future__ import annotations

import re
from typing import Any

from heal_ref.tasks.plain_math import MAX_ANSWER, exact_number, written_in_full
from heal_ref.tasks.verifier import Verifier, math_verify_installed  # noqa: F401

_BOX = re.compile(r"\\(?:boxed|fbox) ?\{")


def closing_brace(text: str) -> int | None:
    r"""The position of the brace that closes one opened just before `text`; `\{` is no brace."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return None


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` or `\fbox{...}`; None if it is empty, open or long."""
    starts = [match.end() for match in _BOX.finditer(text)] or [len(text)]
    inside = text[starts[-1] :][: MAX_ANSWER + 1]
    end = closing_brace(inside)
    return inside[:end].strip() or None if end is not None else None


_COMMAS = r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d)"


def _without_commas(number: re.Match[str]) -> str:
    return re.sub(r"[\\,]", "", number[0])


_FONT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|sf|it)|mbox|boldsymbol|operatorname"
    r"|(?:text)?color\s*\{\w*\})\s*\{([^{}]*)\}")
_MARKS: list[tuple[str, Any]] = [  # these replacements, in this order, change no value
    (r"\\!|[\u200b\u2060\ufeff]", ""),
    (r"^\s*\*+([^*]+)\*+\s*$", r"\1"), ("[−–]", "-"), ("½", r"\\frac{1}{2}"),
    ("²", "^2"), ("³", "^3"), ("π", r"\\pi "), ("∞", r"\\infty "), ("[·⋅]", r"\\cdot "),
    ("∈", r"\\in "), ("×", r"\\times "), (r"√\s*(\d+)(?![\w.(\\])", r"\\sqrt{\1}"),
    (r"\\color\s*\{\w*\}|\\displaystyle(?![a-zA-Z])|\\?\$|\\[()\[\]]", " "),
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])", ""), (r"\\[dtc]frac", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"), (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree(?![a-zA-Z])|\bdegrees?\b", "°"),
    (r"\\%", "%"),
    (r"\^\s*(-?\d+|[a-zA-Z](?![a-zA-Z]))", r"^{\1}"), (r"_\s*(\w)(?!\w)", r"_{\1}"),
    ("\\{,\\}|[\u00a0\u202f\u2009]", r"\\,"),  # between thousands; 1,000 only if there is no more
    (r"^\s*(?:[A-Za-z]\s*=\s*)?[+-]?[1-9]\d{0,2}(?:(?:,|\\,)\d{3})+(?:\.\d*)?\s*$",
     _without_commas),  # but 0,500 may be a half
    (r"(?<![\d.,])[1-9]\d{0,2}(?:\\,\d{3})+(?![\d/])", _without_commas),
    (r"(?:\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\s)+", " "), (r"(?<!\.)\. ?$", "")]
_START, _END = r"(?:^|(?<=[(\[{,=])|(?<=[(\[{,=] ))", r"(?= ?(?:\\?[)\]},=]|$))"  # of a part
_ENDINGS = [  # once for all parts: a part that has lost its spaces may look like a number
    (rf"{_START}([+-]?\d+(?:\.\d*)?)[eE]([+-]?\d{{1,3}}){_END}", r"\1\\cdot10^{\2}"),  # 1e-9
    (r"(?<=\d) ?([eE])(?= ?[-+]| \d)", r"\\cdot \1"),  # 2e - 9 is no 2e-9
    (rf"{_START}([+-]?\d+) (\d+)/(\d+){_END}", r"\1\\frac{\2}{\3}"),  # 1 1/2
    (rf"{_START}([+-]?(?:0|[1-9]\d*)) ?/ ?([1-9]\d*){_END}", r"\\frac{\1}{\2}"),
    (r"(?<![A-Za-z]) (?![\d.])|(?<![\d.]) (?![A-Za-z])", "")]  # but "1 2" and "no w" keep theirs
_WORD = re.compile(r"(?=.{4})[A-Za-z][a-z]*[aeiouy][a-z]*|[Yy]es|[Nn]o|[Oo]dd")


def _plain(text: str) -> str:
    """The text without fonts, colours, dollars and other marks that change no value."""
    for _ in range(5):  # fonts within fonts
        text = _FONT.sub(r" \1 ", text)
    for pattern, plain in _MARKS:
        text = re.sub(pattern, plain, text, flags=re.ASCII)
    return text.strip()


def spelling(answer: str) -> str:
    r"""One spelling for what has several, such as \dfrac12 and 1/2; Tuesday is tuesday, AB not ab.
    A text that is too long for an answer stays as it is."""
    if len(answer) > MAX_ANSWER:
        return answer
    text = _plain(answer)
    if ", " in text or re.match(r"[+-]?0\d*,\d", text):  # then (1,234, 5) is not (1, 234, 5)
        text = re.sub(_COMMAS, _without_commas, text)
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "{,}", text)
    for pattern, plain in _ENDINGS:
        text = re.sub(pattern, plain, text, flags=re.ASCII)
    return _folded(text)


def _folded(part: str) -> str:
    return part.casefold() if _WORD.fullmatch(part) else part


_RELATION = re.compile(r"=|\\in(?![a-zA-Z])")
_VALUE = re.compile(
    r"^[A-Za-z](?:=|\\in(?=[(\[]))((?:\\(?:frac|sqrt|pi|cdot|infty)|[^=A-Za-z\\])+)$")
_BRACKETS = re.compile(r"(\(|\[|\\\{)(.*)(\)|\]|\\\})")


def same_answer(gold: str, answer: str, verifier: Verifier | None = None) -> bool:
    """Whether `answer` equals `gold`; without a `verifier`, only numbers and equal spellings do."""
    gold, answer = spelling(gold), spelling(answer)
    for text in (gold, answer):
        if len(text) > MAX_ANSWER or len(re.findall(r"[(\[{]", text)) > 60:
            return False
    # x = 5 answers as 5 does, and x \in (0,1) as (0,1), but y = 2x is not 2x.
    if bool(_RELATION.search(gold)) != bool(_RELATION.search(answer)):
        gold, answer = (_VALUE.sub(r"\1", text) for text in (gold, answer))
    return _same(gold, answer, verifier)


def _same(gold: str, answer: str, verifier: Verifier | None) -> bool:
    # 1. The same spelling, or two numbers.
    if gold == answer:
        return gold != ""
    numbers = exact_number(gold), exact_number(answer)
    if None not in numbers:
        return numbers[0] == numbers[1]
    # 2. Equations, tuples, intervals, sets and lists: the same kind, then part by part.
    (kind, parts), (other_kind, others) = _parts(gold), _parts(answer)
    if kind != other_kind or len(parts) != len(others):
        return False
    if parts != [gold] or others != [answer]:
        pairs = zip(map(_folded, parts), map(_folded, others), strict=True)
        return all(_same(*pair, verifier) for pair in pairs)
    # 3. Two expressions, each of them read to its end.
    first, second = written_in_full(gold), written_in_full(answer)
    if not first or not second:
        return False
    return first == second or (verifier is not None and verifier.equal(first, second))


def _parts(text: str) -> tuple[str, list[str]]:
    """The brackets, and what the commas within them separate (those of a set sorted)."""
    if len(relations := _RELATION.findall(text)) == 1:
        return relations[0], _RELATION.split(text)
    match = _BRACKETS.fullmatch(text)
    kind, inner = (match[1] + match[3], _split(match[2])) if match else ("", [])
    if not inner or (kind == "()" and len(inner) == 1):  # (5) is 5
        kind, inner = "", inner or _split(text) or [text]
    if len(inner) > 1 and any(re.match(r"[+-]?0\d", part) for part in inner):  # (1,000)
        return "", [text]
    if kind == r"\{\}":  # in any order; equal numbers get equal places
        inner.sort(key=lambda part: (str(exact_number(part)), part))
    return kind, inner


def _split(text: str) -> list[str]:
    """The text at its commas outside all brackets; nothing if the brackets do not match."""
    lines, depth = "", 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if depth < 0:
            return []
        lines += "\n" if c == "," and depth == 0 else c
    return lines.split("\n") if depth == 0 else []


_NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_NUMBERS += [tens + ones for tens in ["twen", "thir", "for", "fif", "six", "seven", "eigh", "nine"]
             for ones in ["ty", *(f"ty-{ones}" for ones in _NUMBERS[1:10])]]  # to ninety-nine
_ANY_NUMBER = "|".join(reversed(_NUMBERS)).replace("-", "[ -]")
_NUMBER_WORD = re.compile(rf"(?<![\w-])(?:{_ANY_NUMBER})(?![\w-])", re.IGNORECASE)
_PARTS = ["hal", "third", "quarter", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_AS_NUMBERS: list[tuple[str, Any]] = [  # in a hint, after its number words
    (r"\b(?:minus|negative) (?=\d)", "-"),
    (rf"(?<!\d)(\d+)[ -]({'|'.join(_PARTS)})(?:f|ves|s)?(?!\w)",
     lambda m: rf"\frac{{{m[1]}}}{{{_PARTS.index(m[2]) + 2}}}"),  # three quarters
    (r"(?<!\d)(\d+) (\d+)/(\d+)", r"\1\\frac{\2}{\3}"),
    (r"(?<!\d)(\d+) ?/ ?(\d+)", r"\\frac{\1}{\2}"),
    (r"(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?!\w)", lambda m: m[0].replace(" ", "")),
    (r"(?<=\d) and (?=[\d-])", ", ")]
_IN_TEXT = re.compile(
    r"(?<![\w.])(?:\d*\\frac\{\d+\}\{\d+\}|\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)%?"
    r"(?!\w|\.\d)")
_CONCLUDES = (
    r"(?:(?:=|\b(?:is|are|be|becomes?|equals?|gets?|gives?|yields?|leaves?|obtain)\b)"
    r"(?:\s*equal\s+to\b)?|\b(?i:so|thus|hence|therefore)\b,?(?:\s*(?:choose|pick|select)\b)?)\s*")
_CLAUSE_ENDS = r"(?:\W*$|\s?[,;:.!?)](?!\s?\d))"


def states_answer(hint: str, answer: str) -> bool:
    """Whether a hint gives the answer away, in whatever form (3/8, 0.375, twelve). A digit or a
    letter may be a step on the way ("divide by 2"): it must be the conclusion of a clause."""
    if len(answer) > MAX_ANSWER:
        return False
    hint = _plain(hint.replace("**", ""))
    hint = _NUMBER_WORD.sub(
        lambda word: str(_NUMBERS.index(word[0].lower().replace(" ", "-"))), hint)
    for pattern, plain in _AS_NUMBERS:
        hint = re.sub(pattern, plain, hint)
    spelt = spelling(answer)
    pattern = r"\s*".join(map(re.escape, spelt.replace(" ", "")))
    # 1. A number of two digits, or a fraction.
    if number := exact_number(spelt):
        size = abs(number[0])
        if size >= 10 or size.denominator > 1:
            found = (exact_number(spelling(text)) for text in _IN_TEXT.findall(hint))
            return any(abs(other[0]) == size and (other[1] != "%" or number[1] == "%")
                       for other in found if other)
        pattern = rf"[-+]?\s*{size}(?:\.0+)?(?:(?:\s+[A-Za-z]+){{1,2}}(?=\W*$))?"  # 7 apples left
    # 2. A digit or a letter.
    if number or len(spelt) < 2:
        return re.search(rf"{_CONCLUDES}{pattern}{_CLAUSE_ENDS}", hint) is not None
    # 3. An expression or a word.
    case = re.IGNORECASE if _WORD.fullmatch(spelt) else 0
    return re.search(rf"(?<![\w.]){pattern}(?!\w|\.\d)", hint, case) is not None


_LABELLED = re.compile(
    r"\W*(?:the\s+)?(?:(?:final|correct|right)\s+)*answers?\s*(?:is\b|[:=])[:\s*]*(.*?)\.?", re.I)
_PLACEHOLDER = re.compile(
    r"nan|nat|inf|infinity|n[/.]?a|null|none|nil|tbd|todo|unknown|see\s.*|not\s(?:given|available)")
_WORKING = re.compile("|".join((
    r"[\r\n]|<<|\d\s*=\s*\d.*\d\s*=\s*\d|(?i:\banswer\s+is\b|^(?:therefore|thus|hence|so)\b)",
    r"(?:[a-z\d] ?[a-z\d]|[)}$])[.!?]\s+[A-Z]",  # several sentences
    r"^(?=.*[.!?]$)(?:.*?(?<![\\A-Za-z])[A-Za-z]{2,}){3}",  # three words and an end mark
    r"^#|^[\[{(\s]*[\"'“]|\\(?:boxed|fbox)",  # a heading, JSON, a box without braces
    r"(?:/\s*|\\[dtc]?frac\s*\{[^{}]*\}\s*\{\s*)0+(?!\d|\.\d)")))  # a division by zero


def final_answer(text: str) -> tuple[str, str] | None:
    """The right answer in what a data set holds, and the rule that found it; None if it is none."""
    answer, rule = text.strip(), "as it stands"
    if "####" in text:
        answer, rule = text.rpartition("####")[2].strip(), "GSM8K's ####"
        answer = re.sub(_COMMAS, _without_commas, answer)
    elif _BOX.search(text):
        answer, rule = last_boxed(text) or "", "box"
    if label := _LABELLED.fullmatch(answer):
        answer, rule = label[1], "label"
    if len(answer) > MAX_ANSWER or len(answer.split()) > 15 or _WORKING.search(answer):
        return None
    plain = _plain(answer)
    brackets = len(re.findall(r"[(\[]", plain)) == len(re.findall(r"[)\]]", plain))  # also (0,1]
    if not brackets or closing_brace(answer + "}") != len(answer):
        return None
    words = re.sub(r"^[\W_]+|[\W_]+$", "", plain.casefold())  # a NaN has many spellings
    return None if not words or _PLACEHOLDER.fullmatch(words) else (answer, rule)


_GIVEN = r"(?:given|provided|supplied|known|shown|stated|told|expected|reference)"
_HELP = re.compile("|".join((
    r"\b(?:(?:as|by|per|with|from|using|following|to|given)\s+(?:the|this|that|your|a)\s+)?"
    r"hint(?:\b|(?:s|ed|ing)\b(?!\s+at\b))(?:\s+(?:says?|said|suggests?|tells?|gives?|is|was)\b)?",
    rf"\b{_GIVEN}\s+(?:(?:that|the|this|your|our|final|correct|right|numerical)\s+)*answer\b",
    r"\b(?:know|knew|knowing)\s+(?:\w+\s+){1,3}answer\s+(?:is|was|must|should|to)\b",
    rf"\banswer\s+(?:(?:that|which|is|was|were|has|been|I|we|you|already)\s+)*(?:{_GIVEN}|gave)\b"
    r"(?!\s+(?:by|that)\b)|\banswer\s+key\b|\b(?:for\s+(?:your|my|our)\s+)?guidance\b",
    r"\bwork\w*\s+backwards?\s+from\s+(?:the|this|that)\s+(?:\w+\s+)?(?:result|answer|solution)\b",
    r"\banswer\s+(?:is|was)\s+(?:supposed|meant)\s+to\b|\bdesired\s+(?:\w+\s+)?answer\s+of\b",
    r"\bwithout\s+(?:mention|reveal|stat|disclos)ing\s+(?:\w+\s+){0,2}answer\b",
    r"\b(?:match\w*|agree\w*\s+with)\s+the\s+(?:correct|right)\s+(?:final\s+)?answer\b")), re.I)


def reveals_help(question: str, text: str) -> bool:
    """Whether a solution speaks of help that it was given; words of the question do not count."""
    def bare(text: str) -> str:  # in lower case, without a plural's s, with a space around each
        words = [word.removesuffix("s") for word in re.findall(r"\w+", text.lower())]
        return f" {' '.join(words)} "

    asked, gives_hint = bare(question), re.search(r"(?i)\bhint\b", question)
    found = [bare(match[0]) for match in _HELP.finditer(text)]
    return any(words not in asked and not (gives_hint and " hint " in words) for words in found)
