"A plan grows in its folder: only what is new is trained, and what there are results of is not changed."
import shutil
import pytest
from cinic_fastai.core import StoreError
from cinic_fastai.plan_file import parse_plan
from cinic_fastai.record import StudyChanges, StudyRecord, journal_path, read_journal
from cinic_fastai.report import render as page
from cinic_fastai.study.expand import with_options
from cinic_fastai.study.runner import run_study
from cinic_fastai.study.search import search
from cinic_fastai.study.trainer import StudyOptions
from cinic_fastai.studyfolder import study_status
from cinic_fastai.test_utils import tiny_pack
from cinic_fastai.train.fit import fit_run
from test_search import SPACE, by_epochs, points

PLAN = """
[study]
name = "growing"
[defaults]
model = "custom_cnn"
bs = 16
lr = 1e-2
epochs = 2
[[run]]
name = "net"
seeds = [1, 2]
[[search]]
name = "s"
random = 2
guided = 1
control = true
repeats = 1
epochs = 1
space = { lr = {log=[1e-3,1e-1]} }
[[run]]
group = "final"
name = "best"
from = "search:s"
[[ensemble]]
name = "vote"
method = "soft"
members = ["net-1", "net-2"]
"""
MORE = """
[[run]]
name = "longer"
epochs = 3
[[ensemble]]
name = "hard"
method = "hard"
members = ["net-1", "longer"]
"""

@pytest.fixture(scope="module")
def pack(): return tiny_pack()

@pytest.fixture(scope="module")
def finished(pack, tmp_path_factory):
    "A finished study"
    out = tmp_path_factory.mktemp("growing")/"out"
    with pytest.MonkeyPatch.context() as m: carry_out(PLAN, pack, out, m)
    return out

@pytest.fixture
def out(finished, tmp_path):
    "A copy of it, times of files included"
    return shutil.copytree(finished, tmp_path/"out")

def carry_out(text, pack, out, monkeypatch, trials=None):
    "A study right here, without its page: its record"
    monkeypatch.setattr(page, "write_page", lambda *args: None)
    options = StudyOptions(StudyChanges(trials=trials and list(trials)))
    return run_study(with_options(parse_plan(text), trials=trials), pack, out, options, fit=fit_run)

def times(out): return {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*")}
def done(out): return {p.parent.name for p in out.glob("runs/*/done.json")}
def journal(out, name): return read_journal(journal_path(out, name))

def test_runs_seeds_and_members_are_added(out, pack, monkeypatch):
    before,there = times(out),done(out)
    text = PLAN.replace("[1, 2]", "[1, 2, 3]").replace('["net-1", "net-2"]', '["net-1", "net-2", "net-3"]')+MORE
    record = carry_out(text, pack, out, monkeypatch)
    new = {record.find_run(name).run_id for name in ("net-3", "longer")}
    assert done(out)-there==new and len(new)==2
    assert before.items()<=times(out).items() # nothing of what was there was written
    assert {r.status for r in record.runs}=={e.status for e in record.ensembles}=={"done"}
    assert not study_status(out).counts.keys()-{"done"}
    carry_out(text, pack, out, monkeypatch)
    assert done(out)-there==new

def test_trials_are_added(out, pack, monkeypatch):
    "By an option; those before stay the same points, those that a search of that size would have had from the start"
    before,there = times(out),done(out)
    first,control = (journal(out, name).trials for name in ("s", "s~control"))
    record = carry_out(PLAN, pack, out, monkeypatch, trials=(2, 3))
    now = journal(out, "s")
    assert now.trials[:3]==first and len(now.trials)==5==now.header.budget==record.searches[0].trials
    assert points(journal(out, "s~control").trials)[:3]==points(control)
    assert before.items()<=times(out).items() and there<done(out)
    kept = {o.run_id for o in now.trials}|{o.run_id for o in journal(out, "s~control").trials}
    kept |= {o.run_id for o in record.searches[0].repeated}|{r.run_id for r in record.runs}
    assert done(out)-there<=kept # nothing else was trained
    whole = carry_out(PLAN, pack, out.parent/"whole", monkeypatch, trials=(2, 3))
    assert points(journal(out.parent/"whole", "s").trials)==points(now.trials)
    assert [r.run_id for r in whole.runs]==[r.run_id for r in record.runs]

@pytest.mark.parametrize("changes,said", [
    ({"epochs = 2": "epochs = 3"}, "run runs/net-1: epochs is 2 there, 3 here"),
    ({"[1, 2]": "[1, 3]", '"net-2"': '"best"'}, "run runs/net-2 is left out"),
    ({'from = "search:s"': "seed = 3"}, "run final/best: seed is 42 there, 3 here"),
    ({"1e-1]": "2e-1]"}, "search s: space.lr.log is [0.001, 0.1] there, [0.001, 0.2] here"),
    ({"random = 2": "random = 3"}, "search s: random is 2 there, 3 here"),
    ({"guided = 1": "guided = 0"}, "search s: guided is 1 there, 0 here"),
    ({"control = true": ""}, "search s~control is left out"),
    ({"repeats = 1": "seed = 7"}, "search s: seed is 42 there, 7 here")])
def test_what_has_results_is_not_changed(finished, pack, monkeypatch, changes, said):
    "Before any work, with the cure"
    text,before = PLAN,(finished/"study.json").read_bytes()
    for old,new in changes.items(): text = text.replace(old, new)
    with pytest.raises(StoreError) as e: carry_out(text, pack, finished, monkeypatch)
    assert all(o in str(e.value) for o in (said, "--out", "--store"))
    assert (finished/"study.json").read_bytes()==before

def test_what_has_no_result_is_free(out, pack, monkeypatch):
    "A run that is gone from the store may be another one; a title is no result"
    before = StudyRecord.read(out).find_run("best").run_id
    shutil.rmtree(out/"runs"/before)
    text = PLAN.replace('from = "search:s"', 'from = "search:s"\nepochs = 1')
    record = carry_out(text.replace("[defaults]", 'title = "Grown"\n[defaults]'), pack, out, monkeypatch)
    assert record.title=="Grown" and record.find_run("best").status=="done"
    assert record.find_run("best").run_id!=before and not (out/"runs"/before).exists()

@pytest.mark.parametrize("kw", [dict(guided=2), dict(guided=2, strategy="random"), dict(guided=3, batch=2),
    dict(guided=2, rungs=[1, 2], factor=2, batch=3)])
def test_the_first_points_stay(tmp_path, kw):
    "Of a search that grew, in the middle of a batch, too"
    first = search(SPACE, by_epochs, tmp_path/"grown.jsonl", random=3, seed=5, **kw)
    def new(number, point, **kw):
        assert number>=len(first)
        return by_epochs(number, point, **kw)
    grown = search(SPACE, new, tmp_path/"grown.jsonl", random=3, seed=5, **kw|dict(guided=4))
    whole = search(SPACE, by_epochs, tmp_path/"whole.jsonl", random=3, seed=5, **kw|dict(guided=4))
    assert points(grown)==points(whole) and len(grown)==7
    with pytest.raises(StoreError, match="guided is 4 there, 1 here"):
        search(SPACE, new, tmp_path/"grown.jsonl", random=3, seed=5, **kw|dict(guided=1))
    grid = dict(random=0, guided=4, strategy="grid", seed=5)
    search(SPACE, by_epochs, tmp_path/"grid.jsonl", **grid)
    with pytest.raises(StoreError, match="guided is 4 there, 9 here"):
        search(SPACE, by_epochs, tmp_path/"grid.jsonl", **grid|dict(guided=9))
