"""Sampling by a server: an OpenAI-compatible completions endpoint, token ids in and out (vLLM).

- The server only samples. Entropies and log-probs come from the local model, one forward pass over
  the same ids (a shared prefix once). No id is decoded and encoded again; equal texts: one request.
- At the start a probe text is encoded and rendered on both sides. With every call the server also
  continues it, and the log-probs of all that it sampled are compared with the local ones.
- A request's seed follows from the call's seed and its position. What else the server computes may
  still change a sample; what is recorded is what was sampled.
"""

from __future__ import annotations

import math
import random
from asyncio import TaskGroup, sleep
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx2
import torch
from anyio.from_thread import start_blocking_portal

from heal_ref.entropy import entropy_and_logprob
from heal_ref.records import InputError

PROBE = "Problem: Start 5; + 3; # 4\nSolution:\nÉva's 12 apples cost $3.50 each: \\boxed{42}.\n\n"
TOLERANCE = 0.1  # nats, root mean square over tokens: a server may compute in another precision
FEW = 32  # tokens that follow the probe; the mean over fewer counts the missing ones as equal
SPARE = {"n": 2, "max_tokens": FEW, "min_tokens": FEW, "temperature": 1.0, "top_p": 1.0}
PAUSES, TIMEOUT = (1.0, 5.0, 15.0), 3600.0  # seconds: between tries; for an answer, which is whole
Drawn = tuple[list[int], list[float], bool]  # ids, the server's log-probs, whether it ended


