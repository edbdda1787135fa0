"The comparison with `cinic answer`: equal images, equal CPU time, a file of results to go on from"
import json, sys
from functools import partial
import numpy as np, pytest
from cinic_fastai.cli.train import load_benchmarks
from cinic_fastai.test_utils import tiny_folder

load_benchmarks()
from benchmarks import answer # noqa: E402 (found once they are loaded)
from benchmarks.answer import SCIKIT, Result, Work, epochs_within, read_results, run_measured # noqa: E402
from benchmarks.answer import table_text, take_photos, yolo_top1 # noqa: E402
from benchmarks.answer_peers import estimators, pixels, scikit # noqa: E402

BURN = "import time\nwhile time.process_time()<.5: pass"
ORPHAN = f"import os, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {BURN!r}])\nos._exit(0)"

@pytest.mark.skipif(sys.platform!="linux", reason="adopting orphans is Linux's")
@pytest.mark.parametrize("code", [BURN, ORPHAN])
def test_cpu_time_is_that_of_the_whole_tree(tmp_path, code):
    "Of a process, and of one whose parent has ended before it"
    cpu, seconds = run_measured([sys.executable, "-c", code], tmp_path/"log.txt")
    assert .5<=cpu<5 and seconds>=.5

def test_a_command_that_fails_names_its_log(tmp_path):
    with pytest.raises(SystemExit, match="ended with 3; see .*log.txt"):
        run_measured([sys.executable, "-c", "raise SystemExit(3)"], tmp_path/"log.txt")

def test_epochs_that_fit_the_time():
    "20 seconds of start and 5 an epoch"
    costs = {n: 20+5*n for n in (1, 3)}
    assert [epochs_within(b, costs) for b in (10, 24, 30, 119, 120.5)]==[1, 1, 2, 19, 20]
    assert epochs_within(120, costs|{11: 110.})==12 # a long training tells more

def test_photos_are_a_fixed_part(tmp_path):
    src = tiny_folder(tmp_path/"all", n=6)
    for folder in ("a", "b"): take_photos(src, tmp_path/folder, 9)
    found = [sorted(str(p.relative_to(tmp_path/o)) for p in (tmp_path/o).glob("*/*/*")) for o in ("a", "b")]
    assert found[0]==found[1] and len(found[0])==9+3*6
    assert len([*(tmp_path/"a"/"train"/"cat").iterdir()])==3
    take_photos(src, tmp_path/"cifar", 9, only="cifar10")
    assert {p.name[:7] for p in (tmp_path/"cifar").glob("*/*/*")}=={"cifar10"}

def test_what_yolo_prints():
    text = "               classes   top1_acc   top5_acc\n                   all      0.401      0.856\nSpeed: 0.1ms"
    assert yolo_top1(text)==.401
    with pytest.raises(ValueError, match="No accuracy"): yolo_top1("Speed: 0.1ms")

def test_scikit_learn_takes_the_best_on_valid_images(tmp_path):
    root = tiny_folder(tmp_path/"tiny", n=6)
    told = scikit(str(root), budget=0., seed=1) # time for the first one alone
    name, model = next(iter(estimators(1).items()))
    model.fit(*pixels(root/"train"))
    assert f"{name}: the best on valid images of {name}"==told["settings"].split("pixels, ")[1]
    assert (told["valid_acc"], told["test_acc"])==tuple(model.score(*pixels(root/s)) for s in ("valid", "test"))
    assert told["cpu"]>0 and pixels(root/"train")[0].shape==(18, 768)

def stub(peer, cpu=100., acc=.5):
    "In place of a training"
    def make(*args, minutes=10., seed=1, epochs=0, **kw):
        made.append((peer, minutes, seed, epochs))
        return Result(peer, minutes, seed, "settings", cpu+10*epochs, 1., epochs, acc, acc)
    return make
made = []

