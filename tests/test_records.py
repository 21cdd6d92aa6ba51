"""Records survive a round trip through shards, which are read while one goes through them."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from heal_ref import pure
from heal_ref.config import PaceConfig, PureConfig
from heal_ref.entropy import step_ends
from heal_ref.evaluate import rows_of
from heal_ref.generation import sample
from heal_ref.pace import build_stages, chosen, solved_share
from heal_ref.records import InputError, PureScore, light, select, trajectories_of
from heal_ref.run.shards import Records, read_shard, records_in, write_shard


def through_shards(root, records, stage="1-base", size=1000):
    """The records, written as shards of a stage and read again."""
    for number, start in enumerate(range(0, len(records), size)):
        about = {"stage": stage, "shard": number}
        write_shard(root / stage / f"{number:05d}.parquet", records[start : start + size], about)
    return records_in(root, stage)


def test_round_trip(make, tmp_path):
    records = [make("a", correct=True), make("b", source="repair", parent=0, breakpoint=1, hint="this step gives 3"),
               make("é\n\0", text="", note="hint unreadable")]
    read = through_shards(tmp_path, records)
    assert list(read) == records
    assert not list(tmp_path.glob("**/*.tmp"))
    scores = [PureScore(read[1], [1.5, 2.0, 0.123456], [0.2, 0.0, 3.0], [3.0, -1.0, 1e300], 3.0)]
    assert list(through_shards(tmp_path, scores, "4-scores/x")) == scores
    with pytest.raises(ValueError, match="is in no shard"):
        through_shards(tmp_path, [replace(scores[0], trajectory=records[0])], "4-scores/y")


def test_float32_gives_back_every_rounded_number(make, tmp_path):
    """Numbers per token come from float32 and are rounded to 6 decimals: any size, halves of the last decimal, too."""
    rng = np.random.default_rng(0)
    raw = np.concatenate([rng.uniform(-1, 1, 20_000) * 10.0 ** rng.integers(-7, 5, 20_000),
                          np.arange(-4096, 4096) / 128, [0.0, -0.0, math.inf, -math.inf, 1e-45, 3e38]])
    values = [round(float(x), 6) for x in raw.astype(np.float32).tolist()]
    t = make(text="a" * len(values), entropy=values)
    (read,) = through_shards(tmp_path, [t])
    assert read == t
    assert [math.copysign(1, x) for x in read.entropy] == [math.copysign(1, x) for x in values]


def test_sampled_trajectory_is_in_memory_what_it_is_in_the_file(teacher, task, validation, tmp_path):
    sampled = sample(teacher, task, validation[:3], n=2, seed=1)
    assert list(through_shards(tmp_path, sampled)) == sampled
    for t in sampled:
        assert t.step_texts == [teacher.decode(t.step_ids(k)) for k in range(len(t.steps))]


def test_step_ends_by_hand():
    assert step_ends("We go.\n\n Then on.\n\nend", ["We go.\n\n", "Then on.\n\n", "end"]) == [9, 19, 22]
    assert step_ends("\ufffdab|cd", ["lost", "cd"]) == [0, 6]
    assert step_ends("", []) == []


def test_step_entropy_by_hand(make):
    t = make(text="ab|c", entropy=[0.0, 0.3, 0.6, 2.0])
    assert t.step_entropy == pytest.approx([0.3, 2.0])


# --------------------------------------------------------------------------------- a sequence


@pytest.fixture
def many(make, tmp_path):
    """40 problems of 5 samples as a list, and as a sequence over shards of 15."""
    rng = random.Random(0)
    made = [make(f"p{i // 5}", text=rng.choice(("ab|cd|e", "ab|cd|f", "x|y")), correct=rng.random() < i / 200, index=i % 5)
            for i in range(200)]
    return made, through_shards(tmp_path, made, size=15)


def test_it_is_a_sequence(many):
    made, read = many
    assert isinstance(read, Sequence)
    assert len(read) == 200
    assert list(read) == made == list(read)
    assert (read[0], read[-1], read[31]) == (made[0], made[-1], made[31])
    assert list(read[10:50:7]) == made[10:50:7]
    assert list(read[::-1]) == made[::-1]
    order = [3, 199, 3, 0, 31, 30]
    assert list(select(read, order)) == select(made, order) == [made[i] for i in order]
    assert list(read[20:][5:7]) == made[25:27]
    with pytest.raises(IndexError):
        read[200]
    assert list(read.select([])) == []


def test_light_records_lack_their_numbers_per_token(many):
    made, read = many
    bare = [replace(t, token_ids=[], entropy=[], logprob=[]) for t in made]
    assert list(light(read)) == bare
    assert list(light(read)[7:9]) == bare[7:9]
    assert light(made) is made


def test_scores_point_to_their_trajectories(many, tmp_path):
    made, read = many
    right = [t for t in read if t.correct]
    scores = [PureScore(t, [1.0] * len(t.steps), [0.0] * len(t.steps), [0.5] * len(t.steps), float(t.index)) for t in right]
    scored = through_shards(tmp_path, scores, "4-scores/x", size=7)
    assert list(scored) == scores
    assert list(scored[3:40:9]) == scores[3:40:9]
    assert list(trajectories_of(scored)) == trajectories_of(scores) == right
    assert light(scored)[3].trajectory.token_ids == []
    assert sum(f.stat().st_size for f in tmp_path.glob("4-scores/x/*")) < 8 * 6000
    # what they point to is another one now
    write_shard(tmp_path / "1-base" / "00012.parquet", made[:15], {"stage": "1-base", "shard": 12})
    with pytest.raises(InputError, match="it scores another trajectory than"):
        list(scored)
    (tmp_path / "1-base" / "00012.parquet").unlink()
    with pytest.raises(InputError, match="00012.parquet is not a whole shard"):
        list(scored)


def test_the_method_gives_the_same_for_a_list_and_for_shards(many, tmp_path, teacher, task):
    made, read = many
    assert solved_share(read) == solved_share(made)
    for limit in (1, 2, 9):
        assert chosen(read, limit) == chosen(made, limit)
    assert list(pure.unaided(read, 0.2, 5)) == pure.unaided(made, 0.2, 5) != pure.unaided(made)
    scores = [PureScore(t, [1.0] * len(t.steps), [0.0] * len(t.steps), [0.5] * len(t.steps), float(t.index)) for t in read if t.correct]
    scored, config = through_shards(tmp_path, scores, "4-scores/x", size=7), PureConfig(keep_quantile=0.5, floor=0.0)
    assert pure.pure_threshold(scored, config) == pure.pure_threshold(scores, config)
    kept = pure.pure_filter(scores, config)
    assert list(pure.pure_filter(scored, config)) == kept
    assert 0 < len(kept) < len(scores)
    passed, pace = pure.pure_filter(scored, config), PaceConfig(per_problem=2)
    lists, shards = build_stages(made, kept, made, pace), build_stages(read, passed, read, pace, tmp_path / "stages")
    for name in ("foundation", "guided", "repaired"):
        assert list(shards[name]) == list(lists[name])
        assert shards[name].cache_files
        assert not lists[name].cache_files
    assert len(lists["foundation"]) < len(lists["guided"]) < len(lists["repaired"])
    blind = type("Blind", (type(task),), {"knows_truth": False})()
    assert rows_of("a", teacher, blind, read, read[:5]) == rows_of("a", teacher, blind, made, made[:5])


def test_going_through_reads_one_shard_at_a_time(many, monkeypatch):
    from heal_ref.run import shards

    opened, original = [], shards._read
    monkeypatch.setattr(shards, "_read", lambda path, *more: opened.append(path.name) or original(path, *more))
    _, read = many
    first = iter(read)
    next(first)
    assert opened == ["00000.parquet"]
    list(read[14:31])
    assert opened == ["00000.parquet"] * 2 + ["00001.parquet", "00002.parquet"]


def test_a_shard_is_read_by_its_path(many, tmp_path):
    _, read = many
    assert list(read_shard(tmp_path / "1-base" / "00001.parquet")) == list(read[15:30])
    assert isinstance(read, Records)
