"""Command line: `python -m heal_ref demo | run | check`.

Exit codes: 0 done, 2 wrong input (one line says what and what to do), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from heal_ref.config import PRESETS, HealConfig
from heal_ref.evaluate import rows_from_report
from heal_ref.model import LM, load_lm, load_tokenizer, processes
from heal_ref.records import DATA, InputError, limit_by_kind, write_text
from heal_ref.run.command import execute
from heal_ref.run.pipeline import PROBE, RunSpec, run
from heal_ref.run.plan import measure, plan, plan_text
from heal_ref.run.report import NEXT, draw_figures, table, text_table, write_page
from heal_ref.run.sources import FIELDS, Reading, read_problems
from heal_ref.tasks import ChatMathTask, Task, task_for


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m heal_ref", description="HEAL on small and on full models.")
    commands = parser.add_subparsers(dest="command", required=True)
    clock = DATA / "clock"

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text,
                                   formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    demo = add("demo", "the whole method on the shipped tiny pair: table, figures and a page")
    run = add("run", "the whole method on your models and problems; the same command continues it")
    check = add("check", "look for mistakes in a problem file")
    for sub in (demo, run):
        sub.add_argument("--preset", default="tiny", choices=tuple(PRESETS), help="named settings")
        sub.add_argument("--seed", type=int, default=0, help="of sampling, training, data order")
        sub.add_argument("--out", default="runs/demo" if sub is demo else None,
                         required=sub is run, help="run folder")
        sub.add_argument("--student", default=str(DATA / "student"), help="model folder or hub name")
        sub.add_argument("--problems", default=str(clock / "train.jsonl"), help="to train on: file, "
                         "folder of save_to_disk or dataset on the hub")
        sub.add_argument("--heldout", default=str(clock / "heldout.jsonl"), help="to evaluate on")
        sub.add_argument("--quiet", action="store_true", help="no progress bars")
    for sub in (demo, run, check):
        sub.add_argument("--teacher", default=str(DATA / "teacher"), help="model folder or hub name")
    check.add_argument("file", help="problems: file, folder of save_to_disk or dataset on the hub")
    for sub in (run, check):
        sub.add_argument("--task", default="auto", metavar="NAME", help="what text looks like: chat, "
                         "clock or your own package.module:ClassName")
        sub.add_argument("--columns", nargs="*", default=[], metavar="FIELD=COLUMN",
                         help="columns of other names: question=problem")
        sub.add_argument("--split", default="train", help="split of a dataset")
        sub.add_argument("--config-name", help="configuration of a dataset on the hub")
    run.add_argument("--heldout-split", help="split of --heldout, where it is another one")
    run.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
                     help="of the teacher's weights; auto: as they were saved")
    run.add_argument("--max-new-tokens", type=int, help="limit of a solution's length (default: the "
                     "preset's, for chat at least 1024)")
    run.add_argument("--max-batch", type=int, default=512, help="sequences that go through a model "
                     "at once: fewer need less memory")
    run.add_argument("--dry-run", action="store_true", help="print the plan; write nothing")
    demo.set_defaults(task="clock", columns=[], split="train", config_name=None, heldout_split=None,
                      dtype="auto", max_new_tokens=None, max_batch=512, dry_run=False)
    return parser


def _columns(args: argparse.Namespace) -> dict[str, str]:
    """`["question=problem"]` -> `{"question": "problem"}`: our field, and the source's column."""
    out = {}
    for pair in args.columns:
        name, _, column = pair.partition("=")
        if name not in FIELDS or not column:
            raise InputError(f"--columns {pair}: write FIELD=COLUMN, FIELD one of "
                             f"{', '.join(FIELDS)}: question=problem")
        out[name] = column
    return out


def _configured(args: argparse.Namespace, task: Task) -> HealConfig:
    """The preset, with the length limit asked for; a chat model needs room for its thoughts."""
    config = PRESETS[args.preset](args.seed)
    longest = args.max_new_tokens
    if longest is None:
        least = 1024 if isinstance(task, ChatMathTask) else 0
        longest = max(least, config.sample.max_new_tokens)
    return replace(config, sample=replace(config.sample, max_new_tokens=longest))


def _plan(config: HealConfig, readings: list[Reading], task: Task, lms: list[LM]) -> str:
    """What the run will cost, from a measured minute or less."""
    print("Measuring for at most a minute ...", file=sys.stderr)
    problems = limit_by_kind(readings[0].problems, config.train_limit)
    heldout = limit_by_kind(readings[1].problems, config.eval_limit)
    speed = measure(lms[0], lms[1], task, problems, config)
    stages = plan(config, len(problems), len(heldout), speed, processes().num_processes,
                  len(limit_by_kind(heldout, PROBE)))
    return plan_text(stages, lms[0], lms[1], config, speed)


def _run(args: argparse.Namespace, command: str) -> None:
    """`demo` and `run`."""
    if args.max_batch < 1:
        raise InputError(f"--max-batch {args.max_batch}: at least one sequence must go through")
    # 1) what was given
    columns, out, first = _columns(args), Path(args.out), processes().is_main_process
    lms = [load_lm(args.teacher, dtype=args.dtype, max_batch=args.max_batch),
           load_lm(args.student, max_batch=args.max_batch)]
    task = task_for(args.task, lms[0].tokenizer)
    config = _configured(args, task)
    spec = RunSpec(args.teacher, args.student, args.problems, args.heldout, config, columns,
                   args.split, args.heldout_split or args.split, args.config_name)
    readings = spec.read(task)
    # 2) what will happen: how answers are read, and the plan with which the run was started
    if args.command == "run" and first:
        print(*[r.rules() for r in readings], sep="\n", file=sys.stderr)
        kept = out / "plan.txt"
        new = args.dry_run or not (kept.exists() or (out / "config.json").exists())
        text = _plan(config, readings, task, lms) if new else ""
        if args.dry_run:
            print(text)
        elif new:
            write_text(kept, text + "\n")
        if kept.exists():
            print(kept.read_text(encoding="utf-8"), file=sys.stderr)
    if args.dry_run:
        return
    # 3) the run
    report = run(spec, out, task, lms=lms, quiet=args.quiet, command=command)
    if first:
        page = write_page(out, report, draw_figures(out, report, lms[0], task, config.pure))
        print(f"\n{text_table(table(rows_from_report(report)))}\n", *report["notes"], sep="\n")
        print(f"Mean and 95 % interval over held-out problems. Page: {page}   Report: "
              f"{out / 'report.json'}\nMore: jupyter lab {NEXT}")


def _check(args: argparse.Namespace, command: str) -> None:
    task = task_for(args.task, load_tokenizer(args.teacher))
    reading = read_problems(args.file, task, _columns(args), args.split, args.config_name)
    if reading.errors:
        raise InputError("\n".join(reading.errors))
    print(f"{reading.rules()}\n{args.file}: {len(reading.problems)} problems, no mistakes found")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return execute(_parser(), {"demo": _run, "run": _run, "check": _check}, argv)


if __name__ == "__main__":
    sys.exit(main())
