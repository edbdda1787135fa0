"A wheel built from the tree works outside of it."
import subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import pytest
from conftest import ENV

root = Path(__file__).resolve().parents[1]

@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "The wheel's content in an empty folder, as pip unpacks it"
    tmp = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp, root], check=True)
    site = tmp/"site"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, *tmp.glob("*.whl")], check=True)
    return site

def run_installed(site, cwd, *args):
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import cinic_fastai; assert cinic_fastai.__file__.startswith({str(site)!r}); sys.argv=['cinic',*{list(args)!r}]; from cinic_fastai.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, env=ENV)

def test_wheel_holds_plans_and_template(installed):
    names = {p.relative_to(installed).as_posix() for p in (installed/"cinic_fastai").rglob("*")}
    assert {"cinic_fastai/plans/demo.toml", "cinic_fastai/plans/report.toml", "cinic_fastai/plans/thorough.toml", "cinic_fastai/results/report.html",
        "cinic_fastai/results/report.js"}<=names

def test_wheel_works_elsewhere(installed, tmp_path):
    assert "cinic_fastai" in run_installed(installed, tmp_path, "--version").stdout
    assert run_installed(installed, tmp_path, "data", "demo", "digits").returncode==0
    assert (tmp_path/"digits"/"train").is_dir()
    assert "report" in run_installed(installed, tmp_path, "plan", "list").stdout

@pytest.mark.slow
def test_wheel_runs_the_demo_study(installed, tmp_path):
    r = run_installed(installed, tmp_path, "study", "demo")
    assert r.returncode==0, r.stderr
    assert (tmp_path/"out"/"demo"/"report.html").exists()

def test_every_dependency_is_used():
    config = ConfigParser(delimiters=["="])
    config.read(root/"settings.ini", encoding="utf-8")
    names = [l.split(">")[0].strip() for l in config["DEFAULT"]["requirements"].splitlines() if l.strip()]
    modules = {"pillow": "PIL", "scikit-learn": "sklearn", "scikit-optimize": "skopt"}
    code = "\n".join(p.read_text(encoding="utf-8") for p in (root/"cinic_fastai").rglob("*.py"))
    unused = [n for n in names if not any(f"{how} {modules.get(n, n)}" in code for how in ("import", "from"))]
    assert not unused
