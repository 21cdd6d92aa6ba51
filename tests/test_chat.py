"""Chat models on mathematics: prompts and cuts, thinking, hints, boxes, comparing answers, the shipped problems."""

import collections
import importlib.util
import itertools
import json
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import heal_ref as heal
from heal_lab.pair import Recipe, new_model
from heal_ref.entropy import split_steps
from heal_ref.gear import write_hints
from heal_ref.generation import Rollout, make_trajectory
from heal_ref.records import InputError, Problem
from heal_ref.run.sources import load_problems
from heal_ref.tasks import Task
from heal_ref.tasks.chat import ChatMathTask
from heal_ref.template import after_thoughts, turn_end
from tests.conftest import DATA, ROOT

TEMPLATE = """
{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'assistant' and '</think>' in content and not loop.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
ALWAYS_THINKS = TEMPLATE.replace("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}").replace(
    "enable_thinking is defined and not enable_thinking", "false")
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def chat_tokenizer(template: str | None = TEMPLATE, vocabulary: int = 2000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on this project's own text, with a chat template like that of a thinking model."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raw.decoder = decoders.ByteLevel()
    text = [f.read_text(encoding="utf-8") for f in (ROOT / "README.md", *sorted((ROOT / "heal_ref").rglob("*.py")))]
    raw.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"]))
    raw.add_tokens(["<think>", "</think>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   extra_special_tokens=["<|im_start|>"], chat_template=template)


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


@pytest.fixture(scope="module")
def chat(tokenizer):
    return ChatMathTask(tokenizer)


@pytest.fixture(scope="module")
def problem():
    return Problem("p", "What is $6 \\cdot 7$, if $\\{1, 2\\}$ is a set?\n\nThink first.", "42")


def with_template(tokenizer, template, **more):
    """The same tokenizer under another template."""
    other = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **{
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", **more})
    other.chat_template = template
    return other


# --------------------------------------------------------------------------------------------- prompts


def test_it_is_a_task(chat):
    assert isinstance(chat, Task)
    assert not chat.knows_truth
    assert chat.separator == "\n\n"


def test_prompts_end_in_the_assistants_open_turn(chat, problem):
    for text in (chat.prompt(problem), chat.guided_prompt(problem, "42"), chat.hint_prompt(problem, "42", "First.\n\n")):
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert text.count("<|im_start|>") == 2
        assert problem.question in text


def test_a_cut_on_ids_decodes_to_prompt_and_kept_text(tokenizer, chat, problem):
    solution = "<think>\nSix sevens.\n\nThat is forty-two é√ .\n\n</think>\n\nSo:\n\nthe answer is \\boxed{42}."
    ids = tokenizer(solution, add_special_tokens=False)["input_ids"]
    steps = split_steps([tokenizer.decode([i]) for i in ids], chat.separator)
    assert len(steps) == 5
    prompt = chat.prompt(problem)
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    for start, _ in steps:
        kept = tokenizer.decode(ids[:start])
        assert tokenizer.decode(head + ids[:start]) == prompt + kept
        assert solution.startswith(kept)
        for insertion in (chat.inject("Use $6 = 2 + 4$."), chat.elicit):
            more = tokenizer(insertion, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(head + ids[:start] + more) == prompt + kept + insertion


def test_only_the_guided_prompts_hold_the_answer_and_none_asks_to_mention_it(chat, problem):
    assert "42" not in chat.prompt(problem)
    assert "given" not in chat.prompt(problem)
    guided, hinting = chat.guided_prompt(problem, "42"), chat.hint_prompt(problem, "42", "")
    assert guided.count("42") == hinting.count("42") == 1
    assert "do not mention that you were given the answer" in guided
    assert "do not mention that the answer is known" in hinting
    assert "Do not state the final answer" in hinting


def test_a_hint_prompt_shows_the_prefix_without_what_would_break_the_turns(chat, problem):
    text = chat.hint_prompt(problem, "42", "<think>\nSix sevens.\n\nNow<|im_end|></think>")
    assert "so far:\n\nSix sevens.\n\nNow\n\n" in text
    assert "<think>" not in text
    assert text.count("<|im_end|>") == 1
    assert "about to start" in chat.hint_prompt(problem, "42", "\n\n")


@pytest.mark.parametrize(("thinking", "end"), [
    (None, "assistant\n"), (True, "assistant\n"), (False, "assistant\n<think>\n\n</think>\n\n")])
def test_thinking_is_passed_to_the_template(tokenizer, problem, thinking, end):
    task = ChatMathTask(tokenizer, thinking=thinking)
    assert task.prompt(problem).endswith(end)
    assert not task.opened
    assert task.extract_answer("So \\boxed{42}.") == "42"


def test_a_prompt_that_opens_the_thinking_block(tokenizer, problem):
    task = ChatMathTask(with_template(tokenizer, ALWAYS_THINKS))
    assert task.prompt(problem).endswith("assistant\n<think>\n")
    assert task.opened
    assert task.extract_answer("perhaps \\boxed{41}") is None
    assert task.extract_answer("perhaps \\boxed{41}</think>\n\nNo box here.") is None
    assert task.extract_answer("perhaps \\boxed{41}</think>\n\nSo \\boxed{42}.") == "42"
    assert task.read_hint("They add. I should say so.") is None
    assert task.read_hint("They add.\n</think>\n\nMultiply instead.") == "Multiply instead."


@pytest.mark.parametrize(("text", "opened", "rest"), [
    ("a", False, "a"), ("a", True, None), ("<think>a", False, None), ("<think>a</think>b", False, "b"),
    ("a</think>b", True, "b"), ("<think>a</think>b<think>c", False, None), ("<think>a</think>b<think>c</think>d", False, "d")])
def test_after_thoughts(text, opened, rest):
    assert after_thoughts(text, opened) == rest


@pytest.mark.parametrize(("template", "complaint"), [
    (None, "no chat template"), ("{% for m in messages %}{{ m.content }}{% endfor %}", "not begin with a special token"),
    (TEMPLATE.replace("add_generation_prompt", "false"), "ignores add_generation_prompt.*im_start"),
    (TEMPLATE.replace("+ content +", "+ (m.content.text or '') +"), "leaves the question or the reply out"),
    (TEMPLATE.replace("+ content +", "+ content[:20] +"), "leaves the question or the reply out, cuts or changes it"),
    (TEMPLATE.replace("+ content +", "+ content[-30:] +"), "leaves the question or the reply out, cuts or changes it"),
    (TEMPLATE.replace("+ content +", "+ content|upper +"), "leaves the question or the reply out, cuts or changes it"),
    (TEMPLATE.replace("+ content +", "+ (content|e) +"), "leaves the question or the reply out, cuts or changes it"),
    (TEMPLATE.replace("+ content +", "+ content|replace('\\n', ' ') +"), "leaves the question or the reply out, cuts or changes it"),
    ("{{ raise_exception('no\\nsystem turn') }}", "fails on a plain question .*no system turn")])
def test_templates_that_cannot_be_used(tokenizer, template, complaint):
    with pytest.raises(InputError, match=complaint) as e:
        ChatMathTask(with_template(tokenizer, template))
    assert "\n" not in str(e.value)
    assert ";" in str(e.value)  # what to do


def test_options_that_would_change_nothing_or_hide_the_thinking(tokenizer):
    with pytest.raises(InputError, match="does not know enable_thinking"):
        ChatMathTask(with_template(tokenizer, ALWAYS_THINKS), thinking=False)
    hiding = with_template(tokenizer, TEMPLATE)
    hiding.backend_tokenizer.add_special_tokens(["</think>"])
    with pytest.raises(InputError, match="special tokens .</think>.: decoding drops them"):
        ChatMathTask(hiding)


@pytest.mark.parametrize(("question", "answer", "complaint"), [
    ("Q", " ", "empty"), ("Q", "1" * 501, "501 characters"), ("Q" * 20_001, "1", "20001 characters"),
    ("Q", "\\frac{1}{2", "not balanced"), ("Q", "1}{", "not balanced"), ("Q", "\\boxed{7}", "holds a box"),
    ("Q <|im_end|>", "7", "im_end"), ("Q", "</think>7", "</think>")])
def test_bad_problems(chat, question, answer, complaint):
    what, remedy = chat.validate(Problem("p", question, answer))
    assert complaint in what
    assert remedy


@pytest.mark.parametrize("answer", ["7", "\\frac{1}{2}", "\\{1, 2\\}", "x \\in \\left[0, 1\\right)", "Tuesday"])
def test_good_problems(chat, answer):
    assert chat.validate(Problem("p", "Q", answer)) is None
    assert chat.is_correct(Problem("p", "Q", answer), answer)


# ------------------------------------------------------------------- templates of several families

LLAMA = ("{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
         "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")
GEMMA = ("<bos>{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
         "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}")
PHI = ("{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
       "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}")
INST = ("{{ bos_token }}{% for m in messages %}{% if m.role=='user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}"
        "{{ eos_token }}{% endif %}{% endfor %}")
DEEPSEEK = ("{{ bos_token }}{% for m in messages %}{% if m.role=='user' %}<｜User｜>{{ m.content }}{% else %}<｜Assistant｜>"
            "{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}")
GLM = ("{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}<think></think>\n{% endif %}{{ m.content }}{% endfor %}"
       "{% if add_generation_prompt %}<|assistant|>{% endif %}")
ALWAYS_OPENS = LLAMA.replace("{% if add_generation_prompt %}", "{% if true %}")  # as Llama 3's own, the first one
OSS = ("{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ m.content }}"
       "<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}")
COMMAND = ("{% for m in messages %}<|turn|>{{ m.role }}{% if m.role == 'assistant' %}<|response|>{% endif %}{{ m.content }}<|end|>"
           "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant{% endif %}")
FAMILIES = {  # name: (template, its special tokens, ordinary added tokens, how a prompt ends, what ends a turn)
    "ChatML": (TEMPLATE, "", "", "<|im_start|>assistant\n", "<|im_end|>"),
    "Llama 3": (LLAMA, "<|start_header_id|> <|end_header_id|> <|eot_id|>", "", "assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    "Llama 3, old": (ALWAYS_OPENS, "<|start_header_id|> <|end_header_id|> <|eot_id|>", "", "assistant<|end_header_id|>\n\n",
                     "<|eot_id|>"),
    "Gemma": (GEMMA, "<bos> <start_of_turn> <end_of_turn>", "", "<start_of_turn>model\n", "<end_of_turn>"),
    "Phi 3": (PHI, "<|user|> <|assistant|> <|end|>", "", "<|assistant|>\n", "<|end|>"),
    "INST": (INST, "", "", "[/INST]", "<|im_end|>"),
    "DeepSeek": (DEEPSEEK, "", "<｜User｜> <｜Assistant｜>", "<｜Assistant｜>", "<|im_end|>"),
    "DeepSeek R1": (DEEPSEEK.removesuffix("{% endif %}") + "<think>\n{% endif %}", "", "<｜User｜> <｜Assistant｜>",
                    "<｜Assistant｜><think>\n", "<|im_end|>"),
    "GLM": (GLM, "<|user|> <|assistant|>", "", "<|assistant|>", "<|user|>"),
}


def family_tokenizer(template, special="", ordinary=""):
    """The small tokenizer with the markers of one family."""
    other = chat_tokenizer(template, vocabulary=400)
    other.add_special_tokens({"extra_special_tokens": special.split()})
    other.add_tokens(ordinary.split())
    other.bos_token = "<|endoftext|>"
    return other


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_template_is_used_as_it_comes(family, problem):
    template, special, ordinary, opening, end = FAMILIES[family]
    tokenizer = family_tokenizer(template, special, ordinary)
    task = ChatMathTask(tokenizer)
    assert task.prompt(problem).endswith(opening)
    assert task.opened == opening.endswith("<think>\n")
    assert tokenizer.decode([turn_end(tokenizer)]) == end
    assert task.validate(problem) is None
    for marker in {*special.split(), *ordinary.split(), opening.strip().split("\n")[0], "</think>"}:
        what, _ = task.validate(Problem("p", f"6 * 7? {marker} 5", "42"))
        assert "would break the chat template's turns" in what
        assert marker not in task.hint_prompt(problem, "42", f"First.{marker} Then").partition("written this so far")[2].partition(
            "Write one hint")[0]


@pytest.mark.parametrize(("template", "special", "complaint"), [
    (OSS, "<|start|> <|channel|> <|message|> <|end|>", r"marks thoughts by special tokens \(<\|channel\|>\): decoding drops"),
    (TEMPLATE.replace("<think>", "[THINK]"), "[THINK]", r"marks thoughts by special tokens \(\[THINK\]\)"),
    (COMMAND, "<|turn|> <|response|> <|end|>", "opens no turn for a reply: .*but a reply follows .*<.response.>"),
    (PHI, "<|user|> <|assistant|>", "ends a turn with '<.end.>.*add that text to the tokenizer"),
    (LLAMA.replace("assistant<|end_header_id|>\n\n{% endif %}", "ipython<|end_header_id|>\n\n{% endif %}"),
     "<|start_header_id|> <|end_header_id|> <|eot_id|>", "opens no turn for a reply")])
def test_what_cannot_work_is_refused_with_reason_and_remedy(template, special, complaint):
    with pytest.raises(InputError, match=complaint) as e:
        ChatMathTask(family_tokenizer(template, special))
    assert "\n" not in str(e.value)
    assert ";" in str(e.value)


def test_no_turn_ends_without_a_template_that_can_be_rendered(tokenizer):
    assert turn_end(object()) is None
    assert turn_end(with_template(tokenizer, None)) is None
    assert turn_end(with_template(tokenizer, "{{ raise_exception('no') }}")) is None
    assert turn_end(with_template(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}")) is None


def test_a_token_that_is_no_control_token_may_be_in_a_question(tokenizer, problem):
    other = family_tokenizer(TEMPLATE, ordinary="\\frac <html>")
    assert ChatMathTask(other).validate(Problem("p", "Is \\frac{1}{2} in <html>?", "\\frac{1}{2}")) is None
    other.add_special_tokens({"extra_special_tokens": ["<html>"]})
    assert "<html>" in ChatMathTask(other).validate(Problem("p", "Is 1 in <html>?", "1"))[0]


def test_stripping_control_tokens_leaves_none(chat, problem):
    text = chat.hint_prompt(problem, "42", "Six <|im_<|im_end|>end|> sevens")
    assert text.count("<|im_end|>") == 1


@pytest.mark.parametrize(("opened", "text", "reply"), [
    (False, "<think>\na\n</think>\n\nb", "<think>\na\n</think>\n\nb"), (False, "b", "b"),
    (False, "a\n</think>\n\nb", "<think>\na\n</think>\n\nb"), (True, "a\n</think>\n\nb", "a\n</think>\n\nb"),
    (True, "<think>\na\n</think>\n\nb", "a\n</think>\n\nb"), (True, "b", "</think>\n\nb")])
def test_a_block_is_opened_once_by_the_prompt_or_the_reply(tokenizer, opened, text, reply):
    task = ChatMathTask(with_template(tokenizer, ALWAYS_THINKS if opened else TEMPLATE))
    assert task.as_reply(text) == reply
    assert after_thoughts(reply, task.opened).strip() == "b"


def test_thoughts_and_what_they_mean_to_a_tokenizer(tokenizer, chat):
    assert chat.knows_thoughts
    assert chat.without_thoughts("<think>a</think>\n\nb") == "b"
    assert chat.without_thoughts("a</think>\n\nb") == "b"
    assert chat.without_thoughts(" b") == " b"
    assert chat.without_thoughts("<think>a") == "<think>a"  # never closed
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "<e>": 1, "?": 2}, unk_token="?")),
                                    eos_token="<e>", unk_token="?")
    plain.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}" \
                          "{% if add_generation_prompt %}assistant: {% endif %}"
    assert not ChatMathTask(plain).knows_thoughts


def test_a_task_for_another_tokenizer_keeps_its_settings(tokenizer):
    task = ChatMathTask(tokenizer, thinking=False, verify=False, time_limit=2.0)
    other = with_template(tokenizer, TEMPLATE)
    same = task.for_tokenizer(other)
    assert (same.tokenizer, same.thinking, same.verifier, same.time_limit) == (other, False, None, 2.0)
    assert task.for_tokenizer(with_template(tokenizer, ALWAYS_THINKS)).thinking is None  # does not know enable_thinking


# ----------------------------------------------------------------------------------------------- hints


@pytest.mark.parametrize(("text", "hint"), [
    ("Look at the last digit.", "Look at the last digit."), ("**Hint:** $x$ is\n\neven. ", "$x$ is even."),
    ("<think>The answer is 42</think>\n\nHint: halve it.", "halve it."), ("<think>Halve it.", None), ("", None), (" \n*", None),
    ("word " * 200, None), ("So \\boxed{42}.", None), ("Use 6 times 7.", "Use 6 times 7.")])
def test_reading_a_hint(chat, text, hint):
    assert chat.read_hint(text, "42") == hint


@pytest.fixture(scope="module")
def terse(tokenizer):
    """A task for a model that writes without thinking first."""
    task = ChatMathTask(tokenizer)
    task.knows_thoughts = False  # this tokenizer has the markers
    return task


def test_a_model_without_thoughts_goes_on_with_a_begun_hint(terse, problem):
    begun, later = terse.hint_prompt(problem, "42", " \n"), terse.hint_prompt(problem, "42", "First, 6 + 7.\n\n")
    assert begun.endswith("assistant\nNext,")  # no space: a word's token begins with one
    assert "The final answer is 42." in begun
    assert "so far:\n\n(nothing yet)\n\n" in begun
    assert "so far:\n\nFirst, 6 + 7.\n\n" in later


@pytest.mark.parametrize(("text", "hint"), [
    (" multiply 6 by 7. The result will be 42.", "Next, multiply 6 by 7."), (" halve it.\n\n2. Then double it.", "Next, halve it."),
    (" divide Dr. Lee's 84 pens by 2. Then stop.", "Next, divide Dr. Lee's 84 pens by 2."),
    (" multiply 3.5 by 12.0 to get 42.", "Next, multiply 3.5 by 12.0 to get …."),
    (" she runs for 42 minutes in all.", "Next, she runs for … minutes in all."),
    (" add up to $42.00 (of 420).", "Next, add up to $… (of 420)."),
    (" multiply by forty-two.", "Next, multiply by forty-two."),  # still states it, so GEAR refuses it
    ("\n\nadd 6 and 7.\nThen stop.", "Next, add 6 and 7."), ("add 6 and 7.", "Next, add 6 and 7."),
    ("", None), (" \n", None), (" so \\boxed{42}", None), (" on" * 300, None)])
def test_the_first_sentence_of_a_begun_hint_with_its_answer_masked(terse, text, hint):
    assert terse.read_hint(text, "42") == hint


def test_a_small_answer_is_masked_only_where_the_hint_concludes_it(terse):
    assert terse.read_hint(" divide 8 by 2.", "2") == "Next, divide 8 by 2."
    assert terse.read_hint(" 8 / 4 = 2.", "2") == "Next, 8 / 4 = …."


@pytest.mark.parametrize("hint", ["The final answer is thirty plus twelve.", "Answer: thirty plus twelve", "Their product is 42."])
def test_whatever_says_what_the_answer_is_states_it(chat, hint):
    assert chat.states_answer(hint, "42")


# ------------------------------------------------------------------------------------------- the box


@pytest.mark.parametrize("unit", ["x", "\\boxed{", "{", "<think>", "\\", "}", "\\boxed{7} ", "boxed{\\"])
def test_ten_megabytes_take_linear_time(chat, unit):
    text = unit * (10_000_000 // len(unit))  # at quadratic cost this would run for days, not for a second
    chat.extract_answer(text)
    assert chat.extract_answer(text + "\\boxed{7}") == (None if unit == "<think>" else "7")
    assert not chat.is_correct(Problem("p", "Q", "7"), text)
    assert not chat.is_correct(Problem("p", "Q", text), "7")


def test_without_math_verify_the_spelling_decides(tokenizer, monkeypatch):
    half = Problem("p", "Q", "\\frac{1}{2}")
    assert ChatMathTask(tokenizer, verify=False).verifier is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    task = ChatMathTask(tokenizer)
    assert task.verifier is None
    assert task.is_correct(half, "$\\dfrac12$")
    assert task.is_correct(half, "0.5")
    assert not task.is_correct(half, "\\sin(\\pi/6)")
    assert not task.is_correct(half, None)
    assert task.is_correct(Problem("p", "Q", "1000"), "1,000")


@pytest.mark.parametrize(("text", "tells"), [
    ("Following the hint, we add first.", True), ("As the given answer is 12, x = 12.", True),
    ("We know that the answer is given as 7.", True), ("Since the correct answer was provided, stop.", True),
    ("For guidance only.", True), ("The answer you gave is 4.", True), ("We are given that x = 2.", False),
    ("So the correct answer is \\boxed{12}.", False), ("The answer is 12.", False), ("Given three numbers, add them.", False),
    ("It is known that 7 is prime. The final answer follows.", False)])
def test_a_helped_solution_must_not_speak_of_its_help(chat, text, tells):
    assert chat.reveals_help(heal.Problem("p", "", "1"), text) is tells


def test_a_solution_that_speaks_of_its_help_is_no_target(tokenizer, chat, random_chat_lm):
    text = "The hint says to add.\n\nSo \\boxed{12}."
    rollout = Rollout(tokenizer(text)["input_ids"], *[[0.0] * len(tokenizer(text)["input_ids"])] * 2, finished=True)
    made = {kind: make_trajectory(random_chat_lm, chat, Problem("p", "7 + 5?", "12"), kind, rollout)
            for kind in ("base", "guided", "repair")}
    assert [t.correct for t in made.values()] == [True, False, False]
    assert made["repair"].answer is None


# ----------------------------------------------------------------------------------------- the whole road


@pytest.fixture
def random_chat_lm(tokenizer):
    """An untrained model, biased to write blank lines and to end its texts, so that there are steps to cut at."""
    model = new_model(Recipe(hidden=32, layers=2, heads=2, lessons=()), tokenizer, seed=0).eval()
    model.config.tie_word_embeddings = False
    head = torch.nn.Linear(32, len(tokenizer), bias=True)
    torch.nn.init.zeros_(head.bias)
    for text, odds in (("\n\n", 5.5), (".\n\n", 5.5), ("<|im_end|>", 4.5)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == 1
        head.bias.data[ids] = odds
    model.lm_head = head
    return heal.LM(model, tokenizer)


def test_chat_task_runs_full_pipeline(random_chat_lm, chat, monkeypatch):
    lm = random_chat_lm
    problems = load_problems(DATA / "math" / "train.jsonl", chat)[:2]
    monkeypatch.setattr(chat, "extract_answer", lambda text: str(len(text) % 2))
    monkeypatch.setattr(chat, "is_correct", lambda problem, answer: answer == "1")
    config = heal.HealConfig(sample=heal.SampleConfig(n=6, max_new_tokens=48), gear=heal.GearConfig(max_correct=6))

    base = heal.sample(lm, chat, problems, n=6, seed=0, sampling=config.sample)
    guided = heal.sample(lm, chat, problems, n=3, seed=1, sampling=config.sample, guided=True)
    counts = collections.Counter()
    repaired = heal.repair(lm, chat, base, config.gear, sampling=config.sample, counts=counts)
    assert [t.prompt for t in base] == [chat.prompt(p) for p in problems for _ in range(6)]
    repaired = [t for t in repaired if t.hint is not None]
    assert repaired, counts

    parents = {(t.problem.id, t.index): t for t in base}
    for t in repaired:
        parent = parents[t.problem.id, t.parent]
        kept = parent.token_ids[: parent.steps[t.breakpoint][0]]
        assert kept or not t.breakpoint
        assert t.token_ids[: len(kept)] == kept
        assert t.prompt == parent.prompt  # plain
        assert chat.inject(t.hint) not in t.text

    paths = [(parents[t.problem.id, t.parent], t.breakpoint) for t in repaired[:2]]
    hints = write_hints(lm, chat, paths, config.gear, config.sample, seed=0)
    assert all(h.tokens_spent for row in hints for h in row)
    for reading in ("typicality", "forced", "numbers"):
        scored = heal.pure_scores(lm, chat, base + repaired + guided, heal.PureConfig(reading=reading))
        assert scored
        assert all(len(s.ratio) == len(s.trajectory.steps) and math.isfinite(s.score) for s in scored)
    stages = heal.build_stages(base, guided, heal.pure_filter(scored), config.pace)
    assert {row["prompt"] for stage in stages.values() for row in stage} <= {chat.prompt(p) for p in problems}
    assert len(stages["repaired"]) >= len(stages["foundation"]) > 0


# ---------------------------------------------------------------------------------------- shipped problems


def number(latex: str) -> float:
    r"""The value of an answer made of integers, \frac, \sqrt, \pi and + -."""
    text = re.sub(r"\\sqrt\{(\d+)\}", r"sqrt(\1)", latex.replace("\\pi", "pi"))
    text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", text)
    return eval(re.sub(r"(?<=\d)(?=sqrt|pi|\()", "*", text), {"sqrt": math.sqrt, "pi": math.pi})  # noqa: S307


def first(condition, start=1):
    """The smallest integer from `start` on for which the condition holds."""
    return next(n for n in itertools.count(start) if condition(n))


def count(condition, *ranges):
    return sum(bool(condition(*x)) for x in itertools.product(*ranges))


def share(condition, *ranges):
    return Fraction(count(condition, *ranges), math.prod(map(len, ranges)))


def coverings(free: frozenset) -> int:
    """Ways to cover these cells with dominoes and 2 by 2 squares: the first cell is covered by each piece in turn."""
    if not free:
        return 1
    r, c = min(free, key=lambda cell: (cell[1], cell[0]))
    pieces = [{(r, c), (r + 1, c)}, {(r, c), (r, c + 1)}, {(r + i, c + j) for i in (0, 1) for j in (0, 1)}]
    return sum(coverings(free - piece) for piece in pieces if piece <= free)


def centre_distance(a: float, b: float, c: float) -> float:
    """Distance of incentre and circumcentre, from coordinates: corner A at the origin, B at (c, 0)."""
    x = (b * b + c * c - a * a) / (2 * c)
    corners = np.array([[0, 0], [c, 0], [x, math.sqrt(b * b - x * x)]])
    incentre = np.array([a, b, c]) @ corners / (a + b + c)
    circumcentre = np.linalg.solve(2 * corners[1:], (corners[1:] ** 2).sum(1))
    return float(np.linalg.norm(incentre - circumcentre))


def lens(radius: float, distance: float, n: int = 200_000) -> float:
    """Area inside both of two circles, by the midpoint rule: twice the cap to the right of the middle."""
    x = distance / 2 + (np.arange(n) + 0.5) * (radius - distance / 2) / n
    return float(4 * np.sqrt(radius**2 - x**2).sum() * (radius - distance / 2) / n)


def first_both(n: int = 2000) -> float:
    """Expected rolls until a 1 and a 2 have come: the sum over t of the probability that one of them is missing."""
    return sum(2 * (5 / 6) ** t - (4 / 6) ** t for t in range(n))


def zeros(value: int, base: int) -> int:
    return first(lambda k: value % base ** (k + 1), start=0)


def root(f, low: float, high: float) -> float:
    """Where f, negative at `low` and positive at `high`, is zero: bisection."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < 0 else (low, middle)
    return low


