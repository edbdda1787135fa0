"A type checker accepts what README and tutorials do with the public names, and finds what is wrong."
import os, re, subprocess, sys
from importlib.util import find_spec
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
USE = """
reveal_type(pack)
reveal_type(cfg.epochs)
study = Study("out/demo")
study.learner("resnet18-adam")
reveal_type(study.tables)
reveal_type(read_plan("demo").name)
run_study(read_plan("demo"), pack, "out/again")
load_predictor("out/demo").predict(["photo.png"])
"""
WRONG = """
RunConfig(epochs="many")
get_pack(7)
soft_vote()
"""

@pytest.mark.slow
@pytest.mark.skipif(not find_spec("mypy"), reason="mypy is not installed")
def test_a_checker_follows_the_public_names(tmp_path):
    code = re.search("^```python\n(.*?)^```", (root/"README.md").read_text(encoding="utf-8"), re.M|re.S)[1]
    (tmp_path/"use.py").write_text(code+USE+WRONG, encoding="utf-8")
    mypy = [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--follow-imports=silent", "use.py"]
    env = {**os.environ, "MYPYPATH": str(root)} # mypy can't follow an installation from a clone
    said = subprocess.run(mypy, cwd=tmp_path, env=env, capture_output=True, text=True).stdout.splitlines()
    notes = [re.search('"(.*)"', l)[1] for l in said if "Revealed type" in l]
    assert notes==["cinic_fastai.data.pack.Pack", "int", "dict[str, Any]", "str"], said
    first = (code+USE).count("\n")+2
    assert [int(l.split(":")[1]) for l in said if " error: " in l]==[first, first+1, first+2], said
