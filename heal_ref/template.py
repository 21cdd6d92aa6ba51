r"""Chat templates: how a question becomes a prompt, what ends a turn, how thoughts are marked.

A prompt ends within the assistant's open turn, and the method appends token ids to it. Nothing is
rendered twice, so a template that strips thoughts from earlier turns cannot strip ours.
"""

from __future__ import annotations

import re
from typing import Any

from heal_ref.records import InputError

THINK, THOUGHT = "<think>", "</think>"
_BLOCK = re.compile(rf"{THINK}\s*(?:{THOUGHT}\s*)?$")  # an open or empty block at the end of a text
_MARKER = re.compile(r"<[^\s<>]{1,40}>|\[/?[A-Z_]+\]")  # <|user|> or [INST], token or not
_NAMES_THOUGHTS = re.compile(r"think|thought|reason|channel", re.IGNORECASE)


def render(tokenizer: Any, content: str, thinking: bool | None = None, reply: str | None = None,
           begin: bool = True) -> str:
    """A conversation as text: a question with its reply, or with (`begin`) an open turn for one.

    Args:
        thinking: passed to the template as `enable_thinking`; None leaves it to the template.
    """
    turns = [{"role": "user", "content": content}]
    if reply:
        turns.append({"role": "assistant", "content": reply})
    options = {} if thinking is None else {"enable_thinking": thinking}
    return tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=begin and not reply, **options)


def after_thoughts(text: str, opened: bool = False) -> str | None:
    """The text after the last thinking block, all of it if there is none; None within a block.

    Args:
        opened: whether the prompt has opened a block already, so that `text` begins within it.
    """
    _, closed, after = text.rpartition(THOUGHT)
    return None if THINK in after or (opened and not closed) else after


def turn_end(tokenizer: Any) -> int | None:
    """The id of the token that ends the assistant's turn: the first special one after the reply.

    A template may leave the end to whatever comes next (GLM writes `<|user|>`); then that is it.
    None without a chat template, or if the template cannot be rendered or ends no turn.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    question, reply = ({"role": "user", "content": "Q"}, {"role": "assistant", "content": "ANSWER"})
    for turns in ([question, reply], [question, reply, question]):
        try:
            whole = tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception:  # templates are other people's programs; check_template says what is wrong
            return None
        if end := _first_added(tokenizer, whole.rpartition("ANSWER")[2]):
            return end[0]
    return None


def _first_added(tokenizer: Any, text: str) -> tuple[int, str] | None:
    """The first added or special token of a text, and the text before it."""
    added = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for k, token in enumerate(ids):
        if token in added and token != tokenizer.unk_token_id and tokenizer.decode([token]).strip():
            return token, tokenizer.decode(ids[:k])
    return None


def control_tokens(tokenizer: Any) -> list[str]:
    """What no question may hold: special tokens, the template's own markers, thinking markers."""
    whole = render(tokenizer, "Q", reply="A")
    added = list(tokenizer.added_tokens_decoder.values())
    special = {token.content for token in added if token.special} | {*tokenizer.all_special_tokens}
    used = {token.content for token in added if token.content in whole}
    found = {*special, *used, *_MARKER.findall(whole), THINK, THOUGHT}
    return sorted((token for token in found if token.strip()), key=len, reverse=True)


def knows_thoughts(tokenizer: Any) -> bool:
    """Whether <think> means something to this tokenizer or its template."""
    template = str(getattr(tokenizer, "chat_template", None))
    return THINK in template or THINK in tokenizer.get_added_vocab()


def check_template(tokenizer: Any, thinking: bool | None = None) -> bool:
    """Whether a prompt ends within an open thinking block.

    Raises:
        InputError: the method cannot use this template. The message says why, and what to do.
    """
    name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    its = f"the chat template of {name}"
    # 1. Render a question, alone and with a reply.
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{name} has no chat template, so no one knows how to put a question to "
                         "this model; take a chat model, or set tokenizer.chat_template")
    try:
        prompt, asked = (render(tokenizer, "QUESTION", thinking, begin=b) for b in (True, False))
        whole = render(tokenizer, "QUESTION", thinking, reply="ANSWER")
        variants = {render(tokenizer, "QUESTION", choice) for choice in (False, True)}
    except Exception as e:  # templates are other people's programs
        raise InputError(f"{its} fails on a plain question ({type(e).__name__}: {str(e)[:100]}), "
                         "so no prompt can be made; repair tokenizer.chat_template") from e
    if "QUESTION" not in prompt or "ANSWER" not in whole:
        raise InputError(f"{its} leaves the question or the reply out (it may expect images and "
                         "text in parts), so the model would never see it; set a "
                         "tokenizer.chat_template for plain text")
    if thinking is not None and len(variants) == 1:
        raise InputError(f"{its} does not know enable_thinking, so thinking={thinking} would "
                         "change nothing; leave thinking out")
    # 2. A reply must follow the prompt directly, or after a thinking block.
    before, _, after = whole.rpartition("ANSWER")
    begun = _BLOCK.sub("", prompt).rstrip()
    header = before[len(begun) :].strip() if before.startswith(begun) else None
    if header is None or _BLOCK.sub("", header):
        why = (f"ignores add_generation_prompt: a prompt would end before {header!r}, outside the "
               "assistant's turn" if header and prompt == asked else
               f"writes {header!r} between the prompt and a reply, so the model would have to "
               "write control tokens, which decoding drops" if header else
               "begins a turn in one way for a prompt and in another for a reply")
        raise InputError(f"{its} {why}; set a tokenizer.chat_template whose prompt opens the "
                         "assistant's turn up to the reply")
    # 3. Thoughts must be told apart from the final answer after decoding.
    hidden = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special
              and _NAMES_THOUGHTS.search(token.content) and token.content in whole_source(tokenizer)]
    if hidden:
        raise InputError(f"{its} marks thoughts by the special tokens {' '.join(hidden[:4])}: "
                         "decoding drops them, so no one could tell a final answer from a thought; "
                         "take a model that writes <think> as an ordinary token, or make them "
                         "ordinary (special: false) and write the template with <think>")
    # 4. A token must end the turn.
    end = _first_added(tokenizer, after)
    if turn_end(tokenizer) is None or (end and end[1].strip()):
        raise InputError(f"{its} ends a turn with {after.strip()!r}, which holds no special token "
                         "at its beginning, so solutions would not end; add that text to the "
                         "tokenizer as a special token, or end turns with {{ eos_token }}")
    return after_thoughts(prompt.rpartition("QUESTION")[2]) is None


def whole_source(tokenizer: Any) -> str:
    """The text of the template, or of all templates by their names."""
    return str(tokenizer.chat_template)
