"""One epoch, training and validation with loss and accuracy, each side in a process of its own

Settings of memory and threads that one side makes would reach the others in one process.
"""
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
import torch
from torch import Tensor
from cinic_fastai.data.loaders import pack_dls
from cinic_fastai.config import RunConfig
from cinic_fastai.train.learner import make_learner
from cinic_fastai.train.device import prepare_device, resolve_precision
from cinic_fastai.train.models import make_model
from cinic_fastai.train.taps import live_taps
from .figures import Bench, Row, by_turns, compare_all, seconds
from .peers import fastai_learner, loop_epoch, torchvision_dl

PEERS = ("fastai", "torchvision")

def bench_config(
    model:str, # `custom_cnn` or `resnet18`
    bs:int, # Batch size
    **kw # Other fields
)->RunConfig: # SGD with momentum
    "What all sides train"
    return RunConfig(model=model, bs=bs, size=32, opt="sgd", lr=1e-3, **kw)

def precisions(
    b:Bench, # Its device
    model:str # Network
)->dict[str,str]: # Setting -> what it means on this device
    "`auto`, and `float32` where that is something else"
    means = resolve_precision(bench_config(model, b.bs), b.device)
    return {"float32": "float32"} if means=="float32" else {"auto": means, "float32": "float32"}

def fit_epochs(
    learn, # Ours or fastai's
    epochs:int=1 # How many
):
    "Epochs without bars"
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs)

def our_epoch(
    b:Bench, # Images, device
    model:str, # Network
    precision:str # `auto` or `float32`
)->Callable: # Gives seconds an epoch
    "An epoch of our `Learner`"
    dls = pack_dls(b.pack, bs=b.bs, val_bs=max(b.bs, 512), device=b.device)
    learn = make_learner(dls, bench_config(model, b.bs, precision=precision))
    return partial(seconds, partial(fit_epochs, learn), b.device)

def fastai_epoch(
    b:Bench, # Images, device
    model:str # Network
)->Callable: # Gives seconds an epoch
    "An epoch of a stock `Learner`"
    return partial(seconds, partial(fit_epochs, fastai_learner(b, plain_model(b, model))), b.device)

def torchvision_epoch(
    b:Bench, # Images, device
    model:str # Network
)->Callable: # Gives seconds an epoch
    "An epoch of the loop written by hand"
    net = plain_model(b, model)
    opt = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=.9)
    train, valid = (torchvision_dl(b, split) for split in ("train", "valid"))
    return partial(seconds, partial(loop_epoch, net, opt, train, valid, b.device), b.device)

def bare_epoch(
    b:Bench, # Images, device
    model:str # Network
)->Callable: # Gives seconds an epoch
    "An epoch of the loop written by hand on batches that lie in memory, of the very network that ours trains"
    prepare_device(b.device)
    net = make_model(bench_config(model, b.bs), len(b.pack.classes), 32).to(b.device)
    opt = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=.9, fused=True)
    dls = pack_dls(b.pack, bs=b.bs, val_bs=max(b.bs, 512), device=b.device)
    train, valid = ([[o.as_subclass(Tensor) for o in batch] for batch in dl] for dl in dls)
    return partial(seconds, partial(loop_epoch, net, opt, train, valid, b.device), b.device)

def plain_model(
    b:Bench, # Classes, device
    model:str # `custom_cnn` or `resnet18`
)->torch.nn.Module: # With plain convolutions
    "The network as it comes, in PyTorch's usual memory format"
    net = live_taps(make_model(bench_config(model, b.bs), len(b.pack.classes), 32), on=False)
    return net.to(b.device, memory_format=torch.contiguous_format)

_task = [] # What this process was started for

def _prepare(method, make, *args):
    "Make this process's task; loaders start their workers as usual: a spawned process would spawn them, slowly"
    warnings.simplefilter("ignore")
    multiprocessing.set_start_method(method, force=True)
    _task.append(make(*args))

def _perform(): return _task[0]()

def apart(
    stack:ExitStack, # Ends the process when it is closed
    make:Callable, # `make(*args)` gives a task, in the process
    *args # Picklable
)->Callable: # Does the task and gives its figure
    "A task in a process of its own"
    spawn, usual = multiprocessing.get_context("spawn"), multiprocessing.get_start_method()
    pool = stack.enter_context(ProcessPoolExecutor(1, spawn, _prepare, (usual, make, *args)))
    return lambda: pool.submit(_perform).result()

def epoch_rows(
    b:Bench, # Images
    model:str, # `custom_cnn` or `resnet18`
    name:str # Of the rows
)->list[Row]: # A row for each precision and peer
    "An epoch of ours, at each precision, beside theirs in float32, and in float32 beside a bare one"
    means = precisions(b, model)
    with ExitStack() as stack:
        tasks = {p: apart(stack, our_epoch, b, model, p) for p in means}
        tasks["fastai"] = apart(stack, fastai_epoch, b, model)
        tasks["torchvision"] = apart(stack, torchvision_epoch, b, model)
        tasks["bare"] = apart(stack, bare_epoch, b, model)
        figures = by_turns(tasks, b.reps)
    out = []
    for p,meaning in means.items():
        note = "float32 on all sides" if meaning=="float32" else f"{p} ({meaning}), peers float32"
        peers = [*PEERS, "bare"] if meaning=="float32" else PEERS
        out += compare_all(name+b.suffix, {"ours": figures[p]}|{k: figures[k] for k in peers}, "s", note)
    return out
