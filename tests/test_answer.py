"`cinic answer`: photos and minutes become a plan, a study, a page that opens with the answer"
import os, shlex, shutil, signal, time
from dataclasses import asdict
import numpy as np, pytest
from PIL import Image
from cinic_fastai.cli.app import name_folder
from cinic_fastai.files import read_json, sha256, write_json
from cinic_fastai.plan_file import parse_plan, read_plan
from cinic_fastai.record import StudyRecord
from cinic_fastai.report.facts import load_report
from cinic_fastai.study.answer import Basis, answer_plan, known_basis
from conftest import cinic, no_figures, started

LINES = ("What to take.", "Networks.", "Augmentation.", "Search.", "Ensembling.")
COLOURS = dict(sea=(40, 90, 200), wood=(60, 150, 60), sand=(210, 180, 90))

def make_photos(root):
    "Three classes without splits, JPEGs of different sizes, one file that is none"
    r = np.random.default_rng(0)
    for name,colour in COLOURS.items():
        (root/name).mkdir(parents=True)
        for i in range(30):
            noise = r.normal(colour, 60, (*r.integers(33, 47, 2), 3)).clip(0, 255)
            Image.fromarray(noise.astype(np.uint8)).save(root/name/f"{i}.jpg")
    (root/"sea"/"broken.jpg").write_text("no photo")
    return root

@pytest.fixture(scope="session")
def photos(made_once): return made_once("photos", make_photos)

def timed(out, basis):
    "A folder whose candidates are timed, so that its plan is the same everywhere"
    write_json(out/"speed.json", asdict(basis))
    return out

def planned(out):
    "Short, all questions, time in reserve"
    seconds = {"custom_cnn": (3e-3, 3e-4)} # slower than anywhere
    return timed(out, Basis(dict(train=72, valid=9, test=9), 3, jobs=2, seconds=seconds, training=3.3))

def ask(photos, out, minutes=1.25, *options):
    return cinic("answer", photos, "--minutes", minutes, "--out", out, *options, before=no_figures)

@pytest.fixture(scope="session")
def answered(photos, made_once):
    "An answer's folder, and what the command printed"
    def make(folder):
        done = ask(photos, planned(folder/"out"))
        assert done.returncode==0, done.stdout+done.stderr
        (folder/"said").write_text(done.stdout, encoding="utf-8")
    folder = made_once("answered", make)
    return folder/"out",(folder/"said").read_text(encoding="utf-8")

def sums(out): return {p.relative_to(out): sha256(p) for p in out.glob("runs/*/best.safetensors")}
def run_ids(out): return {r.key: r.run_id for r in StudyRecord.read(out).runs}

def test_the_answer_has_five_lines(answered):
    out,said = answered
    lines = (out/"answer.txt").read_text(encoding="utf-8").splitlines()
    assert all(line.startswith(o) for line,o in zip(lines, LINES, strict=False)), lines
    assert [o for o in lines[5:] if not o.startswith("Open. ")]==[] and len(lines)>=5, lines # what would settle it
    for words in ("test images are right (95 % interval", "Take CustomCNN on images of 32 pixels", "learning rate"):
        assert any(words in o for o in lines), words
    assert all(name_folder(o, out) in said for o in lines)
    assert f"cinic predict {shlex.quote(out.as_posix())} photo.jpg --member " in said
    assert str(out/"report.html") in said and " OUT " not in said

def test_the_page_opens_with_them(answered):
    html = (answered[0]/"report.html").read_text(encoding="utf-8")
    summary = html[html.index('<section id="summary">'):html.index("</section>")]
    at = [summary.index(f"<strong>{o}</strong>") for o in LINES]
    assert at==sorted(at) and "sea/broken.jpg" in html # left out, and named

def test_what_it_says_to_take_takes_photos(answered, photos):
    said = answered[1]
    name = said.split('--member "')[1].split('"')[0]
    done = cinic("predict", answered[0], photos/"sand"/"1.jpg", "--member", name)
    assert done.returncode==0 and "sand/1.jpg" in done.stdout.replace("\\", "/"), done.stderr