CUBE = list(itertools.product((0, 1), repeat=3))
HEXAGON = [4 * np.array([math.cos(k * math.pi / 3), math.sin(k * math.pi / 3)]) for k in range(6)]


def digits(n):
    return list(map(int, str(n)))


def cross(a, b):
    return abs(a[0] * b[1] - a[1] * b[0])


def apart(a, b):
    return sum(x != y for x, y in zip(a, b, strict=True))


CHECKS = {  # a second way to each answer, by brute force or numerically
    "easy-01": lambda: len([roll for tray in range(14) for roll in range(18)]) - 197 - 9,
    "easy-02": lambda: share(lambda quarter, half: quarter != 0 and half != 0, range(4), range(2)),
    "easy-03": lambda: count(lambda n: n % 6 == 0 and n % 4, range(1, 201)),
    "easy-04": lambda: next(w * (w + 5) for w in range(1, 100) if w + w + 5 + w + w + 5 == 46),
    "easy-05": lambda: first(lambda x: 7 * x - 15 == 3 * x + 29, start=-100),
    "easy-06": lambda: first(lambda n: 180 * n - 360 == 1620),
    "easy-07": lambda: 2026 * 2026 * 2026 % 7,
    "easy-08": lambda: share(lambda a, b: a + b in (2, 3, 5, 7, 11), range(1, 7), range(1, 7)),
    "easy-09": lambda: first(lambda minutes: 56 * minutes == 84 * 60),
    "easy-10": lambda: first(lambda x: (5 * 12 + x) / 6 == 14),
    "easy-11": lambda: root(lambda side: math.hypot(side, side) - 6, 0, 6),
    "easy-12": lambda: count(lambda n: sum(digits(n)) == 4, range(100, 1000)),
    "easy-13": lambda: max(n for n in range(10, 100) if n % 8 == 3 and n % 5 == 2),
    "easy-14": lambda: share(lambda ball: ball != "b", "rrrrrbbbgggg"),
    "easy-15": lambda: 240 * Fraction(125, 100) * Fraction(70, 100),
    "easy-16": lambda: count(lambda a, b, c, d: a < b and c < d, *[range(3)] * 2, *[range(4)] * 2),
    "medium-01": lambda: count(lambda r: 7200 % (r * r) == 0, range(1, 85)),
    "medium-02": lambda: len(set(itertools.permutations("KAYAK"))),
    "medium-03": lambda: min(math.dist((9 * t, 12 - 12 * t), (0, 0)) for t in np.linspace(0, 1, 100_001)),
    "medium-04": lambda: first(lambda n: math.factorial(n) % 2**20 == 0),
    "medium-05": lambda: float(sum(np.roots([1, -9, 11]) ** 3)),
    "medium-06": lambda: math.pi * np.linalg.norm(np.linalg.solve([[16, 0], [0, 12]], [64, 36])) ** 2,
    "medium-07": lambda: 3**2027 % 100,
    "medium-08": lambda: sum(x for x in (Fraction(k, 6) for k in range(-600, 600)) if abs(2 * x - 7) == x + 4),
    "medium-09": lambda: share(lambda *f: sum(f) == 2, *[range(2)] * 4) / share(lambda *f: any(f), *[range(2)] * 4),
    "medium-10": lambda: count(lambda n: digits(n) == sorted(set(digits(n)), reverse=True), range(1000, 10_000)),
    "medium-11": lambda: cross(HEXAGON[2] - HEXAGON[0], HEXAGON[4] - HEXAGON[0]) / 2,
    "medium-12": lambda: next(a for a in range(-99, 99) for d in range(-99, 99) if 10 * a + 45 * d == 185
                              and sum(a + d * i for i in range(20)) == 670),
    "medium-13": lambda: root(lambda x: math.log2(x) + math.log2(x + 6) - 4, 1e-9, 100),
    "medium-14": lambda: root(lambda t: t / 6 + t / 10 - t / 15 - 1, 0, 100),
    "medium-15": lambda: math.gcd(2**18 - 1, 2**24 - 1),
    "medium-16": lambda: root(lambda x: x * x - 4 * x - 3, 2, 100),
    "hard-01": lambda: coverings(frozenset(itertools.product(range(2), range(10)))),
    "hard-02": lambda: sum(map(math.factorial, range(1, 51))) % 77,
    "hard-03": lambda: count(lambda n: (n * n + n + 1) % 7 == 0, range(1, 1001)),
    "hard-04": first_both,
    "hard-05": lambda: centre_distance(7, 15, 20),
    "hard-06": lambda: count(lambda m: not m & m << 1 and not m & m << 2, range(2**12)),
    "hard-07": lambda: sum(Fraction(1, k * (k + 2)) for k in range(1, 21)),
    "hard-08": lambda: count(lambda a, b: a < b < 20 - a - b, range(1, 20), range(1, 20)),
    "hard-09": lambda: Fraction(sum(len({apart(*e) for e in itertools.combinations(t, 2)}) == 1
                                    for t in itertools.combinations(CUBE, 3)), math.comb(8, 3)),
    "hard-10": lambda: np.array([100, 10, 1]) @ np.linalg.solve([[1, 1, 1], [4, 2, 1], [9, 3, 1]],
                                                                [3 - 1, 5 - 8, 7 - 27]) + 1000,
    "hard-11": lambda: first(lambda n: count(lambda d: n % d == 0, range(1, n + 1)) == 18),
    "hard-12": lambda: (lambda x: x**4 + 16 / x**4)(root(lambda x: x - 2 / x - 3, 0.1, 100)),
    "hard-13": lambda: lens(6, 6),
    "hard-14": lambda: sum(all(abs(a - i) <= 2 for i, a in enumerate(p)) for p in itertools.permutations(range(6))),
    "hard-15": lambda: share(lambda *walk: all(walk.count(axis) % 2 == 0 for axis in range(3)), *[range(3)] * 4),
    "hard-16": lambda: zeros(math.factorial(200), 12),
}


