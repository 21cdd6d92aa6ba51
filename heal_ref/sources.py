"""Problems from anywhere that `datasets` reads: a file, a saved dataset, a name on the hub.

They are written to a JSON Lines file of ours first, and every run starts from that file: what was read can be looked at, and
a run can be repeated when the source has changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from heal_ref.records import InputError, Problem, load_problems, write_jsonl
from heal_ref.tasks import Task

READERS = {".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
FIELDS = ("id", "question", "answer", "kind", "length")


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
    for field in ("question", "answer", *(columns or {})):
        if names[field] not in data.column_names:
            raise InputError(f"{source} has no column {names[field]!r} for {field}, only {', '.join(data.column_names)}; "
                             f"name it with --columns {field}=COLUMN")

    def row(number: int, found: Mapping[str, Any]) -> dict[str, Any]:
        mine = {f: found[names[f]] for f in FIELDS if found.get(names[f]) is not None}
        return mine | {"id": str(mine.get("id", number))}

    write_jsonl(path, itertools.starmap(row, enumerate(data, start=1)))
    return load_problems(path, task)
