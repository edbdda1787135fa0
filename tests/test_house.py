"""The signs by which the house is measured (`nbs/explanations/architecture.ipynb` has its rules)

    python tests/test_house.py             # every sign beside its goal and its bound, with the places that count most
    python tests/test_house.py --tighten   # make each bound as strict as what is reached, up to the goal

A test fails where a bound is missed. A bound is the goal, or what is reached where the goal isn't: nothing gets worse.
"""
import ast
import collections
import json
import math
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
package = root/"cinic_fastai"

@dataclass(frozen=True)
class Sign:
    "What a figure should be, and what to do where it is not"
    goal:float
    bound:float # The goal, or what is reached; never to be made worse
    advice:str
    more:bool=False # Is more better?

    def holds(self, value): return value>=self.bound if self.more else value<=self.bound

SPLIT = "Split the cell, with words and a result between its parts."
ONE_IDEA = "One definition or one idea a cell."
ONCE = "Open the study's folder once and hand it on."
SHORTER = "Split functions where a part has a name."
STORE = "End a cell with the value, table or plot that shows the point; `make outputs` stores it."

SIGNS = {
    "AST nodes": Sign(100_000, 156_250, "Simplify, delete, or let a library do it."),
    "AST nodes a line of code": Sign(9.5, 10.07, "Write one statement a line, and name what is nested."),
    "string keys per 1,000 lines": Sign(40, 40, "Give what travels a dataclass or a pydantic model."),
    "lines over 120 characters, %": Sign(1, 1, "Break the lines."),
    "lines over 160 characters": Sign(0, 0, "Break the lines."),
    "lines of the largest module": Sign(400, 400, "Give a part of it a module, and a row in the table of rooms."),
    "modules": Sign(60, 76, "Put two small neighbours together."),
    "functions with 10 or more parameters": Sign(0, 0, "Put those that belong together into a frozen dataclass."),
    "body of a function, median lines": Sign(6, 6, SHORTER),
    "body of a function, 90 %": Sign(14, 14, SHORTER),
    "lines of the longest template": Sign(200, 200, "Include a part of it as a template of its own."),
    "names of `all`": Sign(80, 80, "Give only what people hold in a notebook; the rest is imported from its module."),
    "names given twice": Sign(0, 0, "Rename or hide one of the two."),
    "names that shadow fastai's": Sign(0, 0, "Take another name: people star-import both."),
    "exported cell, median lines": Sign(14, 14, ONE_IDEA),
    "exported cell, 90 %": Sign(40, 40, ONE_IDEA),
    "exported cells over 50 lines": Sign(5, 5, SPLIT),
    "exported cells with more than 3 definitions": Sign(10, 10, SPLIT),
    "lines over 120 characters in cells that are not exported": Sign(0, 1, "Break the lines."),
    "demonstrating cells with a stored result, %": Sign(30, 30, STORE, more=True),
    "prose words an exported line, poorest notebook": Sign(1.5, 1.5, "Say why, with shapes and examples.", more=True),
    "reads of study.json for a page": Sign(1, 1, ONCE),
    "reads of done.json for a page, a run": Sign(1, 1, ONCE),
    "reads of history.csv for a page, a run": Sign(1, 1, ONCE),
    "findings of ruff": Sign(0, 0, "Mend what `ruff check` shows."),
}

@dataclass(frozen=True)
class Found:
    "What is reached"
    value:float
    places:tuple=() # Where most of it is

def share(xs, f):
    "The value below which a share of them lies"
    xs = sorted(xs)
    return xs[int(f*(len(xs)-1))] if xs else 0

def most(counts, n=4):
    "The largest of some counts, as text"
    largest = sorted(counts.items(), key=lambda o: -o[1])[:n]
    return tuple(f"{k} ({v:.3g})" if v%1 else f"{k} ({v:,})" for k,v in largest if v)

# ---- Modules ----

@dataclass(frozen=True)
class Module:
    "A module as text and as a tree"
    name:str
    lines:list
    tree:ast.Module

    @property
    def code(self): return [l for l in self.lines if l.strip() and not l.strip().startswith("#")]
    @property
    def nodes(self): return list(ast.walk(self.tree))
    @property
    def functions(self): return [n for n in self.nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]

