"A search against bare scikit-optimize, and against kills."
import json, math, shutil, subprocess, sys, time
import pytest
from hypothesis import given, settings, strategies as st
from skopt import gp_minimize
from skopt.space import Categorical, Integer, Real
from threadpoolctl import threadpool_limits
from cinic_fastai.core import StoreError
from cinic_fastai.files import line_of, read_lines, write_json, write_text
from cinic_fastai.record import Trial, best_trial, read_journal
from cinic_fastai.results.tables.search import best_table
from cinic_fastai.config import pruned_at
from cinic_fastai.plan_file import read_plan
from cinic_fastai.study.search import expected_acc, search
from cinic_fastai.studyfolder import StudyFolder

BS,LR,WD = Integer(5, 9),Real(1e-4, 1e-2, prior="log-uniform"),Real(1e-5, 1e-2, prior="log-uniform")
DROPOUT,MOM,BETA1,BETA2 = Real(0, .2),Real(0, .99),Real(0, .99),Real(0, .99)
BARE = { # written by hand, as in section 4.3.1
    "custom_cnn-sgd": [BS, LR, WD, DROPOUT, MOM], "custom_cnn-adam": [BS, LR, WD, DROPOUT, BETA1, BETA2],
    "resnet18-sgd": [BS, LR, WD, MOM], "resnet18-adam": [BS, LR, WD, BETA1, BETA2]}

def accuracy(point):
    "A smooth stand-in for a training: best at lr 3e-3, batches of 64, all betas and momentum at .8"
    rest = sum((v-.8)**2 for k,v in point.items() if k in ("mom", "beta1", "beta2", "dropout"))
    return .7-(math.log10(point["lr"])+2.5)**2/10-(math.log2(point.get("bs", 64))-6)**2/50-rest/10

def objective(number, point): return dict(valid_acc=accuracy(point))
def points(trials): return [o.point for o in trials]
def same(trials): return [(o.number, o.point, o.valid_acc, o.status) for o in trials]

# The largest and the smallest space are always tried
SEVERAL = [pytest.param(name, marks=pytest.mark.slow if name in ("custom_cnn-sgd", "resnet18-adam") else ())
    for name in BARE]

@pytest.mark.parametrize("name", SEVERAL)
def test_the_points_are_those_of_bare_skopt(name, tmp_path):
    "All four searches of the report, all 14 trials"
    plan = next(o for o in read_plan("report").searches if o.name==name)
    def point(x): return {k: 2**int(v) if k=="bs" else float(v) for k,v in zip(plan.space, x)}
    def error(x): return 1-accuracy(point(x))
    with threadpool_limits(1, user_api="blas"):
        bare = gp_minimize(error, BARE[name], n_calls=14, n_initial_points=4, random_state=plan.seed)
    kw = dict(random=plan.random, guided=plan.guided, seed=plan.seed, strategy=plan.strategy)
    trials = search(plan.space, objective, tmp_path/"j.jsonl", **kw)
    assert points(trials)==[point(x) for x in bare.x_iters]
    assert best_trial(trials).point==point(bare.x)
    assert sum(o.ask_seconds for o in trials)/14<5 # a second a trial on an idle machine

@pytest.mark.filterwarnings("ignore:The objective has been evaluated")
@pytest.mark.parametrize("spec,dims", [(dict(a=[-1, 1]), [Real(-1, 1)]), (dict(a={"int": [1, 3]}), [Integer(1, 3)]),
    (dict(a={"choices": ["x", "y", "z"]}, b={"choices": [False, True]}),
        [Categorical(["x", "y", "z"]), Categorical([False, True])]),
    (dict(a={"choices": [16, 32]}, b={"log2": [0, 1]}), [Categorical([16, 32]), Integer(0, 1)])])
def test_small_and_discrete_spaces(spec, dims, tmp_path):
    "Also where points come up again"
    def value(xs): return sum(len(str(o)) for o in xs)/20
    powers = [k for k,v in spec.items() if "log2" in v]
    def back(p): return [v.bit_length()-1 if k in powers else v for k,v in p.items()]
    def error(x): return 1-value([o.item() if hasattr(o, "item") else o for o in x])
    with threadpool_limits(1, user_api="blas"):
        bare = gp_minimize(error, dims, n_calls=7, n_initial_points=3, random_state=1)
    def objective(number, p): return dict(valid_acc=value(back(p)))
    trials = search(spec, objective, tmp_path/"j.jsonl", random=3, guided=4, seed=1)
    assert [back(p) for p in points(trials)]==[list(x) for x in bare.x_iters]
    assert {type(v).__module__ for p in points(trials) for v in p.values()}=={"builtins"}

