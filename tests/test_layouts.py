"Folders in the layouts and formats that people have, against readers of other projects"
import io, json
import numpy as np, pandas as pd, pytest
from PIL import Image
from conftest import cinic
from cinic_fastai.core import SPLITS, DataError
from cinic_fastai.data.layout import check_folder, find_images, folder_info, split_folder
from cinic_fastai.data.pack import get_pack
from cinic_fastai.data.sources import Drawing

r = np.random.default_rng(0)

def noise(): return Image.fromarray(r.integers(0, 256, (32,32,3), dtype=np.uint8))

def encoded(form="PNG", **kw):
    buf = io.BytesIO()
    noise().save(buf, form, **kw)
    return buf.getvalue()

def write(root, *folders, n=5, name="{}.png", **kw):
    "So many images in each folder"
    for folder in folders:
        for i in range(n):
            f = root/folder/name.format(i)
            f.parent.mkdir(parents=True, exist_ok=True)
            f.write_bytes(encoded(**kw))
    return root

def pixels(file): return np.asarray(Image.open(file).convert("RGB")).tobytes()

def in_folders(root, **splits):
    "(split, class, pixels) of each image as torchvision's `ImageFolder` reads a folder for each split"
    from torchvision.datasets import ImageFolder
    out = []
    for s,folder in splits.items():
        ds = ImageFolder(root/folder)
        out += [(s, ds.classes[k], np.asarray(im).tobytes()) for im,k in ds]
    return out

# --- layouts: each writes a folder and gives what to read, what an independent reader finds, and what is to be drawn

BOTH = ("valid", "test")

def flat(root): return write(root, "cat", "dog"),in_folders(root, train=""),BOTH
def flat_with_folders_inside(root): return write(root, "cat/images", "dog/a/b", "dog"),in_folders(root, train=""),BOTH
def parent_of_flat(root):
    write(root/"photos", "cat", "dog")
    (root/"readme.txt").write_text("where they are from")
    return root,in_folders(root, train="photos"),BOTH

def in_splits(root, *names, drawn=()):
    "Folders for splits, in the order train, valid, test; \"\" for one that isn't there"
    of = {s: o for s,o in zip(SPLITS, names) if o}
    return write(root, *(f"{o}/{c}" for o in of.values() for c in ("cat", "dog"))),in_folders(root, **of),drawn

def cinics(root): return in_splits(root, "train", "valid", "test")
def val(root): return in_splits(root, "train", "val", "test")
def words(root): return in_splits(root, "Training", "Validation", "Testing")
def dev(root): return in_splits(root, "train", "dev", "evaluation")
def cases(root): return in_splits(root, "TRAIN", "Valid", "Test")
def train_and_test(root): return in_splits(root, "train", "", "test", drawn=("valid",))
def train_and_valid(root): return in_splits(root, "train", "valid", "", drawn=("test",))
def intel(root): return in_splits(root, "seg_train/seg_train", "", "seg_test/seg_test", drawn=("valid",))

def parent_of_splits(root):
    _,want,drawn = in_splits(root/"archive"/"photos", "train", "val", "test")
    return root,want,drawn

def unlabelled_test(root):
    write(root, "train/cat", "train/dog", "test")
    return root,in_folders(root, train="train"),BOTH

def unlabelled_test_in_a_folder(root):
    write(root, "train/cat", "train/dog", "valid/cat", "valid/dog", "test/unknown")
    return root,in_folders(root, train="train", valid="valid"),("test",)

def formats(root):
    kinds = {"a.PNG": "PNG", "b.bmp": "BMP", "c.TIF": "TIFF", "d.ppm": "PPM", "e.png": "JPEG", "f.jpeg": "JPEG"}
    for c in ("cat", "dog"):
        for name,form in kinds.items(): write(root, c, n=1, name=name, form=form)
        write(root, c, n=1, name="g.webp", form="WEBP", lossless=True)
    return root,in_folders(root, train=""),BOTH

