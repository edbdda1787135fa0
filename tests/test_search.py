"A search against bare scikit-optimize, and against kills."
import json, math, shutil, subprocess, sys, time
import pytest
from hypothesis import given, settings, strategies as st
from skopt import gp_minimize
from skopt.space import Categorical, Integer, Real
from threadpoolctl import threadpool_limits
from cinic_fastai.core import StoreError
from cinic_fastai.files import line_of
from cinic_fastai.runs import fallen
from cinic_fastai.study.plan import read_plan
from cinic_fastai.study.search import best_trial, read_journal, search

BS,LR,WD = Integer(5, 9),Real(1e-4, 1e-2, prior="log-uniform"),Real(1e-5, 1e-2, prior="log-uniform")
DROPOUT,MOM,BETA1,BETA2 = Real(0, .2),Real(0, .99),Real(0, .99),Real(0, .99)
BARE = {"custom_cnn-sgd": [BS, LR, WD, DROPOUT, MOM], "custom_cnn-adam": [BS, LR, WD, DROPOUT, BETA1, BETA2], # written by hand, as in section 4.3.1
    "resnet18-sgd": [BS, LR, WD, MOM], "resnet18-adam": [BS, LR, WD, BETA1, BETA2]}

def accuracy(point):
    "A smooth stand-in for a training: best at lr 3e-3, batches of 64, all betas and momentum at .8"
    rest = sum((v-.8)**2 for k,v in point.items() if k in ("mom", "beta1", "beta2", "dropout"))
    return .7-(math.log10(point["lr"])+2.5)**2/10-(math.log2(point.get("bs", 64))-6)**2/50-rest/10

def objective(number, point): return dict(valid_acc=accuracy(point))
def points(trials): return [o["point"] for o in trials]
def same(trials): return [(o["number"], o["point"], o["valid_acc"], o["status"]) for o in trials]

SEVERAL = [pytest.param(name, marks=pytest.mark.slow if name in ("custom_cnn-sgd", "resnet18-adam") else ()) for name in BARE] # the largest and the smallest space are always tried

@pytest.mark.parametrize("name", SEVERAL)
def test_the_points_are_those_of_bare_skopt(name, tmp_path):
    "All four searches of the report, all 14 trials"
    plan = next(o for o in read_plan("report").searches if o.name==name)
    def point(x): return {k: 2**int(v) if k=="bs" else float(v) for k,v in zip(plan.space, x)}
    def error(x): return 1-accuracy(point(x))
    with threadpool_limits(1, user_api="blas"): bare = gp_minimize(error, BARE[name], n_calls=14, n_initial_points=4, random_state=plan.seed)
    trials = search(plan.space, objective, tmp_path/"j.jsonl", plan.random, plan.guided, plan.seed, plan.strategy)
    assert points(trials)==[point(x) for x in bare.x_iters]
    assert best_trial(trials)["point"]==point(bare.x)
    assert sum(o["ask_seconds"] for o in trials)/14<5 # a second a trial on an idle machine

@pytest.mark.filterwarnings("ignore:The objective has been evaluated")
@pytest.mark.parametrize("spec,dims", [(dict(a=[-1, 1]), [Real(-1, 1)]), (dict(a={"int": [1, 3]}), [Integer(1, 3)]),
    (dict(a={"choices": ["x", "y", "z"]}, b={"choices": [False, True]}), [Categorical(["x", "y", "z"]), Categorical([False, True])]),
    (dict(a={"choices": [16, 32]}, b={"log2": [0, 1]}), [Categorical([16, 32]), Integer(0, 1)])])
def test_small_and_discrete_spaces(spec, dims, tmp_path):
    "Also where points come up again"
    def value(xs): return sum(len(str(o)) for o in xs)/20
    powers = [k for k,v in spec.items() if "log2" in v]
    def back(p): return [v.bit_length()-1 if k in powers else v for k,v in p.items()]
    def error(x): return 1-value([o.item() if hasattr(o, "item") else o for o in x])
    with threadpool_limits(1, user_api="blas"): bare = gp_minimize(error, dims, n_calls=7, n_initial_points=3, random_state=1)
    trials = search(spec, lambda number, p: dict(valid_acc=value(back(p))), tmp_path/"j.jsonl", 3, 4, seed=1)
    assert [back(p) for p in points(trials)]==[list(x) for x in bare.x_iters]
    assert {type(v).__module__ for p in points(trials) for v in p.values()}=={"builtins"}