@cache
def modules():
    "The package as written, without what nbdev makes"
    out = []
    for p in sorted(package.rglob("*.py")):
        text = p.read_text(encoding="utf-8")
        name = ".".join(p.relative_to(package).with_suffix("").parts)
        if p.name not in ("_modidx.py", "__init__.py"): out.append(Module(name, text.splitlines(), ast.parse(text)))
    return out

def is_text(node): return isinstance(node, ast.Constant) and isinstance(node.value, str)

def is_string_key(n):
    'Is it `d["key"]` or `d.get("key")`?'
    if isinstance(n, ast.Subscript): return is_text(n.slice)
    is_get = isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr=="get"
    return is_get and bool(n.args) and is_text(n.args[0])

def code_signs():
    "Size and density of the modules"
    own = modules()
    nodes = {m.name: len(m.nodes) for m in own}
    keys = {m.name: sum(map(is_string_key, m.nodes)) for m in own}
    total = sum(len(m.lines) for m in own)
    dense = {m.name: nodes[m.name]/max(1, len(m.code)) for m in own}
    density = sum(nodes.values())/sum(len(m.code) for m in own)
    return {
        "AST nodes": Found(sum(nodes.values()), most(nodes)),
        "AST nodes a line of code": Found(density, most(dense)),
        "string keys per 1,000 lines": Found(1000*sum(keys.values())/total, most(keys)),
        "lines of the largest module": Found(max(len(m.lines) for m in own), most({m.name: len(m.lines) for m in own})),
        "modules": Found(len(own))}

def line_signs():
    "Lines that need scrolling"
    wide, widest = ({m.name: sum(len(l)>n for l in m.code) for m in modules()} for n in (120, 160))
    total = sum(len(m.lines) for m in modules())
    return {"lines over 120 characters, %": Found(100*sum(wide.values())/total, most(wide)),
        "lines over 160 characters": Found(sum(widest.values()), most(widest))}

def function_signs():
    "Functions: parameters (of all but commands) and length"
    params, bodies = {}, {}
    for m in modules():
        for f in m.functions:
            name = f"{m.name}.{f.name}"
            bodies[name] = f.end_lineno-f.body[0].lineno+1
            if m.name.split(".")[0]!="cli": params[name] = len(f.args.posonlyargs+f.args.args+f.args.kwonlyargs)
    many = {k: n for k,n in params.items() if n>=10}
    return {"functions with 10 or more parameters": Found(len(many), most(many)),
        "body of a function, median lines": Found(share(bodies.values(), .5)),
        "body of a function, 90 %": Found(share(bodies.values(), .9), most(bodies))}

def template_signs():
    "Templates"
    kinds = (".html", ".j2", ".md", ".txt", ".tex")
    lines = {f.name: len(f.read_text(encoding="utf-8").splitlines()) for f in package.rglob("*") if f.suffix in kinds}
    return {"lines of the longest template": Found(max(lines.values(), default=0), most(lines))}

# ---- The star import ----

def given_names():
    "Every name that the star import gives, as often as it is given (in a process of its own: all is imported)"
    import importlib
    import cinic_fastai.all as ours
    tree = ast.parse((package/"all.py").read_text(encoding="utf-8"))
    if hasattr(ours, "__all__"): return list(ours.__all__)
    names = []
    for n in tree.body:
        if not isinstance(n, ast.ImportFrom): continue
        given = [a.asname or a.name for a in n.names]
        names += importlib.import_module(n.module).__all__ if given==["*"] else given
    return names

def print_names():
    "Names of the star import, and those that stand for something else in fastai"
    import cinic_fastai.all as ours
    import fastai.vision.all as theirs
    names = given_names()
    missing = object()
    def shadows(name): return getattr(theirs, name, missing) not in (missing, getattr(ours, name))
    print(json.dumps(dict(names=names, shadows=sorted(filter(shadows, set(names))))))

