"""Tasks of one's own: the whole method with three methods, choosing a task by name, trying one before a run."""

import hashlib
import importlib
import json
import math
import re
import sys

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import heal_ref as heal
from heal_lab.pair import Recipe, new_model
from heal_ref.__main__ import main
from heal_ref.model import load_tokenizer
from heal_ref.records import InputError, Problem
from heal_ref.tasks import ChatMathTask, ClockTask, Task, task_for
from tests.conftest import DATA
from tests.test_chat import TEMPLATE, chat_tokenizer


class Sums(Task):
    """A whole task: what `help(heal.Task)` shows."""

    separator, elicit = "\n", "So it is "

    def prompt(self, problem):
        return f"Question: {problem.question}\nSolution:\n"

    def extract_answer(self, text):
        return text.strip().rpartition(" ")[2] or None

    def is_correct(self, problem, answer):
        return answer is not None and len(answer) % 2 == int(problem.answer) % 2


@pytest.fixture(scope="module")
def base_lm():
    """A base model without a chat template and with random weights, which often ends lines and now and then its text."""
    tokenizer = chat_tokenizer(None, vocabulary=600)
    model = new_model(Recipe(hidden=32, layers=2, heads=2, lessons=()), tokenizer, seed=0).eval()
    model.config.tie_word_embeddings = False
    model.lm_head = torch.nn.Linear(32, len(tokenizer), bias=True)
    torch.nn.init.zeros_(model.lm_head.bias)
    for text, odds in (("\n", 4.5), ("<|im_end|>", 3.5)):
        model.lm_head.bias.data[tokenizer(text, add_special_tokens=False)["input_ids"]] = odds
    return heal.LM(model, tokenizer)


# ------------------------------------------------------------------------- a task of three methods


def test_three_methods_run_through_the_whole_method(base_lm):
    task, problems = Sums(), [Problem(f"p{k}", f"{k} + {k}", str(k)) for k in range(2)]
    sampling = heal.SampleConfig(max_new_tokens=32)
    base = heal.sample(base_lm, task, problems, n=8, sampling=sampling)
    guided = heal.sample(base_lm, task, problems, n=4, sampling=sampling, guided=True)
    assert {t.prompt for t in base + guided} == {"Question: 0 + 0\nSolution:\n", "Question: 1 + 1\nSolution:\n"}
    assert any(t.correct for t in base)
    assert max(len(t.steps) for t in base) > 2
    repaired = heal.repair(base_lm, task, base, heal.GearConfig(max_correct=8, hints=2), sampling=sampling)
    hinted = [t for t in repaired if t.hint is not None]
    assert hinted
    for t in hinted:
        parent = next(p for p in base if (p.problem.id, p.index) == (t.problem.id, t.parent))
        kept = parent.token_ids[: parent.steps[t.breakpoint][0]]
        assert kept == t.token_ids[: len(kept)]
        assert task.inject(t.hint) not in t.text
    for reading in ("typicality", "forced", "rollout", "numbers"):
        scored = heal.pure_scores(base_lm, task, base + guided + hinted, heal.PureConfig(reading=reading, rollouts=2),
                                  sampling=sampling)
        assert scored
        assert all(math.isfinite(s.score) for s in scored)
    stages = heal.build_stages(base, guided, [s.trajectory for s in scored if s.trajectory.source == "repair"])
    student = heal.distill(base_lm, task, stages, heal.PaceConfig(updates=3, batch=2, warmup=0))
    rows = heal.evaluate(student, task, problems, n=2, sampling=sampling)
    assert {row.metric for row in rows} == {"pass@1", "pass@1_greedy"}  # nothing that only a step checker can tell


