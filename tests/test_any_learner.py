"A stock `Learner` that is killed inside an epoch and begun again ends at the bits of one that never stopped"
import multiprocessing
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
import pytest

KILLED = 9

if __name__=="__main__": # a process of its own, which forks
    import numpy as np
    import pandas as pd
    import torch
    from fastai.tabular.all import Categorify, CategoryBlock, Normalize, TabularDataLoaders, tabular_learner
    from fastai.text.all import (
        AWD_LSTM, BaseTokenizer, TextDataLoaders, Tokenizer, awd_lstm_clas_config, text_classifier_learner)
    from fastai.vision.all import (Adam, Callback, ImageDataLoaders, PILImage, RandomResizedCrop, aug_transforms,
        resnet18, set_seed, vision_learner)
    from cinic_fastai.train.checkpoint import ResumeTraining, opt_tensors
    from cinic_fastai.train.optim import fused_adam, fused_sgd

    class Count(Callback):
        "Count steps, and end the process after one of them"
        order,run_valid,steps = 99,False,0
        def __init__(self, kill): self.kill = kill
        def after_batch(self):
            self.steps += 1
            if self.steps==self.kill: os._exit(KILLED)

def start(seed):
    "Seed weights and all that is drawn, and give the numbers for the data, which are always the same"
    torch.set_num_threads(1)
    set_seed(seed, reproducible=True)
    return np.random.default_rng(0)

def images(workers, seed):
    "fastai's `vision_learner` on noise, with random crops and flips"
    rng = start(seed)
    items = [PILImage.create(rng.integers(0, 255, (40,40,3), dtype=np.uint8)) for _ in range(20)]
    folder = Path("photos")
    folder.mkdir(exist_ok=True)
    for i,o in enumerate(items): o.save(folder/f"{'ab'[i%2]}_{i}.png")
    dls = ImageDataLoaders.from_name_func(folder, sorted(folder.glob("*.png")), lambda f: f[0], bs=4, valid_pct=.2,
        seed=0, item_tfms=RandomResizedCrop(32), batch_tfms=aug_transforms(), num_workers=workers, device="cpu")
    return vision_learner(dls, resnet18, pretrained=False, normalize=False)

def tables(workers, seed):
    "fastai's `tabular_learner`, with dropout"
    rng = start(seed)
    df = pd.DataFrame(dict(a=rng.normal(size=40), k=rng.choice(["x", "y"], 40), t=rng.choice(["no", "yes"], 40)))
    dls = TabularDataLoaders.from_df(df, procs=[Categorify, Normalize], cat_names=["k"], cont_names=["a"], y_names="t",
        y_block=CategoryBlock(), valid_idx=[*range(32, 40)], bs=8, num_workers=workers, device="cpu")
    return tabular_learner(dls, layers=[8], config=dict(ps=.3, embed_p=.2))

def texts(workers, seed):
    "fastai's `text_classifier_learner`, with all of AWD-LSTM's dropouts"
    words = start(seed).choice(["good", "bad", "film", "plot", "end"], (24, 6))
    df = pd.DataFrame(dict(text=[" ".join(o) for o in words], label=["ab"[i%2] for i in range(24)]))
    dls = TextDataLoaders.from_df(df, text_col="text", label_col="label", bs=4,
        tok_tfm=Tokenizer(BaseTokenizer(), rules=[]),
        valid_pct=.25, seed=0, num_workers=workers, device="cpu")
    config = awd_lstm_clas_config|dict(n_hid=12, n_layers=2, emb_sz=8)
    return text_classifier_learner(dls, AWD_LSTM, pretrained=False, config=config)


KINDS = dict(images=images, tables=tables, texts=texts)

def train(kind, workers, opt, call, out, seed, kill=0):
    "Train, perhaps up to a kill after so many steps: a checksum of weights and optimiser, and the number of steps"
    learn = KINDS[kind](workers, seed)
    learn.opt_func = dict(adam=Adam, fused_adam=fused_adam, fused_sgd=fused_sgd)[opt]
    count = Count(kill)
    cbs = [ResumeTraining(out, save_every=0), count]
    with learn.no_bar(), learn.no_logging():
        if call=="fine_tune": learn.fine_tune(2, cbs=cbs)
        else: getattr(learn, call)(3, 1e-2, cbs=cbs)
    tensors = {**learn.model.state_dict(), **opt_tensors(learn.opt)}
    digest = sha256()
    for k in sorted(tensors): digest.update(tensors[k].detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest(),count.steps

def killed(*args):
    "Train in a process that is killed, and give its exit status"
    child = os.fork()
    if not child: train(*args)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def compare(kind, workers, opt, call, *kills):
    "Train without a stop, and with kills and other seeds for what goes on: only what is stored can be equal"
    job = kind,int(workers),opt,call
    weights,steps = train(*job, "whole.safetensors", 7)
    for i,kill in enumerate(map(int, kills)): assert killed(*job, "cut.safetensors", 7+i, kill)==KILLED
    again,rest = train(*job, "cut.safetensors", 99)
    assert again==weights
    assert rest==steps-sum(int(k)-1 for k in kills) # the last step before a kill isn't stored yet
    print(f"{steps} steps, the last {rest} of them again")

@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork of a process")
@pytest.mark.parametrize("job", [
    "images 0 adam fit_one_cycle 6",
    "images 2 fused_sgd fit_flat_cos 7",
    "images 0 fused_adam fine_tune 3 4",
    "tables 0 adam fit 4 3",
    "texts 0 adam fit_one_cycle 8"])
def test_killed_and_resumed(tmp_path, job):
    done = subprocess.run([sys.executable, "-W", "ignore", __file__, *job.split()], cwd=tmp_path, capture_output=True,
        text=True)
    assert not done.returncode, done.stderr[-2000:]

if __name__=="__main__":
    multiprocessing.set_start_method("fork") # Python 3.14's own sends fastai's transforms, which can't be pickled
    compare(*sys.argv[1:])
