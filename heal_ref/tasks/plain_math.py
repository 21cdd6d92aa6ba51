r"""Plain mathematics: read a number or an expression to its last character, or refuse it.

math-verify reads the part of a text that it understands and drops the rest: to it, 2s is 2, and
12\sqrt(5) is 12. So it only sees what was read here first, and written in full: 2\sqrt3 becomes
2 \cdot \sqrt{3}, 0.5 becomes \frac{05}{10}, and a letter gets a name with no other meaning.
What is not in this grammar (units, words, dates, f(x)), or is unclear (1/2x), is refused.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_NUMBER = 500  # characters

_DECIMAL = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+))(?:\\(?:cdot|times)10\^\{([+-]?\d{1,3})\})?([%°]?)", re.ASCII)
_FRACTION = re.compile(r"([+-]?)(\d*)\\frac\{([+-]?\d+)\}\{(0*[1-9]\d*)\}([%°]?)", re.ASCII)


def exact_number(text: str) -> tuple[Fraction, str] | None:
    """The exact value of a number in its one spelling, and its mark: "%", "°" or none."""
    if len(text) > MAX_NUMBER:
        return None
    if match := _DECIMAL.fullmatch(text):
        return Fraction(match[1]) * Fraction(10) ** int(match[2] or 0), match[3]
    if match := _FRACTION.fullmatch(text):
        value, whole = Fraction(int(match[3]), int(match[4])), int(match[2] or 0)
        if match[2] and not 0 <= value < 1:  # no mixed number
            return None
        return (-1 if match[1] == "-" else 1) * (whole + value), match[5]
    return None


_TOKEN = re.compile(
    r"\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|[A-Za-z](?:_\{\w\})?|[-+*/^_(){}\[\]]", re.ASCII)
_GREEK = r"\\(?:alpha|beta|delta|epsilon|theta|lambda|mu|pi|rho|sigma|tau|phi|omega)"
_FUNCTION = re.compile(r"\\(?:ln|log|(?:arc)?(?:sin|cos|tan)|cot|sec|csc)")
_UNCLEAR = re.compile(
    r"^\d+((-\d+)+|((\*|\\cdot|\\times)\d+)+)$"  # a score, pages, a date; a matrix's size
    r"|[A-Z](?:_\{\w\})?(?:\^\{[^{}]*\})?(?:\\cdot ?|\*| )?[A-Z]"  # AB is not BA
    r"|(?<![\\A-Za-z])[A-Za-z]\\times"
    r"|(?<![\d.])0\d|(?<![\d.])1 ?[A-Za-z]"  # part of a date; 1A is a name
    r"|(?<![\\A-Za-z])(?![xyz ]+(?![A-Za-z ]))[A-Za-z] ?[A-Za-z]"  # 7 cm, but 7xy
    rf"|(?<![\\A-Za-z])(?P<f>[A-Za-z])(?:_{{\w}})?\((?![^()]*(?P=f))|{_GREEK}\("  # f(x), but n(n+1)
    r"|\d\\frac\{\d", re.ASCII)  # 2\frac{3}{2}
_END = ("", "+", "-", ")", "}", "]")


class _Unread(Exception):
    """The text is no plain mathematics, or it can be read in two ways."""


class _Reader:
    """Reads an expression from its tokens, and writes it in full: dots, brackets, exact decimals.

    Each method reads what its name says, and raises `_Unread` at what it does not know.
    """

    def __init__(self, text: str) -> None:
        self.tokens = [*_TOKEN.findall(text), ""]  # "" is the end
        self.bare = False  # whether the last factor was like \ln 2, without brackets
        if _UNCLEAR.search(text) or "".join(self.tokens) != text.replace(" ", ""):
            raise _Unread
        self.tokens.reverse()
        self.latex = self.sum()
        self.take("")

    def take(self, expected: str | None = None) -> str:
        if expected not in (None, self.tokens[-1]):
            raise _Unread
        return self.tokens.pop()

    def group(self, opening: str = "{", closing: str = "}") -> str:
        self.take(opening)
        inside = self.sum()
        self.take(closing)
        self.bare = False
        return inside

    def sum(self) -> str:
        written = self.take() if self.tokens[-1] in ("+", "-") else ""
        written += self.product()
        while self.tokens[-1] in ("+", "-"):
            written += self.take() + self.product()
        return written

    def product(self) -> str:
        written = self.power()
        while (token := self.tokens[-1]) not in _END:
            if self.bare or token[0] in ".0123456789":  # \ln 2x and x2 are unclear
                raise _Unread
            if token == "/":
                self.take()
                written = rf"\frac{{{written}}}{{{self.power()}}}"
                if self.tokens[-1] not in _END:  # 1/2x is unclear
                    raise _Unread
            else:
                if token in ("*", r"\cdot", r"\times"):
                    self.take()
                written += rf" \cdot {self.power()}"
        return written

    def power(self) -> str:
        base = self.atom()
        if self.tokens[-1] != "^":
            return base
        if self.bare:
            raise _Unread
        self.take()
        exponent = self.group()
        if self.tokens[-1] == "^":
            raise _Unread
        return rf"\left({base}\right)^{{{exponent}}}"

    def atom(self) -> str:
        # 1. An expression in brackets.
        if self.tokens[-1] == "(":
            return rf"\left({self.group('(', ')')}\right)"
        token = self.take()
        self.bare = False
        # 2. A number; 0.25 becomes a fraction, because math-verify rounds decimals.
        if token[:1] in tuple(".0123456789"):
            whole, _, decimals = token.partition(".")
            return rf"\frac{{{whole}{decimals}}}{{{10 ** len(decimals)}}}" if decimals else token
        # 3. A letter, as x_{...} with its code: math-verify would read "2s" as two seconds.
        if token in ("e", r"\pi"):
            return token
        if token[:1].isalpha() or re.fullmatch(_GREEK, token):
            return f"x_{{{''.join(f'{ord(c):03}' for c in token)}}}"
        # 4. A fraction or a root.
        if token == r"\frac":
            return rf"\frac{{{self.group()}}}{{{self.group()}}}"
        if token == r"\sqrt":
            index = f"[{self.group('[', ']')}]" if self.tokens[-1] == "[" else ""
            inside = self.group("(", ")") if self.tokens[-1] == "(" else self.group()
            return rf"\sqrt{index}{{{inside}}}"
        # 5. A function. The logarithm needs its base: \log 100 may be 2 or 4.6.
        if not _FUNCTION.fullmatch(token):
            raise _Unread
        if token == r"\log":
            token += self.take("_") + f"{{{self.group()}}}"
        bare = self.tokens[-1] != "("
        inside = self.atom()
        if self.bare or self.tokens[-1] == "^":  # \ln\ln 2; \ln 2^3
            raise _Unread
        self.bare = bare
        return rf"{token}\left({inside}\right)"


def written_in_full(text: str) -> str | None:
    """The expression in one spelling (`spelling`) as unmistakable LaTeX; None if it is refused."""
    try:
        return _Reader(text).latex
    except (_Unread, RecursionError):
        return None
