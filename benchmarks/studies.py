"""Trainings of the report's ResNet-18 through `cinic study`, beside as many fits of stock fastai"""
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from .epochs import apart, fit_epochs, plain_model
from .figures import Bench, Row, by_turns, compare_all, seconds
from .peers import fastai_learner
from .processes import run_python

PLAN = """[study]
name = "bench"
[[run]]
group = "seeds"
name = "resnet18"
model = "resnet18"
bs = {bs}
opt = "sgd"
lr = 1e-3
mom = 0.9
precision = "float32"
epochs = {epochs}
seeds = {seeds}
"""

def training_seconds(
    out:Path # A study's folder
)->float: # Between the first file of its first training and the last one of its last
    "What a study's trainings took, side by side as they were; its start and its page left out"
    def written(name): return [f.stat().st_mtime for f in Path(out).glob(f"runs/*/{name}")]
    return max(written("done.json"))-min(written("env.json"))

def our_study(
    b:Bench, # Images
    trainings:int, # Seeds
    epochs:int # Of each
)->float: # Seconds
    "Carry a plan out by the command, with its usual options"
    with tempfile.TemporaryDirectory() as tmp:
        plan, out = Path(tmp, "plan.toml"), Path(tmp, "out")
        plan.write_text(PLAN.format(bs=b.bs, epochs=epochs, seeds=[*range(1, trainings+1)]), encoding="utf-8")
        run_python("-m", "cinic_fastai.cli", "study", str(plan), "--data", str(b.root), "--out", str(out),
            "--limit", str(len(b.pack.rows["train"])), "--device", "cpu")
        return training_seconds(out)

def fastai_fits(
    b:Bench, # Images
    trainings:int, # One after another
    epochs:int # Of each
)->Callable: # Gives seconds, without what comes before a fit
    "Stock fits on all cores"
    def fit_one():
        learn = fastai_learner(b, plain_model(b, "resnet18"))
        return seconds(partial(fit_epochs, learn, epochs))
    return lambda: sum(fit_one() for _ in range(trainings))

def study_rows(
    b:Bench, # Images
    name:str, # Of the row
    trainings:int=8, # Of each side
    n:int=5000, # Images a split
    epochs:int=3 # Of each training
)->list[Row]: # One row
    "A study of trainings beside stock fits"
    b = replace(b, pack=b.pack.limit(min(n, len(b.pack.rows["train"]))))
    with ExitStack() as stack:
        tasks = dict(ours=partial(our_study, b, trainings, epochs))
        tasks["fastai"] = apart(stack, fastai_fits, b, trainings, epochs)
        figures = by_turns(tasks, min(2, b.reps))
    note = f"{trainings} trainings of ResNet-18 in float32, {len(b.pack.rows['train']):,} images, {epochs} epochs"
    return compare_all(name, figures, "s", note)
