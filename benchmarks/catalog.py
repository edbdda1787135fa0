"""All benchmarks by name, and the loop over those wanted"""
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
import torch
from PIL import Image
from fastcore.basics import noop
from cinic_fastai.core import ConfigError, DataError, check_choice
from cinic_fastai.data.augment import FlipShift, image_policy
from cinic_fastai.data.loaders import pick_device
from cinic_fastai.data.pack import get_pack
from cinic_fastai.train.device import processor_name
from .arrays import pack_rows, vote_rows
from .epochs import epoch_rows
from .figures import Bench, Row
from .loaders import loader_rows, shift_items, shift_tv, simple_tv
from .optimizers import optimizer_rows
from .processes import import_rows, jobs_rows, memory_rows
from .record import BEFORE, PLANS, record_rows
from .steps import mix_rows, step_rows, taps_rows
from .studies import study_rows

@dataclass(frozen=True)
class Entry:
    "One benchmark"
    rows:Callable # `rows(bench, name=...)` measures
    weight:float # What it takes, for the time left; seconds on two cores
    gpu:bool=False # Has it rows on a GPU?
    alone:bool=False # Only where it is asked for by name, as it takes hours?

def loader_entry(
    weight:float, # Seconds on two cores
    augment, # Ours, or None
    item_tfms:Callable|None, # fastai's
    tv_tfms:Callable # torchvision's
)->Entry: # Of `loader_rows`
    "One policy through the loaders"
    return Entry(partial(loader_rows, augment=augment, item_tfms=item_tfms, tv_tfms=tv_tfms), weight, gpu=True)

BENCHES = {
    "loader-normalise": loader_entry(35, None, tuple, tuple),
    "loader-shift": loader_entry(45, FlipShift(), shift_items, shift_tv),
    "loader-simple": loader_entry(25, image_policy("simple"), None, simple_tv),
    "epoch-customcnn": Entry(partial(epoch_rows, model="custom_cnn"), 250, gpu=True),
    "epoch-resnet18": Entry(partial(epoch_rows, model="resnet18"), 450, gpu=True),
    "step-customcnn": Entry(partial(step_rows, model="custom_cnn"), 25, gpu=True),
    "step-resnet18": Entry(partial(step_rows, model="resnet18"), 60, gpu=True),
    "optimizer-sgd": Entry(partial(optimizer_rows, opt="sgd"), 3, gpu=True),
    "optimizer-adam": Entry(partial(optimizer_rows, opt="adam"), 4, gpu=True),
    "taps": Entry(taps_rows, 60),
    "mix": Entry(mix_rows, 25, gpu=True),
    "pack": Entry(pack_rows, 40),
    "vote": Entry(vote_rows, 5),
    "memory": Entry(memory_rows, 90),
    "import": Entry(import_rows, 80),
    "jobs": Entry(jobs_rows, 400),
    "record": Entry(record_rows, 8000, gpu=True, alone=True),
    **{f"record-{Path(p).stem}": Entry(partial(record_rows, plans=(p,)), 2000, gpu=True, alone=True)
        for p in (*PLANS, BEFORE)},
    "study-resnet18": Entry(study_rows, 2200),
}

def check_size(
    b:Bench # Its image folder
):
    "Refuse images that the peers, which don't resize, would take at another size"
    with Image.open(b.files("train")[0]) as im: w, h = im.size
    if (w,h)==(32,32): return
    raise DataError(f"{b.root} holds images of {w}x{h}, expected 32x32: the peers take images as they are. "
        "Give CINIC-10, or another folder of 32x32 images.")

def machine()->str: # One line
    "What the figures were taken on"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    return f"{processor_name()}, {threads} threads{gpu}, torch {torch.__version__}, fastai {version('fastai')}"

def devices_of(
    device:str # `auto` for the CPU and then CUDA where there is one, or one device as for `pick_device`
)->list[torch.device]: # Each once
    "Where to measure"
    if device!="auto": return [pick_device(device)]
    return list(dict.fromkeys([pick_device("cpu"), pick_device()]))

def bench(
    name:str, # One of `BENCHES`, or `all` but those that stand alone
    root:Path, # Image folder
    limit:int=20_000, # Images a split, 0 for all
    reps:int=3, # Repetitions of what takes long
    on_event:Callable=noop, # Hears of progress
    device:str="auto" # As for `devices_of`
)->list[Row]: # The GPU's after the CPU's
    "Measure one benchmark, or all"
    check_choice("benchmark", name, [*BENCHES, "all"])
    pack = get_pack(Path(root), on_event=on_event)
    if 0<limit<min(pack.counts().values()): pack = pack.limit(limit)
    wanted = {k: e for k,e in BENCHES.items() if name==k or (name=="all" and not e.alone)}
    benches = [Bench(Path(root), pack, d, reps, on_event) for d in devices_of(device)]
    todo = [(k, e, b) for b in benches for k,e in wanted.items() if e.gpu or b.device.type=="cpu"]
    if not todo: raise ConfigError(f"The benchmark {name} has no rows on {device}. Take --device cpu.")
    check_size(benches[0])
    return measure(todo, on_event)

def measure(
    todo:list, # Names, entries and what they share
    on_event:Callable # Hears of progress
)->list[Row]: # In that order
    "Measure one after another, with the time left"
    out, done, began = [], 0., time.monotonic()
    total = sum(e.weight for _,e,_ in todo)
    for k,e,b in todo:
        pace = (time.monotonic()-began)/done if done else b.reps/3
        on_event("progress", what=k+b.suffix, done=round(done), total=round(total), left=pace*(total-done))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out += e.rows(b, name=k)
        done += e.weight
        minutes = (time.monotonic()-began)/done*(total-done)/60
        on_event("note", text=f"{k}{b.suffix}: done, about {minutes:.0f} min to go")
    return out
