"""Trains a student in the CPU processes that torchrun starts: `fsdp_driver.py OUT [fsdp] [die] [lora]`.

accelerate offers FSDP on accelerators only, though torch's own works on CPUs too. So with `fsdp` the state that `accelerate
launch --use_fsdp` would make is made here by hand; all that comes behind it (Trainer, our training, learning curve, saving)
is the real code. With `die` all processes are killed in the middle of the second stage; with `lora` adapters are trained.
"""

import gc
import os
import signal
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from accelerate.state import AcceleratorState, PartialState  # noqa: E402
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import Qwen3ForCausalLM  # noqa: E402

import heal_ref as heal  # noqa: E402

plain_init = AcceleratorState.__init__


def init_with_fsdp(self, *args, **kwargs):
    plain_init(self, *args, **kwargs)
    if self.distributed_type != DistributedType.FSDP:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["Qwen3DecoderLayer"],
            state_dict_type="FULL_STATE_DICT", cpu_ram_efficient_loading=False)


if "fsdp" in sys.argv:
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    AcceleratorState.__init__ = init_with_fsdp

out, task, student = Path(sys.argv[1]), heal.ClockTask(), heal.load_lm(heal.DATA / "student")
problems = heal.load_problems(heal.DATA / "clock" / "validation.jsonl", task)[:48]
text = "We start at {}.\n\nSo the answer is \\boxed{{{}}}."
rows = [{"id": p.id, "prompt": task.prompt(p), "completion": text.format(i % 23, p.answer)} for i, p in enumerate(problems)]
stages = {name: Dataset.from_list(rows) for name in ("foundation", "guided")}
config = heal.PaceConfig(updates=8, batch=8, warmup=1, learning_rate=3e-3, save_every=2, curve_every=2,
                         lora=4 * ("lora" in sys.argv))
seen = set()  # what weights are while training: a DTensor is a part of one


def progress(done, total):
    with warnings.catch_warnings(action="ignore"):
        # By type: isinstance asks an object for its class, and a weak proxy whose object is gone raises ReferenceError.
        models = [m for m in gc.get_objects() if issubclass(type(m), Qwen3ForCausalLM)]
    seen.update(type(p).__name__ for m in models for p in m.parameters())
    if "die" in sys.argv and done == 7:
        os.kill(os.getpid(), signal.SIGKILL)


heal.distill(student, task, stages, config, folder=out, probe=problems[:4], progress=progress)
if heal.model.processes().is_main_process:
    (out / "seen.txt").write_text(" ".join(sorted(seen)))
