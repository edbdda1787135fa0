"""Figures of ours beside a peer's: taken by turns, compared repetition by repetition"""
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
import torch
from fastcore.basics import noop
from cinic_fastai.data.pack import Pack

HIGHER_IS_BETTER = ("img/s",)

@dataclass(frozen=True)
class Row:
    "One figure of ours beside a peer's: medians of the repetitions, the median ratio and its range"
    name:str # Of the benchmark
    peer:str # `fastai`, `torchvision`, `bare`, or another setting of ours
    ours:float # Median, in `unit`
    theirs:float # The peer's median
    unit:str # Less is better, except for `img/s`
    ratio:float # Above 1 where ours is better
    spread:list # Lowest and highest ratio
    note:str="" # What else one should know

    def asdict(self)->dict: return asdict(self)

    def shown(self)->dict: # Column -> text
        "What a table in the terminal shows"
        low, high = self.spread
        texts = dict(ours=_short(self.ours), theirs=_short(self.theirs), ratio=f"{self.ratio:.2f}")
        return self.asdict()|texts|dict(spread=f"{low:.2f} to {high:.2f}")

    @staticmethod
    def below(
        rows:list # Of one run
    )->str: # A line
        "What to say below the table"
        return "Medians of repetitions by turns; a ratio above 1 means that ours is better."

def _short(x): return f"{x:,.0f}" if x>=1000 else f"{x:.3g}"

def by_turns(
    tasks:dict[str,Callable], # Each gives its own figure when called
    reps:int # Times that each is called
)->dict[str,list[float]]: # Figures by task
    "Call tasks by turns, so that a disturbance of the machine meets all of them"
    out = {k: [] for k in tasks}
    for _ in range(reps):
        for k,f in tasks.items():
            gc.collect()
            out[k].append(f())
    return out

def compare(
    name:str, # Of the row
    peer:str, # Whose figures `theirs` are
    ours:list[float], # Figures, one a repetition
    theirs:list[float], # The peer's, as many
    unit:str, # Of the figures
    note:str="" # What else one should know
)->Row: # With a ratio above 1 where ours is better
    "Compare figures repetition by repetition"
    ratios = [a/b if unit in HIGHER_IS_BETTER else b/a for a,b in zip(ours, theirs)]
    median = statistics.median
    return Row(name, peer, median(ours), median(theirs), unit, median(ratios), [min(ratios), max(ratios)], note)

def compare_all(
    name:str, # Of the rows
    figures:dict[str,list[float]], # `ours`, and each peer's
    unit:str, # Of the figures
    note:str="" # What else one should know
)->list[Row]: # A row for each peer
    "Compare ours with each peer"
    peers = {k: v for k,v in figures.items() if k!="ours"}
    return [compare(name, k, figures["ours"], v, unit, note) for k,v in peers.items()]

@dataclass(frozen=True)
class Bench:
    "What all measurements share"
    root:Path # Image folder
    pack:Pack # Its images, limited if wanted
    device:torch.device # Where to train
    reps:int # Repetitions of what takes long; short ones are repeated five times as often
    on_event:Callable=noop # Hears of trainings that take minutes, in this process

    def __getstate__(self): return vars(self)|dict(on_event=noop) # a screen can't be sent to another process

    @property
    def bs(self)->int: # 128 on a CPU, 512 on a GPU; less where there are few images
        "Batch size of all sides"
        return min(128 if self.device.type=="cpu" else 512, len(self.pack.rows["train"])//2)

    @property
    def suffix(self)->str: # "" on a CPU
        "What the names of this device's rows end in"
        return "" if self.device.type=="cpu" else f"-{self.device.type}"

    def files(self,
        split:str # `train`, `valid` or `test`
    )->list[Path]: # Of the images in use
        "A split's files"
        return [self.root/f for f in self.pack.files[self.pack.rows[split]]]

def seconds(
    f:Callable, # Anything
    device:torch.device=torch.device("cpu") # Waited for at both ends
)->float: # Time it takes
    "Time one call"
    _settle(device)
    began = time.perf_counter()
    f()
    _settle(device)
    return time.perf_counter()-began

def _settle(device):
    if device.type=="cuda": torch.cuda.synchronize(device)
