"""Nothing in the batch loop waits for the device. PyTorch's `meta` device stands in for a GPU: its
tensors have shapes and no values, so whatever reads one raises.
What it can't show, the speed and the kernels of CUDA, the last test shows where there is a GPU."""
import shutil
from types import SimpleNamespace
import numpy as np
import pytest, torch
from fastai.callback.core import Callback, CancelFitException
from torch.utils._python_dispatch import TorchDispatchMode
from conftest import cinic
from cinic_fastai.core import Interrupted
from cinic_fastai.data.loaders import pack_dls
from cinic_fastai.files import read_json
from cinic_fastai.config import RunConfig, make_config
from cinic_fastai.store import RunStore
from cinic_fastai.study.runner import run_study
from cinic_fastai.study.trainer import StudyOptions
from cinic_fastai.plan_file import parse_plan
from cinic_fastai.test_utils import tiny_pack
from cinic_fastai.train.callbacks import TrainState
from cinic_fastai.train.fit import CheckpointCallback, fit_run
from cinic_fastai.train.learner import make_dls, make_learner

COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
CONFIGS = [RunConfig(model=m, policy=p, opt=o, bs=16, precision="float32", size=s)
    for m,p,o,s in (("custom_cnn", "none", "sgd", 0), ("custom_cnn", "combined", "adam", 0),
        ("test_resnet", "advanced", "adam", 48))]
CONFIGS.append(RunConfig(model="speednet", width=.25, flip="alternating", shift=2, average=.9, tta="flip-shift",
    bias_lr=8., muon=.1, hard=.5, bs=16, precision="float32"))

class NoWaiting(TorchDispatchMode):
    "Refuse copies to the device that wait for it; let the fused SGD, which knows no meta device, pass"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to = torch.device(kwargs.get("device") or "cpu").type
        moved = func is torch.ops.aten._to_copy.default and to=="meta" and args[0].device.type!="meta"
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
def test_a_run_waits_for_nothing(pack, cfg, tmp_path):
    learn,state = make_learner(pack, cfg, device="meta"),TrainState()
    learn.remove_cbs([cb for cb in learn.cbs if cb.name in ("progress", "recorder")])
    keeper = CheckpointCallback(state, tmp_path/"last.safetensors")
    with NoWaiting(): learn.fit_config(state, [keeper, EndAfter("train")])
    assert state.batch==3 and state.sums["train"][0].device.type=="meta"

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


class Mps26(TorchDispatchMode):
    """Refuse on the CPU what Apple's MPS refuses under PyTorch 2.6: float64, borders in `grid_sample`, antialiased
    resizing; and a bias without a scale in batch normalisation, whose gradient CUDA loses"""
    refused = {torch.ops.aten._upsample_bilinear2d_aa.default: "antialiased resizing",
        torch.ops.aten._upsample_bilinear2d_aa_backward.default: "antialiased resizing",
        torch.ops.aten._linalg_eigh.default: "eigenvalues",
        torch.ops.aten.grid_sampler_3d.default: "volumes in grid_sample"}
    norms = (torch.ops.aten.native_batch_norm.default, torch.ops.aten._batch_norm_with_update.default)
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if why := self.refused.get(func): raise TypeError(f"{why}: not on MPS")
        if func is torch.ops.aten.grid_sampler_2d.default and args[3]==1: raise TypeError("border padding: not on MPS")
        if func in self.norms and args[1] is None and args[2] is not None:
            raise TypeError("a bias without a scale: not on CUDA")
        out = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves((args, out)):
            if isinstance(t, torch.Tensor) and t.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"float64 in {func}: not on MPS")
        return out

def refusing(f, *args, **kw):
    "Call a function under the refusals"
    with Mps26(): return f(*args, **kw)

def here(call):
    "An executor that has `call(fn, task)` do tasks in this process, where a study's workers would be others"
    return SimpleNamespace(submit=lambda fn, task: SimpleNamespace(result=lambda: call(fn, task)))

@pytest.mark.parametrize("settings", [
    dict(model="custom_cnn", policy="combined", interp="nearest", opt="adam", label_smoothing=.1),
    dict(model="test_resnet", policy="gentle", size=48, opt="rmsprop"),
    dict(model="speednet", width=.25, flip="alternating", shift=2, average=.9, tta="flip-shift", schedule="triangle",
        bias_lr=8., muon=.1, hard=.5, nesterov=True)], ids=lambda d: d["model"])
