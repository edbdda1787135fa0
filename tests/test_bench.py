"The benchmarks compare like with like: the same images, weights and votes on both sides."
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from cinic_fastai.cli.train import load_benchmarks
from cinic_fastai.core import ConfigError
from cinic_fastai.seeds import rng
from cinic_fastai.data.loaders import pack_dls
from cinic_fastai.data.pack import get_pack
from cinic_fastai.results.ensemble import hard_vote, soft_vote, tied
from cinic_fastai.plan_file import parse_plan
from cinic_fastai.test_utils import tiny_folder

catalog = load_benchmarks()
from benchmarks.arrays import pillow_batch, sklearn_votes # noqa: E402 (found once they are loaded)
from benchmarks.figures import Bench, by_turns, compare
from benchmarks.optimizers import both_sides
from benchmarks.peers import fastai_dls, torchvision_dl
from benchmarks.processes import peak_memory, plan_part, tree_memory

ROW = ["name", "peer", "ours", "theirs", "unit", "ratio", "spread", "note"]

@pytest.fixture(scope="module")
def b(tmp_path_factory):
    folder = tiny_folder(tmp_path_factory.mktemp("bench")/"tiny", n=14)
    return Bench(folder, get_pack(folder), torch.device("cpu"), reps=1)

def test_a_ratio_above_one_means_that_ours_is_better():
    row = compare("a", "bare", [2., 4., 2.], [1., 1., 4.], "s")
    assert (row.ours, row.theirs, row.ratio, row.spread)==(2., 1., .5, [.25, 2.])
    assert compare("a", "bare", [2., 4., 2.], [1., 1., 4.], "img/s").ratio==2.

def test_what_the_terminal_shows():
    row = compare("a", "bare", [2000., 4000., 2000.], [1000., 1000., 4000.], "s", note="n")
    assert list(row.asdict())==list(row.shown())==ROW
    assert row.shown()==dict(name="a", peer="bare", ours="2,000", theirs="1,000", unit="s", ratio="0.50",
        spread="0.25 to 2.00", note="n")

def test_tasks_take_turns():
    calls = []
    tasks = dict(a=lambda: calls.append("a") or 1., b=lambda: calls.append("b") or 2.)
    assert by_turns(tasks, 2)==dict(a=[1., 1.], b=[2., 2.]) and "".join(calls)=="abab"

def test_peers_load_the_very_same_images(b):
    assert b.bs==21
    ours = torch.cat([x for x,_ in pack_dls(b.pack, bs=21, device="cpu").valid])
    theirs = torch.cat([x for x,_ in torchvision_dl(b, "valid")])
    assert np.allclose(ours, theirs, atol=1e-4)
    assert [str(o) for o in fastai_dls(b).valid.items]==[str(o) for o in b.files("valid")]

@pytest.mark.parametrize("opt", ["sgd", "adam"])
def test_optimisers_arrive_at_the_same_weights(b, opt):
    ours, theirs = both_sides(b, opt)
    for _ in range(3):
        grads = [torch.randn_like(p) for p in ours.params]
        for side in (ours, theirs): side.milliseconds([g.clone() for g in grads], b.device, steps=1)
    for p,q in zip(ours.params, theirs.params): assert torch.allclose(p, q, rtol=0, atol=1e-5)

def test_votes_agree_but_for_ties():
    members = rng("t").dirichlet(np.ones(10), (3,500)).astype(np.float32)
    soft, hard = sklearn_votes(members)
    clear = ~tied(list(members)) # ties are decided otherwise, see `hard_vote`
    assert (soft_vote(list(members)).argmax(1)==soft).all()
    assert (hard_vote(list(members))[clear]==hard[clear]).all()

def test_pillow_decodes_what_the_pack_holds(b):
    assert (pillow_batch(b.files("valid"))==b.pack.images[b.pack.rows["valid"]]).all()

def test_memory_without_pss():
    "As on Windows and macOS"
    info = SimpleNamespace(rss=9e6, uss=5e6)
    assert tree_memory(SimpleNamespace(children=lambda recursive: [], memory_full_info=lambda: info))==5.

def test_memory_of_a_process():
    assert 5<peak_memory(["-c", "x = bytearray(20_000_000)\nimport time; time.sleep(.3)"])<200

def test_a_part_of_a_plan():
    plan = parse_plan(plan_part("""
[study]
name = "x"
[defaults]
epochs = 2
[[run]]
name = "a"
model = "custom_cnn"
[[run]]
name = "b"
model = "resnet18"
[[search]]
name = "s"
model = "resnet18"
space = {lr = [0.1,1]}
[[run]]
name = "c"
from = "search:s"
""", 'model = "resnet18"\n'))
    assert [r.name for r in plan.runs]==["b"] and not plan.searches and plan.runs[0].settings["epochs"]==2

def test_rows_of_benchmarks(b):
    seen = []
    def hear(kind, **info):
        if kind=="progress": seen.append(info)
    rows = [r for name in ("loader-shift", "step-customcnn", "vote") for r in catalog.bench(name, b.root, reps=1,
        on_event=hear)]
    assert [(r.name, r.peer) for r in rows][:3]==[("loader-shift", "fastai"), ("loader-shift", "torchvision"),
        ("step-customcnn", "bare")]
    for r in rows: assert r.ours>0 and r.theirs>0 and r.spread[0]<=r.ratio<=r.spread[1]
    assert {"what", "done", "total", "left"}<=set(seen[-1])

def test_an_unknown_benchmark(b):
    with pytest.raises(ConfigError, match="did you mean 'vote'"): catalog.bench("votes", b.root)

@pytest.mark.slow
def test_all_of_them(b):
    names = [r.name for r in catalog.bench("all", b.root, reps=1) if not r.name.endswith("-cuda")]
    wanted = [*catalog.BENCHES]
    wanted.insert(wanted.index("pack")+1, "pack-open")
    assert list(dict.fromkeys(names))==wanted
