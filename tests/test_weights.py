"Pretrained weights: files that fit, that don't and that attack, and a network that isn't there. No test needs one."
import hashlib, http.server, os, pickle, socket, subprocess, sys, threading, time
from pathlib import Path
import pytest
import timm, torch, torchvision
from safetensors.torch import save_file, save_model
from cinic_fastai.core import WeightsError
from cinic_fastai.results.predict import read_member
from cinic_fastai.config import RunConfig, run_id
from cinic_fastai.store import RunStore
from cinic_fastai.test_utils import tiny_pack
from cinic_fastai.train import models as weights
from cinic_fastai.train.fit import fit_run
from cinic_fastai.train.models import make_model
from cinic_fastai.train.networks import head_params, timm_net
from cinic_fastai.train.models import find_weights, head_status, load_weights

HUB_NAME = "test_resnet.r160_in1k" # timm's smallest network with weights on the hub

@pytest.fixture(scope="module")
def tv(): # torchvision's ResNet-18, random weights
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None)

@pytest.fixture(scope="module")
def tv_file(tv, tmp_path_factory): # in torchvision's own key layout
    f = tmp_path_factory.mktemp("tv")/"resnet18.pth"
    torch.save(tv.state_dict(), f)
    return f

# files

@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".legacy.pth"])
def test_torchvision_file_gives_torchvision_features(tv, tmp_path, suffix):
    f = tmp_path/f"weights{suffix}"
    if suffix==".safetensors": save_file(tv.state_dict(), f)
    else: torch.save(tv.state_dict(), f, _use_new_zipfile_serialization=suffix==".pth")
    net = make_model(RunConfig(model="resnet18.tv_in1k", pretrained=True), 10, weights=f).eval()
    x = torch.randn(3, 3, 32, 32)
    feats = torch.nn.Sequential(*list(tv.children())[:-1], torch.nn.Flatten()).eval()
    with torch.no_grad():
        ours = net.forward_head(net.forward_features(x), pre_logits=True)
        assert torch.allclose(ours, feats(x), atol=1e-5)
        assert net(x).shape==(3, 10)
    tv.train()

def test_softmax_and_small_head_take_the_same_file(tv_file):
    net = make_model(RunConfig(model="resnet18", pretrained=True, softmax=True), 3, weights=tv_file).eval()
    assert torch.allclose(net(torch.randn(2, 3, 32, 32)).sum(1), torch.ones(2), atol=1e-5)

@pytest.mark.parametrize("keep", [0, 1, 1000, -1])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_file_is_named(tv, tv_file, tmp_path, keep, suffix):
    whole = tv_file
    if suffix==".safetensors": save_file(tv.state_dict(), whole := tmp_path/"whole.safetensors")
    f = tmp_path/f"cut{suffix}"
    data = whole.read_bytes()
    f.write_bytes(data[:keep if keep>=0 else len(data)//2])
    with pytest.raises(WeightsError, match="is damaged or no file of weights") as e:
        load_weights(timm_net("resnet18"), f)
    assert str(f) in str(e.value) and "\n" not in str(e.value)

def test_wrong_shapes_and_names_are_named(tv_file, tmp_path):
    state = torch.load(tv_file, weights_only=True)
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 5, 5)
    torch.save(state, tmp_path/"shape.pth")
    misfit = r"layer1.0.conv1.weight is \(64, 64, 5, 5\) in the file and \(64, 64, 3, 3\)"
    with pytest.raises(WeightsError, match=misfit): load_weights(timm_net("resnet18"), tmp_path/"shape.pth")
    del state["layer1.0.conv1.weight"]
    torch.save(state, tmp_path/"missing.pth")
    with pytest.raises(WeightsError, match="layer1.0.conv1.weight is missing"):
        load_weights(timm_net("resnet18"), tmp_path/"missing.pth")
    with pytest.raises(WeightsError, match="doesn't fit resnet10t: .*, and"):
        load_weights(timm_net("resnet10t"), tv_file)
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path/"34.pth")
    misfit = "doesn't fit resnet18: layer1.2.conv1.weight is not in the network, and"
    with pytest.raises(WeightsError, match=misfit): load_weights(timm_net("resnet18"), tmp_path/"34.pth")

