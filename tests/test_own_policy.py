"A run with a user's policy repeats and continues to the same bits, here and in workers; its result needs no policy."
import json, subprocess, sys
from dataclasses import asdict, replace
import pytest
from conftest import ENV
import torchvision.transforms.v2 as tv
from cinic_fastai.core import ConfigError, Interrupted, StoreError
from cinic_fastai.config import policy_registry
from cinic_fastai.data.augment import register_policy
from cinic_fastai.config import RunConfig, make_config, run_id
from cinic_fastai.store import RunStore
from cinic_fastai.study.runner import run_study
from cinic_fastai.plan_file import parse_plan
from cinic_fastai.test_utils import tiny_pack
from cinic_fastai.train.fit import fit_run

@pytest.fixture
def cfg():
    register_policy("mine", tv.Compose([tv.RandomCrop(32, padding=4), tv.TrivialAugmentWide()]))
    yield RunConfig(model="custom_cnn", policy="mine", bs=12, epochs=3, lr=1e-2, precision="float32")
    policy_registry.clear()

def test_cut_off_and_continued(cfg, tmp_path):
    pack,calls = tiny_pack(),[]
    rid,(whole,cut) = run_id(cfg, pack.digest),(RunStore(tmp_path/o) for o in ("whole", "cut"))
    fit_run(cfg, pack, whole)
    def stop():
        calls.append(1)
        return 15 if len(calls)==8 else 0
    with pytest.raises(Interrupted): fit_run(cfg, pack, cut, stop=stop)
    fit_run(cfg, pack, cut)
    for split in ("valid", "test"): assert (whole.probs(rid, split)["probs"]==cut.probs(rid, split)["probs"]).all()
    plain = RunConfig(**{**cfg.__dict__, "policy": "none"})
    fit_run(plain, pack, whole)
    plain_id = run_id(plain, pack.digest)
    assert plain_id!=rid and (whole.probs(plain_id)["probs"]!=whole.probs(rid)["probs"]).any()

def test_a_finished_run_is_read_where_the_policy_is_unknown(cfg, tmp_path):
    pack,store = tiny_pack(),RunStore(tmp_path)
    fit_run(replace(cfg, epochs=1), pack, store)
    policy_registry.clear()
    rid, = store.ids()
    assert store.config(rid)==replace(cfg, epochs=1)
    with pytest.raises(ConfigError, match="Unknown policy 'mine'.*register_policy"): make_config(asdict(cfg))

def test_another_transform_under_the_same_name(cfg, tmp_path):
    "Refused where runs of the first one are, until its version is raised; then its runs are other runs"
    pack,store,cfg = tiny_pack(),RunStore(tmp_path),replace(cfg, epochs=1)
    first = fit_run(cfg, pack, store)
    with pytest.raises(ConfigError, match=r"RandomCrop.* already, and RandomRotation.*version=2"):
        register_policy("mine", tv.RandomRotation(90))
    policy_registry.clear() # as in another process
    register_policy("mine", tv.RandomRotation(90))
    with pytest.raises(StoreError, match=r"version 1, is Compose\( RandomCrop.*, and RandomRotation.*version=2"):
        fit_run(cfg, pack, store)
    register_policy("mine", tv.RandomRotation(90), version=2)
    second = fit_run(cfg, pack, store)
    alone = fit_run(cfg, pack, RunStore(tmp_path/"alone"))
    assert second["train_loss"]==alone["train_loss"]!=first["train_loss"] and len(store.ids())==2
    register_policy("mine", tv.Compose([tv.RandomCrop(32, padding=4), tv.TrivialAugmentWide()]))
    assert fit_run(cfg, pack, store)==first

PLAN = """
[study]
name = "s"
[[search]]
name = "s"
model = "custom_cnn"
bs = 16
epochs = 1
random = 2
guided = 0
{fixed}
space = {{ lr = {{log=[1e-4,1e-2]}}{dim} }}
"""

