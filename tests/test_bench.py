"The benchmarks compare like with like: the same images, weights and votes on both sides."
from dataclasses import replace
import os
import pickle
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from fastcore.basics import noop
from cinic_fastai.cli.app import Screen
from cinic_fastai.cli.train import load_benchmarks
from cinic_fastai.config import RunConfig
from cinic_fastai.core import ConfigError, PlanError
from cinic_fastai.seeds import rng
from cinic_fastai.data.loaders import pack_dls
from cinic_fastai.data.pack import get_pack
from cinic_fastai.results.ensemble import hard_vote, soft_vote, tied
from cinic_fastai.plan_file import parse_plan
from cinic_fastai.study.expand import run_config
from cinic_fastai.train.taps import LiveConv2d
from cinic_fastai.test_utils import tiny_folder

catalog = load_benchmarks()
from benchmarks.arrays import pillow_batch, sklearn_votes # noqa: E402 (found once they are loaded)
from benchmarks.epochs import plain_model
from benchmarks.figures import Bench, by_turns, compare
from benchmarks.optimizers import both_sides
from benchmarks.peers import fastai_dls, torchvision_dl
from benchmarks.record import BEFORE, CIFAR10, DAWNBENCH, PLANS, REPORT, RecordRow # noqa: E402
from benchmarks.record import image_words, is_cifar10, plan_trainings, record_rows # noqa: E402
from benchmarks.processes import peak_memory, plan_part, tree_memory
from benchmarks.studies import PLAN, study_rows, training_seconds

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

def test_another_process_gets_the_images_without_the_screen(b):
    there = pickle.loads(pickle.dumps(replace(b, on_event=Screen())))
    assert (there.files("train"), there.on_event)==(b.files("train"), noop)

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

def test_peers_train_plain_convolutions(b):
    assert not any(isinstance(m, LiveConv2d) for m in plain_model(b, "resnet18").modules())

def test_a_study_takes_from_its_first_trainings_start_to_its_last_ones_end(tmp_path):
    for i,(began,ended) in enumerate([(10, 30), (12, 45)]):
        (tmp_path/"runs"/str(i)).mkdir(parents=True)
        for name,at in (("env.json", began), ("done.json", ended)):
            (tmp_path/"runs"/str(i)/name).write_text("")
            os.utime(tmp_path/"runs"/str(i)/name, (at, at))
    assert training_seconds(tmp_path)==35.

def test_the_plan_of_many_seeds():
    plan = parse_plan(PLAN.format(bs=128, epochs=3, seeds=[*range(1, 9)]))
    assert [run_config(plan, r).seed for r in plan.runs]==[*range(1, 9)]

@pytest.mark.slow
def test_a_small_study_beside_fastai(b):
    row, = study_rows(b, "study", trainings=2, epochs=1)
    assert row.peer=="fastai" and row.ours>0 and row.theirs>0

@pytest.mark.parametrize("name,peers", [("loader-shift", ["fastai", "torchvision"]), ("vote", ["bare"]),
    pytest.param("step-customcnn", ["bare"], marks=pytest.mark.slow)])
def test_rows_of_a_benchmark(b, name, peers):
    seen = []
    def hear(kind, **info):
        if kind=="progress": seen.append(info)
    rows = list(catalog.bench(name, b.root, reps=1, on_event=hear))
    assert {(r.name, r.peer) for r in rows}=={(name, o) for o in peers} # once for each precision
    for r in rows: assert r.ours>0 and r.theirs>0 and r.spread[0]<=r.ratio<=r.spread[1]
    assert {"what", "done", "total", "left"}<=set(seen[-1])

@pytest.fixture(scope="module")
def record(b):
    "Two seeds of one training, and one of another, by stock fastai as well"
    report = RunConfig(model="resnet18", epochs=1, bs=21)
    small = RunConfig(model="speednet", width=.25, epochs=1, bs=21, train_on="train+valid", tta="flip")
    ours = record_rows(replace(b, reps=2), "record", trainings={"quick/speednet": small})
    return ours+record_rows(b, "record", trainings={"fast/resnet18": report})

