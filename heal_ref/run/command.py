"""What both command lines share: how an error becomes one line and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from heal_ref.model import OutOfMemory, quiet
from heal_ref.records import InputError

Commands = Mapping[str, Callable[[argparse.Namespace, str], None]]


def execute(parser: argparse.ArgumentParser, commands: Commands, argv: Sequence[str] | None = None) -> int:
    """Run one command of a command line.

    Each command is called with its arguments and with the command as it was typed.

    Returns:
        The exit code: 0 done; 2 something that was given is wrong (one line says what and what to do);
        130 stopped by Ctrl-C.
    """
    args = parser.parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet()
    try:
        commands[args.command](args, f"{parser.prog} " + " ".join(sys.argv[1:] if argv is None else argv))
    except (InputError, FloatingPointError) as e:
        print(e, file=sys.stderr)
        return 2
    except OutOfMemory as e:
        print(f"the device's memory is full ({str(e).splitlines()[0]}); lower --max-batch, or take a smaller model, then start "
              "the same command again: what was finished is kept", file=sys.stderr)
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
