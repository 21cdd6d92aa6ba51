"""What README, PAPER and the other pages show works as it stands: snippets, commands, names, links, tables."""

import importlib
import json
import re
import shlex
import subprocess
from functools import partial

import pytest

from heal_lab import arms as A
from heal_lab import bench
from heal_lab.__main__ import _parser as lab_parser
from heal_lab.__main__ import main as lab_main
from heal_lab.compare import Results, verdict
from heal_lab.evidence import read_record
from heal_lab.figures import ARM_LABEL, validation_lines
from heal_ref.__main__ import _parser, main
from heal_ref.evaluate import Row
from heal_ref.plots import with_interval
from tests.conftest import DATA, ROOT

GUIDE = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
PAGES = (*GUIDE, "PAPER.md", "GLOSSARY.md", "LOG.md", "data/README.md")
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README, PAPER = TEXT["README.md"], TEXT["PAPER.md"]
CONTINUES = "docs/usage.md"  # its snippets go on from the README's


def blocks(page, language=""):
    """The code blocks of a page in this language; without one they are shell commands."""
    return [text for kind, text in re.findall(r"```(\w*)\n(.*?)```", TEXT[page], re.DOTALL) if kind == language]


def test_the_readme_is_short_and_every_block_is_of_a_kind_that_is_run():
    assert len(README.splitlines()) <= 90
    for page in GUIDE:
        assert len(blocks(page)) + len(blocks(page, "python")) == TEXT[page].count("```") // 2, page


def test_the_python_snippets_run_one_after_another(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = {}
    snippets = [*blocks("README.md", "python"), *blocks(CONTINUES, "python")]
    assert len(snippets) == 5
    for text in snippets:
        assert len(text.splitlines()) <= 10
        exec(text, names)  # noqa: S102
    for page in {*GUIDE} - {"README.md", CONTINUES}:
        alone = {}
        for text in blocks(page, "python"):
            exec(text, alone)  # noqa: S102
    said = capsys.readouterr().out
    assert int(re.search(r"(\d+) problems solved with help", said)[1]) > 0
    assert said.count("(limit ") == 3
    assert list(names["stages"]) == ["foundation", "guided", "repaired"]
    assert isinstance(names["row"], Row)
    assert "checkpointing = true" in said
    assert "4 solutions" in said


PAIR = ["--scale", "0.0003", "--limit", "2", "--quiet"]
SMALL = {  # what makes a command of README and docs/ short enough for a test
    "demo": ["--preset", "smoke", "--quiet"],
    "run --out DIR": ["--preset", "smoke", "--dry-run"],
    "check FILE": [],
    "check data/chat/train.jsonl --teacher data/chat/teacher": [],
    "show DIR": [],
    "experiment": ["--preset", "smoke", "--seeds", "0", "--arms", "student", "--limit", "2", "--quiet"],
    "build-pair --out DIR": PAIR,
    "build-pair --seed 1 --out runs/pair-1": PAIR,
    "build-pair --seed 0 --dial hours=47 --limit 100 --out runs/hours-47": PAIR,
    "build-pair --world chat --out runs/chat": PAIR,
    "evidence gear": ["--limit", "1"],
    "evidence gear --limit 250": ["--limit", "1"],
    "evidence breaks --problems data/clock/validation.jsonl": ["--limit", "1"],
    "evidence hints --problems data/clock/validation.jsonl": ["--limit", "1"],
    "evidence pure --limit 250": ["--limit", "1"],
    "bench score": ["--rounds", "1"],
    "real --teacher data/chat/teacher --student data/chat/teacher": [
        "--limit", "1", "--arms", "student", "--seeds", "0", "--set", "sample.max_new_tokens=8", "--quiet"],
    "draw": [],
}
INLINE = r"`(?:OMP_NUM_THREADS=1 )?python -m heal_(?:ref|lab) ([^`]+)`"
SHOWN = [c for page in GUIDE for c in re.findall(INLINE, TEXT[page]) if c != "run ..."]
LONG = {  # what they do is also tested with the pipeline, the pair and the evidence
    "demo", "show DIR", *(c for c in SMALL if c.startswith("build-pair") or "--limit 250" in c)}


@pytest.mark.parametrize("command", [
    pytest.param(c, marks=pytest.mark.slow if c in LONG else ()) for c in sorted({*SMALL, *SHOWN})])
def test_each_command_of_readme_and_docs_runs(command, tmp_path, monkeypatch, capsys):
    assert command in SHOWN, "no longer shown"
    monkeypatch.chdir(tmp_path)  # where runs/ of the defaults goes
    (tmp_path / "data").symlink_to(DATA)
    monkeypatch.setattr(bench, "bench_score", partial(bench.bench_score, positions=64, vocabulary=300, hidden=16))
    args = [{"DIR": str(tmp_path / "out"), "FILE": str(DATA / "clock" / "train.jsonl")}.get(x, x) for x in shlex.split(command)]
    if command == "show DIR":
        few = ["train_limit=2", "eval_limit=1", "pace.updates=2", "pace.batch=4"]
        made = ["run", "--preset", "smoke", "--quiet", "--out", str(tmp_path / "out"), *(x for s in few for x in ("--set", s))]
        assert main(made) == 0
    run = main if command.split()[0] in ("demo", "run", "check", "show") else lab_main
    assert run([*args, *SMALL[command]]) == 0
    assert capsys.readouterr().out


def test_the_other_commands_of_readme_and_docs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    lines = [line for page in GUIDE for text in blocks(page) for line in text.splitlines()]
    assert len(lines) >= 7
    makefile = (ROOT / "Makefile").read_text()
    runs, own = [], r" --(quiet|locked|disable-pip-version-check|python \S+)"  # what `make` runs, but for its own options
    for uv in ("", "uv"):
        dry = ["make", "-B", "-n", ".venv/.installed", f"UV={uv}", "PIP_FIND_LINKS="]
        done = subprocess.run(dry, capture_output=True, text=True, check=True)
        runs += [shlex.split(re.sub(own, "", line)) for line in done.stdout.splitlines()]
    for line in lines:
        words = shlex.split(line.split("#")[0])
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
            assert subprocess.run(["make", "-n", words[1]], capture_output=True, check=True).stdout
        elif "--dry-run" in words:
            assert main(words[3:]) == 0
            assert "memory, sample: at most" in capsys.readouterr().out
        elif "install" in words or words[0] == "uv":  # the very lines that `make` runs, with pip or with uv
            assert words in runs, line
        else:
            assert words in (["python", "-m", "venv", ".venv"], [".venv/bin/python", "-m", "heal_ref", "demo"]), line
    assert "TORCH ?= torch==2.13.0" in makefile


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse_and_links_lead_somewhere(page):
    path, text = ROOT / page, TEXT[page]
    for command in re.findall(r"`(?:OMP_NUM_THREADS=1 )?python -m heal_ref ([a-z][^`]*)`", text):
        if command != "run ...":  # the laboratory's commands are parsed by its own parser below
            out = ["--out", "DIR"] if command.split()[0] == "run" else []
            _parser().parse_args([*shlex.split(command), *out])
    for command in re.findall(r"`(?:OMP_NUM_THREADS=1 )?python -m heal_lab ([a-z][^`]*)`", text):
        lab_parser().parse_args(shlex.split(command))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        if file.startswith("http"):
            continue
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor and target.suffix == ".ipynb":
            cells = json.loads(target.read_text(encoding="utf-8"))["cells"]
            headings = [line.lstrip("# ").strip() for c in cells if c["cell_type"] == "markdown"
                        for line in "".join(c["source"]).splitlines() if line.startswith("#")]
            assert anchor in [h.replace(" ", "-") for h in headings], link
        elif anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings], link


