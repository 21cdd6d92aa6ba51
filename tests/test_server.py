"""Sampling by a server, a stand-in for vLLM over real HTTP: the same tokens, every fault, a run that is cut.

`test_vllm.py` asks the real one.
"""

import copy
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch
from tokenizers import Tokenizer

import heal_ref as heal
from heal_lab import bench
from heal_ref import server as server_module
from heal_ref.__main__ import main
from heal_ref.config import HealConfig, SampleConfig
from heal_ref.generation import generate, repeats
from heal_ref.model import LM
from heal_ref.records import InputError, limit_by_kind
from heal_ref.run.folder import RunFolder, identity
from heal_ref.run.pipeline import Method
from heal_ref.run.sources import load_problems
from heal_ref.server import PROBE, connect
from heal_ref.tasks import ClockTask
from tests.conftest import DATA, ROOT, run_files
from tests.stand_in import StandIn

GREEDY, DRAWN = SampleConfig(temperature=0.0, max_new_tokens=60), SampleConfig(temperature=0.8, max_new_tokens=60)
KILLS = int(os.environ.get("HEAL_REF_KILLS", "3"))  # the recorded check was made with 20


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(server_module, "PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def here():
    return heal.load_lm(DATA / "teacher")


@pytest.fixture
def stand_in(here):
    with StandIn(here) as it:
        yield it


@pytest.fixture
def served(here, stand_in):
    """The teacher, sampled by the stand-in; what was asked so far is forgotten."""
    lm = dataclasses.replace(here)
    lm.server = connect(stand_in.url, lm)
    stand_in.asked.clear()
    return lm


@pytest.fixture(scope="module")
def prompts(here):
    return [here.encode(f"Problem: Start {i}; + 3; # 4; * 2\nSolution:\n") for i in range(5)]


# ----------------------------------------------------------------------------- what comes back


def test_greedy_texts_are_those_of_generate(here, served, prompts):
    ours, theirs = (generate(lm, prompts, sampling=GREEDY, seed=0) for lm in (here, served))
    assert [r.ids for r in ours] == [r.ids for r in theirs]
    assert [r.finished for r in ours] == [r.finished for r in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.entropy == pytest.approx(b.entropy, abs=1e-5)
        assert a.logprob == pytest.approx(b.logprob, abs=1e-5)


def test_entropies_and_log_probs_are_those_of_the_scorer(here, served, prompts):
    contexts, tails = zip(*(repeats(ids, 4) for ids in prompts), strict=True)
    rollouts = generate(served, contexts, tails, sampling=DRAWN, seed=1)
    assert len({tuple(r.ids) for r in rollouts}) == 20
    scored = heal.text_stats(here, [(prompts[i // 4], r.ids) for i, r in enumerate(rollouts)])
    for r, (entropy, logprob) in zip(rollouts, scored, strict=True):
        assert r.entropy == pytest.approx(entropy, abs=1e-5)
        assert r.logprob == pytest.approx(logprob, abs=1e-5)
        assert not {*r.ids} & {*here.ends}


def test_ids_go_there_as_they_are_and_continuations_of_a_prefix_in_one_request(served, stand_in, prompts):
    strange = [here_is_no_text := 70, *prompts[0]]  # ids that no text would be encoded to
    generate(served, *repeats_of([strange, prompts[1]], 4), sampling=DRAWN, seed=1)
    asked = sorted(stand_in.asked, key=lambda b: b["prompt"] != strange)
    assert [(b["prompt"], b["n"]) for b in asked] == [(strange, 4), (prompts[1], 4)]
    assert here_is_no_text < served.server.vocabulary
    assert {b["temperature"] for b in asked} == {0.8}
    assert {(b["top_p"], b["top_k"], b["min_p"], b["repetition_penalty"]) for b in asked} == {(1.0, 0, 0.0, 1.0)}
    generate(served, *repeats_of(prompts[:1], 4), sampling=GREEDY, seed=1)
    assert stand_in.asked[-1]["n"] == 1  # vLLM refuses more


def repeats_of(prompts, n):
    return tuple(zip(*(repeats(ids, n) for ids in prompts), strict=True))


def test_seeds_follow_from_seed_and_position(served, stand_in, prompts):
    first = generate(served, *repeats_of(prompts, 2), sampling=DRAWN, seed=1)
    seeds = {tuple(b["prompt"]): b["seed"] for b in stand_in.asked}
    assert len({*seeds.values()}) == 5
    stand_in.asked.clear()
    assert generate(served, *repeats_of(prompts, 2), sampling=DRAWN, seed=1) == first
    assert {tuple(b["prompt"]): b["seed"] for b in stand_in.asked} == seeds
    stand_in.asked.clear()
    assert generate(served, *repeats_of(prompts, 2), sampling=DRAWN, seed=2) != first
    assert not {b["seed"] for b in stand_in.asked} & {*seeds.values()}


def test_what_is_not_visible_is_not_sent(here, served, stand_in, prompts):
    text, demand = [*prompts[0], *prompts[1]], here.encode("So the answer is ")
    more = {"sampling": GREEDY, "seed": 0, "visible": [[len(prompts[0]), len(text)]]}
    ours, theirs = (generate(lm, [text], [[demand, demand]], **more) for lm in (here, served))
    assert sorted(b["prompt"] for b in stand_in.asked) == sorted([prompts[0] + demand, text + demand])
    assert [r.ids for r in ours] == [r.ids for r in theirs]


def test_no_end_before_the_limit(served, stand_in, prompts):
    rollouts = generate(served, prompts, sampling=DRAWN, seed=0, ends=False)
    assert [len(r.ids) for r in rollouts] == [60] * 5
    assert not any(r.finished for r in rollouts)


def test_a_measurement_stops_in_time_and_goes_on_where_it_was(served, stand_in, prompts):
    some = generate(served, prompts, sampling=GREEDY, seed=0, seconds=0.0)
    assert [len(r.ids) for r in some] == [16] * 5  # at least one part
    assert not any(r.finished for r in some)
    assert generate(served, prompts, sampling=GREEDY, seed=0, seconds=60.0) == generate(
        served, prompts, sampling=GREEDY, seed=0)


def test_more_than_the_server_takes_is_refused_before_it_is_asked(served, stand_in, prompts):
    longest = max(map(len, prompts))
    generate(served, prompts[:1], sampling=dataclasses.replace(GREEDY, max_new_tokens=512 - longest), seed=0)
    stand_in.asked.clear()
    with pytest.raises(InputError, match=f"{stand_in.url}: raise --max-model-len from 512 to 513"):
        generate(served, prompts, sampling=dataclasses.replace(GREEDY, max_new_tokens=513 - longest), seed=0)
    assert not stand_in.asked


def test_nothing_asked_is_nothing_made(served, stand_in):
    assert generate(served, [], sampling=GREEDY, seed=0) == []
    assert not stand_in.asked


def test_an_answers_uncertainty_needs_no_server_and_roll_outs_do(here, served, stand_in):
    problem = heal.Problem("p", "Start 5; + 3; * 4", "9")
    t, = heal.sample(here, ClockTask(), [problem], 1, sampling=GREEDY)
    forced, rollout = heal.PureConfig(reading="forced"), heal.PureConfig(reading="rollout", rollouts=4)
    assert heal.pure_scores(served, ClockTask(), [t], forced) == heal.pure_scores(here, ClockTask(), [t], forced)
    assert not stand_in.asked
    heal.pure_scores(served, ClockTask(), [t], rollout, sampling=DRAWN)
    starts = [here.encode(t.prompt) + t.token_ids[:a] for a, _ in t.steps]
    assert sorted((b["prompt"], b["n"]) for b in stand_in.asked) == sorted((ids, 4) for ids in starts)


def test_a_trained_copy_has_no_server(served):
    assert served.server
    assert dataclasses.replace(served, model=served.model).server is None


# -------------------------------------------------------------------------------- faults


def of_choice(change):
    """A fault that changes the first of the choices in place."""

    def fault(answer):
        change(answer["choices"][0])
        return answer

    return fault


FAULTS = {  # name -> what becomes of an answer, a part of the message
    "no answer": (lambda a: None, "RemoteProtocolError"),
    "status 500": (lambda a: 500, "status 500"),
    "status 503": (lambda a: 503, "a status of 503"),
    "status 429": (lambda a: 429, "status 429"),
    "half of the JSON": (lambda a: json.dumps(a).encode()[:-30], "JSONDecodeError"),
    "a page": (lambda a: b"<html>It works!</html>", "JSONDecodeError"),
    "nothing": (lambda a: b"", "JSONDecodeError"),
    "no UTF-8": (lambda a: b'{"choices": "\xff"}', "UnicodeDecodeError"),
    "a list": (lambda a: [a], "TypeError"),
    "null": (lambda a: b"null", "TypeError"),
    "no choices": (lambda a: {}, "no field: 'choices'"),
    "fewer choices": (lambda a: {"choices": a["choices"][1:]}, "no field: 2"),
    "one choice twice": (lambda a: {"choices": [a["choices"][0], *a["choices"][:-1]]}, "no field: 0"),
    "choices are words": (lambda a: {"choices": ["a", "b", "c"]}, "TypeError"),
    "text only": (of_choice(lambda c: c.pop("token_ids")), "no field: 'token_ids'"),
    "token_ids is null": (of_choice(lambda c: c.update(token_ids=None)), "TypeError"),
    "token_ids are words": (of_choice(lambda c: c.update(token_ids=["a"] * 8)), "not whole or not of this vocabulary"),
    "token_ids are fractions": (of_choice(lambda c: c.update(token_ids=[0.5] * 8)), "not of this vocabulary"),
    "ids of another vocabulary": (of_choice(lambda c: c.update(token_ids=[71] * 8)), "not of this vocabulary"),
    "a negative id": (of_choice(lambda c: c.update(token_ids=[-1] * 8)), "not of this vocabulary"),
    "no ids": (of_choice(lambda c: c.update(token_ids=[])), "IndexError"),
    "half a text": (of_choice(lambda c: c.update(token_ids=c["token_ids"][:5])), "5 token_ids, not whole"),
    "an end within": (of_choice(lambda c: c.update(token_ids=[1, *c["token_ids"][1:]])), "not whole"),
    "no log-probs": (of_choice(lambda c: c.pop("logprobs")), "no field: 'logprobs'"),
    "log-probs are null": (of_choice(lambda c: c.update(logprobs=None)), "TypeError"),
    "half of the log-probs": (of_choice(lambda c: c["logprobs"]["token_logprobs"].__delitem__(slice(3, None))), "not whole"),
    "log-probs are words": (of_choice(lambda c: c.update(logprobs={"token_logprobs": ["a"] * 8})), "ValueError"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_tried_again_and_then_told_in_one_line(served, stand_in, prompts, name):
    fault, message = FAULTS[name]
    call = partial(generate, served, *repeats_of(prompts[:1], 3), sampling=SampleConfig(max_new_tokens=8), seed=1)
    whole = call()
    answer, compute = stand_in.answer("/v1/completions", stand_in.asked[0]), stand_in.answer
    stand_in.answer = lambda path, body: (  # the same question has the same answer
        copy.deepcopy(answer) if body == stand_in.asked[0] else compute(path, body))
    stand_in.faults[:] = [fault] * 3
    assert call() == whole
    assert len(stand_in.asked) == 5
    assert all(body == stand_in.asked[0] for body in stand_in.asked)
    stand_in.faults[:] = [fault] * 4
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert text.startswith(f"server '{stand_in.url}': no usable answer to completions (")
    assert message in text
    assert text.endswith("start the same command again: nothing is lost")
    assert "\n" not in text


def test_a_server_that_hangs_is_asked_again(served, stand_in, prompts, monkeypatch):
    monkeypatch.setattr(server_module, "TIMEOUT", 3.0)
    monkeypatch.setattr(server_module, "PAUSES", (0.0,))
    over, one_token = threading.Event(), SampleConfig(max_new_tokens=1)

    def hang(_):
        over.wait(60)

    stand_in.faults[:] = [hang]
    assert generate(served, prompts[:1], sampling=one_token, seed=0)
    stand_in.faults[:] = [hang, hang]
    with pytest.raises(InputError, match="no usable answer to completions .ReadTimeout"):
        generate(served, prompts[:1], sampling=one_token, seed=0)
    over.set()


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_not_tried_again(served, stand_in, prompts, status):
    stand_in.faults[:] = [lambda _: status]
    with pytest.raises(InputError, match=f"status {status}: .*a status of {status}"):
        generate(served, prompts[:1], sampling=DRAWN, seed=1)
    assert len(stand_in.asked) == 1


def test_a_fault_of_one_request_ends_the_others(served, stand_in, prompts):
    over = threading.Event()
    stand_in.faults[:] = [lambda a: a, lambda _: 400, *[lambda _: over.wait(60) and None] * 3]
    with pytest.raises(InputError, match="status 400"):
        generate(served, prompts, sampling=DRAWN, seed=1)
    over.set()


def test_a_server_that_is_back_goes_on(here, served, stand_in, prompts, monkeypatch):
    whole = generate(served, prompts, sampling=DRAWN, seed=1)
    port, again = stand_in.server_port, []
    stand_in.faults[:] = [lambda a: a, stand_in.die]

    async def restarted(pause):
        if stand_in.dead and not again:
            assert stand_in.closed.wait(30)
            again.append(StandIn(here, port).__enter__())

    monkeypatch.setattr(server_module, "sleep", restarted)
    assert generate(served, prompts, sampling=DRAWN, seed=1) == whole
    again[0].die()


def test_another_model_after_a_restart_is_refused(here, served, stand_in, prompts):
    port = stand_in.server_port
    stand_in.die()
    with StandIn(heal.load_lm(DATA / "student"), port), pytest.raises(
            InputError, match=r"the server has another model, with log-probs off by \d\.\d\d nats per token"):
        generate(served, prompts, sampling=DRAWN, seed=1)


# ------------------------------------------------------------------- another server at the start


def moved(lm, by):
    """A copy whose first attention layer is moved: as a little fine-tuning or an adapter would."""
    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        weight = model.model.layers[0].self_attn.q_proj.weight
        weight += by * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * weight.std()
    return LM(model, lm.tokenizer)


def refused(url, message, lm):
    with pytest.raises(InputError, match=message) as caught:
        connect(url, lm)
    assert "\n" not in str(caught.value)


def test_other_weights_are_refused(here):
    with StandIn(heal.load_lm(DATA / "heal_student")) as other:  # same name, same tokenizer
        refused(other.url, "the server has another model, with log-probs off by", here)
    with StandIn(moved(here, 0.3)) as other:
        refused(other.url, "the server has another model, with log-probs off by", here)


def test_the_same_model_in_bfloat16_is_accepted(here):
    with StandIn(heal.load_lm(DATA / "teacher", dtype="bfloat16")) as other:
        assert connect(other.url, here).name == "teacher"


def test_another_vocabulary_is_refused(here):
    with StandIn(heal.load_lm(DATA / "chat" / "teacher")) as other:
        refused(other.url, "the server has another tokenizer; serve the folder loaded here", here)


def test_another_tokenizer_is_refused(here, tmp_path):
    """The same weights, but two words have changed places."""
    shutil.copytree(DATA / "teacher", tmp_path / "lm")
    rules = json.loads((tmp_path / "lm" / "tokenizer.json").read_text())
    words = rules["model"]["vocab"]
    words["5"], words["3"] = words["3"], words["5"]
    Tokenizer.from_str(json.dumps(rules)).save(str(tmp_path / "lm" / "tokenizer.json"))
    with StandIn(heal.load_lm(tmp_path / "lm")) as other:
        refused(other.url, "the server has another tokenizer", here)


@pytest.mark.parametrize("template", ["another", None])
def test_another_template_is_refused(template):
    chat = heal.load_lm(DATA / "chat" / "teacher")
    with StandIn(chat) as same:
        assert connect(same.url, chat).vocabulary > 0
    other = heal.load_lm(DATA / "chat" / "teacher")
    text = other.tokenizer.chat_template
    other.tokenizer.chat_template = template and text.replace("user", "human", 1) + "{{ 'Hm, ' }}"
    with StandIn(other) as it:
        refused(it.url, "another chat template" if template else "no usable answer to chat/completions .status 400", chat)


START = {  # what the server answers to the probe -> a part of the message
    "text only": ([lambda a: {"choices": [{"index": 0, "text": "We"}]}], "no field: 'prompt_token_ids'"),
    "one of two": ([lambda a: a, *[lambda a: {"choices": a["choices"][:1]}] * 4], "no field: 0"),
    "log-probs of something else": ([lambda a: a, of_choice(lambda c: c.update(logprobs={"token_logprobs": [-9.0] * 32}))],
                                    "another model"),
    "log-probs are NaN": ([lambda a: a, of_choice(lambda c: c.update(logprobs={"token_logprobs": [float("nan")] * 32}))],
                          "another model, with log-probs off by nan"),
    "no completions": ([lambda a: 404], "no usable answer to completions .status 404"),
    "an old server": ([lambda a: a, *[of_choice(lambda c: c.pop("token_ids"))] * 4], "no field: 'token_ids'"),
}


@pytest.mark.parametrize("name", START)
def test_servers_that_cannot_be_used(here, stand_in, name):
    faults, message = START[name]
    stand_in.probed, stand_in.faults[:] = True, faults
    refused(stand_in.url, message, here)


def test_a_server_of_another_answer_is_refused(here, stand_in):
    """It answers the right number of whole texts, but to another prompt."""
    answer = stand_in.answer
    other = here.encode("Problem: Start 1; - 3\nSolution:\n")
    stand_in.answer = lambda path, body: answer(path, body if body["prompt"] == PROBE else body | {"prompt": other})
    refused(stand_in.url, "another model", here)


def test_the_probe_fits_a_small_server(here):
    with StandIn(here, limit=40) as small:
        refused(small.url, f"raise --max-model-len from 40 to {len(here.encode(PROBE)) + 32}", here)


ADDRESSES = {
    "": "server '': no usable answer to models (UnsupportedProtocol",
    "127.0.0.1:8123/v1": "missing an 'http://' or 'https://' protocol",
    "ftp://127.0.0.1/v1": "unsupported protocol 'ftp://'",
    "http://": "no usable answer to models",
    "http://127.0.0.1:99999/v1": "port must be 0-65535",
    "http://127.0.0.1:port/v1": "InvalidURL",
    "http://no.such.host.invalid/v1": "ConnectError",
    "closed": "ConnectError: All connection attempts failed",
    "without /v1": "status 404",
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_addresses_on_the_command_line(tmp_path, capsys, stand_in, name):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    url = {"closed": closed, "without /v1": stand_in.url.removesuffix("/v1")}.get(name, name)
    assert main(["run", "--server", url, "--out", str(tmp_path / "run"), "--quiet"]) == 2
    line = capsys.readouterr().err
    assert ADDRESSES[name] in line
    assert line.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_benchmark_runs(stand_in, capsys):
    assert bench.bench_server(stand_in.url, str(DATA / "teacher"), 1, prefix=20, new_tokens=3, n=2)[0].ratio > 0
    assert {(b["n"], len(b["prompt"]), b["max_tokens"], b["min_tokens"]) for b in stand_in.asked} == {
        (1, 20, 3, 3), (2, 20, 3, 3)}
    assert len({tuple(b["prompt"]) for b in stand_in.asked}) == len(stand_in.asked)


# ------------------------------------------------------------------------------------ whole runs


def made(lm, out):
    """Every stage of a run in which the teacher samples or scores; the bytes of the shards."""
    config = dataclasses.replace(HealConfig.smoke(), sample=SampleConfig(n=3, batch=2, max_new_tokens=60))
    train = limit_by_kind(load_problems(DATA / "clock" / "train.jsonl"), 2)
    method = Method(RunFolder(out, {}, quiet=True), lm, ClockTask(), config)
    base = method.sampled(train)
    for trajectories in (method.guided(base), method.repaired(base)):
        method.scored(f"4-scores/{trajectories[0].source}", trajectories)
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.parquet"))}


def test_a_run_that_its_server_cuts_goes_on_later(here, served, stand_in, tmp_path):
    """The server dies at three moments; each time it is one error, and the same run goes on at another address."""
    whole = made(served, tmp_path / "whole")
    asked = len(stand_in.asked)
    assert asked > 10
    for share in (0.1, 0.2, 0.3):  # what a finished shard asked is not asked again
        with StandIn(here) as mortal:
            lm = dataclasses.replace(here)
            lm.server = connect(mortal.url, lm)
            mortal.faults[:] = [lambda a: a] * int(share * asked) + [mortal.die]
            with pytest.raises(InputError, match="no usable answer to completions"):
                made(lm, tmp_path / "cut")
            assert mortal.dead
    assert made(served, tmp_path / "cut") == whole


def test_that_a_server_samples_belongs_to_a_run_and_its_address_does_not(here, served):
    problems = {"training": [heal.Problem("a", "Start 5; + 3", "8")]}
    plain, by_server = (identity(HealConfig.smoke(), ClockTask(), {"teacher": lm}, problems) for lm in (here, served))
    assert by_server == plain | {"sampling of the teacher": "by a server"}
    assert served.server.url not in str(by_server)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The arguments of a run of a few problems: the stand-in answers one request at a time."""
    folder = tmp_path_factory.mktemp("problems")
    for name, limit in (("train", 2), ("heldout", 1)):
        problems = limit_by_kind(load_problems(DATA / "clock" / f"{name}.jsonl"), limit)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(vars(p)) + "\n" for p in problems))
    files = ["--problems", str(folder / "train.jsonl"), "--heldout", str(folder / "heldout.jsonl")]
    return lambda url, out: ["-m", "heal_ref", "run", "--preset", "smoke", "--quiet", "--server", url, "--out", str(out), *files]


@pytest.fixture(scope="module")
def whole(here, command, tmp_path_factory):
    out = tmp_path_factory.mktemp("served") / "whole"
    with StandIn(here) as it:
        subprocess.run([sys.executable, *command(it.url, out)], cwd=ROOT, check=True, capture_output=True, timeout=900)
    return out


@pytest.mark.slow
def test_killed_at_random_moments_with_its_server_a_run_ends_the_same(tmp_path):
    """In turn the run, the server, or both; a run whose server is gone ends with one error (code 2), or was done."""
    said = {}
    for name, kills in (("whole", 0), ("killed", KILLS)):
        args = [sys.executable, str(ROOT / "tests" / "server_driver.py"), str(tmp_path / name), str(kills)]
        done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
        assert done.returncode == 0, done.stderr[-2000:]
        said[name] = json.loads(done.stdout.splitlines()[-1])
    print(said["killed"])
    assert said["whole"] == [0]
    assert {*said["killed"]} <= {0, 2, -signal.SIGKILL}
    assert run_files(tmp_path / "killed") == run_files(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_share_a_server(here, whole, command, tmp_path):
    with StandIn(here) as it:
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
        subprocess.run([sys.executable, *launcher, *command(it.url, tmp_path / "two")], cwd=ROOT, check=True,
                       capture_output=True, timeout=900)
    stages = ("1-base", "2-guided", "3-repaired", "4-scores")
    made = [{n: c for n, c in run_files(folder).items() if n.startswith(stages)} for folder in (tmp_path / "two", whole)]
    assert made[0] == made[1]


@pytest.mark.slow
def test_ctrl_c_ends_a_run_that_waits_for_its_server(stand_in, command, tmp_path):
    stand_in.faults[:] = [lambda a: a, lambda a: a, lambda a: time.sleep(60)]
    process = subprocess.Popen([sys.executable, *command(stand_in.url, tmp_path / "run")], cwd=ROOT, stderr=subprocess.PIPE,
                               text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # noqa: PLW1509
    while stand_in.faults:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert "the same command continues from there" in process.communicate(timeout=20)[1]
    assert process.returncode == 130
