"""Build the site in `_docs` from the notebooks as they are stored; nothing is run again, and no network is needed

    python tools/make_docs.py     # `make docs` does this

nbdev's processors obey the directives; a definition is shown by its signature, its docstring and its docments as a
table, with its source folded under it; Sphinx makes the pages. They lie in the site as they lie in the repository, so
the same links hold in both. The page of the demo study comes along, and every link is checked.
"""
import argparse, ast, io, re, shutil, subprocess, sys, tempfile, tokenize
from pathlib import Path
from fastcore.nbio import mk_cell, read_nb, write_nb
from nbdev.process import NBProcessor
from nbdev.processors import add_show_docs, hide_line, populate_language, strip_ansi
from nbdev.showdoc import showdoc_nm
from check_links import report

root = Path(__file__).resolve().parents[1]
BESIDE = ["CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "SECURITY.md", "benchmarks/answer.md"]
HIDDEN = {"hide", "default_exp"}
EXPORTED = {"export", "exports", "exporti"}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
BACKTICKED = re.compile(r"(?<![\[`\w])`([A-Za-z_][\w.]*)((?:\(\))?)`(?![\]`])")
PYTHON = {"language_info": {"name": "python", "pygments_lexer": "ipython3"},
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}

# Definitions

def definitions(
    source:str # Of a cell
)->list: # Functions and classes in it that have no `_` in front, as AST nodes
    "What a cell defines for others"
    return [n for n in ast.parse(source).body if isinstance(n, DEFINITIONS) and not n.name.startswith("_")]

def full_name(
    node # A class or a function
)->str: # `Class.method` for what `@patch` adds to a class
    "A definition's name as nbdev has it"
    name = showdoc_nm(node)
    return name[0] if isinstance(name, list) else name

def comments(
    source:str # Python
)->dict[int,str]: # Comment by line number, from 1
    "Every comment of a cell"
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type==tokenize.COMMENT}

def parameters(
    args:ast.arguments # Of a function
)->list[tuple]: # `(name, annotation, default, line)`; `self` isn't one
    "Parameters in the order of the signature"
    plain = [*args.posonlyargs, *args.args]
    given = [None]*(len(plain)-len(args.defaults))+args.defaults
    pairs = list(zip(plain, given))
    if args.vararg: pairs.append((args.vararg, None))
    pairs += zip(args.kwonlyargs, args.kw_defaults)
    if args.kwarg: pairs.append((args.kwarg, None))
    return [(a.arg, a.annotation, d, a.lineno) for a,d in pairs if a.arg not in ("self", "cls")]

def maker(
    node # A class or a function
): # The function whose parameters it takes, or None
    "`__init__` of a class"
    if not isinstance(node, ast.ClassDef): return node
    return next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name=="__init__"), None)

def fields(
    node:ast.ClassDef
)->list[tuple]: # As `parameters`
    "Annotated fields of a class without `__init__`"
    own = [n for n in node.body if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_")]
    return [(n.target.id, n.annotation, n.value, n.lineno) for n in own]

def signature(
    node # A class or a function
)->str: # Names and defaults; types are in the table
    "How it is called"
    made = maker(node)
    if made is None: return ""
    args = ast.parse(ast.unparse(made)).body[0].args
    for a in [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]:
        if a: a.annotation = None
    text = re.sub(r"^(self|cls)(, |$)", "", ast.unparse(args))
    returns = f" -> {ast.unparse(node.returns)}" if getattr(node, "returns", None) else ""
    return f"({text}){returns}"

def in_cell(text): return text.replace("|", "\\|").replace("\n", " ")

def as_code(node): return f"`{in_cell(ast.unparse(node))}`" if node else ""

def table(
    node, # A class or a function
    said:dict # Comment by line number
)->str: # Markdown; empty where nothing is said
    "Docments as a table"
    made = maker(node)
    found = parameters(made.args) if made else fields(node)
    rows = [(f"`{n}`", as_code(a), as_code(d), in_cell(said.get(line, ""))) for n,a,d,line in found]
    back = getattr(node, "returns", None)
    if back and said.get(back.end_lineno): rows.append(("*returns*", as_code(back), "", in_cell(said[back.end_lineno])))
    if not any(r[3] for r in rows): return ""
    wanted = [i for i in range(4) if any(r[i] for r in rows)]
    head = [("", "type", "default", "")[i] for i in wanted]
    lines = [head, ["---"]*len(wanted), *([r[i] for i in wanted] for r in rows)]
    return "\n".join("| "+" | ".join(l)+" |" for l in lines)

def linked(
    text:str, # Markdown
    module:str, # It is about; its own names come first
    names:dict # Name -> the modules that define it
)->str: # The same; headings, blocks of code and the first column of tables stay
    "Backticked names of functions and classes as links; a plain word has to be this module's, or be called"
    def link(m):
        own = names.get(m[1], [])
        where = module if module in own else own[0] if len(own)==1 else ""
        is_meant = where==module or m[2] or "_" in m[1] or m[1][0].isupper()
        return f"{{py:obj}}`{m[1]}{m[2]} <{where}.{m[1]}>`" if where and is_meant else m[0]
    out, in_code = [], False
    for line in text.splitlines():
        in_code ^= line.lstrip().startswith("```")
        stays = len(line) if in_code or line.startswith(("#", "    ")) else 0
        if line.startswith("| `"): stays = line.index("|", 1)
        out.append(line[:stays]+BACKTICKED.sub(link, line[stays:]))
    return "\n".join(out)

def kind(
    node, # A class or a function
    is_method:bool # Of a class?
)->str: # A directive of Sphinx
    "How a definition is shown"
    if isinstance(node, ast.ClassDef): return "py:exception" if node.name.endswith("Error") else "py:class"
    decorators = {ast.unparse(d) for d in node.decorator_list}
    if decorators&{"property", "cached_property", "patch(as_prop=True)"}: return "py:property"
    return "py:method" if is_method else "py:function"

def described(
    node, # A class or a function
    said:dict, # Comment by line number
    is_method:bool=False # Of a class?
)->str: # MyST
    "A definition as its signature, docstring, docments and, of a class, its methods"
    name = node.name if is_method else full_name(node)
    directive = kind(node, is_method or "." in name)
    parts = [ast.get_docstring(node) or "", table(node, said)]
    for n in node.body if isinstance(node, ast.ClassDef) else []:
        if isinstance(n, DEFINITIONS[:2]) and not n.name.startswith("_") and ast.get_docstring(n):
            parts.append(described(n, said, is_method=True))
    colons = ":"*(8 if isinstance(node, ast.ClassDef) else 5)
    head = f"{colons}{{{directive}}} {name}{'' if directive=='py:property' else signature(node)}"
    return "\n\n".join([head, *filter(None, parts), colons])

# Notebooks

def module_of(nb):
    "The module that a notebook writes, or an empty name"
    named = re.search(r"^#\|\s*default_exp\s+(\S+)", "\n".join(c.source for c in nb.cells), re.M)
    return f"cinic_fastai.{named[1]}" if named else ""

def only_imports(source): return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body)

