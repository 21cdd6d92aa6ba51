"""`make html`: every notebook and page as HTML in one folder, to read without Python or network.

The folder has the repository's layout, so that links lead where they led: to the page of a notebook
or of a Markdown file, or to a copy of any other file. Pictures are in the pages, formulas are drawn.
"""

import argparse
import base64
import html
import io
import mimetypes
import re
import shutil
import sys
from contextlib import contextmanager
from os.path import relpath
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from bs4 import BeautifulSoup
from matplotlib import mathtext
from matplotlib.font_manager import FontProperties
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
INDEX = Path("index.md")
PAGES = ("notebooks/*.ipynb", "README.md", "docs/*.md", "PAPER.md", "GLOSSARY.md", "LOG.md", "data/README.md")
SHOWN = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]  # of an output, the first
SPELLED = {r"\le": r"\leq", r"\ge": r"\geq", r"\ne": r"\neq", r"\tfrac": r"\frac", r"\lvert": "|", r"\rvert": "|"}  # for mathtext
TEMPLATE = r"""
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_css -%}<style>
main { max-width: 1000px; margin: auto; padding: 0 8px; }
nav { padding: 8px; font-family: var(--jp-ui-font-family); }
nav a { color: var(--jp-content-link-color); margin-right: 2em; }
summary { cursor: pointer; padding: 4px 0; font-family: var(--jp-ui-font-family); }
.jp-InputArea-editor, .jp-OutputArea-output, .jp-RenderedHTMLCommon pre { overflow-x: auto; }
.jp-RenderedMarkdown :is(pre, pre code) { white-space: pre; }
.jp-RenderedHTMLCommon :is(th, td, tr) { text-align: left; white-space: normal; }
.jp-CodeCell summary { padding-left: 74px; }
img.formula { display: inline; max-width: 100%; }
img.display { display: block; margin: 8px auto; }
</style>{%- endblock -%}
{%- block input_group -%}
{%- if cell.metadata.get('jupyter', {}).get('source_hidden') -%}
{%- set first = cell.source.split('\n')[0] -%}
<details><summary>{{ (first.strip('# ') if first.startswith('#') else 'Show the code') | e }}</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock -%}
{%- block output_group -%}
{%- if cell.metadata.get('jupyter', {}).get('outputs_hidden') -%}
<details><summary>Show the output</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock -%}
"""


class Incomplete(Exception):
    """What keeps a page from being complete: what, why, what to do."""


class _Renderer(IPythonRenderer):
    """Markdown whose formulas are drawn here, so that no page fetches MathJax."""

    def inline_math(self, body):
        return formula(body, "formula", size=11)

    def block_math(self, body):
        return formula(body, "formula display", size=13)

    def latex_environment(self, name, body):
        raise Incomplete(f"\\begin{{{name}}} cannot be drawn; write it between $$ and $$, on one line")


def to_html(markdown):
    return MarkdownWithMath(renderer=_Renderer(escape=False)).render(markdown)


def formula(tex, style, size):
    """A formula as an <img> that holds its drawing; `Incomplete` if matplotlib cannot draw it."""
    drawing, text = io.BytesIO(), " ".join(tex.split())
    known = re.sub(r"\\[a-z]+", lambda found: SPELLED.get(found[0], found[0]), text)
    try:
        depth = mathtext.math_to_image(f"${known}$", drawing, format="svg", dpi=72,
                                       prop=FontProperties(size=size, math_fontfamily="stix"))
    except ValueError as e:
        raise Incomplete(f"${text}$: matplotlib cannot draw this formula "
                         f"({str(e).strip().splitlines()[-1]}); use what its mathtext knows") from e
    data = base64.b64encode(drawing.getvalue()).decode()
    return (f'<img class="{style}" alt="{html.escape(text)}" style="vertical-align:-{depth:.1f}pt" '
            f'src="data:image/svg+xml;base64,{data}">')


def load(path):
    """A notebook; a Markdown page as a notebook of one cell."""
    if path.suffix == ".ipynb":
        return nbformat.read(path, as_version=4)
    return one_cell(path.read_text(encoding="utf-8"))


def one_cell(markdown):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(markdown)])


def title(notebook):
    """Its first heading."""
    return re.search(r"^# +(.+)$", notebook.cells[0].source, re.MULTILINE)[1]


def contents(notebooks):
    """The index as Markdown: of each notebook title and first sentence, of each page the title."""
    lines = ["# Notebooks and pages", ""]
    for path, notebook in notebooks.items():
        lines.append(f"- [{title(notebook)}]({path.as_posix()})")
        if path.suffix == ".ipynb":
            text = notebook.cells[0].source.split("\n\n")[1].removeprefix("**What you will leave with.**")
            first = re.split(r"(?<=[.?!]) ", " ".join(text.split()))[0]
            lines[-1] += "<br>" + re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", first)
    return "\n".join(lines)