def test_the_plan_is_there_and_repeats_it(answered, photos, tmp_path):
    "The command in the plan does the same"
    out,_ = answered
    text = (out/"plan.toml").read_text(encoding="utf-8")
    assert text==answer_plan(known_basis(out)) and read_plan(out/"plan.toml")==parse_plan(text)
    command = f"cinic study {out/'plan.toml'} --data {photos} --out {out} --on-bad skip --size 32"
    assert command in StudyRecord.read(out).command
    done = cinic("study", out/"plan.toml", "--data", photos, "--size", "32", "--on-bad", "skip", "--store", out/"runs",
        "--out", tmp_path/"again", before=no_figures)
    assert done.returncode==0 and run_ids(tmp_path/"again")==run_ids(out), done.stderr

def test_again_does_nothing(answered, photos, tmp_path):
    out = shutil.copytree(answered[0], tmp_path/"out")
    times = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*")}
    assert ask(photos, out).returncode==0
    assert ask(photos, out, 1).returncode==0 # less time takes nothing back
    assert {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*")}==times
    assert len(list(photos.rglob("*")))==3+90+1 # nothing is written beside the photos

def test_another_question_takes_another_folder(answered, photos):
    done = ask(photos, answered[0], 1.25, "--metric", "macro_f1")
    assert done.returncode==2 and "has an answer with --metric likelihood --seed 1" in done.stderr, done.stderr

@pytest.mark.parametrize("words,said", [
    (["answer", "nowhere"], "There is no folder"),
    (["answer", "{photos}", "--metric", "f1"], "Unknown metric 'f1'"),
    (["answer", "{photos}", "--split", "80/20"], "no shares"),
    (["answer", "{photos}", "--weights", "{photos}/sea/1.jpg"], "expected a folder of files of weights")])
def test_mistakes_are_named(photos, tmp_path, words, said):
    done = cinic(*(o.format(photos=photos) for o in words), cwd=tmp_path)
    assert done.returncode==2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.glob("out/*/plan.toml"))

@pytest.mark.slow
@pytest.mark.skipif(os.name=="nt", reason="SIGKILL is POSIX")
def test_killed_three_times(answered, photos, tmp_path):
    "The same plan, the same bits, the same answer"
    out = planned(tmp_path/"out")
    for n in (1, 6, 12):
        p = started("answer", photos, "--minutes", "1.25", "--out", out, before=no_figures)
        while p.is_alive() and len(list(out.glob("runs/*/config.json")))<n: time.sleep(.01)
        os.kill(p.pid, signal.SIGKILL)
        p.join()
    done = ask(photos, out)
    assert done.returncode==0, done.stderr
    assert (out/"plan.toml").read_text()==(answered[0]/"plan.toml").read_text().replace(str(answered[0]), str(out))
    ours,theirs = sums(out),sums(answered[0])
    both = ours.keys()&theirs.keys()
    assert len(both)>=8 and all(ours[p]==theirs[p] for p in both)
    if "out of time" in done.stdout+answered[1]: return # a busy machine trained less of the one than of the other
    assert run_ids(out)==run_ids(answered[0]) and ours==theirs
    assert (out/"answer.txt").read_bytes()==(answered[0]/"answer.txt").read_bytes()

@pytest.mark.slow
def test_more_minutes_go_on(answered, photos, tmp_path):
    "More trials; what was there stays"
    out = shutil.copytree(answered[0], tmp_path/"out")
    before = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*")}
    trials = StudyRecord.read(out).searches[0].trials
    assert ask(photos, out, 1.5).returncode==0
    assert before.items()<={p: p.stat().st_mtime_ns for p in out.glob("runs/*/*")}.items()
    assert StudyRecord.read(out).searches[0].trials>trials

@pytest.mark.slow
def test_a_dry_run_prints_the_plan(photos, tmp_path):
    done = cinic("answer", photos, "--minutes", "5", "--dry-run", cwd=tmp_path)
    assert done.returncode==0 and "Nothing was trained" in done.stdout, done.stderr
    assert parse_plan(done.stdout).ensembles and not (tmp_path/"out").exists()

