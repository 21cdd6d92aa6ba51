"""The real server: vLLM on the loopback address, from an environment of its own. `make test-vllm` builds it and runs this.

The shipped teacher, and SmolLM2-135M-Instruct where its wheel can be had. In float32 on both sides.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor

import heal_ref as heal
from heal_ref.config import SampleConfig
from heal_ref.entropy import split_steps, step_values
from heal_ref.gear import find_breakpoint
from heal_ref.generation import _Recorder, generate, repeats
from heal_ref.run.shards import read_shard
from heal_ref.run.sources import load_problems
from heal_ref.server import PROBE, connect
from tests.conftest import DATA, ROOT

VLLM = Path(os.environ.get("HEAL_REF_VLLM", "none")).absolute() / "bin" / "vllm"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not VLLM.exists(), reason="vLLM is not built: make test-vllm")]
KILLS = int(os.environ.get("HEAL_REF_KILLS", "3"))  # the recorded check was made with 20


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Vllm:
    """`vllm serve` in a process group of its own. On a CPU, vLLM 0.32 dies of a prompt that is computed in parts and has a
    seed (a CPU's generator has no `set_offset`): so no prompt is computed in parts."""

    def __init__(self, folder, log, port=None, *more):
        self.port, self.log = port or free_port(), log
        self.url = f"http://127.0.0.1:{self.port}/v1"
        settings = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0",
                    "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | settings
        command = [VLLM, "serve", folder, "--served-model-name", "teacher", "--host", "127.0.0.1", "--port", self.port,
                   "--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--no-enable-chunked-prefill", *more]
        with open(log, "a") as f:
            self.process = subprocess.Popen(list(map(str, command)), env=env, stdout=f, stderr=f, start_new_session=True)

    def wait(self):
        for _ in range(900):
            with contextlib.suppress(httpx2.HTTPError):
                httpx2.get(f"{self.url}/models", trust_env=False)
                return self
            if self.process.poll() is not None:
                pytest.skip(f"vLLM does not start here: {self.log.read_text()[-300:]}")
            time.sleep(1)
        self.kill()
        pytest.skip("vLLM has not started in 15 minutes")

    def kill(self, how=signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)
        self.process.wait(timeout=60)


def smollm2(folder):
    from tests.test_real_model import gguf_file

    pytest.importorskip("gguf")
    lm = heal.load_lm(gguf_file())
    for part in (lm.model, lm.tokenizer):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["shipped", "SmolLM2"])
def side(request, tmp_path_factory):
    """(model here, the same with its server, prompts, what ends a step)."""
    folder = tmp_path_factory.mktemp("vllm")
    where = DATA / "teacher" if request.param == "shipped" else smollm2(folder / "lm")
    server = Vllm(where, folder / "log.txt").wait()
    here, there = heal.load_lm(where), heal.load_lm(where, server=server.url)
    if request.param == "shipped":
        task, problems = heal.ClockTask(), load_problems(DATA / "clock" / "validation.jsonl", heal.ClockTask())[::8]
    else:
        task = heal.ChatMathTask(here.tokenizer, verify=False)
        problems = [heal.Problem(str(n), f"Tom has {n} bags of {n + 1} nuts and eats {n} nuts. How many are left?", "1")
                    for n in range(2, 18)]
    yield here, there, [here.encode(task.prompt(p)) for p in problems], "\n\n" if request.param == "shipped" else "."
    server.kill(signal.SIGTERM)


def breakpoint_of(lm, separator, rollout):
    steps = split_steps(lm.pieces(rollout.ids), separator)
    return find_breakpoint(step_values(rollout.entropy, steps, "mean")) if steps else None


class Force(LogitsProcessor):
    """Only the next of some given ids can be drawn."""

    def __init__(self, ids):
        self.ids = iter(ids)

    def __call__(self, _, scores):
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([next(self.ids)]), 0.0)


def recorded(lm, prompt, rollout):
    """What `generate` records on the way when it happens to draw these ids."""
    recorder, ids = _Recorder(), torch.tensor([prompt])
    lm.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), logits_processor=[recorder, Force(rollout.ids)],
                      generation_config=GenerationConfig(max_new_tokens=len(rollout.ids), pad_token_id=0))
    return heal.generation.Rollout(rollout.ids, torch.cat(recorder.entropy).tolist(), [], rollout.finished)


def test_log_probs_of_both_sides_agree(side):
    here, there, prompts, _ = side
    contexts = [ids for ids in prompts[:40] for _ in range(4)]
    drawn, _ = there.server.sample(contexts, here.ends, seed=3, max_tokens=60, temperature=0.8, top_p=0.95)
    assert len({tuple(ids) for ids, _, _ in drawn}) > 40
    stats = heal.text_stats(here, [(context, ids) for context, (ids, _, _) in zip(contexts, drawn, strict=True)])
    off = [abs(a - b) for (_, own), (_, theirs, _) in zip(stats, drawn, strict=True) for a, b in zip(own, theirs, strict=True)]
    print(f"{len(off)} tokens, log-probs off by at most {max(off):.1e}")
    assert max(off) < 1e-3


