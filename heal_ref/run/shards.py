"""The shards of a run: Parquet files of trajectories, or of PURE scores that point to trajectories.

A shard is complete or absent, and says in its metadata which one it is. Token ids are int32,
entropies and log-probs float32; pages are checksummed. `datasets` and pandas read these files.

`Records` is a sequence over shards. It holds two small numbers per record, where it is kept, and
reads a few records at a time: memory does not grow with the number of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from heal_ref.records import InputError, Problem, PureScore, Trajectory, write_bytes


def _list(of: pa.DataType) -> pa.ListType:
    return pa.list_(pa.field("element", of))  # as Parquet names it


PROBLEM = pa.struct({"id": pa.string(), "question": pa.string(), "answer": pa.string(),
                     "kind": pa.string(), "length": pa.int32()})
TRAJECTORY = pa.schema({
    "problem": PROBLEM, "source": pa.string(), "prompt": pa.string(), "text": pa.string(),
    "token_ids": _list(pa.int32()), "entropy": _list(pa.float32()),
    "logprob": _list(pa.float32()), "steps": _list(_list(pa.int32())),
    "answer": pa.string(), "correct": pa.bool_(), "finished": pa.bool_(),
    "tokens_spent": pa.int32(), "index": pa.int32(), "parent": pa.int32(),
    "breakpoint": pa.int32(), "hint": pa.string(), "note": pa.string(),
    "step_ends": _list(pa.int32())})
SCORE = pa.schema({
    "shard": pa.string(), "row": pa.int32(), "id": pa.string(),  # the trajectory
    "perplexity": _list(pa.float64()), "uncertainty": _list(pa.float64()),
    "ratio": _list(pa.float64()), "score": pa.float64()})
PER_TOKEN = ("token_ids", "entropy", "logprob")
ABOUT = b"heal_ref"  # the key of what a shard says of itself
BATCH = 64  # records that are read at once
# Measured: numbers per token hardly repeat, so that a dictionary of them is larger than they are;
# what repeats, prompts and kept prefixes, zstd finds. Statistics would be a fifth of a small shard.
# Of numbers per token first all first bytes are stored, then all second ones, and so on.
FORMAT: dict[str, Any] = {"compression": "zstd", "compression_level": 9, "use_dictionary": False,
                          "write_statistics": False, "store_schema": False,
                          "write_page_checksum": True}


def write_shard(path: Path, records: Sequence[Trajectory | PureScore], about: Mapping[str, Any]
                ) -> None:
    """Write records of one kind so that the file is complete or absent; `about` says which shard
    it is. Scores are written with the places of their trajectories, which must be in shards."""
    rows: list[dict[str, Any]] = []
    for r in records:
        if isinstance(r, PureScore):
            if r.trajectory.place is None:
                raise ValueError("a scored trajectory is in no shard, so nothing can point to it")
            shard, row = r.trajectory.place
            rows.append({**vars(r), "shard": shard, "row": row, "id": r.trajectory.problem.id})
        else:
            rows.append({**vars(r), "problem": vars(r.problem), "entropy": _short(r.entropy),
                         "logprob": _short(r.logprob)})
    schema = SCORE if rows and "ratio" in rows[0] else TRAJECTORY
    split = [f"{name}.list.element" for name in PER_TOKEN if name in schema.names]
    sink = pa.BufferOutputStream()
    with parquet.ParquetWriter(sink, schema, use_byte_stream_split=split, **FORMAT) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))
        writer.add_key_value_metadata({ABOUT: json.dumps(about)})
    write_bytes(path, sink.getvalue())


def _short(values: Sequence[float]) -> np.ndarray:
    """Float32 numbers that are `values` at 6 decimals. Those below 4 are multiples of 2^-21, half
    the last decimal: small ones then end in zero bits, and the file is a tenth smaller."""
    exact = np.asarray(values, dtype=np.float64)
    return np.where(np.abs(exact) < 4, np.round(exact * 2**21) / 2**21, exact).astype(np.float32)


def damaged(path: Path, why: Any) -> InputError:
    """What to say of a shard that cannot be used."""
    why = " ".join(str(why).split())[:150]
    return InputError(f"{path} is not a whole shard ({why}); delete it and start the same command "
                      "again, which makes it again")


BROKEN = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)


def open_shard(path: Path, expected: Mapping[str, Any] | None = None
               ) -> tuple[dict[str, Any], int]:
    """What a shard says of itself, and its number of records, from the end of the file; InputError
    if it is not whole or does not say what is `expected`."""
    try:
        with parquet.ParquetFile(path) as file:
            found, metadata = file.schema_arrow, file.metadata
            about = json.loads((metadata.metadata or {})[ABOUT])
            if not (found.equals(TRAJECTORY) or found.equals(SCORE)):
                raise ValueError("its columns are others")
            for key, value in (expected or {}).items():
                if about.get(key) != value:
                    raise ValueError(f"its {key} is {about.get(key)!r}, not {value!r}")
            return about, metadata.num_rows
    except BROKEN as e:
        raise damaged(path, "it was not written by a run" if e.args == (ABOUT,) else e) from e


def read_shard(path: Path) -> Records:
    """The records of one shard, read while one goes through them."""
    stage = open_shard(path)[0]["stage"]
    root = path.parents[len(Path(stage).parts)]
    return Records.of(root, [path.relative_to(root).as_posix()])


def records_in(root: Path, *stages: str) -> Records:
    """The records of stages of a run as far as they are made, in order."""
    return Records.of(root, [path.relative_to(root).as_posix() for stage in stages
                             for path in sorted((root / stage).glob("*.parquet"))])


class Records(Sequence[Any]):
    """Trajectories or PURE scores in shards, in the order of `places`: (file, row) of each, a file
    by its number in `files`, which are names below `root`. Of scores the trajectories are read
    beside them. Slices and selections are sequences of this kind."""

    def __init__(self, root: Path, files: Sequence[str], places: np.ndarray, brief: bool = False):
        self.root, self.files, self.places, self.brief = root, files, places, brief

    @classmethod
    def of(cls, root: Path, files: Sequence[str], expected: Mapping[str, Any] | None = None
           ) -> Records:
        """All records of these shards; InputError if one is not whole or is another's. `expected`
        is what all of them say of themselves besides stage and number, which their names tell."""
        places = [np.empty((0, 2))]
        for number, name in enumerate(files):
            stage, _, file = name.rpartition("/")
            own = {"stage": stage, "shard": int(file.partition(".")[0])}
            size = open_shard(root / name, {**own, **(expected or {})})[1]
            places.append(np.stack([np.full(size, number), np.arange(size)], 1))
        return cls(root, files, np.concatenate(places).astype(np.int32))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return Records(self.root, self.files, self.places[i], self.brief)
        return next(iter(self.select([range(len(self))[i]])))

    def select(self, rows: Sequence[int]) -> Records:
        """The records with these numbers, in this order."""
        chosen = self.places[np.asarray(rows, dtype=np.int64)]
        return Records(self.root, self.files, chosen, self.brief)

    @property
    def light(self) -> Records:
        """The same trajectories without token ids, entropies and log-probs, which are not read."""
        return Records(self.root, self.files, self.places, brief=True)

    @property
    def trajectories(self) -> Records:
        """Of scores: the trajectories that they point to."""
        files, places = dict[str, int](), list[tuple[int, int]]()
        for _, _, row in self._rows(["shard", "row"]):
            places.append((files.setdefault(row["shard"], len(files)), row["row"]))
        found = np.array(places, dtype=np.int32).reshape(-1, 2)
        return Records(self.root, list(files), found, self.brief)

    def __iter__(self) -> Iterator[Any]:
        first = self.root / self.files[self.places[0, 0]] if len(self) else None
        if first is not None and parquet.read_schema(first).equals(SCORE):
            return self._scores()
        columns = [name for name in TRAJECTORY.names if not (self.brief and name in PER_TOKEN)]
        none: dict[str, Any] = {name: [] for name in PER_TOKEN}
        return (Trajectory(**{**none, **row, "problem": Problem(**row["problem"]),
                              "place": (shard, number)})
                for shard, number, row in self._rows(columns))

    def _scores(self) -> Iterator[PureScore]:
        numbers = self._rows([name for name in SCORE.names if name not in ("shard", "row")])
        for (shard, _, row), t in zip(numbers, self.trajectories, strict=True):
            if (t.problem.id, len(t.steps)) != (row.pop("id"), len(row["ratio"])):
                raise damaged(self.root / shard, f"it scores another trajectory than {t.place}")
            yield PureScore(t, **row)

    def _rows(self, columns: Sequence[str]) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Shard, row and columns of each record. One pass over a shard gives all records whose
        rows ascend: those of a stage, and of what was selected from it in order."""
        file, row = self.places[:, 0], self.places[:, 1]
        cuts = np.flatnonzero((np.diff(file) != 0) | (np.diff(row) <= 0)) + 1
        for run in np.split(self.places, cuts) if len(self) else []:
            name = self.files[run[0, 0]]
            for number, values in zip(run[:, 1], _read(self.root / name, run[:, 1], columns),
                                      strict=True):
                yield name, int(number), values


