"""Nothing in the batch loop waits for the device. PyTorch's `meta` device stands in for a GPU: its tensors have shapes and no values, so whatever reads one raises.
What it can't show, the speed and the kernels of CUDA, the last test shows where there is a GPU."""
import numpy as np
import pytest, torch
from fastai.callback.core import Callback, CancelFitException
from torch.utils._python_dispatch import TorchDispatchMode
from cinic_fastai.data.loaders import pack_dls
from cinic_fastai.runs import RunConfig
from cinic_fastai.test_utils import tiny_pack
from cinic_fastai.train.fit import EpochSums, Progress, Steward, one_epoch
from cinic_fastai.train.learner import make_dls, make_learner

CONFIGS = [RunConfig(model=m, policy=p, opt=o, bs=16, precision="float32")
    for m,p,o in (("custom_cnn", "none", "sgd"), ("custom_cnn", "combined", "adam"), ("test_resnet", "advanced", "adam"))]

class NoWaiting(TorchDispatchMode):
    "Refuse copies to the device that wait for it; let the fused SGD, which knows no meta device, pass"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        moved = func is torch.ops.aten._to_copy.default and torch.device(kwargs.get("device") or "cpu").type=="meta" and args[0].device.type!="meta"
        assert not moved or kwargs.get("non_blocking"), f"a copy of {tuple(args[0].shape)} waits for the device"
        return None if func is torch.ops.aten._fused_sgd_.default else func(*args, **kwargs)

class EndAfter(Callback):
    "End the fit when an epoch's batches are done, before its sums are read"
    order = -20
    def __init__(self, event): self.event_name = event
    def after_train(self):
        if self.event_name=="train": raise CancelFitException
    def after_validate(self): raise CancelFitException

@pytest.fixture(scope="module")
def pack(): return tiny_pack()

@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda c: f"{c.model}-{c.policy}")
def test_a_learner_waits_for_nothing(pack, cfg):
    learn = make_learner(make_dls(pack, cfg, device="meta"), cfg)
    with NoWaiting(), learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=EndAfter("train"))
    assert len(learn.recorder.losses)==3 and learn.recorder.losses[-1].device.type=="meta"

@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda c: f"{c.model}-{c.policy}")
def test_a_run_waits_for_nothing(pack, cfg):
    learn,sums,progress = make_learner(make_dls(pack, cfg, device="meta"), cfg),EpochSums(),Progress()
    learn.remove_cbs([cb for cb in learn.cbs if cb.name in ("progress", "recorder")])
    learn.create_opt()
    steward = Steward(cfg, progress, save=lambda: None, stop=lambda: 0, on_event=lambda *a, **kw: None, save_every=60.)
    with NoWaiting(), learn.added_cbs([sums, steward, EndAfter("train")]): one_epoch(cfg, learn, sums, progress)
    assert progress.batch==3 and sums.sums["train"].device.type=="meta"

def test_validation_waits_for_nothing(pack):
    cfg = CONFIGS[0]
    learn = make_learner(make_dls(pack, cfg, device="meta"), cfg)
    with NoWaiting(), learn.no_bar(), learn.no_logging(), pytest.raises(CancelFitException):
        learn.add_cb(EndAfter("validate"))
        learn._do_epoch_validate()

def test_the_watch_sees_what_waits(pack):
    "A stock metric fetches every loss: the tests above could fail"
    from fastai.learner import AvgSmoothLoss
    cfg = CONFIGS[0]
    learn = make_learner(make_dls(pack, cfg, device="meta"), cfg)
    learn.recorder.smooth_loss = AvgSmoothLoss()
    with NoWaiting(), learn.no_bar(), learn.no_logging(), pytest.raises(Exception): learn.fit(1, cbs=EndAfter("train"))

@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("policy", ["none", "combined"])
def test_cuda(pack, policy):
    "On a GPU: the pack lives there, no batch waits, and the network learns what it learns on a CPU"
    cfg = RunConfig(model="custom_cnn", policy=policy, bs=16, lr=1e-2)
    learn = make_learner(make_dls(pack, cfg, device="cuda"), cfg)
    class Strict(Callback):
        order = -20
        def before_batch(self): torch.cuda.set_sync_debug_mode("error")
        def after_train(self): torch.cuda.set_sync_debug_mode("default")
        def before_validate(self): torch.cuda.set_sync_debug_mode("default")
    with learn.no_bar(), learn.no_logging(): learn.fit(3, cbs=Strict())
    assert pack.resident[torch.device("cuda")] is not None
    assert learn.recorder.values[-1][1]<learn.recorder.values[0][1]
    a,b = (next(iter(pack_dls(pack, bs=16, device=d).train))[0].cpu() for d in ("cpu", "cuda"))
    np.testing.assert_allclose(a, b, atol=1e-5)