@pytest.mark.slow
def test_two_minutes_are_kept(photos, tmp_path):
    "As it is typed, page and all"
    began = time.monotonic()
    done = cinic("answer", photos, "--minutes", "2", cwd=tmp_path)
    assert done.returncode==0 and time.monotonic()-began<=132, done.stderr
    record = StudyRecord.read(tmp_path/"out"/"photos")
    assert "What to take." in done.stdout and record.title.startswith("Which network?")
    assert all(o.startswith("out of time") for o in (r.reason for r in record.runs if r.status=="skipped"))

@pytest.mark.slow
def test_pixels_that_photos_have_are_used(tmp_path):
    "Stripes one pixel wide, upright or lying: at half the side both are the same gray"
    r, sides = np.random.default_rng(0), np.indices((64, 64))
    for label,axis in (("lying", 0), ("upright", 1)):
        (tmp_path/"photos"/label).mkdir(parents=True)
        for i in range(150):
            pixels = 128+60*(-1)**sides[axis][..., None]*r.choice((-1, 1))+r.normal(0, 25, (64, 64, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path/"photos"/label/f"{i}.png")
    out = tmp_path/"out"
    done = cinic("answer", tmp_path/"photos", "--minutes", "2", "--out", out, before=no_figures)
    record, best = StudyRecord.read(out), load_report(out).tables.table2_predictors.test_acc.max()
    assert done.returncode==0 and record.data.size==64 and best>.95, done.stdout+done.stderr

# --- pretrained networks, from a short training of our own

def train_briefly(net, pack):
    import torch
    from torch.nn.functional import cross_entropy
    rows, rng = pack.rows["train"], np.random.default_rng(0)
    opt = torch.optim.SGD(net.train().parameters(), lr=.02, momentum=.9)
    for _ in range(60):
        some = rng.choice(rows, 64)
        x = torch.from_numpy(pack.images[some]).permute(0, 3, 1, 2).float().div(255).sub(.45).div(.225)
        cross_entropy(net(x), torch.from_numpy(np.asarray(pack.targs[some])).long()).backward()
        opt.step()
        opt.zero_grad()
    return net.state_dict()

@pytest.mark.slow
def test_pretrained_networks_race_where_their_weights_are(tmp_path):
    "In torchvision's key layout and in timm's: frozen first, and as features of a baseline"
    import timm, torch, torchvision
    from safetensors.torch import save_file
    from cinic_fastai.data.pack import get_pack
    from cinic_fastai.data.sources import write_demo
    torch.manual_seed(0)
    pack,weights = get_pack(write_demo(tmp_path/"digits"), 32),tmp_path/"weights"
    weights.mkdir()
    torch.save(train_briefly(torchvision.models.resnet18(), pack), weights/"resnet18.pth")
    save_file(train_briefly(timm.create_model("resnet10t"), pack), weights/"resnet10t.c3_in1k.safetensors")
    seconds = {f"{name}-pretrained": (3e-3, 1e-3) for name in ("resnet18", "resnet10t")}
    out = timed(tmp_path/"out", Basis(pack.counts(), 10, jobs=2, seconds=seconds, training=13.))
    done = cinic("answer", tmp_path/"digits", "--minutes", "1", "--weights", weights, "--out", out, before=no_figures)
    assert done.returncode==0, done.stderr
    files = {f"{f.name.split('.')[0]}-pretrained": f for f in weights.iterdir()}
    for r in (r for r in StudyRecord.read(out).runs if r.name in files):
        folder = out/"runs"/r.run_id
        assert read_json(folder/"config.json")["weights"]==sha256(files[r.name])
        if r.status=="stopped": continue
        phases = [o.split(",")[1] for o in (folder/"history.csv").read_text(encoding="utf-8").splitlines()[1:]]
        assert r.status=="done" and phases==["True", "False", "False"] # the head alone, then all
    accs = {r.name: r.valid_acc for r in load_report(out).tables.runs.itertuples()}
    assert accs["logistic-resnet18"]>.9 # 60 steps have taught it to see digits