class Pages:
    """The pages of the repository `root`, by their path in it, and what was found wrong in them."""

    def __init__(self, root, out):
        self.root, self.out, self.problems = root, out, []
        found = [p for pattern in PAGES for p in sorted(root.glob(pattern))]
        notebooks = {path.relative_to(root): load(path) for path in found}
        self.places = {path: path.with_suffix(".html") for path in notebooks}
        notebooks[INDEX] = one_cell(contents(notebooks))
        self.places[INDEX] = INDEX.with_suffix(".html")
        exporter = HTMLExporter(raw_template=TEMPLATE, filters={"markdown2html": to_html}, config=Config(
            {"NbConvertBase": {"display_data_priority": SHOWN}}))
        self.soups = {}
        for path, notebook in notebooks.items():
            with self.noting(path):
                named = {"metadata": {"name": title(notebook)}}
                self.soups[path] = BeautifulSoup(exporter.from_notebook_node(notebook, named)[0], "html.parser")

    @contextmanager
    def noting(self, path):
        """An `Incomplete` inside becomes one of the problems, and the work goes on."""
        try:
            yield
        except Incomplete as e:
            self.problems.append(f"{path}: {e}")

    def write(self):
        """Complete the pages and write them; returns their number."""
        for path, soup in self.soups.items():
            for script in soup("script"):  # the state of widgets, which nothing here would draw
                script.decompose()
            for image in soup("img"):
                with self.noting(path):
                    image["src"] = self.picture(path, image["src"])
            for link in soup("a", href=True):
                with self.noting(path):
                    link["href"] = self.address(path, link["href"])
            soup.main.insert(0, BeautifulSoup(self.neighbours(path), "html.parser"))
            place = self.out / self.places[path]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(str(soup), encoding="utf-8")
        return len(self.soups)

    def target(self, path, link):
        """The path in the repository that a link in the page `path` leads to."""
        full = (self.root / path.parent / unquote(link)).resolve()
        if not (full.is_file() and full.is_relative_to(self.root)):
            raise Incomplete(f"{link} leads to no file of the repository; mend the link")
        return full.relative_to(self.root)

    def picture(self, path, source):
        """A picture's address: itself, as data."""
        if urlsplit(source).scheme == "data":
            return source
        name = self.target(path, source)
        data = base64.b64encode((self.root / name).read_bytes()).decode()
        return f"data:{mimetypes.guess_type(name)[0]};base64,{data}"

    def address(self, path, link):
        """A link's address in the folder: a page, or a file, which is copied to it."""
        parts, here = urlsplit(link), self.places[path].parent
        if parts.scheme:
            return link
        name = self.target(path, parts.path) if parts.path else path
        if name not in self.places:
            copy = self.out / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / name, copy)
            return Path(relpath(name, here)).as_posix()
        address = Path(relpath(self.places[name], here)).as_posix() if parts.path else ""
        if parts.fragment and name in self.soups:
            ids = [tag["id"] for tag in self.soups[name](id=True)]
            same = [i for i in ids if slug(i) == slug(parts.fragment)]
            if not same:
                raise Incomplete(f"{link}: that page has no heading {parts.fragment}; mend the link")
            address += f"#{same[0]}"
        return address

    def neighbours(self, path):
        """Links to the index and, from a notebook, to the ones before and after it."""
        notebooks = [p for p in self.places if p.suffix == ".ipynb"]
        near = [("Contents", INDEX)]
        if path in notebooks:
            at = notebooks.index(path)
            near += [(p.stem, p) for p in (*notebooks[max(at - 1, 0):at], *notebooks[at + 1:at + 2])]
        here = self.places[path].parent
        links = [f'<a href="{Path(relpath(self.places[p], here)).as_posix()}">{text}</a>' for text, p in near]
        return f"<nav>{' '.join(links)}</nav>"


def slug(heading):
    """What the ids of Jupyter and of GitHub for one heading have in common."""
    return re.sub(r"[^\w-]", "", unquote(heading).replace(" ", "-").lower())


def main(argv=None):
    """Write the pages; exit code 2, and a line for each problem, if one is not complete."""
    parser = argparse.ArgumentParser(prog="python docs/render.py", description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "html", help="folder for the pages")
    args = parser.parse_args(argv)
    pages = Pages(args.root.resolve(), args.out)
    print(f"{pages.write()} pages: {args.out / 'index.html'}")
    print(*pages.problems, sep="\n", end="\n" if pages.problems else "", file=sys.stderr)
    return 2 if pages.problems else 0


if __name__ == "__main__":
    sys.exit(main())
