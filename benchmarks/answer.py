"""`cinic answer` beside what others would take: the same images, the same valid ones, as much CPU time

    python -m benchmarks.answer IMAGES --out FOLDER --minutes 10 --seeds 3 --yolo ENV/bin/yolo
    python -m benchmarks.answer IMAGES --out FOLDER --minutes 30 --seeds 1 --yolo ENV/bin/yolo

IMAGES has `train` and `test`. From `train` so many images are taken, the same number of each class, and valid images
are drawn from them once, for all. `cinic answer` comes first, with each seed; the CPU time of it and all that it
started (`getrusage`, its questions, start and page included) is what every peer may spend. How many epochs that is, two
trainings of 1 and 3 epochs tell beforehand, at nobody's cost, and those of other seeds; a training that left more than
a tenth of the time is done once more with as many epochs as there was time for. Peers compute in one thread, which
costs them the least CPU time. The first seed is tried at both sizes, the others at the one that was better on valid
images. Whatever is chosen is chosen on those; those of `test` are looked at once, at the end, and that isn't counted.

`FOLDER/results.jsonl` gets a line for each training. What is there isn't done again, so the same words go on where they
were cut off, and other minutes add rows; on another machine a seed that isn't complete begins anew. Once an answer is
there, `--peers fastai` beside `--peers Ultralytics` train its peers side by side. `FOLDER/answer.md` is the table.

Ultralytics is AGPL-3.0. Here it is a command in an environment of its own: `python -m venv ENV`, then
`ENV/bin/pip install ultralytics`; without `--yolo` it is left out.
"""
import argparse
import csv
import ctypes
import hashlib
import json
import os
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
import psutil
from cinic_fastai.files import write_text

OURS, SCIKIT = "cinic answer", "scikit-learn on pixels"
SIZES = (32, 64) # Sides that the peers see images at
PROBES = (1, 3) # Epochs of the trainings that tell what an epoch costs
ONE_THREAD = dict(OMP_NUM_THREADS="1") # Threads of PyTorch that wait for one another use CPU time, too

@dataclass(frozen=True)
class Result:
    "What one training, or one answer, came to"
    peer:str # Whose it is
    minutes:float # Asked of `cinic answer`; 0 for what only tells the cost of an epoch
    seed:int # Of everything random; of what only tells the cost of an epoch its number of epochs
    settings:str # All that was set, in a line
    cpu:float # Seconds of all processes
    seconds:float # From start to end
    epochs:int = 0 # Fixed beforehand; 0 where the time itself is the limit
    valid_acc:float = 0. # In [0, 1]
    test_acc:float = 0. # In [0, 1]
    machine:str = "" # Where; an answer and its peers are compared on one

    @property
    def key(self)->tuple: return self.peer, self.minutes, self.seed
    @property
    def at(self)->tuple: return self.minutes, self.seed

def kind(
    peer:str # Its name
)->str: # Without the size that it sees
    "Who a peer is"
    return peer.partition(",")[0]

@dataclass(frozen=True)
class Work:
    "What all share"
    out:Path # Where everything goes
    minutes:float # For `cinic answer`
    yolo:str = "" # The command of Ultralytics; "" to leave it out
    model:str = "yolo11n-cls.yaml" # Its smallest network, without weights
    extra:tuple[str,...] = () # More settings of it, as `batch=64`
    options:tuple[str,...] = () # More options of `cinic answer`
    machine:str = "" # As in `Result`
    found:dict = field(default_factory=dict) # Results by key

    @property
    def images(self)->Path: return self.out/"images"
    @property
    def log(self)->Path: return self.out/"log.txt"

    def fresh_folder(self, *parts)->Path:
        "An empty folder for one training: one that was cut off begins anew, as its time would be too short else"
        out = self.out.absolute()/"work"/"-".join(re.sub(r"\W+", "-", str(p)) for p in parts)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        return out

