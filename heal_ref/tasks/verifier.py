"""math-verify in a process of its own, so that nothing that a model writes can hang or crash a run.

A model may write 9^{9^{9^9}}, which no computer finishes. The process has a memory limit, and an
alarm that kills it when its time is up. Run as a script, this file *is* that process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import sys
import warnings
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

MEMORY = 2**30  # bytes that the process may map; it starts with 60 MB
START_SECONDS = 60  # for importing sympy on a busy machine


def math_verify_installed() -> bool:
    """Whether math-verify can be imported; it is not imported."""
    return importlib.util.find_spec("math_verify") is not None


class Verifier:
    """One long-lived process: it starts with the first question, and ends with this object.

    A question that takes more than `seconds` or `memory` bytes, or fails, ends the process and
    counts as "not equal". The next one gets a new process (0.7 s). No question is asked twice.
    """

    def __init__(self, seconds: float = 5.0, memory: int = MEMORY) -> None:
        self.seconds, self.memory = max(seconds, 0.01), memory
        self._known: dict[tuple[str, str], bool] = {}
        self._process: Any = None
        self._usable = True

    def equal(self, gold: str, answer: str) -> bool:
        """Whether math-verify finds two LaTeX expressions equal. It drops what it cannot read."""
        if (gold, answer) not in self._known:
            self._known[gold, answer] = self._ready() and self._ask(gold, answer, self.seconds)
        return self._known[gold, answer]

    def close(self) -> None:
        """End the process, if there is one. The next question starts another."""
        process, self._process = self._process, None
        if process:
            process.kill()
            process.communicate()  # reaps it and closes its pipes

    __del__ = close

    def _ready(self) -> bool:
        if self._usable and (not self._process or self._process.poll() is not None):
            self.close()
            with contextlib.suppress(OSError):  # no room for another process
                self._process = Popen([sys.executable, "-P", __file__, str(self.memory)],
                                      stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True)
            self._usable = bool(self._process) and self._ask("1", "1", START_SECONDS)
            if not self._usable:
                warnings.warn("math-verify does not start: answers that are not numbers must be "
                              "spelled like the right one to count", RuntimeWarning, stacklevel=3)
        return self._usable

    def _ask(self, gold: str, answer: str, seconds: float) -> bool:
        reply = ""
        try:
            print(json.dumps([gold, answer, seconds]), file=self._process.stdin, flush=True)
            reply = self._process.stdout.readline()
        except OSError:
            pass
        finally:  # after Ctrl-C too: a late reply must not answer the next question
            if not reply:
                self.close()
        return reply == "true\n"


def _serve(memory: int) -> None:
    """Answer each line [gold, answer, seconds] by a line true or false, until there are no more."""
    import resource
    signal.alarm(START_SECONDS)
    replies, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not be a reply
    with contextlib.suppress(ValueError, OSError):  # not every system has the limit
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    from math_verify import parse, verify
    from sympy import N, Rational
    for line in sys.stdin:
        *texts, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        # without time limits of math-verify's own, which would use the same alarm
        gold, answer = (parse(f"${text}$", parsing_timeout=None) for text in texts)
        same = verify(gold, answer, timeout_seconds=None)
        if same:  # to 100 digits (1e-9 is not 2e-9), with letters below 0 (\sqrt{x^2} is not x)
            letters = sorted(gold[0].free_symbols | answer[0].free_symbols, key=str)
            point = {letter: Rational(-2 * k - 3, 7) for k, letter in enumerate(letters)}
            a, b = (N(side[0].subs(point).doit(), 120) for side in (gold, answer))
            same = abs(a - b) <= abs(a) * Rational(1, 10**100)
        signal.alarm(0)
        print(json.dumps(bool(same)), file=replies, flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
