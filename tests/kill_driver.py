"""Runs the pipeline in forked children that are killed: `kill_driver.py OUT MODE`.

The parent imports everything once and computes nothing, so that forking is safe and cheap. MODE `writes`: every
child dies at its first file that becomes durable, half of them just before the rename, half just after, so each
stage boundary and the middle of each shard is hit. MODE `random`: 20 children get SIGKILL at a random moment.
MODE `none`: one child, undisturbed. Prints how many children were killed.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from heal_ref.config import HealConfig  # noqa: E402
from heal_ref.run.pipeline import RunSpec, run  # noqa: E402
from heal_ref.tasks import ClockTask  # noqa: E402

DATA = Path(__file__).resolve().parent.parent / "data"
out, mode = Path(sys.argv[1]), sys.argv[2]
spec = RunSpec(
    str(DATA / "teacher"),
    str(DATA / "student"),
    str(DATA / "clock" / "train.jsonl"),
    str(DATA / "clock" / "validation.jsonl"),
    HealConfig.smoke(),
)
rename = os.replace


def die_at_first_rename(after: bool):
    def replace(a, b):
        if ".training" in str(b):  # work in progress: it counts only once its folder is renamed
            return rename(a, b)
        if after:
            rename(a, b)
        return os.kill(os.getpid(), signal.SIGKILL)

    return replace


def attempt(number: int) -> int:
    """One child; its exit status (negative: killed by that signal)."""
    pid = os.fork()
    if pid == 0:
        if mode == "writes" and not (out / "report.json").exists():  # the report, once written, is the end
            # The first attempt at a file dies before its rename, the second one after it.
            os.replace = die_at_first_rename(after=number % 2 == 1)
        run(spec, out, ClockTask(), quiet=True)
        os._exit(0)
    if mode == "random" and number < 20:
        time.sleep(rng.uniform(0.05, 1.2))
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


rng, killed = random.Random(0), 0
while (status := attempt(killed)) == -signal.SIGKILL:
    killed += 1
print(killed)
sys.exit(status)
