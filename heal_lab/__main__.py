"""Command line: `python -m heal_lab experiment | evidence | build-pair | real | …`."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from heal_lab import bench as speed
from heal_lab import experiment as lab
from heal_lab import real as real_pair
from heal_lab import real_students
from heal_lab.arms import ARMS
from heal_lab.chat_world import build_chat
from heal_lab.clock_corpus import Dials
from heal_lab.compare import Results
from heal_lab.evidence import break_evidence, gear_evidence, hint_evidence, write_record
from heal_lab.evidence_pure import pure_evidence
from heal_lab.figures import ARM_LABEL, draw_experiment, method_example
from heal_lab.pair import build_clock, world_of
from heal_lab.real_world import World, settings
from heal_ref.config import PRESETS, HealConfig
from heal_ref.drawings import draw_method
from heal_ref.evaluate import Row
from heal_ref.model import load_lm, processes
from heal_ref.plots import save
from heal_ref.records import DATA, InputError, limit_by_kind, read_json
from heal_ref.run.command import execute
from heal_ref.run.pipeline import provenance
from heal_ref.run.report import table, text_table
from heal_ref.run.sources import load_problems
from heal_ref.settings import with_options
from heal_ref.train import check_training

DIALS = {f.name: type(f.default) for f in fields(Dials) if f.default is not MISSING}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m heal_lab", description="Measure HEAL.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, out: str, about: str) -> Any:
        shown = argparse.ArgumentDefaultsHelpFormatter
        command = commands.add_parser(name, help=about, description=about, formatter_class=shown)
        if out:
            command.add_argument("--out", default=out, help="folder for what is made")
            command.add_argument("--quiet", action="store_true", help="no progress bars")
        return command.add_argument

    x = add("experiment", "runs/experiment", "pairs × seeds × arms on held-out problems; resumable")
    x("--preset", default="tiny", choices=("smoke", "tiny"), help="named settings")
    x("--pairs", nargs="+", default=["shipped"], help="folders that build-pair made; a pair has "
      "the name of its folder, and the one in data/ is called shipped")
    x("--seeds", type=int, nargs="+", default=[0], help="seeds of sampling and training, per pair")
    x("--arms", nargs="+", default=lab.ARMS, help="arms, which the record holds")
    x("--student", default="student", choices=("student", "weak"), help="the pair's base student; "
      "weak: one that cannot do the mastered steps yet")
    x("--limit", type=int, default=150, help="held-out problems of each kind, 0 for all")
    x("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting over the "
      "preset's, such as pace.updates=1200; repeat it for more")
    x = add("build-pair", "runs/pair", "train the tiny teacher and student from nothing")
    x("--world", default="clock", choices=("clock", "chat"), help="chat: the model of notebook 06")
    x("--seed", type=int, default=0, help="seed of weights, corpus and data order")
    x("--scale", type=float, default=1.0, help="share of the recipe's updates")
    x("--limit", type=int, default=0, help="problems of each kind in behaviour.json, 0 for all")
    x("--start", metavar="PAIR", help="clock: a pair whose teacher gets one more short lesson, "
      "instead of a pair from nothing; its students are copied")
    x("--dial", nargs="*", default=[], metavar="NAME=VALUE", help="clock: what differs from the "
      f"shipped world's corpora ({', '.join(DIALS)})")
    x = add("evidence", "runs/evidence", "every reading and control of a module, by the checker")
    x("what", choices=("gear", "breaks", "hints", "pure"), help="gear: breakpoints and repairs; "
      "breaks: where the first step can be the broken one; hints: refusing hints that state the "
      "answer; pure: the filter")
    x("--pair", default="shipped", help="whose teacher: a folder by build-pair, or shipped")
    x("--problems", help="JSON Lines; without it, the pair's held-out problems")
    x("--seed", type=int, default=0, help="seed of sampling")
    x("--limit", type=int, default=0, help="problems of each kind, 0 for all")
    x = add("real", "runs/real", "a pretrained pair on word problems; resumable")
    x("--teacher", required=True, help="folder of a chat model")
    x("--student", required=True, help="folder of a smaller one; it may have another tokenizer")
    x("--max-batch", type=int, default=512, help="sequences in a model at once")
    x("--parts", nargs="+", default=real_pair.PARTS, choices=real_pair.PARTS,
      help="what is measured; the record holds these and what was finished before")
    x("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training, for `students`")
    x("--arms", nargs="+", default=real_students.ARMS, metavar="ARM", help="students",
      choices=[arm for arm in ARMS if arm not in real_students.ELSEWHERE])
    x("--limit", type=int, default=0, help="training problems, 0 for all; of the others as many as "
      "the setting eval_limit")
    x("--set", action="append", default=[], metavar="NAME=VALUE",
      help="a setting over the part's own; repeat it for more")
    x = add("bench", "", "speed against standard implementations; prints ratios")
    x("what", choices=("sample", "score", "nucleus", "server"), help="sample: entropy recorded, "
      "a prefix shared; score: entropy and log-prob without full logits; nucleus: top_p of a large "
      "vocabulary; server: sampling by vLLM")
    x("--server", default="http://127.0.0.1:8123/v1", help="address of vLLM, for `server`")
    x("--model", default=str(DATA / "teacher"), help="the folder that it serves")
    x("--rounds", type=int, default=7, help="timed rounds of each side")
    x = add("draw", "", "method.png, README's drawing of the method on one problem")
    x("--out", default="docs", help="folder of the picture")
    return parser


def bench(args: argparse.Namespace, command: str) -> None:
    if args.rounds < 1:
        raise InputError(f"--rounds {args.rounds}: a median needs at least one; the default is 7")
    measures: dict[str, Any] = {
        "sample": speed.bench_sample, "score": speed.bench_score, "nucleus": speed.bench_nucleus,
        "server": partial(speed.bench_server, args.server, args.model)}
    print(*measures[args.what](args.rounds), sep="\n")


def evidence(args: argparse.Namespace, command: str) -> None:
    measures = {"gear": gear_evidence, "breaks": break_evidence, "hints": hint_evidence,
                "pure": pure_evidence}
    folder = _pair("--pair", args.pair, "teacher/training.json")
    lm, task = load_lm(folder / "teacher"), world_of(folder)
    asked = args.problems or folder / "clock" / "heldout.jsonl"
    problems = limit_by_kind(load_problems(asked, task), args.limit)
    record = measures[args.what](lm, task, problems, seed=args.seed, command=command)
    path = Path(args.out) / f"{'hint-rule' if args.what == 'hints' else args.what}.json"
    write_record(path, record)
    print(f"{len(record['rows'])} rows and what they are made of are in {path}")


def experiment(args: argparse.Namespace, command: str) -> None:
    def config(seed: int) -> HealConfig:
        preset = PRESETS[args.preset](seed)
        changed = with_options(replace(preset, eval_limit=args.limit), args.set)
        if changed.seed != seed:
            raise InputError(f"--set seed={changed.seed}: name seeds by --seeds")
        return changed

    record = lab.experiment(_plan(args), args.out, config, args.arms, quiet=args.quiet,
                            command=command, student=args.student)
    path = Path(args.out) / "experiment.json"
    write_record(path, record)
    figures = draw_experiment(Results(record), path.parent)
    rows = [Row(**{k: v for k, v in row.items() if k not in ("pair", "unit", "pairs")})
            for row in record["rows"] if row["pair"] == "all"]
    recall = [row for row in rows if row.kind.endswith("seen")]
    for some in ([row for row in rows if "," not in row.kind], recall):
        if some:
            print(f"\n{text_table(table(some, label=ARM_LABEL))}")
    print(f"\nMean, 95 % interval over {record['unit']}s and problems. Runs, paired differences:",
          path, *figures)


def _plan(args: argparse.Namespace) -> list[tuple[str, Path, int]]:
    """(pair's name, its folder, seed) of each run of an experiment."""
    plan = []
    for name in args.pairs:
        folder = _pair("--pairs", name, "teacher/training.json", f"{args.student}/config.json",
                       "clock/second.jsonl")
        plan += [("shipped" if folder == DATA else folder.name, folder, seed)
                 for seed in args.seeds]
    return plan


def _pair(option: str, name: str, *needed: str) -> Path:
    """The folder of a pair, if what is needed is in it; the shipped one is called so."""
    folder = DATA if name == "shipped" else Path(name).resolve()
    if missing := [part for part in needed if not (folder / part).is_file()]:
        raise InputError(f"{option} {name}: no pair here ({', '.join(missing)} missing); "
                         f"`python -m heal_lab build-pair --seed 1 --out {name}` makes one")
    return folder


def real(args: argparse.Namespace, command: str) -> None:
    began, path = time.monotonic(), Path(args.out) / "real.json"
    # 1) what is asked for
    if args.limit < 0:
        raise InputError(f"--limit {args.limit}: a number of training problems, or 0 for all")
    if len({*args.seeds}) < len(args.seeds):
        raise InputError(f"--seeds {' '.join(map(str, args.seeds))}: name each seed once")
    config = with_options(settings(), args.set)
    for seed in args.seeds:
        replace(config, seed=seed)  # raises InputError for an invalid one
    teacher, student = (load_lm(folder, max_batch=args.max_batch)
                        for folder in (args.teacher, args.student))
    check_training(student, config.pace)
    parts = [*path.parent.glob("teacher/parts/*.json")] if path.exists() else []
    old = read_json(path, "a record; delete it", provenance=dict) if parts else {}
    minutes = old.get("provenance", {}).get("minutes", 0)  # of launches that made other parts
    world = World.at(path.parent, teacher, config, args.limit, args.quiet)
    world.task.for_tokenizer(student.tokenizer)  # raises InputError without a chat template

    def write() -> None:
        record = real_pair.collect(world, student, args.parts)
        origin = {**provenance(teacher, command, config.seed, began),
                  "problems": {name: len(some) for name, some in world.splits.items()},
                  "processes": processes().num_processes,
                  "teacher": Path(args.teacher).name, "student": Path(args.student).name,
                  "dtype": str(teacher.dtype).removeprefix("torch.")}
        origin["minutes"] = round(origin["minutes"] + minutes, 2)
        origin["commit"] = ", ".join(world.commits) or origin["commit"]
        if processes().is_main_process:
            write_record(path, {"provenance": origin, **record})
            print(f"{len(record['rows'])} rows and the numbers they are made of: {path}")

    # 2) students come last: with a weak teacher they may have nothing to learn from
    write()
    if "students" in args.parts:
        arms = list(dict.fromkeys(args.arms))
        real_students.student_part(world, student, args.seeds, arms, args.quiet)
        write()


def build_pair(args: argparse.Namespace, command: str) -> None:
    def progress(label: str) -> Any:
        bar = tqdm(desc=f"{label:<8}", unit="update", disable=args.quiet)

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return show

    if args.world == "chat":
        build_chat(Path(args.out), args.seed, progress, args.scale)
    else:
        start = _pair("--start", args.start, "teacher/training.json") if args.start else None
        build_clock(Path(args.out), args.seed, progress, args.scale, args.limit, start,
                    **_dials(args.dial))
    print(f"The models and problem files of the {args.world} world are in {args.out}")


def _dials(given: Sequence[str]) -> dict[str, Any]:
    """`--dial hours=11 restates=false` as values of `Dials`."""
    out = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            out[name] = DIALS[name](json.loads(value))
        except (KeyError, ValueError, TypeError) as e:
            raise InputError(f"--dial {text!r}: write NAME=VALUE, with a name out of "
                             f"{', '.join(DIALS)}, and a number, or true or false") from e
    hours = out.get("hours", 23)
    if hours < 11 or any(hours % k == 0 for k in range(2, hours)):
        raise InputError(f"--dial hours={hours}: every operator must have an inverse; choose a "
                         "prime of at least 11")
    return out


def draw(args: argparse.Namespace, command: str) -> None:
    path = Path(args.out) / "method.png"
    save(draw_method(**method_example()), path)
    print(f"The method, drawn on one problem, is in {path}")


COMMANDS = {f.__name__.replace("_", "-"): f for f in (experiment, build_pair, evidence, real,
                                                      bench, draw)}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return execute(_parser(), COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
