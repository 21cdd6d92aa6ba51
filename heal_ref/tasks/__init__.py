"""Tasks: the one place that knows prompts, hints, steps and answers."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

from heal_ref.records import InputError
from heal_ref.tasks.base import Task
from heal_ref.tasks.chat import ChatMathTask
from heal_ref.tasks.clock import ClockTask
from heal_ref.tasks.own import guarded, why

__all__ = ["ChatMathTask", "ClockTask", "Task", "task_for"]


def task_for(name: str, tokenizer: Any) -> Task:
    """The task "chat", "clock", or "package.module:ClassName" (a task of one's own, imported from
    the current directory too), for a model with this tokenizer.

    "auto" is chat if there is a chat template, the clock world for that world's tokenizer, and an
    InputError for any other.
    """
    auto = name == "auto"
    if name == "chat" or (auto and getattr(tokenizer, "chat_template", None)):
        return ChatMathTask(tokenizer)
    if name == "clock" or (auto and _is_clock(tokenizer)):
        return ClockTask()
    if auto:
        raise InputError("no task was chosen, and the tokenizer does not decide it: it has no chat "
                         "template and is not the clock world's; choose --task chat (needs a chat "
                         "template) or --task package.module:ClassName (a task of your own)")
    return _own_task(name, tokenizer)


def _is_clock(tokenizer: Any) -> bool:
    """Whether a tokenizer can write a clock problem, and not much else."""
    clock, prose = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (
        "Problem: Start 22; # 4; ^ 9\nSolution:\n", "Marie buys three apples."))
    return tokenizer.unk_token_id in prose and tokenizer.unk_token_id not in clock


def _own_task(name: str, tokenizer: Any) -> Task:
    """A task of one's own, by module and class; InputError for whatever is wrong with it."""
    module, _, kind_name = name.partition(":")
    if not (module and kind_name):
        raise InputError(f"there is no task {name!r}; choose auto, chat, clock, or "
                         "package.module:ClassName for a task of your own")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        kind = getattr(importlib.import_module(module), kind_name, None)
    except (Exception, SystemExit) as e:  # somebody else's code
        raise InputError(f"the task {name!r} cannot be imported ({why(e)}); repair the module, or "
                         "start where it can be found") from e
    if not (inspect.isclass(kind) and issubclass(kind, Task)):
        what = "is no heal_ref.Task" if kind else "is not in that module"
        raise InputError(f"the task {name!r} {what}; name a class that extends heal_ref.Task")
    needed = ("prompt", "extract_answer", "is_correct")
    if missing := [m for m in needed if getattr(kind, m) is getattr(Task, m)]:
        raise InputError(f"the task {name!r} does not define {', '.join(missing)}; define the "
                         f"three methods {', '.join(needed)}")
    wants = "tokenizer" in inspect.signature(kind).parameters
    try:
        return guarded(kind)(**({"tokenizer": tokenizer} if wants else {}))
    except InputError:
        raise
    except (Exception, SystemExit) as e:  # somebody else's code
        raise InputError(f"the task {name!r} cannot be built ({why(e)}); its constructor may take "
                         "`tokenizer`, and nothing else without a default") from e