def test_defaults_say_what_they_need():
    task, problem = Sums(), Problem("p", "2 + 2", "4")
    guided, asked = task.guided_prompt(problem, "4"), task.hint_prompt(problem, "4", "First, count.\n")
    assert guided.startswith("Question: 2 + 2\n\nFor your guidance only, this is the correct final answer: 4\n\n")
    assert guided.endswith("\nSolution:\n")
    assert "so far:\n\nFirst, count.\n\nWrite one hint" in asked
    assert "about to start" in task.hint_prompt(problem, "4", " \n")
    assert task.inject("Count.") == "Hint: Count.\n"
    assert task.read_hint("**Hint**: count\n on. ", "4") == "count on."
    assert task.read_hint("  ", "4") is task.read_hint("so \\boxed{4}", "4") is task.read_hint("on " * 300, "4") is None
    assert task.validate(problem) is None
    assert task.read_gold(" 4 ") == ("4", "as it stands")
    assert task.read_gold(" ") is None
    assert task.for_tokenizer(None) is task
    assert task.without_thoughts("a") == task.as_reply("a") == "a"
    assert task.knows_thoughts
    assert task.check_steps(problem, ["a"]) is task.is_genuine(problem, ["a"]) is None
    assert not task.knows_truth
    for name, arguments in (("prompt", (problem,)), ("extract_answer", ("",)), ("is_correct", (problem, None))):
        with pytest.raises(NotImplementedError, match=f"Task must define {name}"):
            getattr(Task(), name)(*arguments)


def test_help_shows_a_whole_task():
    text = Task.__doc__
    for name in ("def prompt(self, problem)", "def extract_answer(self, text)", "def is_correct(self, problem, answer)"):
        assert name in text
    for word in ("prompt ends where the solution begins", "the separator included", "measuring"):
        assert word in " ".join((text + Task.check_steps.__doc__).split())


def test_genuine_is_all_of_check_steps():
    class Checked(Sums):
        def check_steps(self, problem, steps):
            return [step != "wrong" for step in steps]

    task, problem = Checked(), Problem("p", "2 + 2", "4")
    assert task.knows_truth
    assert task.is_genuine(problem, ["a", "b"]) is True
    assert task.is_genuine(problem, ["a", "wrong"]) is False
    assert task.is_genuine(problem, []) is False


@pytest.mark.parametrize(("hint", "answer", "states"), [
    ("this step gives 20", "20", True), ("this step gives 20", "5", False), ("this step gives 5", "5", True),
    ("this step gives 15", "5", False), ("this step gives 2", "20", False)])
def test_a_hint_of_the_clock_world_states_the_answer_only_if_it_is_it(task, hint, answer, states):
    assert task.states_answer(hint, answer) is states


def test_only_words_that_the_question_does_not_hold_reveal_help():
    quiz = Problem("p", "A quiz has 3 hints in each of 4 rounds. How many hints?", "12")
    assert not Sums().reveals_help(quiz, "There are 3 hints a round, so 12 hints. \\boxed{12}.")
    assert Sums().reveals_help(Problem("p", "What is 3 * 4?", "12"), "As the hint says, multiply.")


def test_the_texts_that_the_shipped_models_were_trained_on_are_the_same_to_the_byte():
    tokenizer = load_tokenizer(DATA / "chat" / "teacher")
    sums, chain = Problem("p", "What is $6 \\cdot 7$?\n\nThink first.", "42"), Problem("c", "Start 5; + 3; # 4", "20")
    texts = []
    for task, p in ((ChatMathTask(tokenizer), sums), (ClockTask(), chain), (ChatMathTask(tokenizer, thinking=False), sums)):
        texts += [task.prompt(p), task.guided_prompt(p, p.answer), task.hint_prompt(p, p.answer, "First.<|im_end|>\n\n"),
                  task.hint_prompt(p, p.answer, " "), task.answer_hint("7"), task.inject("this step gives 7"), task.elicit,
                  task.separator]
    as_trained = "7e3d18b0c02a015f74cb7aab3ec573f3c3a9e6974602909778379d2064d427ae"  # made with commit fcdb1c3
    assert hashlib.sha256(json.dumps(texts).encode()).hexdigest() == as_trained


# ------------------------------------------------------------------------------------- by its name


def word_tokenizer(words, template=None):
    """A tokenizer that knows these words."""
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "<eos>", *words])}, unk_token="<unk>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Whitespace(), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", unk_token="<unk>", chat_template=template)


def test_auto_decides_only_where_it_can(teacher):
    assert isinstance(task_for("auto", teacher.tokenizer), ClockTask)
    assert isinstance(task_for("auto", chat_tokenizer(TEMPLATE, 400)), ChatMathTask)
    for foreign in (chat_tokenizer(None, 400), word_tokenizer(["We", "start"])):
        with pytest.raises(InputError, match="does not decide it.*choose --task chat .*--task package.module:ClassName"):
            task_for("auto", foreign)


