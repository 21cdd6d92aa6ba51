"""Runs the pipeline with a stand-in server, both in forked children that are killed: `server_driver.py OUT KILLS`.

The parent imports everything once and computes nothing, so that forking is safe and cheap. SIGKILL in turn to the run, to the
server, or to both, at random moments once the server has been asked; then to the end. Prints the exit statuses of the runs.
"""

import dataclasses
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from heal_ref import server  # noqa: E402
from heal_ref.config import HealConfig, SampleConfig  # noqa: E402
from heal_ref.model import load_lm  # noqa: E402
from heal_ref.records import InputError  # noqa: E402
from heal_ref.run.pipeline import RunSpec, run  # noqa: E402
from heal_ref.tasks import ClockTask  # noqa: E402
from tests.stand_in import StandIn  # noqa: E402

DATA, out, kills = ROOT / "data", Path(sys.argv[1]), int(sys.argv[2])
config = dataclasses.replace(HealConfig.smoke(), train_limit=3, eval_limit=1, eval_n=1, sample=SampleConfig(n=3, batch=2))
spec = RunSpec("t", "s", str(DATA / "clock" / "train.jsonl"), str(DATA / "clock" / "heldout.jsonl"), config)
server.PAUSES = (0.1, 0.2)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]


def serve():
    StandIn(load_lm(DATA / "teacher"), port).serve_forever()


def work():
    try:
        while True:  # until the server is up
            try:
                teacher = load_lm(DATA / "teacher", server=f"http://127.0.0.1:{port}/v1")
                break
            except InputError:
                time.sleep(0.1)
        ready.touch()
        run(spec, out, ClockTask(), lms=(teacher, load_lm(DATA / "student")), quiet=True)
    except InputError as e:
        print(e, file=sys.stderr, flush=True)
        os._exit(2)


def fork(function):
    pid = os.fork()
    if pid == 0:
        function()
        os._exit(0)
    return pid


def end(pid):
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


rng, statuses, serving, ready = random.Random(0), [], None, Path(f"{out}.ready")
for i in range(kills + 1):
    serving = serving or fork(serve)
    ready.unlink(missing_ok=True)
    running = fork(work)
    if i < kills:
        while not ready.exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0.05, 2.5))
        if i % 3 != 1:
            os.kill(running, signal.SIGKILL)
        if i % 3 != 0:
            serving = end(serving) and None
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(running, 0)[1]))
end(serving)
print(statuses)
sys.exit(statuses[-1])
