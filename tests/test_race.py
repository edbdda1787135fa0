"One question after another: races, what was best in a group, and a study whose time is short."
import json, time
from dataclasses import replace
import numpy as np, pytest
from cinic_fastai.config import pruned_at, run_id
from cinic_fastai.core import OUT_OF_TIME, CinicError, Interrupted
from cinic_fastai.files import write_json, write_npz
from cinic_fastai.plan_file import parse_plan
from cinic_fastai.record import StudyRecord, journal_path, read_journal
from cinic_fastai.report import render as page
from cinic_fastai.results.predictions import predictions
from cinic_fastai.results.tables.runs import runs_table
from cinic_fastai.store import RunStore
from cinic_fastai.study.expand import check_fits, trainings, with_options
from cinic_fastai.study.runner import StudyRunner, run_study
from cinic_fastai.study.trainer import StudyOptions
from cinic_fastai.studyfolder import StudyFolder, declared_settings, source_of, study_parts, study_status
from cinic_fastai.test_utils import tiny_pack

PLAN = """
[study]
name = "chain"
[defaults]
model = "custom_cnn"
bs = 16
epochs = 4
[[race]]
group = "networks"
rungs = [0.25, 0.5]
[[run]]
group = "networks"
name = "a"
lr = 0.001
[[run]]
group = "networks"
name = "b"
lr = 0.004
epochs = 8
[[run]]
group = "networks"
name = "c"
lr = 0.003
[[run]]
group = "networks"
name = "d"
lr = 0.002
[[run]]
group = "augmentations"
name = "none"
from = "best:networks"
[[run]]
group = "augmentations"
name = "gentle"
from = "best:networks"
policy = "gentle"
[[search]]
name = "tuning"
from = "best:augmentations"
strategy = "random"
random = 4
guided = 0
repeats = 1
space = { lr = {log=[1e-3, 1e-1]} }
[[run]]
group = "final"
name = "final"
from = "search:tuning"
seeds = [1, 2]
[[ensemble]]
name = "vote"
method = "soft"
members = ["final-1", "final-2"]
"""

@pytest.fixture(scope="module")
def pack(): return tiny_pack()

class MadeUp:
    "A `fit` in no time: the higher the rate, the better, a little more with `gentle`, and each epoch adds to it"
    def __init__(self, stop_after=None, fails=()): self.stop_after,self.fails,self.calls = stop_after,fails,[]

    def accs(self, cfg):
        acc = cfg.lr**.2+(.01 if cfg.policy=="gentle" else 0.)
        return [acc*(1-.5/(e+1)) for e in range(cfg.epochs)]

    def __call__(self, cfg, pack, store, full=True, min_accs=None, **kw):
        if len(self.calls)==self.stop_after: raise Interrupted("Stopped.", 15)
        if cfg.lr in self.fails: raise CinicError("The loss became nan.")
        accs = self.accs(cfg)
        stopped = pruned_at(accs, min_accs or {})
        self.calls.append((cfg, stopped or cfg.epochs))
        best = dict(valid_acc=max(accs[:stopped or None]), valid_loss=1., best_epoch=0, seconds=1.)
        if stopped: return dict(best, stopped=stopped, accs=accs[:stopped])
        return best|self.left(cfg, pack, store, full, accs)

    def left(self, cfg, pack, store, full, accs):
        "Leave the files of a run"
        rid,c = run_id(cfg, pack.digest),len(pack.classes)
        for split in ("valid", "test"):
            rows = pack.rows[split]
            write_npz(store.folder(rid)/f"probs_{split}.npz", probs=np.full((len(rows), c), 1/c), rows=rows,
                targs=pack.targs[rows], classes=np.array(pack.classes), origins=pack.origins[rows])
        store.write_config(rid, cfg)
        row = dict(frozen=False, lr=cfg.lr, seconds=1., train_loss=1., train_acc=.5, valid_loss=1.)
        store.write_history(rid, [dict(row, epoch=e, valid_acc=a) for e,a in enumerate(accs)])
        write_json(store.folder(rid)/"env.json", dict(device="none"))
        done = dict(full=full, epochs=cfg.epochs, images_per_s=1., params=1, train_loss=1., train_acc=.5, test_acc=.5,
            valid_acc=max(accs), valid_loss=1., best_epoch=0, seconds=1.)
        store.finish(rid, done)
        return done