SPACE = read_plan("report").searches[3].space

def by_epochs(number, point, min_accs=None):
    "A trial of four epochs, which may be stopped"
    accs = [accuracy(point)*(1-.5**n) for n in (1, 2, 3, 4)]
    n = pruned_at(accs, min_accs or {})
    return dict(valid_acc=max(accs[:n or 4]), accs=accs[:n or 4], status="stopped" if n else "done")

@pytest.mark.parametrize("kw", [{},
    dict(batch=3, rungs=[1, 2], factor=2, start=[dict(bs=64, lr=1e-3, wd=1e-4, beta1=.9, beta2=.9)])])
def test_interrupted_before_every_single_trial(tmp_path, kw):
    "One trial a session, as if someone pressed Ctrl-C before each; in the middle of a batch, too"
    whole = search(SPACE, by_epochs, tmp_path/"whole.jsonl", random=3, guided=3, seed=5, **kw)
    assert len(whole)==6+len(kw.get("start", ())) and (not kw or {o.status for o in whole}=={"done", "stopped"})
    for n in range(len(whole)+1):
        def once(number, point, **kw):
            if number>n: raise KeyboardInterrupt
            assert number==n # what is in the journal isn't tried again
            return by_epochs(number, point, **kw)
        try: trials = search(SPACE, once, tmp_path/"cut.jsonl", random=3, guided=3, seed=5, **kw)
        except KeyboardInterrupt: assert len(read_journal(tmp_path/"cut.jsonl").trials)==n+1
    assert same(trials)==same(whole)==same(read_journal(tmp_path/"cut.jsonl").trials)
    assert best_trial(whole).valid_acc==max(o.valid_acc for o in whole if o.status=="done")

SESSION = """
import sys, time
from pathlib import Path
from test_search import SPACE, objective, search
def slow(number, point):
    time.sleep(.2)
    return objective(number, point)
search(SPACE, slow, Path(sys.argv[1]), random=3, guided=3, seed=5)
"""

def test_killed_and_continued_from_a_copy(tmp_path):
    "SIGKILL from outside, whatever the process is doing; then the folder is copied and the search continued there"
    whole = search(SPACE, objective, tmp_path/"whole.jsonl", random=3, guided=3, seed=5)
    here,there = tmp_path/"here"/"j.jsonl",tmp_path/"there"
    for lines in (2, 5):
        p = subprocess.Popen([sys.executable, "-c", SESSION, str(here)],
            cwd=__file__.rpartition("test_search.py")[0] or ".")
        until = time.monotonic()+120
        while not here.exists() or here.read_bytes().count(b"\n")<lines:
            assert p.poll() is None and time.monotonic()<until
            time.sleep(.01)
        p.kill()
        p.wait()
        assert lines-1<=len(read_journal(here).trials)<6
    shutil.copytree(here.parent, there)
    assert same(search(SPACE, objective, there/"j.jsonl", random=3, guided=3, seed=5))==same(whole)

@pytest.mark.parametrize("strategy", ["random", pytest.param("gp", marks=pytest.mark.slow)])
def test_a_hundred_trials(tmp_path, strategy):
    "A long journal, continued in the middle"
    kw = dict(random=40, guided=60, strategy=strategy)
    trials = search(SPACE, objective, tmp_path/"j.jsonl", **kw)
    f = tmp_path/"half.jsonl"
    f.write_bytes(b"".join((tmp_path/"j.jsonl").read_bytes().splitlines(keepends=True)[:51])+b'{"number": 50, "poi')
    assert same(search(SPACE, objective, f, **kw))==same(trials) and len(trials)==100

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4))
keys = st.sampled_from(["number", "point", "valid_acc", "status", "space"])
values = st.recursive(scalars, lambda o: st.one_of(st.lists(o, max_size=3), st.dictionaries(keys, o, max_size=5)),
    max_leaves=8)
def sealed(entry): return line_of(entry).encode()[:-1]
lines = st.one_of(
    st.binary(max_size=20),
    values.map(lambda o: json.dumps(o).encode()),
    values.map(lambda o: sealed(dict(o=o))),
    st.just(sealed(dict(space={}))),
    st.integers(0, 2).map(lambda i: sealed(dict(number=i, point={}, status="done", valid_acc=.5))),
    st.just(b"["*100000))

@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(lines, max_size=5), st.booleans())
def test_any_file_is_read_or_named(parts, whole):
    import tempfile, pathlib
    with tempfile.TemporaryDirectory() as d:
        f = pathlib.Path(d)/"j.jsonl"
        f.write_bytes(b"\n".join(parts)+b"\n"*whole)
        try: journal = read_journal(f)
        except StoreError as e: assert "damaged in line" in str(e)
        else:
            assert [o.number for o in journal.trials]==list(range(len(journal.trials)))
            assert journal.header or not journal.trials