def read_results(
    path:Path # `results.jsonl`, perhaps missing or cut off in its last line
)->dict[tuple,Result]: # By key
    "What is there already"
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try: r = Result(**json.loads(line))
        except json.JSONDecodeError: continue
        found[r.key] = r
    return found

def keep_result(
    work:Work, # Where, and what is there
    key:tuple, # Peer, minutes, seed
    make:Callable # Gives the result
)->Result: # That, or the one that is there
    "Do what is missing, and write it down"
    if key in work.found: return work.found[key]
    r = replace(make(), machine=work.machine)
    with open(work.out/"results.jsonl", "a", encoding="utf-8") as f: f.write(f"\n{json.dumps(asdict(r))}\n")
    work.found[r.key] = r
    print(f"{r.peer}, {r.minutes:g} min, seed {r.seed}: {r.cpu:,.0f} CPU s, test {100*r.test_acc:.1f} %", flush=True)
    return r

def of_use(
    found:dict[tuple,Result], # From `read_results`
    here:str, # This machine
    peers:set[str] # Whose rows, at one size at least, make a seed complete
)->dict[tuple,Result]: # Part of it
    "Results of this machine, and of others those of complete seeds: a CPU second isn't the same everywhere"
    seeds = defaultdict(set)
    for r in found.values(): seeds[r.machine, *r.at].add(kind(r.peer))
    def counts(r): return r.machine==here or r.minutes and {*map(kind, peers)}<=seeds[r.machine, *r.at]
    return {k: r for k,r in found.items() if counts(r)}

# CPU time of a tree of processes

def children_cpu()->float: # Seconds
    "CPU time of all processes that were started from here and have ended"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime+used.ru_stime

def adopt_orphans(
    on:bool=True # Or leave them to the system again
):
    "Have processes whose parent ends become this one's, so that their time counts here (Linux)"
    if sys.platform=="linux": ctypes.CDLL(None).prctl(36, int(on), 0, 0, 0) # PR_SET_CHILD_SUBREAPER

def _children(): return {p.pid for p in psutil.Process().children()}

def _wait_for(others, limit=60.):
    "Wait for processes that were left behind, not for those that were there before"
    end = time.monotonic()+limit
    while (left := _children()-others) and time.monotonic()<end:
        for pid in left:
            with suppress(ChildProcessError): os.waitpid(pid, os.WNOHANG)
        time.sleep(.05)

def run_measured(
    command:list, # To run
    log:Path, # Gets what it says
    **env # More of its environment
)->tuple[float,float]: # CPU seconds of it and all that it started, seconds
    "Run a command, and tell what it took"
    adopt_orphans()
    others, before, began = _children(), children_cpu(), time.monotonic()
    with open(log, "a", encoding="utf-8") as f:
        print("$", shlex.join(map(str, command)), file=f, flush=True)
        done = subprocess.run(command, stdout=f, stderr=subprocess.STDOUT, env=os.environ|env)
    _wait_for(others)
    adopt_orphans(False)
    if done.returncode: raise SystemExit(f"{shlex.join(map(str, command))} ended with {done.returncode}; see {log}")
    return children_cpu()-before, time.monotonic()-began

def epochs_within(
    budget:float, # CPU seconds
    costs:dict[int,float] # CPU seconds of trainings by their epochs, two or more
)->int: # 1 at least
    "Epochs that fit into a time, start included"
    (a, x), *_, (b, y) = sorted(costs.items())
    each = (y-x)/(b-a)
    return max(1, int((budget-(x-a*each))/each))

# Images

