"Nothing lost, nothing let in: full disks, read-only folders, two at once, failures, and no file that runs code."
import ast, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import psutil, pytest
import cinic_fastai
from conftest import ENV, cinic, limited, no_page, server
from test_study import results
from cinic_fastai.core import Interrupted
from cinic_fastai.core import stop_on_signals
from cinic_fastai.files import cache_place, lock, read_json, read_lines
from cinic_fastai.config import RunConfig
from cinic_fastai.store import RunStore

posix = pytest.mark.skipif(os.name=="nt", reason="needs POSIX")
linux = pytest.mark.skipif(not psutil.LINUX, reason="needs Linux to limit processes")
COMMAND = [sys.executable, "-m", "cinic_fastai.cli"]

def until(condition, process, seconds=120):
    "Wait for something that a process does"
    end = time.monotonic()+seconds
    while not condition():
        assert process.poll() is None and time.monotonic()<end, process.communicate()
        time.sleep(.005)

# --- nothing unpickles

PICKLES = ("pickle", "dill", "shelve", "marshal")

def unsafe(source):
    "Where a source could run what stands in a file"
    out = []
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, ast.Import): out += [a.name for a in n.names if a.name.split(".")[0] in PICKLES]
        if isinstance(n, ast.ImportFrom) and (n.module or "").split(".")[0] in (*PICKLES, "cloudpickle"):
            out.append(n.module)
        if isinstance(n, (ast.Name, ast.Attribute, ast.alias)):
            name = getattr(n, "id", None) or getattr(n, "attr", None) or getattr(n, "name", None)
            if name in ("load_learner", "load_pickle"): out.append(name)
        if not isinstance(n, ast.Call): continue
        if isinstance(n.func, ast.Name) and n.func.id in ("eval", "exec", "__import__"): out.append(n.func.id)
        given = {k.arg: getattr(k.value, "value", None) for k in n.keywords}
        if given.get("allow_pickle", False) is not False: out.append("allow_pickle")
        if ast.unparse(n.func) in ("cloudpickle.load", "cloudpickle.loads"): out.append("cloudpickle reads")
        if ast.unparse(n.func) in ("torch.load", "joblib.load") and given.get("weights_only") is not True:
            out.append("load without weights_only=True")
    return out

@pytest.mark.parametrize("source", ["import pickle", "import dill as d", "from pickle import loads", "eval('1')",
    "from cloudpickle import loads", "cloudpickle.loads(b)",
    "exec(x)", "from fastai.learner import load_learner", "fastai.load_learner(f)", "torch.load(f)",
    "torch.load(f, weights_only=False)", "torch.load(f, weights_only=flag)", "np.load(f, allow_pickle=True)"])
def test_the_check_finds(source): assert unsafe(source)

def test_the_library_never_unpickles():
    files = sorted(Path(cinic_fastai.__file__).parent.rglob("*.py"))
    assert len(files)>20
    assert {f.name: unsafe(f.read_text(encoding="utf-8")) for f in files}=={f.name: [] for f in files}

# --- full disks and folders that are read-only

LITTLE = 1_000_000 # A limit on the size of a file, which is to a process what a full disk is

@linux
def test_disk_full_while_saving(images, tmp_path):
    "A clean stop with the bytes needed; what was there stays; with room, the training goes on to the same result"
    args = ["train", "model=custom_cnn", "bs=6", "epochs=3", "policy=advanced", "--data", images, "--save-every", "0"]
    whole = json.loads(cinic(*args, "--out", tmp_path/"whole", "--json").stdout)
    folder = tmp_path/"out"/"runs"/whole["run_id"]
    command = [*COMMAND, *map(str, args), "--out", str(tmp_path/"out")]
    p = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until((folder/"last-1.safetensors").exists, p)
    p.send_signal(signal.SIGTERM)
    assert "again to continue" in p.communicate()[1] and p.returncode==143
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    with limited(psutil.RLIMIT_FSIZE, LITTLE): full = cinic(*args, "--out", tmp_path/"out")
    assert full.returncode==2 and "There is no room for" in full.stderr
    assert "last.safetensors" in full.stderr and "Traceback" not in full.stderr
    need = int(full.stderr.split("needs ")[1].split(" bytes")[0].replace(",", ""))
    assert need>1_000_000
    assert {f.name: f.read_bytes() for f in folder.iterdir()}==before
    again = json.loads(cinic(*args, "--out", tmp_path/"out", "--json").stdout)
    assert again|dict(seconds=0, images_per_s=0)==whole|dict(seconds=0, images_per_s=0)
    undisturbed = tmp_path/"whole"/"runs"/whole["run_id"]
    assert (folder/"best.safetensors").read_bytes()==(undisturbed/"best.safetensors").read_bytes()

