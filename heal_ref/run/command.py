"""What both command lines share: how an error becomes one line and an exit code."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from datasets import disable_progress_bars
from safetensors import SafetensorError

from heal_ref.model import OutOfMemory, quiet
from heal_ref.records import InputError


def execute(parser: argparse.ArgumentParser,
            commands: Mapping[str, Callable[[argparse.Namespace, str], None]],
            argv: Sequence[str] | None = None) -> int:
    """Run one command, called with its arguments and the text that was typed; the exit code:
    0 done; 2 wrong input (one line says what and what to do); 130 Ctrl-C."""
    args = parser.parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet()
    disable_progress_bars()
    again = "then start the same command again: what was finished is kept"
    try:
        if getattr(args, "max_batch", 1) < 1:
            raise InputError(f"--max-batch {args.max_batch}: at least one sequence must go through")
        commands[args.command](args, " ".join([parser.prog, *(argv or sys.argv[1:])]))
        return 0
    except (InputError, FloatingPointError) as e:
        error = str(e)
    except OutOfMemory as e:
        error = (f"the device's memory is full ({str(e).splitlines()[0]}); lower --max-batch or "
                 f"take a smaller model, {again}")
    except SafetensorError as e:
        error = f"a model's file cannot be written or read ({e}); make room, {again}"
    except OSError as e:
        error = f"{e.filename or 'a file'}: {e.strerror or e}; mend that, {again}"
    except RuntimeError as e:
        if "PytorchStreamWriter" not in str(e):
            raise
        error = f"a checkpoint cannot be written ({str(e).splitlines()[0]}); make room, {again}"
    except KeyboardInterrupt:
        print(f"\nStopped. What was finished is kept in {getattr(args, 'out', '.')}; the same "
              "command continues from there.", file=sys.stderr)
        return 130
    print(error, file=sys.stderr)
    return 2