def take_photos(
    src:Path, # With `train` and `test`
    dest:Path, # Gets the same
    n:int, # Images of train, the same number of each class
    only:str="" # Part of the file names wanted
):
    "A part of a folder, as hard links: in train those whose names hash lowest, in test all"
    for split,most in (("train", n), ("test", 0)):
        folders = sorted(o for o in (src/split).iterdir() if o.is_dir())
        for folder in folders:
            names = sorted((o for o in folder.iterdir() if only in o.name), key=_hash_of_name)
            (dest/split/folder.name).mkdir(parents=True, exist_ok=True)
            for o in names[:most//len(folders)] if most else names: os.link(o, dest/split/folder.name/o.name)

def _hash_of_name(f): return hashlib.sha256(f.name.encode()).digest()

def prepare_images(
    work:Work, # Where
    src:Path, # With `train` and `test`
    n:int, # Images of train
    only:str="" # Part of the file names wanted
):
    "Photos with valid ones drawn, for all; the folders that Ultralytics wants are links to them"
    if work.images.exists(): return
    for o in ("photos", "images-half", "yolo"): shutil.rmtree(work.out/o, ignore_errors=True)
    take_photos(src, work.out/"photos", n, only)
    half = work.out/"images-half"
    cinic(work, "data", "split", work.out/"photos", half, "--split", "80/10/10")
    for looked_at in ("valid", "test"):
        folder = work.out/"yolo"/looked_at
        folder.mkdir(parents=True)
        for name,split in (("train", "train"), ("val", looked_at)):
            (folder/name).symlink_to(work.images.absolute()/split)
    half.rename(work.images)

def accuracy(
    table:Path, # CSV by `cinic predict`
)->float: # In [0, 1]
    "Share of images whose class is their folder's name"
    with open(table, encoding="utf-8", newline="") as f: rows = [*csv.DictReader(f)]
    return statistics.fmean(Path(r["file"]).parent.name==r["class"] for r in rows)

# Those that are compared

def cinic(work, *args, **env):
    "Run our command"
    command = [sys.executable, "-W", "ignore", "-m", "cinic_fastai.cli", *map(str, args)]
    return run_measured(command, work.log, **env)

def our_answer(
    work:Work, # Images, minutes
    seed:int # Of everything random
)->Result: # Of what it recommends
    "An answer, packs and all, and `cinic predict` with it"
    folder = work.fresh_folder(OURS, work.minutes, seed)
    out, asked = folder/"out", ["--minutes", f"{work.minutes:g}", "--seed", str(seed), *work.options]
    took = cinic(work, "answer", work.images, "--out", out, *asked, CINIC_CACHE=str(folder/"cache"))
    accs = []
    for split in ("valid", "test"):
        cinic(work, "predict", out, work.images/split, "--csv", folder/f"{split}.csv")
        accs.append(accuracy(folder/f"{split}.csv"))
    return Result(OURS, work.minutes, seed, shlex.join(["cinic", "answer", "IMAGES", *asked]), *took, 0, *accs)

def yolo_top1(
    text:str # What `yolo classify val` prints
)->float: # In [0, 1], to three digits
    "Accuracy of all classes"
    found = re.findall(r"^\s*all\s+([\d.]+)\s+[\d.]+\s*$", text, re.M)
    if not found: raise ValueError(f"No accuracy in what yolo printed: {text[-500:]}")
    return float(found[-1])

def _yolo(work, log, *words):
    "Run Ultralytics' command, offline, its settings in our folder"
    env = dict(YOLO_OFFLINE="true", YOLO_CONFIG_DIR=str(work.out.absolute()))
    return run_measured([work.yolo, "classify", *words], log, **env, **ONE_THREAD)

def yolo_result(
    work:Work, # Images, its command
    peer:str, # What it is called here
    size:int, # `imgsz`
    minutes:float, # As of `Result`
    seed:int, # As of `Result`
    epochs:int # Of the training
)->Result: # Of its best.pt, which it picks on valid images
    "Train Ultralytics' smallest classifier from scratch, by its command"
    out, data = work.fresh_folder(peer, minutes, seed), work.out.absolute()/"yolo"
    asked = [f"model={work.model}", "pretrained=False", f"epochs={epochs}", f"seed={seed}", *work.extra]
    how = [f"imgsz={size}", "device=cpu", "plots=False"]
    there = [f"project={out}", "exist_ok=True"]
    took = _yolo(work, work.log, "train", f"data={data/'valid'}", "name=run", *there, *how, *asked)
    best, accs = out/"run"/"weights"/"best.pt", []
    for split in ("valid", "test") if minutes else ():
        said = out/f"{split}.txt"
        _yolo(work, said, "val", f"model={best}", f"data={data/split}", f"name={split}", *there, *how)
        accs.append(yolo_top1(said.read_text(encoding="utf-8")))
    settings = shlex.join(["yolo", "classify", "train", *asked, *how])
    return Result(peer, minutes, seed, settings, *took, epochs, *accs)

def own_process(
    work:Work, # Images
    peer:str, # What it is called here
    kind:str, # `fastai` or `scikit`
    minutes:float, # As of `Result`
    seed:int, # As of `Result`
    **settings # Of the function in `answer_peers`
)->Result: # As that function tells
    "Train a peer in a process of its own, which tells its CPU time before it looks at test images"
    out = work.fresh_folder(peer, minutes, seed)
    told = json.dumps(dict(root=str(work.images), seed=seed, **settings))
    (out/"settings.json").write_text(told, encoding="utf-8")
    module = ["-m", "benchmarks.answer_peers", kind, out/"settings.json", out/"result.json"]
    _,seconds = run_measured([sys.executable, "-W", "ignore", *module], work.log, **ONE_THREAD)
    told = json.loads((out/"result.json").read_text(encoding="utf-8"))
    return Result(peer, minutes, seed, seconds=seconds, epochs=settings.get("epochs", 0), **told)

def _in_full(train, budget, epochs):
    "Train; where that left more than a tenth of the time, once more with the epochs that there was time for"
    r = train(epochs=epochs)
    return r if r.cpu>=.9*budget else train(epochs=int(epochs*budget/r.cpu))

def _by_epochs(work, name, make, seed, budget):
    "Train for the epochs that fit into a time"
    costs = {n: keep_result(work, (name, 0, n), partial(make, minutes=0, seed=n, epochs=n)).cpu for n in PROBES}
    costs |= {r.epochs: r.cpu for r in work.found.values() if r.peer==name and r.minutes} # of other seeds
    return _in_full(partial(make, minutes=work.minutes, seed=seed), budget, epochs_within(budget, costs))

def peers_of(
    work:Work # Is Ultralytics there?
)->dict[str,Callable]: # By name; `train(seed, budget)` gives a `Result`
    "Everyone else"
    made = {f"Ultralytics, {size} px": partial(yolo_result, work, size=size) for size in SIZES if work.yolo}
    made |= {f"fastai, {size} px": partial(own_process, work, kind="fastai", size=size) for size in SIZES}
    out = {name: partial(_by_epochs, work, name, partial(make, peer=name)) for name,make in made.items()}
    def scikit(seed, budget): return own_process(work, SCIKIT, "scikit", work.minutes, seed, budget=budget)
    return out|{SCIKIT: scikit}

def is_wanted(
    found:dict[tuple,Result], # What there is
    name:str, # Of a peer
    at:tuple # Minutes and seed
)->bool: # All sizes the first time, then that which was better on valid images
    "Whether a peer is trained at its size"
    tried = [r for r in found.values() if kind(r.peer)==kind(name) and r.minutes]
    first = min((r.at for r in tried), default=at)
    accs = {r.peer: r.valid_acc for r in tried if r.at==first}
    return at==first or len(accs)<len(SIZES) or name==max(accs, key=accs.get)

def our_cpu(
    work:Work, # All that is shared
    seed:int # Of everything random
)->float: # Seconds
    "What our answer took"
    return keep_result(work, (OURS, work.minutes, seed), partial(our_answer, work, seed)).cpu

def compare_seed(
    work:Work, # All that is shared
    seed:int, # Of everything random
    peers:dict[str,Callable] # As from `peers_of`
):
    "Peers in as much CPU time as our answer took"
    budget = our_cpu(work, seed)
    for name,train in peers.items():
        if not is_wanted(work.found, name, (work.minutes, seed)): continue
        keep_result(work, (name, work.minutes, seed), partial(train, seed=seed, budget=budget))

# The table

def _spread(values, digits=1):
    "A mean, with the standard deviation where there are several"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values)>1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"

