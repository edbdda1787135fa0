"What a network has to beat: logistic regression on pixels and on a pretrained network's features, by scikit-learn"
import numpy as np, pytest, torch, torchvision
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from cinic_fastai.config import RunConfig, run_id, with_weights
from cinic_fastai.core import ConfigError, Interrupted, WeightsError
from cinic_fastai.files import sha256
from cinic_fastai.plan_file import parse_plan
from cinic_fastai.report import render
from cinic_fastai.results.predict import read_member
from cinic_fastai.store import WEIGHTS_FILE, RunStore
from cinic_fastai.study.runner import run_study
from cinic_fastai.study.trainer import StudyOptions
from cinic_fastai.studyfolder import StudyFolder
from cinic_fastai.test_utils import tiny_pack
from cinic_fastai.train.fit import fit_run
from cinic_fastai.train.learner import make_learner
from cinic_fastai.train.models import SMALL_PRETRAINED, weights_at_hand

WD = .05
FITTED = dict(head="logistic", wd=WD, bs=16, precision="float32")
LINEAR = RunConfig(model="linear", **FITTED)
FROZEN = RunConfig(model="resnet18.tv_in1k", pretrained=True, **FITTED)

@pytest.fixture(scope="module")
def pack(): return tiny_pack()

@pytest.fixture(scope="module")
def tv_folder(tmp_path_factory):
    "torchvision's ResNet-18 under torchvision's names: the network, and a folder with its file"
    torch.manual_seed(0)
    folder, net = tmp_path_factory.mktemp("weights"), torchvision.models.resnet18(weights=None).eval()
    torch.save(net.state_dict(), folder/"resnet18-f37072fd.pth")
    return net, folder

def scikit(pack, features, split, **settings):
    "scikit-learn's probabilities, fitted to the training images"
    rows = pack.rows["train"]
    model = LogisticRegression(C=1/(len(rows)*WD), max_iter=2000, tol=1e-8, **settings)
    return model.fit(features("train"), pack.targs[rows]).predict_proba(features(split))

def pixels(pack):
    "Means of four normalised pixels, by split"
    def features(split):
        x = (pack.images[pack.rows[split]]/255-pack.mean)/pack.std
        return x.reshape(-1, 16, 2, 16, 2, 3).mean((2,4)).reshape(-1, 768)
    return features

def tv_features(pack, net):
    "What torchvision's network hands its last layer, by split"
    body = torch.nn.Sequential(*list(net.children())[:-1], torch.nn.Flatten())
    def features(split):
        x = (pack.images[pack.rows[split]]/255-pack.mean)/pack.std
        with torch.no_grad(): return body(torch.from_numpy(x).float().permute(0, 3, 1, 2)).numpy()
    return features

@pytest.mark.parametrize("weighted", ["none", "balanced"])
def test_a_run_on_pixels_is_scikit_learns(pack, tmp_path, weighted):
    kept = pack.rows["train"][:-5] # classes of different size
    uneven = pack.using(pack.rows|dict(train=kept))
    cfg = RunConfig(model="linear", class_weights=weighted, **FITTED)
    store, rid = RunStore(tmp_path), run_id(cfg, uneven.digest)
    done = fit_run(cfg, uneven, store)
    for split in ("valid", "test"):
        theirs = scikit(uneven, pixels(uneven), split, class_weight=None if weighted=="none" else weighted)
        assert abs(store.probs(rid, split)["probs"]-theirs).max()<1e-3
    assert (done["epochs"], done["params"])==(1, 3*769)
    x = torch.from_numpy(uneven.images[uneven.rows["test"]]).permute(0, 3, 1, 2)
    assert abs(read_member(store.folder(rid))(x).numpy()-store.probs(rid, "test")["probs"]).max()<1e-5

def test_features_of_a_pretrained_network_from_a_folder(pack, tmp_path, tv_folder):
    net, folder = tv_folder
    store = RunStore(tmp_path)
    fit_run(FROZEN, pack, store, weights=folder)
    rid = run_id(with_weights(FROZEN, folder/"resnet18-f37072fd.pth"), pack.digest)
    assert abs(store.probs(rid, "test")["probs"]-scikit(pack, tv_features(pack, net), "test")).max()<5e-3
    body = read_member(store.folder(rid)).net.state_dict()
    assert all(torch.equal(v, net.state_dict()[k]) for k,v in body.items() if not k.startswith("fc."))

def test_stopped_and_taken_up_it_has_the_same_bits(pack, tmp_path):
    rid, left = run_id(LINEAR, pack.digest), iter([0, 0])
    whole, cut = RunStore(tmp_path/"whole"), RunStore(tmp_path/"cut")
    with pytest.raises(Interrupted): fit_run(LINEAR, pack, cut, stop=lambda: next(left, 15))
    for store in (whole, cut): fit_run(LINEAR, pack, store)
    for name in (WEIGHTS_FILE, "probs_test.npz"):
        assert sha256(whole.folder(rid)/name)==sha256(cut.folder(rid)/name)

