"""A step and clearing the gradients, for ResNet-18's parameters, with L2 added to the gradient on both sides"""
import statistics
from dataclasses import dataclass
from functools import partial
import torch
from fastai.optimizer import SGD, Adam
from torch import Tensor
from cinic_fastai.config import RunConfig
from cinic_fastai.train.optim import opt_func
from cinic_fastai.train.models import make_model
from .figures import Bench, Row, by_turns, compare_all, seconds

FASTAI = dict(sgd=partial(SGD, mom=.9), adam=partial(Adam, mom=.9, sqr_mom=.999, eps=1e-8))

@dataclass
class Side:
    "Parameters under one side's optimiser"
    params:list[Tensor] # Changed by the steps
    opt:object # With fastai's interface

    def milliseconds(self,
        grads:list[Tensor], # Given to the parameters before each step; fastai's are changed
        device:torch.device, # Where they are
        steps:int=10 # Of one measurement
    )->float: # Of `step` and `zero_grad`, the median
        "Time steps, without the giving of gradients"
        times = []
        for _ in range(steps):
            for p,g in zip(self.params, grads): p.grad = g
            times.append(seconds(self._step, device)*1e3)
        return statistics.median(times)

    def _step(self):
        self.opt.step()
        self.opt.zero_grad()

def both_sides(
    b:Bench, # Device
    opt:str # `sgd` or `adam`
)->tuple[Side,Side]: # Ours and fastai's
    "The same parameters under our optimiser and under fastai's"
    cfg = RunConfig(opt=opt, lr=1e-3, wd=1e-3, size=32)
    mine, stock = (list(make_model(cfg, 10, 32).to(b.device).parameters()) for _ in range(2))
    theirs = FASTAI[opt](stock, lr=cfg.lr, wd=cfg.wd, decouple_wd=False)
    return Side(mine, opt_func(cfg)(mine, lr=cfg.lr)), Side(stock, theirs)

def optimizer_rows(
    b:Bench, # Device
    opt:str, # `sgd` or `adam`
    name:str # Of the row
)->list[Row]: # One row
    "Our optimiser beside fastai's"
    sides = dict(zip(("ours", "fastai"), both_sides(b, opt)))
    tasks = {k: partial(o.milliseconds, [torch.randn_like(p) for p in o.params], b.device) for k,o in sides.items()}
    by_turns(tasks, 1)
    note = "ResNet-18, step and zero_grad, L2 on both sides"
    return compare_all(name+b.suffix, by_turns(tasks, 5*b.reps), "ms", note)