@linux
def test_disk_full_ends_a_study_and_is_no_failed_run(images, plan_file, tmp_path):
    with limited(psutil.RLIMIT_FSIZE, LITTLE):
        r = cinic("study", plan_file, "--data", images, "--out", tmp_path/"out", "--save-every", "0")
    assert r.returncode==2 and "There is no room for" in r.stderr and "Traceback" not in r.stderr
    assert "failed" not in {e["status"] for e in read_json(tmp_path/"out"/"study.json")["runs"]}
    assert not list((tmp_path/"out").rglob("*.part"))

@pytest.mark.parametrize("command", [["study", "demo"], ["train", "model=custom_cnn"]])
def test_a_folder_that_cant_be_written_to(command, tmp_path):
    "Named before any work"
    (tmp_path/"file").touch()
    places = [tmp_path/"file"/"out"]
    if os.name!="nt" and os.geteuid():
        (tmp_path/"closed").mkdir(mode=0o555)
        places.append(tmp_path/"closed"/"out")
    for out in places:
        r = cinic(*command, "--out", out)
        assert r.returncode==2 and f"{out} can't be written" in r.stderr
        assert "Choose a folder" in r.stderr and "Traceback" not in r.stderr

# --- signals

def test_handlers_come_back():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    for sig in (signal.SIGINT, signal.SIGTERM):
        with stop_on_signals() as stop:
            assert stop()==0
            signal.raise_signal(sig)
            assert stop()==sig
            with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]==before

def test_a_study_called_from_python_is_interrupted_and_goes_on(images, tmp_path, monkeypatch):
    "As in a notebook: the handlers are the study's while it runs, and the caller's again afterwards"
    from cinic_fastai.data.pack import get_pack
    from cinic_fastai.plan_file import parse_plan
    from cinic_fastai.study.runner import run_study
    monkeypatch.setattr("cinic_fastai.report.render.write_page", lambda *args: None)
    plan = parse_plan('[study]\nname = "two"\n[defaults]\nmodel = "custom_cnn"\nepochs = 1\nbs = 16\n'
        '[[run]]\nname = "a"\n[[run]]\nname = "b"\nseed = 2')
    pack,handlers = get_pack(images),[]
    def press(kind, **info):
        if kind=="epoch" and not handlers:
            handlers.append(signal.getsignal(signal.SIGINT))
            signal.raise_signal(signal.SIGINT)
    mine = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="Run the same command again"):
        run_study(plan, pack, tmp_path/"out", on_event=press)
    assert handlers!=[mine] and signal.getsignal(signal.SIGINT) is mine
    assert {r.status for r in run_study(plan, pack, tmp_path/"out").runs}=={"done"}

@posix
@pytest.mark.parametrize("sig,code,wait", [(signal.SIGINT, 130, .5), (signal.SIGTERM, 143, 0)])
def test_stopped_while_packing(tmp_path, sig, code, wait):
    "The helpers that decode images get the signal too, as from a terminal"
    from cinic_fastai.test_utils import tiny_folder
    root = tiny_folder(tmp_path/"a", n=500, size=48)
    args = ["train", "model=custom_cnn", "epochs=1", "--data", str(root), "--out", str(tmp_path/"out")]
    p = subprocess.Popen([*COMMAND, *args], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True)
    until(lambda: any(cache_place(root, "packs").glob(".pack-32.*.part/raw")), p)
    time.sleep(wait)
    os.killpg(p.pid, sig)
    _,err = p.communicate(timeout=60)
    assert p.returncode==code and "Run the same command again" in err and "Traceback" not in err
    assert not list(cache_place(root, "packs").glob(".pack-32.*.part"))

