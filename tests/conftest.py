"""Shared fixtures: the shipped pair, and small random models."""

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from heal_lab.clock_corpus import build_tokenizer  # noqa: E402
from heal_lab.pair import Recipe, new_model  # noqa: E402
from heal_ref.model import LM, load_lm  # noqa: E402
from heal_ref.records import Problem, Trajectory  # noqa: E402
from heal_ref.run.sources import load_problems  # noqa: E402
from heal_ref.tasks import ClockTask  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
collect_ignore = ["fsdp_driver.py", "kill_driver.py", "memory_driver.py", "server_driver.py"]  # programs


def run_files(folder: Path) -> dict[str, bytes]:
    """Every file of a run but its log and lock; the report without what differs from launch to launch: times, memory."""
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".tmp"]
    files = {str(p.relative_to(folder)): p.read_bytes() for p in paths}
    files.pop("log.txt")  # for people: times
    files.pop(".lock")
    report = json.loads(files.pop("report.json"))
    report["provenance"].pop("minutes")
    report["provenance"]["phases"].pop("launches")
    for phase in report["provenance"]["phases"]["measured"].values():
        del phase["minutes"], phase["GiB"]
    return files | {"report": json.dumps(report).encode()}


@pytest.fixture(scope="session")
def task():
    return ClockTask()


@pytest.fixture(scope="session")
def teacher():
    return load_lm(DATA / "teacher")


@pytest.fixture(scope="session")
def validation(task):
    return load_problems(DATA / "clock" / "validation.jsonl", task)


@pytest.fixture
def random_lm():
    """An untrained model of the clock world, a few thousand weights."""
    tokenizer = build_tokenizer()
    return LM(new_model(Recipe(hidden=32, layers=2, heads=2, lessons=()), tokenizer, seed=0).eval(), tokenizer)


@pytest.fixture
def make():
    """A hand-made trajectory: one character a token, steps cut at '|'."""

    def build(pid="p", text="ab|cd|e", entropy=None, correct=False, source="base", index=0, prompt="P:", **more):
        ends = [i + 1 for i, c in enumerate(text) if c == "|"]
        ends += [len(text)] if not ends or ends[-1] < len(text) else []
        steps = list(zip([0, *ends], ends, strict=False))
        return Trajectory(problem=Problem(pid, "q", "1"), source=source, prompt=prompt, text=text,
                          token_ids=[ord(c) for c in text], entropy=entropy or [0.5] * len(text),
                          logprob=[-0.5] * len(text), steps=steps, answer="1" if correct else "2", correct=correct,
                          finished=True, tokens_spent=len(text) + 1, index=index, **more)

    return build
