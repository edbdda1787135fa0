"A wheel built from the tree works outside of it."
import re, subprocess, sys, tarfile, zipfile
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path
import pytest
from cinic_fastai import __version__
from conftest import ENV

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/"tools"))
from check_outputs import copy_tree # noqa: E402 (found once its folder is)

DATA = (".toml", ".html", ".js", ".css", ".csv", ".md", ".j2", ".txt", ".json") # what is read, but not imported

@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The tree they were built from; `dist` in it holds sdist and wheel"
    tree = copy_tree(tmp_path_factory.mktemp("built")/"tree")
    build = [sys.executable, "setup.py", "-q", "sdist", "bdist_wheel"]
    subprocess.run(build, check=True, cwd=tree, capture_output=True)
    return tree

@pytest.fixture(scope="module")
def installed(built):
    "The wheel's content in an empty folder, as installers unpack it"
    site = built.with_name("site")
    with zipfile.ZipFile(next(built.glob("dist/*.whl"))) as f: f.extractall(site)
    return site

INSTALLED = """
import sys
site, *args = sys.argv[1:]
sys.path.insert(0, site)
import cinic_fastai
assert cinic_fastai.__file__.startswith(site)
sys.argv = ["cinic", *args]
from cinic_fastai.cli import main
main()
"""

def run_installed(site, cwd, *args):
    command = [sys.executable, "-c", INSTALLED, str(site), *args]
    env = {k: v for k,v in ENV.items() if k!="PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env)

def test_wheel_holds_plans_and_template(installed):
    names = {p.relative_to(installed).as_posix() for p in (installed/"cinic_fastai").rglob("*")}
    data = {p.relative_to(root).as_posix() for p in (root/"cinic_fastai").rglob("*") if p.suffix in DATA}
    assert "cinic_fastai/plans/demo.toml" in data and data<=names

def test_sdist_and_wheel_hold_what_they_should(built):
    "Neither tests, notebooks and benchmarks nor caches; `twine check` finds the metadata sound where it is installed"
    with tarfile.open(next(built.glob("dist/*.tar.gz"))) as f:
        source = {m.name.partition("/")[2] for m in f if m.isfile()}
    with zipfile.ZipFile(next(built.glob("dist/*.whl"))) as f:
        wheel = {*f.namelist()}
        metadata = f.read(f"cinic_fastai-{__version__}.dist-info/METADATA").decode()
    files = [p for p in (built/"cinic_fastai").rglob("*") if p.is_file() and p.suffix!=".pyc"]
    package = {p.relative_to(built).as_posix() for p in files}
    assert package<=source and package<=wheel and "cinic_fastai/py.typed" in wheel
    own = {n for n in source if not n.startswith(("cinic_fastai/", "cinic_fastai.egg-info/"))}
    assert own=={"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff",
        "MANIFEST.in", "PKG-INFO", "pyproject.toml", "settings.ini", "setup.cfg", "setup.py"}
    assert {n.split("/")[0] for n in wheel-package}=={f"cinic_fastai-{__version__}.dist-info"}
    assert re.findall(r"\]\((.)", metadata)==["h"]*metadata.count("](") # no link leads into the repository
    if find_spec("twine"):
        found = built.glob("dist/*")
        subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *found], check=True)

def test_wheel_leaves_the_benchmarks_out(installed, tmp_path):
    assert not (installed/"benchmarks").exists()
    r = run_installed(installed, tmp_path, "bench", "vote")
    assert r.returncode==2 and "Clone https://" in r.stderr and "Traceback" not in r.stderr

def test_wheel_works_elsewhere(installed, tmp_path):
    assert "cinic_fastai" in run_installed(installed, tmp_path, "--version").stdout
    assert run_installed(installed, tmp_path, "data", "demo", "digits").returncode==0
    assert (tmp_path/"digits"/"train").is_dir()
    assert "report" in run_installed(installed, tmp_path, "plan", "list").stdout

@pytest.mark.slow
def test_wheel_runs_the_demo_study(installed, tmp_path):
    "Its workers import it, too, and not what lies where it is started"
    other = tmp_path/"cinic_fastai"
    other.mkdir()
    (other/"__init__.py").write_text("raise ImportError('another copy')", encoding="utf-8")
    r = run_installed(installed, tmp_path, "study", "demo")
    assert r.returncode==0, r.stderr
    assert (tmp_path/"out"/"demo"/"report.html").exists()

def test_every_dependency_is_used():
    config = ConfigParser(delimiters=["="])
    config.read(root/"settings.ini", encoding="utf-8")
    names = [l.split(">")[0].strip() for l in config["DEFAULT"]["requirements"].splitlines() if l.strip()]
    modules = {"pillow": "PIL", "scikit-learn": "sklearn", "scikit-optimize": "skopt"}
    code = "\n".join(p.read_text(encoding="utf-8") for p in (root/"cinic_fastai").rglob("*.py"))
    named = {n: modules.get(n, n.replace("-", "_")) for n in names}
    unused = [n for n in names if not any(f"{how} {named[n]}" in code for how in ("import", "from"))]
    assert not unused

# --- what is promised of other systems

def test_actions_are_pinned_by_their_commit():
    text = (root/".github"/"workflows"/"test.yml").read_text(encoding="utf-8")
    uses = re.findall(r"uses: (.*)", text)
    assert uses and all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+(\.\d+)*", o) for o in uses), uses

def test_the_oldest_python_is_tested():
    config = ConfigParser(delimiters=["="])
    config.read(root/"settings.ini", encoding="utf-8")
    text = (root/".github"/"workflows"/"test.yml").read_text(encoding="utf-8")
    pythons = re.search(r"python: \[(.*)\]", text)[1].replace('"', "").split(", ")
    assert pythons[0]==config["DEFAULT"]["min_python"]
    found = re.findall(r"Python :: (3\.\d+)", (root/"setup.py").read_text(encoding="utf-8"))
    assert found and set(found)<=set(pythons)
