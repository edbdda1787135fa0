"Trainings side by side: on this machine, on clusters, with workers that are lost; the results are always the same."
import contextlib, os, signal, subprocess, sys, time
import pandas as pd, psutil, pytest
from conftest import ENV, cinic, no_page, one_core, script, siblings, started
from test_study import results
from cinic_fastai.files import read_json, read_lines

PLAN = """
[study]
name = "side"
seed = 1
[defaults]
model = "custom_cnn"
bs = 16
lr = 1e-2
epochs = 3
[[run]]
group = "architectures"
name = "custom_cnn"
[[run]]
group = "augmentation"
name = "none"
[[search]]
name = "checked"
random = 2
guided = 1
control = true
repeats = 1
epochs = 2
space = { bs = {log2=[3,4]}, lr = {log=[1e-3,3e-2]}, label_smoothing = [0,0.2] }
[[search]]
name = "halved"
bs = 4
random = 2
guided = 2
batch = 2
rungs = [2]
start = [{lr=0.02, mom=0.9}]
space = { lr = {log=[1e-4,2e-2]}, mom = [0,0.95] }
[[run]]
group = "final"
name = "a"
from = "search:checked"
[[run]]
group = "final"
name = "b"
from = "search:halved"
[[ensemble]]
name = "soft"
method = "soft"
members = ["a", "b"]
"""

@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    f = tmp_path_factory.mktemp("side")/"side.toml"
    f.write_text(PLAN, encoding="utf-8")
    return f

@pytest.fixture(scope="module")
def alone(plan, images, tmp_path_factory):
    "The study, one training after the other"
    out = tmp_path_factory.mktemp("alone")/"out"
    done = cinic("study", plan, "--data", images, "--out", out, "--jobs", "1", before=no_page)
    assert done.returncode==0, done.stderr
    return out

def journal(out, name):
    "Lines of a journal, without what a clock says"
    lines = read_lines(out/"searches"/f"{name}.jsonl")[0]
    return [{k: v for k,v in o.items() if k not in ("seconds", "ask_seconds")} for o in lines]

def histories(out):
    "Of all trainings, but for their times"
    files = sorted(out.glob("runs/*/history.csv"))
    return {f.parent.name: pd.read_csv(f).drop(columns="seconds").to_csv() for f in files}

def same(out, other):
    "Weights, probabilities, histories, journals and repeats"
    assert results(out)==results(other) and histories(out)==histories(other)
    threads = [read_json(f)["threads"] for f in out.glob("runs/*/env.json")]
    assert set(threads)=={1}
    for name in ("checked", "checked~control", "halved"): assert journal(out, name)==journal(other, name)
    for a,b in zip(read_json(out/"study.json")["searches"], read_json(other/"study.json")["searches"]): assert a==b

def test_what_the_searches_leave(alone):
    checked,halved = read_json(alone/"study.json")["searches"]
    starts = [[o["point"] for o in journal(alone, name)[1:3]] for name in ("checked", "checked~control")]
    assert starts[0]==starts[1]
    assert checked["control"]["best"] and {o["of"] for o in checked["repeated"]}>={"winner", "runner-up"}
    assert all(o["seed"]==2 and o["valid_acc"]>0 for o in checked["repeated"])
    assert halved["control"] is None and halved["repeated"]==[]
    header,*trials = journal(alone, "halved")
    assert header["batch"]==2 and header["rungs"]==[2] and trials[0]["point"]==dict(lr=.02, mom=.9) and len(trials)==5
    stopped = [o for o in trials if o["status"]=="stopped"]
    assert stopped and all(len(o["accs"])==2 for o in stopped)
    assert all(len(o["accs"])==3 for o in trials if o["status"]=="done")
    assert halved["best"]["number"] not in [o["number"] for o in stopped]
    shown = cinic("status", alone).stdout
    assert "checked~control trials" in shown and "checked repeats" in shown and "stopped" in shown

def test_where_nothing_is_left_torch_is_not_needed(plan, images, alone):
    arguments = ["cinic", "study", str(plan), "--data", str(images), "--out", str(alone)]
    code = f"import sys; sys.argv={arguments!r}; from cinic_fastai.report import render as page; " \
        "page.write_page = print; from cinic_fastai.cli import app; app(standalone_mode=False); " \
        "sys.exit('torch' in sys.modules)"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert r.returncode==0 and "Test accuracy" in r.stdout, r.stdout+r.stderr

@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
@pytest.mark.parametrize("jobs,where", [("auto", one_core), ("4", one_core),
    pytest.param("4", contextlib.nullcontext, marks=pytest.mark.slow)])
def test_cores_and_jobs_decide_nothing(plan, images, alone, tmp_path, jobs, where):
    "`test_a_lost_worker_is_no_lost_run` has two at a time on all cores"
    with where(): r = cinic("study", plan, "--data", images, "--out", tmp_path/"out", "--jobs", jobs, before=no_page)
    assert r.returncode==0, r.stderr
    same(tmp_path/"out", alone)

