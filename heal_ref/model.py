"""A causal language model with its tokenizer; texts are cut, continued and scored as token ids.

Device and number of processes are accelerate's business: nothing here is told where it runs.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import cached_file, logging
from transformers.utils.quantization_config import GgufConfig

from heal_ref.records import InputError
from heal_ref.server import Server, connect
from heal_ref.template import turn_end

MAX_BATCH = 512  # sequences that are generated or scored at once
DTYPES = ("auto", "float32", "bfloat16", "float16")
ADAPTER = re.compile(r"(^|[_.-])(adapters?|lora)([_.-].*)?\.(json|safetensors|bin|pt|npz)$", re.I)
LAYER = re.compile(r"(.+?)\.(\d+)\.")  # stack and number of the layer in the name of a weight
LONGEST_WAIT = timedelta(days=7)
OutOfMemory = torch.OutOfMemoryError


def quiet() -> None:
    """Silence the libraries' own progress bars, warnings and advice; ours still show.

    Example:
        >>> import heal_ref as heal
        >>> heal.quiet()
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning)


def processes() -> PartialState:
    """accelerate's view of this run: `process_index` of `num_processes`, `device`, barriers.

    A process that is done waits for the others for up to `LONGEST_WAIT`: one may still be at a
    shard of many hours, and after torch's own 10 or 30 minutes the launch would be stopped. (A
    process that ends with an error needs no timeout: the launcher stops the others.)
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)


@dataclass
class LM:
    """A model and its tokenizer. `max_batch`: sequences that go through the model at once.
    `server`: what samples in the model's place.

    Of the model's generation config only the ids that end a text are kept, if the model has them: a
    penalty or a ban, which `generate` takes from there, would falsify the recorded entropies.

    Example:
        >>> import heal_ref as heal
        >>> lm = heal.load_lm(heal.DATA / "teacher")
        >>> lm.pieces(lm.encode("compute 5 + 3"))
        ['compute ', '5', ' + ', '3']
    """

    model: Any
    tokenizer: Any
    max_batch: int = MAX_BATCH
    server: Server | None = field(default=None, init=False)
    _pieces: dict[int, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        own, known = self.model.generation_config, self.model.get_input_embeddings().num_embeddings
        listed = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        ends = [i for i in listed if type(i) is int and 0 <= i < known]
        self.model.generation_config = GenerationConfig(
            eos_token_id=ends or None, pad_token_id=own.pad_token_id)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def weights(self) -> str:
        """A hash of every bit of the weights as loaded, whatever files they came from."""
        return weights_hash(self.model)

    @property
    def fingerprint(self) -> str:
        """A hash of a part of each weight, which is enough to tell two models apart."""
        digest = hashlib.sha256()
        for p in self.model.parameters():
            digest.update(p.detach().flatten()[:64].float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def alone(self) -> LM:
        """The same loaded model without its server."""
        return LM(self.model, self.tokenizer, self.max_batch)

    def own_model(self) -> Any:
        """A model with these weights that may be changed: a copy of the caller's."""
        return copy.deepcopy(self.model)

    def free(self) -> None:
        """Let go of weights that can be loaded again (`memory.LazyLM`); these are the caller's."""

    @property
    def end(self) -> int | None:
        """What ends a turn in the chat template, or the tokenizer's end of text: it is learnt."""
        turn = turn_end(self.tokenizer)
        return self.tokenizer.eos_token_id if turn is None else turn

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end a generation: `end`, the tokenizer's, and the generation config's."""
        listed = self.model.generation_config.eos_token_id or []
        ids = [self.end, self.tokenizer.eos_token_id, *listed]
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special tokens added."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token on its own."""
        for i in set(ids) - self._pieces.keys():
            self._pieces[i] = self.decode([i])
        return [self._pieces[i] for i in ids]


