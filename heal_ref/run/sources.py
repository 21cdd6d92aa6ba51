"""Problems from a JSON Lines file of ours, or from anywhere that `datasets` reads: a file, a saved dataset, a name on the hub.

The latter are written to a JSON Lines file of ours first, and every run starts from that file: what was read can be looked at,
and a run can be repeated when the source has changed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from heal_ref.records import InputError, Problem, write_jsonl
from heal_ref.tasks.base import Task

READERS = {".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
FIELDS = ("id", "question", "answer", "kind", "length")


# --------------------------------------------------------------------------------------- our own files


@dataclass
class _Checker:
    """Collects what is wrong with a problem file, one line each."""

    source: str
    task: Task | None
    problems: list[Problem] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)

    def fail(self, line: int, what: str, remedy: str) -> None:
        self.errors.append(f"{self.source}:{line}: {what}; {remedy}")

    def add(self, line: int, row: Any) -> None:
        if not isinstance(row, dict):
            return self.fail(line, f"a problem must be an object, found {type(row).__name__}",
                             'write {"id": ..., "question": ..., "answer": ...}')
        for name in ("id", "question", "answer"):
            if name not in row:
                return self.fail(line, f'field "{name}" is missing', f'add "{name}" to the object')
        for name in ("id", "question"):
            if not isinstance(row[name], str) or not row[name].strip():
                return self.fail(line, f'field "{name}" must be a non-empty string, found {row[name]!r}',
                                 "put it in quotes")
        if isinstance(row["answer"], bool) or not isinstance(row["answer"], str | int | float):
            return self.fail(line, f'field "answer" must be a string or a number, found {row["answer"]!r}',
                             "write the final answer only")
        if not isinstance(row.get("kind", ""), str):
            return self.fail(line, f'field "kind" must be a string, found {row["kind"]!r}', "put it in quotes")
        length = row.get("length", 0)
        if isinstance(length, bool) or not isinstance(length, int):
            return self.fail(line, f'field "length" must be an integer, found {length!r}', "write a plain number")
        if row["id"] in self.seen:
            return self.fail(line, f'id "{row["id"]}" was used on line {self.seen[row["id"]]}',
                             "give each problem its own id")
        self.seen[row["id"]] = line
        problem = Problem(row["id"], row["question"], str(row["answer"]), row.get("kind", ""), length)
        complaint = self.task.validate(problem) if self.task else None
        if complaint:
            return self.fail(line, *complaint)
        self.problems.append(problem)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as f:
        yield from enumerate(f, start=1)


def check_problems(path: str | Path, task: Task | None = None) -> tuple[list[Problem], list[str]]:
    """Read a JSON Lines problem file; return the good problems and one message for each bad line.

    Each message has the form `file:line: what is wrong; what to do`. Never raises for the file's content.
    """
    path = Path(path)
    check = _Checker(str(path), task)
    if not path.is_file():
        check.fail(0, "no such file", "give the path of a JSON Lines file, one problem a line")
        return [], check.errors
    for number, raw in _lines(path):
        if not raw.strip():
            continue
        try:
            check.add(number, json.loads(raw.decode("utf-8")))
        except UnicodeDecodeError as e:
            check.fail(number, f"not UTF-8 (byte {raw[e.start]:#04x} at column {e.start + 1})", "save the file as UTF-8")
        except json.JSONDecodeError as e:
            cut = "" if raw.endswith(b"\n") else ", and the line has no end: the file may have been cut off"
            check.fail(number, f"not valid JSON ({e.msg} at column {e.colno}{cut})", "write one whole object a line")
    if not check.problems and not check.errors:
        check.fail(1, "the file is empty", "write one problem a line")
    return check.problems, check.errors


def load_problems(path: str | Path, task: Task | None = None) -> list[Problem]:
    """Problems from a JSON Lines file with the fields id, question, answer and optionally kind and length.

    Args:
        path: the file.
        task: if given, each problem is also checked by `task.validate` (operators known, answer follows, ...).

    Raises:
        InputError: one line for every bad line of the file. Nothing is returned from a file with an error.

    Example:
        >>> import heal_ref as heal
        >>> problems = heal.load_problems(heal.DATA / "clock" / "validation.jsonl", heal.ClockTask())
        >>> len(problems)
        1500
        >>> problems[0]
        Problem(id='validation-mastered-299', question='Start 3; + 7; * 7; + 6', answer='7', kind='mastered', length=3)
    """
    problems, errors = check_problems(path, task)
    if errors:
        raise InputError("\n".join(errors))
    return problems


# ----------------------------------------------------------------------------------- other people's data


def parse_columns(pairs: Iterable[str]) -> dict[str, str]:
    """`["question=problem"]` → `{"question": "problem"}`: our field, and the source's column.

    Raises:
        InputError: a pair that is not of this form, or a field that problems do not have.
    """
    out = {}
    for pair in pairs:
        field, found, column = pair.partition("=")
        if not found or field not in FIELDS or not column:
            raise InputError(f"--columns {pair}: write FIELD=COLUMN, FIELD one of {', '.join(FIELDS)}: question=problem")
        out[field] = column
    return out


def read_dataset(source: str, split: str = "train") -> Dataset:
    """A dataset from a file (.json, .csv, .tsv, .parquet), a folder that `save_to_disk` wrote, or a name on the hub.

    Raises:
        InputError: it cannot be read, or it has no such split.
    """
    path = Path(source)
    try:
        if path.suffix in READERS:
            more = {"sep": "\t"} if path.suffix == ".tsv" else {}
            data = load_dataset(READERS[path.suffix], data_files=str(path), split="train", **more)
        else:
            data = load_from_disk(source) if path.is_dir() else load_dataset(source, split=split)
    except Exception as e:  # datasets raises many kinds; all of them mean that the source is not readable
        why = (str(e) or type(e).__name__).splitlines()[0]
        raise InputError(f"{source}: cannot be read as problems ({why}); give a .jsonl, .json, .csv or .parquet file, a folder "
                         "of save_to_disk, or a dataset's name on the hub") from e
    if isinstance(data, DatasetDict):
        if split not in data:
            raise InputError(f"{source} has no split {split!r}, only {', '.join(data)}; choose one with --split")
        data = data[split]
    return data


def import_problems(source: str, path: Path, task: Task | None = None, columns: Mapping[str, str] | None = None,
                    split: str = "train") -> list[Problem]:
    r"""Read problems from `source`, write them to `path` as JSON Lines, and load that file.

    Args:
        source: a file (.json, .csv, .tsv, .parquet), a folder that `save_to_disk` wrote, or a dataset's name on the hub.
        task: if given, each problem is also checked by `task.validate`.
        columns: our field → the source's column, where they differ; without an id column the line number is the id.
        split: of a dataset that has several.

    Raises:
        InputError: the source cannot be read, a column is missing, or a problem is bad (one line for each).

    Example:
        >>> import heal_ref as heal
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     source, path = Path(folder) / "mine.csv", Path(folder) / "problems.jsonl"
        ...     _ = source.write_text("chain,hour\nStart 5; + 3; * 4,9\n")
        ...     heal.import_problems(str(source), path, heal.ClockTask(), {"question": "chain", "answer": "hour"})
        [Problem(id='1', question='Start 5; + 3; * 4', answer='9', kind='', length=0)]
    """
    data, names = read_dataset(source, split), {f: f for f in FIELDS} | dict(columns or {})
    for name in ("question", "answer", *(columns or {})):
        if names[name] not in data.column_names:
            raise InputError(f"{source} has no column {names[name]!r} for {name}, only {', '.join(data.column_names)}; "
                             f"name it with --columns {name}=COLUMN")

    def row(number: int, found: Mapping[str, Any]) -> dict[str, Any]:
        mine = {f: found[names[f]] for f in FIELDS if found.get(names[f]) is not None}
        return mine | {"id": str(mine.get("id", number))}

    write_jsonl(path, itertools.starmap(row, enumerate(data, start=1)))
    return load_problems(path, task)
