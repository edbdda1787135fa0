"""Time to an accuracy of test images: trainings of the plans for a budget, the report's ResNet-18, and stock fastai

A training counts whole, at its length fixed beforehand, and with the accuracy of test images at its end, the mean of
several seeds: no epoch is picked by images of `test`.

The record this is held against is DAWNBench's on a CPU: 94.05 % of CIFAR-10's test images after 79.4 hours on 16
virtual cores, by ResNet-164 in PyTorch, October 2017 (the first epoch at 94 %), which had no successor there. It is in
`CIFAR10/train/dawn_resnet164_nb_16vCPUs-gc_pytorch.tsv` of
<https://github.com/stanford-futuredata/dawn-bench-entries>.
"""
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple
from fastai.torch_core import set_seed
from cinic_fastai.config import RunConfig, setting_name
from cinic_fastai.data.pack import Pack
from cinic_fastai.plan_file import read_plan
from cinic_fastai.store import RunStore
from cinic_fastai.study.expand import check_fits, run_config
from cinic_fastai.train.fit import fit_run
from .epochs import plain_model
from .figures import Bench, by_turns, seconds
from .peers import fastai_learner

PLANS = ("quick", "fast", "long")
BEFORE = str(Path(__file__).parent/"before.toml") # The control: how SpeedNet was trained before these plans
REPORT = "fast/resnet18" # What stock fastai trains as well
LEVELS = (70, 80, 85, 90) # Per cent of the test images
GPU_LEVELS = (*LEVELS, 94)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DAWNBENCH = "DAWNBench's record on a CPU: 94 % of CIFAR-10's test images after 79 hours on 16 virtual cores (2017)"

def is_cifar10(
    pack:Pack # Images in use
)->bool: # Only where classes and counts are CIFAR-10's
    "Whether images can be taken for the original CIFAR-10"
    n = pack.counts()
    return tuple(pack.classes)==CIFAR10 and (n["train"]+n["valid"], n["test"], pack.size)==(50_000, 10_000, 32)

def image_words(
    pack:Pack # Images in use
)->str: # Counts, size, origins
    "The images, by what their pack says"
    n = pack.counts()
    words = f"{n['train']:,} training, {n['valid']:,} valid and {n['test']:,} test images of {pack.size}x{pack.size}"
    if is_cifar10(pack): return f"{words}, by classes and counts the original CIFAR-10"
    origins = Counter(o or "elsewhere" for rows in pack.rows.values() for o in pack.origins[rows])
    told = ", ".join(f"{k} {v:,}" for k,v in sorted(origins.items()))
    return f"{words} in {len(pack.classes)} classes (origin by file name: {told})"

class Ending(NamedTuple):
    "How one training ended"
    seconds:float # Its epochs, with the validation that it does
    whole:float # From the pack to the stored result: network, epochs, probabilities with their views, files
    test_acc:float # In [0, 1]

@dataclass(frozen=True)
class RecordRow:
    "Trainings of one setting, a seed each"
    name:str # Of the benchmark
    training:str # PLAN/RUN, or whose it is
    images:str # As from `image_words`
    trained:int # Images that it trains on
    epochs:int # All of them
    seconds:list[float] # By seed, as in `Ending`
    whole:list[float] # Likewise
    test_accs:list[float] # Likewise
    levels:tuple[int,...] # Per cent that may be reached

    @property
    def test_acc(self)->float: return statistics.fmean(self.test_accs)
    @property
    def reached(self)->int: # Of `levels`; 0 for none
        "The highest level that the mean accuracy reaches"
        return max((o for o in self.levels if 100*self.test_acc>=o), default=0)

    def asdict(self)->dict: return asdict(self)|dict(test_acc=self.test_acc, reached=self.reached)

    def shown(self)->dict: # Column -> text
        "What a table in the terminal shows"
        spread = statistics.stdev(self.test_accs) if len(self.test_accs)>1 else 0.
        return dict(training=self.training, images=f"{self.trained:,}", epochs=self.epochs, seeds=len(self.test_accs),
            seconds=_figures(self.seconds), whole=_figures(self.whole),
            test_acc=f"{100*self.test_acc:.2f} ± {100*spread:.2f} %",
            reaches=f"{self.reached} %" if self.reached else "")

    @staticmethod
    def below(
        rows:list # Of one run
    )->str: # Lines
        "What to say below the table"
        times = [f"{level} %: {_fastest(rows, level)}" for level in rows[0].levels]
        return (f"{rows[0].images}.\nseconds: epochs with their validation; whole: to the stored result, with the "
            "probabilities of valid and test images; medians of the seeds (lowest to highest).\n"
            "test_acc: at the end of trainings whose length was fixed beforehand, mean ± standard deviation of the "
            "seeds.\n"
            f"Time to {'; '.join(times)}.\n{DAWNBENCH}; compare with it only the original CIFAR-10.")

