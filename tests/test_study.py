"A study as a user runs it: whole, again, cut off, with wrong options."
import json, os, random, re, shutil, signal, subprocess, sys, time
from itertools import zip_longest
import numpy as np
import pandas as pd
import pytest
from conftest import ENV, TINY_PLAN, cinic, no_figures, no_page, started
from cinic_fastai.files import cache_place, read_json, read_lines, write_json
from cinic_fastai.test_utils import tiny_folder
from cinic_fastai.studyfolder import StudyFolder

def results(out):
    "Everything of a study that must not depend on where it was cut off"
    stored = sorted(out.glob("runs/*/probs_*.npz"))
    probs = {p.relative_to(out).as_posix(): np.load(p)["probs"].tobytes() for p in stored}
    weights = {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.glob("runs/*/best.safetensors"))}
    drop = ["seconds", "images_per_s", "ask_seconds", "ask_mean", "ask_max", "total", "seconds_needed"]
    def table(p): return pd.read_csv(p).drop(columns=drop, errors="ignore").to_csv()
    tables = {p.name: table(p) for p in sorted(out.glob("tables/*.csv"))}
    def journal(p): return [json.loads(l)["point"] for l in p.read_text().splitlines()[1:]]
    points = {p.name: journal(p) for p in sorted(out.glob("searches/*.jsonl"))}
    return dict(probs=probs, weights=weights, tables=tables, points=points)

def unlike(a, b):
    "What differs between two `results`: names, and the first lines that do"
    both = {k: (str(a[kind].get(k)), str(b[kind].get(k))) for kind in a for k in {*a[kind], *b[kind]}}
    unequal = {k: zip_longest(x.splitlines(), y.splitlines()) for k,(x,y) in both.items() if x!=y}
    return "\n".join(f"{k}: {next(o for o in lines if o[0]!=o[1])}"[:500] for k,lines in unequal.items())

def test_whole_study(study):
    out,done = study
    record = json.loads((out/"study.json").read_text(encoding="utf-8"))
    assert {r["name"]: r["status"] for r in record["runs"]}=={"custom_cnn": "done", "resnet18-pretrained": "skipped",
        "custom_cnn-sgd": "done", "second": "done"}
    assert "--weights" in next(r["reason"] for r in record["runs"] if r["status"]=="skipped")
    assert "skipped: resnet18-pretrained" in done.stdout
    assert {e["status"] for e in record["ensembles"]}=={"done"}
    assert (out/"report.html").stat().st_size>10_000

def test_running_again_trains_nothing(study, images, plan_file, tmp_path):
    "Not even in a copy"
    out = tmp_path/"copy"
    shutil.copytree(study[0], out)
    def times(): return {p: p.stat().st_mtime_ns for p in out.glob("runs/[!.]*/*")} # locks are opened
    before = times()
    again = cinic("study", plan_file, "--data", images, "--out", out, before=no_page)
    assert again.returncode==0 and "valid accuracy" not in again.stderr, again.stderr
    assert before==times()

def began(out, root, what):
    "Has a study come to this point?"
    signs = dict(packing=cache_place(root, "packs").glob(".pack-*.part/raw"),
        saving=out.glob("runs/*/.last.safetensors.part"), search=out.glob("searches/*.jsonl"),
        page=out.glob("samples.npz"))
    return any(True for _ in signs[what])

def killed(command, out, root, what, wait=0.):
    "Start a study, let it come to a point and a little further, then kill it: 1, or 0 if it ended before"
    p = started(*command)
    while p.is_alive() and what and not began(out, root, what): time.sleep(.001)
    p.join(wait)
    p.kill()
    p.join()
    return int(p.exitcode==-signal.SIGKILL)

@pytest.mark.skipif(os.name=="nt", reason="SIGKILL is POSIX")
def test_killed_and_continued(study, plan_file, tmp_path):
    "Killed while packing, saving, searching and drawing, a study ends with the same weights, tables and points"
    out,root = tmp_path/"out",tiny_folder(tmp_path/"images"/"tiny", n=12)
    command = ["study", plan_file, "--data", root, "--out", out, "--save-every", "0"]
    moments = ("packing", "saving", "search", "page") # saving: in the middle of an epoch
    kills = sum(killed(command, out, root, what) for what in moments)
    assert kills>=3 # a moment may have passed before it was seen
    assert cinic(*command, before=no_figures).returncode==0
    assert not unlike(results(out), results(study[0]))