def public_signs():
    "What the star import gives"
    found = in_process("--names")
    counts = collections.Counter(found["names"])
    twice = sorted(k for k,n in counts.items() if n>1)
    return {"names of `all`": Found(len(counts)), "names given twice": Found(len(twice), tuple(twice)),
        "names that shadow fastai's": Found(len(found["shadows"]), tuple(found["shadows"]))}

# ---- Notebooks ----

EXPORT = re.compile(r"^#\s*\|\s*exports?\b", re.M)
HIDDEN = re.compile(r"#\s*\|\s*(default_exp|hide)\b")
DEFINITION = re.compile(r"^(?:def|class) ", re.M)

@dataclass(frozen=True)
class Cell:
    "A cell of a notebook"
    notebook:str
    kind:str # `code` or `markdown`
    text:str
    stored:bool # Has it a result?

    @property
    def lines(self): return len(self.text.splitlines())
    @property
    def exported(self): return self.kind=="code" and bool(EXPORT.search(self.text))
    @property
    def defines(self): return self.exported and bool(re.search(r"^(def|class|@)", self.text, re.M))
    @property
    def demonstrates(self):
        return self.kind=="code" and bool(self.text.strip()) and not self.exported and not HIDDEN.match(self.text)

@cache
def cells():
    "Of the notebooks that modules come from"
    out = []
    for f in sorted((root/"nbs").glob("*.ipynb")):
        for c in json.loads(f.read_text(encoding="utf-8"))["cells"]:
            out.append(Cell(f.stem, c["cell_type"], "".join(c["source"]), bool(c.get("outputs"))))
    return out

def cell_signs():
    "One definition or one idea a cell?"
    defining = [c for c in cells() if c.defines]
    sizes = [c.lines for c in defining]
    long = collections.Counter(c.notebook for c in defining if c.lines>50)
    crowded = collections.Counter(c.notebook for c in defining if len(DEFINITION.findall(c.text))>3)
    wide = collections.Counter()
    for c in cells():
        if c.kind=="code" and not c.exported: wide[c.notebook] += sum(len(l)>120 for l in c.text.splitlines())
    return {"exported cell, median lines": Found(share(sizes, .5)),
        "exported cell, 90 %": Found(share(sizes, .9)),
        "exported cells over 50 lines": Found(sum(long.values()), most(long)),
        "exported cells with more than 3 definitions": Found(sum(crowded.values()), most(crowded)),
        "lines over 120 characters in cells that are not exported": Found(sum(wide.values()), most(wide))}

def prose():
    "Words an exported line, by notebook, of those that export more than 40 lines"
    words, exported = collections.Counter(), collections.Counter()
    for c in cells():
        if c.kind=="markdown": words[c.notebook] += len(c.text.split())
        if c.exported: exported[c.notebook] += c.lines
    return {k: words[k]/n for k,n in exported.items() if n>40}

def lesson_signs():
    "Words before the code, results under it?"
    shown = [c for c in cells() if c.demonstrates]
    bare = collections.Counter(c.notebook for c in shown if not c.stored)
    stored = 100*sum(c.stored for c in shown)/len(shown)
    poor = sorted(prose().items(), key=lambda o: o[1])
    places = tuple(f"{k} ({v:.2f})" for k,v in poor[:4])
    return {"demonstrating cells with a stored result, %": Found(stored, most(bare)),
        "prose words an exported line, poorest notebook": Found(poor[0][1], places)}

# ---- Reads for a page ----

READ_ONCE = {"study.json": "reads of study.json for a page", "done.json": "reads of done.json for a page, a run",
    "history.csv": "reads of history.csv for a page, a run"}

def print_reads():
    "How often files are opened while the example study's page is drawn"
    from conftest import no_figures
    from cinic_fastai.report.render import write_page
    from cinic_fastai.example import example_study
    no_figures()
    opened = collections.Counter() # by path
    with tempfile.TemporaryDirectory() as tmp:
        out = example_study(Path(tmp)/"example", images=50, trials=(1,1))
        sys.addaudithook(lambda event, args: note_read(opened, args) if event=="open" else None)
        write_page(out)
    print(json.dumps({k: max(n for f,n in opened.items() if f.name==k) for k in READ_ONCE}))

