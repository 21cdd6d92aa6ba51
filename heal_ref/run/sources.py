"""Problems from a file, a saved dataset or the hub: rows, their fields, final answers."""

import csv
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from datasets import load_dataset, load_from_disk
from pyarrow import parquet

from heal_ref.records import InputError, Problem
from heal_ref.tasks.base import Task

FIELDS = ("id", "question", "answer", "kind", "length")
EXAMPLE = 'write {"id": ..., "question": ..., "answer": ...}'
LIKE = re.compile(  # what differs between messages about one kind of mistake
    r"""\(.*\)|(?<!\w)'(\\.|[^'\\])*'|(?<!field )"(\\.|[^"\\])*"|\d+""")
QUOTES = "'\""
BLANK = b"\xef\xbb\xbf \t\r\n"  # byte order mark and white space


class Complaint(Exception):
    """What is wrong with a row, and what to do."""


class Reading(NamedTuple):
    """What a source holds, one message per mistake, and how answers were read, with examples."""

    problems: list[Problem]
    errors: list[str]
    rules: str


def whole(*readings: Reading) -> tuple[Reading, ...]:
    """The readings; InputError with one line for each mistake in them."""
    if errors := [error for reading in readings for error in reading.errors]:
        raise InputError("\n".join(errors))
    return readings


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 64 else f"{text[:60]}...{text[0] if text[0] in QUOTES else ''}"


def _parse(raw: bytes, torn: bool = False) -> Any:
    """One JSON value, or the complaint about it."""
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        return Complaint(f"not UTF-8 (byte {raw[e.start]:#04x})", "save the file as UTF-8")
    except json.JSONDecodeError as e:
        end = "; the line has no end, so the file may have been cut off" if torn else ""
        return Complaint(f"not valid JSON ({e.msg} at column {e.colno}{end})", EXAMPLE)
    except (RecursionError, ValueError):
        return Complaint("nested too deeply, or a number has too many digits", EXAMPLE)