def test_a_record_measures_whole_trainings(record):
    "Seconds and accuracies of every seed: ours as `fit_run` tells them, stock fastai's of the same images"
    assert [r.training for r in record]==["quick/speednet", "fast/resnet18", "stock fastai, resnet18"]
    assert [(r.trained, r.epochs) for r in record]==[(84, 1), (42, 1), (42, 1)]
    for r,n in zip(record, (2, 1, 1)):
        assert len(r.seconds)==len(r.whole)==len(r.test_accs)==n
        assert all(0<s<w for s,w in zip(r.seconds, r.whole)) and all(0<=a<=1 for a in r.test_accs)

def test_what_a_record_says(record):
    assert list(record[0].shown())==["training", "images", "epochs", "seeds", "seconds", "whole", "test_acc", "reaches"]
    words = record[0].below(record)
    for o in (image_words_of_tiny, "90 %: ", DAWNBENCH, "length was fixed beforehand"): assert o in words

image_words_of_tiny = ("42 training, 42 valid and 42 test images of 32x32 in 3 classes "
    "(origin by file name: cifar 45, elsewhere 36, imagenet 45).")

def endings(accs, seconds, training="a"):
    return RecordRow("record", training, "images", 10, 1, seconds, seconds, accs, (70, 80))

def test_a_level_is_reached_by_the_mean_of_the_seeds():
    rows = [endings([.69, .72], [9., 11.]), endings([.81, .78], [5., 5.], "b"), endings([.8, .8], [30., 20.], "c")]
    assert [r.reached for r in rows]==[70, 70, 80] and endings([.1], [1.]).reached==0
    words = rows[0].below(rows)
    assert "Time to 70 %: 5 s (b); 80 %: 25 s (c)." in words
    assert "80 %: none of these" in rows[0].below(rows[:1])
    assert rows[0].shown()["test_acc"]=="70.50 ± 2.12 %"

def test_cifar10_is_only_what_has_its_classes_and_counts(b):
    def images(train, valid, test, classes=CIFAR10):
        n = dict(train=train, valid=valid, test=test)
        return SimpleNamespace(classes=list(classes), counts=lambda: n, size=32, rows={}, origins=None)
    assert is_cifar10(images(45_000, 5_000, 10_000))
    assert "the original CIFAR-10" in image_words(images(40_000, 10_000, 10_000))
    for other in (images(20_000, 20_000, 10_000), images(50_000, 50_000, 10_000),
        images(40_000, 10_000, 10_000, "abcdefghij")):
        assert not is_cifar10(other) and "CIFAR-10" not in image_words(other)
    assert image_words(b.pack)+"."==image_words_of_tiny

def test_the_plans_trainings_fit_or_are_refused(b):
    with pytest.raises(PlanError, match="42 training images"): plan_trainings(b, PLANS)
    many = replace(b, pack=SimpleNamespace(counts=lambda: dict(train=300, valid=300, test=300), size=32))
    for found in (plan_trainings(many, PLANS), plan_trainings(many, (BEFORE,))):
        assert found and all(cfg.model in ("speednet", "resnet18") for cfg in found.values())
    assert REPORT in plan_trainings(many, PLANS)

def test_an_unknown_benchmark(b):
    with pytest.raises(ConfigError, match="did you mean 'vote'"): catalog.bench("votes", b.root)

@pytest.mark.slow
def test_all_of_them(b):
    names = [r.name for r in catalog.bench("all", b.root, reps=1) if not r.name.endswith("-cuda")]
    wanted = [k for k,e in catalog.BENCHES.items() if not e.alone]
    wanted.insert(wanted.index("pack")+1, "pack-open")
    assert list(dict.fromkeys(names))==wanted
