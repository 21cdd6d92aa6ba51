"""Command line: `python -m heal_ref demo | run | check`.

Exit codes: 0 done, 2 something that was given is wrong (one line says what and what to do), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heal_ref.records import DATA, InputError, write_text

if TYPE_CHECKING:
    from heal_ref.config import HealConfig
    from heal_ref.model import LM


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m heal_ref", description="HEAL on small and on full models.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    demo = add("demo", "the whole method on the shipped tiny pair: table, figures and a page")
    run = add("run", "the whole method on models and problems of your own; start it again to go on")
    for sub in (demo, run):
        sub.add_argument("--preset", default="tiny", choices=("smoke", "tiny", "paper"), help="named settings")
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
    run.add_argument("--max-batch", type=int, default=512, help="sequences that go through a model at once: less, less memory")
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop; nothing is written")
    check = add("check", "look for mistakes in a problem file")
    check.add_argument("file", help="JSON Lines file")
    check.add_argument("--teacher", default=str(DATA / "teacher"), help="the model that the problems are for")
    return parser


def _problem_files(args: argparse.Namespace, folder: Path, task: Any) -> list[str]:
    """Paths of the two JSON Lines files; anything else that `datasets` reads is written to `folder`/problems first."""
    from heal_ref.model import processes
    from heal_ref.run.sources import import_problems, parse_columns

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


def _plan(config: HealConfig, files: Sequence[str], task: Any, lms: Sequence[LM]) -> str:
    """What the run will cost, from a measured minute or less."""
    from heal_ref.model import processes
    from heal_ref.pace import check_tokenizers
    from heal_ref.records import limit_by_kind
    from heal_ref.run.plan import measure, plan, plan_text
    from heal_ref.run.sources import load_problems

    teacher, student = lms
    check_tokenizers(teacher, student)
    problems, heldout = (limit_by_kind(load_problems(f, task), limit)
                         for f, limit in zip(files, (config.train_limit, config.eval_limit), strict=True))
    print("Measuring for at most a minute ...", file=sys.stderr)
    speed = measure(teacher, student, task, problems, config)
    stages = plan(config, len(problems), len(heldout), speed, processes().num_processes)
    return plan_text(stages, teacher, student, config, speed)


def _planned(out: Path, config: HealConfig, files: Sequence[str], task: Any, lms: Sequence[LM]) -> None:
    """Show the plan first; a run that goes on shows the one it was started with."""
    from heal_ref.model import processes

    path = out / "plan.txt"
    if not processes().is_main_process:
        return
    if not path.exists() and not (out / "config.json").exists():
        write_text(path, _plan(config, files, task, lms) + "\n")
    if path.exists():
        print(path.read_text(encoding="utf-8"), file=sys.stderr)


def _configured(args: argparse.Namespace, task: Any) -> HealConfig:
    """The preset, with the length limit that was asked for; a chat model needs room for its thoughts."""
    from heal_ref.config import PRESETS
    from heal_ref.tasks import ChatMathTask

    config = PRESETS[args.preset](args.seed)
    if args.command == "demo" or (args.max_new_tokens is None and not isinstance(task, ChatMathTask)):
        return config
    longest = max(1024, config.sample.max_new_tokens) if args.max_new_tokens is None else args.max_new_tokens
    return replace(config, sample=replace(config.sample, max_new_tokens=longest))


def _run(args: argparse.Namespace, command: str) -> None:
    from heal_ref.evaluate import rows_from_report
    from heal_ref.model import load_lm, processes
    from heal_ref.run.pipeline import RunSpec, run
    from heal_ref.run.report import NEXT, draw_figures, table, text_table, write_page
    from heal_ref.tasks import ClockTask, task_for

    max_batch = getattr(args, "max_batch", 512)
    if max_batch < 1:
        raise InputError(f"--max-batch {max_batch}: at least one sequence must go through; the default is 512")
    lms, out = [load_lm(source, max_batch=max_batch) for source in (args.teacher, args.student)], Path(args.out)
    task = ClockTask() if args.command == "demo" else task_for(args.task, lms[0].tokenizer)
    config = _configured(args, task)
    if getattr(args, "dry_run", False):
        with tempfile.TemporaryDirectory() as scratch:
            print(_plan(config, _problem_files(args, Path(scratch), task), task, lms))
        return
    train, heldout = files = _problem_files(args, out, task)
    if args.command == "run":
        _planned(out, config, files, task, lms)
    spec = RunSpec(args.teacher, args.student, train, heldout, config)
    report = run(spec, out, task, lms=lms, quiet=args.quiet, command=command)
    if not processes().is_main_process:
        return
    page = write_page(out, report, draw_figures(out, report, lms[0], task, config.pure))
    print(f"\n{text_table(table(rows_from_report(report)))}\n")
    print(f"Mean and 95 % interval over held-out problems. Page: {page}   Report: {out / 'report.json'}")
    print(f"Read on: jupyter lab {NEXT}")


def _check(args: argparse.Namespace, command: str) -> None:
    from heal_ref.model import load_tokenizer
    from heal_ref.run.sources import check_problems
    from heal_ref.tasks import task_for

    problems, errors = check_problems(args.file, task_for("auto", load_tokenizer(args.teacher)))
    if errors:
        raise InputError("\n".join(errors))
    print(f"{args.file}: {len(problems)} problems, no mistakes found")


COMMANDS = {"demo": _run, "run": _run, "check": _check}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    from heal_ref.run.command import execute

    return execute(_parser(), COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