MASKS = """
import signal
from functools import partial
from cinic_fastai.data.decode import map_batches
masks = map_batches(partial(signal.pthread_sigmask, signal.SIG_BLOCK), [[]]*16, 2)
print(*({signal.SIGINT, signal.SIGTERM}<=m for m in masks))
"""

@posix
def test_what_decodes_images_hears_no_signals():
    "From its start on: the first eighth of the batches are this process's own"
    done = subprocess.run([sys.executable, "-c", MASKS], env=ENV, capture_output=True, text=True)
    assert done.stdout.split()==["False"]*2+["True"]*14, done.stderr

@posix
def test_stopped_while_the_page_is_drawn(study, images, plan_file, tmp_path):
    out = tmp_path/"copy"
    shutil.copytree(study[0], out)
    command = [*COMMAND, "study", str(plan_file), "--data", str(images), "--out", str(out)]
    p = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "Drawing the page" not in p.stderr.readline(): assert p.poll() is None
    p.send_signal(signal.SIGTERM)
    _,err = p.communicate(timeout=60)
    assert p.returncode==143 and "Run the same command again" in err and "Traceback" not in err

@posix
def test_a_second_sigint_stops_at_once(images, tmp_path):
    args = ["train", "model=resnet18", "size=224", "bs=36", "epochs=1000", "--data", str(images),
        "--out", str(tmp_path/"out")] # a batch takes seconds
    p = subprocess.Popen([*COMMAND, *args], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: any((tmp_path/"out").glob("runs/*/env.json")), p)
    time.sleep(.5)
    p.send_signal(signal.SIGINT)
    while "Stopping after this batch" not in p.stderr.readline(): assert p.poll() is None
    p.send_signal(signal.SIGINT)
    _,err = p.communicate(timeout=60)
    assert p.returncode==130 and "Traceback" not in err and "everything so far is saved" not in err