def wrapped(how, net):
    "A network's tensors under the names that training with something around it leaves"
    d = net.state_dict()
    if how=="compiled part": return {k.replace("layer1.", "layer1._orig_mod."): v for k,v in d.items()}
    around = {"criterion.weight": torch.ones(1000), "epochs": torch.ones(1)}
    return {how+k: v for k,v in d.items()}|({} if how.startswith(("module", "_orig")) else around)

@pytest.mark.parametrize("how", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.",
    "net.module.", "model._orig_mod.", "compiled part"])
def test_names_that_something_put_a_prefix_before(tv, tmp_path, how):
    torch.save({"state_dict": wrapped(how, tv), "epoch": 3, "hyper_parameters": {"lr": .1}}, tmp_path/"wrapped.ckpt")
    net = load_weights(timm_net("resnet18", 1000), tmp_path/"wrapped.ckpt")
    for k,v in net.state_dict().items(): assert torch.equal(v, tv.state_dict()[k]), k

def test_a_prefix_does_not_hide_what_is_missing(tv, tmp_path):
    state = {f"module.{k}": v for k,v in tv.state_dict().items() if k!="layer1.0.conv1.weight"}
    torch.save(state, tmp_path/"missing.pth")
    words = r"doesn't fit resnet18: layer1.0.conv1.weight is missing in the file\."
    with pytest.raises(WeightsError, match=words): load_weights(timm_net("resnet18"), tmp_path/"missing.pth")

def test_inception_of_torchvision(tmp_path):
    torch.manual_seed(0)
    tv = torchvision.models.inception_v3(weights=None, init_weights=False)
    torch.save(tv.state_dict(), tmp_path/"inception_v3.pth")
    net = load_weights(timm_net("inception_v3", 1000, size=96), tmp_path/"inception_v3.pth")
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad(): assert torch.allclose(net.eval()(x), tv.eval()(x), atol=1e-5)

def test_vgg_names_of_torchvision(): # its file has half a gigabyte: here shapes without values
    with torch.device("meta"):
        tv, net = torchvision.models.vgg11(weights=None), timm.create_model("vgg11", num_classes=10)
    assert weights.shape_mismatches(net, weights.match_names(net, tv.state_dict()))==[]

@pytest.mark.slow
def test_vgg_of_torchvision(tmp_path):
    tv = torchvision.models.vgg11(weights=None)
    torch.save(tv.state_dict(), tmp_path/"vgg11.pth")
    net = load_weights(timm_net("vgg11", 1000, size=224), tmp_path/"vgg11.pth")
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad(): assert torch.allclose(net.eval()(x), tv.eval()(x), atol=1e-5)

def test_volo_has_two_heads(tmp_path):
    def volo(n):
        net = timm.models.volo.VOLO((1, 1, 1, 1), img_size=32, num_classes=n, embed_dims=(16, 32, 32, 32),
            num_heads=(2, 2, 2, 2))
        net.pretrained_cfg = timm.get_pretrained_cfg("volo_d1_224").to_dict()
        return net
    torch.manual_seed(0)
    big, net = volo(1000), volo(10)
    torch.save(big.state_dict(), tmp_path/"volo.pth")
    fresh = {k: v.clone() for k,v in net.state_dict().items()}
    load_weights(net, tmp_path/"volo.pth")
    heads = ("head.weight", "head.bias", "aux_head.weight", "aux_head.bias")
    assert set(head_params(net))==set(heads)
    for k,v in net.state_dict().items(): assert torch.equal(v, fresh[k] if k in heads else big.state_dict()[k]), k