@pytest.mark.slow
@pytest.mark.skipif(os.name=="nt", reason="SIGKILL is POSIX")
def test_killed_thirty_times(tmp_path):
    "At random moments, over one study"
    moments,kills = random.Random(0),[]
    root,out,plan = tiny_folder(tmp_path/"images", n=100),tmp_path/"out",tmp_path/"tiny.toml"
    plan.write_text(TINY_PLAN.replace("[1e-3,1e-1]", "[1e-3,1e-2]"), encoding="utf-8") # so long, higher rates diverge
    def command(out, every):
        return ["study", plan, "--data", root, "--out", out, "--scale", "10", "--save-every", every]
    for i in range(30):
        what,longest = ("packing", .05) if i<3 else ("page", .5) if i>=27 else ("", 6)
        if what=="packing": shutil.rmtree(cache_place(root, "packs"), ignore_errors=True)
        if what=="page" and began(out, root, "page"): (out/"samples.npz").unlink()
        every = str(moments.choice([0, .2, 1]))
        kills.append(killed(command(out, every), out, root, what, moments.uniform(0, longest)))
        done = len(list(out.glob("runs/*/done.json")))
        print(f"{what or 'anywhere'}: {'killed' if kills[-1] else 'had ended'}, {done} runs done")
    assert sum(kills)>=28 # a moment may have passed before it was seen
    assert cinic(*command(out, "60")).returncode==0
    whole = tmp_path/"whole"
    assert cinic(*command(whole, "60")).returncode==0
    assert not unlike(results(out), results(whole))

@pytest.mark.skipif(os.name=="nt", reason="signals are POSIX")
def test_a_signal_saves_and_says_how_to_continue(images, tmp_path):
    "Ctrl-C; a study that is told to end stands in `test_safety.py`"
    out, said = tmp_path/"out", [tmp_path/"stdout", tmp_path/"stderr"]
    p = started("train", "model=custom_cnn", "bs=2", "epochs=2000", "--data", images, "--out", out, said=said)
    while p.is_alive() and not list(out.glob("runs/*/env.json")): time.sleep(.02)
    time.sleep(1)
    os.kill(p.pid, signal.SIGINT)
    p.join(60)
    err = said[1].read_text(encoding="utf-8")
    assert p.exitcode==130, err
    assert "Run the same command again to continue" in err and "Traceback" not in err
    assert list(out.glob("runs/*/last.safetensors"))

@pytest.mark.skipif(os.name=="nt", reason="signals are POSIX")
@pytest.mark.slow
def test_stopped_by_signals_and_continued(study, images, plan_file, tmp_path):
    "Stopped in its first training and in its search, a study ends as if it had never been"
    out = tmp_path/"out"
    command = [sys.executable, "-m", "cinic_fastai.cli", "study", str(plan_file), "--data", str(images),
        "--out", str(out)]
    caught = 0 # where the machine is busy, a study may end before the signal comes
    for sig,sign,code in ((signal.SIGTERM, "runs/*/env.json", 143), (signal.SIGINT, "searches/*.jsonl", 130)):
        p = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        began = time.time()
        while p.poll() is None and not any(f.stat().st_mtime>began for f in out.glob(sign)): time.sleep(.001)
        p.send_signal(sig)
        _,err = p.communicate(timeout=120)
        assert p.returncode in (code, 0) and "Traceback" not in err, err
        assert ("Run the same command again" in err)==(p.returncode==code), err
        caught += p.returncode==code
    assert caught and cinic(*command[3:]).returncode==0
    assert not unlike(results(out), results(study[0]))

def test_other_options_are_refused(study, images, plan_file):
    r = cinic("study", plan_file, "--data", images, "--out", study[0], "--scale", "2")
    assert r.returncode==2 and "scale is 1.0 there, 2.0 here" in r.stderr and "Traceback" not in r.stderr

def test_status_needs_no_torch(study):
    code = f"import sys; sys.argv=['cinic','status',{str(study[0])!r}]; from cinic_fastai.cli import app; " \
        "app(standalone_mode=False); sys.exit(bool({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert r.returncode==0, r.stderr
    assert "7 done" in r.stdout and "1 skipped" in r.stdout

def test_report_is_written_again_without_torch(study, tmp_path):
    out = tmp_path/"copy"
    shutil.copytree(study[0], out)
    (out/"report.html").unlink()
    code = f"import sys; sys.argv=['cinic','report',{str(out)!r}]; from cinic_fastai.cli import app; " \
        "app(standalone_mode=False); sys.exit('torch' in sys.modules)"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert r.returncode==0, r.stderr
    assert (out/"report.html").exists()

def test_clean_says_first(study, tmp_path):
    out = tmp_path/"copy"
    shutil.copytree(study[0], out)
    r = cinic("clean", out, "--weights", input="n\n")
    assert "best.safetensors" in r.stdout and "Nothing was deleted" in r.stdout
    assert list(out.glob("runs/*/best.safetensors"))
    assert cinic("clean", out, "--weights", "--yes").returncode==0
    assert not list(out.glob("runs/*/best.safetensors"))

