"Photos as cameras give them: large, lying, not square, and at the size that is trained on"
import io, json, struct, sys
import numpy as np, pytest
from PIL import Image, ImageOps
from conftest import cinic, no_page
from cinic_fastai.core import DataError
from cinic_fastai.data.decode import FITS, decode_image, open_image, read_image
from cinic_fastai.data.layout import check_folder
from cinic_fastai.data.pack import get_pack, open_pack
from cinic_fastai.files import read_json, write_json
from cinic_fastai.studyfolder import StudyFolder
from cinic_fastai.test_utils import tiny_folder

bilinear = Image.Resampling.BILINEAR

def encoded(im, form, **kw):
    buf = io.BytesIO()
    im.save(buf, form, **kw)
    return buf.getvalue()

def photo(*sides):
    "Something smooth, in colour"
    coarse = np.random.default_rng(0).integers(0, 256, (8,8,3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(sides, Image.Resampling.BICUBIC)

# --- into a square

@pytest.mark.parametrize("sides,size", [((640,480), 48), ((300,400), 24), ((96,48), 32), ((48,96), 16), ((20,10), 40),
    ((50,50), 25)])
def test_three_fits_beside_torchvision(sides, size):
    "At sizes to which torchvision, too, comes without rounding; its crop's rim has seen what is cut off"
    from torchvision.transforms.v2.functional import center_crop, resize
    im = photo(*sides)
    w,h = (o*size//max(sides) for o in sides)
    want = dict(squish=resize(im, [size,size]), pad=center_crop(resize(im, [h,w]), [size]),
        crop=center_crop(resize(im, [size]), [size]))
    inner = dict(crop=np.s_[1:-1,1:-1])
    for fit in FITS:
        part = inner.get(fit, np.s_[:])
        off = decode_image(encoded(im, "PNG"), size, fit)[part].astype(int)-np.asarray(want[fit])[part]
        assert abs(off).max()<=(fit=="crop"), fit # it rounds another sum

@pytest.mark.parametrize("sides", [(640,481), (333,1000), (31,32), (300,299), (7,9), (2000,150)])
def test_three_fits_beside_pillow(sides):
    im = photo(*sides)
    want = dict(squish=im.resize((32,32), bilinear), pad=ImageOps.pad(im, (32,32), bilinear),
        crop=ImageOps.fit(im, (32,32), bilinear))
    for fit in FITS: assert (decode_image(encoded(im, "PNG"), 32, fit)==np.asarray(want[fit])).all(), fit

# --- large files

def test_a_jpeg_of_sixty_megapixels():
    "Lying, as a phone stores it: at most 2 of 255 from the whole decode on average"
    coarse = np.random.default_rng(0).integers(0, 256, (120,200,3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    large = Image.fromarray(coarse).resize((10000,6000), Image.Resampling.NEAREST)
    data = encoded(large, "JPEG", exif=exif)
    rgb,own = open_image(data, 64)
    assert rgb.size==(750,1250) and own==(6000,10000)
    assert open_image(data)[0].size==(3000,5000) # where no size is wanted: enough for statistics
    whole = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    want = dict(squish=whole.resize((64,64), bilinear), pad=ImageOps.pad(whole, (64,64), bilinear),
        crop=ImageOps.fit(whole, (64,64), bilinear))
    off = {fit: abs(decode_image(data, 64, fit).astype(int)-np.asarray(o)).mean() for fit,o in want.items()}
    assert max(off.values())<2, off

def test_a_jpeg_below_the_limit_is_decoded_whole(monkeypatch):
    monkeypatch.setattr("cinic_fastai.data.decode.MAX_PIXELS", 900*700)
    im = photo(900, 700)
    data = encoded(im, "JPEG")
    assert (decode_image(data)==np.asarray(Image.open(io.BytesIO(data)))).all()
    assert open_image(encoded(photo(901, 700), "JPEG"), 10)[0].size==(113,88)

def test_bombs_are_refused():
    "A JPEG that claims to be larger than any camera's"
    data = encoded(photo(32, 32), "JPEG")
    at = data.index(b"\xff\xc0")+5 # height and width of a frame
    claims = data[:at]+struct.pack(">HH", 65000, 65000)+data[at+4:]
    with pytest.raises(DataError, match="65000x65000 is more than 200,000,000 pixels"): decode_image(claims, 32)

# --- HEIC

def no_heif(): sys.modules["pillow_heif"] = None # as where it isn't installed

def test_heic_is_named_with_the_cure(tmp_path):
    root = tiny_folder(tmp_path, n=2)
    (root/"train"/"cat"/"phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    for words,status in ((["data", "check"], 2), (["data", "pack"], 2), (["data", "pack", "--on-bad", "skip"], 0)):
        r = cinic(*words, root, before=no_heif)
        assert r.returncode==status, r.stderr
        assert "phone.HEIC: HEIC needs the package pillow-heif: pip install 'cinic_fastai[heic]'" in r.stdout+r.stderr
    assert get_pack(root).skipped==["train/cat/phone.HEIC"]

def test_heic_is_read_where_it_can_be(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    im = photo(64, 48)
    heif.from_pillow(im).save(tmp_path/"a.heic", quality=95)
    (tmp_path/"b.jpg").write_bytes((tmp_path/"a.heic").read_bytes()) # what a file is, its content says
    want = np.asarray(heif.open_heif(tmp_path/"a.heic").to_pillow())
    assert abs(want.astype(int)-np.asarray(im)).mean()<10 # colours are stored at half the sides
    for f in ("a.heic", "b.jpg"): assert (read_image(tmp_path/f)==want).all()

# --- packs, studies and new photos

ONE_RUN = """
[study]
name = "x"
[defaults]
model = "custom_cnn"
bs = 8
epochs = 1
[[run]]
name = "a"
"""

@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Three to two, of three classes"
    root = tiny_folder(tmp_path_factory.mktemp("photos"), n=4)
    for f in root.rglob("*.png"): Image.open(f).resize((60,40)).save(f)
    return root

def test_new_photos_are_prepared_as_the_training_images_were(photos, tmp_path):
    "Their probabilities are the stored ones; a study on images that are packed otherwise is another one"
    from cinic_fastai.study.face import Study
    plan,out = tmp_path/"plan.toml",tmp_path/"out"
    plan.write_text(ONE_RUN, encoding="utf-8")
    words = "study", plan, "--data", photos, "--out", out
    r = cinic(*words, "--size", 24, "--fit", "crop", before=no_page)
    assert r.returncode==0 and "36 of all 36 images aren't square: cut to the square" in r.stderr, r.stderr
    study = StudyFolder(out)
    stored = study.store.probs(study.record.runs[0].run_id, "test")
    files = [photos/f for f in get_pack(photos, 24, fit="crop").files[stored["rows"]]]
    found = json.loads(cinic("predict", out, *files, "--json").stdout)["images"]
    assert abs(np.array([list(o["probabilities"].values()) for o in found])-stored["probs"]).max()<1e-5
    assert cinic("export", out, "--format", "safetensors").returncode==0
    from cinic_fastai.results.export import import_safetensors
    assert abs(import_safetensors(out/"export"/"model.safetensors").probs(files)-stored["probs"]).max()<1e-5
    assert Study(out).pack.digest==study.data.digest # found with size and fit
    assert "cut to the square in their middle" in (out/"export"/"README.md").read_text(encoding="utf-8")
    assert study.data.shapes.startswith("36 of all 36")
    for options,differs in (([], "size is 24 there, 32 here; fit is crop there, squish here"),
            (["--size", 24], "(fit is crop there, squish here)")):
        r = cinic(*words, *options)
        assert r.returncode==2 and differs in r.stderr and "Give the same plan and options" in r.stderr, r.stderr

def test_a_check_says_what_will_be_done(photos):
    assert check_folder(photos).sizes=={"60x40": 36}
    r = cinic("data", "check", photos)
    assert r.returncode==0 and "36 of all 36 images aren't square: squished into a square (--fit pad" in r.stdout

def test_a_pack_from_before_is_read(tmp_path):
    "It says nothing of shapes, and was squished"
    pack = get_pack(tiny_folder(tmp_path, n=2))
    manifest = read_json(pack.path/"manifest.json")
    old = {k: v for k,v in manifest.items() if k not in ("fit", "not_square")}
    write_json(pack.path/"manifest.json", old)
    again = open_pack(pack.path)
    assert (again.digest, again.fit, again.shape_words())==(pack.digest, "squish", "")

# --- size

def striped(c, noise):
    "Fine stripes, upright or lying, fading towards the border: of 32 pixels each is a mean of two stripes"
    i = np.arange(64)
    fade = np.sin(np.pi*(i+.5)/64)**2
    stripes = 90*np.outer(fade, fade)*(-1)**i
    x = 128+(stripes if c else stripes.T)
    return Image.fromarray((x[...,None]+noise).clip(0, 255).round().astype(np.uint8))

def test_what_64_pixels_tell_is_learnt_at_64(tmp_path):
    a,b = (np.asarray(striped(c, np.zeros(3)).resize((32,32), bilinear)).astype(int) for c in (0, 1))
    assert abs(a-b).max()<=1 # no network tells them apart
    r = np.random.default_rng(0)
    for s in ("train", "valid", "test"):
        for c,name in enumerate(("lying", "upright")):
            (tmp_path/s/name).mkdir(parents=True)
            for i in range(32): striped(c, r.normal(0, 8, (64,64,3))).save(tmp_path/s/name/f"{i}.png")
    settings = "model=custom_cnn", "opt=adam", "lr=0.001", "bs=16", "epochs=6"
    def trained(*options):
        done = cinic("train", *settings, *options, "--data", tmp_path, "--out", tmp_path/"out", "--json")
        return json.loads(done.stdout)["test_acc"]
    assert trained("--size", 64)>.95 and trained("size=64")>.95
    assert trained("size=64", "--size", 32)<.8 # the control: as many pixels, made from 32