def test_tied_weights_are_saved_and_read(tmp_path):
    pack, store, cfg = tiny_pack(n=4), RunStore(tmp_path/"runs"), RunConfig(model="coat_lite_tiny", bs=12, epochs=1)
    fit_run(cfg, pack, store)
    member = read_member(store.folder(run_id(cfg, pack.digest)))
    x = torch.from_numpy(pack.images[pack.rows["test"]]).permute(0, 3, 1, 2)
    assert abs(member(x).numpy()-store.probs(run_id(cfg, pack.digest), "test")["probs"]).max()<1e-5
    save_model(timm.create_model("coat_lite_tiny"), tmp_path/"tied.safetensors") # without the tensors' other names
    load_weights(timm_net("coat_lite_tiny", size=32), tmp_path/"tied.safetensors")

def test_a_declared_file_is_never_replaced_by_other_weights(tmp_path, monkeypatch):
    "Timm's own would be kept under the id of the file"
    cfg = RunConfig(model="custom_cnn", pretrained=True, weights="ab"*32, bs=16, epochs=1)
    store = RunStore(tmp_path/"runs")
    torch.save(make_model(RunConfig(model="custom_cnn"), 3).state_dict(), tmp_path/"other.pth")
    monkeypatch.setattr(weights, "find_weights", lambda name: tmp_path/"other.pth")
    with pytest.raises(WeightsError, match=r"SHA-256 abababababab\.\.\..*--weights FILE"):
        fit_run(cfg, tiny_pack(n=4), store, stop=lambda: 0)
    assert not store.ids()

def test_refused_weights_leave_the_network_alone(tv_file):
    net = make_model(RunConfig(model="custom_cnn"))
    before = {k: v.clone() for k,v in net.state_dict().items()}
    with pytest.raises(WeightsError): load_weights(net, tv_file)
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())

class Evil:
    "A payload that a plain `torch.load` would run"
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return Path.touch, (Path(self.mark),)

@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("name", ["evil.pth", "evil.bin", "evil.safetensors"])
def test_payload_does_not_run(tmp_path, how, name):
    mark, f = tmp_path/"pwned", tmp_path/name
    state = {"conv1.weight": torch.zeros(1), "x": Evil(mark)}
    if how=="pickle": f.write_bytes(pickle.dumps({"x": Evil(mark)}))
    else: torch.save(state, f, _use_new_zipfile_serialization=how=="zip")
    with pytest.raises(WeightsError) as e: load_weights(timm_net("resnet18"), f)
    assert not mark.exists()
    assert "weights_only" not in str(e.value) # no advice to run it after all
    if how!="pickle" and name!="evil.safetensors": assert "nothing in it was run" in str(e.value)

# the network

FIND = """
import sys, time
from cinic_fastai.core import WeightsError
from cinic_fastai.train.models import find_weights
for name in sys.argv[1:]:
    start = time.perf_counter()
    try: print("found", find_weights(name))
    except WeightsError as e: print("WeightsError", e)
    print(time.perf_counter()-start)
"""

def find(names, home, **env):
    "`find_weights` for each name, in a process whose caches are under `home`: what it said, and its seconds"
    set_here = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "hf_hub_offline", "transformers_offline",
        "hf_endpoint", "hf_hub_cache")
    kept = {k:v for k,v in os.environ.items() if k.lower() not in set_here}
    kept |= dict(HF_HOME=str(home/"hf"), TORCH_HOME=str(home/"torch"), OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore",
        HF_HUB_DISABLE_XET="1", **env)
    done = subprocess.run([sys.executable, "-c", FIND, *names], capture_output=True, text=True, encoding="utf-8",
        env=kept, timeout=120)
    assert done.returncode==0, done.stderr
    lines = done.stdout.splitlines()
    return list(zip(lines[::2], map(float, lines[1::2]), strict=True))

def no_way_out(port):
    "Environment of a process that reaches the world only through this machine's `port`"
    names = ("http_proxy", "https_proxy", "all_proxy")
    return {k: f"http://127.0.0.1:{port}" for n in names for k in (n, n.upper())}

def test_closed_network_is_named_within_ten_seconds(tmp_path):
    (said, seconds), = find(["resnet18.tv_in1k"], tmp_path, **no_way_out(9))
    assert said.startswith("WeightsError Pretrained weights for resnet18.tv_in1k are not in the cache")
    assert "--weights FILE" in said
    assert "huggingface.co does not answer" in said
    assert seconds<10