@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_jobs_that_cant_be(plan, images, tmp_path, jobs):
    r = cinic("study", plan, "--data", images, "--out", tmp_path/"out", "--jobs", jobs)
    assert r.returncode==2 and f"jobs = {jobs}: expected auto" in r.stderr and not (tmp_path/"out").exists()

def begun(out): return list(out.glob("runs/*/env.json"))

@pytest.mark.skipif(os.name=="nt", reason="SIGKILL is POSIX")
def test_a_lost_worker_is_no_lost_run(plan, images, alone, tmp_path):
    "One killed while it trains, one later, whatever it does"
    out,said = tmp_path/"out",(tmp_path/"said",)*2
    args = ["study", plan, "--data", images, "--out", out, "--jobs", "2", "--save-every", "0"]
    p = started(*args, said=said, before=no_page)
    for n in (1, 5):
        while p.is_alive() and len(begun(out))<n: time.sleep(.005)
        for o in siblings(p)[:1]: o.kill()
    p.join(300)
    text = said[0].read_text(encoding="utf-8")
    assert p.exitcode==0 and "A worker was lost" in text and "Traceback" not in text, text
    same(out, alone)

@pytest.mark.skipif(os.name=="nt", reason="SIGKILL is POSIX")
def test_workers_leave_with_their_study(plan, images, alone, tmp_path):
    "Killed as soon as it has any, whatever they do"
    p = started("study", plan, "--data", images, "--out", tmp_path/"out", "--jobs", "2", "--scale", "1000")
    while p.is_alive() and len(siblings(p))<2: time.sleep(.005)
    helpers = siblings(p)
    p.kill()
    assert helpers and not psutil.wait_procs(helpers, timeout=60)[1]

@pytest.mark.skipif(os.name=="nt", reason="signals are POSIX")
@pytest.mark.slow
def test_stopped_and_continued_side_by_side(plan, images, alone, tmp_path):
    "As from a terminal: the whole group gets the signal; a second one kills at once; a driver may be killed, too"
    out = tmp_path/"out"
    args = ["study", str(plan), "--data", str(images), "--out", str(out), "--jobs", "2"]
    command = [sys.executable, "-m", "cinic_fastai.cli", *args]
    for presses,code in ((1, 130), (2, 130), (0, -signal.SIGKILL)):
        p = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True)
        before = len(begun(out))
        while p.poll() is None and len(begun(out))<=before: time.sleep(.005)
        helpers = psutil.Process(p.pid).children(recursive=True) # the server and its workers
        if not presses: p.kill()
        for _ in range(presses):
            os.killpg(p.pid, signal.SIGINT)
            time.sleep(.2)
        _,err = p.communicate(timeout=60)
        assert p.returncode==code and "Traceback" not in err, err
        assert presses!=1 or "Run the same command again" in err
        assert not psutil.wait_procs(helpers, timeout=20)[1] # nobody is left
    assert cinic(*command[3:], before=no_page).returncode==0
    same(out, alone)

def test_a_backend_that_cant_be_had(plan, images, tmp_path):
    r = cinic("study", plan, "--data", images, "--out", tmp_path/"out", "--backend", "dusk")
    assert r.returncode==2 and "did you mean 'dask'" in r.stderr
    r = cinic("study", plan, "--data", images, "--out", tmp_path/"out", "--address", "tcp://nowhere:1")
    assert r.returncode==2 and "--backend dask" in r.stderr

@pytest.mark.slow # in `make test` it is the study whose workers are killed that comes to the same
@pytest.mark.parametrize("backend,module", [("dask", "distributed"), ("ray", "ray")])
def test_a_local_cluster_gives_the_same(plan, images, alone, tmp_path, backend, module):
    pytest.importorskip(module)
    args = ["study", plan, "--data", images, "--out", tmp_path/"out", "--jobs", "2", "--backend", backend]
    r = cinic(*args, before=no_page)
    assert r.returncode==0 and "Traceback" not in r.stderr, r.stderr
    same(tmp_path/"out", alone)

# --- what is defined in a script, and networks that end their process

DEADLY = """
import os
from timm.models import register_model
@register_model
def deadly(num_classes=10, **kw): os.abort()
"""

SCRIPT = DEADLY+"""
from pathlib import Path
import torch
from cinic_fastai.data.augment import register_policy
from cinic_fastai.data.pack import get_pack
from cinic_fastai.plan_file import read_plan
from cinic_fastai.report import render
from cinic_fastai.study.runner import run_study
class Flat(torch.nn.Sequential):
    def get_classifier(self): return self[1]
@register_model
def flat(num_classes=10, **kw): return Flat(torch.nn.Flatten(), torch.nn.Linear(3*32*32, num_classes))
register_policy("mine", lambda x: 255-x)
render.write_page = lambda *args: None
print("once")
run_study(read_plan("{plan}"), get_pack(Path("{images}")), Path("{out}"))
"""