def test_dry_run_trains_nothing(images, plan_file, tmp_path):
    r = cinic("study", plan_file, "--data", images, "--out", tmp_path/"out", "--dry-run", "--json")
    todo = json.loads(r.stdout)
    assert len(todo["trainings"])==8 and todo["seconds"]>=0
    assert not (tmp_path/"out").exists()

def test_a_vote_of_one_training_under_two_names_is_not_taken(example, tmp_path):
    "Two searches may end at one point; a plan that names a training twice is refused when it is read"
    from cinic_fastai.results.tables.predictors import predictors_table
    out = tmp_path/"copy"
    shutil.copytree(example, out)
    record = read_json(out/"study.json")
    rids = {r["name"]: r for r in record["runs"]}
    rids["resnet18-sgd"]["run_id"] = rids["resnet18-adam"]["run_id"]
    write_json(out/"study.json", record)
    votes = predictors_table(StudyFolder(out)).query("kind=='soft' or kind=='hard'")
    assert set(votes["status"])=={"skipped"}
    assert set(votes["reason"])=={"resnet18-sgd and resnet18-adam are one training, which would count twice"}

def test_dry_run_times_the_packs_size_and_each_batch(tmp_path, monkeypatch, capsys):
    "By hand: an image costs its pixels at batches of 128, twice that at 16; a batch to be searched is the middle one"
    from cinic_fastai.cli import app
    from cinic_fastai.data.pack import get_pack
    from cinic_fastai.study import clock
    pack,asked = get_pack(tiny_folder(tmp_path/"images", n=44), size=64, dest=tmp_path/"pack"),[]
    def timed(workers, cfg, on_loss, n_out, size, **kw):
        asked.append(size)
        return ((cfg.size or size)/64)**2*(2 if cfg.bs==16 else 1),0.
    monkeypatch.setattr(clock, "time_network", timed)
    plan = tmp_path/"plan.toml"
    plan.write_text('[study]\nname = "x"\n[defaults]\nmodel = "custom_cnn"\nepochs = 1\n[[run]]\nname = "a"\n'
        '[[run]]\nname = "b"\nbs = 16\n[[run]]\nname = "c"\nbs = 17\n[[run]]\nname = "d"\nsize = 128\n'
        '[[search]]\nname = "s"\nrandom = 1\nguided = 0\nspace = {bs = {log2 = [2,6]}}', encoding="utf-8")
    app(["study", str(plan), "--data", str(pack.path), "--dry-run", "--json"], standalone_mode=False)
    rows = {r["name"]: r["seconds"] for r in json.loads(capsys.readouterr().out)["trainings"]}
    n = pack.counts()["train"]
    assert rows=={"runs/a": n, "runs/b": 2*n, "runs/c": 2*n, "runs/d": 4*n, "s 1": 2*n}
    assert asked==[64]*3 # 16 and 17 are timed once

def test_a_trial_without_memory_is_made_up_for(tmp_path, monkeypatch):
    "The study is run again: the trial is counted as left, trained, and may win"
    from cinic_fastai.report import render as page
    from cinic_fastai.plan_file import parse_plan
    from cinic_fastai.study.runner import StudyRunner, run_study
    from cinic_fastai.test_utils import tiny_pack
    from cinic_fastai.train import fit
    plan = parse_plan('[study]\nname = "x"\n[defaults]\nmodel = "custom_cnn"\nbs = 16\nepochs = 1\n'
        '[[search]]\nname = "s"\nstrategy = "random"\nrandom = 2\nguided = 1\nspace = {lr = {log = [1e-3,1e-2]}}')
    pack,out,right,calls = tiny_pack(),tmp_path/"out",fit.fit_run,[]
    def full(*args, **kw):
        calls.append(1)
        if len(calls)==2: raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return right(*args, **kw)
    monkeypatch.setattr(page, "write_page", lambda *args: None)
    def trials(): return [o["status"] for o in read_lines(out/"searches"/"s.jsonl")[0][1:]]
    run_study(plan, pack, out, fit=full)
    assert trials()==["done", "failed", "done"]
    assert len(StudyRunner(plan, pack, out).pending_configs())==1
    record = run_study(plan, pack, out, fit=full)
    assert trials()==["done"]*3 and len(calls)==4
    tried = read_lines(out/"searches"/"s.jsonl")[0][1:]
    assert record.searches[0].best.number==max(tried, key=lambda o: (o["valid_acc"], -o["valid_loss"]))["number"]
    run_study(plan, pack, out, fit=full)
    assert len(calls)==4

