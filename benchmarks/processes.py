"""Whole processes beside each other: memory of a training, time of an import, trainings side by side"""
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
import psutil
from cinic_fastai.core import usable_cores
from .figures import Bench, Row, by_turns, compare_all, seconds

PYTHON = [sys.executable, "-W", "ignore"]

def tree_memory(
    process:psutil.Process # The first one
)->float: # MB; 0 when it has ended
    "Proportional set size of a process and all that it started; USS, each one's own, where the system has no PSS"
    total = 0
    for p in [process, *process.children(recursive=True)]:
        try: info = p.memory_full_info()
        except psutil.Error: continue
        total += getattr(info, "pss", info.uss)
    return total/1e6

def peak_memory(
    args:list[str] # Of Python
)->float: # MB
    "Run Python in a process of its own and watch its memory"
    p, peak = subprocess.Popen([*PYTHON, *args], cwd=Path(__file__).parents[1]), 0.
    while p.poll() is None:
        try: peak = max(peak, tree_memory(psutil.Process(p.pid)))
        except psutil.NoSuchProcess: pass
        time.sleep(.02)
    if p.returncode: raise subprocess.CalledProcessError(p.returncode, "training in a process of its own")
    return peak

def memory_rows(
    b:Bench, # Images
    name:str, # Of the row
    n:int=2000 # Images a split
)->list[Row]: # One row
    "Peak memory of a training"
    n = min(n, len(b.pack.rows["train"]))
    small = replace(b, pack=b.pack.limit(n))
    names = [str(f) for s in ("train", "valid") for f in small.files(s)]
    stats = dict(mean=b.pack.mean.tolist(), std=b.pack.std.tolist())
    with tempfile.TemporaryDirectory() as tmp:
        tasks = dict(ours=_training(tmp, "ours", root=str(b.root), bs=small.bs, n=n),
            fastai=_training(tmp, "fastai", root=str(b.root), bs=small.bs, files=names, **stats))
        figures = by_turns(tasks, b.reps)
    note = (f"peak {'PSS' if psutil.LINUX else 'USS'} of all processes, "
        f"an epoch of ResNet-18 in float32 on {n:,} images; fastai with 2 workers")
    return compare_all(name, figures, "MB", note)

def _training(tmp, side, **settings):
    f = Path(tmp)/f"{side}.json"
    f.write_text(json.dumps(settings), encoding="utf-8")
    return partial(peak_memory, ["-m", "benchmarks.trainings", side, str(f)])

def import_rows(
    b:Bench, # Repetitions
    name:str # Of the row
)->list[Row]: # One row
    "Import everything"
    lines = dict(ours="import cinic_fastai.all", fastai="from fastai.vision.all import *")
    tasks = {k: partial(seconds, partial(run_python, "-c", line)) for k,line in lines.items()}
    by_turns(tasks, 1)
    return compare_all(name, by_turns(tasks, 2*b.reps), "s", "; ".join(lines.values()))

def run_python(
    *args:str # Of Python
):
    "Run Python in a process of its own, silently"
    subprocess.run([*PYTHON, *args], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

def jobs_rows(
    b:Bench, # Repetitions
    name:str # Of the row
)->list[Row]: # One row
    "The demo plan's runs of ResNet-18, side by side with one thread each, beside one at a time with all cores"
    with tempfile.TemporaryDirectory() as tmp:
        study = demo_runs(Path(tmp))
        one_by_one = ["--jobs", "1", "--threads", str(usable_cores())]
        figures = by_turns({"ours": study, "jobs 1, all cores": partial(study, *one_by_one)}, min(2, b.reps))
    note = "the demo plan's runs of ResNet-18, with the workers' start, without the page"
    return compare_all(name, figures, "s", note)

def plan_part(
    plan:str, # TOML
    *words:str # That a run's table has
)->str: # TOML
    "A plan's runs that have certain lines, and nothing else of its tables"
    head, *blocks = plan.split("\n[[")
    kept = [o for o in blocks if o.startswith("run]]") and all(f"\n{w}" in f"{o}\n" for w in words)]
    return "\n[[".join([head, *kept])

def demo_runs(
    folder:Path # For images, plan and studies
)->Callable: # `study(*options)` gives the seconds that its runs took
    "Write the demo images and the runs of ResNet-18 of the demo plan"
    plan = (files("cinic_fastai")/"plans"/"demo.toml").read_text(encoding="utf-8")
    (folder/"runs.toml").write_text(plan_part(plan, 'model = "resnet18"\n'), encoding="utf-8")
    run_python("-m", "cinic_fastai.cli", "data", "demo", str(folder/"digits"))
    def study(*options):
        with tempfile.TemporaryDirectory(dir=folder) as tmp:
            out = os.path.join(tmp, "out")
            run_python("-m", "cinic_fastai.cli", "study", str(folder/"runs.toml"), "--data", str(folder/"digits"),
                "--out", out, *options)
            return json.loads(Path(out, "study.json").read_text(encoding="utf-8"))["seconds"]
    return study