@pytest.fixture(scope="module")
def shipped(tokenizer):
    task = ChatMathTask(tokenizer)
    return {name: load_problems(DATA / "math" / f"{name}.jsonl", task) for name in ("train", "heldout")}


def test_the_files_hold_what_they_promise(shipped):
    assert {name: collections.Counter(p.kind for p in ps) for name, ps in shipped.items()} == {
        "train": {"easy": 10, "medium": 10, "hard": 10}, "heldout": {"easy": 6, "medium": 6, "hard": 6}}
    everything = shipped["train"] + shipped["heldout"]
    assert len({p.id for p in everything}) == len({" ".join(p.question.split()).lower() for p in everything}) == 48
    assert sum(not re.fullmatch(r"-?\d+", p.answer) for p in everything) >= 10
    rows = [json.loads(line) for name in shipped for line in (DATA / "math" / f"{name}.jsonl").read_text().splitlines()]
    assert all(isinstance(r["answer"], int) == bool(re.fullmatch(r"-?\d+", str(r["answer"]))) for r in rows)


def test_every_shipped_answer_is_reached_a_second_way(shipped):
    everything = shipped["train"] + shipped["heldout"]
    assert {p.id for p in everything} == set(CHECKS)
    for p in everything:
        assert number(p.answer) == pytest.approx(float(CHECKS[p.id]()), abs=1e-6), p.id
