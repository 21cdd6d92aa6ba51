r"""Answers in mathematics: find the box in a solution, and compare what stands in it with the right answer.

- Two integers are compared as integers, here and at once; so are two answers that are spelt alike.
- Anything else is asked of math-verify, if it is installed, in a process of its own (`Verifier`). A model may write
  9^{9^{9^9}}, which no computer finishes: the process has a memory limit and is killed when its time is up.
- What cannot be decided counts as wrong. Nothing that a model writes can raise an error here, or hang.

Run as a script, this file *is* that process; so it imports nothing of the package, and starts in under a second.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import mmap
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref

MAX_ANSWER = 500  # characters; whatever is longer is no final answer
MEMORY = 2**30  # bytes that the comparing process may map; it starts with 60 MB
START_SECONDS = 60.0  # for importing sympy on a busy machine

_BOXES = ("\\boxed{", "\\boxed {", "\\fbox{", "\\fbox {")
_DRESS = re.compile(r"\${1,2}([^$]*)\${1,2}|\\\((.*)\\\)|\\\[(.*)\\\]|\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}", re.DOTALL)
_INTEGER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:,\d{3})+)", re.ASCII)
_SPELLINGS = [(re.compile(pattern), plain) for pattern, plain in (
    (r"\\?\$|\\[!,;: ]|\\(?:left|right)(?![a-zA-Z])", ""), (r"\\[dt]frac", r"\\frac"), (r"−", "-"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"), (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    (r"(?<!\d)\s+|\s+(?!\d)", ""),  # but 1 1/2 is not 11/2
    (r"^([+-]?\d+)/(\d+)$", r"\\frac{\1}{\2}"))]


def closing_brace(text: str) -> int | None:
    r"""Where the brace stands that closes one opened just before `text`; None if there is none. `\{` does not count."""
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
    r"""What stands in the last `\boxed{...}` (or `\fbox{...}`), nested braces included.

    None if there is no box, or if the last one is empty, never closed, or longer than `MAX_ANSWER` characters. Linear
    time: one search from the end for each spelling, then at most `MAX_ANSWER` characters are read.
    """
    start = max((at + len(box) for box in _BOXES if (at := text.rfind(box)) >= 0), default=len(text))
    inside = text[start : start + MAX_ANSWER + 1]
    end = closing_brace(inside)
    return inside[:end].strip() or None if end is not None else None


def undressed(answer: str) -> str:
    r"""Without what changes nothing: white space and dollars around it, \( \), \text{}, a full stop at its end."""
    text = answer.strip().removesuffix(".")
    while match := _DRESS.fullmatch(text):
        text = match[match.lastindex or 0].strip().removesuffix(".")
    return text


def as_integer(answer: str) -> int | None:
    """The integer that is written as 7, +7, 007, 1,000, 1{,}000, $7$ or 7.; None for anything else, 7.0 included."""
    text = undressed(answer).replace("−", "-").replace("{,}", ",").replace("\\,", ",")
    return int(text.replace(",", "")) if len(text) <= MAX_ANSWER and _INTEGER.fullmatch(text) else None


def spelling(answer: str) -> str:
    r"""One spelling for what is often spelt in several ways: \dfrac12, \frac{1}{2} and 1/2; no white space, no \left."""
    text = undressed(answer)
    for pattern, plain in _SPELLINGS:
        text = pattern.sub(plain, text)
    return text.casefold() if _is_word(text) else text


def _is_word(text: str) -> bool:
    """Tuesday is a word; to math-verify it would be a product of seven letters in any order."""
    return len(text) > 2 and text.isalpha()


def same_answer(gold: str, answer: str, verifier: Verifier | None = None) -> bool:
    """Whether `answer` equals the right answer `gold`; without a `verifier`, whether they are spelt alike.

    Never raises. An answer of more than `MAX_ANSWER` characters is wrong.
    """
    if max(len(gold), len(answer)) > MAX_ANSWER:
        return False
    whole = as_integer(gold), as_integer(answer)
    if None not in whole:
        return whole[0] == whole[1]
    alike = spelling(gold), spelling(answer)
    if alike[0] == alike[1] or not verifier or not all(alike) or _is_word(alike[0]):
        return alike[0] == alike[1] != ""
    return verifier.equal(gold, answer)


# ------------------------------------------------------------------------------- a process for math-verify


def math_verify_installed() -> bool:
    """Whether math-verify can be imported; it is not imported."""
    return importlib.util.find_spec("math_verify") is not None


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for pipe in filter(None, (process.stdin, process.stdout)):
        with contextlib.suppress(OSError):
            pipe.close()


class Verifier:
    """math-verify at arm's length: one long-lived process, started when first asked, ended with this object or program.

    A question that takes longer than `seconds` kills the process and counts as "not equal"; so does one that needs more
    than `memory` bytes, or crashes. The next question gets a new process (0.7 s). No question is asked twice.
    """

    def __init__(self, seconds: float = 5.0, memory: int = MEMORY) -> None:
        self.seconds, self.memory = seconds, memory
        self._known: dict[str, bool] = {}
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._unusable = False

    def equal(self, gold: str, answer: str) -> bool:
        """Whether math-verify finds `answer` equal to `gold`. It is not symmetric: the right answer comes first."""
        question = json.dumps([gold, answer]) + "\n"
        with self._lock:
            if question not in self._known:
                self._known[question] = self._ask(question)
            return self._known[question]

    def close(self) -> None:
        """End the process, if there is one. The next question starts another."""
        if self._process:
            self._process = None
            self._finalizer()

    def _ask(self, question: str) -> bool:
        used, began = self._process is not None, time.monotonic()
        reply = self._exchange(question, self.seconds) if used or self._start() else ""
        left = self.seconds - (time.monotonic() - began)
        if used and not reply and left > 0 and self._start():  # it may have died before it was asked
            reply = self._exchange(question, left)
        return reply == "true\n"

    def _start(self) -> bool:
        """A new process; False, with a warning the first time, if there can be none."""
        if not self._unusable:
            with contextlib.suppress(OSError):
                command = [sys.executable, "-P", __file__, str(self.seconds), str(self.memory)]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                                 stderr=subprocess.DEVNULL, text=True, encoding="utf-8")
                self._finalizer = weakref.finalize(self, _end, self._process)
                if self._exchange("", START_SECONDS):  # "ready"
                    return True
            self._unusable = True
            warnings.warn("math-verify is installed, but its process does not start: from now on answers that are not "
                          "integers must be spelt like the right one to count", RuntimeWarning, stacklevel=2)
        return False

    def _exchange(self, line: str, seconds: float) -> str:
        """Write a line, read the reply; "" if the process died or had to be killed."""
        process, reply = self._process, ""
        if not (process and process.stdin and process.stdout):  # nobody has started it
            return reply
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            reply = process.stdout.readline()
        except OSError:
            pass
        finally:
            timer.cancel()
            if not reply.endswith("\n"):
                self.close()
        return reply


def _mapped_bytes() -> int:
    """Memory that this process maps, which is what its limit counts; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as f:
            return int(f.read().split()[0]) * mmap.PAGESIZE
    except OSError:
        return 0


def _serve(seconds: float, memory: int) -> None:
    """What the process does: for each line [gold, answer] a line true or false, until there are no more."""
    replies, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not look like a reply
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit, and not every system grants it
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    from math_verify import parse, verify
    alarm = getattr(signal, "alarm", int)  # ends this process in case the one that should kill it is gone
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        alarm(int(seconds) + 2)
        try:  # no time limits of the library's own: they would want the alarm for themselves
            gold, answer = (parse(f"${text.replace('$', ' ')}$", parsing_timeout=None) for text in json.loads(line))
            same = verify(gold, answer, timeout_seconds=None)
        except Exception:
            same = False
        alarm(0)
        print(json.dumps(bool(same)), file=replies, flush=True)
        if _mapped_bytes() > memory / 2:
            break  # sympy kept much of the last question, the next might have too little: it gets a new process


if __name__ == "__main__":
    _serve(float(sys.argv[1]), int(sys.argv[2]))
