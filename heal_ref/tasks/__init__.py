"""Tasks: the one place that knows prompts, hints, steps and answers."""

from __future__ import annotations

from typing import Any

from heal_ref.tasks.base import Task
from heal_ref.tasks.chat import ChatMathTask
from heal_ref.tasks.clock import ClockTask


def task_for(name: str, tokenizer: Any) -> Task:
    """The task by its name; "auto" is chat if the tokenizer has a chat template, else the clock world."""
    if name == "auto":
        name = "chat" if getattr(tokenizer, "chat_template", None) else "clock"
    return ChatMathTask(tokenizer) if name == "chat" else ClockTask()


__all__ = ["ChatMathTask", "ClockTask", "Task", "task_for"]
