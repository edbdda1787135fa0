"""What our `Learner` adds to a training step: the same batches, in memory and on the device, through a bare loop"""
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from torch import Tensor
from cinic_fastai.data.loaders import pack_dls
from cinic_fastai.config import RunConfig
from cinic_fastai.train.device import autocast, resolve_precision
from cinic_fastai.train.learner import make_learner
from cinic_fastai.train.models import make_model
from cinic_fastai.train.taps import live_taps
from .epochs import bench_config, fit_epochs, precisions
from .figures import Bench, Row, by_turns, compare_all, seconds

STEPS = 10 # Of one measurement

class Repeat:
    "The same batches in memory, as a loader"
    epoch = start_batch = 0
    def __init__(self,
        batches:list, # Images and targets
        n:int, # Batches to serve
        vocab # Class names
    ):
        self.batches, self.n, self.vocab = batches, n, vocab
    def __len__(self): return self.n
    def to(self, device): pass # they are there already
    def __iter__(self)->Iterator: return (self.batches[i%len(self.batches)] for i in range(self.n))

class TrainSeconds(Callback):
    "Time the batches of an epoch, from before the first to after the last"
    order = 95 # after all others
    def before_train(self): self.began = time.perf_counter()
    def after_train(self):
        if self.dls.device.type=="cuda": torch.cuda.synchronize()
        self.took = time.perf_counter()-self.began

def memory_batches(
    b:Bench, # Images, batch size, device
    k:int=4 # How many
)->list: # Whole training batches on the device, as the network gets them
    "A few batches to keep"
    dl = pack_dls(b.pack, bs=b.bs, device=b.device).train
    return list(islice((o for o in dl if len(o[0])==b.bs), k))

def learner_step(
    b:Bench, # Classes, device
    cfg:RunConfig, # Network, precision, policy
    batches:list # As from `memory_batches`
)->Callable: # Gives milliseconds a step
    "A step through our `Learner`"
    train, valid = (Repeat(batches, n, b.pack.classes) for n in (STEPS, 0))
    learn, clock = make_learner(DataLoaders(train, valid, device=b.device), cfg), TrainSeconds()
    learn.add_cb(clock)
    def milliseconds():
        fit_epochs(learn)
        return clock.took/STEPS*1e3
    return milliseconds

def bare_step(
    b:Bench, # Classes, device
    cfg:RunConfig, # Network, precision
    batches:list, # As from `memory_batches`
    live:bool=True # As our networks are; False for plain convolutions
)->Callable: # Gives milliseconds a step
    "A step of plain PyTorch: channels last, fused SGD, nothing recorded"
    model = live_taps(make_model(cfg, len(b.pack.classes), 32), live).to(b.device).train()
    opt = torch.optim.SGD(model.parameters(), lr=cfg.lr, momentum=cfg.mom, fused=True)
    plain = [tuple(o.as_subclass(Tensor) for o in batch) for batch in batches]
    precision = resolve_precision(cfg, b.device)
    def train():
        for i in range(STEPS):
            xb, yb = plain[i%len(plain)]
            with autocast(precision, b.device): preds = model(xb)
            F.cross_entropy(preds.float(), yb).backward()
            opt.step()
            opt.zero_grad()
    return lambda: seconds(train, b.device)/STEPS*1e3

def step_rows(
    b:Bench, # Images
    model:str, # `custom_cnn` or `resnet18`
    name:str # Of the rows
)->list[Row]: # A row for each precision
    "Our step beside a bare one"
    batches, out = memory_batches(b), []
    for p,means in precisions(b, model).items():
        cfg = bench_config(model, b.bs, precision=p)
        figures = _after_one_turn(b, dict(ours=learner_step(b, cfg, batches), bare=bare_step(b, cfg, batches)))
        speed = b.bs/statistics.median(figures["ours"])*1e3
        out += compare_all(name+b.suffix, figures, "ms", f"{means}, batches of {b.bs}, {speed:,.0f} img/s")
    return out

def mix_rows(
    b:Bench, # Images
    name:str # Of the rows
)->list[Row]: # A row for each precision
    "A step with RandomMix beside the same without"
    batches, out = memory_batches(b), []
    for p in ("bf16", "float32"):
        ours, bare = (bench_config("custom_cnn", b.bs, precision=p, policy=o) for o in ("advanced", "none"))
        tasks = dict(ours=learner_step(b, ours, batches), bare=learner_step(b, bare, batches))
        note = f"CustomCNN's step in {p} with RandomMix, beside the same step without"
        out += compare_all(name+b.suffix, _after_one_turn(b, tasks), "ms", note)
    return out

@contextmanager
def one_thread():
    "Compute by one thread in a block"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try: yield
    finally: torch.set_num_threads(before)

def taps_rows(
    b:Bench, # Images
    name:str # Of the row
)->list[Row]: # One row
    "A step of ResNet-18 by live taps beside the same by plain convolutions, one thread on both sides"
    batches, cfg = memory_batches(b), bench_config("resnet18", b.bs, precision="float32")
    tasks = {k: bare_step(b, cfg, batches, live) for k,live in (("ours", True), ("plain", False))}
    with one_thread(): figures = _after_one_turn(b, tasks)
    return compare_all(name, figures, "ms", f"ResNet-18's step in float32, batches of {b.bs}, one thread")

def _after_one_turn(b, tasks):
    "Figures of short tasks, without the first turn"
    by_turns(tasks, 1)
    return by_turns(tasks, 5*b.reps)
