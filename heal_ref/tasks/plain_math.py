r"""Plain mathematics: read a number or an expression to its last character, or refuse it.

math-verify drops what it does not understand: to it, 2s is 2, and 12\sqrt(5) is 12. So it only
sees what was read here, and written in full: 2\sqrt3 becomes 2 \cdot \sqrt{3}, 0.5 becomes
\frac{1}{2}. What is not in this grammar (units, words, functions), or unclear (1/2x), is refused.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_ANSWER = 500  # characters; a longer text is no final answer

_DECIMAL = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+))(?:\\(?:cdot|times)10\^\{([+-]?\d{1,3})\})?([%°]?)", re.ASCII)
_FRACTION = re.compile(  # but 08/09 is a date
    r"([+-]?)(\d*)\\frac\{([+-]?(?:0|[1-9]\d*))\}\{([1-9]\d*)\}([%°]?)", re.ASCII)


def exact_number(text: str) -> tuple[Fraction, str] | None:
    """The exact value of a number in its one spelling, and its mark: "%", "°" or none."""
    if len(text) > MAX_ANSWER:
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
    r"\d+(?:\.\d+)?|\\[A-Za-z]+|[-+*/^_(){}\[\]]"
    r"|[a-z]_\{\w\}|[xyz]"  # xy is a product, but ab may be a name, and cm is a unit
    r"|(?<![A-Za-z])[abcekmnpqrt](?![A-Za-z])", re.ASCII)
_PLAIN = r"(?:\d+\.?\d*(?:/\d+)?|\.\d+|\\frac\{\d+\}\{\d+\})"
_UNCLEAR = re.compile(
    rf"^[+-]?{_PLAIN}(?:(?:-{_PLAIN})+|(?:(?:\*|\\cdot|\\times){_PLAIN})+)$"  # a range, a size
    r"|(?<![\d.])0\d|^[A-Za-z ]{2,}$"  # a date, a name
    r"|(?<![\\A-Za-z])[a-z]\\times"  # of vectors?
    r"|(?<![\\A-Za-z])([a-z])(?:_\{\w\})?\((?![^()]*\1)|\\(?!cdot|times)[a-z]+\("  # p(x)
    r"|\d\\frac\{\d", re.ASCII)  # 2\frac{3}{2}


class _Reader:
    """Reads an expression; each method writes what its name says in full, or raises ValueError."""

    def __init__(self, text: str) -> None:
        tokens = _TOKEN.findall(text)
        if _UNCLEAR.search(text) or "".join(tokens) != text.replace(" ", ""):
            raise ValueError
        self.tokens = ["", *reversed(tokens)]  # "" is the end; the next token is the last

    def sum(self, closing: str = "") -> str:
        """A sum, and the token that ends it."""
        written = "" if self.tokens[-1] in ("+", "-") else self.product()
        while (token := self.tokens.pop()) != closing:
            if token not in ("+", "-"):
                raise ValueError
            written += token + self.product()
        return written

    def group(self, brackets: str = "{}") -> str:
        if self.tokens.pop() != brackets[0]:
            raise ValueError
        return self.sum(brackets[1])

    def product(self) -> str:
        written = self.power()
        while self.tokens[-1] not in ("", "+", "-", "/", ")", "}", "]"):
            if self.tokens[-1] in ("*", r"\cdot", r"\times"):
                self.tokens.pop()
            elif self.tokens[-1][0].isdigit():  # x2 is unclear
                raise ValueError
            written += rf" \cdot {self.power()}"
        if self.tokens[-1] == "/":  # then the product is over: no one reads the x of 1/2x
            self.tokens.pop()
            written = rf"\frac{{{written}}}{{{self.power()}}}"
        return written

    def power(self) -> str:
        base = self.atom()
        if self.tokens[-1] != "^":
            return base
        self.tokens.pop()
        return rf"\left({base}\right)^{{{self.group()}}}"

    def atom(self) -> str:
        if self.tokens[-1] == "(":
            return rf"\left({self.group('()')}\right)"
        token = self.tokens.pop()
        # 1. A number; 0.25 becomes a fraction, because math-verify rounds decimals.
        if token[:1].isdigit():
            value = Fraction(token)
            return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
        # 2. A letter, as x_{...} with its code: math-verify would read "2s" as two seconds.
        if token[:1].isalpha() or token in (r"\pi", r"\theta", r"\alpha", r"\beta"):
            code = "".join(f"{ord(c):03}" for c in token)
            return token if token in ("e", r"\pi") else f"x_{{{code}}}"
        if token == r"\sqrt":
            index = f"[{self.group('[]')}]" if self.tokens[-1] == "[" else ""
            return rf"\sqrt{index}{{{self.group()}}}"
        if token == r"\frac":
            return rf"\frac{{{self.group()}}}{{{self.group()}}}"
        raise ValueError


def written_in_full(text: str) -> str | None:
    """The expression in one spelling (`spelling`) as unmistakable LaTeX; None if it is refused."""
    try:
        return _Reader(text).sum()
    except (ValueError, RecursionError):
        return None
