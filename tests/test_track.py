"A tracker looks on: it changes no result, and hears of every epoch once, whatever is cut off and wherever trainings run."
import importlib.util
import pytest
from conftest import cinic
from cinic_fastai.core import StoreError
from cinic_fastai.files import read_json
from cinic_fastai.results import page
from cinic_fastai.runs import RunStore
from cinic_fastai.study import conduct as c, track
from cinic_fastai.study.plan import parse_plan
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
ALL = {("runs/a", 0), ("runs/a", 1), ("runs/b", 0), ("runs/b", 1), ("again/a", 0), ("again/a", 1), ("s trial 1/2", 0), ("s trial 2/2", 0)}

@pytest.fixture(scope="module")
def pack(): return tiny_pack()

@pytest.fixture
def seen(monkeypatch):
    "What a stand-in for TensorBoard is told"
    rows = []
    def open_one(folder, project, name, id, config): return (lambda row: rows.append((name, row["epoch"], row["valid_acc"]))),(lambda: None)
    monkeypatch.setitem(track._open, "tensorboard", open_one)
    monkeypatch.setattr(c, "check_track", lambda name: None)
    monkeypatch.setattr(page, "write_page", lambda *args: None)
    return rows

def plan(tracked): return parse_plan(PLAN.format(track='track = "tensorboard"' if tracked else ""))
def results(out, record): return {r["run_id"]: RunStore(out/"runs").history(r["run_id"]).drop(columns="seconds").to_dict("list") for r in record["runs"]}

@pytest.mark.parametrize("jobs", [1, 2])
def test_every_epoch_once(pack, seen, tmp_path, jobs):
    record = c.conduct(plan(True), pack, tmp_path, jobs=jobs)
    assert sorted(o[:2] for o in seen)==sorted(ALL)
    accs = {("runs/a", i): a for i,a in enumerate(RunStore(tmp_path/"runs").history(record["runs"][0]["run_id"]).valid_acc)}
    assert {o[:2]: o[2] for o in seen if o[0]=="runs/a"}==accs
    c.conduct(plan(True), pack, tmp_path, jobs=jobs)
    assert len(seen)==len(ALL)

def test_results_are_the_same_without(pack, seen, tmp_path):
    with_it,without = (c.conduct(plan(t), pack, tmp_path/str(t)) for t in (True, False))
    assert results(tmp_path/"True", with_it)==results(tmp_path/"False", without)
    assert not (tmp_path/"False"/"track").exists()

def test_switched_on_and_off_later(pack, seen, tmp_path):
    c.conduct(plan(False), pack, tmp_path)
    assert not seen
    c.conduct(plan(True), pack, tmp_path) # all is done: what runs are there is shown, trials stay in their journal
    assert sorted(o[:2] for o in seen)==sorted(o for o in ALL if not o[0].startswith("s "))
    c.conduct(plan(False), pack, tmp_path)
    other = parse_plan(PLAN.format(track='title = "another"'))
    with pytest.raises(StoreError, match="reads differently"): c.conduct(other, pack, tmp_path)

def test_cut_off_and_continued(pack, seen, tmp_path):
    def stop(): return 15 if len(seen)==1 else 0
    with pytest.raises(c.Interrupted): c.conduct(plan(True), pack, tmp_path, stop=stop)
    assert seen[0][:2]==("runs/a", 0) and read_json(tmp_path/"track"/"runs"/"a"/"track.json")["epochs"]==1
    c.conduct(plan(True), pack, tmp_path)
    assert sorted(o[:2] for o in seen)==sorted(ALL)

@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_missing_package_is_named_before_work(images, tmp_path):
    (tmp_path/"p.toml").write_text(PLAN.format(track='track = "wandb"'), encoding="utf-8")
    packs = set(images.glob(".pack*"))
    r = cinic("study", tmp_path/"p.toml", "--data", images, "--out", tmp_path/"out")
    assert r.returncode==2 and "pip install 'cinic_fastai[wandb]'" in r.stderr and "Traceback" not in r.stderr
    assert not (tmp_path/"out").exists() and set(images.glob(".pack*"))==packs

def test_tensorboard_reads_it(images, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    (tmp_path/"p.toml").write_text(PLAN.format(track='track = "tensorboard"'), encoding="utf-8")
    r = cinic("study", tmp_path/"p.toml", "--data", images, "--out", tmp_path/"out")
    assert r.returncode==0, r.stderr
    events = EventAccumulator(str(tmp_path/"out"/"track"/"runs"/"a")).Reload()
    assert [e.step for e in events.Scalars("valid_acc")]==[0, 1] and "lr" in events.Tags()["scalars"]