def carried_out(text, pack, out, fit):
    "A study here and now, without its page: its runner"
    runner = StudyRunner(parse_plan(text), pack, out, fit=fit)
    with runner._recorded(): runner.run()
    return runner

def standing(record): return [(r.key, r.status, r.of, r.run_id) for r in record.runs]

@pytest.fixture(scope="module")
def whole(pack, tmp_path_factory):
    "The study from beginning to end, and its fit"
    fit = MadeUp()
    return carried_out(PLAN, pack, tmp_path_factory.mktemp("race")/"out", fit),fit

def test_a_chain_of_questions(whole, pack):
    runner,fit = whole
    record,store = runner.record,runner.store
    found = {r.name: r for r in record.runs}
    assert [found[k].status for k in "abcd"]==["stopped", "done", "stopped", "stopped"]
    assert [len(found[k].values) for k in "abcd"]==[1, 4, 2, 1] # half of eight epochs, of four
    assert found["a"].reason=="others were better after 1 of 4 epochs"
    assert found["none"].run_id==found["b"].run_id # no training of its own
    best = store.config(found["b"].run_id)
    assert store.config(found["gentle"].run_id)==replace(best, policy="gentle") and best.epochs==8
    assert found["none"].of==found["gentle"].of=="networks/b" and record.searches[0].of=="augmentations/gentle"
    trials = read_journal(journal_path(runner.out, "tuning"))
    assert trials.header.base==dict(model="custom_cnn", bs=16, lr=.004, epochs=8, policy="gentle")
    for seed in (1, 2):
        point = record.searches[0].best.point
        assert store.config(found[f"final-{seed}"].run_id)==replace(best, policy="gentle", seed=seed, **point)
        assert found[f"final-{seed}"].of=="augmentations/gentle"
    assert record.ensembles[0].status=="done"

def test_ids_do_not_tell_how_settings_were_found(whole):
    runner,_ = whole
    run = next(r for r in runner.record.runs if r.name=="gentle")
    assert run.run_id==runner.rid(runner.store.config(run.run_id))

def test_run_again_nothing_is_trained(whole, pack):
    runner,_ = whole
    def never(*args, **kw): raise AssertionError("trained again")
    again = carried_out(PLAN, pack, runner.out, never)
    assert standing(again.record)==standing(runner.record) and not again.pending_configs()

@pytest.mark.parametrize("after", [0, 1, 3, 4, 6, 7, 8, 10, 13])
def test_cut_off_anywhere_it_comes_to_the_same(whole, pack, tmp_path, after):
    with pytest.raises(Interrupted): carried_out(PLAN, pack, tmp_path/"out", MadeUp(stop_after=after))
    again = carried_out(PLAN, pack, tmp_path/"out", MadeUp())
    assert standing(again.record)==standing(whole[0].record)
    assert again.record.searches[0].best==whole[0].record.searches[0].best

def test_what_is_read_of_it(whole):
    runner,_ = whole
    study = StudyFolder(runner.out)
    counts = {p.name: dict(p.counts) for p in study_parts(study)}
    assert counts["networks/a"]==dict(stopped=1) and counts["augmentations/none"]=={} # counted where it comes first
    rows = {r.what: (r.status, r.reason) for r in study_status(runner.out).rows}
    assert rows["networks/a"]==("stopped", "others were better after 1 of 4 epochs")
    runs = {r.name: r for r in study.record.runs}
    accs = runs_table(study, scores=False).set_index("name").valid_acc
    assert (accs["a"], accs["b"])==(runs["a"].values[0], study.store.done(runs["b"].run_id)["valid_acc"])
    assert [source_of(study, runs[k]) for k in ("b", "gentle", "final-1")]==["", "", "tuning"]
    assert declared_settings(study, runs["gentle"])|dict(seed=0)== \
        dict(model="custom_cnn", bs=16, epochs=8, lr=.004, policy="gentle", seed=0)