def finished(number, run_id, acc, loss=None, **kw):
    known = dict(number=number, run_id=run_id, status="done", valid_acc=acc, valid_loss=loss, point=dict(x=number))
    return Trial(**known|kw)

@pytest.mark.parametrize("trials,winner,runner_up", [
    # A point that came up twice, as journals without a loss have it
    ([finished(0, "A", .9), finished(1, "B", .9), finished(2, "A", .9)], "A", "B"),
    # Equal hits: the lower loss
    ([finished(0, "A", .9, .5), finished(1, "B", .9, .4), finished(2, "A", .9, .5)], "B", "A"),
    # Equal losses: the earlier trial
    ([finished(0, "A", .9, .4), finished(1, "B", .9, .4), finished(2, "C", .8, .1)], "A", "B"),
    ([finished(0, "A", .9, .4), finished(1, "B", 1., 9.), finished(2, "C", .99, .1, status="stopped")], "B", "A"),
    # A loss that is not finite
    ([finished(0, "A", .9, None), finished(1, "B", .9, .7)], "B", "A")])
def test_one_winner_everywhere(trials, winner, runner_up, tmp_path):
    "In the search, its repeats, its control, the record and the tables"
    from cinic_fastai.study.search import repeat_points
    assert best_trial(trials).run_id==winner
    assert [(of, o.run_id) for of,o in repeat_points(trials, [])]==[("winner", winner), ("runner-up", runner_up)]
    others = [o.model_copy(update=dict(run_id=f"{o.run_id}2")) for o in trials]
    assert repeat_points(trials, others)[2][1].run_id==f"{winner}2"
    lines = [dict(space={}), *(o.model_dump() for o in trials)]
    write_text(tmp_path/"searches"/"s.jsonl", "".join(map(line_of, lines)))
    data = dict(name="", digest="", classes=[], counts={})
    write_json(tmp_path/"study.json", dict(name="", data=data, searches=[dict(name="s", trials=3, status="done")]))
    assert best_table(StudyFolder(tmp_path))["run_id"].tolist()==[winner]

def epochs(*accs, status="done"): return Trial(number=0, point={}, status=status, accs=list(accs), valid_acc=max(accs))

def test_a_stopped_trial_is_told_with_what_others_gained():
    "By hand: after two epochs the finished trials gained .25, .05 and .10, the median is .10"
    before = [epochs(.2, .25, .5), epochs(.3, .5, .55), epochs(.3, .4, .5), epochs(.1, .2, status="stopped"),
        Trial(number=4, point={}, status="failed", accs=[])]
    def told(*accs, before=before): return expected_acc(epochs(*accs, status="stopped"), before)
    assert told(.1, .3)==pytest.approx(.4)
    assert told(.3, .1)==pytest.approx(.4) # the best so far counts
    assert told(.1)==pytest.approx(.1+.25) # after one epoch it was .3, .25 and .2
    assert told(.5, .52)==pytest.approx(.55) # never above the best that was seen
    assert told(.1, .3, before=[])==.3
    last = [epochs(.2, .6, .4).model_copy(update=dict(valid_acc=.4))] # weights of the last epoch
    assert told(.1, .2, before=last)==pytest.approx(.2-.2)

def test_the_strategy_hears_it(tmp_path, monkeypatch):
    "Point for point as bare `gp_minimize` with the corrected values; the journal says what was told"
    trials = search(SPACE, by_epochs, tmp_path/"j.jsonl", random=3, guided=4, seed=5, rungs=[1, 2], factor=2)
    stopped = [o for o in trials if o.status=="stopped"]
    assert stopped and all(o.told>o.valid_acc for o in stopped)
    assert all(o.told==o.valid_acc for o in trials if o.status=="done")
    heard = iter(trials)
    dims = [BS, LR, WD, BETA1, BETA2]
    def error(x): return 1-next(heard).told
    with threadpool_limits(1, user_api="blas"):
        bare = gp_minimize(error, dims, n_calls=7, n_initial_points=3, random_state=5)
    assert points(trials)==[{k: 2**int(v) if k=="bs" else float(v) for k,v in zip(SPACE, x)} for x in bare.x_iters]