def without_directives(cell):
    "A cell as a reader sees it"
    cell.source = "\n".join(l for l in cell.source.splitlines() if not re.match(r"\s*#\s*\|", l)).strip()
    return cell

def of_export(
    cell, # Exported
    names:set # Those that nbdev shows
)->list: # Cells: what it defines, then its source, folded
    "An exported cell as reference"
    source, said = cell.source, comments(cell.source)
    shown = [n for n in definitions(source) if full_name(n) in names]
    cells = [mk_cell(described(n, said), "markdown") for n in shown]
    if only_imports(source): return cells
    cell.metadata["tags"] = ["hide-input"]
    return [*cells, cell]

def lesson(
    nb, # Notebook as it is stored
    names:dict # Name -> the modules that define it
): # The same notebook, for a reader
    "A notebook after nbdev's processors"
    module, shown, out = module_of(nb), set(), []
    proc = NBProcessor(nb=nb, procs=[populate_language, add_show_docs, strip_ansi, hide_line])
    proc.process()
    for cell in nb.cells:
        if getattr(cell, "has_sd", False): shown.add(re.fullmatch(r"show_doc\((.+)\)", cell.source)[1])
    for cell in nb.cells:
        directives = cell.directives_.keys() if hasattr(cell, "directives_") else set()
        if getattr(cell, "has_sd", False) or directives&HIDDEN or cell.cell_type=="raw": continue
        cell = without_directives(cell) if cell.cell_type=="code" else cell
        if cell.source: out += of_export(cell, shown) if directives&EXPORTED else [cell]
    for cell in out:
        if cell.cell_type=="markdown": cell.source = linked(cell.source, module, names)
    if module: out.insert(1, mk_cell(f"```{{py:module}} {module}\n```\n\n*Module* `{module}`", "markdown"))
    nb.cells, nb.metadata = out, PYTHON
    return nb

def names_of(
    notebooks:list # As they are stored
)->dict[str,list]: # Name of a function or class -> the modules that define it
    "What the notebooks define"
    found = {}
    for nb in notebooks:
        for cell in nb.cells:
            if cell.cell_type!="code" or not re.match(r"#\|\s*export", cell.source): continue
            for n in definitions(cell.source): found.setdefault(full_name(n), []).append(module_of(nb))
    return found

def write_sources(
    dest:Path # Folder to make
):
    "The notebooks for a reader, what they link to, and the front page"
    ignore = shutil.ignore_patterns(".*", "data", "*.ipynb")
    shutil.copytree(root/"nbs", dest/"nbs", ignore=ignore)
    (dest/"benchmarks").mkdir()
    for o in BESIDE: shutil.copy(root/o, dest/o)
    table = dest/"benchmarks"/"answer.md"
    table.write_text(f"# An answer beside others\n\n{table.read_text(encoding='utf-8')}", encoding="utf-8")
    shutil.copy(root/"docs"/"index.md", dest/"index.md")
    files = [f for f in sorted((root/"nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in f.parts]
    names = names_of([read_nb(f) for f in files])
    for f in files: write_nb(lesson(read_nb(f), names), dest/f.relative_to(root))

# The site

def demo_report()->Path: # The demo study's page
    "The page of `make study`, made where it is missing"
    page = root/"out"/"demo"/"report.html"
    command = "from cinic_fastai.cli import main; main()"
    if not page.exists(): subprocess.run([sys.executable, "-c", command, "study", "demo"], cwd=root, check=True)
    return page

def build(
    site:Path, # Folder to write, anew
    demo:Path # Page of a study, shown as an example
)->int: # Number of broken links
    "Write the sources, let Sphinx make pages of them, check every link"
    with tempfile.TemporaryDirectory() as tmp:
        sources, made = Path(tmp)/"src", Path(tmp)/"site" # myst-nb writes beside the site, too
        write_sources(sources)
        sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-j", "2"]
        subprocess.run([*sphinx, "-c", root/"docs", "-d", Path(tmp)/"doctrees", sources, made], check=True)
        shutil.rmtree(site, ignore_errors=True)
        shutil.move(made, site)
    (site/"demo").mkdir()
    shutil.copy(demo, site/"demo"/"report.html")
    return report(site)

if __name__=="__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--dest", type=Path, default=root/"_docs", help="Folder of the site; written anew.")
    sys.exit(bool(build(p.parse_args().dest, demo_report())))
