"The house's table: which module may import which, and which needs torch. DESIGN: a module imports only what stands above it."
import ast, subprocess, sys
from pathlib import Path
import pytest

package = Path(__file__).resolve().parents[1]/"cinic_fastai"

# module, in order of dependence -> may it import torch when it is imported?
LAYERS = {
    "core": False, "files": False, "runs": False, "space": False,
    "data.folder": False, "data.hub": False, "data.pack": False, "data.augment": True, "data.loaders": True, "data.mix": True,
    "train.networks": True, "train.weights": True, "train.models": True, "train.optim": True, "train.device": True, "train.callbacks": True,
    "train.learner": True, "train.checkpoint": True, "train.fit": True,
    "results.metrics": False, "results.ensemble": False, "results.tables": False, "results.plots": False, "results.surrogate": False, "results.page": False, "results.predict": True,
    "study.track": False, "study.plan": False, "study.search": False, "study.work": False, "study.conduct": False,
    "bench": True, "cli": False,
}
TEST_HELPERS = {"test_utils": False, "test_study": False}

def path_of(module): return package/(module.replace(".", "/")+".py")

def imports(module, late):
    "Names of the package's modules that a module imports at the top, or (late) inside functions"
    tree = tree_of(module)
    top = {id(n) for n in tree.body}
    for n in ast.walk(tree):
        if isinstance(n, (ast.Import, ast.ImportFrom)) and (id(n) not in top)==late: yield from imported(module, n)

def imported(module, n):
    "What one import statement names, without the package's own name"
    if isinstance(n, ast.Import): names = [a.name for a in n.names]
    elif n.level: names = [".".join(["cinic_fastai", *module.split(".")[:-n.level], n.module or ""])]
    else: names = [n.module]
    return [o.removeprefix("cinic_fastai.") for o in names if o.startswith("cinic_fastai.") and o!="cinic_fastai."]

def tree_of(module): return ast.parse(path_of(module).read_text(encoding="utf-8"))

def test_every_module_has_a_place():
    found = {".".join(p.relative_to(package).with_suffix("").parts) for p in package.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py", "all.py")}
    assert found==set(LAYERS)|set(TEST_HELPERS)

@pytest.mark.parametrize("module", LAYERS)
def test_imports_only_what_stands_above(module):
    order = list(LAYERS)
    above = set(order[:order.index(module)])
    assert set(imports(module, late=False))<=above
    assert set(imports(module, late=True))<=above

@pytest.mark.parametrize("module", [m for m,torch in {**LAYERS, **TEST_HELPERS}.items() if not torch])
def test_imports_no_torch(module):
    code = f"import cinic_fastai.{module}, sys; bad = {{'torch', 'fastai', 'timm', 'torchvision'}} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)

@pytest.mark.parametrize("module", LAYERS)
def test_no_star_imports(module):
    assert not [n for n in ast.walk(tree_of(module)) if isinstance(n, ast.ImportFrom) and any(a.name=="*" for a in n.names)]
