"Live taps beside the plain convolutions they stand for, in timm's networks"
import copy, io, pickle
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from cinic_fastai.train.networks import CustomCNN, SpeedNet
from cinic_fastai.train.taps import LIVE_TAPS, LiveConv2d, idle_weights, live_taps

NETWORKS = ("resnet10t", "seresnet18", "repvgg_a0", "gernet_s", "cs3darknet_s")
SIZES = (16, 20, 24, 28, 32)
USUAL = dict(zip(NETWORKS, (32, 16, 24, 28, 20))) # One size each, at every test run

def crossed(networks):
    "Networks at all sizes; those at another than their usual one are slow"
    pairs = [(n, s) for n in networks for s in SIZES]
    return [pytest.param(n, s, marks=[] if s==USUAL.get(n) else pytest.mark.slow) for n,s in pairs]

def twins(name, dtype, **kw):
    "A network and its copy with live taps; the last scales of residual blocks let gradients through"
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=10, **kw).to(dtype).train()
    for m in plain.modules():
        if isinstance(m, nn.BatchNorm2d): nn.init.uniform_(m.weight, .5, 1.5)
        if isinstance(m, nn.Dropout): m.p = 0.
    return plain, live_taps(copy.deepcopy(plain))

def smooth(net):
    "Without ReLUs: where an input lies within rounding of 0, another half of the gradient passes"
    for m in net.modules():
        for k,relu in m.named_children():
            if isinstance(relu, nn.ReLU): setattr(m, k, nn.GELU())
    return net

def images(size, dtype=torch.float32, n=16):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)

def distance(a, b):
    "The largest difference, in parts of the largest value"
    return float((a-b).abs().max()/b.abs().max())

def outputs_and_gradients(net, x):
    out = net(x)
    F.cross_entropy(out, torch.arange(len(x))%10).backward()
    return out.detach(), {k: p.grad for k,p in net.named_parameters() if p.grad is not None}

def assert_alike(plain, live, x, of_outputs, of_gradients):
    "Outputs, gradients and what batch normalisation keeps"
    (y, g), (z, h) = outputs_and_gradients(plain, x), outputs_and_gradients(live, x)
    assert g.keys()==h.keys() and distance(z, y)<of_outputs
    assert max(distance(h[k], g[k]) for k in g)<of_gradients
    for a,b in zip(live.buffers(), plain.buffers()): assert distance(a.double(), b.double())<of_outputs

@pytest.mark.parametrize("name,size", crossed(NETWORKS))
def test_outputs_and_gradients_are_those_of_plain_convolutions(name, size):
    plain, live = twins(name, torch.float64)
    assert any(isinstance(m, LiveConv2d) for m in live.modules())
    assert_alike(plain, live, images(size, torch.float64), 1e-12, 1e-12)

@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["resnet18", *NETWORKS])
def test_single_precision(name, size):
    "As near to double precision as plain convolutions, or nearer than 1e-5 and 1e-4"
    plain, live = map(smooth, twins(name, torch.float32))
    exact, wanted = outputs_and_gradients(copy.deepcopy(plain).double(), images(size).double())
    def errors(net):
        out, grads = outputs_and_gradients(net, images(size))
        return distance(out, exact), max(distance(grads[k], o) for k,o in wanted.items())
    for found,usual,least in zip(errors(live), errors(plain), (1e-5, 1e-4)): assert found<max(least, 2*usual)

@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_formats(layout):
    plain, live = (net.to(memory_format=layout) for net in twins("resnet10t", torch.float32))
    assert_alike(plain, live, images(32).to(memory_format=layout), 1e-5, 1e-4)

def convolutions(*args, **kw):
    "A plain convolution and the same by its live taps"
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 7, 3, *args, padding=1, **kw)
    return plain, live_taps(copy.deepcopy(plain))

