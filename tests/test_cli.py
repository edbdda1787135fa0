"The command line: help without torch, plain errors, exit codes."
import json, subprocess, sys
import pytest
from conftest import ENV, cinic

@pytest.mark.parametrize("command", [["--help"], ["data", "--help"], ["study", "--help"], ["plan", "list"],
    ["--version"]])
def test_answers_without_torch(command):
    slow = {"torch", "fastai", "pandas", "skopt", "matplotlib"}
    code = f"import sys; sys.argv=['cinic',*{command!r}]\nfrom cinic_fastai.cli import app\n" \
        "try: app()\nexcept SystemExit as e: assert not e.code, e.code\n" \
        f"assert not {slow} & set(sys.modules), set(sys.modules)"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert r.returncode==0, r.stderr

@pytest.mark.parametrize("args,said", [
    (["plan", "show", "reprot"], "did you mean 'report'"),
    (["train", "lr=-1"], "not above 0")])
def test_bad_input_ends_a_process_with_plain_words(args, said, tmp_path):
    in_plain_words(cinic(*args, cwd=tmp_path), said)

@pytest.mark.parametrize("args,said", [
    (["status", "nowhere"], "holds no study"),
    (["clean", "nowhere"], "holds no study"),
    (["study", "demo", "--trials", "5"], "expected R+G"),
    (["study", "demo", "--data", "nowhere"], "nowhere"),
    (["train", "modle=resnet18"], "did you mean 'model'"),
    (["train", "batch_size=64"], "Unknown key 'batch_size': here it is bs"),
    (["train", "patience=5"], "rungs = [...]"),
    (["data", "check", "nowhere"], "nowhere"),
    (["data", "pack", "nowhere"], "nowhere"),
    (["data", "split", "nowhere", "there"], "nowhere"),
    (["plan", "ablate", "fast", "speednte"], "has no run 'speednte'"),
    (["plan", "ablate", "fast", "resnet18"], "no ingredient to leave out"),
    (["plan", "ablate", "fast", "speednet", "width"], "is not KEY=VALUE"),
    (["bench", "votes"], "did you mean 'vote'"),
    (["bench", "vote", "--data", "nowhere"], "nowhere"),
])
def test_bad_input_is_named_in_plain_words(args, said, tmp_path): in_plain_words(cinic(*args, cwd=tmp_path), said)

def in_plain_words(r, said):
    assert r.returncode==2, r.stdout+r.stderr
    assert said in r.stderr and "Traceback" not in r.stderr
    assert len(r.stderr.strip().splitlines())<=2, r.stderr

def test_data_commands(tmp_path):
    assert cinic("data", "demo", tmp_path/"digits").returncode==0
    assert not json.loads(cinic("data", "check", tmp_path/"digits", "--json").stdout)["bad"]
    for _ in range(2): assert "1,797" in cinic("data", "pack", tmp_path/"digits").stdout

def test_train_one(images, tmp_path):
    r = cinic("train", "model=custom_cnn", "epochs=1", "bs=16", "--threads", "2", "--data", images,
        "--out", tmp_path/"t", "--json")
    assert r.returncode==0, r.stderr
    done = json.loads(r.stdout)
    run = tmp_path/"t"/"runs"/done["run_id"]
    assert 0<=done["test_acc"]<=1 and (run/"done.json").exists()
    env = json.loads((run/"env.json").read_text(encoding="utf-8"))
    assert env["threads"]==2 and env["precision"] in ("float32", "bf16")

def test_what_train_leaves_is_a_study(study, images, tmp_path):
    "Two trainings, then all that works on a study; fewer images are another one, in the same folder"
    out,words = tmp_path/"t",["train", "model=custom_cnn", "epochs=1", "bs=12", "--data", images, "--out", tmp_path/"t"]
    ids = [json.loads(cinic(*words, f"lr={lr}", "--json").stdout)["run_id"] for lr in (.01, .02)]
    status = json.loads(cinic("status", out, "--json").stdout)
    assert status["counts"]=={"done": 2} and {r["what"] for r in status["rows"]}=={
        f"runs/custom_cnn-{rid[:6]}" for rid in ids}
    photo,member = next((images/"test").rglob("*.png")),f"runs/custom_cnn-{ids[0][:6]}"
    r = cinic("predict", out, photo, "--member", member)
    assert r.returncode==0 and f"By {member}" in r.stdout, r.stderr
    r = cinic("report", out, "--format", "md")
    assert r.returncode==0 and "custom_cnn" in r.stdout, r.stderr
    r = cinic("export", out, "--format", "safetensors", "--dest", tmp_path/"e")
    assert r.returncode==0 and "custom_cnn" in (tmp_path/"e"/"README.md").read_text(encoding="utf-8"), r.stderr
    assert cinic(*words, "--limit", 18, "lr=0.01").returncode==0
    assert json.loads(cinic("status", out, "--json").stdout)["counts"]=={"done": 1}
    r = cinic(*words[:-1], study[0])
    assert r.returncode==2 and "holds the study 'tiny'" in r.stderr, r.stderr