def _read(path: Path, rows: np.ndarray, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Columns of the `rows` of a shard, which ascend, as Python values; a batch at a time."""
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            first = 0
            for batch in file.iter_batches(BATCH, columns=list(columns)):
                inside = rows[(rows >= first) & (rows < first + len(batch))] - first
                part = batch.take(pa.array(inside))
                for values in zip(*map(_values, part.columns), strict=True):
                    yield dict(zip(part.schema.names, values, strict=True))
                first += len(batch)
            if len(rows) and rows[-1] >= first:
                raise ValueError(f"there is no row {rows[-1]}")
    except BROKEN as e:
        raise damaged(path, e) from e


def _values(column: pa.Array) -> Iterator[Any]:
    """The entries of a column as Python values; of a column of lists one at a time."""
    if not pa.types.is_list(column.type):
        return iter(column.to_pylist())
    inner = column.values
    if pa.types.is_list(inner.type):  # steps
        return ([(a, b) for a, b in steps] for steps in column.to_pylist())
    numbers, parts = inner.to_numpy(), pairwise(column.offsets.to_pylist())
    if numbers.dtype == np.float32:
        return (np.round(numbers[a:b].astype(np.float64), 6).tolist() for a, b in parts)
    return (numbers[a:b].tolist() for a, b in parts)
