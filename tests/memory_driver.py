"""A run of SHARDS shards with made-up trajectories of 2,000 tokens: `memory_driver.py SHARDS OUT`.

What models do is replaced; all that goes through the run folder, into stages, examples, rows and page is the real
code. Prints the peak of the resident memory in MB, and the number of tokens in shards.
"""

import random
import re
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from heal_lab.clock_corpus import build_tokenizer  # noqa: E402
from heal_lab.pair import Recipe, new_model  # noqa: E402
from heal_ref import pace  # noqa: E402
from heal_ref.config import HealConfig, PaceConfig, SampleConfig  # noqa: E402
from heal_ref.gear import choose_paths  # noqa: E402
from heal_ref.generation import Rollout, make_trajectory  # noqa: E402
from heal_ref.model import LM  # noqa: E402
from heal_ref.records import PureScore  # noqa: E402
from heal_ref.run import pipeline, report  # noqa: E402
from heal_ref.run.pipeline import RunSpec, run  # noqa: E402
from heal_ref.tasks import ClockTask  # noqa: E402

TOKENS, PROBLEMS, SAMPLES = 2000, 2, 8  # per trajectory, shard, problem
shards, out = int(sys.argv[1]), Path(sys.argv[2])
rng, written = random.Random(0), 0


def trajectory(lm, problem, source, index, correct, **more):
    global written
    hours = iter(rng.choices(range(23), k=3 * TOKENS))
    said = "".join(f"Then compute {next(hours)} + {next(hours)} = {next(hours)}.\n\n" for _ in range(TOKENS // 5))
    ids = lm.encode(said)[:TOKENS]
    written += len(ids)
    entropy, logprob = ([round(rng.random() * scale, 6) for _ in ids] for scale in (2, -3))
    t = make_trajectory(lm, ClockTask(), problem, source, Rollout(ids, entropy, logprob, True), index=index, **more)
    return replace(t, correct=correct)


def sample(lm, task, problems, n, *, seed, sampling, guided=False):
    """Every second problem is never solved without help."""
    return [trajectory(lm, p, "guided" if guided else "base", i, guided or (int(p.id[-1]) % 2 == 1 and i % 2 == 1))
            for p in problems for i in range(n)]


def repair(lm, task, base, config, seed, **_):
    return [trajectory(lm, t.problem, "repair", 0, True, parent=t.index, breakpoint=k, hint="so")
            for t, k in choose_paths(base, config, lambda t: 1)[0] for _ in range(config.continuations)]


def pure_scores(lm, task, trajectories, config, seed, **_):
    numbers = [[1.0] * len(t.steps) for t in trajectories]
    return [PureScore(t, x, x, x, rng.random()) for t, x in zip(trajectories, numbers, strict=True)]


def train_stage(lm, data, folder, *_, **__):
    assert max(len(row["labels"]) for row in data) > TOKENS
    return lm


pipeline.sample, pipeline.gear.repair, pipeline.pure.pure_scores = sample, repair, pure_scores
pace.train_stage = train_stage
lm = LM(new_model(Recipe(hidden=32, layers=1, heads=2, lessons=()), build_tokenizer(), seed=0).eval(), build_tokenizer())
lm.model.config.max_position_embeddings = 100_000
lines = (Path(__file__).parent.parent / "data" / "clock" / "train.jsonl").read_text().splitlines()
out.mkdir(parents=True)
(out / "p.jsonl").write_text("\n".join(lines[: shards * PROBLEMS]))
config = HealConfig(sample=SampleConfig(n=SAMPLES, batch=PROBLEMS), pace=PaceConfig(updates=4, per_problem=SAMPLES),
                    eval_n=SAMPLES)
config = replace(config, gear=replace(config.gear, paths=4, continuations=2))
spec = RunSpec("", "", str(out / "p.jsonl"), str(out / "p.jsonl"), config)
found = run(spec, out / "run", ClockTask(), lms=(lm, lm), quiet=True)
report.write_page(out / "run", found, lm, ClockTask(), config.pure)
counts = found["provenance"]["counts"]
assert min(counts["guided kept"], counts["repaired kept"], counts["stage foundation"]) > 0, counts
(peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
print(int(peak) / 1024, written)