def note_read(counts, args):
    "Count an opening for reading"
    path, mode = args[:2]
    if isinstance(path, (str, bytes, Path)) and (mode is None or "r" in mode): counts[Path(str(path))] += 1

def read_signs():
    "How often a page's files are opened"
    reads = in_process("--reads")
    return {sign: Found(reads[f]) for f,sign in READ_ONCE.items()}

# ---- Lint ----

def lint_signs():
    "What ruff finds, by its rules in pyproject.toml"
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", root]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    found = [l.replace(f"{root}/", "") for l in done.stdout.splitlines() if re.match(r".+:\d+:\d+: ", l)]
    files = collections.Counter(l.split(":")[0] for l in found)
    return {"findings of ruff": Found(len(found), tuple(found) if len(found)<20 else most(files, 12))}

# ---- All of them ----

MEASURES = [code_signs, line_signs, function_signs, template_signs, public_signs, cell_signs, lesson_signs, read_signs,
    lint_signs]

def in_process(what):
    "What this file prints in a process of its own, whose imports and hooks are nobody else's"
    done = subprocess.run([sys.executable, "-W", "ignore", __file__, what], capture_output=True, text=True, cwd=root)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

def message(name, found):
    "What is wrong with a sign and what to do"
    sign = SIGNS[name]
    places = f" Most of it: {'; '.join(found.places)}." if found.places else ""
    return f"{name}: {found.value:,.4g}, at {'least' if sign.more else 'most'} {sign.bound:,g}. {sign.advice}{places}"

@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_signs(measure):
    missed = [message(k, v) for k,v in measure().items() if not SIGNS[k].holds(v.value)]
    assert not missed, "\n".join(missed)

def test_every_sign_is_measured_once():
    text = Path(__file__).read_text(encoding="utf-8")
    assert not [k for k in SIGNS if text.count(f'"{k}"')!=2]

def test_bounds_are_no_stricter_than_goals():
    assert not [k for k,s in SIGNS.items() if (s.bound>s.goal if s.more else s.bound<s.goal)]

def tightened(sign, value):
    "The bound that a value keeps, rounded towards the worse: never looser than it was, never stricter than the goal"
    scale = 1 if abs(value)>=20 else 100
    if sign.more: return min(sign.goal, max(sign.bound, math.floor(value*scale)/scale))
    return max(sign.goal, min(sign.bound, math.ceil(value*scale)/scale))

def test_bounds_follow_what_is_reached():
    less, more = Sign(10, 50, ""), Sign(30, 20, "", more=True)
    assert [tightened(less, v) for v in (60, 41.2, 8)]==[50, 42, 10]
    assert [tightened(more, v) for v in (10, 25.7, 80)]==[20, 25, 30]

def tighten(found):
    "Write what is reached as bounds into this file"
    text = Path(__file__).read_text(encoding="utf-8")
    for k,v in found.items():
        line = re.compile(rf'("{re.escape(k)}": Sign\([^,]+, )[^,]+')
        text = line.sub(lambda m: f"{m[1]}{tightened(SIGNS[k], v.value):g}", text)
    Path(__file__).write_text(text, encoding="utf-8")

def main(argv):
    if argv in (["--names"], ["--reads"]): return {"--names": print_names, "--reads": print_reads}[argv[0]]()
    found = {k: v for f in MEASURES for k,v in f().items()}
    for k,v in found.items():
        sign = SIGNS[k]
        at_goal = v.value>=sign.goal if sign.more else v.value<=sign.goal
        mark = "  " if at_goal else "! " if sign.holds(v.value) else "!!"
        print(f"{mark} {v.value:>10,.4g}  goal {sign.goal:>7,g}  bound {sign.bound:>7,g}  {k}")
        if v.places and not at_goal: print(f"{'':44}{'; '.join(v.places)}")
    if argv==["--tighten"]: tighten(found)

if __name__=="__main__": main(sys.argv[1:])
