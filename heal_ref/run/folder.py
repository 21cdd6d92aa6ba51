"""A folder of shards that survives being killed and belongs to one run, in one launch at a time.

A shard is the work of one batch (`shards.py`). `config.json` is the run's identity. The system
releases `.lock` when the process ends or is killed.
"""

import hashlib
import inspect
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from heal_ref.config import HealConfig
from heal_ref.model import LM, processes
from heal_ref.records import InputError, Problem, read_json, write_text
from heal_ref.run.shards import Records, write_shard
from heal_ref.tasks.base import Task

SHARDS = ("[1-6]-*/*.parquet", "[1-6]-*/*/*.parquet")


def short_hash(content: Any) -> str:
    """Sixteen hexadecimal digits for plain JSON types."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def tokenizer_hash(tokenizer: Any) -> str:
    """A hash of a tokenizer's rules, vocabulary, special tokens and chat template."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    rules |= {"padding": None, "truncation": None}  # settings of the last call
    return short_hash([rules, tokenizer.get_vocab(), str(tokenizer.chat_template),
                       list(map(str, tokenizer.all_special_tokens))])


def task_source(task: Task) -> str:
    """A hash of the modules that define a task and of those that they import from their folders,
    or of the code of a class typed at a prompt."""
    files, text = list[Path](), list[str]()
    for kind in type(task).__mro__[:-1]:
        try:
            file = Path(inspect.getfile(kind))
        except (OSError, TypeError):
            file = Path("<a prompt>")
        if not file.is_file():
            functions = filter(inspect.isfunction, vars(kind).values())
            text += [f.__code__.co_code.hex() for f in functions]
        elif file not in files:
            files.append(file)
    for path in files:  # it grows
        text.append(path.read_text(encoding="utf-8"))
        for line in re.findall(r"^\s*(?:from|import)\s.*", text[-1], re.MULTILINE):
            beside = [path.parent / f"{word}.py" for word in re.findall(r"\w+", line)]
            files += [p for p in beside if p.is_file() and p not in files]
    return short_hash(text)


