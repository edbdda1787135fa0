"""Whole processes beside each other: memory of a training, time of an import, searches two at a time"""
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
)->list[Row]: # Two rows
    """The demo plan's four searches two at a time

    Beside one at a time with all cores, and with one thread, which gives the same bits."""
    with tempfile.TemporaryDirectory() as tmp:
        study = demo_searches(Path(tmp))
        tasks = {"ours": lambda: study(2, 1), "jobs 1": lambda: study(1), "jobs 1, threads 1": lambda: study(1, 1)}
        figures = by_turns(tasks, min(2, b.reps))
    return compare_all(name, figures, "s", "the demo plan's searches with --jobs 2 --threads 1")

def searches_alone(
    plan:str # TOML
)->str: # TOML
    "A plan without its runs and ensembles"
    blocks = plan.split("\n[[")
    return "\n[[".join(o for o in blocks if not o.startswith(("run]]", "ensemble]]")))

def demo_searches(
    folder:Path # For images, plan and studies
)->Callable: # `study(jobs, threads=None)` gives the seconds that its searches took
    "Write the demo images and the searches of the demo plan"
    plan = (files("cinic_fastai")/"plans"/"demo.toml").read_text(encoding="utf-8")
    (folder/"searches.toml").write_text(searches_alone(plan), encoding="utf-8")
    run_python("-m", "cinic_fastai.cli", "data", "demo", str(folder/"digits"))
    def study(jobs, threads=None):
        with tempfile.TemporaryDirectory(dir=folder) as tmp:
            out = os.path.join(tmp, "out")
            options = ["--jobs", str(jobs), *(["--threads", str(threads)] if threads else [])]
            run_python("-m", "cinic_fastai.cli", "study", str(folder/"searches.toml"), "--data", str(folder/"digits"),
                "--out", out, *options)
            return json.loads(Path(out, "study.json").read_text(encoding="utf-8"))["seconds"]
    return study