def table_text(
    results:list[Result] # All that are known
)->str: # Markdown
    "A row for each peer and time, those of most test images first"
    rows = defaultdict(list)
    for r in results:
        if r.minutes: rows[r.minutes, r.peer].append(r)
    lines = ["| minutes | | test, % | valid, % | CPU min | epochs | seeds | settings |", "|" + "---|"*8]
    def place(row): return row[0][0], -statistics.fmean(r.test_acc for r in row[1])
    for (minutes,peer),rs in sorted(rows.items(), key=place):
        test,valid = (_spread([100*getattr(r, k) for r in rs]) for k in ("test_acc", "valid_acc"))
        epochs = f"{statistics.fmean(r.epochs for r in rs):.0f}" if rs[0].epochs else ""
        cpu = f"{statistics.fmean(r.cpu for r in rs)/60:.1f}"
        lines.append(f"| {minutes:g} | {peer} | {test} | {valid} | {cpu} | {epochs} | {len(rs)} | `{rs[0].settings}` |")
    return "\n".join(lines)+"\n"

def image_words(
    root:Path # Three splits
)->str: # A line
    "How many images there are"
    counts = {s: sum(1 for _ in (root/s).glob("*/*")) for s in ("train", "valid", "test")}
    words = ", ".join(f"{s} {n:,}" for s,n in counts.items())
    return f"Images, the same for all: {words}."

