"""The peers on the same images: stock fastai, and torchvision under a loop written by hand"""
from functools import partial
import torch
import torch.nn.functional as F
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import GrandparentSplitter, Normalize, parent_label
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from fastai.vision.data import ImageBlock
from torchvision import datasets, transforms
from .figures import Bench

def fastai_dls(
    b:Bench, # Images, batch size, device
    *item_tfms, # Of training and validation
    bs:int=0 # Another batch size than all benchmarks'
)->DataLoaders: # As in fastai's documentation, with two workers
    "Stock fastai on the same images"
    normalize = Normalize.from_stats(b.pack.mean.tolist(), b.pack.std.tolist(), cuda=b.device.type=="cuda")
    block = DataBlock((ImageBlock, CategoryBlock), get_items=lambda _: b.files("train")+b.files("valid"),
        splitter=GrandparentSplitter(), get_y=parent_label, item_tfms=item_tfms or None, batch_tfms=normalize)
    return block.dataloaders(b.root, bs=bs or b.bs, num_workers=2, device=b.device)

def fastai_learner(
    b:Bench, # Images, device
    model:torch.nn.Module, # Network
    **kw # As for `fastai_dls`
)->Learner: # SGD with momentum .9 at 1e-3
    "fastai as it comes"
    return Learner(fastai_dls(b, **kw), model, loss_func=CrossEntropyLossFlat(), opt_func=partial(SGD, mom=.9),
        lr=1e-3, metrics=accuracy)

def torchvision_dl(
    b:Bench, # Images, batch size
    split:str, # `train` or `valid`
    *tfms # Before the image becomes floats
)->torch.utils.data.DataLoader: # With two workers
    "torchvision's `ImageFolder` on the same images"
    normalize = transforms.Normalize(b.pack.mean.tolist(), b.pack.std.tolist())
    tfm = transforms.Compose([*tfms, transforms.ToTensor(), normalize]) # faster than v2's
    data = datasets.ImageFolder(b.root/split, tfm, is_valid_file=set(map(str, b.files(split))).__contains__)
    return torch.utils.data.DataLoader(data, b.bs, shuffle=split=="train", num_workers=2)

def loop_epoch(
    model:torch.nn.Module, # Changed
    opt:torch.optim.Optimizer, # Of its parameters
    train, # Batches
    valid, # Batches
    device:torch.device # Where the network is
)->float: # Accuracy on `valid`
    "A training loop as written by hand: an epoch, then the accuracy"
    model.train()
    for xb,yb in train:
        xb, yb = xb.to(device), yb.to(device)
        opt.zero_grad()
        F.cross_entropy(model(xb), yb).backward()
        opt.step()
    return _accuracy(model, valid, device)

def _accuracy(model, valid, device):
    model.eval()
    hits = n = 0
    with torch.no_grad():
        for xb,yb in valid:
            hits += (model(xb.to(device)).argmax(1)==yb.to(device)).sum().item()
            n += len(yb)
    return hits/n
