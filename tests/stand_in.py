"""A stand-in for vLLM: the part of its HTTP protocol that `heal_ref.server` uses, answered from a local model.

`with StandIn(lm) as server: load_lm(folder, server=server.url)`; or as a process, `python -m tests.stand_in FOLDER PORT`.
A function in `faults` spoils the next answer to a completion, one function an answer: it gets the answer and returns another
one, a status, raw bytes, or None, which closes the connection. `asked` holds the bodies of all completions. The probe is
left out of both; if `probed`, only its answers are spoiled.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from heal_ref.config import SampleConfig
from heal_ref.generation import generate
from heal_ref.model import load_lm
from heal_ref.server import PROBE


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        data = [{"id": self.server.name, "parent": None, "max_model_len": self.server.limit}]
        self.send(200, {"data": data} if self.path == "/v1/models" else 404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        probe = body.get("prompt", PROBE) in (PROBE, self.server.lm.encode(PROBE))
        if not probe:
            self.server.asked.append(body)
        with self.server.one_at_a_time:  # torch has one random state
            answer = None if self.server.dead else self.server.answer(self.path, body)
        if answer and self.path == "/v1/completions" and self.server.faults and probe == self.server.probed:
            answer = self.server.faults.pop(0)(answer)
        if answer is None or self.server.dead:
            self.close_connection = True
            return
        self.send(200, answer)

    def send(self, status, answer):
        if isinstance(answer, int):
            status, answer = answer, {"error": {"message": f"a status of {answer}"}}
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # who asked is gone
            self.close_connection = True


class StandIn(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, lm, port=0, name="teacher", limit=512):
        super().__init__(("127.0.0.1", port), Handler)
        self.lm, self.name, self.limit = lm.alone(), name, limit
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.faults, self.asked, self.probed, self.dead = [], [], False, False
        self.one_at_a_time, self.closed = threading.Lock(), threading.Event()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def handle_error(self, *_):
        pass  # a client that was killed

    def __exit__(self, *_):
        self.die()
        with self.one_at_a_time:  # nothing is computed any more
            pass

    def die(self, answer=None):
        """Close the port and every connection; as a fault, before the answer is sent."""
        if not self.dead:
            self.dead = True
            self.shutdown()
            self.server_close()
            self.closed.set()

    def answer(self, path, body):
        """The JSON of an answer, or a status."""
        lm, greedy = self.lm, not body.get("temperature", 1.0)
        if path == "/v1/chat/completions":
            if not lm.tokenizer.chat_template:
                return 400
            prompt = lm.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, tokenize=False)
            return {"choices": [{"index": 0, "token_ids": [0]}], "prompt_token_ids": lm.encode(prompt)}
        prompt, n, most = body["prompt"], body.get("n", 1), body["max_tokens"]
        ids = lm.encode(prompt) if isinstance(prompt, str) else prompt
        if (greedy and n > 1) or not ids or max(ids) >= len(lm.tokenizer) or most > self.limit:
            return 400
        assert isinstance(prompt, str) or {*body["stop_token_ids"]} == {*lm.ends}
        sampling = SampleConfig(temperature=body.get("temperature", 1.0), top_p=body.get("top_p", 1.0), max_new_tokens=most)
        rollouts = generate(lm, [ids[:-1]], [[ids[-1:]] * n], sampling=sampling, seed=body.get("seed", 0),
                            ends=not body.get("min_tokens"))
        choices = []
        for i, r in enumerate(rollouts):
            end = [lm.ends[0]] if r.finished else []
            choices.append({
                "index": i, "text": lm.decode(r.ids), "finish_reason": "stop" if end else "length",
                "token_ids": r.ids + end, "prompt_token_ids": ids,
                "logprobs": {"token_logprobs": r.logprob + [0.0] * len(end)}})  # nothing reads that of the end
        return {"choices": choices[::-1]}  # in any order: they have their index


if __name__ == "__main__":
    StandIn(load_lm(sys.argv[1]), int(sys.argv[2])).serve_forever()