def test_paper_names_real_code_and_tests():
    claims = re.findall(r"^### \d.*?(?=^##)", PAPER, re.MULTILINE | re.DOTALL)
    assert len(claims) == 7
    for claim in claims:
        assert "\n> " in claim
        for row in ("we do", "code", "notebook", "test", "measured"):
            assert f"\n| {row} | " in claim, claim[:60]
        names = re.findall(r"`([\w.]+)\.(\w+)`", re.search(r"^\| code \|.*$", claim, re.MULTILINE)[0])
        assert names
        for module, name in names:
            where = module if module.startswith("heal_lab") else f"heal_ref.{module}"
            assert hasattr(importlib.import_module(where), name), f"{module}.{name}"
        tests = re.findall(r"`(test_\w+\.py)::(test_\w+)`", claim)
        assert tests
        for file, name in tests:
            assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), name


@pytest.fixture(scope="module")
def records():
    return {name: read_record(name) for name in ("experiment", "one-pair")}


@pytest.mark.parametrize("page", PAGES)
def test_result_tables_are_the_records(page, records):
    """In every table of arms; PAPER has two with all arms, first of all pairs, then of one."""
    tables = re.findall(r"(?:^\|.*\n)+", TEXT[page], re.MULTILINE)
    tables = [[[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]
              for table in tables if table.startswith("| sampled pass@1 |")]
    assert len(tables) == 2 * (page == "PAPER.md")
    for (head, _, *lines), record in zip(tables, records.values(), strict=False):
        of = {(ARM_LABEL[r["arm"]], r["kind"]): f"{r['mean']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in record["rows"]
              if r["pair"] == "all" and r["metric"] == "pass@1" and r["arm"] != "recall"}
        assert {line[0] for line in lines} == {arm for arm, _ in of}
        for line in lines:
            assert line[1:] == [of[line[0], kind] for kind in head[1:]], line[0]


def test_the_baseline_is_chosen_on_validation_problems(records):
    """The table says what the records say, and of the arms that know nothing of kinds none is better on the frontier."""
    page, arms = TEXT["docs/reproducing.md"], ["rft", "rft_adaptive", "rft_adaptive_frontier", "heal"]
    of = {name: Results(record) for name, record in records.items()}
    kinds = ["mastered", "shaky", "frontier", "double"]
    head, *lines = validation_lines(of["experiment"], arms, kinds)
    _, matched, adaptive = validation_lines(of["one-pair"], ["rft_matched", "rft_adaptive"], kinds)
    matched = (f"{matched[0]} (one pair)", *matched[1:])
    for line in (head, *lines, matched):
        assert f"| {' | '.join(line)} |" in page, line
    assert f"where `rft_adaptive` has {adaptive[2]} on `shaky` and {adaptive[3]} on the frontier" in page
    assert lines[1][3] > lines[0][3]
    assert adaptive[3] > matched[3]


def said(row):
    return f"{row.mean:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"


BUDGETS = ("@0.25", "@0.5", "", "@2", "@4")  # from fewest to most: the order of the first page


def test_the_first_page_gives_the_margin_at_each_budget():
    """And PAPER's table is the record's."""
    of = Results(read_record("tokens"))
    rows = [of.difference(f"heal{x}", f"rft_adaptive{x}", "frontier") for x in BUDGETS]
    stated = re.findall(r"[+-]\d\.\d\d \[[^\]]+\]", README)
    assert stated[:5] == [said(row) for row in rows]
    assert [verdict(row) for row in rows] == ["better"] * 3 + ["no difference shown", "worse"]  # what the first page says
    assert f"with {of.tokens('heal@4') / of.tokens('heal'):.1f} times as many" in README
    assert f"with {of.tokens('heal@0.25') / of.tokens('heal'):.2f} of the tokens" in README
    assert len(of.pairs("heal@2", "rft_adaptive@2")) == 6
    for x in BUDGETS:
        arms = f"heal{x}", f"rft_adaptive{x}"
        shares = [with_interval(of.row(arm, "frontier")) for arm in arms]
        gaps = [said(of.difference(*arms, kind)) for kind in ("frontier", "double", "mastered")]
        line = [*(f"{of.tokens(arm) / 1000:.0f}" for arm in arms), *shares, *gaps]
        assert f"| {' | '.join(line)} |" in PAPER
    early = said(of.difference("heal@0.5", "rft_adaptive", "frontier"))
    assert f"HEAL with half the tokens − adaptive rejection sampling with all of them {early}" in " ".join(PAPER.split())


def test_what_pure_earns_at_each_share_of_forged_examples():
    of = Results(read_record("forged"))
    gaps = [of.difference(f"heal_forged@{x:g}", f"heal_no_pure_forged@{x:g}", "frontier") for x in A.FORGED]
    earned = [f"{gap.mean:+.2f}" for gap in gaps]
    assert f"PURE earns {', '.join(earned[:-1])} and {earned[-1]} on the frontier" in PAPER


def test_differences_in_paper_and_readme_are_the_records(records):
    results = {name: Results(record) for name, record in records.items()}
    names = {label: arm for arm, label in ARM_LABEL.items()}
    tables = re.findall(r"^\| difference \|.*\n(?:^\|.*\n)+", PAPER, re.MULTILINE)
    assert len(tables) == 2
    for table, of in zip(tables, results.values(), strict=True):
        lines = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        assert len(lines) >= 4
        for line in lines:
            arm, other = (names[label] for label in line[0].split(" − "))
            assert line[1:] == [said(of.difference(arm, other, kind)) for kind in ("frontier", "mastered")], line[0]
    whole = results["experiment"]
    wanted = [("heal", "rft"), ("heal", "teacher")]
    stated = re.findall(r"[+-]\d\.\d\d \[[^\]]+\]", README)
    assert stated[5:7] == [said(whole.difference(arm, other, "frontier")) for arm, other in wanted]
    shares = [f"{whole.row(arm, 'frontier').mean:.0%}".replace("%", " %") for arm in ("heal", "rft", "rft_adaptive")]
    assert re.findall(r"\d+ %", README)[:3] == shares
    parts = [f"{whole.row(A.FACTORIAL[part, kept], 'frontier').mean:.2f}" for kept in ("PURE", "none")
             for part in ("repairs", "guided", "both")]
    parts += [f"{whole.row(arm, 'frontier').mean:.2f}" for arm in ("heal_random_breakpoint", "heal_no_hint")]
    sentence = re.search(r"repairs bring .*?without a hint after it 0\.\d\d", README, re.DOTALL)[0]
    assert re.findall(r"0\.\d\d", sentence) == parts
    order = whole.difference("heal", "heal_no_pace", "frontier")
    assert f"HEAL − one shuffled stage {said(order)}" in README
    assert verdict(order) == "no difference shown"
    shuffled = f"{whole.row('heal_no_pace', 'frontier').mean:.0%}".replace("%", " %")
    assert f"PACE's order is not shown to help (shuffled: {shuffled})" in " ".join(README.split())
    assert f"over {('zero', 'one', 'two', 'three', 'four', 'five', 'six')[len(records['experiment']['pairs'])]} pairs" in README