def test_the_mean_over_seeds_decides(pack, tmp_path):
    "One lucky seed is not the better network"
    table = '[[run]]\ngroup = "networks"\nname = "{}"\nlr = {}\nseeds = [1, 2]\n'
    two = [table.format(name, lr) for name,lr in (("a", .1), ("b", .2))]
    last = '[[run]]\ngroup = "last"\nname = "last"\nfrom = "best:networks"\n'
    text = PLAN[:PLAN.index("[[race]]")]+"".join(two)+last
    class Lucky(MadeUp):
        def accs(self, cfg): return [{(.1, 1): .5, (.1, 2): .6, (.2, 1): .7, (.2, 2): .1}[cfg.lr, cfg.seed]]*cfg.epochs
    last = carried_out(text, pack, tmp_path/"out", Lucky()).record.runs[-1]
    assert last.of=="networks/a-1" and last.run_id==StudyRecord.read(tmp_path/"out").runs[0].run_id

def test_a_group_that_failed(pack, tmp_path):
    "What takes from it is skipped, with the reason, down to the last run; a failed run alone isn't chosen"
    runner = carried_out(PLAN, pack, tmp_path/"out", MadeUp(fails=(.001, .002, .003, .004)))
    said = {r.name: (r.status, r.reason) for r in runner.record.runs}
    assert said["a"]==("failed", "The loss became nan.")
    nothing = "no run of networks finished: a: The loss became nan."
    assert said["gentle"]==("skipped", nothing)
    search = runner.record.searches[0]
    assert (search.status, search.best)==("skipped", None) and nothing in search.reason
    assert said["final-1"][0]=="skipped" and nothing in said["final-1"][1]
    assert runner.record.ensembles[0].status=="skipped"
    some = carried_out(PLAN, pack, tmp_path/"some", MadeUp(fails=(.004,)))
    assert {r.of for r in some.record.runs if r.group=="augmentations"}=={"networks/c"}
    healed = carried_out(PLAN, pack, tmp_path/"out", MadeUp())
    assert {r.status for r in healed.record.runs}=={"done", "stopped"}

def test_a_group_that_grows(whole, pack, tmp_path):
    "What takes from it follows the better run; a search goes on with what it began with"
    carried_out(PLAN, pack, tmp_path/"out", MadeUp())
    more = PLAN.replace('[[run]]\ngroup = "augmentations"\nname = "none"',
        '[[run]]\ngroup = "networks"\nname = "e"\nlr = 0.01\n[[run]]\ngroup = "augmentations"\nname = "none"')
    grown = carried_out(more, pack, tmp_path/"out", MadeUp())
    found = {r.name: r for r in grown.record.runs}
    assert found["e"].status==found["b"].status=="done" # whole already, so not stopped
    assert found["gentle"].of=="networks/e" and grown.store.config(found["gentle"].run_id).lr==.01
    points = [[o.point for o in read_journal(journal_path(o.out, "tuning")).trials] for o in (grown, whole[0])]
    assert points[0]==points[1]
    assert found["final-1"].run_id==whole[0].record.find_run("final-1").run_id

class Slow(MadeUp):
    "Calls `late` after so many trainings"
    def __init__(self, n): super().__init__(); self.n = n
    def __call__(self, *args, **kw):
        done = super().__call__(*args, **kw)
        if len(self.calls)==self.n: self.late()
        return done