def _figures(values): return f"{statistics.median(values):,.4g} ({min(values):,.4g} to {max(values):,.4g})"

def _fastest(rows, level):
    "The least time to a level, and whose it is"
    there = [r for r in rows if r.reached>=level]
    if not there: return "none of these"
    best = min(there, key=lambda r: statistics.median(r.seconds))
    return f"{statistics.median(best.seconds):,.4g} s ({best.training})"

def plan_trainings(
    b:Bench, # Its images have to suffice
    plans:tuple[str,...] # Names or files
)->dict[str,RunConfig]: # PLAN/RUN -> what is trained, whatever the seed
    "The settings that the plans train"
    out = {}
    for plan in map(read_plan, plans):
        check_fits(plan, b.pack.counts(), b.pack.size)
        for run in plan.runs: out.setdefault(f"{plan.name}/{setting_name(run.name)}", run_config(plan, run))
    return out

def our_ending(
    b:Bench, # Images, device
    cfg:RunConfig, # What to train
    seed:int # Of everything random
)->Ending: # Of a training in a store of its own
    "Train through `fit_run`, as a study does"
    done, cfg = {}, replace(cfg, seed=seed)
    hear = partial(b.on_event, name=f"{cfg.model}, seed {seed}", epochs=cfg.epochs, saw_valid=cfg.train_on!="train")
    with tempfile.TemporaryDirectory() as tmp:
        store = RunStore(Path(tmp)/"runs")
        def train(): done.update(fit_run(cfg, b.pack, store, device=b.device, on_event=hear))
        whole = seconds(train, b.device)
    b.on_event("jobs", names=[]) # this training runs no longer
    return Ending(done["seconds"], whole, done["test_acc"])

def fastai_ending(
    b:Bench, # Images, device
    cfg:RunConfig, # Network, batch size, epochs; SGD at 1e-3 as in `fastai_learner`
    seed:int # Of everything random
)->Ending: # Accuracy by fastai's `validate`
    "Train the same network for as many epochs in stock fastai"
    began = time.perf_counter()
    set_seed(seed)
    learn = fastai_learner(b, plain_model(b, cfg.model), bs=cfg.bs)
    with learn.no_bar(), learn.no_logging():
        took = seconds(partial(learn.fit, cfg.epochs), b.device)
        _,test_acc = learn.validate(dl=learn.dls.test_dl(b.files("test"), with_labels=True))
    return Ending(took, time.perf_counter()-began, test_acc)

def _tasks(b, trainings):
    "What takes a seed and gives an ending, by name"
    out = {k: partial(our_ending, b, cfg) for k,cfg in trainings.items()}
    if REPORT in trainings: out["stock fastai, resnet18"] = partial(fastai_ending, b, trainings[REPORT])
    return out

def record_rows(
    b:Bench, # Images, device; `reps` seeds
    name:str, # Of the rows
    plans:tuple[str,...]=PLANS, # Names or files
    trainings:dict[str,RunConfig]|None=None # By name; None for those of the plans
)->list[RecordRow]: # One a setting
    "Train each setting with seeds 1, 2, ..., by turns"
    trainings = trainings or plan_trainings(b, plans)
    levels = LEVELS if b.device.type=="cpu" else GPU_LEVELS
    turns = {k: map(f, range(1, b.reps+1)).__next__ for k,f in _tasks(b, trainings).items()}
    cfgs = {k: trainings.get(k, trainings.get(REPORT)) for k in turns}
    out, n, images = [], b.pack.counts(), image_words(b.pack)
    for k,endings in by_turns(turns, b.reps).items():
        trained = n["train"]+(n["valid"] if cfgs[k].train_on!="train" else 0)
        out.append(RecordRow(name+b.suffix, k, images, trained, cfgs[k].epochs, *map(list, zip(*endings)), levels))
    return out