def as_csv(root, table, rows, columns, **kw):
    pd.DataFrame(rows, columns=columns).to_csv(root/table, index=False, **kw)
    return root/table

def in_table(table, file, label, split=lambda o: "train", folder="", **kw):
    "As pandas reads a table and Pillow its files, as fastai's `from_csv` does"
    df = pd.read_csv(table, **kw)
    return [(split(o), o[label], pixels(table.parent/folder/o[file])) for _,o in df.iterrows() if pd.notna(o[label])]

def labels(n, folder="images"): return [(f"{folder}/{i}.png", ("cat", "dog")[i%2]) for i in range(n)]

def csv(root):
    table = as_csv(write(root, "images", n=12), "labels.csv", labels(10), ["name", "label"])
    return root,in_table(table, "name", "label"),BOTH

def csv_is_valid(root):
    rows = [(*o, i>7) for i,o in enumerate(labels(12))]
    table = as_csv(write(root, "images", n=12), "photos.csv", rows, ["fname", "labels", "is_valid"])
    return table,in_table(table, "fname", "labels", lambda o: "valid" if o.is_valid else "train"),("test",)

def csv_split(root):
    rows = [(("val", "Test", "train", "train")[i//2%4], *o) for i,o in enumerate(labels(16))]
    table = as_csv(write(root, "images", n=16), "all.tsv", rows, ["split", "path", "class"], sep="\t")
    ours = dict(val="valid", Test="test", train="train")
    return root,in_table(table, "path", "class", lambda o: ours[o.split], sep="\t"),()

def csv_stems(root):
    rows = [(f"{i:02d}x", ("cat", "dog")[i%2]) for i in range(10)]
    table = as_csv(write(root, "train", n=10, name="{:02d}x.jpg", form="JPEG"), "labels.csv", rows, ["id", "breed"])
    write(root, "test", n=3)
    df = pd.read_csv(table)
    return root,[("train", o.breed, pixels(root/"train"/f"{o.id}.jpg")) for o in df.itertuples()],BOTH

def csv_without_header(root):
    table = as_csv(write(root, "images", n=8), "labels.csv", labels(8), None, header=False)
    return root,in_table(table, 0, 1, header=None),BOTH

def csv_for_each_split(root):
    for s in ("train", "test"):
        as_csv(write(root, s, n=8), f"{s}.csv", labels(8, s), ["image", "label"])
    tables = {s: in_table(root/f"{s}.csv", "image", "label", lambda o: s) for s in ("train", "test")}
    return root,tables["train"]+tables["test"],("valid",)

def hub_metadata(root):
    want = []
    for s,o in dict(train="train", valid="validation", test="test").items():
        rows = [(f"{i}.png", ("cat", "dog")[i%2]) for i in range(6)]
        table = as_csv(write(root, o, n=6), f"{o}/metadata.csv", rows, ["file_name", "label"])
        want += in_table(table, "file_name", "label", lambda _: s)
    return root,want,()

def parquet(f, labels, names):
    "As `datasets` writes it"
    import pyarrow as pa, pyarrow.parquet as pq
    f.parent.mkdir(parents=True, exist_ok=True)
    features = dict(image=dict(_type="Image"), label=dict(names=names, _type="ClassLabel"))
    pair = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", pair), ("label", pa.int64())],
        metadata={"huggingface": json.dumps(dict(info=dict(features=features)))})
    rows = [dict(image=dict(bytes=encoded(), path=f"{i}.png"), label=k) for i,k in enumerate(labels)]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), f)

def in_parquet(f, split, names):
    df = pd.read_parquet(f)
    return [(split, names[o.label], pixels(io.BytesIO(o.image["bytes"]))) for o in df.itertuples() if o.label>=0]

def hub_train_and_test(root):
    names = ["cat", "dog"]
    for o in ("train", "test"): parquet(root/"data"/f"{o}-00000-of-00001.parquet", [0, 1]*5, names)
    of = {s: in_parquet(root/"data"/f"{s}-00000-of-00001.parquet", s, names) for s in ("train", "test")}
    return root,of["train"]+of["test"],("valid",)