def weights_hash(model: torch.nn.Module) -> str:
    """A hash of every bit of the weights as loaded, whatever files they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a model, with a padding token; InputError without words or an end."""
    with _loading(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(**_location(source))
    if tokenizer.vocab_size <= len(tokenizer.all_special_ids):
        raise InputError(f"{source}: the tokenizer cannot be loaded, it has no words; save it here")
    if tokenizer.eos_token_id is None:
        raise InputError(f"{source}: the tokenizer has no end-of-text token; set eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_lm(source: str | Path, *, dtype: str = "auto", max_batch: int = MAX_BATCH,
            server: str | None = None) -> LM:
    """Load a causal LM and its tokenizer onto the device that accelerate picks.

    One process spreads the model over all accelerators that it sees; several processes hold a copy
    each. InputError if it cannot be loaded whole.

    Args:
        source: a folder, a name on the hub, or a GGUF file, whose weights are dequantised.
        dtype: "float32", "bfloat16", "float16", or "auto", that of the saved weights. A student is
            trained in float32 whatever this is.
        max_batch: sequences that go through the model at once; fewer need less memory.
        server: address of a vLLM server that samples in the model's place, such as
            "http://127.0.0.1:8123/v1". Entropies and log-probs still come from the model loaded
            here, by one forward pass over the ids of each trace. InputError if the server serves
            another model, tokenizer or chat template (`server.py`).

    Example:
        >>> import heal_ref as heal
        >>> type(heal.load_lm(heal.DATA / "teacher", dtype="float32").model).__name__
        'Qwen3ForCausalLM'
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    tokenizer, where, state = load_tokenizer(source), _location(source), processes()
    options: dict[str, Any] = {"dtype": dtype}
    if "gguf_file" in where:
        options |= {"dtype": "float32" if dtype == "auto" else dtype, "return_dict": True,
                    "quantization_config": GgufConfig(dequantize=True)}
    if state.num_processes == 1 and torch.accelerator.device_count() > 1:
        options["device_map"] = "auto"
    with _loading(source, "model"):
        if "gguf_file" not in where:
            options["config"] = config = AutoConfig.from_pretrained(
                **where, return_dict=True)
            if getattr(config, "quantization_config", config) is None:
                del config.quantization_config  # null: not quantised
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **where, **options, generation_config=_listed_ends(where), output_loading_info=True)
    model, found = loaded
    failed = f"{source}: the model cannot be loaded"
    if "quantization_config" in model.config.to_dict() and not getattr(model, "hf_quantizer", None):
        raise InputError(f"{failed}, its quantisation is unknown; take one that is not quantised")
    if missing := found["missing_keys"]:
        raise InputError(f"{failed}, {len(missing)} of its weights (such as {min(missing)}) are "
                         "missing and would be random; save the whole model")
    own = model.state_dict().keys()
    layers = {layer.groups() for layer in map(LAYER.match, own) if layer}
    for key in sorted(found["unexpected_keys"]):
        layer = LAYER.match(key)  # a layer too many, of a stack that the model has?
        extra = layer and layer.groups() not in layers and (layer[1], "0") in layers
        bias = layer and key.endswith(".bias") and f"{key.removesuffix('bias')}weight" in own
        if extra or bias or "lora_" in key:
            raise InputError(f"{failed}, config.json has no place for some of its weights (such as "
                             f"{key}), which would be left out; merge an adapter into its base "
                             "model, or mend config.json")
    if (rows := model.get_input_embeddings().num_embeddings) < len(tokenizer):
        raise InputError(f"{source}: the tokenizer has {len(tokenizer)} tokens, the model only "
                         f"{rows}; they do not belong together")
    placed = model if "device_map" in options else model.to(state.device)
    lm = LM(placed.eval(), tokenizer, max_batch)
    lm.server = None if server is None else connect(server, lm)
    return lm


def _location(source: str | Path) -> dict[str, Any]:
    """`source` as arguments of from_pretrained; code that comes with a model is never run."""
    name, path, checked = str(source), Path(source), {"trust_remote_code": False}
    if path.suffix == ".gguf":
        return checked | {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    files = [p.name for p in path.iterdir()] if path.is_dir() else []
    if adapter := next(filter(ADAPTER.search, files), None):
        raise InputError(f"{name}: {adapter} is part of an adapter, which would be left out; merge "
                         "it into its base model (peft: merge_and_unload) and save the whole model")
    local = name.startswith((".", "/", "data/", "runs/")) or path.exists()
    if local and "config.json" not in files:
        raise InputError(f"{name}: no model here (config.json is missing); give a folder written "
                         "by save_pretrained, or run `python -m heal_lab build-pair`")
    return checked | {"pretrained_model_name_or_path": name}


def _listed_ends(where: dict[str, Any]) -> GenerationConfig | None:
    """The end ids in generation_config.json, and nothing else of it; None if there is no file."""
    file = cached_file(where["pretrained_model_name_or_path"], "generation_config.json",
                       _raise_exceptions_for_missing_entries=False)
    if file is None:
        return None
    content = json.loads(Path(file).read_text(encoding="utf-8"))
    return GenerationConfig(eos_token_id=content.get("eos_token_id"))  # LM keeps the valid ones


@contextmanager
def _loading(source: str | Path, what: str) -> Iterator[None]:
    """Whatever transformers raises for files that it cannot read becomes one line of advice."""
    try:
        yield
    except (InputError, OutOfMemory):
        raise
    except Exception as e:  # JSON, pickles, archives, templates: files of others fail in any way
        why = " ".join(str(e).split())[:250] or type(e).__name__
        advice = "check the path or name, and that all its files are whole"
        if "trust_remote_code" in str(e):
            why, advice = "it brings code of its own, which is never run", "take another model"
        elif isinstance(e, ImportError):
            advice = "install what is missing, or take a model that is not quantised"
        raise InputError(f"{source}: the {what} cannot be loaded ({why}); {advice}") from e