def test_a_run_does_without_what_apples_devices_lack(pack, settings, tmp_path):
    "Training, checkpoints, resuming, validation and probabilities"
    cfg,store = make_config(dict(bs=16, epochs=2, precision="float32")|settings),RunStore(tmp_path)
    asked = iter([0]*4+[2])
    with pytest.raises(Interrupted): refusing(fit_run, cfg, pack, store, stop=lambda: next(asked, 2))
    done = refusing(fit_run, cfg, pack, store, stop=lambda: 0, save_every=0.)
    plain = fit_run(cfg, pack, RunStore(tmp_path/"plain"), stop=lambda: 0)
    assert {**done, "seconds": 0, "images_per_s": 0}=={**plain, "seconds": 0, "images_per_s": 0}

def test_a_study_does_without_what_apples_devices_lack(pack, tmp_path):
    "Search, votes, page and prediction, too"
    from cinic_fastai.results.predict import load_predictor
    plan = parse_plan("""[study]
name = "apple"
[defaults]
model = "custom_cnn"
bs = 16
epochs = 1
precision = "float32"
[[run]]
name = "a"
policy = "advanced"
[[search]]
name = "s"
random = 1
guided = 1
space = { lr = {log=[1e-3,1e-1]} }
[[run]]
name = "b"
from = "search:s"
[[ensemble]]
name = "soft"
method = "greedy"
temperature = true
members = ["a", "b"]
""")
    options = StudyOptions(backend=here(refusing)) # the refusals hold for one thread of one process
    record = refusing(run_study, plan, pack, tmp_path/"out", options, stop=lambda: 0)
    assert {r.status for r in [*record.runs, *record.searches, *record.ensembles]}=={"done"}
    probs = refusing(lambda: load_predictor(tmp_path/"out", "soft").probs([np.asarray(pack.images[0])]*3))
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-6)

@pytest.mark.parametrize("what", [lambda: torch.zeros(1).double(),
    lambda: torch.nn.functional.grid_sample(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 2, 2), padding_mode="border"),
    lambda: torch.nn.functional.interpolate(torch.zeros(1, 1, 4, 4), (2,2), mode="bilinear", antialias=True),
    lambda: torch.nn.functional.batch_norm(torch.ones(2, 2), torch.zeros(2), torch.ones(2), None,
        torch.zeros(2, requires_grad=True), True)], ids=["float64", "border", "antialias", "bias"])
def test_the_refusals_refuse(what):
    with pytest.raises(TypeError, match="not on"): refusing(what)

@pytest.mark.parametrize("command", ["study", "dry run", "train"])
def test_a_device_that_is_not_there_is_refused_before_work(images, plan_file, tmp_path, command):
    words = {"study": ["study", plan_file, "--out", tmp_path], "dry run": ["study", plan_file, "--dry-run"],
        "train": ["train", "model=custom_cnn", "bs=16", "--out", tmp_path]}[command]
    done = cinic(*words, "--data", images, "--device", "cuda:99")
    assert done.returncode==2 and "There is no cuda:99 here" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("done.json"))

def test_the_device_is_told_and_no_part_of_the_id(pack, tmp_path):
    cfg = RunConfig(model="custom_cnn", bs=16, epochs=1)
    done = fit_run(cfg, pack, RunStore(tmp_path), stop=lambda: 0, device="cpu")
    assert fit_run(cfg, pack, RunStore(tmp_path), stop=lambda: 1)==done # nothing is trained again
    assert read_json(next(tmp_path.glob("*/env.json")))["device"]=="cpu"

def test_a_study_asks_for_equal_bits_before_cuda_starts(pack, tmp_path, monkeypatch):
    "Looking for a device starts CUDA, which then no longer heeds what cuBLAS is asked"
    from cinic_fastai.data import loaders
    from cinic_fastai.train.device import CUBLAS
    pick,started = loaders.pick_device,[]
    monkeypatch.delenv(CUBLAS)
    monkeypatch.setattr(loaders, "pick_device", lambda *args: started.append(1) or pick(*args))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: bool(started))
    monkeypatch.setattr("cinic_fastai.report.render.write_page", lambda *args: None)
    plan = parse_plan("[study]\nname = 'p'\n[[run]]\nname = 'a'\nmodel = 'custom_cnn'\nbs = 16\nepochs = 1")
    options = StudyOptions(deterministic=True, backend=here(lambda fn, task: fn(task)))
    run, = run_study(plan, pack, tmp_path, options, stop=lambda: 0).runs
    assert run.status=="done", run.reason

