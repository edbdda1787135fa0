"What stands beside the code agrees with it: dependencies with their reasons, the citation."
import json
import re
from configparser import ConfigParser
from pathlib import Path
import yaml
from cinic_fastai import __version__

root = Path(__file__).resolve().parents[1]
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

def test_citation():
    c = yaml.safe_load((root/"CITATION.cff").read_text(encoding="utf-8"))
    assert (c["title"], c["version"], c["license"])==(settings["lib_name"], __version__, settings["license"])
    assert c["cff-version"]=="1.2.0" and c["message"] and c["authors"]==[{"name": settings["author"]}]
    names = {a["family-names"] for r in c["references"] for a in r["authors"]}
    assert names=={"Andrzejczuk", "Orsłowski", "Darlow", "Crowley", "Antoniou", "Storkey"}

def test_no_notebook_keeps_warnings():
    "A stored stderr would show the paths of one machine"
    for f in sorted((root/"nbs").rglob("*.ipynb")):
        cells = json.loads(f.read_text(encoding="utf-8"))["cells"]
        assert not [o for c in cells for o in c.get("outputs", []) if o.get("name")=="stderr"], f