NOTE = """Test: images that were looked at once, at the end. Valid: images that every choice was made on. CPU min: of
all processes, as measured; peers are begun with what `cinic answer` took, scikit-learn needs less. Means of the
seeds ± standard deviation. `python -m benchmarks.answer` takes these figures; its head says how."""

def main(argv=None):
    "Compare, and write the table"
    p = argparse.ArgumentParser(prog="python -m benchmarks.answer", description=__doc__.split("\n")[0])
    p.add_argument("images", type=Path, help="folder with train and test")
    p.add_argument("--out", type=Path, default=Path("out/bench-answer"), help="where everything goes")
    p.add_argument("--minutes", type=float, default=10., help="for cinic answer")
    p.add_argument("--seeds", type=int, default=3, help="1, 2, ...")
    p.add_argument("--limit", type=int, default=5000, help="images of train")
    p.add_argument("--only", default="", help="part of the file names wanted, as cifar10 for CINIC-10's CIFAR part")
    p.add_argument("--yolo", default="", help="Ultralytics' command, in its own environment")
    p.add_argument("--model", default=Work.model, help="its smallest network")
    p.add_argument("--extra", default="", help="more settings of it, as 'batch=64'")
    p.add_argument("--options", default="", help="more options of cinic answer")
    p.add_argument("--peers", default="", help="only peers with this in their name, of answers that are there")
    o = p.parse_args(argv)
    o.out.mkdir(parents=True, exist_ok=True)
    from .catalog import machine # loads torch
    work = Work(o.out, o.minutes, o.yolo, o.model, tuple(o.extra.split()), tuple(o.options.split()), machine())
    peers = peers_of(work)
    work.found.update(of_use(read_results(o.out/"results.jsonl"), work.machine, {OURS, *peers}))
    prepare_images(work, o.images, o.limit, o.only)
    wanted = {k: v for k,v in peers.items() if o.peers in k}
    for seed in range(1, o.seeds+1):
        if o.peers and (OURS, o.minutes, seed) not in work.found: continue # an answer wants the machine for itself
        compare_seed(work, seed, wanted)
    machines = [*dict.fromkeys(r.machine for r in work.found.values() if r.minutes)]
    text = "\n".join([table_text([*work.found.values()]), image_words(work.images), NOTE, *machines, ""])
    write_text(o.out/"answer.md", text)
    print(text)

if __name__=="__main__": main()
