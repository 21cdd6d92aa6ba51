"""Problems from a file, a saved dataset or the hub, all on one road: rows, fields, final answers.

JSON and CSV are parsed here: a complaint names its line, and 007 stays text.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from datasets import load_dataset, load_from_disk
from pyarrow import parquet

from heal_ref.records import InputError, Problem
from heal_ref.tasks.base import Task

FIELDS = ("id", "question", "answer", "kind", "length")
EXAMPLE = 'write {"id": ..., "question": ..., "answer": ...}'
BLANK = b"\xef\xbb\xbf \t\r\n"  # byte order mark and white space
Complaint = tuple[str, str]  # what is wrong with a row, and what to do


@dataclass
class Reading:
    """What a source holds: `problems`, one message per mistake, and how answers were read."""

    source: str
    problems: list[Problem] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    golds: dict[str, list[str]] = field(default_factory=dict)  # rule -> examples

    def rules(self) -> str:
        """For each rule by which answers were read: how often, and the first two examples."""
        return "\n".join("\n  ".join([f"answers of {self.source}: {rule} ({len(found):,})",
                                      *found[:2]]) for rule, found in self.golds.items())


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 64 else text[:60] + "..."


def _parse(raw: bytes, torn: bool = False) -> Any:
    """One JSON value, or the complaint about it."""
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        return f"not UTF-8 (byte {raw[e.start]:#04x})", "save the file as UTF-8"
    except json.JSONDecodeError as e:
        end = "; the line has no end, so the file may have been cut off" if torn else ""
        return f"not valid JSON ({e.msg} at column {e.colno}{end})", EXAMPLE
    except RecursionError:
        return "the JSON is nested too deeply", EXAMPLE
    except ValueError:
        return "a number has too many digits to be read", "put it in quotes"


def read_rows(source: str, split: str = "train", name: str | None = None) -> list[tuple[int, Any]]:
    """Numbered rows; for JSON Lines the number of the line. A line that cannot be read is a
    complaint; InputError if nothing can be read."""
    path = Path(source)
    try:
        if path.suffix in (".jsonl", ".json"):
            data = path.read_bytes()
            if path.suffix == ".jsonl" or data.lstrip(BLANK)[:1] != b"[":
                lines = data.split(b"\n")  # the last one is empty if the file is whole
                return [(number, _parse(line, torn=number == len(lines)))
                        for number, line in enumerate(lines, start=1) if line.strip()]
            rows = _parse(data)
            rows = rows if isinstance(rows, list) else [rows]
        elif path.suffix in (".csv", ".tsv"):
            with open(path, encoding="utf-8-sig", newline="") as f:
                separator = "," if path.suffix == ".csv" else "\t"
                rows = list(csv.DictReader(f, delimiter=separator, strict=True))
            if any(None in row for row in rows):
                raise ValueError("a row has more cells than columns: put text in quotes")
        elif path.suffix == ".parquet":
            rows = parquet.read_table(path).to_pylist()
        elif (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            saved = load_from_disk(source)
            rows = (saved[split] if isinstance(saved, dict) else saved).to_list()
        else:
            rows = load_dataset(source, name, split=split).to_list()
        return list(enumerate(rows, start=1))
    except Exception as e:  # datasets and pyarrow raise many kinds: the source cannot be read
        known = {FileNotFoundError: "no such file", KeyError: f"it has no split {split!r}"}
        why = known.get(type(e)) or (str(e) or type(e).__name__).splitlines()[0]
        raise InputError(f"{source}: cannot be read as problems ({why}); give a .jsonl, .json, "
                         ".csv, .tsv or .parquet file, a folder of save_to_disk, or a dataset on "
                         "the hub (--config-name and --split choose a part of it)") from e


def _problem(row: Any, number: int, columns: Mapping[str, str], task: Task | None,
             golds: dict[str, list[str]]) -> Problem | Complaint:
    """The problem in a row, with the final answer that the task reads, or what is wrong."""
    # 1) the fields: a missing id is the row's number, and numbers are text
    if isinstance(row, tuple):
        return row
    if not isinstance(row, Mapping):
        return f"a problem must be an object, found {type(row).__name__}", EXAMPLE
    found: dict[str, Any] = {name: row.get(columns.get(name, name)) for name in FIELDS}
    for name in {"question": "", "answer": "", **columns}:
        if found[name] is None:
            there = ", ".join(map(str, list(row)[:9]))
            return (f'field "{columns.get(name, name)}" is missing or null (found: {there})',
                    f"add it, or name another column with --columns {name}=COLUMN")
    answer = found["answer"]
    if isinstance(answer, int | float | Decimal) and not isinstance(answer, bool):
        if isinstance(answer, int) or math.isfinite(answer):
            found["answer"] = str(answer)
    if isinstance(found["id"], int | None):
        found["id"] = str(number if found["id"] is None else found["id"])
    found["kind"] = "" if found["kind"] is None else str(found["kind"])
    length = str(found["length"]).removesuffix(".0")
    found["length"] = int(length) if re.fullmatch(r"\d{1,9}", length) else 0
    # 2) text that a file and a prompt can hold
    for name in ("id", "question", "answer", "kind"):
        text = found[name]
        if not isinstance(text, str) or (name != "kind" and not text.strip()):
            number_too = " or a finite number" if name == "answer" else ""
            return (f'field "{name}" must be a non-empty string{number_too}, found {_cut(text)}',
                    EXAMPLE)
        if re.search("[\ud800-\udfff]", text):
            return (f'field "{name}" holds half a character (a surrogate), which no file can hold: '
                    f"{_cut(text)}", "write the whole character")
    # 3) the final answer, and what the task says
    text = found["answer"]
    gold = task.read_gold(text) if task else (text, "as it stands")
    if gold is None:
        return (f"the answer {_cut(text)} is not a final answer", "write the final answer only, or "
                "name the column that holds it with --columns answer=COLUMN")
    problem = Problem(**{**found, "answer": gold[0]})
    example = f"{_cut(problem.question)}: {_cut(text[-60:])} -> {_cut(gold[0])}"
    golds.setdefault(gold[1], []).append(example)
    return (task and task.validate(problem)) or problem


def read_problems(source: str | Path, task: Task | None = None,
                  columns: Mapping[str, str] | None = None, split: str = "train",
                  name: str | None = None) -> Reading:
    """The good problems of a source and one message per mistake; see `load_problems`."""
    reading, bad = Reading(str(source)), list[tuple[int, Complaint]]()
    ids, questions = dict[str, int](), dict[str, tuple[int, Problem]]()
    rows = read_rows(str(source), split, name)
    for number, row in rows:
        made = _problem(row, number, columns or {}, task, reading.golds)
        if isinstance(made, Problem):
            line, other = questions.setdefault(made.question, (number, made))
            same = other.answer == made.answer or (task and task.is_correct(other, made.answer))
            if ids.setdefault(made.id, number) != number:
                made = (f'id "{made.id}" was used on line {ids[made.id]}',
                        "give each problem its own id")
            elif not same:
                made = (f"two answers for one question: {_cut(other.answer)} on line {line}, "
                        f"{_cut(made.answer)} here", "keep the right one")
        if isinstance(made, Problem):
            reading.problems.append(made)
        else:
            bad.append((number, made))
    reading.errors = _messages(reading.source, bad, len(rows))
    return reading


def _messages(source: str, bad: list[tuple[int, Complaint]], rows: int) -> list[str]:
    """One line per mistake; of many that are alike the first three, or one line for all rows."""
    alike: dict[str, list[str]] = {}
    mark = ":" if source.endswith(".jsonl") else ", row "
    for number, complaint in bad:  # numbers and quoted text do not make another mistake
        text = " ".join("; ".join(complaint).splitlines())
        key = re.sub(r"\(.*\)|'.*'|\d+", "", text)
        alike.setdefault(key, []).append(f"{mark}{number}: {text}")
    out = [] if rows else [f"{source}: the file is empty; write one problem per line"]
    for same in alike.values():
        if len(same) == rows > 1:
            same = [f": all {rows:,} problems: {same[0].partition(': ')[2]}"]
        more = [f": and {len(same) - 3:,} more like it"] if len(same) > 3 else []
        out += [source + text for text in same[:3] + more]
    return out


def load_problems(source: str | Path, task: Task | None = None, **how: Any) -> list[Problem]:
    """Problems with the fields question, answer and optionally id, kind and length.

    Args:
        source: a .jsonl, .json, .csv, .tsv or .parquet file, a folder of `save_to_disk`, or a
            dataset's name on the hub. Without an id, the number of the line or row is the id.
        task: reads the final answer (`task.read_gold`) and checks each problem (`task.validate`).
        how: `columns` (our field -> the source's column, where they differ; other columns are
            ignored), and the `split` and configuration `name` of a dataset.

    Raises:
        InputError: the source cannot be read, or one line for each mistake in it.

    Example:
        >>> import heal_ref as heal
        >>> path = heal.DATA / "clock" / "validation.jsonl"
        >>> len(heal.load_problems(path, heal.ClockTask()))
        1500
    """
    reading = read_problems(source, task, **how)
    if reading.errors:
        raise InputError("\n".join(reading.errors))
    return reading.problems