@pytest.mark.parametrize("n", [1, 5, 7, 8, 10, 12])
def test_what_time_does_not_suffice_for_is_dropped(whole, pack, tmp_path, n):
    "It is named, and trained when there is more time, to the same results"
    fit = Slow(n)
    runner = StudyRunner(parse_plan(PLAN), pack, tmp_path/"out", fit=fit)
    def late(): runner.trainer.until = time.monotonic()-1
    fit.late = late
    with runner._recorded(): runner.run()
    assert len(fit.calls)==n
    record = StudyRecord.read(tmp_path/"out")
    left = [r for r in record.runs if r.status!="done" and r.status!="stopped"]
    assert left and all(r.status=="skipped" and OUT_OF_TIME in r.reason for r in left)
    search, = record.searches
    tried = len(read_journal(journal_path(tmp_path/"out", "tuning")).trials)
    assert search.status==("done" if tried==4 else "skipped") and (OUT_OF_TIME in search.reason)==(tried<4)
    assert bool(search.best)==bool(tried)
    assert not study_status(tmp_path/"out").counts.get("failed")
    assert len(runner.pending_configs())>=len(left)
    again = carried_out(PLAN, pack, tmp_path/"out", MadeUp())
    assert standing(again.record)==standing(whole[0].record)

def test_trials_leave_time_for_the_runs_that_wait_for_them(pack, tmp_path, monkeypatch):
    fit = Slow(9) # the first trial
    runner = StudyRunner(parse_plan(PLAN), pack, tmp_path/"out", fit=fit)
    finals = [r for r in runner.plan.runs if r.source=="search:tuning"]
    monkeypatch.setattr(type(runner.trainer), "expected", lambda self, cfg: 10.)
    monkeypatch.setattr(type(runner.trainer.clock), "pace", lambda self: 1.)
    def late(): runner.trainer.until = time.monotonic()+10*len(finals)+5
    fit.late = late
    with runner._recorded(): runner.run()
    record = runner.record
    assert len(read_journal(journal_path(tmp_path/"out", "tuning")).trials)==1
    assert record.searches[0].status=="skipped" and OUT_OF_TIME in record.searches[0].reason
    assert [record.find_run(r.name).status for r in finals]==["done"]*len(finals)

def test_again_without_more_minutes_changes_nothing(pack, tmp_path, monkeypatch):
    "Seconds that were too few for a final run aren't spent on another trial, after which that run would be another one"
    text = PLAN.replace('name = "chain"', 'name = "chain"\nminutes = 60')
    fit = Slow(9) # the first trial
    runner = StudyRunner(parse_plan(text), pack, tmp_path/"out", fit=fit)
    monkeypatch.setattr(type(runner.trainer), "expected", lambda self, cfg: 10.)
    monkeypatch.setattr(type(runner.trainer.clock), "pace", lambda self: 1.)
    def late(): runner.trainer.until = time.monotonic()+25
    fit.late = late
    with runner._recorded(): runner.run()
    before = standing(runner.record)
    assert OUT_OF_TIME in runner.record.searches[0].reason
    again = carried_out(text, pack, tmp_path/"out", MadeUp())
    assert standing(again.record)==before
    more = carried_out(text.replace("60", "61"), pack, tmp_path/"out", MadeUp())
    assert {r.status for r in more.record.runs}<={"done", "stopped"} and more.record.searches[0].status=="done"

def test_minutes_count_over_all_calls(pack, tmp_path):
    "Also those of a call that was killed: each change of the record counts them"
    text = PLAN.replace('name = "chain"', 'name = "chain"\nminutes = 1e-9')
    runner = carried_out(text, pack, tmp_path/"out", MadeUp())
    assert {r.status for r in runner.record.runs}=={"skipped"} and runner.record.seconds>0
    assert "0 s are left" in runner.record.runs[0].reason
    record = StudyRecord.read(tmp_path/"out")
    record.seconds = 59.
    record.write(tmp_path/"out")
    left = StudyRunner(parse_plan(text.replace("1e-9", "1")), pack, tmp_path/"out", fit=MadeUp()).trainer.until
    assert 0<left-time.monotonic()<=1
    more = carried_out(text.replace("1e-9", "2"), pack, tmp_path/"out", MadeUp())
    assert {r.status for r in more.record.runs}=={"done", "stopped"} and 59<more.record.seconds<120