def test_train_counts_from_one_and_says_what_it_was_trained_on(images, tmp_path):
    "As the page does: epochs from 1, and no accuracy on images that were trained on without these words"
    def trained(*settings):
        r = cinic("train", "model=custom_cnn", "bs=16", "epochs=2", "lr=0.01", *settings, "--data", images,
            "--out", tmp_path/"out")
        assert r.returncode==0, r.stderr
        return r.stdout
    said = trained()
    assert [o.split()[0] for o in said.splitlines() if o.strip()[:1].isdigit()]==["1", "2"] and "valid_acc" in said
    rid = re.search(r"runs/(\w+)", said.replace("\n", ""))[1]
    done = read_json(tmp_path/"out"/"runs"/rid/"done.json")
    assert f"Best epoch {done['best_epoch']+1}: valid accuracy {done['valid_acc']:.4f}, test" in said
    assert f"Last epoch 2: valid accuracy" in trained("select=last")
    both = trained("train_on=train+valid")
    assert re.search(r"Last epoch 2: valid accuracy 0\.\d{4} on images it was trained on, test accuracy", both)
    assert "valid_acc" not in both
    assert json.loads(trained("train_on=train+valid", "--json"))["saw_valid"]

def test_the_bar_says_what_it_was_trained_on():
    "Epoch by epoch, and while the next one goes on"
    from cinic_fastai.cli.app import Screen
    for saw,words in ((True, "valid accuracy 0.900 on images it was trained on"), (False, "valid accuracy 0.900")):
        with Screen() as screen:
            screen("epoch", name="a", epoch=0, epochs=2, valid_acc=.9, saw_valid=saw)
            screen("batch", name="a", epoch=1, epochs=2, done=1, total=3)
            assert screen.bar.tasks[1].description=="a: epoch 2 of 2, "+words

def test_a_failed_trial_counts_as_always_saying_the_most_frequent_class(tmp_path, monkeypatch):
    "By hand: train has most cats, and 3 of the 27 valid images are cats; with random search nothing else is told of it"
    from cinic_fastai.report import render as page
    from cinic_fastai.plan_file import parse_plan
    from cinic_fastai.study.runner import run_study
    from cinic_fastai.data.pack import get_pack
    root = tiny_folder(tmp_path/"images", n=12)
    for split,label,keep in (("train", "dog", 6), ("train", "ship", 3), ("valid", "cat", 3)):
        for f in sorted((root/split/label).iterdir())[keep:]: f.unlink()
    def diverged(*args, **kw): raise RuntimeError("The training loss became nan in epoch 1.")
    monkeypatch.setattr(page, "write_page", lambda *args: None)
    plan = parse_plan('[study]\nname = "x"\n[[search]]\nname = "s"\nmodel = "custom_cnn"\nbs = 16\n'
        'random = 1\nguided = 0\nspace = {lr = [0.1,1]}')
    run_study(plan, get_pack(root), tmp_path/"out", fit=diverged)
    trial = read_lines(tmp_path/"out"/"searches"/"s.jsonl")[0][1]
    assert trial["status"]=="failed" and trial["told"]==3/27

def test_a_point_that_a_final_run_can_not_take(tmp_path, monkeypatch):
    "Its failure is recorded, the study goes on to its page"
    from cinic_fastai.report import render as page
    from cinic_fastai.plan_file import parse_plan
    from cinic_fastai.study.runner import run_study
    from cinic_fastai.test_utils import tiny_pack
    drawn = []
    monkeypatch.setattr(page, "write_page", lambda *args: drawn.append(1))
    plan = parse_plan('[study]\nname = "x"\n[defaults]\nmodel = "custom_cnn"\nbs = 16\nepochs = 1\n'
        '[[search]]\nname = "s"\nstrategy = "grid"\nrandom = 1\nguided = 1\n'
        'space = {opt = {choices = ["adam", "rmsprop"]}}\n[[run]]\nname = "f"\nfrom = "search:s"\nnesterov = true')
    run, = run_study(plan, tiny_pack(), tmp_path/"out").runs
    assert drawn and run.status=="failed" and "nesterov = true is for opt = 'sgd'" in run.reason

def test_a_dry_run_says_what_does_not_fit_the_images(images, tmp_path):
    "As the study itself does, before a network is timed; `--limit` counts"
    plan = tmp_path/"plan.toml"
    plan.write_text('[study]\nname = "x"\n[[run]]\nname = "a"\nmodel = "custom_cnn"\nbs = 16\nshift = 32\n',
        encoding="utf-8")
    said = "[[run]] 1 'a': shift reaches 32 of the images' 32 pixels"
    for words in (["--dry-run"], ["--dry-run", "--limit", 3], []):
        r = cinic("study", plan, "--data", images, "--out", tmp_path/"out", *words)
        assert r.returncode==2 and said in " ".join(r.stderr.split()), r.stderr
        assert ("bs reaches 16, and there are 3 training images" in " ".join(r.stderr.split()))==("--limit" in words)
    assert not (tmp_path/"out").exists()
