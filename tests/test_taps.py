"Live taps beside the plain convolutions they stand for, in timm's networks"
import copy
import pytest
import timm
import torch
import torch.nn.functional as F
from cinic_fastai.train.networks import CustomCNN, SpeedNet
from cinic_fastai.train.taps import LiveConv2d, idle_weights, live_taps

NETWORKS = ("resnet10t", "seresnet18", "repvgg_a0", "gernet_s", "cs3darknet_s")
SIZES = (16, 20, 24, 28, 32)

def twins(name, dtype, **kw):
    "A network and its copy with live taps; the last scales of residual blocks let gradients through"
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=10, **kw).to(dtype).train()
    for m in plain.modules():
        if isinstance(m, torch.nn.BatchNorm2d): torch.nn.init.uniform_(m.weight, .5, 1.5)
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    return plain, live_taps(copy.deepcopy(plain))

def distance(a, b):
    "The largest difference, in parts of the largest value"
    return float((a-b).abs().max()/b.abs().max())

def outputs_and_gradients(net, x):
    out = net(x)
    F.cross_entropy(out, torch.arange(len(x))%10).backward()
    return out.detach(), {k: p.grad for k,p in net.named_parameters() if p.grad is not None}

@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_are_those_of_plain_convolutions(name, size):
    plain, live = twins(name, torch.float64)
    assert any(isinstance(m, LiveConv2d) for m in live.modules())
    x = torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(1)).double()
    (y, g), (z, h) = outputs_and_gradients(plain, x), outputs_and_gradients(live, x)
    assert g.keys()==h.keys() and distance(z, y)<1e-12
    assert max(distance(h[k], g[k]) for k in g)<1e-10 # batch normalisation of 16 pixels magnifies roundings

@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_single_precision(layout):
    plain, live = (net.to(memory_format=layout) for net in twins("resnet18", torch.float32))
    x = torch.randn(32, 3, 32, 32).to(memory_format=layout)
    (y, g), (z, h) = outputs_and_gradients(plain, x), outputs_and_gradients(live, x)
    assert distance(z, y)<1e-5
    assert max(distance(h[k], g[k]) for k in g)<1e-4

def test_weights_are_interchangeable():
    plain, live = twins("resnet18", torch.float32)
    live.load_state_dict(plain.state_dict())
    plain.load_state_dict(live.state_dict())
    assert [p.shape for p in live.parameters()]==[p.shape for p in plain.parameters()]
    assert type(live_taps(live, on=False).layer4[1].conv2) is torch.nn.Conv2d

def test_what_is_no_plain_convolution_stays():
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1, groups=2), torch.nn.Conv2d(4, 4, 3),
        torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), torch.nn.Conv2d(4, 4, 1),
        torch.nn.Conv2d(4, 4, 3, padding=2, dilation=2), torch.nn.Conv2d(4, 4, 3, padding="same"))
    assert not any(isinstance(m, LiveConv2d) for m in live_taps(net).modules())

def test_images_that_are_not_square_are_convolved_as_ever():
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    x = torch.randn(2, 3, 1, 2)
    wanted = conv(x)
    assert torch.equal(live_taps(torch.nn.Sequential(conv))(x), wanted)

@pytest.mark.parametrize("net", [CustomCNN(10), SpeedNet(10)])
def test_our_own_networks_have_no_idle_weights(net): assert idle_weights(net, 32)==0