def test_tasks_by_name(teacher):
    assert isinstance(task_for("clock", teacher.tokenizer), ClockTask)
    assert isinstance(task_for("chat", chat_tokenizer(TEMPLATE, 400)), ChatMathTask)
    with pytest.raises(InputError, match="no chat template"):
        task_for("chat", teacher.tokenizer)


MODULE = """
import heal_ref as heal

class Plain(heal.Task):
    def prompt(self, problem):
        return problem.question

    def extract_answer(self, text):
        return text

    def is_correct(self, problem, answer):
        return answer == problem.answer

class Half(heal.Task):
    def prompt(self, problem):
        return problem.question

class Wanting(Plain):
    def __init__(self, tokenizer, more=1):
        self.tokenizer = tokenizer

class Refusing(Plain):
    def __init__(self):
        raise heal.InputError("no good; do better")

class Failing(Plain):
    def __init__(self, tokenizer):
        raise KeyError("x\\ny")

class Greedy(Plain):
    def __init__(self, folder):
        pass

class Chat(heal.ChatMathTask):
    pass

NoTask = dict
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module `own_task_module` in the current directory, which is not yet on the path."""
    (tmp_path / "own_task_module.py").write_text(MODULE)
    (tmp_path / "broken_module.py").write_text("1 / 0")
    (tmp_path / "leaving_module.py").write_text("import sys; sys.exit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield "own_task_module"
    sys.modules.pop("own_task_module", None)


def test_a_task_of_ones_own_is_found_in_the_current_directory(own_module, teacher):
    assert type(task_for(f"{own_module}:Plain", teacher.tokenizer)).__name__ == "Plain"
    assert task_for(f"{own_module}:Wanting", teacher.tokenizer).tokenizer is teacher.tokenizer
    assert isinstance(task_for(f"{own_module}:Chat", chat_tokenizer(TEMPLATE, 400)), ChatMathTask)


@pytest.mark.parametrize(("name", "complaint"), [
    ("chess", "there is no task 'chess'; choose auto, chat, clock, or package.module:ClassName"),
    ("own_task_module:", "there is no task"), (":Plain", "there is no task"),
    ("no_such_module:Plain", "cannot be imported .ModuleNotFoundError: No module named 'no_such_module'"),
    ("broken_module:Plain", "cannot be imported .ZeroDivisionError"),
    ("leaving_module:Plain", "cannot be imported .SystemExit: 3"),
    ("own_task_module:Half", "does not define extract_answer, is_correct; define the three methods"),
    ("own_task_module:Plane", "is not in that module"), ("own_task_module:NoTask", "is no heal_ref.Task"),
    ("own_task_module:heal", "is no heal_ref.Task"), ("own_task_module:Refusing", "^no good; do better$"),
    ("own_task_module:Failing", "cannot be built .KeyError: "), ("own_task_module:Greedy", "cannot be built .TypeError: .*folder"),
    ("own_task_module:Chat", "no chat template")])
def test_what_is_no_task_is_refused_in_one_line(own_module, teacher, name, complaint):
    with pytest.raises(InputError, match=complaint) as e:
        task_for(name, teacher.tokenizer)
    assert "\n" not in str(e.value)
    assert ";" in str(e.value)


OWN = """
import heal_ref as heal
from heal_ref.tasks import ClockTask

class Mine(ClockTask):
    pass
"""
FAULTS = {  # what a task of one's own holds -> what is said
    "def prompt(self, problem): return None": "prompt returns None; it must return str",
    "def prompt(self, problem): return ''": "prompt returns ''; it must return text that is not empty",
    "def prompt(problem): return 'x'": "prompt failed (TypeError: ",
    "def prompt(self, problem): 1 / 0": "prompt failed (ZeroDivisionError: division by zero), ",
    "def extract_answer(self, text): return 7": "extract_answer returns 7; it must return str | None",
    "def extract_answer(self, text): raise KeyError('a\\nb')": "extract_answer failed (KeyError: ",
    "async def extract_answer(self, text): return '7'": "extract_answer returns <coroutine object",
    "def is_correct(self, problem, answer): return answer.strip() == problem.answer": "is_correct failed (AttributeError: ",
    "def is_correct(self, problem, answer): return None": "is_correct returns None; it must return bool",
    "def is_correct(self, problem, answer): return 'yes'": "is_correct returns 'yes'; it must return bool",
    "separator = None": "separator is None; it must be text that is not empty",
    "separator = ''": "separator is ''; it must be text that is not empty",
    "elicit = 3": "elicit is 3; it must be text",
    "def validate(self, problem): return True": "validate returns True; it must return tuple[str, str] | None",
    "def validate(self, problem): return 'too long'": "validate returns 'too long'; it must return tuple[str, str] | None",
    "def validate(self, problem): raise OSError('x')": "validate failed (OSError: x)",
    "def read_gold(self, text): return '7'": "read_gold returns '7'; it must return tuple[str, str] | None",
    "def read_gold(self, text): return 7, 'rule'": "read_gold returns (7, 'rule'); it must return tuple",
    "def read_gold(self, text): raise SystemExit(0)": "read_gold failed (SystemExit: 0)",
    "def for_tokenizer(self, tokenizer): return None": "for_tokenizer returns None; it must return Task",
    "def guided_prompt(self, problem, answer): return None": "guided_prompt returns None; it must return str",
    "def hint_prompt(self, problem, answer, prefix): return None": "hint_prompt returns None; it must return str",
    "def read_hint(self, text, answer=''): return text[1000]": "read_hint failed (IndexError: ",
    "def check_steps(self, problem, steps): return steps[1000]": "check_steps failed (IndexError: ",
    "def check_steps(self, problem, steps): return [1]": "check_steps returns [1]; it must return list[bool] | None",
    "def check_steps(self, problem, steps): return 7": "check_steps returns 7; it must return list[bool] | None",
    "def __init__(self): raise SystemExit(0)": "cannot be built (SystemExit: 0)",
}


@pytest.fixture
def own_command(tmp_path, monkeypatch, capsys):
    """Run a command with a task of one's own: its exit code and the last line that it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    problems = tmp_path / "p.jsonl"
    problems.write_text(json.dumps({"question": "Start 5; + 3", "answer": "8"}) + "\n")

    def call(body, *command):
        (tmp_path / "task_of_a_test.py").write_text(OWN.replace("pass", body))
        sys.modules.pop("task_of_a_test", None)
        importlib.invalidate_caches()
        code = main([*map(str, command), "--task", "task_of_a_test:Mine"])
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return code, error.splitlines()

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield call
    sys.modules.pop("task_of_a_test", None)


@pytest.mark.parametrize("body", FAULTS)
def test_a_broken_method_is_refused_in_one_line(own_command, body):
    code, said = own_command(body, "check", "p.jsonl")
    assert code == 2
    assert len(said) == 1
    assert FAULTS[body] in said[0]


def test_a_sound_task_passes_and_keeps_its_name(own_command, teacher):
    assert own_command("pass", "check", "p.jsonl") == (0, [])
    mine = task_for("task_of_a_test:Mine", teacher.tokenizer)
    assert f"{type(mine).__module__}.{type(mine).__qualname__}" == "task_of_a_test.Mine"
    assert vars(mine) == vars(ClockTask())


def test_a_method_that_fails_later_is_one_line_with_its_place(own_command, tmp_path):
    """It goes well on the first problem and fails on what the model writes."""
    body = "def reveals_help(self, problem, text):\n        if len(text) > 40:\n            raise OSError('gone')\n        return False"
    code, said = own_command(
        body, "run", "--preset", "smoke", "--quiet", "--problems", "p.jsonl", "--heldout", "p.jsonl",
        "--out", "out")
    assert code == 2
    assert said[-1] == f"the task's reveals_help failed (OSError: gone), {tmp_path}/task_of_a_test.py:8; repair it"


# -------------------------------------------------------------------------------- trying a task


@pytest.fixture(scope="module")
def easy():
    return [p for p in heal.load_problems(DATA / "clock" / "validation.jsonl", ClockTask()) if p.kind == "mastered"][:4]


def broken(**methods):
    """The clock world's task with some of its methods, or settings, replaced."""
    return type("Broken", (ClockTask,), methods)()


def raises(*_):
    raise KeyError("somebody's mistake")


def test_nothing_is_off_with_the_clock_world(teacher, easy):
    assert heal.check_task(teacher, ClockTask(), easy) == []
    assert heal.check_task(teacher, ClockTask(), []) == ["there are no problems; give a few"]


@pytest.mark.parametrize(("methods", "sentence"), [
    ({"separator": "."}, "inject makes .* must hold the hint and end with the separator"),
    ({"separator": "\n\n\n"}, "no step ends in 8 solutions: the separator is in none of them; set it to what ends a step"),
    ({"extract_answer": lambda s, t: None}, "extract_answer finds nothing in 8 solutions, such as "),
    ({"extract_answer": lambda s, t: "7" * 5}, "is_correct accepts none of 8 answers, such as .'77777'"),
    ({"is_correct": lambda s, p, a: False}, "is_correct refuses '.*', the answer of '.*': nothing could be right"),
    ({"is_correct": lambda s, p, a: a is not None}, "is_correct accepts '.*1' for '.*', the answer of"),
    ({"is_correct": lambda s, p, a: a in (None, p.answer)}, "is_correct accepts None for"),
    ({"validate": lambda s, p: ("too short", "make it longer")}, "validate refuses '.*': too short; make it longer"),
    ({"read_gold": lambda s, t: None}, "read_gold finds nothing in '.*', the answer of '.*'; give the final answer"),
    ({"guided_prompt": lambda s, p, a: s.prompt(p)}, "guided_prompt does not hold the answer; put it in view"),
    ({"prompt": lambda s, p: s.guided_prompt(p, p.answer)}, "prompt shows the answer .*; use problem.question alone"),
    ({"hint_prompt": lambda s, p, a, x: s.prompt(p) + x + "Working back: "}, "hint_prompt does not hold the answer; show it"),
    ({"hint_prompt": lambda s, p, a, x: s.guided_prompt(p, a) + "Working back: "}, "hint_prompt does not hold the prefix; show it"),
    ({"read_hint": lambda s, t, a="": None}, "read_hint finds no hint in 8 texts, such as "),
    ({"read_hint": lambda s, t, a="": f"this step gives {a}"}, "each of 8 hints states the answer, such as .* would be refused"),
    ({"inject": lambda s, h: "Hint: think.\n\n"}, "inject makes 'Hint: think.*' of the hint 'the answer is"),
    ({"inject": lambda s, h: f"Hint: {h}."}, "inject makes .* must hold the hint and end with the separator"),
    ({"inject": lambda s, h: f"Remember: {h}.\n\n"}, "inject uses a word that the tokenizer lacks, in 'Remember"),
    ({"prompt": lambda s, p: f"Marie asks: {p.question}\nSolution:\n"}, "prompt uses a word that the tokenizer lacks, in 'Marie"),
    ({"elicit": "In short, \\boxed{"}, "elicit uses a word that the tokenizer lacks, in 'In short"),
    ({"check_steps": lambda s, p, steps: [True]}, r"check_steps returns 1 verdicts for \d steps; return one per step"),
    ({"reveals_help": lambda s, p, t: True}, "reveals_help finds help in each of 8 unaided solutions"),
    ({"prompt": lambda s, p: None}, "prompt returns None; return a str"),
    *[({name: raises}, f"{name} raises KeyError: .somebody's mistake.; repair it") for name in (
        "validate", "read_gold", "is_correct", "prompt", "guided_prompt", "hint_prompt", "answer_hint", "inject",
        "extract_answer", "check_steps", "reveals_help", "read_hint", "states_answer")]])
def test_each_fault_of_a_task_is_said(teacher, easy, methods, sentence):
    said = heal.check_task(teacher, broken(**methods), easy)
    assert [s for s in said if re.search(sentence, s)], said
    assert len(said) <= 5  # one cause is not said in many ways
    assert all("\n" not in s for s in said)


def test_solutions_and_hints_that_do_not_end_are_said(teacher, easy):
    said = heal.check_task(teacher, ClockTask(), easy, sampling=heal.SampleConfig(max_new_tokens=8))
    assert said[0].startswith("no solution of 8 ends within 8 tokens; raise max_new_tokens, or look whether the model knows how")
    assert said[1].startswith("read_hint finds no hint in 8 texts")
    assert len(said) == 2


def test_a_default_task_on_a_model_that_lacks_its_words(teacher, easy):
    class English(Sums):
        def is_correct(self, problem, answer):
            return answer == problem.answer

    said = heal.check_task(teacher, English(), easy)
    assert any(s.startswith("guided_prompt uses a word that the tokenizer lacks") for s in said)
