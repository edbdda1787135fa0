"Every command line in README, tutorials and --help is one that `cinic` takes; those that take seconds are run."
import json, re, shlex
from pathlib import Path
import pytest
import typer
from typer.testing import CliRunner
from cinic_fastai.cli import app
from conftest import cinic

root = Path(__file__).resolve().parents[1]
# They set an environment or a cluster up, or go round a command of ours
HANDS_OFF = (". .venv/bin/activate", "python3 -m venv", ".venv/bin/pip install", "for ", "done", "dask scheduler",
    "dask worker", "ray start", "git clone")

def blocks(text): return re.findall(r"^```sh\n(.*?)^```", text, re.M|re.S)

def documents():
    "README and every notebook's markdown, by name"
    out = {"README.md": (root/"README.md").read_text(encoding="utf-8")}
    for f in sorted((root/"nbs").rglob("*.ipynb")):
        cells = json.loads(f.read_text(encoding="utf-8"))["cells"]
        words = ["".join(c["source"]) for c in cells if c["cell_type"]=="markdown"]
        out[f.relative_to(root).as_posix()] = "\n\n".join(words)
    return out

def command_lines():
    "Document and line of all that blocks have to be typed"
    for name,text in documents().items():
        lines = [line.strip() for block in blocks(text) for line in block.splitlines()]
        yield from ((name, line) for line in lines if line and not line.startswith("#"))

LINES = list(command_lines())

def words_of(line):
    "A command line's words, without comment and redirection"
    words = shlex.split(re.sub(r"\$\w+", "1", line), comments=True)
    return words[:words.index(">")] if ">" in words else words

def parse(words):
    "Take a command line as `cinic` does, and stop before anything is done"
    cmd = typer.main.get_command(app)
    ctx = cmd.make_context("cinic", words[1:])
    while hasattr(cmd, "resolve_command"):
        name,cmd,rest = cmd.resolve_command(ctx, [*ctx._protected_args, *ctx.args])
        ctx = cmd.make_context(name, rest, parent=ctx)
    return ctx

def tree(cmd, path=()):
    "All commands and groups, with the words that lead to them"
    yield path,cmd
    for name,o in getattr(cmd, "commands", {}).items(): yield from tree(o, (*path, name))

COMMANDS = list(tree(typer.main.get_command(app)))

def examples(cmd): return [l.strip() for l in (cmd.epilog or "").splitlines() if l.strip().startswith("cinic ")]

@pytest.mark.parametrize("name,line", LINES)
def test_every_line_of_a_block(name, line):
    words = words_of(line)
    assert not [w for w in words if "/" in w and w.endswith(".toml") and not (root/w).exists()], line
    if Path(words[0]).name=="cinic": parse(words)
    elif words[0]=="make": assert re.search(rf"^{words[1]}:", (root/"Makefile").read_text(encoding="utf-8"), re.M), line
    else: assert line.startswith(HANDS_OFF), f"{name}: nothing is known of {line}"

def test_there_are_blocks(): assert len([l for _,l in LINES if "cinic" in l])>10

def test_parsing_finds_faults():
    for line in ("cinic studdy demo", "cinic study", "cinic study demo --dat x", "cinic study demo --limit many",
        "cinic data pack a b", "cinic study demo --threads -1"):
        with pytest.raises(Exception) as e: parse(words_of(line))
        assert type(e.value).__module__.startswith(("click", "typer")), e.value

@pytest.mark.parametrize("path,cmd", COMMANDS, ids=[" ".join(p) or "cinic" for p,_ in COMMANDS])
def test_help_has_an_example(path, cmd):
    found = examples(cmd)
    assert found, f"cinic {' '.join(path)}: no example"
    for line in found:
        words = words_of(line)
        assert tuple(words[1:1+len(path)])==path, line
        parse(words)

def test_help_shows_its_examples():
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).stdout
    for line in examples(COMMANDS[0][1]): assert re.search(rf"^\s*{re.escape(line)}\s*$", text, re.M), text
    assert "--install-completion" in text

@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    "A folder in which the examples' files are there"
    from cinic_fastai.test_utils import tiny_folder
    here = tmp_path_factory.mktemp("sandbox")
    tiny_folder(here/"images", n=5)
    (here/"images"/"train").rename(here/"photos")
    tiny_folder(here/"downloads"/"cinic10", n=3)
    (here/"downloads"/"cinic10"/"valid").rename(here/"downloads"/"cinic10"/"validation")
    return here

def test_examples_that_take_seconds(sandbox):
    "Those of `data` and `plan`, one after the other, as a reader would"
    todo = ["cinic data demo data/digits", "cinic data split photos data/photos",
        *(l for p,c in COMMANDS if len(p)==2 for l in examples(c))]
    for line in dict.fromkeys(todo):
        if "data get" in line: continue
        r = cinic(*words_of(line)[1:], cwd=sandbox)
        assert r.returncode==0, f"{line}: {r.stdout}{r.stderr}"
        if ">" in line: (sandbox/line.split(">")[1].strip()).write_text(r.stdout, encoding="utf-8")
    assert {"mine.toml", "ablation.toml"}<={p.name for p in sandbox.iterdir()}
    assert (sandbox/"data"/"cinic10"/"valid").is_dir()
    assert (sandbox/"packs"/"photos"/"manifest.json").exists()
    assert cinic("plan", "check", "ablation.toml", cwd=sandbox).returncode==0
