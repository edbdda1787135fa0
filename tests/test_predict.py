"A finished study's answer on new images, and as files for other programs."
import csv, json, subprocess, sys
import pytest
from conftest import ENV, cinic
from cinic_fastai.studyfolder import StudyFolder

@pytest.fixture(scope="module")
def files(images): return sorted((images/"test").rglob("*.png"))

def stored(out, images, name):
    "Classes that a study stored for its test images, by file"
    from cinic_fastai.data.pack import get_pack
    from cinic_fastai.results.predictions import predictions
    p = next(p for p in predictions(StudyFolder(out), everyone=True) if p.name==name)
    names = get_pack(images).files[p.rows]
    return {str(images/f): p.classes[i] for f,i in zip(names, p.preds)}

@pytest.mark.parametrize("member", ["soft", "hard", "custom_cnn-sgd", "custom_cnn"])
def test_classes_are_the_stored_ones(study, images, files, member):
    r = cinic("predict", study[0], *files, "--member", member, "--json")
    assert r.returncode==0, r.stderr
    found = {o["file"]: o["class"] for o in json.loads(r.stdout)["images"]}
    assert found==stored(study[0], images, member) and len(found)==len(files)

def test_bad_images_are_named_and_the_rest_is_predicted(study, files, tmp_path):
    bad = tmp_path/"bad.png"
    bad.write_bytes(files[0].read_bytes()[:40])
    r = cinic("predict", study[0], bad, files[0], tmp_path/"none.jpg")
    assert r.returncode==1 and str(files[0]) in r.stdout.replace("\n", "")
    assert [l.split(":")[0] for l in r.stderr.strip().splitlines()]==["cinic", "cinic"]
    assert "bad.png" in r.stderr and "none.jpg" in r.stderr and "Traceback" not in r.stderr

def test_a_csv_of_predictions(study, files, tmp_path):
    "As the JSON has them, a column a class; what can't be read is named and has no row"
    bad = tmp_path/"bad.png"
    bad.write_bytes(b"x")
    r = cinic("predict", study[0], *files[:3], bad, "--csv", tmp_path/"there"/"found.csv", "--json")
    assert r.returncode==1 and "bad.png" in r.stderr
    good = [o for o in json.loads(r.stdout)["images"] if "error" not in o]
    text = (tmp_path/"there"/"found.csv").read_text(encoding="utf-8")
    found = list(csv.DictReader(text.splitlines()))
    assert [o["file"] for o in found]==list(map(str, files[:3]))==[o["file"] for o in good]
    for o,p in zip(found, good):
        assert o["class"]==p["class"] and float(o[o["class"]])==float(o["probability"])==p["probability"]
        assert {k: float(o[k]) for k in p["probabilities"]}==p["probabilities"]

def test_one_picture_in_many_files_has_one_answer(study, files, tmp_path):
    "Turned by EXIF, on a transparent ground, as WebP, BMP, TIFF and PNG: equal to a viewer, equal to a predictor"
    import numpy as np
    from PIL import Image
    x, exif = np.asarray(Image.open(files[0]).convert("RGB")).copy(), Image.Exif()
    x[:4] = 255
    exif[0x0112] = 6
    top = np.arange(32)[:,None]<4
    clear = np.dstack([np.where(top[:,:,None], 0, x), np.where(top, 0, 255)*np.ones((1,32))]).astype(np.uint8)
    Image.fromarray(x).save(tmp_path/"plain.png")
    Image.fromarray(np.rot90(x).copy()).save(tmp_path/"turned.png", exif=exif)
    Image.fromarray(clear, "RGBA").save(tmp_path/"clear.png")
    Image.fromarray(np.rot90(clear).copy(), "RGBA").save(tmp_path/"both.webp", exif=exif, lossless=True)
    for o in ("bmp", "tif", "ppm"): Image.fromarray(x).save(tmp_path/f"plain.{o}")
    (tmp_path/"phone.raw").write_bytes(b"x")
    r = cinic("predict", study[0], tmp_path, "--json")
    found = json.loads(r.stdout)["images"]
    assert r.returncode==0 and len(found)==7 and len({tuple(o["probabilities"].values()) for o in found})==1, r.stderr
    assert "1 file not read: 1 .raw" in r.stderr and "phone.raw" in r.stderr

def ascii_only(): sys.stdout.reconfigure(encoding="ascii", errors="strict")

