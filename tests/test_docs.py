"What stands beside the code agrees with it: dependencies with their reasons, the site's sidebar, the citation."
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
import pytest
import yaml

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/"tools"))
from check_outputs import copy_tree # noqa: E402 (found once its folder is)
config = ConfigParser(delimiters=["="])
config.read(root/"settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

def packages(key): return [re.split(r"[<>=!~ \[]", l.strip())[0] for l in settings[key].splitlines() if l.strip()]

def test_every_dependency_has_a_reason():
    extras = [k.removesuffix("_requirements") for k in settings if k.endswith("_requirements")]
    wanted = packages("requirements")+[f"{n} ({k})" for k in extras for n in packages(f"{k}_requirements")]
    table = (root/"CONTRIBUTING.md").read_text(encoding="utf-8").split("## Why each dependency is there")[1]
    rows = [[o.strip() for o in l.strip("|").split("|")] for l in table.splitlines() if l.startswith("| ")][1:]
    assert sorted(r[0] for r in rows)==sorted(wanted)
    assert all(len(r)==3 and r[1] for r in rows)

def test_extras_can_be_installed():
    text = (root/"setup.py").read_text(encoding="utf-8")
    extras = [k.removesuffix("_requirements") for k in settings if k.endswith("_requirements")]
    assert not [k for k in extras if f'"{k}"' not in text]

def listed(o):
    "Notebooks in a sidebar, at any depth"
    if isinstance(o, str): return [o]
    parts = o.get("contents", []) if isinstance(o, dict) else o
    return [f for p in parts for f in listed(p)]

def test_sidebar_holds_every_notebook_once():
    shown = listed(yaml.safe_load((root/"nbs"/"sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"])
    files = [p.relative_to(root/"nbs") for p in (root/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    assert sorted(shown)==sorted(f.as_posix() for f in files), "put new notebooks into nbs/sidebar.yml"

def test_site_settings():
    site = yaml.safe_load((root/"nbs"/"_quarto.yml").read_text(encoding="utf-8"))
    assert all((root/"nbs"/f).exists() for f in [*site["metadata-files"], site["format"]["html"]["css"]])

def test_citation():
    c = yaml.safe_load((root/"CITATION.cff").read_text(encoding="utf-8"))
    assert (c["title"], c["version"], c["license"])==(settings["lib_name"], settings["version"], settings["license"])
    assert c["cff-version"]=="1.2.0" and c["message"] and c["authors"]==[{"name": settings["author"]}]
    names = {a["family-names"] for r in c["references"] for a in r["authors"]}
    assert names=={"Andrzejczuk", "Orsłowski", "Darlow", "Crowley", "Antoniou", "Storkey"}
    assert c["version"] in (root/"cinic_fastai"/"__init__.py").read_text(encoding="utf-8")

@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("quarto"), reason="quarto is not installed")
def test_site_builds(tmp_path):
    here = copy_tree(tmp_path/"site")
    subprocess.run([Path(sys.executable).with_name("nbdev-docs")], cwd=here, check=True)
    assert (here/"_docs"/"index.html").exists() and (here/"_docs"/"tutorials"/"by_hand.html").exists()

def test_no_notebook_keeps_warnings():
    "A stored stderr would show the paths of one machine"
    for f in sorted((root/"nbs").rglob("*.ipynb")):
        cells = json.loads(f.read_text(encoding="utf-8"))["cells"]
        assert not [o for c in cells for o in c.get("outputs", []) if o.get("name")=="stderr"], f