SPACE = read_plan("report").searches[3].space

def by_epochs(number, point, bars=None):
    "A trial of four epochs, which a bar may stop"
    accs = [accuracy(point)*(1-.5**n) for n in (1, 2, 3, 4)]
    n = fallen(accs, bars or {})
    return dict(valid_acc=max(accs[:n or 4]), accs=accs[:n or 4], status="stopped" if n else "done")

@pytest.mark.parametrize("kw", [{}, dict(batch=3, rungs=[1, 2], factor=2, start=[dict(bs=64, lr=1e-3, wd=1e-4, beta1=.9, beta2=.9)])])
def test_interrupted_before_every_single_trial(tmp_path, kw):
    "One trial a session, as if someone pressed Ctrl-C before each; in the middle of a batch, too"
    whole = search(SPACE, by_epochs, tmp_path/"whole.jsonl", 3, 3, seed=5, **kw)
    assert len(whole)==6+len(kw.get("start", ())) and (not kw or {o["status"] for o in whole}=={"done", "stopped"})
    for n in range(len(whole)+1):
        def once(number, point, **bars):
            if number>n: raise KeyboardInterrupt
            assert number==n # what is in the journal isn't tried again
            return by_epochs(number, point, **bars)
        try: trials = search(SPACE, once, tmp_path/"cut.jsonl", 3, 3, seed=5, **kw)
        except KeyboardInterrupt: assert len(read_journal(tmp_path/"cut.jsonl")[1])==n+1
    assert same(trials)==same(whole)==same(read_journal(tmp_path/"cut.jsonl")[1])
    assert best_trial(whole)["valid_acc"]==max(o["valid_acc"] for o in whole if o["status"]=="done")

SESSION = """
import sys, time
from pathlib import Path
from test_search import SPACE, objective, search
def slow(number, point):
    time.sleep(.2)
    return objective(number, point)
search(SPACE, slow, Path(sys.argv[1]), 3, 3, seed=5)
"""

def test_killed_and_continued_from_a_copy(tmp_path):
    "SIGKILL from outside, whatever the process is doing; then the folder is copied and the search continued there"
    whole = search(SPACE, objective, tmp_path/"whole.jsonl", 3, 3, seed=5)
    here,there = tmp_path/"here"/"j.jsonl",tmp_path/"there"
    for lines in (2, 5):
        p = subprocess.Popen([sys.executable, "-c", SESSION, str(here)], cwd=__file__.rpartition("test_search.py")[0] or ".")
        until = time.monotonic()+120
        while not here.exists() or here.read_bytes().count(b"\n")<lines:
            assert p.poll() is None and time.monotonic()<until
            time.sleep(.01)
        p.kill()
        p.wait()
        assert lines-1<=len(read_journal(here)[1])<6
    shutil.copytree(here.parent, there)
    assert same(search(SPACE, objective, there/"j.jsonl", 3, 3, seed=5))==same(whole)

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
values = st.recursive(scalars, lambda o: st.one_of(st.lists(o, max_size=3), st.dictionaries(keys, o, max_size=5)), max_leaves=8)
def sealed(entry): return line_of(entry).encode()[:-1]
lines = st.one_of(st.binary(max_size=20), values.map(lambda o: json.dumps(o).encode()), values.map(lambda o: sealed(dict(o=o))), st.just(sealed(dict(space={}))),
    st.integers(0, 2).map(lambda i: sealed(dict(number=i, point={}, status="done", valid_acc=.5))), st.just(b"["*100000))

@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(lines, max_size=5), st.booleans())
def test_any_file_is_read_or_named(parts, whole):
    import tempfile, pathlib
    with tempfile.TemporaryDirectory() as d:
        f = pathlib.Path(d)/"j.jsonl"
        f.write_bytes(b"\n".join(parts)+b"\n"*whole)
        try: header,trials = read_journal(f)
        except StoreError as e: assert "damaged in line" in str(e)
        else: assert [o["number"] for o in trials]==list(range(len(trials))) and isinstance(header, dict)