def _rows(source: str, split: str, name: str | None) -> list[tuple[int, Any]]:
    """Numbered rows. JSON and CSV are parsed here: a complaint names its line, and 007 stays."""
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".json"):
        data = path.read_bytes()
        rows: Any = _parse(data) if suffix == ".json" else Complaint()
        if isinstance(rows, dict):  # a problem, or an object around a list of problems
            inner = rows.get("data", [*rows.values(), 0][0] if len(rows) == 1 else 0)
            rows = inner if isinstance(inner, list) else [rows]
        array = suffix == ".json" and data.lstrip(BLANK)[:1] == b"["
        if isinstance(rows, Complaint) and not array:
            lines = data.split(b"\n")  # the last one is empty if the file is whole
            return [(number, _parse(line, torn=number == len(lines)))
                    for number, line in enumerate(lines, start=1) if line.strip()]
        rows = rows if isinstance(rows, list) else [rows]
    elif suffix in (".csv", ".tsv"):
        with open(path, encoding="utf-8-sig", newline="") as f:
            rows = list(csv.DictReader(f, delimiter=",\t"[suffix == ".tsv"], strict=True))
        if any(None in row for row in rows):
            raise ValueError("a row has more cells than columns: put text in quotes")
    elif suffix == ".parquet":
        rows = parquet.read_table(path).to_pylist()
    elif (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        saved = load_from_disk(source)
        rows = (saved[split] if isinstance(saved, dict) else saved).to_list()
    elif path.is_file():
        packed = suffix in (".gz", ".bz2", ".xz", ".zst", ".zip")
        raise ValueError(f"its ending {suffix!r} is unknown: " + (
            "unpack it" if packed else "rename it, as .jsonl if each line is a JSON object"))
    else:
        rows = load_dataset(source, name, split=split).to_list()
    return list(enumerate(rows, start=1))


def _fields(row: Any, number: int, columns: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a problem as text, `length` as a number."""
    if isinstance(row, Complaint):
        raise row
    if not isinstance(row, Mapping):
        raise Complaint(f"a problem must be an object, found {type(row).__name__}", EXAMPLE)
    found: dict[str, Any] = {name: row.get(columns.get(name, name)) for name in FIELDS}
    for name in {"question": "", "answer": "", **columns}:
        if found[name] is None:
            there = ", ".join(map(str, list(row)[:9]))
            raise Complaint(
                f'field "{columns.get(name, name)}" is missing or null (found: {there})',
                f"add it, or name another column with --columns {name}=COLUMN")
    if isinstance(found["id"], int | None):
        found["id"] = str(number if found["id"] is None else found["id"])
    answer, length = found["answer"], str(found["length"]).removesuffix(".0")
    if isinstance(answer, int | float | Decimal) and not isinstance(answer, bool):
        found["answer"] = str(answer) if Decimal(answer).is_finite() else answer
    found["kind"] = "" if found["kind"] is None else str(found["kind"])
    found["length"] = int(length) if re.fullmatch(r"\d{1,9}", length) else 0
    for name in ("id", "question", "answer", "kind"):
        text = found[name]
        if not isinstance(text, str) or (name != "kind" and not text.strip()):
            too = " or a finite number" if name == "answer" else ""
            raise Complaint(
                f'field "{name}" must be a non-empty string{too}, found {_cut(text)}', EXAMPLE)
        if re.search("[\ud800-\udfff]", text):
            raise Complaint(f'field "{name}" holds half a character (a surrogate), which no file '
                            f"can hold: {_cut(text)}", "write the whole character")
    return found


def read_problems(source: str | Path, task: Task | None = None,
                  columns: Mapping[str, str] | None = None, split: str = "train",
                  name: str | None = None) -> Reading:
    """The good problems of a source and one message per mistake; see `load_problems`."""
    if not str(source).strip():
        raise InputError("the name of a source of problems is empty; give a file, a folder or a "
                         "dataset")
    try:
        rows = _rows(str(source), split, name)
    except Exception as e:  # datasets and pyarrow raise many kinds: the source cannot be read
        known = {FileNotFoundError: "no such file", KeyError: f"it has no split {split!r}"}
        why = known.get(type(e)) or (str(e) or type(e).__name__).splitlines()[0]
        raise InputError(f"{source}: cannot be read as problems ({why}); give a .jsonl, .json, "
                         ".csv, .tsv or .parquet file, a folder of save_to_disk, or a dataset on "
                         "the hub (--config-name and --split choose a part of it)") from e
    problems, bad, rules = list[Problem](), list[tuple[int, str]](), dict[str, list[str]]()
    ids, questions = dict[str, int](), dict[str, tuple[int, Problem]]()
    for number, row in rows:
        try:
            fields = _fields(row, number, columns or {})
            text = fields["answer"]
            answer, rule = (task.read_gold(text) if task else (text, "as it stands")) or ("", "")
            problem = Problem(**{**fields, "answer": answer})
            if not rule:
                raise Complaint(f"the answer {_cut(text)} is not a final answer", "write the final "
                                "answer only, or name its column with --columns answer=COLUMN")
            if complaint := task and task.validate(problem):
                raise Complaint(*complaint)
            if ids.setdefault(problem.id, number) != number:
                raise Complaint(f'id "{problem.id}" was used on line {ids[problem.id]}',
                                "give each problem its own id")
            line, other = questions.get(problem.question, (number, problem))
            if other.answer != answer and not (task and task.is_correct(other, answer)):
                raise Complaint(f"two answers for one question: {_cut(other.answer)} on line "
                                f"{line}, {_cut(answer)} here", "keep the right one")
        except Complaint as e:
            bad.append((number, " ".join("; ".join(e.args).splitlines())))
            continue
        problems.append(problem)
        questions[problem.question] = number, problem
        example = f"\n  {_cut(problem.question)}: {_cut(text[-60:])} -> {_cut(answer)}"
        rules.setdefault(rule, []).append(example)
    said = [f"answers of {source}: {rule} ({len(found):,}){''.join(found[:2])}"
            for rule, found in rules.items()]
    return Reading(problems, _messages(str(source), bad, len(rows)), "\n".join(said))


def _messages(source: str, bad: list[tuple[int, str]], rows: int) -> list[str]:
    """One line per mistake; of many that are alike the first three, or one line for all rows; then
    five lines at most, and one that counts the rest."""
    alike: dict[str, list[str]] = {}
    mark = ":" if source.lower().endswith(".jsonl") else ", row "
    for number, text in bad:  # numbers and quoted text do not make another mistake
        alike.setdefault(LIKE.sub("", text), []).append(f"{mark}{number}: {text}")
    out: list[tuple[str, int, str]] = []  # a line, its mistakes, their kind
    for kind, same in alike.items():
        if len(same) == rows > 1:
            out.append((f": all {rows:,} problems: {same[0].partition(': ')[2]}", rows, kind))
            continue
        out += [(text, 1, kind) for text in same[:3]]
        if more := len(same[3:]):
            out.append((f": and {more:,} more like it", more, kind))
    if rest := out[5:]:
        count, kinds = sum(n for _, n, _ in rest), len({kind for *_, kind in rest})
        out[5:] = [(f": and {count:,} more mistakes of {kinds:,} kinds", count, "")]
    return [source + text for text, *_ in out] if rows else [
        f"{source}: the file is empty; write one problem per line"]


def load_problems(source: str | Path, task: Task | None = None, **how: Any) -> list[Problem]:
    """Problems with the fields question, answer and optionally id, kind and length.

    Args:
        source: a .jsonl, .json, .csv, .tsv or .parquet file, a folder of `save_to_disk`, or a
            dataset on the hub. Without an id, the number of the line or row is the id.
        task: reads the final answer (`task.read_gold`) and checks each problem (`task.validate`).
        how: `columns` (our field -> the source's column), `split` and configuration `name`.

    Raises:
        InputError: the source cannot be read, or one line for each mistake in it.

    Example:
        >>> len(heal.load_problems(heal.DATA / "clock" / "validation.jsonl", heal.ClockTask()))
        1500
    """
    return whole(read_problems(source, task, **how))[0].problems
