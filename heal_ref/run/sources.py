"""Problems from a file, a saved dataset or the hub, all on one road: rows, fields, final answers.

JSON is parsed here, so that a complaint names its line, and CSV, so that text stays text; the rest by
pyarrow and `datasets`.
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
from typing import Any, NamedTuple

from datasets import load_dataset, load_from_disk
from pyarrow import parquet

from heal_ref.records import InputError, Problem
from heal_ref.tasks.base import Task

BLANK = b"\xef\xbb\xbf \t\r\n"  # byte order mark and white space
FIELDS = ("id", "question", "answer", "kind", "length")
EXAMPLE = 'write {"id": ..., "question": ..., "answer": ...}'


class Complaint(NamedTuple):
    """Why a row is not a problem."""

    what: str
    remedy: str


@dataclass
class Reading:
    """What a source holds: `problems`, one message per mistake, and how answers were read."""

    source: str
    problems: list[Problem] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    golds: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)  # by rule

    def rules(self) -> str:
        """For each rule by which answers were read: how often, and the first two examples."""
        lines = []
        for rule, found in self.golds.items():
            lines.append(f"answers of {self.source}: {rule} ({len(found):,})")
            for question, text, answer in found[:2]:
                lines.append(f"  {_cut(question)}: {_cut(text[-60:])} -> {_cut(answer)}")
        return "\n".join(lines)


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 64 else text[:60] + "..."


def _parse(raw: bytes, torn: bool = False) -> Any:
    """One JSON value, or the complaint about it."""
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        return Complaint(f"not UTF-8 (byte {raw[e.start]:#04x})", "save the file as UTF-8")
    except json.JSONDecodeError as e:
        end = "; the line has no end, so the file may have been cut off" if torn else ""
        return Complaint(f"not valid JSON ({e.msg} at column {e.colno}{end})", EXAMPLE)
    except RecursionError:
        return Complaint("the JSON is nested too deeply", EXAMPLE)
    except ValueError:
        return Complaint("a number has too many digits to be read", "put it in quotes")


def _json_rows(data: bytes, array: bool) -> list[tuple[int, Any]]:
    """The items of a JSON array, or the lines of JSON Lines with their numbers."""
    if array:
        whole = _parse(data)
        return list(enumerate(whole if isinstance(whole, list) else [whole], start=1))
    lines = data.split(b"\n")  # the last one is empty if the file is whole
    return [(number, _parse(raw, torn=number == len(lines)))
            for number, raw in enumerate(lines, start=1) if raw.strip()]


def _csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV or TSV file, all cells as text: 007 is not 7."""
    with open(path, encoding="utf-8-sig", newline="") as f:
        rows = list(csv.DictReader(f, delimiter="," if path.suffix == ".csv" else "\t", strict=True))
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise ValueError(f"row {number} has more cells than columns: put it in quotes")
    return rows


def read_rows(source: str, split: str = "train", name: str | None = None) -> list[tuple[int, Any]]:
    """Numbered rows; the number is the line for JSON Lines. A line that cannot be read is a
    `Complaint`.

    Raises:
        InputError: the source cannot be read, or it has no such split.
    """
    path = Path(source)
    try:
        if path.suffix in (".jsonl", ".json"):
            data = path.read_bytes()
            return _json_rows(data, path.suffix == ".json" and data.lstrip(BLANK)[:1] == b"[")
        if path.suffix in (".csv", ".tsv"):
            return list(enumerate(_csv_rows(path), start=1))
        if path.suffix == ".parquet":
            return list(enumerate(parquet.read_table(path).to_pylist(), start=1))
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            saved: Any = load_from_disk(source)
            found = saved[split] if isinstance(saved, dict) else saved
        else:
            found = load_dataset(source, name, split=split)
        return list(enumerate(found.to_list(), start=1))
    except Exception as e:  # datasets and pyarrow raise many kinds: the source cannot be read
        no_file = "no such file" if isinstance(e, FileNotFoundError) else ""
        no_split = f"it has no split {split!r}" if isinstance(e, KeyError) else ""
        why = no_file or no_split or (str(e) or type(e).__name__).splitlines()[0]
        raise InputError(f"{source}: cannot be read as problems ({why}); give a .jsonl, .json, "
                         ".csv, .tsv or .parquet file, a folder of save_to_disk, or a dataset on "
                         "the hub (--config-name and --split choose a part of it)") from e


