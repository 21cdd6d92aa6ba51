"""Chat templates: how a question becomes a prompt, what ends a turn, how thoughts are marked.

A prompt ends within the assistant's open turn, and the method appends token ids to it: nothing is
rendered twice, so a template that strips thoughts from earlier turns cannot strip ours.
"""

from __future__ import annotations

import re
from typing import Any

from heal_ref.records import InputError

THINK, THOUGHT = "<think>", "</think>"
QUESTION = ('Is x < 3 & y > 4? "No," says T\'s friend:\n\n $\\frac{1}{2}$ of 7.5 = 3.75, Éva!\n' * 9
            ).strip()  # a probe that a template must reproduce
_BLOCK = re.compile(rf"{THINK}\s*(?:{THOUGHT}\s*)?$")  # an open or empty block at the end of a text
_MARKER = re.compile(r"<[^\s<>]{1,40}>|\[/?[A-Z_]+\]")  # <|user|> or [INST], token or not
_NAMES_THOUGHTS = re.compile(r"think|thought|reason|channel", re.IGNORECASE)


def render(tokenizer: Any, content: str, thinking: bool | None = None, reply: str = "") -> str:
    """A question as text, with its reply, or with an open turn for one.

    `thinking` is passed to the template as `enable_thinking`; None leaves it to the template.
    """
    turns = [{"role": "user", "content": content}]
    turns += [{"role": "assistant", "content": reply}] if reply else []
    options = {} if thinking is None else {"enable_thinking": thinking}
    return tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=not reply, **options)


def turn_end(tokenizer: Any) -> int | None:
    """The id of the token that ends the assistant's turn: the first special one after the reply,
    or of the next turn (GLM: `<|user|>`). None without a template, or if it fails or has none."""
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "ANSWER"}]
    for conversation in (turns, [*turns, turns[0]]):
        try:
            whole = tokenizer.apply_chat_template(conversation, tokenize=False)
        except Exception:  # no template, or somebody else's program: see check_template
            return None
        after = whole.rpartition("ANSWER")[2]
        added = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
        added.discard(tokenizer.unk_token_id)
        for token in tokenizer(after, add_special_tokens=False)["input_ids"]:
            if token in added and tokenizer.decode([token]).strip():
                return token
    return None


def control_tokens(tokenizer: Any) -> list[str]:
    """What no question may hold: special tokens, the template's own markers, thinking markers."""
    whole = render(tokenizer, "Q", reply="A")
    found = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found |= {*tokenizer.all_special_tokens, *_MARKER.findall(whole), THINK, THOUGHT}
    return sorted((token for token in found if token.strip()), key=len, reverse=True)


def after_thoughts(text: str, opened: bool = False) -> str | None:
    """The text after the last thinking block, all of it if there is none; None within a block. If
    the prompt has `opened` a block, then `text` begins within it."""
    _, closed, after = text.rpartition(THOUGHT)
    return None if THINK in after or (opened and not closed) else after


def check_template(tokenizer: Any, thinking: bool | None = None) -> bool:
    """Whether a prompt ends within an open thinking block; InputError (why, and what to do) if the
    method cannot use this template."""
    name = tokenizer.name_or_path or "the tokenizer"
    its = f"the chat template of {name}"
    # 1. Render a question, alone and with a reply.
    if not tokenizer.chat_template:
        raise InputError(f"{name} has no chat template, so no one knows how to put a question to "
                         "this model; take a chat model, or set tokenizer.chat_template")
    try:
        prompt, whole = (render(tokenizer, QUESTION, thinking, reply) for reply in ("", "ANSWER"))
    except Exception as e:  # somebody else's program
        why = f"{type(e).__name__}: {' '.join(str(e).split())[:100]}"
        raise InputError(f"{its} fails on a plain question ({why}), so no prompt can be made; "
                         "repair tokenizer.chat_template") from e
    if QUESTION not in prompt or QUESTION not in whole or "ANSWER" not in whole:
        raise InputError(f"{its} leaves the question or the reply out, cuts or changes it (it may "
                         "expect text in parts); set a tokenizer.chat_template for plain text")
    if thinking is not None and "enable_thinking" not in str(tokenizer.chat_template):
        raise InputError(f"{its} does not know enable_thinking, so thinking={thinking} would "
                         "change nothing; leave thinking out")
    # 2. Special tokens are dropped by decoding, so they cannot mark thoughts.
    used = str(tokenizer.chat_template) + THINK + THOUGHT
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    if hidden := [t for t in special if _NAMES_THOUGHTS.search(t) and t in used]:
        raise InputError(f"{its} marks thoughts by special tokens ({' '.join(hidden)}): decoding "
                         "drops them, so no one could tell a final answer from a thought; take a "
                         "model that marks them by <think> as an ordinary token (special: false)")
    # 3. The reply must follow the prompt directly, or after an empty thinking block.
    before, _, after = whole.rpartition("ANSWER")
    begun = _BLOCK.sub("", prompt).rstrip()
    between = _BLOCK.sub("", before[len(begun) :]).strip()
    if between or not before.startswith(begun):
        raise InputError(f"{its} ignores add_generation_prompt or opens no turn for a reply: a "
                         f"prompt would end {begun[-40:]!r}, but a reply follows "
                         f"{before[-40:]!r}; set one whose prompt ends where the reply begins")
    # 4. A token must end the turn.
    end = turn_end(tokenizer)
    if end is None or after.partition(tokenizer.decode([end]))[0].strip():
        raise InputError(f"{its} ends a turn with {after.strip()!r}, which does not begin with a "
                         "special token, so solutions would not end; add that text to the "
                         "tokenizer as a special token, or end turns with {{ eos_token }}")
    return after_thoughts(prompt.rpartition(QUESTION)[2]) is None