def test_weights_of_a_run_of_ones_own(images, tmp_path):
    "By its folder; what doesn't fit is said in shapes"
    words = ["train", "epochs=1", "bs=12", "--data", images, "--out", tmp_path/"t", "--json"]
    small = ["model=speednet", "width=0.125"]
    first = tmp_path/"t"/"runs"/json.loads(cinic(*words, *small).stdout)["run_id"]
    more = ["pretrained=true", "--weights", first]
    r = cinic(*words, *small, *more, "frozen_epochs=1")
    assert r.returncode==0, r.stderr
    from cinic_fastai.files import sha256
    from cinic_fastai.store import RunStore
    from cinic_fastai.train.checkpoint import load_tensors
    second = json.loads(r.stdout)["run_id"]
    assert RunStore(tmp_path/"t"/"runs").config(second).weights==sha256(first/"best.safetensors")
    before,after = (load_tensors(o/"best.safetensors")[0] for o in (first, first.parent/second))
    filters = {k for k in before if before[k].ndim==4} # a frozen body keeps them, the whitened ones, too
    assert filters and all((before[k]==after[k]).all() for k in filters)
    r = cinic(*words, "model=speednet", "width=0.25", *more)
    assert r.returncode==2 and "(16, 24, 3, 3) in the network" in r.stderr and "Traceback" not in r.stderr
    r = cinic(*words, *small, "pretrained=true", "--weights", tmp_path/"t")
    assert r.returncode==2 and "holds no weights of speednet" in r.stderr

def test_pretrained_weights_from_a_file(images, tmp_path):
    "Frozen first, then everything, from a file in torchvision's key layout; the run names the file's checksum"
    import torch, torchvision
    from cinic_fastai.files import sha256
    weights = tmp_path/"resnet18.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), weights)
    r = cinic("train", "model=resnet18.tv_in1k", "pretrained=true", "frozen_epochs=1", "epochs=2", "bs=16",
        "--weights", weights, "--data", images, "--out", tmp_path/"t", "--json")
    assert r.returncode==0, r.stderr
    run = tmp_path/"t"/"runs"/json.loads(r.stdout)["run_id"]
    assert json.loads((run/"config.json").read_text(encoding="utf-8"))["weights"]==sha256(weights)
    lines = (run/"history.csv").read_text(encoding="utf-8").splitlines()
    assert [l.split(",")[:2] for l in lines[1:]]==[["0", "True"], ["1", "False"]]
    other = cinic("train", "model=resnet18.tv_in1k", "pretrained=true", "--weights", images/"nothing.pth",
        "--data", images, "--out", tmp_path/"t")
    assert other.returncode==2 and "nothing.pth" in other.stderr and "Traceback" not in other.stderr

@pytest.mark.slow
def test_bench_gives_rows(images):
    r = cinic("bench", "step-customcnn", "--data", images, "--reps", "1", "--json")
    assert r.returncode==0, r.stderr
    rows = json.loads(r.stdout)
    assert {row["peer"] for row in rows}=={"bare"} and "float32" in rows[-1]["note"]
    for row in rows:
        assert set(row)=={"name", "peer", "ours", "theirs", "unit", "ratio", "spread", "note"}
        assert row["spread"][0]<=row["ratio"]<=row["spread"][1]

def test_bench_needs_images_its_peers_can_take(tmp_path):
    from cinic_fastai.test_utils import tiny_folder
    r = cinic("bench", "loader-shift", "--data", tiny_folder(tmp_path/"large", n=2, size=48))
    assert r.returncode==2 and "48x48" in r.stderr and "Traceback" not in r.stderr

def help_of(command):
    from typer.testing import CliRunner
    from cinic_fastai.cli import app
    return CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "1000"}).stdout

def test_help_names_all():
    from cinic_fastai.cli.train import load_benchmarks
    from cinic_fastai.plan_file import plan_names
    assert not [n for n in [*load_benchmarks().BENCHES, "all"] if n not in help_of("bench")]
    assert f"({', '.join(plan_names())})" in help_of("study")

def test_an_ablation(images, tmp_path):
    "A recipe's ingredients off and on, as a plan that is carried out like any other"
    recipe = tmp_path/"recipe.toml"
    recipe.write_text('[study]\nname = "mine"\n[[run]]\nname = "net"\nmodel = "custom_cnn"\nbs = 16\nlr = 1e-2\n'
        'flip = "random"\nlabel_smoothing = 0.1\n', encoding="utf-8")
    plan = cinic("plan", "ablate", recipe, "net", "epochs=1", "--seeds", "2", "--no-alone")
    assert plan.returncode==0, plan.stderr
    (tmp_path/"ablation.toml").write_text(plan.stdout, encoding="utf-8")
    r = cinic("study", tmp_path/"ablation.toml", "--data", images, "--out", tmp_path/"out")
    assert r.returncode==0, r.stderr
    rows = (tmp_path/"out"/"tables"/"ablation.csv").read_text(encoding="utf-8").splitlines()
    assert [o.split(",")[:4] for o in rows[1:]]==[["recipe", "", "", "2"], ["without flip", "flip", "recipe", "2"],
        ["without label_smoothing", "label_smoothing", "recipe", "2"], ["plain", "", "recipe", "2"]]
    page = (tmp_path/"out"/"report.html").read_text(encoding="utf-8")
    assert "What does each ingredient of the recipe bring?" in page
    assert (tmp_path/"out"/"figures"/"ablation.png").exists()
