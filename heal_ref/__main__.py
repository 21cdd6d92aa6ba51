"""Command line: `python -m heal_ref demo | run | check | show`; exit codes: `run.command`."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import NoReturn

from heal_ref.config import PRESETS, HealConfig, doubts
from heal_ref.evaluate import rows_from_report
from heal_ref.memory import lazy_lm
from heal_ref.model import load_tokenizer, processes
from heal_ref.records import DATA, InputError, limit_by_kind, write_text
from heal_ref.run.command import execute
from heal_ref.run.measure import measure
from heal_ref.run.phases import cost_table
from heal_ref.run.pipeline import PROBE, RunSpec, run
from heal_ref.run.plan import by_phase, memory, plan, plan_text
from heal_ref.run.report import table, text_table, write_page
from heal_ref.run.show import STAGES, show
from heal_ref.run.sources import FIELDS, read_problems, whole
from heal_ref.settings import with_options
from heal_ref.tasks import ChatMathTask, task_for
from heal_ref.tasks.own import try_out


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def _column(pair: str) -> tuple[str, str]:
    """`"question=problem"` -> `("question", "problem")`: our field, and the source's column."""
    name, _, column = pair.partition("=")
    if name not in FIELDS or not column:
        raise argparse.ArgumentTypeError(f"{pair}: write FIELD=COLUMN, FIELD one of "
                                         f"{', '.join(FIELDS)}: question=problem")
    return name, column


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m heal_ref", description="HEAL on small and on full models.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        style = argparse.ArgumentDefaultsHelpFormatter
        return commands.add_parser(name, help=text, description=text, formatter_class=style)

    demo = add("demo", "the whole method on the shipped tiny pair: table, figures and a page")
    run = add("run", "the whole method on your models and problems; the same command continues it")
    check = add("check", "look for mistakes in a file of problems")
    ledger = add("show", "what became of each trajectory of a run, finished or not, and why")
    ledger.add_argument("folder", help="the --out of a run")
    which, verdict = (ledger.add_mutually_exclusive_group() for _ in range(2))
    which.add_argument("--source", choices=tuple(STAGES), help="unaided, answer-guided or repaired")
    which.add_argument("--stage", help="the same by its folder, such as 6-eval/heal-greedy")
    ledger.add_argument("--id", help="of one problem, step by step")
    verdict.add_argument("--kept", action="store_true", help="what students learn from")
    verdict.add_argument("--dropped", action="store_true", help="what they do not")
    ledger.add_argument("--steps", action="store_true", help="step by step, not on one line each")
    ledger.add_argument("--limit", type=int, default=20, help="trajectories shown, 0 for all")
    for sub in (demo, run, check):
        option = sub.add_argument
        option("--teacher", default=str(DATA / "teacher"), help="model folder or hub name")
        option("--task", default="auto", help="chat, clock or your own package.module:ClassName")
        option("--columns", nargs="*", default=[], type=_column, metavar="FIELD=COLUMN",
               help="question=problem")
        option("--split", help="split of a dataset (if not given: train)")
        option("--config-name", help="configuration of a dataset on the hub")
    sources = "file, folder of save_to_disk or dataset on the hub"
    check.add_argument("file", help=sources)
    for sub in (demo, run):
        option, out = sub.add_argument, "runs/demo" if sub is demo else None
        option("--preset", default="tiny", choices=tuple(PRESETS), help="named settings")
        option("--config", metavar="FILE", help="settings in TOML, over the preset's; settings.toml"
               " of a run folder is such a file")
        option("--set", action="append", default=[], metavar="NAME=VALUE",
               help="a setting over those, such as gear.paths=4; repeat it for more. Other options "
               "win over it")
        option("--seed", type=int, help="seed of sampling, training and data order (a preset's: 0)")
        option("--out", default=out, required=out is None, help="run folder")
        option("--student", default=str(DATA / "student"), help="model folder or hub name")
        option("--problems", default=str(DATA / "clock" / "train.jsonl"),
               help=f"to train on: {sources}")
        option("--heldout", default=str(DATA / "clock" / "heldout.jsonl"), help="to evaluate on")
        option("--heldout-split", help="split of --heldout, where it is another one")
        option("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
               help="of the teacher's weights; auto: as they were saved")
        option("--max-new-tokens", type=int, help="length limit (if not set anywhere: the preset's,"
               " at least 1024 for chat)")
        option("--lora", type=int, metavar="RANK", help="adapters of this rank are trained and "
               "merged, instead of all weights (needs peft)")
        option("--max-batch", type=int, default=512, help="sequences in a model at once")
        option("--measure", type=float, default=60.0, metavar="SECONDS",
               help="for the plan, at most; the longer, the better it knows how long texts are")
        option("--server", metavar="URL", help="address of a vLLM server that samples in the "
               "teacher's place: http://127.0.0.1:8123/v1")
        option("--dry-run", action="store_true", help="print the plan; write nothing")
        option("--quiet", action="store_true", help="no progress bars")
    return parser