def test_a_search_with_another_transform_is_refused(tmp_path, monkeypatch):
    "Its journal and its trials are the first one's, whether the plan or the search chooses the policy"
    monkeypatch.setattr("cinic_fastai.report.render.write_page", lambda *args: None)
    for i,(fixed,dim) in enumerate((('policy = "turn"', ""), ("", ', policy = {choices=["turn", "none"]}'))):
        policy_registry.clear()
        register_policy("turn", tv.RandomRotation(10))
        plan = parse_plan(PLAN.format(fixed=fixed, dim=dim))
        pack,out = tiny_pack(),tmp_path/str(i)
        run_study(plan, pack, out)
        journal = (out/"searches"/"s.jsonl").read_bytes()
        policy_registry.clear()
        register_policy("turn", tv.RandomRotation(90))
        with pytest.raises(StoreError, match=r"degrees=\[-10.0, 10.0\].*degrees=\[-90.0, 90.0\].*version=2"):
            run_study(plan, pack, out)
        register_policy("turn", tv.RandomRotation(90), version=2)
        assert "version is 1 there, 2 here" in run_study(plan, pack, out).searches[0].reason
        assert (out/"searches"/"s.jsonl").read_bytes()==journal
    policy_registry.clear()

def test_what_does_not_print_needs_a_version(tmp_path):
    "Another function under the same name and version finds the first one's run; another version trains anew"
    pack,store = tiny_pack(),RunStore(tmp_path)
    cfg = RunConfig(model="custom_cnn", policy="shade", bs=12, epochs=1, lr=1e-2, precision="float32")
    def shade(by): return lambda x: x//by
    register_policy("shade", shade(2))
    first = fit_run(cfg, pack, store)
    register_policy("shade", shade(3))
    assert fit_run(cfg, pack, store)==first
    register_policy("shade", shade(3), version=2)
    assert fit_run(cfg, pack, store)["train_loss"]!=first["train_loss"] and len(store.ids())==2
    policy_registry.clear()

TRANSFORMS = """
import functools, json, torch, torchvision.transforms.v2 as tv
from cinic_fastai.data.augment import OwnPolicy
SHADE = {shade}
def darker(x, by=SHADE): return x//by
def adding(k): return lambda x: x+k
class Quiet(torch.nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k
    def forward(self, x): return x+self.k
class Noise(Quiet):
    def extra_repr(self): return f"k={{self.k}}"
class Plain:
    def __call__(self, x): return x
crop = tv.RandomCrop(32, padding=4)
sometimes = tv.RandomApply(torch.nn.ModuleList([Noise(3)]), p=.3)
partials = [functools.partial(darker, by=by) for by in (2, 3)]
apart = [darker, *partials, Noise(1), Noise(2), Noise(4).forward, Plain(), tv.Lambda(darker),
    tv.Compose([crop, sometimes]), tv.Compose([crop, Noise(3)])]
alike = [[adding(1), adding(2)], [Quiet(1), Quiet(2)], [tv.Lambda(adding(1)), tv.Lambda(adding(2))]]
def text(o): return OwnPolicy("mine", o).identity["transform"]
told = [list(map(text, apart)), [list(map(text, pair)) for pair in alike]]
"""

def test_a_transform_is_told_by_what_it_prints():
    "The same words in every process, without addresses; what prints tells two apart, a function's body doesn't"
    here = {"__name__": "__main__"}
    exec(TRANSFORMS.format(shade=3), here)
    code,env = TRANSFORMS.format(shade=2)+"print(json.dumps(told))",{**ENV, "PYTHONHASHSEED": "1"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    there = json.loads(other.stdout)
    apart,alike = there
    assert there==here["told"] and len(set(apart))==len(apart) and all(a==b for a,b in alike)
    assert " at 0x" not in json.dumps(there) and "\n" not in "".join(apart) and apart[0]=="darker"
