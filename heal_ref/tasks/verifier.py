"""math-verify in a process of its own, so that nothing that a model writes can hang or crash a run.

A model may write 9^{9^{9^9}}, which no computer finishes. The process has a memory limit, and it is
killed when its time is up. Run as a script, this file *is* that process. It imports nothing of the
package, so it starts in under a second.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import mmap
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref

MEMORY = 2**30  # bytes that the process may map; it starts with 60 MB
START_SECONDS = 60.0  # for importing sympy on a busy machine


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
    """One long-lived process: it starts with the first question, and ends with this object.

    A question that takes longer than `seconds` kills the process and counts as "not equal"; so
    does one that needs more than `memory` bytes, or crashes. The next question gets a new process
    (0.7 s). No question is asked twice.
    """

    def __init__(self, seconds: float = 5.0, memory: int = MEMORY) -> None:
        self.seconds, self.memory = seconds, memory
        self._known: dict[str, bool] = {}
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._unusable = False

    def equal(self, gold: str, answer: str) -> bool:
        """Whether math-verify finds two LaTeX expressions equal. It drops what it cannot read."""
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
        if used and not reply and left > 0 and self._start():  # the process may have died before
            reply = self._exchange(question, left)
        return reply == "true\n"

    def _start(self) -> bool:
        """Start a new process; False, with a warning the first time, if that fails."""
        if not self._unusable:
            with contextlib.suppress(OSError):
                command = [sys.executable, "-P", __file__, str(self.seconds), str(self.memory)]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL, text=True, encoding="utf-8")
                self._finalizer = weakref.finalize(self, _end, self._process)
                if self._exchange("", START_SECONDS):  # "ready"
                    return True
            self._unusable = True
            warnings.warn(
                "math-verify is installed, but its process does not start: from now on answers "
                "that are not numbers must be spelled like the right one to count",
                RuntimeWarning, stacklevel=2)
        return False

    def _exchange(self, line: str, seconds: float) -> str:
        """Write a line and read the reply; "" if the process died or had to be killed."""
        process, reply = self._process, ""
        if not (process and process.stdin and process.stdout):  # it was never started
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
    """Memory that this process maps, which is what its limit counts; 0 if the system hides it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as f:
            return int(f.read().split()[0]) * mmap.PAGESIZE
    except OSError:
        return 0


def _close(gold, answer) -> bool:
    """Whether two sympy expressions agree to 100 digits, with each letter set to two values."""
    from sympy import N, Rational
    letters = sorted(gold.free_symbols | answer.free_symbols, key=str)
    for sign in (1, -1):
        point = {letter: sign * Rational(2 * k + 3, 7) for k, letter in enumerate(letters)}
        a, b = (N(side.subs(point).doit(), 120) for side in (gold, answer))
        if not abs(a - b) <= abs(a) * Rational(1, 10**100):  # relative: 1e-9 is not 2e-9
            return False
    return True


def _serve(seconds: float, memory: int) -> None:
    """Answer each line [gold, answer] by a line true or false, until there are no more."""
    replies, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not be a reply
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has the limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    from math_verify import parse, verify
    alarm = getattr(signal, "alarm", int)  # ends this process in case its parent is gone
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        alarm(int(seconds) + 2)
        try:  # without time limits of the library's own: they would use the same alarm
            gold, answer = (parse(f"${text}$", parsing_timeout=None) for text in json.loads(line))
            same = verify(gold, answer, timeout_seconds=None) and _close(gold[0], answer[0])
        except Exception:
            same = False
        alarm(0)
        print(json.dumps(bool(same)), file=replies, flush=True)
        if _mapped_bytes() > memory / 2:
            break  # sympy kept much of the last question: the next one gets a new process


if __name__ == "__main__":
    _serve(float(sys.argv[1]), int(sys.argv[2]))