def hub_unlabelled(root):
    names = ["cat", "dog"]
    for o,k in dict(train=[0, 1]*5, validation=[0, 1]*2, test=[-1]*4).items(): parquet(root/f"{o}.parquet", k, names)
    want = in_parquet(root/"train.parquet", "train", names)+in_parquet(root/"validation.parquet", "valid", names)
    return root,want,("test",)

def hub_odd_names(root):
    names = ["a/b", "..", "NUL", "x:y", " "*2+"c"]
    parquet(root/"part-0.parquet", [0, 1, 2, 3, 4]*5, names)
    return root,[(s, c.strip(), x) for s,c,x in in_parquet(root/"part-0.parquet", "train", names)],BOTH

FOLDERS = [flat, flat_with_folders_inside, parent_of_flat, cinics, val, words, dev, cases, train_and_test,
    train_and_valid, intel, parent_of_splits, unlabelled_test, unlabelled_test_in_a_folder, formats]
TABLES = [csv, csv_is_valid, csv_split, csv_stems, csv_without_header, csv_for_each_split, hub_metadata,
    hub_train_and_test, hub_unlabelled, hub_odd_names]

def tree(root): return {f: f.stat().st_mtime_ns for f in [root, *root.rglob("*")]}

def pooled(found, drawn):
    "Sorted, without the splits that are drawn from each other"
    pool = {"train", *drawn} if drawn else ()
    return sorted(("" if s in pool else s, c, x) for s,c,x in found)

@pytest.mark.parametrize("make", [*FOLDERS, *TABLES], ids=lambda o: o.__name__)
def test_every_layout(tmp_path, make):
    "The images that an independent reader finds, under their classes and splits, for every command"
    src,want,drawn = make(tmp_path/"x")
    before = tree(tmp_path/"x")
    scan = find_images(src).require()
    assert scan.drawn==drawn
    pack = get_pack(src)
    found = [(o.split, o.label, pack.images[o.row].tobytes()) for o in pack.frame().itertuples()]
    assert pooled(found, drawn)==pooled(want, drawn)
    assert all(pack.counts().values()) and get_pack(src).digest==pack.digest
    assert sum(sum(o.values()) for o in folder_info(src).counts.values())==len(want)
    assert check_folder(src).ok
    assert tree(tmp_path/"x")==before # nothing is written there
    if make is hub_odd_names: return
    copy = split_folder(src, tmp_path/"copy")
    assert pooled(in_folders(copy, **{s: s for s in SPLITS}), drawn)==pooled(want, drawn)
    assert get_pack(copy).classes==pack.classes

def said(make, root):
    make(root)
    with pytest.raises(DataError) as e: get_pack(root)
    return str(e.value)

def test_what_can_not_be_read_is_said(tmp_path):
    "A message that is true, whatever lies there"
    cases = {"10 images without two folders": ["train", "test"],
        "class 'cat' has no images in train": ["train/dog", "train/frog", "test/cat", "test/dog"],
        "Valid and val both stand for valid": [f"{s}/{c}" for s in ("train", "val", "Valid") for c in "xy"],
        "a is no class, as it holds splits of its own": [f"{a}/{s}/{c}" for a in "ab" for s in BOTH for c in "xy"],
        "10 images without two folders of classes": ["only/here", "only"]}
    for i,(why,folders) in enumerate(cases.items()):
        assert why in said(lambda o: write(o, *folders), tmp_path/str(i)), why
    assert "there are no images in it" in said(lambda o: o.mkdir(), tmp_path/"empty")
    assert "there would be none for test" in said(lambda o: write(o, "cat", "dog", n=2), tmp_path/"few")
    def two(o): return [as_csv(write(o, "images"), f"{k}.csv", labels(5), ["id", "breed"]) for k in "ab"]
    assert "give one of a.csv, b.csv" in said(two, tmp_path/"two")
    odd = hub_odd_names(tmp_path/"odd")[0]
    with pytest.raises(DataError, match="can't name a folder"): split_folder(odd, tmp_path/"copy")

