"Rooms: which module may import which, and which needs torch, as `nbs/explanations/architecture.ipynb` has it."
import ast, json, re, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
package = root/"cinic_fastai"

def modules():
    "The package's modules, but for what nbdev makes and the star import"
    files = [p for p in package.rglob("*.py") if p.name not in ("_modidx.py", "all.py")]
    names = {".".join(p.relative_to(package).with_suffix("").parts): p for p in files}
    full = {k: p for k,p in names.items() if k!="__init__" and (p.stem!="__init__" or p.stat().st_size)}
    return {k.removesuffix(".__init__"): p for k,p in full.items()}

def layers():
    "Module -> may it import torch when it is imported? In order of dependence"
    notebook = json.loads((root/"nbs"/"explanations"/"architecture.ipynb").read_text(encoding="utf-8"))
    table = next(o for o in ("".join(c["source"]) for c in notebook["cells"]) if o.startswith("## Rooms"))
    rows = re.findall(r"^\| `(\S+)` \| (yes|no) \|", table, re.M)
    return {name: torch=="yes" for name,torch in rows}

FILES = modules()
LAYERS = {k: torch for k,torch in layers().items() if k in FILES}
TEST_HELPERS = {"test_utils", "example"}

def imports(module, late):
    "Names of the package's modules that a module imports at the top, or (late) inside functions"
    tree = tree_of(module)
    top = {id(n) for n in tree.body}
    for n in ast.walk(tree):
        if isinstance(n, (ast.Import, ast.ImportFrom)) and (id(n) not in top)==late: yield from imported(module, n)

def imported(module, n):
    "What one import statement names, without the package's own name"
    if isinstance(n, ast.Import): names = [a.name for a in n.names]
    else:
        base = _absolute(module, n) if n.level else n.module
        inside = {f"{base}.{a.name}" for a in n.names}&{f"cinic_fastai.{m}" for m in FILES}
        names = inside or [base]
    return [o.removeprefix("cinic_fastai.") for o in names if o.startswith("cinic_fastai.")]

def _absolute(module, n):
    "The module that a relative import means"
    parts = ["cinic_fastai", *module.split(".")]
    above = n.level-(FILES[module].name=="__init__.py")
    return ".".join([*parts[:len(parts)-above], *([n.module] if n.module else [])])

def tree_of(module): return ast.parse(FILES[module].read_text(encoding="utf-8"))

def test_every_module_has_a_place(): assert set(FILES)-TEST_HELPERS==set(LAYERS)

@pytest.mark.parametrize("module", LAYERS)
def test_imports_only_what_stands_above(module):
    order = list(LAYERS)
    above = set(order[:order.index(module)])
    assert set(imports(module, late=False))<=above
    assert set(imports(module, late=True))<=above

LIGHT = [m for m,torch in LAYERS.items() if not torch]+sorted(TEST_HELPERS&set(FILES))

IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module("cinic_fastai."+name)
    heavy = {"torch", "fastai", "timm", "torchvision"}&set(sys.modules)
    if heavy: sys.exit(f"{name} imports {heavy}")
"""

def test_imports_no_torch():
    "One after the other in one process, in order of dependence: the first that does is named"
    done = subprocess.run([sys.executable, "-c", IMPORTS, *LIGHT], capture_output=True, text=True)
    assert done.returncode==0, done.stderr

@pytest.mark.parametrize("module", LAYERS)
def test_no_star_imports(module):
    names = [a.name for n in ast.walk(tree_of(module)) if isinstance(n, ast.ImportFrom) for a in n.names]
    assert "*" not in names