def _settings(args: argparse.Namespace, preset: HealConfig) -> HealConfig:
    """`preset`, and over it the file of --config, each --set, and the options of their own."""
    config = HealConfig.from_file(args.config, over=preset) if args.config is not None else preset
    options = {"seed": args.seed, "sample.max_new_tokens": args.max_new_tokens,
               "pace.lora": args.lora}
    given = {name: value for name, value in options.items() if value is not None}
    return with_options(config, args.set).with_settings(given)


def _run(args: argparse.Namespace, command: str) -> None:
    """`demo` and `run`."""
    # 1) what was given; a chat model needs room for its thoughts
    out, first = Path(args.out), processes().is_main_process
    if not args.out.strip():
        raise InputError("--out is empty; give a folder")
    _refuse_splits(args, args.problems, args.heldout)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    config = _settings(args, preset := PRESETS[args.preset]())
    if first and (args.command == "demo" or args.dry_run):
        for doubt in doubts(config):
            print(doubt, file=sys.stderr)
    teacher = lazy_lm(args.teacher, dtype=args.dtype, max_batch=args.max_batch, server=args.server)
    if args.server is not None:
        teacher.load_now()  # a wrong address, or another model there, shows at once
    student = lazy_lm(args.student, max_batch=args.max_batch)
    task = task_for(args.task, teacher.tokenizer)
    if isinstance(task, ChatMathTask):
        longest = max(1024, preset.sample.max_new_tokens)
        config = _settings(args, preset.with_settings({"sample.max_new_tokens": longest}))
    split = args.split or "train"
    spec = RunSpec(args.teacher, args.student, args.problems, args.heldout, config,
                   dict(args.columns), split, args.heldout_split or split, args.config_name)
    problems, heldout, rules = spec.read(task)
    try_out(task, problems[0], student.tokenizer)
    # 2) what will happen: how answers are read, and the plan with which the run was started
    kept = out / "plan.txt"
    if first and (args.command == "run" or args.dry_run):
        print(rules, file=sys.stderr)
        if args.dry_run or not (kept.exists() or (out / "config.json").exists()):
            print(f"Measuring for about {args.measure:.0f} seconds ...", file=sys.stderr)
            speed = measure(teacher, student, task, problems, config, args.measure)
            stages = plan(config, len(problems), len(heldout), speed, processes().num_processes,
                          len(limit_by_kind(heldout, PROBE)), args.max_batch)
            text = plan_text(stages, teacher, student, config, speed)
            if args.dry_run:
                print(text)
            else:
                write_text(kept, "\n".join([text, *doubts(config), ""]))
                needs = memory(stages, teacher, student, config, speed, expected=True)
                write_text(out / "plan.json", json.dumps(by_phase(stages, needs), indent=1) + "\n")
        if kept.exists():
            print(kept.read_text(encoding="utf-8"), file=sys.stderr)
    if args.dry_run:
        return
    # 3) the run
    report = run(spec, out, task, lms=(teacher, student), quiet=args.quiet, command=command)
    if first:
        page = write_page(out, report, teacher, task, config.pure)
        print(f"\n{text_table(table(rows_from_report(report)))}\n", *report["notes"], sep="\n")
        cost = text_table(cost_table(report["provenance"]["phases"]))
        print(f"Planned (expected) and measured:\n{cost}\n")
        print(f"Mean and 95 % interval over held-out problems; "
              f"{report['provenance']['evaluation']}.\nPage: {page}   Report: "
              f"{out / 'report.json'}\nMore: jupyter lab notebooks/00_world.ipynb")


def _refuse_splits(args: argparse.Namespace, *sources: str) -> None:
    """InputError for options that choose a part of a dataset where plain files are read."""
    for option, given, read in (
            ("--split", args.split, sources), ("--config-name", args.config_name, sources),
            ("--heldout-split", getattr(args, "heldout_split", None), sources[-1:])):
        if given is not None and all(Path(source).is_file() for source in read):
            raise InputError(f"{option} {given}: {read[0]} is a file, which has no such parts; "
                             f"leave {option} out")


def _check(args: argparse.Namespace, command: str) -> None:
    _refuse_splits(args, args.file)
    tokenizer = load_tokenizer(args.teacher)
    task = task_for(args.task, tokenizer)
    (reading,) = whole(read_problems(args.file, task, dict(args.columns),
                                     args.split or "train", args.config_name))
    try_out(task, reading.problems[0], tokenizer)
    print(f"{reading.rules}\n{args.file}: {len(reading.problems)} problems, no mistakes found")


def _show(args: argparse.Namespace, command: str) -> None:
    stage = STAGES[args.source] if args.source else args.stage
    kept = True if args.kept else False if args.dropped else None
    if args.limit < 0:
        raise InputError(f"--limit {args.limit}: it must be 0, for all, or more")
    try:
        for line in show(Path(args.folder), stage, args.id, kept, args.limit,
                         args.steps or args.id is not None):
            print(line)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return execute(_parser(), {"demo": _run, "run": _run, "check": _check, "show": _show}, argv)


if __name__ == "__main__":
    sys.exit(main())
