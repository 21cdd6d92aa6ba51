"""What each phase of a run took, in tokens, minutes and memory, beside what was planned."""

import re
import time
from collections.abc import Mapping
from typing import Any

from heal_ref.memory import GIB, peak_memory, reset_peak
from heal_ref.records import read_json
from heal_ref.run.folder import RunFolder

PHASES = ("start", "sample", "guided", "repair", "score", "train", "evaluate")
LINE = re.compile(r"  phase (\w+): ([\d.]+) seconds, ([\d.]+) GiB$", re.MULTILINE)


class Phases:
    """Watches one launch; its lines in the folder's log.txt add up over all launches."""

    def __init__(self) -> None:
        self.tokens = dict.fromkeys(PHASES, 0)
        self._begin()

    def _begin(self) -> None:
        reset_peak()
        self.began = time.monotonic()

    def end(self, name: str, folder: RunFolder, tokens: int = 0) -> None:
        """What ran since the end of the last phase was (a part of) the phase `name`, whose records
        hold so many tokens."""
        seconds = time.monotonic() - self.began
        if round(seconds, 1):
            folder.log(f"phase {name}: {seconds:.1f} seconds, {peak_memory() / GIB:.3f} GiB")
        self.tokens[name] += tokens
        self._begin()

    def measured(self, folder: RunFolder) -> dict[str, dict[str, float]]:
        """`tokens`, `minutes` and `GiB` (the peak) by phase, over all launches of a run.

        What a launch that was killed had done of its last phase is in the tokens alone. With
        several processes, minutes and memory are those of the first one.
        """
        log = (folder.path / "log.txt").read_text(encoding="utf-8")
        out: dict[str, dict[str, float]] = {}
        for name in PHASES:
            lines = [(float(s), float(g)) for phase, s, g in LINE.findall(log) if phase == name]
            out[name] = {"tokens": self.tokens[name],
                         "minutes": round(sum(s for s, _ in lines) / 60, 2),
                         "GiB": max((g for _, g in lines), default=0.0)}
        return out

    def beside_the_plan(self, folder: RunFolder) -> dict[str, Any]:
        """What was measured, and in `planned` what `plan.json` in the folder says, if it is there;
        `launches`: minutes of a phase in which a launch was killed are incomplete."""
        log = (folder.path / "log.txt").read_text(encoding="utf-8")
        file = folder.path / "plan.json"
        plan = read_json(file, "the plan of a run; delete it") if file.exists() else {}
        return {"launches": log.count("  started; "), "measured": self.measured(folder),
                "planned": plan}


def cost_table(phases: Mapping[str, Any]) -> list[list[str]]:
    """Header and one line per phase: tokens, minutes, GiB, planned (expected) and measured."""
    columns = ("tokens", "minutes", "GiB")
    lines = [["phase", *(f"{name} {what}" for name in columns for what in ("planned", "measured"))]]
    told: dict[str, list[Any]] = {}
    for phase, measured in phases["measured"].items():
        planned = phases["planned"].get(phase, {})
        told[phase] = [part.get(name) for name in columns for part in (planned, measured)]
    known = [[n for n in column if n is not None] for column in zip(*told.values(), strict=True)]
    told["whole run"] = [(sum if i < 4 else max)(column) if column else None
                         for i, column in enumerate(known)]
    for phase, row in told.items():
        lines.append([phase, *("-" if n is None else f"{n:,}" if i < 2 else f"{n:.2f}"
                               for i, n in enumerate(row))])
    return lines