@pytest.mark.parametrize("error,again", [
    (MemoryError("out of memory"), True),
    (MemoryError(), True),
    (RuntimeError("CUDA out of memory. Tried to allocate"), True),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
    # On Windows
    (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
    (Exception("3 workers were lost with this run (SIGKILL), most likely for want of memory."), True),
    (Exception("3 workers were lost with this run (SIGABRT), as its network a ends the process it works in."), False),
    (Exception("The network a ended its process (SIGKILL). Most likely it wants more memory than there is."), True),
    (RuntimeError("The training loss became nan in epoch 1."), False), (ZeroDivisionError("division"), False)])
@pytest.mark.parametrize("kw", [dict(strategy="random"), dict(batch=2, rungs=[1], strategy="random")])
def test_what_failed_for_want_of_memory_is_tried_again(tmp_path, error, again, kw):
    "Once each time a search is run, whether it was finished or not; what diverged is a result"
    whole,calls,broken = search(SPACE, by_epochs, tmp_path/"whole.jsonl", random=3, guided=2, **kw),[],True
    def objective(number, point, min_accs=None):
        calls.append(number)
        if broken and number in (1, 3): raise error
        if broken and number==stop: raise KeyboardInterrupt
        return by_epochs(number, point, min_accs)
    for stop in (4, None): # cut off, then to its end
        try: search(SPACE, objective, tmp_path/"j.jsonl", random=3, guided=2, **kw)
        except KeyboardInterrupt: pass
    assert calls==([0, 1, 2, 3, 4]+[1, 3]*again+[4])
    failed = [o.number for o in read_journal(tmp_path/"j.jsonl").trials if o.status=="failed"]
    assert failed==[1, 3]
    calls,broken = [],False
    trials = search(SPACE, objective, tmp_path/"j.jsonl", random=3, guided=2, **kw)
    assert calls==[1, 3]*again and trials==read_journal(tmp_path/"j.jsonl").trials
    assert [o.status=="failed" for o in trials]==[not again and o.number in (1, 3) for o in trials]
    if again and "rungs" not in kw: assert same(trials)==same(whole)
    calls.clear()
    assert search(SPACE, objective, tmp_path/"j.jsonl", random=3, guided=2, **kw)==trials and calls==[]

def test_points_after_one_that_was_tried_again(tmp_path):
    "They stay where the journal has them, nothing is said of other machines, and those to come know the truth"
    calls,notes,broken = [],[],True
    def objective(number, point):
        calls.append(number)
        if broken and number==1: raise MemoryError
        if number==stop: raise KeyboardInterrupt
        return dict(valid_acc=accuracy(point))
    def hear(kind, **info): notes.extend([info["text"]] if kind=="note" else [])
    def searched(): return search(SPACE, objective, tmp_path/"j.jsonl", random=2, guided=3, on_event=hear)
    stop = 3
    with pytest.raises(KeyboardInterrupt): searched()
    before,broken,stop = points(read_journal(tmp_path/"j.jsonl").trials),False,4
    with pytest.raises(KeyboardInterrupt): searched()
    shutil.copy(tmp_path/"j.jsonl", tmp_path/"copy.jsonl")
    stop = None
    trials = searched()
    assert points(trials)[:3]==before and trials[1].told==accuracy(trials[1].point)
    assert calls==[0, 1, 2, 3, 1, 3, 4, 4] and notes==[]
    from_copy = search(SPACE, objective, tmp_path/"copy.jsonl", random=2, guided=3)
    assert same(from_copy)==same(trials) # going on from any place gives the same

def test_a_journal_from_before_goes_on(tmp_path):
    "Without `told` and `valid_loss`, which it didn't have"
    whole = search(SPACE, objective, tmp_path/"whole.jsonl", random=2, guided=2, seed=5)
    (header,*old),_ = read_lines(tmp_path/"whole.jsonl")
    lines = [header, *({k: v for k,v in o.items() if k!="told"} for o in old[:3])]
    write_text(tmp_path/"old.jsonl", "".join(map(line_of, lines)))
    assert same(search(SPACE, objective, tmp_path/"old.jsonl", random=2, guided=2, seed=5))==same(whole)

def test_the_page_learns_from_what_the_search_was_told():
    "Not from a stopped trial's accuracy as if it were final"
    from cinic_fastai.results.surrogate import surrogate
    trials = [finished(i, str(i), .1*i, point=dict(lr=.1*i), told=.2+.1*i) for i in range(1, 4)]
    trials.append(finished(4, "4", None, point=dict(lr=.9), status="failed", told=.125))
    trials.append(finished(5, "5", .5, point=dict(lr=.5))) # as journals were before
    heard = surrogate(dict(lr=[0, 1]), trials, chance=.1).func_vals
    assert heard.tolist()==pytest.approx([.7, .6, .5, .875, .5])
