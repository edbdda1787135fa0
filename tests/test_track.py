"A tracker looks on: it changes no result, and hears of every epoch once, wherever trainings run or are cut off."
import importlib.util, shutil
import pytest
from conftest import cinic
from cinic_fastai.core import Interrupted, StoreError
from cinic_fastai.files import cache_place, read_json
from cinic_fastai.report import render as page
from cinic_fastai.store import RunStore
from cinic_fastai.study import runner, track
from cinic_fastai.plan_file import parse_plan
from cinic_fastai.study.runner import run_study
from cinic_fastai.study.trainer import StudyOptions
from cinic_fastai.test_utils import tiny_pack

PLAN = """
[study]
name = "seen"
seed = 1
{track}
[defaults]
model = "custom_cnn"
bs = 16
lr = 1e-2
epochs = 2
[[run]]
name = "a"
[[run]]
name = "b"
policy = "advanced"
[[run]]
group = "again"
name = "a"
[[search]]
name = "s"
random = 1
guided = 1
epochs = 1
space = {{ lr = {{log=[1e-3,1e-1]}} }}
"""
ALL = {("runs/a", 0), ("runs/a", 1), ("runs/b", 0), ("runs/b", 1), ("again/a", 0), ("again/a", 1),
    ("s trial 1/2", 0), ("s trial 2/2", 0)}

@pytest.fixture(scope="module")
def pack(): return tiny_pack()

@pytest.fixture
def seen(monkeypatch):
    "What a stand-in for TensorBoard is told"
    rows = []
    def open_one(folder, project, name, id, config):
        def log(row): rows.append((name, row["epoch"], row["valid_acc"]))
        return log,(lambda: None)
    monkeypatch.setitem(track._open, "tensorboard", open_one)
    monkeypatch.setattr(runner, "check_track", lambda name: None)
    monkeypatch.setattr(page, "write_page", lambda *args: None)
    return rows

def plan(tracked): return parse_plan(PLAN.format(track='track = "tensorboard"' if tracked else ""))
def results(out, record):
    history = RunStore(out/"runs").history
    return {r.run_id: history(r.run_id).drop(columns="seconds").to_dict("list") for r in record.runs}

@pytest.fixture(scope="module")
def bare(pack, tmp_path_factory):
    "The study without a tracker"
    out = tmp_path_factory.mktemp("bare")
    with pytest.MonkeyPatch.context() as m:
        m.setattr(page, "write_page", lambda *args: None)
        return out,run_study(plan(False), pack, out)

@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_epoch_once_and_the_same_results(pack, bare, seen, tmp_path, jobs):
    record = run_study(plan(True), pack, tmp_path, StudyOptions(jobs=jobs))
    assert sorted(o[:2] for o in seen)==sorted(ALL)
    accs = {("runs/a", i): a for i,a in enumerate(RunStore(tmp_path/"runs").history(record.runs[0].run_id).valid_acc)}
    assert {o[:2]: o[2] for o in seen if o[0]=="runs/a"}==accs
    run_study(plan(True), pack, tmp_path, StudyOptions(jobs=jobs))
    assert len(seen)==len(ALL)
    assert results(tmp_path, record)==results(*bare) and not (bare[0]/"track").exists()

def test_switched_on_and_off_later(pack, bare, seen, tmp_path):
    out = tmp_path/"out"
    shutil.copytree(bare[0], out)
    run_study(plan(True), pack, out) # all is done: what runs are there is shown, trials stay in their journal
    assert sorted(o[:2] for o in seen)==sorted(o for o in ALL if not o[0].startswith("s "))
    run_study(plan(False), pack, out)
    other = parse_plan(PLAN.format(track="").replace("epochs = 2", "epochs = 3"))
    with pytest.raises(StoreError, match="epochs is 2 there, 3 here"): run_study(other, pack, out)

def test_tensorboard_reads_what_was_cut_off_and_continued(pack, monkeypatch, tmp_path):
    "With TensorBoard itself, and its own reader"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    heard = []
    monkeypatch.setattr(page, "write_page", lambda *args: None)
    def hear(kind, **info): heard.append(kind)
    def stop(): return 15*("epoch" in heard)
    with pytest.raises(Interrupted): run_study(plan(True), pack, tmp_path, StudyOptions(jobs=1), hear, stop)
    begun = [read_json(f)["epochs"] for f in (tmp_path/"track").rglob("track.json")]
    assert begun and all(1<=n<=2 for n in begun)
    run_study(plan(True), pack, tmp_path)
    folders = {f.parent for f in (tmp_path/"track").rglob("track.json")}
    events = {f.relative_to(tmp_path/"track").as_posix(): EventAccumulator(str(f)).Reload() for f in folders}
    assert sorted((name, e.step) for name,o in events.items() for e in o.Scalars("valid_acc"))==sorted(ALL)
    assert "lr" in events["runs/a"].Tags()["scalars"]

@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_missing_package_is_named_before_work(images, tmp_path):
    (tmp_path/"p.toml").write_text(PLAN.format(track='track = "wandb"'), encoding="utf-8")
    packs = set(cache_place(images, "packs").glob("*"))
    r = cinic("study", tmp_path/"p.toml", "--data", images, "--out", tmp_path/"out")
    assert r.returncode==2 and "pip install 'cinic_fastai[wandb]'" in r.stderr and "Traceback" not in r.stderr
    assert not (tmp_path/"out").exists() and set(cache_place(images, "packs").glob("*"))==packs
