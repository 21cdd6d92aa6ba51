"""Command line: `python -m heal_ref demo | run | experiment | build-pair | check | evidence | bench`.

Exit codes: 0 done, 2 something that was given is wrong (one line says what and what to do), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heal_ref.records import DATA, InputError, write_text

if TYPE_CHECKING:
    from heal_ref.config import HealConfig
    from heal_ref.lm import LM


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m heal_ref", description="HEAL on small and on full models.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    demo = add("demo", "the whole method on the shipped tiny pair: table, figures and a page")
    run = add("run", "the whole method on models and problems of your own; start it again to go on")
    for sub, preset in ((demo, "tiny"), (run, "tiny")):
        sub.add_argument("--preset", default=preset, choices=("smoke", "tiny", "paper"), help="named settings")
        sub.add_argument("--seed", type=int, default=0, help="seed of sampling, training and data order")
        sub.add_argument("--out", default="runs/demo" if sub is demo else None, required=sub is run, help="run folder")
        sub.add_argument("--teacher", default=str(DATA / "teacher"), help="model folder or hub name")
        sub.add_argument("--student", default=str(DATA / "student"), help="model folder or hub name")
        sub.add_argument("--problems", default=str(DATA / "clock" / "train.jsonl"), help="training problems, JSON Lines")
        sub.add_argument("--heldout", default=str(DATA / "clock" / "heldout.jsonl"), help="problems to evaluate on")
        sub.add_argument("--quiet", action="store_true", help="no progress bars")
    run.add_argument("--task", default="auto", choices=("auto", "clock", "chat"),
                     help="what text looks like; auto: chat if the teacher's tokenizer has a chat template")
    run.add_argument("--columns", nargs="*", default=[], metavar="FIELD=COLUMN", help="a dataset's own column names")
    run.add_argument("--split", default="train", help="split of a dataset to read")
    run.add_argument("--max-new-tokens", type=int, help="length limit (default: the preset's, for chat at least 1024)")
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop; nothing is written")
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
    pair.add_argument("--out", default="runs/pair", help="folder for teacher/, student/ and clock/")
    pair.add_argument("--seed", type=int, default=0, help="seed of weights, corpus and data order")
    pair.add_argument("--scale", type=float, default=1.0, help="share of the recipe's updates")
    pair.add_argument("--limit", type=int, default=0, help="problems of each kind to measure the pair on, 0 for all")
    pair.add_argument("--quiet", action="store_true", help="no progress bars")
    check = add("check", "look for mistakes in a problem file")
    check.add_argument("file", help="JSON Lines file")
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


def _bench(args: argparse.Namespace) -> None:
    from heal_ref.bench import bench_sample, bench_score

    if args.rounds < 1:
        raise InputError(f"--rounds {args.rounds}: a median needs at least one round; the default is 7")
    for comparison in {"sample": bench_sample, "score": bench_score}[args.what](args.rounds):
        print(comparison)


def _evidence(args: argparse.Namespace) -> None:
    from heal_ref.evidence import gear_evidence, write_record
    from heal_ref.evidence_pure import pure_evidence
    from heal_ref.lm import load_lm
    from heal_ref.records import limit_by_kind, load_problems
    from heal_ref.tasks import ClockTask

    task = ClockTask()
    problems = limit_by_kind(load_problems(args.problems, task), args.limit)
    measure = {"gear": gear_evidence, "pure": pure_evidence}[args.what]
    record = measure(load_lm(DATA / "teacher"), task, problems, seed=args.seed, command=_command())
    path = Path(args.out) / f"{args.what}.json"
    write_record(path, record)
    print(f"{len(record['rows'])} rows and what they are made of are in {path}")


def _experiment(args: argparse.Namespace) -> None:
    from heal_ref.compare import Results
    from heal_ref.config import PRESETS
    from heal_ref.evaluate import Row
    from heal_ref.evidence import write_record
    from heal_ref.experiment import ARMS, Material, experiment
    from heal_ref.plots_arms import ARM_LABEL, draw_experiment
    from heal_ref.report import table, text_table
    from heal_ref.tasks import ClockTask

    if args.rebuilt_seeds and not args.rebuilt:
        raise InputError("--rebuilt-seeds without --rebuilt: name the folder of the other pair (build-pair makes one)")
    if args.rebuilt and not all((Path(args.rebuilt) / name / "config.json").is_file() for name in ("teacher", "student")):
        raise InputError(f"--rebuilt {args.rebuilt}: no pair here (teacher/ and student/ with their models); "
                         "`python -m heal_ref build-pair --seed 1 --out FOLDER` makes one")
    plan = [("shipped", DATA, seed) for seed in args.seeds]
    plan += [("rebuilt", Path(args.rebuilt), seed) for seed in args.rebuilt_seeds]
    if not plan:
        raise InputError("no seeds: give --seeds, or --rebuilt with --rebuilt-seeds")
    files = Material(*(str(DATA / "clock" / f"{name}.jsonl") for name in ("train", "validation", "heldout", "long")))
    record = experiment(plan, args.out, files, ClockTask(), lambda s: replace(PRESETS[args.preset](s), eval_limit=args.limit),
                        args.arms or ARMS, quiet=args.quiet, command=_command())
    path = Path(args.out) / "experiment.json"
    write_record(path, record)
    rows = [Row(**{k: v for k, v in r.items() if k != "pair"}) for r in record["rows"]
            if r["pair"] == "all" and "," not in r["kind"]]
    figures = draw_experiment(Results(record), path.parent)
    print(f"\n{text_table(table(rows, label=ARM_LABEL))}\n")
    print(f"Mean and 95 % interval over seeds and problems. Runs, means and paired differences: {path}"
          + "".join(f"   {f}" for f in figures))


def _command() -> str:
    """The command line as it was given, for provenance."""
    return "python -m heal_ref " + " ".join(sys.argv[1:])


def _problem_files(args: argparse.Namespace, folder: Path, task: Any) -> list[str]:
    """Paths of the two JSON Lines files; anything else that `datasets` reads is written to `folder`/problems first."""
    from heal_ref.lm import processes
    from heal_ref.sources import import_problems, parse_columns

    out = []
    for name in ("problems", "heldout"):
        source = getattr(args, name)
        if source.endswith(".jsonl"):
            if not Path(source).is_file():
                raise InputError(f"--{name} {source}: no such file; give a JSON Lines file of problems")
            out.append(source)
        else:
            path = folder / "problems" / f"{name}.jsonl"
            with processes().main_process_first():
                if not path.exists():
                    import_problems(source, path, task, parse_columns(args.columns), args.split)
            out.append(str(path))
    return out


def _plan(args: argparse.Namespace, config: HealConfig, files: Sequence[str], task: Any, lms: Sequence[LM]) -> str:
    """What the run will cost, from a measured minute or less."""
    from heal_ref.lm import processes
    from heal_ref.pace import check_tokenizers
    from heal_ref.plan import measure, plan, plan_text
    from heal_ref.records import limit_by_kind, load_problems

    check_tokenizers(*lms)
    problems, heldout = (limit_by_kind(load_problems(f, task), limit)
                         for f, limit in zip(files, (config.train_limit, config.eval_limit), strict=True))
    print("Measuring for at most a minute ...", file=sys.stderr)
    speed = measure(*lms, task, problems, config)
    stages = plan(config, len(problems), len(heldout), speed, processes().num_processes)
    return plan_text(stages, lms[0].model.config, lms[1].model.config, config, speed)


def _planned(args: argparse.Namespace, config: HealConfig, files: Sequence[str], task: Any, lms: Sequence[LM]) -> None:
    """Show the plan first; a run that goes on shows the one it was started with."""
    from heal_ref.lm import processes

    path = Path(args.out) / "plan.txt"
    if not processes().is_main_process:
        return
    if not path.exists() and not (path.parent / "config.json").exists():
        write_text(path, _plan(args, config, files, task, lms) + "\n")
    if path.exists():
        print(path.read_text(encoding="utf-8"), file=sys.stderr)


def _run(args: argparse.Namespace) -> None:
    from heal_ref.config import PRESETS
    from heal_ref.lm import load_lm, processes
    from heal_ref.pipeline import RunSpec, rows_from_report, run
    from heal_ref.report import NEXT, draw_figures, table, text_table, write_page
    from heal_ref.tasks import ChatMathTask, ClockTask, task_for

    config, out = PRESETS[args.preset](args.seed), Path(args.out)
    lms = [load_lm(args.teacher), load_lm(args.student)]
    task = ClockTask() if args.command == "demo" else task_for(args.task, lms[0].tokenizer)
    if args.command == "run" and (args.max_new_tokens is not None or isinstance(task, ChatMathTask)):
        longest = max(1024, config.sample.max_new_tokens) if args.max_new_tokens is None else args.max_new_tokens
        config = replace(config, sample=replace(config.sample, max_new_tokens=longest))
    if getattr(args, "dry_run", False):
        with tempfile.TemporaryDirectory() as scratch:
            print(_plan(args, config, _problem_files(args, Path(scratch), task), task, lms))
        return
    files = _problem_files(args, out, task)
    if args.command == "run":
        _planned(args, config, files, task, lms)
    report = run(RunSpec(args.teacher, args.student, *files, config), out, task, lms=lms, quiet=args.quiet, command=_command())
    if not processes().is_main_process:
        return
    page = write_page(out, report, draw_figures(out, report, lms[0], task, config.pure))
    print(f"\n{text_table(table(rows_from_report(report)))}\n")
    print(f"Mean and 95 % interval over held-out problems. Page: {page}   Report: {out / 'report.json'}")
    print(f"Read on: jupyter lab {NEXT}")


def _build_pair(args: argparse.Namespace) -> None:
    from tqdm.auto import tqdm

    from heal_ref.pair import build_pair

    def progress(label: str):
        bar = tqdm(desc=f"{label:<8}", unit="update", disable=args.quiet)

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return show

    build_pair(Path(args.out), args.seed, progress, args.scale, args.limit)
    print(f"Teacher, student, problem files and what the pair can do (behaviour.json) are in {args.out}")


def _check(args: argparse.Namespace) -> None:
    from heal_ref.records import check_problems
    from heal_ref.tasks import ClockTask

    problems, errors = check_problems(args.file, ClockTask())
    if errors:
        raise InputError("\n".join(errors))
    print(f"{args.file}: {len(problems)} problems, no mistakes found")


COMMANDS = {"demo": _run, "run": _run, "experiment": _experiment, "build-pair": _build_pair, "check": _check,
            "evidence": _evidence, "bench": _bench}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = _parser().parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    if args.command != "check":
        from heal_ref.lm import quiet

        quiet()
    try:
        COMMANDS[args.command](args)
    except (InputError, FloatingPointError) as e:
        print(e, file=sys.stderr)
        return 2
    except OSError as e:
        print(f"{e.filename or 'a file'}: {e.strerror or e}; mend that, then start the same command again: what was finished "
              "is kept", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nStopped. What was finished is kept in {getattr(args, 'out', '.')}; the same command goes on from there.",
              file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
