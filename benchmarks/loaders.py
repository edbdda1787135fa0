"""Images a second of whole passes over the training images, up to normalised batches"""
from collections.abc import Callable
from functools import partial
import torch
from fastai.vision.augment import CropPad, FlipItem, PadMode, RandomCrop
from torchvision.transforms import v2
from cinic_fastai.data.loaders import pack_dls
from .figures import Bench, Row, by_turns, compare_all, seconds
from .peers import fastai_dls, torchvision_dl

def throughput(
    dl, # Batches of images and targets
    device:torch.device, # Where they end up
    least:float=0. # Seconds; passes are repeated until then
)->float: # Images a second
    "Iterate over whole passes and count"
    n = took = 0
    def one_pass():
        nonlocal n
        for xb,_ in dl: n += len(xb.to(device))
    while not n or took<least: took += seconds(one_pass, device)
    return n/took

def loader_rows(
    b:Bench, # Images
    name:str, # Of the rows
    augment, # Ours, or None
    item_tfms:Callable|None, # `item_tfms()` gives fastai's transforms; None leaves fastai out
    tv_tfms:Callable # `tv_tfms()` gives torchvision's transforms
)->list[Row]: # A row for each peer
    "Our loader, a pass repeated for at least half a second, beside theirs"
    ours = pack_dls(b.pack, bs=b.bs, augment=augment, device=b.device).train
    tasks = dict(ours=partial(throughput, ours, b.device, .5))
    if item_tfms: tasks["fastai"] = partial(throughput, fastai_dls(b, *item_tfms()).train, b.device)
    tasks["torchvision"] = partial(throughput, torchvision_dl(b, "train", *tv_tfms()), b.device)
    for f in tasks.values(): f() # files come from the disk once
    note = f"{len(b.pack.rows['train']):,} images; peers with 2 workers"
    return compare_all(name+b.suffix, by_turns(tasks, b.reps), "img/s", note)

def shift_items(): # Transforms of single images
    "Flip and 2-pixel shift in fastai"
    return CropPad(36, pad_mode=PadMode.Reflection), RandomCrop(32), FlipItem()

def shift_tv(): # Transforms of single images
    "Flip and 2-pixel shift in torchvision"
    return v2.RandomHorizontalFlip(), v2.RandomCrop(32, padding=2, padding_mode="reflect")

def simple_tv(): # Transforms of single images
    "The report's simple policy in torchvision"
    rotate = v2.RandomRotation((0,180), v2.InterpolationMode.BILINEAR)
    return (v2.RandomResizedCrop(32), rotate, v2.RandomHorizontalFlip(.2), v2.RandomInvert(.2),
        v2.RandomSolarize(100, .2))
