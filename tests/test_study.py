"A study as a user runs it: whole, again, cut off, with wrong options."
import json, os, shutil, signal, subprocess, sys, time
import numpy as np
import pandas as pd
import pytest
from conftest import ENV, cinic

def results(out):
    "Everything of a study that must not depend on where it was cut off"
    probs = {p.relative_to(out).as_posix(): np.load(p)["probs"].tobytes() for p in sorted(out.glob("runs/*/probs_*.npz"))}
    weights = {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.glob("runs/*/best.safetensors"))}
    drop = ("seconds", "images_per_s")
    tables = {p.name: pd.read_csv(p).drop(columns=list(drop), errors="ignore").to_csv() for p in sorted(out.glob("tables/*.csv"))}
    points = {p.name: [json.loads(l)["point"] for l in p.read_text().splitlines()[1:]] for p in sorted(out.glob("searches/*.jsonl"))}
    return dict(probs=probs, weights=weights, tables=tables, points=points)

def test_whole_study(study):
    out,done = study
    record = json.loads((out/"study.json").read_text(encoding="utf-8"))
    assert {r["name"]: r["status"] for r in record["runs"]}=={"custom_cnn": "done", "resnet18-pretrained": "skipped", "custom_cnn-sgd": "done", "second": "done"}
    assert "--weights" in next(r["reason"] for r in record["runs"] if r["status"]=="skipped")
    assert "skipped: resnet18-pretrained" in done.stdout
    assert {e["status"] for e in record["ensembles"]}=={"done"}
    assert (out/"report.html").stat().st_size>10_000

def test_running_again_trains_nothing(study, images, plan_file):
    out,_ = study
    before = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*")}
    again = cinic("study", plan_file, "--data", images, "--out", out)
    assert again.returncode==0, again.stderr
    assert before=={p: p.stat().st_mtime_ns for p in out.glob("runs/*/*")}

@pytest.mark.skipif(os.name=="nt", reason="SIGKILL is POSIX")
def test_killed_and_continued(study, images, plan_file, tmp_path):
    "Killed again and again at uneven moments, the study ends with the same weights, probabilities, tables and points"
    out = tmp_path/"out"
    command = [sys.executable, "-m", "cinic_fastai.cli", "study", str(plan_file), "--data", str(images), "--out", str(out)]
    kills = 0
    for after in (1, 2, 4):
        p = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while p.poll() is None and len(list(out.glob("runs/*/done.json")))<after: time.sleep(.02)
        kills += p.poll() is None
        p.kill(); p.wait()
    assert kills
    assert cinic(*command[3:]).returncode==0
    assert results(out)==results(study[0])

@pytest.mark.skipif(os.name=="nt", reason="signals are POSIX")
@pytest.mark.parametrize("sig,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_say_how_to_continue(images, tmp_path, sig, code):
    out = tmp_path/"out"
    command = [sys.executable, "-m", "cinic_fastai.cli", "train", "model=custom_cnn", "bs=2", "epochs=2000", "--data", str(images), "--out", str(out)]
    p = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while p.poll() is None and not list(out.glob("runs/*/env.json")): time.sleep(.02)
    time.sleep(1)
    p.send_signal(sig)
    _,err = p.communicate(timeout=60)
    assert p.returncode==code, err
    assert "Run the same command again to continue" in err and "Traceback" not in err
    assert list(out.glob("runs/*/last.safetensors"))

def test_copied_study_needs_no_training(study, images, plan_file, tmp_path):
    shutil.copytree(study[0], tmp_path/"copy")
    again = cinic("study", plan_file, "--data", images, "--out", tmp_path/"copy")
    assert again.returncode==0 and "valid accuracy" not in again.stderr

def test_other_options_are_refused(study, images, plan_file):
    r = cinic("study", plan_file, "--data", images, "--out", study[0], "--scale", "2")
    assert r.returncode==2 and "scale: 1.0 there, 2.0 here" in r.stderr and "Traceback" not in r.stderr

def test_status_needs_no_torch(study):
    code = f"import sys; sys.argv=['cinic','status',{str(study[0])!r}]; from cinic_fastai.cli import app; app(standalone_mode=False); sys.exit(bool({{'torch', 'pandas', 'matplotlib'}} & set(sys.modules)))"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert r.returncode==0, r.stderr
    assert "7 done" in r.stdout and "1 skipped" in r.stdout

def test_report_is_written_again_without_torch(study, tmp_path):
    out = tmp_path/"copy"
    shutil.copytree(study[0], out)
    (out/"report.html").unlink()
    code = f"import sys; sys.argv=['cinic','report',{str(out)!r}]; from cinic_fastai.cli import app; app(standalone_mode=False); sys.exit('torch' in sys.modules)"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert r.returncode==0, r.stderr
    assert (out/"report.html").exists()

def test_clean_says_first(study, tmp_path):
    out = tmp_path/"copy"
    shutil.copytree(study[0], out)
    r = cinic("clean", out, "--weights", input="n\n")
    assert "best.safetensors" in r.stdout and "Nothing was deleted" in r.stdout
    assert list(out.glob("runs/*/best.safetensors"))
    assert cinic("clean", out, "--weights", "--yes").returncode==0
    assert not list(out.glob("runs/*/best.safetensors"))

def test_dry_run_trains_nothing(images, plan_file, tmp_path):
    r = cinic("study", plan_file, "--data", images, "--out", tmp_path/"out", "--dry-run", "--json")
    todo = json.loads(r.stdout)
    assert len(todo["trainings"])==8 and todo["seconds"]>=0
    assert not (tmp_path/"out").exists()
