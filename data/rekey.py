"""Write the recorded results under today's names. No number changes: `tests/test_rekey.py` says so.

`python data/rekey.py` was run once, when names were made uniform (LOG.md, 2026-11-25). Run again, it changes nothing.

    "shown answer", "shown wrong answer", "hinted"   ->   "guided", "guided, wrong answer", "logprob_with_help"
    stage "frontier"                                 ->   stage "repaired"
"""

from __future__ import annotations

import re
from pathlib import Path

DATA = Path(__file__).resolve().parent
STAGE = [(r'"stage": "frontier"', '"stage": "repaired"'),
         (r'("guided": \d+, )"frontier": (\d+\})', r'\1"repaired": \2')]
NAMES = {  # file -> (pattern, replacement), applied in order
    "results/pure.json": [('"shown answer("|: )', r'"guided\1'),
                          ('"shown wrong answer("|: )', r'"guided, wrong answer\1'),
                          ('"hinted"', '"logprob_with_help"')],
    "results/experiment.json": STAGE,
    "results/experiment-smoke.json": STAGE,
    "behaviour.json": [('"shown answer: ', '"guided: ')],
}


def rekeyed(name: str, text: str) -> str:
    """The text of one record under today's names."""
    for old, new in NAMES[name]:
        text = re.sub(old, new, text)
    return text


if __name__ == "__main__":
    for name in NAMES:
        path = DATA / name
        path.write_text(rekeyed(name, path.read_text(encoding="utf-8")), encoding="utf-8")
