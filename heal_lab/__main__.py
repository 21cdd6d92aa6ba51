"""Command line: `python -m heal_lab experiment | evidence | build-pair | bench`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from heal_ref.records import DATA, InputError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m heal_lab", description="Measure HEAL, and build its small models.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    trial = add("experiment", "arms × seeds on held-out problems, paired differences; start it again to go on")
    trial.add_argument("--preset", default="tiny", choices=("smoke", "tiny"), help="named settings")
    trial.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="seeds for the shipped pair")
    trial.add_argument("--rebuilt", help="folder of a pair that build-pair made from another seed")
    trial.add_argument("--rebuilt-seeds", type=int, nargs="*", default=[], help="seeds for that pair")
    trial.add_argument("--arms", nargs="*", help="arms to run; all of them without it")
    trial.add_argument("--limit", type=int, default=150, help="held-out problems of each kind, 0 for all")
    trial.add_argument("--out", default="runs/experiment", help="folder for the runs and experiment.json")
    trial.add_argument("--quiet", action="store_true", help="no progress bars")
    pair = add("build-pair", "train the tiny teacher and the base student from nothing")
    pair.add_argument("--world", default="clock", choices=("clock", "chat"), help="chat: the small chat model of notebook 06")
    pair.add_argument("--out", default="runs/pair", help="folder for the models and the problem files")
    pair.add_argument("--seed", type=int, default=0, help="seed of weights, corpus and data order")
    pair.add_argument("--scale", type=float, default=1.0, help="share of the recipe's updates")
    pair.add_argument("--limit", type=int, default=0, help="problems of each kind to measure the pair on, 0 for all")
    pair.add_argument("--quiet", action="store_true", help="no progress bars")
    evidence = add("evidence", "measure every reading and control of a module, with the exact checker")
    evidence.add_argument("what", choices=("gear", "pure"), help="gear: breakpoints and repairs; pure: the filter")
    evidence.add_argument("--problems", default=str(DATA / "clock" / "heldout.jsonl"), help="JSON Lines")
    evidence.add_argument("--limit", type=int, default=0, help="problems of each kind, 0 for all")
    evidence.add_argument("--seed", type=int, default=0, help="seed of sampling")
    evidence.add_argument("--out", default="runs/evidence", help="folder for the record")
    bench = add("bench", "time this package against what people use today; prints ratios")
    bench.add_argument("what", choices=("sample", "score"),
                       help="sample: recording entropy, sharing a prefix; score: entropy and log-prob without full logits")
    bench.add_argument("--rounds", type=int, default=7, help="timed rounds of each side")
    return parser


def bench(args: argparse.Namespace, command: str) -> None:
    """`bench sample | score`: prints ratios."""
    from heal_lab.bench import bench_sample, bench_score

    if args.rounds < 1:
        raise InputError(f"--rounds {args.rounds}: a median needs at least one round; the default is 7")
    for comparison in bench_sample(args.rounds) if args.what == "sample" else bench_score(args.rounds):
        print(comparison)


def evidence(args: argparse.Namespace, command: str) -> None:
    """`evidence gear | pure`: writes the record of one module."""
    from heal_lab.evidence import gear_evidence, write_record
    from heal_lab.evidence_pure import pure_evidence
    from heal_ref.model import load_lm
    from heal_ref.records import limit_by_kind
    from heal_ref.run.sources import load_problems
    from heal_ref.tasks import ClockTask

    task = ClockTask()
    problems = limit_by_kind(load_problems(args.problems, task), args.limit)
    measure = {"gear": gear_evidence, "pure": pure_evidence}[args.what]
    record = measure(load_lm(DATA / "teacher"), task, problems, seed=args.seed, command=command)
    path = Path(args.out) / f"{args.what}.json"
    write_record(path, record)
    print(f"{len(record['rows'])} rows and what they are made of are in {path}")


def experiment(args: argparse.Namespace, command: str) -> None:
    """`experiment`: runs what is missing of the arms and seeds, writes the record, prints the table."""
    from heal_lab.compare import Results
    from heal_lab.evidence import write_record
    from heal_lab.experiment import ARMS, Material
    from heal_lab.experiment import experiment as run_experiment
    from heal_lab.figures import ARM_LABEL, draw_experiment
    from heal_ref.config import PRESETS
    from heal_ref.evaluate import Row
    from heal_ref.run.report import table, text_table
    from heal_ref.tasks import ClockTask

    files = Material(*(str(DATA / "clock" / f"{name}.jsonl") for name in ("train", "validation", "heldout", "long")))
    record = run_experiment(_seeds(args), args.out, files, ClockTask(),
                            lambda s: replace(PRESETS[args.preset](s), eval_limit=args.limit),
                            args.arms or ARMS, quiet=args.quiet, command=command)
    path = Path(args.out) / "experiment.json"
    write_record(path, record)
    rows = [Row(**{k: v for k, v in r.items() if k != "pair"}) for r in record["rows"]
            if r["pair"] == "all" and "," not in r["kind"]]
    figures = draw_experiment(Results(record), path.parent)
    print(f"\n{text_table(table(rows, label=ARM_LABEL))}\n")
    print(f"Mean and 95 % interval over seeds and problems. Runs, means and paired differences: {path}"
          + "".join(f"   {f}" for f in figures))


def _seeds(args: argparse.Namespace) -> list[tuple[str, Path, int]]:
    """(pair's name, its folder, seed) of each run of an experiment."""
    if args.rebuilt_seeds and not args.rebuilt:
        raise InputError("--rebuilt-seeds without --rebuilt: name the folder of the other pair (build-pair makes one)")
    if args.rebuilt and not all((Path(args.rebuilt) / name / "config.json").is_file() for name in ("teacher", "student")):
        raise InputError(f"--rebuilt {args.rebuilt}: no pair here (teacher/ and student/ with their models); "
                         "`python -m heal_lab build-pair --seed 1 --out FOLDER` makes one")
    plan = [("shipped", DATA, seed) for seed in args.seeds]
    plan += [("rebuilt", Path(args.rebuilt), seed) for seed in args.rebuilt_seeds]
    if not plan:
        raise InputError("no seeds: give --seeds, or --rebuilt with --rebuilt-seeds")
    return plan


def build_pair(args: argparse.Namespace, command: str) -> None:
    """`build-pair`: trains teacher and student, draws the problem files, measures what the pair can do."""
    from tqdm.auto import tqdm

    from heal_lab.chat_world import build_chat
    from heal_lab.pair import build_pair

    def progress(label: str) -> Any:
        bar = tqdm(desc=f"{label:<8}", unit="update", disable=args.quiet)

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return show

    if args.world == "chat":
        build_chat(Path(args.out), args.seed, progress, args.scale)
        print(f"The chat model (teacher/) and its problem files are in {args.out}")
    else:
        build_pair(Path(args.out), args.seed, progress, args.scale, args.limit)
        print(f"Teacher, student, problem files and what the pair can do (behaviour.json) are in {args.out}")


COMMANDS = {"experiment": experiment, "build-pair": build_pair, "evidence": evidence, "bench": bench}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    from heal_ref.run.command import execute

    return execute(_parser(), COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