def test_cut_off_it_goes_on(tmp_path, monkeypatch):
    "What is written down isn't done again; the peer gets the epochs that fit into the answer's CPU time"
    made.clear()
    monkeypatch.setattr(answer, "our_answer", lambda work, seed: stub(answer.OURS, 300., .7)(seed=seed))
    def peers(work): return {"peer": partial(answer._by_epochs, work, "peer", stub("peer", 50.)), SCIKIT: stub(SCIKIT)}
    f = tmp_path/"results.jsonl"
    work = Work(tmp_path, 10.)
    answer.compare_seed(work, 1, peers(work))
    assert made==[(answer.OURS, 10., 1, 0), ("peer", 0, 1, 1), ("peer", 0, 3, 3), ("peer", 10., 1, 25),
        (SCIKIT, 10., 1, 0)]
    f.write_text(f.read_text()[:-20]) # the last line is cut off
    work = Work(tmp_path, 10., found=read_results(f))
    made.clear()
    for seed in (1, 2): answer.compare_seed(work, seed, peers(work))
    assert [o[0] for o in made]==[SCIKIT, answer.OURS, "peer", SCIKIT]
    text = table_text([*read_results(f).values()])
    assert "| 10 | cinic answer | 70.0 ± 0.0 | 70.0 ± 0.0 | 5.0 |  | 2 | `settings` |" in text
    assert "| 25 | 2 |" in text and len(text.splitlines())==2+3 # the short trainings have no row

def test_on_another_machine_only_complete_seeds_count():
    def result(peer, minutes, seed, machine): return Result(peer, minutes, seed, "", 1., 1., machine=machine)
    there = [result(p, m, s, "there") for p,m,s in (("a", 10., 1), ("b", 10., 1), ("a", 10., 2), ("b", 0, 3))]
    here = [result("a", 10., 3, "here"), result("b", 0, 1, "here")]
    found = {r.key: r for r in there+here}
    assert [*answer.of_use(found, "here", {"a", "b"})]==[("a", 10., 1), ("b", 10., 1), ("a", 10., 3), ("b", 0, 1)]
    assert [*answer.of_use(found, "elsewhere", {"a", "b"})]==[("a", 10., 1), ("b", 10., 1)]

def test_later_seeds_are_tried_at_the_better_size():
    rows = [Result(f"fastai, {size} px", m, s, "", 1., 1., valid_acc=acc) for size,m,s,acc in ((32, 0, 1, .9),
        (32, 10., 1, .6), (64, 10., 1, .7), (64, 30., 1, .1))]
    found = {r.key: r for r in rows}
    def wanted(*at): return [size for size in (32, 64) if answer.is_wanted(found, f"fastai, {size} px", at)]
    assert [wanted(*o) for o in ((10., 1), (10., 2), (30., 1))]==[[32, 64], [64], [64]]
    assert answer.is_wanted(found, SCIKIT, (10., 2)) and answer.is_wanted({}, "fastai, 32 px", (10., 1))
    assert answer.is_wanted({rows[1].key: rows[1]}, "fastai, 64 px", (10., 2)) # the other size isn't known yet

@pytest.mark.parametrize("yolo,n", [("", 3), ("yolo", 5)])
def test_everyone_else(yolo, n):
    names = [*answer.peers_of(Work(None, 10., yolo))]
    assert len(names)==n and any("Ultralytics" in o for o in names)==bool(yolo) and names[-1]==SCIKIT

def test_a_training_that_left_time_is_done_once_more():
    def train(epochs): return stub("peer", 0.)(epochs=epochs)
    assert [answer._in_full(train, 300., n).epochs for n in (10, 27, 40)]==[30, 27, 40]

def test_an_accuracy_by_folders(tmp_path):
    f = tmp_path/"test.csv"
    rows = "x/cat/1.png,cat,.9,.9,.1\nx/dog/1.png,cat,.6,.6,.4\n"
    f.write_text("file,class,probability,cat,dog\n"+rows)
    assert answer.accuracy(f)==.5

@pytest.mark.slow
def test_images_for_all(tmp_path):
    "The same valid images in our splits and in the folders for Ultralytics"
    work = Work(tmp_path/"out", 10.)
    work.out.mkdir()
    answer.prepare_images(work, tiny_folder(tmp_path/"all", n=12), 36)
    def names(folder): return sorted(f"{p.parent.name}/{p.name}" for p in folder.glob("*/*"))
    for split in ("valid", "test"):
        assert names(work.out/"yolo"/split/"val")==names(work.images/split)
        assert names(work.out/"yolo"/split/"train")==names(work.images/"train")
    assert not np.intersect1d(names(work.images/"train"), names(work.images/"valid")).size
    answer.prepare_images(work, tmp_path/"gone", 36) # they are there
    assert json.dumps(answer.image_words(work.images))