def test_what_is_left_out_is_counted(tmp_path):
    root = write(tmp_path/"a", "train/cat", "train/dog", "test", "sample")
    for o in ("train/cat/x.raw", "train/dog/notes.txt"): (root/o).write_bytes(b"x")
    info = folder_info(root)
    assert len(info.unlabelled)==5 and "5 images have no class" in " ".join(info.notes)
    assert sorted(info.ignored)[:5]==[f"sample/{i}.png" for i in range(5)] and len(info.ignored)==7
    r = cinic("data", "info", root)
    assert r.returncode==0 and "5 images have no class" in r.stdout and "7 files not read" in " ".join(r.stdout.split())

def test_an_image_under_two_classes_is_told(tmp_path):
    "Equal pixels in two formats; and when packed they are on one side"
    root = write(tmp_path/"a", "cat", "dog", n=9)
    Image.open(root/"cat"/"3.png").save(root/"dog"/"other.bmp")
    report = check_folder(root)
    assert report.ambiguous==[["cat/3.png", "dog/other.bmp"]] and report.ok
    notes = []
    pack = get_pack(root, on_event=lambda kind, text="", **info: notes.append(text))
    assert "2 images lie under more than one class" in " ".join(notes)
    assert not pack.manifest.shared and [pack.files[g].tolist() for g in pack.manifest.ambiguous]==report.ambiguous

def test_groups_stay_on_one_side(tmp_path):
    root = tmp_path/"a"
    for k in range(12): write(root, ("cat", "dog")[k%2], n=3, name=f"p{k}-{{}}.png")
    pack = get_pack(root, drawing=Drawing((60,20,20), group="(p[0-9]+)-"))
    frame = pack.frame()
    assert (frame.groupby(frame.file.str.extract("(p[0-9]+)-")[0])["split"].nunique()==1).all()
    assert get_pack(root, drawing=Drawing((60,20,20), group="(p[0-9]+)-")).path==pack.path!=get_pack(root).path
    assert pack.counts()==dict(train=18, valid=6, test=12)

def test_near_copies_stay_on_one_side_on_demand(tmp_path):
    root,notes = tmp_path/"a",[]
    for c in ("cat", "dog"):
        for i in range(8):
            small = Image.fromarray(r.integers(0, 256, (16,16,3), dtype=np.uint8))
            big = small.resize((96,96), Image.Resampling.BICUBIC)
            (root/c).mkdir(parents=True, exist_ok=True)
            for k in range(3): big.resize((96-8*k,)*2).save(root/c/f"{i}{'abc'[k]}.jpg", quality=90-10*k)
    loose = get_pack(root, 64, dest=tmp_path/"p", on_event=lambda kind, text="", **info: notes.append(text))
    assert loose.manifest.near and "near-copies in another split" in " ".join(notes)
    tight = get_pack(root, size=64, drawing=Drawing(near=True))
    assert not tight.manifest.near
    frame = tight.frame()
    assert (frame.groupby(frame.label+frame.file.str.extract("([0-9])[abc]")[0])["split"].nunique()==1).all()

def test_train_draws_what_is_missing(tmp_path):
    "And says so; nothing is left among the photos"
    root = write(tmp_path/"photos", "train/cat", "train/dog", "Testing/cat", "Testing/dog", n=12)
    args = ("train", "model=custom_cnn", "epochs=1", "bs=8", "--data", root, "--out", tmp_path/"out")
    done = cinic(*args, "--split", "70/15/15")
    assert done.returncode==0 and "Drawn from train: valid, 15 %." in done.stderr, done.stderr
    assert not list(root.glob(".*"))
    bad = cinic(*args, "--split", "70/30")
    assert bad.returncode==2 and "three numbers above 0" in bad.stderr