def test_silent_network_is_given_up_within_ten_seconds(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent: # takes calls and never says a word
        (said, seconds), = find(["resnet18.tv_in1k"], tmp_path, **no_way_out(silent.getsockname()[1]))
    assert "huggingface.co does not answer, download.pytorch.org does not answer" in said
    assert 5<seconds<10

def test_slow_name_lookup_is_given_up(monkeypatch):
    over = threading.Event()
    def lookup(*args, **kw):
        over.wait(20)
        raise socket.gaierror("no such host")
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    for k in no_way_out(9): monkeypatch.delenv(k, raising=False)
    start = time.perf_counter()
    try: assert head_status("https://weights.invalid/x", 1) is None
    finally: over.set()
    assert time.perf_counter()-start<3

def test_refusal_is_told(monkeypatch):
    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda **file: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "nowhere")
    monkeypatch.setattr(weights, "head_status", lambda url: 403)
    monkeypatch.setattr(weights.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(WeightsError, match="huggingface.co answers 403"): find_weights(HUB_NAME)

# the hub, played by a server on this machine

class Hub(http.server.BaseHTTPRequestHandler):
    "Serves the files of `self.server.files` as the hub does"
    def do_HEAD(self): self.answer()
    def do_GET(self): self.answer(body=True)
    def log_message(self, *args): pass
    def answer(self, body=False):
        data = self.server.files.get(self.path)
        self.server.asked.append((self.command, self.path))
        self.send_response(404 if data is None else 200)
        if data is None: self.send_header("X-Error-Code", "EntryNotFound")
        else: self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0"*40)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if body and data: self.wfile.write(data)

@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()

def test_download_then_cache(hub, tv_file, tmp_path):
    names = dict(zip((HUB_NAME, "test_vit.r160_in1k"), ("model.safetensors", "pytorch_model.bin")))
    nets = {n: timm.create_model(n) for n in names}
    for name,file in names.items():
        save = save_file if file.endswith("tensors") else torch.save
        save(nets[name].state_dict(), tmp_path/"f")
        hub.files[f"/timm/{name}/resolve/main/{file}"] = (tmp_path/"f").read_bytes()
    said = [s for s,_ in find(names, tmp_path, HF_ENDPOINT=hub.url)]
    for s,(name,file) in zip(said, names.items()):
        assert s.startswith("found") and s.endswith(file)
        loaded = make_model(RunConfig(model=name, pretrained=True), 10, weights=Path(s.removeprefix("found ")))
        own, theirs = loaded.state_dict(), nets[name].state_dict()
        same = [k for k in own if own[k].shape==theirs[k].shape]
        assert len(same)>=len(own)-3 # all but the head, and the vit's positions
        assert all(torch.equal(own[k], theirs[k]) for k in same)
    old = tmp_path/"torch"/"hub"/"checkpoints"/"resnet18-f37072fd.pth" # where torchvision keeps its own
    old.parent.mkdir(parents=True)
    old.write_bytes(tv_file.read_bytes())
    again = find([*names, "resnet18.tv_in1k", "resnet34.tv_in1k"], tmp_path, HF_HUB_OFFLINE="1")
    assert [s for s,_ in again[:3]]==[*said, f"found {old}"]
    assert "HF_HUB_OFFLINE is set" in again[3][0] and all(t<2 for _,t in again)

def test_download_by_address_checks_the_hash(hub, tmp_path, monkeypatch):
    data = b"weights"
    good, bad = (f"/net-{h}.pth" for h in (hashlib.sha256(data).hexdigest()[:8], "0"*8))
    hub.files = {good: data, bad: data}
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    def places(url): return weights.weight_urls(timm.models.PretrainedCfg(url=hub.url+url))
    def cached(url): return places(url)[hub.url+url][0]
    assert weights._download(places(good)).read_bytes()==data
    assert cached(good).read_bytes()==data
    with pytest.raises(WeightsError, match=r"127.0.0.1:\d+ broke off \(RuntimeError\)"): weights._download(places(bad))
    assert cached(bad) is None