def _fields(row: Any, columns: Mapping[str, str], number: int) -> dict[str, Any] | Complaint:
    """The five fields of a row, `answer` as text, or what is wrong with them."""
    if isinstance(row, Complaint):
        return row
    if not isinstance(row, Mapping):
        return Complaint(f"a problem must be an object, found {type(row).__name__}", EXAMPLE)
    found = {name: row.get(columns.get(name, name)) for name in FIELDS}
    for name in {"question": "", "answer": "", **columns}:
        if found[name] is None:
            there = ", ".join(map(str, list(row)[:9]))
            return Complaint(f'field "{columns.get(name, name)}" is missing or null (found: {there})',
                             f"add it, or name another column with --columns {name}=COLUMN")
    if isinstance(found["id"], int) or found["id"] is None:
        found["id"] = str(number if found["id"] is None else found["id"])
    answer = found["answer"]
    if isinstance(answer, int | float | Decimal) and not isinstance(answer, bool):
        whole = isinstance(answer, int)
        found["answer"] = str(answer) if whole or math.isfinite(answer) else None
    found["kind"] = "" if found["kind"] is None else str(found["kind"])
    length = str(found["length"]).removesuffix(".0")
    found["length"] = int(length) if re.fullmatch(r"\d{1,9}", length) else 0
    for name in ("id", "question", "answer", "kind"):
        value = found[name]
        if not isinstance(value, str) or (name != "kind" and not value.strip()):
            wanted = "or a finite number" if name == "answer" else "in quotes"
            return Complaint(f'field "{name}" must be a non-empty string {wanted}, found '
                             f"{_cut(answer if name == 'answer' else value)}", EXAMPLE)
        if re.search("[\ud800-\udfff]", value):
            return Complaint(f'field "{name}" holds half a character (a surrogate), which no file '
                             f"can hold: {_cut(value)}", "write the whole character")
    return found


def _problem(fields: dict[str, Any], task: Task | None, golds: dict) -> Problem | Complaint:
    """A problem with the final answer that the task reads, or what the task says against it."""
    text = fields["answer"]
    gold = task.read_gold(text) if task else (text, "as it stands")
    if gold is None:
        return Complaint(f"the answer {_cut(text)} is not a final answer", "write the final answer "
                         "only, or name the column that holds it with --columns answer=COLUMN")
    problem = Problem(**{**fields, "answer": gold[0]})
    if task and (complaint := task.validate(problem)):
        return Complaint(*complaint)
    golds.setdefault(gold[1], []).append((problem.question, text, gold[0]))
    return problem


def read_problems(source: str | Path, task: Task | None = None,
                  columns: Mapping[str, str] | None = None, split: str = "train",
                  name: str | None = None) -> Reading:
    """The good problems of a source and one message per mistake; see `load_problems`."""
    reading, bad = Reading(str(source)), list[tuple[int, Complaint]]()
    by_id, by_question = dict[str, int](), dict[str, tuple[int, Problem]]()
    rows = read_rows(str(source), split, name)
    for number, row in rows:
        made: Any = _fields(row, columns or {}, number)
        if not isinstance(made, Complaint):
            made = _problem(made, task, reading.golds)
        if isinstance(made, Complaint):
            bad.append((number, made))
            continue
        line, other = by_question.setdefault(made.question, (number, made))
        same = other.answer == made.answer or (task and task.is_correct(other, made.answer))
        if by_id.setdefault(made.id, number) != number:
            bad.append((number, Complaint(f'id "{made.id}" was used on line {by_id[made.id]}',
                                          "give each problem its own id")))
        elif not same:
            bad.append((number, Complaint(
                f"two answers for one question: {_cut(other.answer)} on line {line}, "
                f"{_cut(made.answer)} here", "keep the right one")))
        else:
            reading.problems.append(made)
    reading.errors = _messages(reading.source, bad, len(rows))
    return reading


def _messages(source: str, bad: list[tuple[int, Complaint]], rows: int) -> list[str]:
    """One line per mistake; of many that are alike the first three, or one line for all rows."""
    if not rows:
        return [f"{source}: the file is empty; write one problem per line"]
    alike: dict[str, list[tuple[int, Complaint]]] = {}
    for number, complaint in bad:  # numbers and quoted text do not make another mistake
        kind = re.sub(r"\(.*\)|'.*'|\d+", "", "; ".join(complaint))
        alike.setdefault(kind, []).append((number, complaint))
    mark, out = ":" if source.endswith(".jsonl") else ", row ", []
    for same in alike.values():
        if len(same) == rows > 1:
            out.append(f"{source}: all {rows:,} problems: {'; '.join(same[0][1])}")
            continue
        out += [f"{source}{mark}{number}: {'; '.join(c)}" for number, c in same[:3]]
        if len(same) > 3:
            out.append(f"{source}: and {len(same) - 3:,} more like it")
    return [" ".join(line.splitlines()) for line in out]


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
