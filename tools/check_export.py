"Fail when a module differs from what its notebook exports."
import subprocess, sys, tempfile, shutil
from pathlib import Path

root = Path(__file__).resolve().parents[1]

def differing(
    export_dir:Path, # Freshly exported package
    package:Path, # The package as committed
)->list[str]: # Names of modules that differ or are missing on one side
    "Compare the exported modules with the committed ones"
    def generated(d): return {p.relative_to(d) for p in d.rglob("*.py") if "__pycache__" not in p.parts}
    names = generated(export_dir)|generated(package)
    def text(p): return p.read_text(encoding="utf-8") if p.exists() else None
    return sorted(str(n) for n in names if text(export_dir/n)!=text(package/n))

def main():
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)/root.name
        tmp.mkdir()
        caches = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        for name in ("nbs", "cinic_fastai"): shutil.copytree(root/name, tmp/name, ignore=caches)
        shutil.copy(root/"pyproject.toml", tmp)
        code = "from nbdev.doclinks import nbdev_export; nbdev_export()"
        subprocess.run([sys.executable, "-c", code], cwd=tmp, check=True)
        bad = differing(tmp/"cinic_fastai", root/"cinic_fastai")
    if bad: sys.exit(f"Modules differ from their notebooks: {', '.join(bad)}. Run nbdev-export and commit both.")
    print("Notebooks and modules agree.")

if __name__=="__main__": main()
