"A study says what would settle what is open, and does it; folds test every image once; two studies are compared."
import json, shutil
from types import SimpleNamespace
import numpy as np
import pytest
from cinic_fastai.record import StudyRecord
from cinic_fastai.results.tables.study import claims_table
from cinic_fastai.studyfolder import StudyFolder
from conftest import cinic, no_figures

PLAN = """
[study]
name = "open"
[defaults]
model = "custom_cnn"
bs = 16
epochs = 1
[[run]]
group = "rates"
name = "slow"
lr = 1e-3
seeds = [1, 2]
[[run]]
group = "rates"
name = "quick"
lr = 1e-2
seeds = [1, 2]
[[run]]
group = "folds"
name = "tested"
folds = 3
"""

def carry_out(*words): # A command that ends well
    done = cinic(*words, before=no_figures)
    assert done.returncode==0, done.stdout+done.stderr
    return done

def seeds(out):
    "Seeds of the finished runs by setting"
    runs = [r for r in StudyRecord.read(out).runs if r.status=="done" and r.group=="rates"]
    return {k: sorted(int(r.name.rsplit("-")[1]) for r in runs if r.name.startswith(k)) for k in ("slow", "quick")}

@pytest.fixture(scope="module")
def made(images, tmp_path_factory):
    "A finished study and its plan"
    folder = tmp_path_factory.mktemp("open")
    plan = folder/"open.toml"
    plan.write_text(PLAN)
    carry_out("study", plan, "--data", images, "--out", folder/"out")
    return SimpleNamespace(plan=plan, out=folder/"out")

@pytest.fixture(scope="module")
def settled(made, tmp_path_factory):
    "The same after `cinic settle`, and what that printed"
    claim, = claims_table(StudyFolder(made.out)).itertuples()
    assert claim.claim in ("neither", "unknown") and claim.seeds_needed==3
    assert seeds(made.out)==dict(slow=[1, 2], quick=[1, 2])
    out = tmp_path_factory.mktemp("settled")/"out"
    shutil.copytree(made.out, out)
    return SimpleNamespace(out=out, said=carry_out("settle", out, "--minutes", 5).stderr)

def test_settle_trains_the_seeds_that_it_says(made, settled, images):
    out = settled.out
    assert "rates/slow: 1 more" in settled.said and seeds(out)==dict(slow=[1, 2, 3], quick=[1, 2, 3])
    before = {f: f.stat().st_mtime_ns for f in out.glob("runs/*/done.json")}
    carry_out("study", made.plan, "--data", images, "--out", out) # takes up what was settled with its plan
    assert {f: f.stat().st_mtime_ns for f in out.glob("runs/*/done.json")}==before
    assert StudyRecord.read(out).looked==[7, 9]

def test_settle_goes_on_with_what_was_left(settled, tmp_path):
    out = tmp_path/"out"
    shutil.copytree(settled.out, out)
    record = StudyRecord.read(out)
    last = record.find_run("rates/quick-3")
    last.status = "left"
    record.write(out)
    shutil.rmtree(out/"runs"/last.run_id)
    said = carry_out("settle", out, "--minutes", 5).stderr
    assert "Goes on with 1 that were left" in said and seeds(out)==dict(slow=[1, 2, 3], quick=[1, 2, 3])

def test_settle_says_where_there_is_nothing_to_settle(made, tmp_path):
    shutil.copytree(made.out, tmp_path/"out", ignore=shutil.ignore_patterns("runs"))
    done = cinic("settle", tmp_path/"out", "--minutes", 5)
    assert done.returncode==2 and "can be settled" in done.stderr and "Traceback" not in done.stderr

def test_each_image_is_tested_in_one_fold(made):
    study = StudyFolder(made.out)
    folds = [r for r in study.record.runs if r.group=="folds"]
    assert [r.name for r in folds]==["tested.1", "tested.2", "tested.3"]
    counts = study.data.counts
    targs = [study.store.probs(r.run_id, "test")["targs"] for r in folds]
    assert sum(map(len, targs))==counts["train"]+counts["test"]
    each = np.array([np.bincount(o, minlength=len(study.data.classes)) for o in targs])
    assert (each.max(0)-each.min(0)).max()<=1 # classes are shared out evenly

def test_doctor_and_compare(made, settled):
    rows = json.loads(carry_out("doctor", made.out, "--json").stdout)
    assert {"code", "severity", "line", "cure", "link"}<=rows[0].keys() if rows else True
    assert "CIN001" not in carry_out("doctor", made.out).stdout # two seeds each
    found = json.loads(carry_out("compare", made.out, settled.out, "--json").stdout)
    assert {"chosen", "rates/slow", "rates/quick", "folds/tested"}=={o["group"] for o in found}
    assert "difference" in carry_out("compare", made.out, settled.out).stdout

def test_compare_refuses_other_images(made, example):
    done = cinic("compare", made.out, example)
    assert done.returncode==2 and "has other images" in done.stderr and "Traceback" not in done.stderr
    assert cinic("compare", made.out).returncode!=0

@pytest.mark.parametrize("words,said", [("folds = 1", "fold"), ("folds = 3\nfold = 4", "fold"), ("folds = 4", "")])
def test_folds_that_make_no_sense(words, said, images, tmp_path):
    plan = tmp_path/"p.toml"
    plan.write_text(PLAN.replace("folds = 3", words))
    done = cinic("plan", "check", plan)
    assert (done.returncode!=0)==bool(said) and said in done.stdout+done.stderr
