"""One epoch of ResNet-18 in float32, as the main work of a process whose memory is watched

    python -m benchmarks.trainings ours|fastai SETTINGS.json

Each side imports only itself.
"""
import json
import sys
from pathlib import Path

def ours(root, n, bs):
    "Our `Learner` on the first `n` images of each split"
    from cinic_fastai.data.pack import get_pack
    from cinic_fastai.config import RunConfig
    from cinic_fastai.train.learner import make_dls, make_learner
    import cinic_fastai.all # noqa: F401 (what a notebook holds)
    cfg = RunConfig(model="resnet18", bs=bs, precision="float32")
    learn = make_learner(make_dls(get_pack(root).limit(n), cfg, device="cpu"), cfg)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)

def fastai(root, files, bs, mean, std):
    "A stock `Learner` on the files named"
    import fastai.vision.all as f
    from torchvision.models import resnet18
    normalize = f.Normalize.from_stats(mean, std, cuda=False)
    block = f.DataBlock((f.ImageBlock, f.CategoryBlock), get_items=lambda _: [f.Path(o) for o in files],
        splitter=f.GrandparentSplitter(), get_y=f.parent_label, batch_tfms=normalize)
    dls = block.dataloaders(root, bs=bs, num_workers=2, device="cpu")
    learn = f.Learner(dls, resnet18(num_classes=dls.c), loss_func=f.CrossEntropyLossFlat(),
        opt_func=f.partial(f.SGD, mom=.9), metrics=f.accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)

if __name__=="__main__":
    side, settings = sys.argv[1:]
    dict(ours=ours, fastai=fastai)[side](**json.loads(Path(settings).read_text(encoding="utf-8")))