CRASHING = """
[study]
name = "crashing"
[defaults]
model = "custom_cnn"
bs = 16
epochs = 1
[[run]]
name = "mine"
policy = "mine"
model = "flat"
[[run]]
name = "deadly"
model = "deadly"
[[search]]
name = "look"
model = "deadly"
random = 2
guided = 0
space = { bs = {log2=[3,4]} }
[[search]]
name = "choose"
random = 2
guided = 0
strategy = "grid"
space = { model = {choices=["custom_cnn", "deadly"]} }
"""

@pytest.mark.skipif(os.name=="nt", reason="the script is forked")
def test_a_script_with_a_policy_and_networks_of_its_own(images, tmp_path):
    "It has no `if __name__`; a network that ends its process ends no study"
    plan,file = tmp_path/"plan.toml",tmp_path/"script.py"
    plan.write_text(CRASHING, encoding="utf-8")
    file.write_text(SCRIPT.format(plan=plan, images=images, out=tmp_path/"out"), encoding="utf-8")
    r = script(file, tmp_path)
    assert r.returncode==0 and r.stdout=="once\n" and "Traceback" not in r.stderr, r
    record = read_json(tmp_path/"out"/"study.json")
    status = {e["name"]: e["status"] for e in record["runs"]+record["searches"]}
    assert status==dict(mine="done", deadly="failed", look="failed", choose="done")
    cause = "The network deadly ended its process (SIGABRT)"
    for e in (record["runs"][1], record["searches"][0]):
        assert cause in e["reason"] and "channels_last = false" in e["reason"]
    assert len(journal(tmp_path/"out", "look"))==1 # no trial has failed by its point
    trials = journal(tmp_path/"out", "choose")[1:]
    assert [o["status"] for o in trials]==["done", "failed"] and cause in trials[1]["cause"]

def know_deadly(): exec(DEADLY, dict(__name__="__main__"))

@pytest.mark.skipif(os.name=="nt", reason="the command line is forked")
def test_a_dry_run_names_a_network_that_ends_its_process(images, tmp_path):
    (tmp_path/"plan.toml").write_text('[study]\nname = "two"\n[defaults]\nbs = 16\n'
        '[[run]]\nname = "a"\nmodel = "deadly"\n[[run]]\nname = "b"\nmodel = "custom_cnn"\n', encoding="utf-8")
    r = cinic("study", tmp_path/"plan.toml", "--data", images, "--dry-run", before=know_deadly)
    assert r.returncode==0 and "2 trainings" in r.stdout, r.stderr
    assert "The network deadly ended its process (SIGABRT)" in " ".join(r.stderr.split())

def test_a_timed_network_leaves_the_gpus_memory_to_the_training(monkeypatch):
    import torch
    from cinic_fastai.config import RunConfig
    from cinic_fastai.study.tasks import Timing
    freed = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(1))
    Timing(cfg=RunConfig(model="custom_cnn", bs=4), n_out=2, size=32).do(print)
    assert freed

TOO_LARGE = """
[study]
name = "large"
[[search]]
name = "s"
model = "test_vit"
epochs = 1
random = 2
guided = 0
strategy = "grid"
space = { %s }
"""

@pytest.mark.parametrize("space,status", [
    ("bs = {choices=[16, 32]}", ["done", "failed"]),
    ("channels_last = {choices=[true, false]}", ["failed", "done"]),
    ("lr = {choices=[0.1, 0.2]}", [])])
def test_a_trial_whose_network_ends_is_a_failed_trial_where_another_point_may_work(
    images, tmp_path, monkeypatch, space, status
):
    "With a smaller batch, or another layout; a search of which every point ends its process has failed itself"
    from cinic_fastai.data.pack import get_pack
    from cinic_fastai.plan_file import parse_plan
    from cinic_fastai.study.runner import run_study
    from cinic_fastai.study.trainer import StudyOptions
    from cinic_fastai.study.tasks import Training, run_task
    from cinic_fastai.study.workers import LostWorker, Places
    def tried(self, task, on_event):
        if isinstance(task, Training):
            if task.cfg.bs==32: raise LostWorker("SIGKILL")
            if "bs" not in space and task.cfg.channels_last: raise LostWorker("SIGSEGV")
        return run_task(task, on_event)
    monkeypatch.setattr(Places, "call", tried)
    monkeypatch.setattr("cinic_fastai.report.render.write_page", lambda *args: None)
    text = TOO_LARGE%space
    if "bs" not in space: text = text.replace("epochs", "bs = 16\nepochs")
    found, = run_study(parse_plan(text), get_pack(images), tmp_path, StudyOptions(jobs=1)).searches
    assert [o["status"] for o in journal(tmp_path, "s")[1:]]==status
    assert found.status==("done" if status else "failed"), found
