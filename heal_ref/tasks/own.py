"""A task of one's own: what its methods return is checked, and what they raise is one line."""

from __future__ import annotations

import inspect
import traceback
import types
from typing import Any, get_args, get_origin, get_type_hints

from heal_ref.records import InputError, Problem
from heal_ref.tasks.base import Task

METHODS = {name: get_type_hints(method)["return"] for name, method in vars(Task).items()
           if inspect.isfunction(method)}  # name -> what it must return


class Guarded(Task):
    """Put before a class of one's own: its faults become an InputError that names the method."""

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name not in METHODS:
            return method

        def guarded(*args: Any, **more: Any) -> Any:
            try:
                value = method(*args, **more)
            except InputError:
                raise
            except (Exception, SystemExit) as e:  # somebody else's code
                raise InputError(f"the task's {name} failed ({why(e)}), {_place(method, e)}; "
                                 "repair it") from e
            empty = isinstance(value, str) and not value and name.endswith("prompt")
            if empty or not _fits(value, METHODS[name]):
                if inspect.iscoroutine(value):
                    value.close()
                must = getattr(Task, name).__annotations__["return"]
                raise InputError(f"the task's {name} returns {value!r:.60}; it must return "
                                 f"{'text that is not empty' if empty else must}")
            return value

        return guarded


def guarded(kind: type[Task]) -> type[Task]:
    """The same class with `Guarded` before it; name and module stay."""
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return types.new_class(kind.__name__, (Guarded, kind), {}, lambda body: body.update(named))


def try_out(task: Task, problem: Problem, tokenizer: Any) -> None:
    """Call each method of a guarded task once, on one problem; InputError for the first fault."""
    if not isinstance(task, Guarded):
        return
    for name in ("separator", "elicit", "unaided"):
        text = getattr(task, name)
        if not isinstance(text, str) or (name == "separator" and not text):
            raise InputError(f"the task's {name} is {text!r:.60}; it must be text"
                             f"{' that is not empty' if name == 'separator' else ''}")
    answer, other = problem.answer, task.for_tokenizer(tokenizer)
    text, written = f"{task.elicit}{answer}", ("Look at what is given.", answer)
    task.prompt(problem), other.prompt(problem)
    task.guided_prompt(problem, answer), task.hint_prompt(problem, answer, text)
    for tried in (None, answer, task.extract_answer(text), task.extract_answer("")):
        task.is_correct(problem, tried)
    task.inject(task.answer_hint(answer)), task.read_hint(*written), task.states_answer(*written)
    task.reveals_help(problem, text), other.as_reply(task.without_thoughts(text))
    task.check_steps(problem, [text]), task.is_genuine(problem, [text])


def why(error: BaseException) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"


def _place(method: Any, error: BaseException) -> str:
    """file:line of the last line of the task's module that an error passed, or of the method."""
    code = getattr(getattr(method, "__func__", method), "__code__", None)
    file, line = (code.co_filename, code.co_firstlineno) if code else ("in its module", 0)
    passed = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return f"{file}:{(passed or [line])[-1]}"


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type, its parts included."""
    parts, outer = get_args(kind), get_origin(kind)
    if outer in (tuple, list):
        return isinstance(value, outer) and (outer is list or len(value) == len(parts)) and all(
            map(_fits, value, parts if outer is tuple else parts * len(value)))
    return any(_fits(value, part) for part in parts) if parts else isinstance(value, kind)