@pytest.mark.parametrize("side,stride", LIVE_TAPS["cpu"])
def test_a_convolution_with_a_bias_in_bfloat16(side, stride):
    plain, live = convolutions(stride)
    x = torch.randn(4, 5, side, side)
    assert distance(live(x), plain(x))<1e-6
    with torch.autocast("cpu", torch.bfloat16): y, z = plain(x), live(x)
    assert y.dtype==z.dtype==torch.bfloat16 and distance(z.float(), y.float())<.02

@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_leave_in_the_layout_of_the_weights(layout):
    "For networks that go on with `view`"
    plain, live = (net.to(memory_format=layout) for net in convolutions())
    x = torch.randn(3, 5, 2, 2).to(memory_format=layout)
    assert live(x).stride()==plain(x).stride()

def test_frozen_weights_get_no_gradient():
    _, live = convolutions(bias=False)
    x = torch.randn(4, 5, 1, 1, requires_grad=True)
    live.requires_grad_(False)(x).sum().backward()
    assert live.weight.grad is None and x.grad.abs().max()>0

def test_the_images_of_a_call_decide():
    "As sizes grow from epoch to epoch; three pixels a side, other shapes and single images are convolved as ever"
    plain, live = convolutions()
    for shape in ((2, 5, 2, 2), (2, 5, 3, 3), (2, 5, 1, 2), (5, 2, 2), (0, 5, 1, 1), (2, 5, 1, 1)):
        x = torch.randn(shape)
        assert torch.allclose(live(x), plain(x), atol=1e-6) and live(x).shape==plain(x).shape

def test_weights_and_pickles_are_interchangeable():
    plain, live = twins("resnet10t", torch.float32)
    live.load_state_dict(plain.state_dict())
    plain.load_state_dict(live.state_dict())
    assert [(k, p.shape) for k,p in live.named_parameters()]==[(k, p.shape) for k,p in plain.named_parameters()]
    back = live_taps(pickle.loads(pickle.dumps(live)), on=False).eval()
    assert not any(isinstance(m, LiveConv2d) for m in back.modules())
    with torch.no_grad(): assert torch.equal(back(images(32, n=2)), plain.eval()(images(32, n=2)))

@pytest.mark.slow
def test_exports_and_compiled_networks_are_interchangeable():
    plain, live = (net.eval() for net in twins("resnet10t", torch.float32))
    x, n = images(32, n=3), torch.export.Dim("n", min=1)
    wanted = plain(x)
    for net in (plain, live):
        onnx = pytest.importorskip("onnxruntime")
        f = io.BytesIO()
        torch.onnx.export(net, (images(32, n=2),), f, dynamic_shapes=({0: n},), dynamo=True)
        session = onnx.InferenceSession(f.getvalue())
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        assert np.abs(found-wanted.detach().numpy()).max()<1e-4
    program = torch.export.export(live, (images(32, n=2),), dynamic_shapes=({0: n},))
    assert distance(program.module()(x), wanted)<1e-5
    live.compile()
    assert distance(live(x), wanted)<1e-5

def test_what_is_no_plain_convolution_stays():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 3, padding="same"))
    assert not any(isinstance(m, LiveConv2d) for m in live_taps(net).modules())

@pytest.mark.parametrize("net", [CustomCNN(10), SpeedNet(10)])
def test_our_own_networks_have_no_idle_weights(net): assert idle_weights(net, 32)==0

@pytest.mark.parametrize("conv", [nn.Conv2d(3, 4, 3, padding="same", dilation=2), nn.Conv2d(3, 4, 5, 2, padding=2),
    nn.Conv2d(6, 4, (1,3), padding=(0,1), groups=2)])
@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_idle_weights_are_those_without_any_gradient(conv, side):
    "Beside the gradient of images that are random on both sides of zero"
    net = nn.Sequential(nn.Conv2d(3, conv.in_channels, 1), conv)
    grad = torch.autograd.grad(net(torch.randn(8, 3, side, side)).square().sum(), conv.weight)[0]
    assert idle_weights(net, side)==int((grad==0).sum())