PLAN = """
[study]
name = "baselines"
[defaults]
bs = 16
epochs = 1
precision = "float32"
[[run]]
group = "final"
name = "logistic"
model = "linear"
head = "logistic"
wd = 0.05
[[run]]
group = "final"
name = "net"
model = "custom_cnn"
[[ensemble]]
name = "both"
method = "soft"
members = ["logistic", "net"]
"""

def test_in_a_study_it_is_a_predictor_like_any_other(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(render, "write_page", lambda *args: None)
    run_study(parse_plan(PLAN), pack, tmp_path/"out", StudyOptions(device="cpu"), stop=lambda: 0, fit=fit_run)
    from cinic_fastai.results.tables.predictors import predictors_table
    table = predictors_table(StudyFolder(tmp_path/"out")).set_index("predictor")
    right = scikit(pack, pixels(pack), "test").argmax(1)==pack.targs[pack.rows["test"]]
    assert table.test_acc["logistic"]==pytest.approx(right.mean())
    assert table.members["both"]=="logistic, net" and table.status["both"]=="done"

def test_what_does_not_go_with_it_is_refused(pack):
    with pytest.raises(ConfigError, match="take epochs = 1, flip = 'none'"):
        make_learner(pack, flip="random", head="logistic")
    with pytest.raises(ConfigError, match="doesn't end in one linear layer"):
        make_learner(pack, LINEAR, net=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 3)))

def test_weights_at_hand(tv_folder, tmp_path, monkeypatch):
    "From the folder that is given, else from a cache, without asking anyone"
    monkeypatch.setattr("cinic_fastai.train.models.head_status", lambda *args: pytest.fail("asked"))
    monkeypatch.setattr("cinic_fastai.train.models.try_to_load_from_cache", lambda **file: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    notes = []
    def hear(kind, text): notes.append(text)
    assert weights_at_hand(on_event=hear)=={}
    assert notes[0].count("\n")==0 and all(o in notes[0] for o in (*SMALL_PRETRAINED, "--weights DIR"))
    assert weights_at_hand(tv_folder[1], on_event=hear)=={"resnet18.tv_in1k": tv_folder[1]/"resnet18-f37072fd.pth"}
    old = tmp_path/"hub"/"checkpoints"/"convnext_atto_d2-01bb0f51.pth"
    old.parent.mkdir(parents=True)
    old.touch()
    assert weights_at_hand(on_event=hear)=={"convnext_atto.d2_in1k": old} and len(notes)==1
    with pytest.raises(WeightsError, match="holds no weights of convnext_atto"):
        with_weights(RunConfig(model="convnext_atto", pretrained=True), tv_folder[1])

def test_of_many_images_a_seed_draws_some(pack, monkeypatch):
    from cinic_fastai.train import callbacks
    monkeypatch.setattr(callbacks, "MOST_FITTED", 20)
    learn = make_learner(pack, LINEAR)
    draws = [callbacks.head_inputs(learn.model.eval(), learn.model[-1], learn.dls.train, seed) for seed in (1, 1, 2)]
    assert [len(x) for x,_ in draws]==[20]*3 and np.array_equal(draws[0][0], draws[1][0])
    assert not np.array_equal(draws[0][0], draws[2][0])

@pytest.mark.slow
def test_weights_of_a_short_training_in_timms_and_torchvisions_layout(pack, tmp_path):
    "One folder with a file for each network; frozen epochs leave what was trained before as it was"
    store, folder = RunStore(tmp_path/"runs"), tmp_path/"weights"
    folder.mkdir()
    states = {}
    for model in ("resnet10t.c3_in1k", "resnet18.tv_in1k"):
        cfg = RunConfig(model=model.split(".")[0], bs=16, lr=1e-2, epochs=2)
        fit_run(cfg, pack, store)
        states[model] = load_file(store.folder(run_id(cfg, pack.digest))/WEIGHTS_FILE)
    save_file(states["resnet10t.c3_in1k"], folder/"resnet10t.c3_in1k.safetensors")
    tv = torchvision.models.resnet18(weights=None, num_classes=3)
    tv.load_state_dict(states["resnet18.tv_in1k"])
    torch.save(tv.state_dict(), folder/"resnet18-f37072fd.pth")
    for model,before in states.items():
        cfg = RunConfig(model=model, pretrained=True, bs=16, epochs=2, frozen_epochs=2)
        fit_run(cfg, pack, store, weights=folder)
        rid = run_id(with_weights(cfg, folder), pack.digest)
        after = read_member(store.folder(rid)).net.state_dict()
        assert all(torch.equal(v, before[k]) for k,v in after.items() if v.ndim==4)
        assert not torch.equal(after["fc.weight"], before["fc.weight"])