@posix
def test_stopped_while_another_process_packs(images, tmp_path):
    shutil.copytree(images, tmp_path/"a", ignore=shutil.ignore_patterns(".*"))
    with lock(cache_place(tmp_path/"a", "packs")/".pack-32.lock", "The pack"):
        args = ["train", "model=custom_cnn", "epochs=1", "--data", str(tmp_path/"a"), "--out", str(tmp_path/"out")]
        p = subprocess.Popen([*COMMAND, *args], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert "Waiting for it to end" in p.stderr.readline()
        p.send_signal(signal.SIGTERM)
        _,err = p.communicate(timeout=60)
    assert p.returncode==143 and "Run the same command again" in err and "Traceback" not in err

@posix
def test_a_helper_killed_while_packing():
    "As the system does where memory runs out"
    script = "import os, signal\nfrom cinic_fastai.data.decode import map_batches\nme = os.getpid()\n" \
        "def dies(batch): return batch if os.getpid()==me else os.kill(os.getpid(), signal.SIGKILL)\n" \
        "list(map_batches(dies, [['a']]*16, n_workers=2))"
    p = subprocess.run([sys.executable, "-c", script], env=ENV, capture_output=True, text=True, timeout=60)
    assert "DataError: A process that decoded images was killed, most likely for want of memory" in p.stderr

@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux to see what is mapped")
def test_a_pack_in_use_is_packed_again(tmp_path, monkeypatch):
    "Under Windows' rule: a file that is mapped, and a folder that holds one, is not moved, replaced or deleted"
    import numpy as np
    from PIL import Image
    from cinic_fastai.data.pack import get_pack
    from cinic_fastai.test_utils import tiny_folder
    def guarded(act):
        def checked(*paths, **kw):
            maps = Path("/proc/self/maps").read_text()
            for p in paths[:2]:
                named = isinstance(p, (str, Path))
                if named and str(Path(p).absolute()) in maps: raise PermissionError(13, "mapped", str(p))
            return act(*paths, **kw)
        return checked
    for name in ("replace", "rename", "unlink", "rmdir"): monkeypatch.setattr(os, name, guarded(getattr(os, name)))
    root = tiny_folder(tmp_path/"a", n=6)
    packs = [get_pack(root)]
    shown = [packs[0].images[0].copy()]
    for shade in (10, 20, 30):
        f = root/packs[0].files[0]
        Image.new("RGB", (32, 32), (shade,)*3).save(f)
        os.utime(f, (shade, shade))
        packs.append(get_pack(root))
        shown.append(np.asarray(Image.open(f)))
        for p,x in zip(packs, shown): assert (p.images[0]==x).all() # those that were open keep their pixels
    assert len({p.digest for p in packs})==4
    del p
    packs[:] = packs[:1]
    os.utime(f, (40, 40))
    assert (get_pack(root).images[0]==x).all()
    assert len(list(packs[0].path.iterdir()))==4 # two makings of pixels are left: the first is still open

# --- two at once

@posix
def test_the_second_study_says_who_holds_the_folder(images, plan_file, tmp_path):
    args = ["study", str(plan_file), "--data", str(images), "--out", str(tmp_path/"out"), "--scale", "50"]
    p = subprocess.Popen([*COMMAND, *args], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        until((tmp_path/"out"/".lock.holder").exists, p)
        second = cinic(*args)
        assert second.returncode==2 and f"in use by process {p.pid} on " in second.stderr
        assert "Traceback" not in second.stderr
        assert "being carried out now" in cinic("status", tmp_path/"out").stdout
    finally:
        p.kill()
        p.communicate()
    assert "not running now" in cinic("status", tmp_path/"out").stdout

def train_counting(store, images, start, q):
    "Train the same run as another process, and count the epochs done here"
    from cinic_fastai.data.pack import get_pack
    from cinic_fastai.train.fit import fit_run
    heard = []
    start.wait()
    cfg = RunConfig(model="custom_cnn", bs=6, epochs=4)
    done = fit_run(cfg, get_pack(images), RunStore(store), on_event=lambda kind, **kw: heard.append(kind))
    q.put((heard.count("epoch"), done))

def test_a_shared_store_trains_each_run_once(images, tmp_path):
    ctx = server()
    q,start = ctx.Queue(),ctx.Barrier(2)
    ps = [ctx.Process(target=train_counting, args=(tmp_path/"store", images, start, q)) for _ in range(2)]
    for p in ps: p.start()
    (n,a),(m,b) = (q.get(timeout=300) for _ in ps)
    for p in ps: p.join(60)
    assert sorted((n, m))==[0, 4] and a==b

def test_two_studies_share_a_store(study, images, plan_file, tmp_path):
    "The second one finds everything done"
    shared = tmp_path/"shared"
    shutil.copytree(study[0]/"runs", shared)
    r = cinic("study", plan_file, "--data", images, "--out", "out", "--store", "shared", cwd=tmp_path) # paths as typed
    assert r.returncode==0 and not (tmp_path/"out"/"runs").exists()
    assert results(tmp_path/"out")["tables"]==results(study[0])["tables"]

# --- damage

def test_damaged_files_of_a_study_are_made_again(study, images, plan_file, tmp_path):
    "Two kinds of file in two runs; `nbs/23_train.fit.ipynb` has all kinds"
    out = tmp_path/"copy"
    shutil.copytree(study[0], out)
    folders = [f.parent for f in sorted(out.glob("runs/*/best.safetensors"))]
    for folder,name in zip(folders, ("probs_test.npz", "history.csv")):
        data = bytearray((folder/name).read_bytes())
        data[len(data)//2] ^= 4
        (folder/name).write_bytes(data)
    r = cinic("study", plan_file, "--data", images, "--out", out)
    assert r.returncode==0 and "made again" in r.stderr
    assert all(f"{name} is damaged" in r.stderr for name in ("probs_test.npz", "history.csv"))
    assert results(out)==results(study[0])

def test_a_damaged_record_is_named_with_the_cure(study, images, plan_file, tmp_path):
    out = tmp_path/"copy"
    shutil.copytree(study[0], out)
    text = (out/"study.json").read_text(encoding="utf-8")
    (out/"study.json").write_text(text.replace('"seed": 1', '"seed": 2'), encoding="utf-8")
    for args in (["status", out], ["report", out], ["study", plan_file, "--data", images, "--out", out]):
        r = cinic(*args)
        assert r.returncode==2 and "study.json is damaged" in r.stderr
        assert "Delete it" in r.stderr and "Traceback" not in r.stderr
    (out/"study.json").unlink()
    r = cinic("study", plan_file, "--data", images, "--out", out, before=no_page)
    assert r.returncode==0 and "valid accuracy" not in r.stderr # nothing was trained again

# --- images

def test_bad_and_shared_images_are_said_on_the_page(tmp_path):
    from cinic_fastai.test_utils import tiny_folder
    root,plan = tiny_folder(tmp_path/"a", n=6),tmp_path/"one.toml"
    plan.write_text('[study]\nname = "one"\n[[run]]\ngroup = "final"\nname = "only"\nmodel = "custom_cnn"\n'
        'epochs = 1\nbs = 8\n', encoding="utf-8")
    (root/"train"/"cat"/"cut.png").write_bytes((root/"train"/"cat"/"photo-2.png").read_bytes()[:60])
    (root/"test"/"dog"/"twin.png").write_bytes((root/"train"/"dog"/"photo-2.png").read_bytes())
    args = ["study", plan, "--data", root, "--out", tmp_path/"out"]
    r = cinic(*args)
    assert r.returncode==2 and "train/cat/cut.png" in r.stderr and "--on-bad skip" in r.stderr
    assert not (tmp_path/"out"/"study.json").exists()
    r = cinic(*args, "--on-bad", "skip")
    assert r.returncode==0 and "2 images lie in more than one split" in r.stderr
    assert "1 bad image is left out:\n  train/cat/cut.png: " in r.stderr
    page = (tmp_path/"out"/"report.html").read_text(encoding="utf-8")
    assert "train/cat/cut.png" in page and "2 images lie in more than one split" in page and "twin.png" in page
    assert "train/cat/cut.png" in read_json(cache_place(root, "packs")/"pack-32"/"manifest.json")["skipped"]

# --- failures

FAILING = """
[study]
name = "failing"
[defaults]
model = "custom_cnn"
bs = 16
epochs = 1
[[search]]
name = "some"
random = 4
guided = 0
strategy = "grid"
space = { lr = {choices=[0.01, 1e12]}, size = {choices=[32, 3000]} }
[[search]]
name = "all"
random = 2
guided = 0
space = { lr = {log=[1e12, 1e15]} }
[[run]]
group = "final"
name = "one"
from = "search:some"
[[run]]
group = "final"
name = "none"
from = "search:all"
[[run]]
group = "other"
name = "large"
size = 3000
"""

def test_trials_that_lack_weights_are_tried_again(images, tmp_path):
    "They are no failures of their points: the journal holds none of them"
    plan = tmp_path/"pre.toml"
    plan.write_text('[study]\nname = "pre"\n[[search]]\nname = "pre"\nmodel = "resnet18.tv_in1k"\npretrained = true\n'
        'epochs = 1\nbs = 8\nrandom = 2\nguided = 0\nspace = { lr = {log=[1e-4,1e-3]} }\n', encoding="utf-8")
    r = cinic("study", plan, "--data", images, "--out", tmp_path/"out", before=no_page)
    assert "--weights" in r.stdout and "Traceback" not in r.stderr
    assert read_json(tmp_path/"out"/"study.json")["searches"][0]["status"]=="skipped"
    assert len(read_lines(tmp_path/"out"/"searches"/"pre.jsonl")[0])==1

PRETRAINED = """
[study]
name = "pre"
[defaults]
model = "custom_cnn"
pretrained = true
epochs = 1
bs = 16
[[run]]
name = "run"
[[search]]
name = "look"
random = 2
guided = 0
space = { lr = {log=[1e-4,1e-3]} }
"""

def test_another_weights_file_is_another_result(images, tmp_path, monkeypatch):
    "Whoever calls: a run by its id, a study by what it began with; a search that never began is free"
    from cinic_fastai.core import StoreError
    from cinic_fastai.data.pack import get_pack
    from cinic_fastai.files import sha256
    from cinic_fastai.plan_file import parse_plan
    from cinic_fastai.study.runner import run_study
    from cinic_fastai.study.trainer import StudyOptions
    from cinic_fastai.train.fit import fit_run
    from cinic_fastai.train.models import make_model
    import torch
    monkeypatch.setattr("cinic_fastai.report.render.write_page", lambda *args: None)
    pack,plan,files = get_pack(images),parse_plan(PRETRAINED),[tmp_path/"a.pth", tmp_path/"b.pth"]
    for i,f in enumerate(files):
        net = make_model(RunConfig(model="custom_cnn", seed=i), len(pack.classes), 32)
        torch.save(net.state_dict(), f)
    cfg,store = RunConfig(model="custom_cnn", pretrained=True, epochs=1, bs=16),RunStore(tmp_path/"runs")
    a,b = (fit_run(cfg, pack, store, weights=f) for f in files)
    alone = fit_run(cfg, pack, RunStore(tmp_path/"alone"), weights=files[1])
    assert a["train_loss"]!=b["train_loss"]==alone["train_loss"]
    assert {store.config(rid).weights for rid in store.ids()}=={sha256(f) for f in files}
    def carried_out(weights=None): return run_study(plan, pack, tmp_path/"out", StudyOptions(weights=weights))
    first = carried_out() # there are no weights of this network to be had
    assert [e[0].status for e in (first.runs, first.searches)]==["skipped"]*2
    done = carried_out(files[0])
    assert [e[0].status for e in (done.runs, done.searches)]==["done"]*2
    def kept():
        "What the study has left, without what tells the time"
        found = [f for f in (tmp_path/"out").rglob("*") if f.is_file()]
        return {f: f.read_bytes() for f in found if f.name not in ("study.json", "log.txt")}
    before = kept()
    sums = [sha256(f)[:12] for f in files]
    for other,words in ((files[1], f"{sums[0]}.*{sums[1]}"), (None, f"{sums[0]}.*no --weights")):
        said = f"began with .*{words}.*Give the same --weights FILE, or another --out"
        with pytest.raises(StoreError, match=said): carried_out(other)
    assert kept()==before and carried_out(files[0]).runs==done.runs

@linux
def test_trials_that_diverge_or_run_out_of_memory(images, tmp_path):
    (tmp_path/"failing.toml").write_text(FAILING, encoding="utf-8")
    with limited(psutil.RLIMIT_AS, 16<<30):
        r = cinic("study", tmp_path/"failing.toml", "--data", images, "--out", tmp_path/"out", "--jobs", "1")
    assert r.returncode==1 and "Traceback" not in r.stderr, r.stderr
    said = " ".join(r.stdout.split())
    assert "loss became nan" in said and "memory" in said and "None of 2 trials finished" in said
    record = read_json(tmp_path/"out"/"study.json")
    assert [e["status"] for e in record["searches"]]==["done", "failed"]
    assert [e["status"] for e in record["runs"]]==["done", "skipped", "failed"]
    shown = cinic("status", tmp_path/"out").stdout
    assert "loss became nan" in " ".join(shown.split()) and "failed" in shown