def test_greedy_texts_and_their_breakpoints_are_those_of_generate(side):
    here, there, prompts, separator = side
    ours, theirs = (generate(lm, prompts, sampling=SampleConfig(temperature=0.0, max_new_tokens=60), seed=0)
                    for lm in (here, there))
    same = [a.ids == b.ids for a, b in zip(ours, theirs, strict=True)]
    points = [breakpoint_of(here, separator, a) == breakpoint_of(here, separator, b) for a, b in zip(ours, theirs, strict=True)]
    print(f"{len(same)} greedy texts, {sum(same)} equal, {sum(points)} with the same breakpoint")
    assert sum(points) >= 0.99 * len(points)


def test_breakpoints_of_sampled_texts_are_those_of_the_recorder(side):
    here, there, prompts, separator = side
    prompts = (prompts * 2)[:100]
    rollouts = generate(there, prompts, sampling=SampleConfig(max_new_tokens=60), seed=5)
    points = [(breakpoint_of(here, separator, r), breakpoint_of(here, separator, recorded(here, prompt, r)))
              for prompt, r in zip(prompts, rollouts, strict=True) if r.ids]
    same = sum(a == b for a, b in points)
    print(f"{len(points)} sampled texts, {same} with the same breakpoint, {sum(a is not None for a, _ in points)} with one")
    assert len(points) > 0.9 * len(prompts)
    assert same >= 0.99 * len(points)


def test_what_generate_can_be_asked(side):
    here, there, prompts, _ = side
    context, tails = repeats(prompts[0], 6)
    many = SampleConfig(temperature=1.0, max_new_tokens=12)
    first, again = (generate(there, [context], [tails], sampling=many, seed=1) for _ in range(2))
    assert [r.ids for r in first] == [r.ids for r in again]
    assert len({tuple(r.ids) for r in first}) > 1
    assert not any(r.finished for r in generate(there, prompts[:3], sampling=many, seed=0, ends=False))
    assert 0 < len(generate(there, prompts[:1], sampling=many, seed=0, seconds=0.0)[0].ids) <= 12
    with pytest.raises(heal.InputError, match="raise --max-model-len from 512 to"):
        generate(there, prompts[:1], sampling=SampleConfig(max_new_tokens=512), seed=0)


@pytest.mark.parametrize("other", ["student", "heal_student", "chat/teacher"])
def test_another_model_is_refused(side, other):
    _, there, _, _ = side
    with pytest.raises(heal.InputError, match="the server has another (model, with log-probs off by|tokenizer)"):
        connect(there.server.url, heal.load_lm(DATA / other))
    assert PROBE


def starts(out):
    """How often the run has begun to work."""
    return (out / "log.txt").read_text().count("started;") if (out / "log.txt").exists() else 0


def shards(out):
    """The records of the stages that the teacher makes, and how each stands in its file."""
    files = sorted(p for stage in ("1-base", "2-guided", "3-repaired") for p in (out / stage).glob("*.parquet"))
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


def test_a_smoke_run_killed_with_its_server_loses_nothing(tmp_path):
    """SIGKILL in turn to the run, to the server, or to both, at random moments; then to the end."""
    out, moments, port = tmp_path / "run", random.Random(0), free_port()
    command = [sys.executable, "-m", "heal_ref", "run", "--preset", "smoke", "--quiet", "--server",
               f"http://127.0.0.1:{port}/v1", "--out", str(out)]
    server, kept, codes, begun = None, {}, [], 0
    for i in range(KILLS):
        server = server or Vllm(DATA / "teacher", tmp_path / "log.txt", port).wait()
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and starts(out) == begun:
            time.sleep(0.1)
        begun = starts(out)
        time.sleep(moments.uniform(0.5, 15))
        if i % 3 != 1:
            process.kill()
        if i % 3 != 0:
            server = server.kill()
        error = process.communicate(timeout=600)[1]
        codes.append(process.returncode)
        assert process.returncode in (0, 2, -signal.SIGKILL), error[-2000:]
        if process.returncode == 2:
            assert error.splitlines()[-1].startswith("server '"), error[-2000:]
        now = shards(out)
        assert {name: now[name] for name in kept} == kept  # what was finished stays as it is
        kept = now
    server = server or Vllm(DATA / "teacher", tmp_path / "log.txt", port).wait()
    subprocess.run(command, cwd=ROOT, check=True, timeout=900)
    server.kill(signal.SIGTERM)
    print(f"{KILLS} kills, the run's codes: {codes}")
    now = shards(out)
    assert {name: now[name] for name in kept} == kept
    counts = json.loads((out / "report.json").read_text())["provenance"]["counts"]
    for stage, count in (("1-base", counts["base"]), ("2-guided", counts["guided"])):
        made = [(t.problem.id, t.index) for name in now if name.startswith(stage) for t in read_shard(out / name)]
        assert len(made) == len({*made}) == count
    assert counts["base"] == 4 * counts["train problems"]