@pytest.mark.cuda
@pytest.mark.parametrize("policy", ["none", "combined"])
def test_cuda(pack, policy):
    "On a GPU: the pack lives there, no batch waits, and the network learns what it learns on a CPU"
    cfg = RunConfig(model="custom_cnn", policy=policy, bs=16, lr=1e-2)
    learn = make_learner(make_dls(pack, cfg, device="cuda"), cfg)
    class Strict(Callback):
        order = -20
        def before_batch(self): torch.cuda.set_sync_debug_mode("error")
        def after_train(self): torch.cuda.set_sync_debug_mode("default")
        def after_validate(self): torch.cuda.set_sync_debug_mode("default")
    with learn.no_bar(), learn.no_logging(): learn.fit(3, cbs=Strict())
    assert pack.resident[learn.dls.device] is not None
    assert learn.recorder.values[-1][1]<learn.recorder.values[0][1]
    a,b = (next(iter(pack_dls(pack, bs=16, device=d).train))[0].cpu() for d in ("cpu", "cuda"))
    np.testing.assert_allclose(a, b, atol=1e-5)

@pytest.mark.cuda
@pytest.mark.parametrize("model", ["custom_cnn", "resnet18", "speednet"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_cuda_runs_are_cut_off_and_go_on_to_the_same_bits(pack, model, precision, tmp_path):
    "With deterministic kernels; and float32 learns what the CPU learns"
    cfg = RunConfig(model=model, policy="combined", bs=16, epochs=2, precision=precision, width=.25)
    def fitted(name, stop=lambda: 0, **kw):
        fit_run(cfg, pack, RunStore(tmp_path/name), stop=stop, **kw)
        (rid,) = RunStore(tmp_path/name).ids()
        return RunStore(tmp_path/name).probs(rid)["probs"]
    whole,asked = fitted("whole", deterministic=True),iter([0]*4+[2])
    with pytest.raises(Interrupted): fitted("cut", lambda: next(asked, 2), deterministic=True)
    np.testing.assert_array_equal(fitted("cut", deterministic=True), whole)
    if precision=="float32": np.testing.assert_allclose(whole, fitted("cpu", device="cpu"), atol=2e-2)

@pytest.mark.cuda
def test_cuda_images_whiten():
    from cinic_fastai.train.networks import SpeedNet
    xb,nets = torch.rand(16, 3, 32, 32),(SpeedNet(), SpeedNet().cuda())
    for net,x in zip(nets, (xb, xb.cuda())): net.init_whitening_(x)
    assert torch.equal(nets[0].first[0].weight, nets[1].first[0].weight.cpu())

@pytest.mark.cuda
def test_cuda_float32_is_no_tf32(pack):
    "Convolutions agree with float64 to float32's own error"
    make_learner(make_dls(pack, CONFIGS[0], device="cuda"), CONFIGS[0])
    x,w = torch.randn(8, 64, 16, 16, device="cuda"),torch.randn(64, 64, 3, 3, device="cuda")
    got,right = torch.nn.functional.conv2d(x, w),torch.nn.functional.conv2d(x.double(), w.double())
    assert ((got-right).abs().max()/right.abs().max()).item()<1e-5

@pytest.mark.cuda
def test_cuda_predicts_what_the_run_stored(pack, tmp_path):
    from cinic_fastai.results.predict import load_predictor
    plan = parse_plan("[study]\nname = 'p'\n[[run]]\nname = 'a'\nmodel = 'custom_cnn'\nbs = 16\nepochs = 2\n"
        "precision = 'float32'")
    record = run_study(plan, pack, tmp_path, stop=lambda: 0)
    predictor = load_predictor(tmp_path)
    probs = predictor.probs([np.asarray(pack.images[r]) for r in pack.rows["test"]])
    assert predictor.device.type=="cuda"
    stored = RunStore(tmp_path/"runs").probs(record.runs[0].run_id, "test")
    np.testing.assert_allclose(probs, stored["probs"], atol=1e-4)

@pytest.mark.parametrize("device", [pytest.param("cpu", marks=[pytest.mark.slow, COMPILER]),
    pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("model", ["custom_cnn", "resnet18", "speednet"])
def test_a_compiled_network_learns_in_bfloat16(pack, model, device):
    cfg = RunConfig(model=model, bs=16, lr=1e-2, width=.25, compile=True, precision="bf16")
    learn = make_learner(make_dls(pack, cfg, device=device), cfg)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert np.isfinite(learn.recorder.values[0]).all()