def test_options_on_a_chain():
    plan = parse_plan(PLAN)
    short = with_options(plan, scale=.5)
    assert [r.settings.get("epochs") for r in short.runs]==[2, 4, 2, 2, None, None, None, None]
    listed = trainings(plan)
    assert [t.kind for t in listed].count("trial")==4 and {t.cfg.model for t in listed}=={"custom_cnn"}
    check_fits(plan, dict(train=36, valid=36, test=36), 32)

@pytest.mark.slow
def test_real_trainings_do_not_depend_on_jobs(pack, tmp_path, monkeypatch):
    "A race, what takes from it and a search on that: the same bits by one process and by two"
    monkeypatch.setattr(page, "write_page", lambda *args: None)
    stores = []
    for jobs in (1, 2):
        run_study(parse_plan(PLAN), pack, tmp_path/f"{jobs}", StudyOptions(jobs=jobs))
        stores.append(RunStore(tmp_path/f"{jobs}"/"runs"))
    records = [StudyRecord.read(tmp_path/f"{jobs}") for jobs in (1, 2)]
    assert standing(records[0])==standing(records[1])
    assert [r.values for r in records[0].runs]==[r.values for r in records[1].runs]
    for rid in stores[0].ids(): assert (stores[0].probs(rid)["probs"]==stores[1].probs(rid)["probs"]).all()
    assert json.dumps(records[0].searches[0].model_dump())==json.dumps(records[1].searches[0].model_dump())

def test_a_search_that_begins_with_the_settings_as_they_are(pack, tmp_path):
    "Its first trial is the training that they come from, which isn't made again"
    text = PLAN.replace("random = 4\n", "start = [{}]\nrandom = 4\n")
    fit = MadeUp()
    record = carried_out(text, pack, tmp_path/"out", fit).record
    journal = read_journal(journal_path(tmp_path/"out", "tuning"))
    first = journal.trials[0]
    assert journal.header.start==[first.point]==[dict(lr=.004)] and len(journal.trials)==5
    whole = [run_id(cfg, pack.digest) for cfg,epochs in fit.calls if epochs==cfg.epochs]
    assert first.run_id==record.find_run("gentle").run_id and whole.count(first.run_id)==1
    assert carried_out(text, pack, tmp_path/"out", MadeUp(stop_after=0)).record.searches[0].trials==5

def test_a_vote_of_those_that_finished(pack, tmp_path):
    "`least` says how many members a vote needs; one that failed isn't among them"
    class Fails(MadeUp):
        def __call__(self, cfg, *args, **kw):
            if cfg.seed==2: raise CinicError("The loss became nan.")
            return super().__call__(cfg, *args, **kw)
    text = PLAN.replace("seeds = [1, 2]", "seeds = [1, 2, 3]").replace('"final-2"]', '"final-2", "final-3"]\nleast = 2')
    study = StudyFolder(carried_out(text, pack, tmp_path/"out", Fails()).out)
    vote = predictions(study)[-1]
    assert (vote.status, vote.members, study.record.ensembles[0].status)==("done", ("final-1", "final-3"), "done")
    assert vote.run_ids==tuple(study.record.find_run(o).run_id for o in vote.members)
    more = carried_out(text.replace("least = 2", "least = 3"), pack, tmp_path/"three", Fails()).record
    assert (more.ensembles[0].status, more.ensembles[0].reason)==("skipped", "without final-2")
