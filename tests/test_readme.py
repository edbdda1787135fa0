"README.md is what nbs/index.ipynb says, and its commands exist."
import re, sys
from pathlib import Path
from typer.testing import CliRunner

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/"tools"))

def test_readme_agrees_with_index():
    from make_readme import readme
    assert (root/"README.md").read_text(encoding="utf-8")==readme(), "run `make readme` and commit README.md"

def test_links_lead_somewhere():
    text = (root/"README.md").read_text(encoding="utf-8")
    links = [l for l in re.findall(r"\]\(([^)#]+)\)", text) if not l.startswith("http")]
    assert links and not [l for l in links if not (root/l).exists()]

def test_commands_exist():
    from cinic_fastai.cli import app
    text = (root/"README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^(?:\.venv/bin/)?cinic (.+)$", text, re.M)
    commands = {tuple(w for w in c.split()[:2] if w.isalpha()) for c in lines}
    assert commands
    for c in commands:
        words = [w for w in c if w in ("data", "plan") or w==c[0] or c[0] in ("data", "plan")]
        assert CliRunner().invoke(app, [*words, "--help"]).exit_code==0, c