@dataclass(frozen=True)
class Server:
    """A model behind a URL; made by `connect`."""

    url: str
    name: str
    limit: int  # tokens of a text with its continuation, or 0
    vocabulary: int
    probe: list[int]

    def sample(self, texts: Sequence[Sequence[int]], stops: Sequence[int], *, may_end: bool = True,
               seed: int = 0, max_tokens: int = 1, temperature: float = 1, top_p: float = 1
               ) -> tuple[list[Drawn], list[Drawn]]:
        """Continue each text (ids) up to one of `stops`, and the probe twice; else InputError."""
        # 1) equal texts are one request; vLLM gives a greedy text only once
        places: dict[tuple[int, ...], list[int]] = {}
        for i, text in enumerate(texts):
            places.setdefault(tuple(text), []).append(i)
        longest = max([len(self.probe) + FEW, *(len(text) + max_tokens for text in places)])
        if self.limit and longest > self.limit:
            raise InputError(f"{self.url}: raise --max-model-len from {self.limit} to {longest}")
        # 2) all at once. What is not sent would come from the model's generation config
        body = {"model": self.name, "max_tokens": max_tokens, "temperature": temperature,
                "top_p": top_p, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
                "min_tokens": 0 if may_end else max_tokens, "ignore_eos": True,
                "stop_token_ids": list(stops), "logprobs": 0, "return_token_ids": True}
        requests = [("completions", body | SPARE | {"prompt": self.probe})]
        requests += [("completions", body | {
            "prompt": text, "n": len(at) if temperature else 1,
            "seed": random.Random(f"{seed}/{at[0]}").getrandbits(31)})
            for text, at in places.items()]
        out: dict[int, Drawn] = {}
        spare, *answers = ask(self.url, requests, self._read, PAUSES)
        for at, drawn in zip(places.values(), answers, strict=True):
            out |= zip(at, drawn if temperature else drawn * len(at), strict=True)
        return [out[i] for i in range(len(texts))], spare

    def _read(self, body: Any, answer: Any) -> list[Drawn]:
        """The n continuations in an answer; an error unless they are whole."""
        choices, out = {choice["index"]: choice for choice in answer["choices"]}, []
        for choice in (choices[i] for i in range(body["n"])):
            ids, stops = choice["token_ids"], body["stop_token_ids"]
            finished = ids[-1] in stops
            whole = len(ids) > body["min_tokens"] if finished else len(ids) == body["max_tokens"]
            kept = ids[:-1] if finished else ids
            logprob = [float(x) for x in choice["logprobs"]["token_logprobs"][: len(kept)]]
            known = all(type(i) is int and 0 <= i < self.vocabulary for i in kept)
            if not whole or not known or len(logprob) < len(kept) or {*kept} & {*stops}:
                raise ValueError(f"{len(ids)} token_ids, not whole or not of this vocabulary")
            out.append((kept, logprob, finished))
        return out

    def compare(self, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> None:
        """InputError if the log-probs of the same tokens cannot be those of one model."""
        pairs = [p for both in zip(ours, theirs, strict=True) for p in zip(*both, strict=True)]
        off = math.sqrt(sum((a - b) ** 2 for a, b in pairs) / max(len(pairs), FEW))
        if not off <= TOLERANCE:
            raise InputError(f"{self.url}: the server has another model, with log-probs off by "
                             f"{off:.2f} nats per token; serve the folder loaded here")


def ask(url: str, requests: Sequence[tuple[str, Any]], read: Callable[[Any, Any], Any],
        pauses: Sequence[float] = ()) -> list[Any]:
    """`read(body, answer)` of all requests (path, body), made at once; after each pause, again."""
    async def one(c: httpx2.AsyncClient, path: str, body: Any) -> Any:
        for pause in (0.0, *pauses):
            await sleep(pause)
            try:
                answer = await c.request("POST" if body else "GET", f"{url}/{path}", json=body)
                if answer.status_code == 200:
                    return read(body, answer.json())
                why = f"status {answer.status_code}: {answer.text[:300]}"
                if answer.status_code < 500 and answer.status_code not in (408, 429):
                    break  # it would say the same again
            except Exception as e:  # the network, or what a foreign or half answer lacks
                first = getattr(e, "exceptions", [e])[0]
                why = f"{'no field' if isinstance(e, KeyError) else type(first).__name__}: {first}"
        raise InputError(f"server {url!r}: no usable answer to {path} ({' '.join(why.split())}); "
                         "let vLLM run there and start the same command again: nothing is lost")

    async def together() -> list[Any]:
        timeout = httpx2.Timeout(TIMEOUT, connect=10.0, pool=None)  # at most 100 connections
        async with httpx2.AsyncClient(timeout=timeout, trust_env=False) as c, TaskGroup() as group:
            tasks = [group.create_task(one(c, *request)) for request in requests]
        return [task.result() for task in tasks]
    try:
        with start_blocking_portal() as portal:  # its own thread: a notebook's has a loop already
            return portal.call(together)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


@torch.no_grad()
def connect(url: str, lm: Any) -> Server:
    """The server at `url`; InputError unless model, tokenizer and template are those of `lm`."""
    url, rows = url.strip().rstrip("/"), lm.model.get_input_embeddings().num_embeddings
    ids, turns = lm.encode(PROBE), [{"role": "user", "content": PROBE}]
    (server,) = ask(url, [("models", None)], lambda _, a: Server(
        url, a["data"][0]["id"], int(a["data"][0].get("max_model_len") or 0), rows, ids))
    # 1) the same text becomes the same ids, and the same question the same prompt
    probes = {"tokenizer": ("completions", {"prompt": PROBE, "add_special_tokens": False}, ids)}
    with suppress(Exception):  # there may be no template
        shown = lm.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        probes["chat template"] = "chat/completions", {"messages": turns}, lm.encode(shown)
    for what, (path, body, expected) in probes.items():
        body |= {"model": server.name, "max_tokens": 1, "return_token_ids": True}
        found = ask(url, [(path, body)], lambda _, a: (a | a["choices"][0])["prompt_token_ids"])
        if found != [expected]:
            raise InputError(f"{url}: the server has another {what}; serve the folder loaded here")
    # 2) what it samples after these ids has the same log-probs here
    _, spare = server.sample([], lm.ends)
    texts = torch.tensor([[*ids, *new] for new, _, _ in spare], device=lm.device)
    ours = entropy_and_logprob(lm.model(texts).logits[:, :-1], texts[:, 1:])[1][:, len(ids) - 1 :]
    server.compare(ours.tolist(), [logprob for _, logprob, _ in spare])
    return server