def test_a_name_that_the_output_can_not_write(study, files, tmp_path):
    f = tmp_path/"\u732b \U0001f408.png"
    f.write_bytes(files[0].read_bytes())
    told = json.loads(cinic("predict", study[0], f, "--json", before=ascii_only).stdout)
    assert [o["file"] for o in told["images"]]==[str(f)]
    r = cinic("predict", study[0], f, before=ascii_only)
    assert r.returncode==0 and "\\u732b \\U0001f408.png" in r.stdout.replace("\n", ""), r.stderr

@pytest.mark.parametrize("args,said", [
    (["--member", "sofd"], "did you mean 'soft'"),
    (["--member", "resnet18-pretrained"], "no finished predictor"),
])
def test_names_that_are_not_there(study, files, args, said):
    r = cinic("predict", study[0], files[0], *args)
    assert r.returncode==2 and said in r.stderr and "Traceback" not in r.stderr

def test_nothing_to_predict(study, tmp_path):
    r = cinic("predict", study[0], tmp_path)
    assert r.returncode==2 and "no images inside" in r.stderr

def test_export_and_reading_it_elsewhere(study, files, tmp_path):
    r = cinic("export", study[0], "--format", "safetensors", "--member", "soft", "--dest", tmp_path/"e")
    assert r.returncode==0, r.stderr
    card = (tmp_path/"e"/"README.md").read_text(encoding="utf-8")
    assert "soft vote of 2 networks" in card and "test images are right" in card
    code = "import sys; from cinic_fastai.results.export import import_safetensors as f; " \
        "print(f(sys.argv[1]).predict([sys.argv[2]])[0][0])"
    command = [sys.executable, "-c", code, tmp_path/"e"/"model.safetensors", files[0]]
    there = subprocess.run(command, capture_output=True, text=True, env=ENV)
    here = json.loads(cinic("predict", study[0], files[0], "--member", "soft", "--json").stdout)
    assert there.stdout.strip()==here["images"][0]["class"], there.stderr

def test_export_refuses_what_it_can_not_do(study, tmp_path):
    for args,said in ((["--format", "tflite"], "Known: onnx, safetensors"), (["--member", "hard"], "hard vote")):
        r = cinic("export", study[0], "--dest", tmp_path/"e", *args)
        assert r.returncode==2 and said in r.stderr and "Traceback" not in r.stderr
    assert not list((tmp_path/"e").glob("model*"))

@pytest.mark.parametrize("settings", [dict(size=48), dict(size=24, tta="flip-shift", channels_last=False)])
def test_a_network_that_resizes_is_exported(settings):
    "As the ONNX export takes it, before anything else was resized"
    import torch
    from cinic_fastai.data.loaders import resize_matrix
    from cinic_fastai.results.export import probe_images
    from cinic_fastai.results.predict import Member, TrainedOn
    from cinic_fastai.config import RunConfig
    from cinic_fastai.train.models import make_model
    resize_matrix.cache_clear()
    cfg,images = RunConfig(model="custom_cnn", **settings),TrainedOn(["cat", "dog"], 32, [.5]*3, [.25]*3)
    member,x = Member(cfg, images, make_model(cfg, 2).state_dict()),probe_images(32, 8)
    there = torch.export.export(member, (x[:3],), dynamic_shapes=({0: torch.export.Dim("n")},)).module()(x)
    assert abs(there.numpy()-member(x).numpy()).max()<1e-6

@pytest.mark.slow
def test_onnx_equals_pytorch(study, files, tmp_path):
    "The exported file under onnxruntime against the command line, on real files"
    import numpy as np
    onnxruntime = pytest.importorskip("onnxruntime")
    from PIL import Image
    r = cinic("export", study[0], "--format", "onnx", "--member", "soft", "--dest", tmp_path)
    assert r.returncode==0, r.stderr
    x = np.stack([np.asarray(Image.open(f).convert("RGB"), np.float32).transpose(2, 0, 1) for f in files])
    session = onnxruntime.InferenceSession(str(tmp_path/"model.onnx"))
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"])==["cat", "dog", "ship"] and about["size"]=="32" and "RGB" in about["values"]
    assert len(json.loads(about["networks"]))==2
    probs, = session.run(None, {"images": x})
    from cinic_fastai.results.export import in_float32
    from cinic_fastai.results.predict import load_predictor
    assert abs(probs-in_float32(load_predictor(study[0], "soft")).probs(files)).max()<1e-4

def test_watching_a_finished_study(study):
    r = cinic("status", study[0], "--watch")
    assert r.returncode==0 and "not running now" in r.stdout
