"""The net under a rebuilding: run ids, points of searches, tables and pictures as they were, frozen in `tests/net`

    python tools/net.py              # what differs from what is frozen, pictures included
    python tools/net.py --freeze     # freeze it anew: only after the differences were read, and said in the commit

Ids, points and tables are a test, too (`tests/test_net.py`). Pictures' bytes move with matplotlib and its fonts, so
they are compared here alone, beside the environment that drew them.
"""
import argparse, io, json, platform, sys, tempfile, zipfile
from importlib.metadata import version
from pathlib import Path
import numpy as np, pandas as pd

NET = Path(__file__).resolve().parents[1]/"tests"/"net"
VERSIONS = ("matplotlib", "numpy", "pandas", "scikit-learn", "scikit-optimize", "scipy")

def environment():
    "What pictures and a surrogate's points depend on"
    from torch.backends.cpu import get_cpu_capability
    here = {"python": platform.python_version(), "machine": platform.machine(), "processor": get_cpu_capability()}
    return here|{k: version(k) for k in VERSIONS}

def random_configs(n=200):
    "Configurations that differ from the defaults in many ways, as plain values"
    from cinic_fastai.config import config_fields
    rng = np.random.default_rng(0)
    choices = dict(model=["custom_cnn", "resnet18", "resnet18.tv_in1k", "speednet"], stem=["imagenet", "small"],
        policy=["none", "simple", "advanced", "combined-gentle"], opt=["sgd", "adam", "rmsprop"],
        mix_per=["image", "batch"],
        flip=["none", "random", "alternating"], tta=["none", "flip", "flip-shift"], interp=["bilinear", "nearest"],
        schedule=["constant", "one-cycle", "triangle"], precision=["auto", "float32", "bf16"], select=["best", "last"])
    apart = ("weights train_on nesterov bias_lr muon hard sizes tta_share validate "
        "class_weights sampling metric head folds fold").split() # need others, or came later
    varied = {k: f for k,f in config_fields.items() if k not in apart}
    def value(k, f):
        if k in choices: return str(rng.choice(choices[k]))
        kind = type(f.default)
        if kind is bool: return bool(rng.integers(2))
        return int(rng.integers(1, 64)) if kind is int else float(np.round(rng.uniform(.01, .9), 4))
    out = []
    for _ in range(n):
        d = {k: value(k, f) for k,f in varied.items() if rng.random()<.3}
        d["epochs"] = int(rng.integers(1, 30))+d.get("frozen_epochs", 0)
        out.append(d)
    return out

def ids():
    "Run ids by what is trained: runs of the shipped plans, and configurations drawn at random"
    from cinic_fastai.config import make_config, run_id
    from cinic_fastai.plan_file import read_plan
    from cinic_fastai.study.expand import run_config, trial_config
    out = {}
    for name in ("demo", "fast", "modern", "report", "thorough"):
        plan = read_plan(name)
        out |= {f"{name}: {r.group}/{r.name}": run_id(run_config(plan, r), "images") for r in plan.runs if not r.source}
        out |= {f"{name}: search {s.name}": run_id(trial_config(s, {}), "images") for s in plan.searches}
    return out|{json.dumps(d, sort_keys=True): run_id(make_config(d), "images") for d in random_configs()}

SPACE = dict(bs={"log2": [4,8]}, lr={"log": [1e-4,1e-1]}, mom=[0,.99], opt={"choices": ["sgd", "adam"]},
    frozen_epochs={"int": [0,5]})
SEARCHES = dict(
    gp=dict(random=3, guided=4), batch=dict(random=2, guided=4, batch=2),
    rungs=dict(random=4, guided=2, rungs=[1], factor=2),
    random=dict(random=3, guided=3, strategy="random"), grid=dict(random=4, guided=8, strategy="grid"),
    start=dict(random=2, guided=2, start=[dict(bs=32, lr=.01, mom=.5, opt="adam", frozen_epochs=1)]))

def accuracy_of(point):
    "A made-up accuracy, best near a rate of 0.003 and batches of 64"
    rate, size = (np.log10(point["lr"])+2.5)**2, abs(np.log2(point["bs"])-6)
    return .6-.05*rate-.01*size+.02*(point["opt"]=="adam")-.01*point["frozen_epochs"]

def objective(number, point, min_accs=None):
    "A trial of two epochs; the third fails"
    acc = accuracy_of(point)
    if number==2: return dict(status="failed", cause="made up", valid_acc=None, accs=[])
    if min_accs and acc*.8<min_accs.get(1, 0): return dict(status="stopped", valid_acc=acc*.8, accs=[acc*.8])
    return dict(valid_acc=acc, accs=[acc*.8, acc])

def points():
    "Points of the trials of several searches of the made-up objective"
    from cinic_fastai.study.search import search
    def trials(name, kw): return search(SPACE, objective, Path(d)/f"{name}.jsonl", seed=7, chance=.1, **kw)
    with tempfile.TemporaryDirectory() as d:
        return {name: [t.point for t in trials(name, kw)] for name,kw in SEARCHES.items()}

def study_folder(dest):
    "Unpack the frozen study, which the version before the rebuilding wrote"
    with zipfile.ZipFile(NET/"study.zip") as z: z.extractall(dest)
    return Path(dest)

def tables(study):
    "The CSV files of a study's tables by name"
    from cinic_fastai.results.surrogate import surrogate_tables
    from cinic_fastai.results.tables.study import all_tables
    from cinic_fastai.studyfolder import StudyFolder
    study = StudyFolder(study)
    return {k: df.to_csv(index=False) for k,df in (all_tables(study)|surrogate_tables(study)).items()}

def table_error(name, there, here):
    "What two CSV texts of a table say differently, \"\" where nothing but the last digits, or columns that came later"
    rtol = 1e-6 if name in ("dependence", "importance") else 1e-9 # a surrogate's digits depend on the processor
    a,b = (pd.read_csv(io.StringIO(o)) if o.strip() else pd.DataFrame() for o in (there, here))
    b = b[[k for k in b if k in a]]
    try: pd.testing.assert_frame_equal(a, b, rtol=rtol, atol=rtol/10)
    except AssertionError as e: return str(e)
    return ""

def pictures():
    "SHA256SUMS of the example study's page"
    from cinic_fastai.report.render import write_page
    from cinic_fastai.example import example_study
    with tempfile.TemporaryDirectory() as d:
        write_page(example_study(Path(d)/"out", images=200))
        return (Path(d)/"out"/"SHA256SUMS").read_text()

def frozen(name): return (NET/name).read_text(encoding="utf-8")

def main(freeze):
    "Compare everything, or freeze it"
    with tempfile.TemporaryDirectory() as d: found = {f"tables/{k}.csv": t for k,t in tables(study_folder(d)).items()}
    plain = dict(ids=ids(), points=points(), environment=environment())
    found |= {f"{n}.json": json.dumps(o, indent=0)+"\n" for n,o in plain.items()}
    found["SHA256SUMS"] = pictures()
    differ = [k for k,text in found.items() if not (NET/k).exists() or frozen(k)!=text]
    for k,text in found.items() if freeze else []:
        (NET/k).parent.mkdir(parents=True, exist_ok=True)
        (NET/k).write_text(text, encoding="utf-8")
    print(f"{'Frozen' if freeze else 'Different'}: {', '.join(differ) or 'nothing'}")
    sys.exit(bool(differ) and not freeze)

if __name__=="__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--freeze", action="store_true", help="write what is found, instead of comparing it")
    main(p.parse_args().freeze)