def by_value(value: Any) -> Any:
    """Plain values, and lists, tuples and dicts of them, as JSON has them; else the type's name."""
    if isinstance(value, dict):
        return {str(key): by_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [by_value(inner) for inner in value]
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def rendered(task: Task, problem: Problem) -> dict[str, str]:
    """The three prompts of one problem. A template that inserts today's date changes them."""
    return {"plain prompt": task.prompt(problem),
            "guided prompt": task.guided_prompt(problem, problem.answer),
            "hint prompt": task.hint_prompt(problem, problem.answer, "")}


def identity(config: HealConfig, task: Task, models: Mapping[str, LM],
             problems: Mapping[str, Sequence[Problem]]) -> dict[str, Any]:
    """Everything that decides the result of a run: what it is, in words -> its value."""
    verifier = [d.version for d in metadata.distributions() if d.name == "math-verify"]
    flat: dict[str, Any] = {"version of heal_ref": metadata.version("heal_ref"),
                            "version of math-verify": "".join(verifier) or "not installed"}
    for name, lm in models.items():
        flat[f"weights of the {name}"] = lm.weights
        flat[f"tokenizer of the {name}"] = tokenizer_hash(lm.tokenizer)
        flat[f"end tokens of the {name}"] = list(lm.ends)
        if lm.server:  # at whatever address
            flat[f"sampling of the {name}"] = "by a server"
        lm.free()  # so that no two are in memory together
    for name, mine in problems.items():
        flat[f"{name} problems"] = f"{len(mine)}, {short_hash([vars(p) for p in mine])}"
    flat["task"] = f"{type(task).__module__}.{type(task).__qualname__}"
    flat["source of the task"] = task_source(task)
    for key, value in vars(task).items():
        flat[f"task.{key}"] = by_value(value)
    for key, value in asdict(config).items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{key}.{name}".rstrip("."): v for name, v in inner}
    return flat | rendered(task, next(iter(problems.values()))[0])


def shard_seed(seed: int, stage: str, number: int) -> int:
    """The seed of one shard: 31 bits of a hash, so that neighbouring shards share nothing."""
    digest = hashlib.sha256(f"{seed}/{stage}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """`items` in consecutive parts of `size`, the last one shorter: the work of one shard each."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def refuse_old(path: Path) -> None:
    """InputError if a folder holds the records of an older version."""
    if found := next((f for pattern in SHARDS for f in path.glob(pattern[:-7] + "jsonl")), None):
        raise InputError(f"{path} holds records of an older version ({found.relative_to(path)}), "
                         "which kept them as JSON Lines; use another --out, or delete the folder")


class RunFolder:
    """A folder of shards with one identity. Of several processes (`torchrun`, `accelerate launch`)
    each makes a part of the missing shards, and all read all. `watch` gives the part of `identity`
    that may change by itself: the rendered prompts."""

    def __init__(self, path: str | Path, identity: Mapping[str, Any], quiet: bool = False,
                 watch: Callable[[], Mapping[str, Any]] = dict) -> None:
        self.state = processes()
        self.path, self.quiet = Path(path), quiet or not self.state.is_main_process
        self.identity, self.watch = json.loads(json.dumps(identity)), watch
        self.name = short_hash(self.identity)  # shards of another run are refused
        self.lock = FileLock(self.path / ".lock", is_singleton=True)
        with self.state.main_process_first():
            if self.state.is_main_process:
                self._claim()

    def _claim(self) -> None:
        """Lock the folder, and write or compare its config.json; InputError if it is of others."""
        self.path.mkdir(parents=True, exist_ok=True)
        holder, recorded = self.path / ".lock", self.path / "config.json"
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{self.path} is in use by {holder.read_text(encoding='utf-8')}; wait "
                             "until it ends, stop it, or use another --out") from None
        refuse_old(self.path)
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        if not recorded.exists():
            kept = (*SHARDS, "5-students/*/settings.json")
            if found := next((f for pattern in kept for f in self.path.glob(pattern)), None):
                raise InputError(f"{self.path} holds {found.relative_to(self.path)} but no "
                                 "config.json, so nothing says what run made it; use another "
                                 "--out, or delete the folder")
            return write_text(recorded, json.dumps({"identity": self.identity}, indent=1) + "\n")
        what = "the config.json of a run, so nothing says what the folder belongs to; use another"
        self._compare(read_json(recorded, f"{what} --out", identity=dict)["identity"])
        for pattern in ("config.json", "settings.toml", "report.json", *SHARDS):
            for torn in self.path.glob(f"{pattern}.[0-9]*.tmp"):  # what a kill left
                torn.unlink(missing_ok=True)

    def _compare(self, old: Mapping[str, Any]) -> None:
        """InputError with every difference; of prompts only the place where they differ."""
        new, changed = {**self.identity, **self.watch()}, {}
        for key in {**old, **new}:
            a, b = old.get(key), new.get(key)
            if a != b and key.endswith("prompt"):
                at = max(len(os.path.commonprefix([str(a), str(b)])) - 30, 0)
                a, b = str(a)[at : at + 60], str(b)[at : at + 60]
            if a != b:
                changed[key] = f"{key}: {a!r} in the folder, {b!r} now"
        if changed:
            dated = all(key.endswith("prompt") for key in changed)
            why = "; the chat template may insert today's date: write a fixed one into it"
            raise InputError(f"{self.path} belongs to another run ({'; '.join(changed.values())}"
                             f"{why if dated else ''}); use another --out, or delete it")

    def log(self, text: str) -> None:
        """Add a line to log.txt, for people."""
        if self.state.is_main_process:
            with open(self.path / "log.txt", "a", encoding="utf-8") as f:
                f.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n")

    def bar(self, label: str, total: int, done: int = 0, unit: str = "shard") -> tqdm:
        """A progress bar on the terminal, unless the run is quiet."""
        return tqdm(total=total, initial=done, desc=f"{label:<22}", unit=unit, disable=self.quiet,
                    file=sys.stderr)

    def shards(self, stage: str, work: Sequence[Any], make: Callable[[Any, int], Sequence[Any]],
               seed: int) -> Records:
        """The records of all shards of a stage, in order, read while one goes through them;
        `make(item, shard's seed)` makes those of each item of `work` whose shard is missing."""
        self._compare(self.identity)
        names, run = [f"{stage}/{i:05d}.parquet" for i in range(len(work))], {"run": self.name}
        files = [self.path / name for name in names]
        self.state.wait_for_everyone()
        missing = [i for i, f in enumerate(files) if not f.exists()]
        self.state.wait_for_everyone()  # no one begins before all have looked
        mine = missing[self.state.process_index :: self.state.num_processes]
        with self.bar(stage, len(files), len(files) - len(missing)) as bar:
            for i in mine:
                made = make(work[i], shard_seed(seed, stage, i))
                write_shard(files[i], made, {"stage": stage, "shard": i, **run})
                bar.update(min(self.state.num_processes, len(files) - bar.n))
        self.state.wait_for_everyone()
        if missing:
            self.log(f"{stage}: {len(missing)} of {len(files)} shards made")
        return Records.of(self.path, names, run)
