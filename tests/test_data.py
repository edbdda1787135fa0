"Image folders, downloads and packs under servers, processes, kills and bad files"
import hashlib, io, json, os, re, shutil, signal, struct, subprocess, sys, tarfile, threading, time, zlib
import unicodedata
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import numpy as np, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image, ImageOps
from conftest import ENV, cinic
from conftest import server as processes
from cinic_fastai.core import DataError, WriteError
from cinic_fastai.files import cache_place
from cinic_fastai.data import decode, sources
from cinic_fastai.data.decode import read_image, to_rgb
from cinic_fastai.data.folder import image_files, left_out, scan_folder
from cinic_fastai.data.layout import check_folder, find_images, folder_info, split_folder
from cinic_fastai.data.sources import Archive, download_archive, extract_archive, get_cinic, write_demo
from cinic_fastai.data.pack import get_pack, open_pack
from cinic_fastai.test_utils import tiny_folder

posix = pytest.mark.skipif(os.name=="nt", reason="needs POSIX")

# --- downloads

class Handler(BaseHTTPRequestHandler):
    "Serves `server.data`; the path says how well"
    def log_message(self, *args): pass

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        if self.path=="/404": return self.send_error(404)
        if self.path=="/gone-soon" and sum(p=="/gone-soon" for p,_ in self.server.asked)>2: return self.send_error(410)
        if self.path=="/5xx" and len(self.server.asked)<3: return self.send_error(503)
        if self.path=="/moved":
            self.send_response(302)
            self.send_header("Location", "/good")
            return self.end_headers()
        data = self.server.data
        if self.path=="/corrupt": data = data[:1000]+bytes([data[1000]^1])+data[1001:]
        if self.path=="/short": data = data[:-5]
        start = 0
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and self.path!="/no-range":
            start = int(wanted[1])
            if start>=len(data): return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data)-1}/{len(data)}")
        else: self.send_response(200)
        if self.path not in ("/unsized", "/endless"): self.send_header("Content-Length", str(len(data)-start))
        if self.path=="/gzip": self.send_header("Content-Encoding", "x-gzip")
        self.end_headers()
        body = data[start:]
        if self.path=="/endless": body = body*50
        if self.path in ("/cut", "/gone-soon"): body = body[:len(data)//3+1]
        if self.path=="/no-range" and len(self.server.asked)==1: body = body[:len(data)//2]
        self.close_connection = True
        try: self.wfile.write(body)
        except ConnectionError: pass # the client has seen enough

@pytest.fixture
def archive(tmp_path):
    tiny_folder(tmp_path/"src", n=3)
    with tarfile.open(tmp_path/"src.tar.gz", "w:gz") as t: t.add(tmp_path/"src", "CINIC-10")
    return (tmp_path/"src.tar.gz").read_bytes()

@pytest.fixture
def server(archive, monkeypatch):
    monkeypatch.setattr(sources.time, "sleep", lambda s: None)
    s = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    s.data, s.asked, s.url = archive, [], f"http://127.0.0.1:{s.server_address[1]}"
    threading.Thread(target=s.serve_forever, args=(.02,), daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()

def get(server, dest, *paths, **kw):
    "`get_cinic` from paths of the test's server"
    archive = Archive([server.url+p for p in paths], len(server.data), hashlib.md5(server.data).hexdigest())
    return get_cinic(dest, archive, **kw)

def good(dest):
    left = [o for o in dest.parent.iterdir() if "part" in o.name or o.name==f"{dest.name}.tar.gz"]
    return len(find_images(dest).require().items)==27 and not left

@pytest.mark.parametrize("path", ["/good", "/cut", "/no-range", "/5xx", "/moved", "/unsized", "/gzip"])
def test_download(server, tmp_path, path):
    events = []
    dest = get(server, tmp_path/"cinic", path, on_event=lambda kind, **info: events.append(info))
    assert good(dest)
    assert dict(what="download", done=len(server.data), total=len(server.data)) in events

def test_resumes_where_it_was_cut(server, tmp_path):
    get(server, tmp_path/"cinic", "/cut")
    ranges = [r for _,r in server.asked]
    n = len(server.data)//3+1
    assert ranges==[None, f"bytes={n}-", f"bytes={2*n}-"]

def test_resumes_after_the_program_ended(server, tmp_path):
    with pytest.raises(DataError, match="410"): get(server, tmp_path/"cinic", "/gone-soon")
    n = (tmp_path/"cinic.tar.gz.part").stat().st_size
    assert 0<n<len(server.data)
    assert good(get(server, tmp_path/"cinic", "/good"))
    assert server.asked[-1]==("/good", f"bytes={n}-")

def test_next_address(server, tmp_path):
    assert good(get(server, tmp_path/"cinic", "/404", "/short", "/corrupt", "/good"))
    assert [p for p,_ in server.asked]==["/404", "/short", "/corrupt", "/good"]

def test_a_damaged_part_is_fetched_again(server, tmp_path):
    (tmp_path/"cinic.tar.gz.part").write_bytes(b"x"*100)
    assert good(get(server, tmp_path/"cinic", "/good"))
    assert server.asked==[("/good", "bytes=100-"), ("/good", None)]

@pytest.mark.parametrize("extra", [0, 1, 10**6])
def test_a_part_that_is_long_enough(server, tmp_path, extra):
    (tmp_path/"cinic.tar.gz.part").write_bytes(server.data+b"x"*extra)
    assert good(get(server, tmp_path/"cinic", "/good"))
    assert len(server.asked)==bool(extra)

def test_every_failure_is_named_with_the_cure(server, tmp_path):
    with pytest.raises(DataError) as e: get(server, tmp_path/"cinic", "/404", "/short", "/corrupt", "/endless")
    text = str(e.value)
    n = len(server.data)
    causes = ("404", f"offers {n-5:,} bytes, expected {n:,}", "its MD5 is", "sends more than")
    for o in (*causes, "get the file yourself", "cinic.tar.gz"): assert o in text
    assert not (tmp_path/"cinic").exists()

def test_nobody_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.time, "sleep", lambda s: None)
    with pytest.raises(DataError, match="can't be downloaded"):
        download_archive(tmp_path/"a", Archive(["http://127.0.0.1:9/x", "no address"], 10, "0"))

def test_done_is_recognised_and_other_files_are_refused(server, tmp_path):
    dest = get(server, tmp_path/"cinic", "/good")
    n = len(server.asked)
    assert get(server, dest, "/good")==dest and len(server.asked)==n
    tiny_folder(tmp_path/"mine", n=1)
    with pytest.raises(DataError, match="not empty"): get(server, tmp_path/"mine", "/good")
    (tmp_path/"empty").mkdir()
    assert good(get(server, tmp_path/"empty", "/good"))

# --- archives of strangers

def member(name, kind=tarfile.REGTYPE, data=b"x", **kw):
    m = tarfile.TarInfo(name)
    m.type, m.size = kind, len(data) if kind==tarfile.REGTYPE else 0
    for k,v in kw.items(): setattr(m, k, v)
    return m, io.BytesIO(data)

def tar_of(path, *members):
    with tarfile.open(path, "w:gz") as t:
        for m,data in members: t.addfile(m, data)
    return path

def snapshot(root): return sorted(str(o) for o in root.rglob("*"))

evil_members = [*map(member, ("../out.png", "train/../../out.png", "/abs/out.png", "..\\out.png", "C:/out.png")),
    member("train/link", tarfile.SYMTYPE, linkname="../../.."),
    member("train/hard", tarfile.LNKTYPE, linkname="/etc/passwd"),
    member("train/dev", tarfile.CHRTYPE, devmajor=1, devminor=3), member("train/pipe", tarfile.FIFOTYPE),
    member("../dir", tarfile.DIRTYPE)]

def at_hand(f): return Archive((), f.stat().st_size, hashlib.md5(f.read_bytes()).hexdigest())

@pytest.mark.parametrize("evil", evil_members, ids=lambda o: o[0].name)
def test_evil_members(tmp_path, evil):
    f = tar_of(tmp_path/"a.tar.gz", member("CINIC-10/train/cat/1.png"), evil)
    before = snapshot(tmp_path)
    with pytest.raises(DataError): get_cinic(tmp_path/"a", at_hand(f))
    assert [o for o in snapshot(tmp_path) if not o.endswith(".lock")]==before
    with suppress(DataError): extract_archive(f, tmp_path/"in"/"it")
    assert [o.name for o in (tmp_path/"in").iterdir()]==["it"] and not Path("/abs/out.png").exists()
    assert all((o.is_file() or o.is_dir()) and not o.is_symlink() for o in (tmp_path/"in").rglob("*"))

@pytest.mark.parametrize("name", ["../out.png", "train/../../out.png"])
def test_a_name_that_leads_out_is_named(tmp_path, name):
    f = tar_of(tmp_path/"a.tar.gz", member(name))
    with pytest.raises(DataError, match="out.png.*Delete it"): extract_archive(f, tmp_path/"in")

harms = [lambda b: b[:len(b)//2], lambda b: b[:200]+bytes(50)+b[250:], lambda b: b"no archive", lambda b: b""]

@pytest.mark.parametrize("harm", harms)
def test_damaged_archive(archive, tmp_path, harm):
    f = tmp_path/"b.tar.gz"
    f.write_bytes(harm(archive))
    with pytest.raises(DataError, match="can't be unpacked"): extract_archive(f, tmp_path/"out")

def test_archive_of_something_else(tmp_path):
    f = tar_of(tmp_path/"a.tar.gz", member("holiday/1.png"))
    with pytest.raises(DataError, match="does not hold an image folder"): get_cinic(tmp_path/"a", at_hand(f))
    assert not (tmp_path/"a").exists()

# --- bad image folders

def png(x, **kw):
    buf = io.BytesIO()
    Image.fromarray(x).save(buf, "png", **kw)
    return buf.getvalue()

noise = np.random.default_rng(0).integers(0, 256, (32,32,3), dtype=np.uint8)
bad_files = dict(empty=b"", text=b"hello", cut=png(noise)[:500], gif=b"GIF89a"+bytes(100),
    flipped=png(noise)[:300]+b"\0"+png(noise)[301:], bomb=png(np.zeros((8000,8000), bool)))

@pytest.mark.parametrize("n_workers", [1, 2])
def test_bad_files_are_all_named(tmp_path, n_workers):
    root = tiny_folder(tmp_path/"a", n=2)
    for k,v in bad_files.items(): (root/"valid"/"cat"/f"{k}.png").write_bytes(v)
    with pytest.raises(DataError) as e: get_pack(root, n_workers=n_workers)
    assert f"{len(bad_files)} bad images" in str(e.value)
    for k in bad_files: assert f"valid/cat/{k}.png: " in str(e.value)
    assert not (cache_place(root, "packs")/"pack-32").exists()
    pack = get_pack(root, on_bad="skip", n_workers=n_workers)
    assert pack.skipped==sorted(f"valid/cat/{k}.png" for k in bad_files)
    assert pack.manifest.skipped["valid/cat/empty.png"]=="empty file"
    assert pack.counts()==dict(train=6, valid=6, test=6) and not set(pack.skipped)&set(pack.files)
    assert sorted(check_folder(root, n_workers=n_workers).bad)==pack.skipped

@posix
def test_files_that_are_no_files(tmp_path):
    root = tiny_folder(tmp_path/"a", n=2)
    cat = root/"train"/"cat"
    os.mkfifo(cat/"pipe.png")
    (cat/"loop.png").symlink_to(cat/"loop.png")
    (cat/"nowhere.png").symlink_to("gone")
    (root/"train"/"loop").symlink_to(root/"train"/"loop")
    (root/"circle").symlink_to(root)
    if os.geteuid(): (cat/"secret.png").write_bytes(png(noise)); (cat/"secret.png").chmod(0)
    pack = get_pack(root, on_bad="skip")
    names = ("pipe.png", "loop.png", "nowhere.png")
    assert {f"train/cat/{o}" for o in names}<=set(pack.skipped) and pack.counts()["train"]==6
    assert {cat/o for o in names}<=set(image_files([cat])) # named by predict, too
    items = scan_folder(root).items
    (cat/"circle").symlink_to(root)
    assert scan_folder(root).items==items and not scan_folder(root).problems

@posix
def test_names(tmp_path):
    root = tiny_folder(tmp_path/"a", n=1, classes=("grüner Frosch", "plain", "with, comma"))
    names = ("a b.png", 'quo"te.png', "línea\nnueva.png", "tab\t.PNG", "漢字.Jpeg")
    for o in names: (root/"train"/"plain"/o).write_bytes(png(noise))
    pack = get_pack(root)
    assert set(pack.files)=={o[2] for o in find_images(root).items} and "train/plain/línea\nnueva.png" in pack.files
    for i,f in enumerate(pack.files):
        assert (pack.images[i]==read_image(root/f)).all() and f.split("/")[1]==pack.classes[pack.targs[i]]
    if sys.platform=="linux":
        (Path(os.fsencode(root/"train"/"plain").decode())/os.fsdecode(b"\xff.png")).write_bytes(png(noise))
        with pytest.raises(DataError, match="not UTF-8") as e: get_pack(root)
        str(e.value).encode()

def test_layout_is_checked_before_work(tmp_path):
    root = tiny_folder(tmp_path/"a", n=1)
    (root/"valid").rename(root/"validation")
    (root/"train"/"frog").mkdir()
    with pytest.raises(DataError) as e: get_pack(root, on_event=lambda *a, **k: pytest.fail("work has begun"))
    assert "class 'frog' has no images in train" in str(e.value)
    with pytest.raises(DataError, match="There is no folder"): get_pack(tmp_path/"nowhere")

@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 2000), new=st.binary(max_size=20), cut=st.integers(0, 3000))
def test_any_bytes_give_an_image_or_a_reason(tmp_path, at, new, cut):
    data = png(noise)
    (tmp_path/"x.png").write_bytes((data[:at]+new+data[at+len(new):])[:cut])
    try: assert read_image(tmp_path/"x.png", 32).shape==(32,32,3)
    except DataError as e: assert str(tmp_path) in str(e)

# --- pixels

splits = dict(train="train", valid="valid", test="test")

def folder_of(root, images, classes=("cat", "dog"), names=splits):
    "An image folder with the same files, {name: bytes}, in each class and split"
    for s in names.values():
        for c in classes:
            (root/s/c).mkdir(parents=True, exist_ok=True)
            for name,data in images.items(): (root/s/c/name).write_bytes(data)
    return root

def everywhere(root, images):
    "Each file's pixels as the commands see them: packed, copied and packed, predicted"
    from cinic_fastai.data.loaders import as_image
    from cinic_fastai.results.predict import Predictor
    size, made = 32, folder_of(root/"made", images)
    folder_of(root/"hub", images, names=dict(train="train", valid="validation", test="test"))
    tried = [made, split_folder(root/"hub", root/"copied")]
    for pack in map(get_pack, tried):
        yield {Path(f).stem: pack.images[i] for i,f in enumerate(pack.files)}
    for o in tried[1:]: # no file is encoded again
        assert {f.read_bytes() for f in o.glob("*/*/*")}==set(images.values())
    files = sorted((made/"train"/"cat").iterdir())
    pixels = Predictor("", ["cat", "dog"], size, {}, None).pixels(files)
    yield dict(zip((f.stem for f in files), pixels.permute(0,2,3,1).numpy()))
    yield {f.stem: np.asarray(as_image(f.read_bytes(), size)) for f in files}
    yield {f.stem: np.asarray(as_image(Image.open(f), size)) for f in files}

# how a camera that was held so stores what is upright, by EXIF's number
stored = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
    6: np.rot90, 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: lambda x: np.rot90(x, 3)}

def encoded(im, form, **kw):
    buf = io.BytesIO()
    im.save(buf, form, **kw)
    return buf.getvalue()

turned_forms = [("PNG", {}), ("JPEG", dict(quality=95, subsampling=0)), ("WEBP", dict(lossless=True)), ("TIFF", {}),
    ("AVIF", dict(quality=100, subsampling="4:4:4"))]

@pytest.mark.parametrize("form,options", turned_forms)
def test_eight_orientations(tmp_path, form, options):
    smooth = np.asarray(Image.fromarray(noise[:4,:4]).resize((32,32), Image.Resampling.BICUBIC)) # JPEG keeps it
    images = {}
    for o,turned in stored.items():
        exif = Image.Exif()
        exif[0x0112] = o
        im = Image.fromarray(np.ascontiguousarray(turned(smooth)))
        images[f"o{o}.{form.lower()}"] = encoded(im, form, exif=exif, **options)
    def shown(data): return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    want = {Path(f).stem: np.asarray(shown(data)).astype(int) for f,data in images.items()}
    assert all(abs(o-smooth).max()<=8*(form in ("JPEG", "AVIF")) for o in want.values())
    for got in everywhere(tmp_path, images):
        assert {k: abs(v-want[k]).max() for k,v in got.items()}==dict.fromkeys(want, 0)

def test_orientation_beside_torchvision_and_in_xmp(tmp_path):
    from torchvision.io import ImageReadMode, decode_image
    from torch import frombuffer, uint8
    exif = Image.Exif()
    for o in stored:
        exif[0x0112] = o
        data = encoded(Image.fromarray(noise[:20]), "PNG", exif=exif)
        (tmp_path/"x.png").write_bytes(data)
        want = decode_image(frombuffer(bytearray(data), dtype=uint8), ImageReadMode.RGB, apply_exif_orientation=True)
        assert (read_image(tmp_path/"x.png")==want.permute(1,2,0).numpy()).all(), o
    exif[0x0112] = 99
    for kw in (dict(exif=exif), dict(exif=b"Exif\0\0broken")):
        (tmp_path/"x.jpg").write_bytes(encoded(Image.fromarray(noise), "JPEG", **kw))
        assert (read_image(tmp_path/"x.jpg")==np.asarray(Image.open(tmp_path/"x.jpg"))).all() # says nothing of use

def test_transparency_lies_on_white(tmp_path):
    x, a = noise, noise[::-1,:,:1].copy()
    a[:8], a[8:16] = 0, 255
    rgba, gray = np.dstack([x, a]), np.dstack([x[...,:1], a])
    def on_white(x, a): return 255+(x.astype(float)-255)*a/255
    palette = Image.fromarray(x).quantize(16)
    def keyed(of, key, x): return np.where((of==key).all(-1, keepdims=True), 255, x)
    color, index = np.asarray(palette.convert("RGB")), np.asarray(palette)[...,None]
    grays, key, deep = np.repeat(x[...,:1], 3, 2), int(x[3,3,0]), Image.fromarray(x[...,0].astype(np.uint16)*257)
    ways = {
        "rgba.png": (encoded(Image.fromarray(rgba, "RGBA"), "PNG"), on_white(x, a)),
        "lossless.webp": (encoded(Image.fromarray(rgba, "RGBA"), "WEBP", lossless=True, exact=True), on_white(x, a)),
        "layers.tif": (encoded(Image.fromarray(rgba, "RGBA"), "TIFF"), on_white(x, a)),
        "la.png": (encoded(Image.fromarray(gray, "LA"), "PNG"), on_white(grays, a)),
        "key.png": (encoded(Image.fromarray(x), "PNG", transparency=tuple(map(int, x[3,3]))), keyed(x, x[3,3], x)),
        "graykey.png": (encoded(Image.fromarray(x[...,0]), "PNG", transparency=key), keyed(grays, key, grays)),
        "palettekey.png": (encoded(palette, "PNG", transparency=3), keyed(index, 3, color)),
        "bykey.gif": (encoded(palette, "GIF", transparency=3), keyed(index, 3, color)),
        "shares.png": (encoded(palette, "PNG", transparency=bytes(range(0, 256, 16))), on_white(color, index*16)),
        "deepkey.png": (encoded(deep, "PNG", transparency=key*257), keyed(grays, key, grays)),
    }
    for got in everywhere(tmp_path, {f: data for f,(data,_) in ways.items()}):
        off = {f: float(abs(got[Path(f).stem]-want).max()) for f,(_,want) in ways.items()}
        assert max(off.values())<=1, off

def png_by_hand(x, depth, kind, clear):
    "A PNG file of any bit depth with a transparent colour"
    def chunk(name, data): return struct.pack(">I", len(data))+name+data+struct.pack(">I", zlib.crc32(name+data))
    bits = np.unpackbits(x.astype(">u2").view(np.uint8).reshape(len(x), -1, 2), axis=-1)[...,16-depth:]
    bits = bits.reshape(len(x), -1)
    rows = b"".join(b"\0"+bytes(o) for o in np.packbits(bits, axis=1))
    head = struct.pack(">IIBBBBB", x.shape[1], len(x), depth, kind, 0, 0, 0)
    key = chunk(b"tRNS", np.array(clear, ">u2").tobytes())
    return b"\x89PNG\r\n\x1a\n"+chunk(b"IHDR", head)+key+chunk(b"IDAT", zlib.compress(rows))+chunk(b"IEND", b"")

@pytest.mark.parametrize("depth,kind", [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
def test_a_transparent_colour_of_any_depth(tmp_path, depth, kind):
    "By PNG's own words: pixels of this very value are transparent, all others opaque"
    x = np.random.default_rng(1).integers(0, 2**depth, (8,8,3 if kind else 1))
    (tmp_path/"x.png").write_bytes(png_by_hand(x, depth, kind, x[3,3]))
    want = np.where((x==x[3,3]).all(-1, keepdims=True), 255, x*255/(2**depth-1))
    assert abs(read_image(tmp_path/"x.png")-want).max()<=1

def test_modes_that_files_seldom_have():
    rgba = Image.fromarray(np.dstack([noise, noise[::-1,:,:1]]), "RGBA")
    want = Image.new("RGB", (32,32), "white")
    want.paste(rgba, mask=rgba.getchannel("A"))
    for mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        im = rgba.convert("RGBA" if mode.startswith("RGB") else "LA").convert(mode)
        if mode=="PA": im.putalpha(rgba.getchannel("A")) # which Pillow loses on the way
        flat = want if mode.startswith("RGB") else want.convert("L").convert("RGB")
        assert abs(np.asarray(to_rgb(im)).astype(int)-np.asarray(flat)).max()<=2, mode
    with pytest.raises(DataError, match="floating-point"): to_rgb(Image.fromarray(noise[...,0]/255))
# --- formats and names

kinds = dict(PNG={}, BMP={}, WEBP=dict(lossless=True), TIFF=dict(compression="tiff_lzw"), PPM={},
    JPEG=dict(quality=90), GIF={}, AVIF=dict(quality=90))
usual = {"png": "PNG", "PNG": "PNG", "bmp": "BMP", "webp": "WEBP", "tif": "TIFF", "tiff": "TIFF", "ppm": "PPM",
    "jpg": "JPEG", "jfif": "JPEG", "gif": "GIF", "avif": "AVIF"}

def test_formats_are_read_by_every_command(tmp_path):
    still = Image.fromarray(noise)
    images = {f"of_{i}.{k}": encoded(still, form, **kinds[form]) for i,(k,form) in enumerate(usual.items())}
    images["misnamed.jpg"] = encoded(still, "WEBP", lossless=True) # what a file is, its content says
    moving = [Image.fromarray(np.roll(noise, 9*i)) for i in range(3)]
    images["moving.webp"] = encoded(moving[0], "WEBP", save_all=True, append_images=moving[1:], lossless=True)
    first,*others = [o.quantize(8) for o in moving]
    images["movie.gif"] = encoded(first, "GIF", save_all=True, append_images=others)
    want = {Path(f).stem: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for f,data in images.items()}
    assert sum((o==noise).all() for o in want.values())==9
    for got in everywhere(tmp_path, images): assert {k for k,v in got.items() if (v==want[k]).all()}==set(want)
    report = check_folder(tmp_path/"made")
    assert report.ok and report.counts["train"]==dict.fromkeys(("cat", "dog"), len(images))
    assert len(image_files([tmp_path/"made"/"train"]))==2*len(images)

def test_one_commands_deep_and_coloured_files(tmp_path):
    deep = (np.arange(1024)*64).reshape(32,32).astype(np.uint16)
    scaled = np.repeat(np.round(deep/257).astype(np.uint8)[...,None], 3, 2)
    for f in (tmp_path/"a.png", tmp_path/"a.tif", tmp_path/"a.pgm"):
        Image.fromarray(deep).save(f)
        assert (read_image(f)==scaled).all(), f
    Image.fromarray(noise).convert("CMYK").save(tmp_path/"a.jpg")
    assert (read_image(tmp_path/"a.jpg")==np.asarray(Image.open(tmp_path/"a.jpg").convert("RGB"))).all()

@pytest.mark.parametrize("form", kinds)
def test_bad_files_of_any_format_are_named(tmp_path, form, monkeypatch):
    whole = encoded(Image.fromarray(noise), form, **kinds[form])
    f = tmp_path/f"x.{form.lower()}"
    for n in (4, 20, len(whole)//2):
        f.write_bytes(whole[:n])
        with pytest.raises(DataError, match=re.escape(str(f))): read_image(f)
    f.write_bytes(whole)
    monkeypatch.setattr(decode, "MAX_PIXELS", 255 if form=="JPEG" else 1023) # a JPEG may have four times as many
    monkeypatch.setattr(Image.core, "new", lambda *a: pytest.fail("decoded"))
    with pytest.raises(DataError, match="32x32 is more than 1,02. pixels"): read_image(f)

def rolled(n):
    "Images no two of which are equal, nor equal to `noise`"
    return {f"{i}.png": encoded(Image.fromarray(np.roll(noise, i+1)), "PNG") for i in range(n)}

def test_what_is_not_read_is_counted_and_named(tmp_path):
    images = {"a.png": encoded(Image.fromarray(noise), "PNG"), "b.RAW": b"x", ".hidden": b"x", "Thumbs.db": b"x"}
    images |= {f"{i}{s}": b"x" for i,s in enumerate((".raw", ".eps", ".svg", ".psd", ".txt", ""))}
    root, notes = folder_of(tmp_path/"a", images), []
    def listen(kind, **info): notes.append(info.get("text", ""))
    folder_of(tmp_path/"flat", images|rolled(3), names=dict(all=""))
    folder_of(tmp_path/"hub", images, names=dict(train="train", valid="dev", test="test"))
    def packing(): get_pack(root, on_event=listen)
    def splitting(): split_folder(tmp_path/"flat", tmp_path/"s", on_event=listen)
    def importing(): split_folder(tmp_path/"hub", tmp_path/"i", on_event=listen)
    def counting(): notes.extend(folder_info(root).findings())
    def checking(): notes.extend(check_folder(root).findings())
    for n,act in ((42, packing), (14, splitting), (42, importing), (42, counting), (42, checking)):
        notes.clear()
        act()
        note, = [t for t in notes if "not read" in t]
        assert f"{n} files not read: {n*2//7} .raw" in note, note
        assert all(k in note for k in (".eps", ".svg", ".psd", ".txt", "more kinds")), note
    (root/"test"/"cat"/"new.raw").write_bytes(b"x")
    notes.clear()
    get_pack(root, on_event=listen)
    assert "43 files not read" in notes[-1]
    for s in splits: (root/s/"cat"/"a.png").unlink()
    with pytest.raises(DataError, match="class 'cat' has no images in train(?s:.*)13 .raw"): get_pack(root)

def test_images_outside_of_the_classes_are_named(tmp_path):
    image = encoded(Image.fromarray(noise), "PNG")
    root = folder_of(tmp_path/"a", {"a.png": image})
    flat = folder_of(tmp_path/"flat", rolled(8), names=dict(all=""))
    for f in (root/"cover.png", root/"train"/"lost.png", flat/"lost.png"): f.write_bytes(image)
    assert "2 files not read: 2 .png, for example cover.png" in " ".join(folder_info(root).findings())
    notes = []
    def listen(kind, **info): notes.append(info.get("text", ""))
    split_folder(flat, tmp_path/"s", on_event=listen)
    assert "1 file not read: 1 .png, for example lost.png" in " ".join(notes)
    (root/"notes.txt").write_bytes(b"x")
    notes.clear()
    split_folder(root, tmp_path/"i", on_event=listen)
    assert "2 files not read: 2 .png, for example cover.png" in " ".join(notes)

def test_what_lies_outside_of_the_classes_is_told_as_it_is_today(tmp_path):
    "Whenever it came or went: the pack, which doesn't hold it, stays"
    root,notes = tiny_folder(tmp_path/"a"),[]
    def listen(kind, **info): notes.append((kind, info.get("text", "")))
    pack = get_pack(root)
    (root/"train"/"lost.png").write_bytes(b"x")
    os.close(os.open(os.fsencode(root)+b"/\xff.png", os.O_CREAT)) # no UTF-8
    assert get_pack(root, on_event=listen).digest==pack.digest
    (kind,text), = notes
    assert kind=="note" and text.startswith("2 files not read: 2 .png, for example \\xff.png")
    shutil.rmtree(cache_place(root, "packs"))
    get_pack(root) # which knows of them
    for f in (root/"train"/"lost.png", os.fsencode(root)+b"/\xff.png"): os.unlink(f)
    notes.clear()
    assert get_pack(root, on_event=listen).digest==pack.digest and notes==[]

def test_what_a_name_holds_stays_on_its_line():
    words = left_out(["a.b\nc", "long."+"y"*200, "\udcff.png", "notes.TXT"])
    assert words.startswith("4 files not read: 2 without a suffix, 1 .txt, 1 .png, for example 'a.b\\nc'. ")
    assert words.isprintable()

def test_folders_that_are_links_are_looked_through(tmp_path):
    "Once each way that leads there, and never in circles"
    images = {"a.png": encoded(Image.fromarray(noise), "PNG"), "b.raw": b"x"}
    real = folder_of(tmp_path/"real", images, names=dict(all=""))
    for s in splits:
        (tmp_path/"hub"/s).mkdir(parents=True)
        for c in ("cat", "dog"): (tmp_path/"hub"/s/c).symlink_to(real/c)
    notes = []
    def listen(kind, **info): notes.append(info.get("text", ""))
    root = split_folder(tmp_path/"hub", tmp_path/"copied", on_event=listen)
    assert folder_info(root).counts==dict.fromkeys(splits, dict(cat=1, dog=1)) and "6 files not read" in notes[0]
    (real/"cat"/"round").symlink_to(real)
    test = tmp_path/"hub"/"test"
    assert image_files([test])==[test/o for o in ("cat/a.png", "cat/round/dog/a.png", "dog/a.png")]

def test_a_class_called_all_keeps_its_count(tmp_path):
    root = folder_of(tmp_path, {"a.png": b"x", "b.png": b"x"}, classes=("all", "cat", "dog"))
    df = folder_info(root).table()
    assert df.index.tolist()==["all", "cat", "dog", "all"] and df["train"].tolist()==[2, 2, 2, 6]
    assert df.index.name=="class"

def test_what_is_not_read_is_named_on_the_command_line(tmp_path):
    root = folder_of(tmp_path/"a", {"a.png": encoded(Image.fromarray(noise), "PNG"), "photo.raw": b"x"})
    for args in (("data", "info"), ("data", "check"), ("study", "demo", "--dry-run", "--data"), ("data", "pack")):
        r = cinic(*args, root)
        said = " ".join((r.stdout+r.stderr).split())
        ends = 2 if "study" in args else 0 # two images are too few for the plan's batches
        assert r.returncode==ends and "6 files not read: 6 .raw, for example test/cat/photo.raw" in said, said
    for s in splits:
        for c in ("cat", "dog"): (root/s/c/"a.png").unlink()
    r = cinic("predict", tmp_path/"no-study", root)
    assert r.returncode==2 and "no images inside" in r.stderr and "6 .raw" in r.stderr

cat = "\u732b \u00e9 \U0001f408"

def ascii_only():
    for o in (sys.stdout, sys.stderr): o.reconfigure(encoding="ascii", errors="strict")

def test_any_name_on_any_output(tmp_path):
    "A Windows pipe is no UTF-8, nor is the output of a machine without a locale"
    root = folder_of(tmp_path/"a", {f"{cat}.png": encoded(Image.fromarray(noise), "PNG")}, (cat, "dog"))
    (root/"test"/"dog"/f"{cat}.txt").write_bytes(b"x")
    plan = f'[study]\nname = "x"\n[[run]]\ngroup = "a"\nname = "{cat}"\nmodel = "no_{cat}"\n'
    (tmp_path/"plan.toml").write_text(plan, encoding="utf-8")
    def escaped(encoding): return cat.encode(encoding, "backslashreplace").decode(encoding)
    info,no_info,plan = ("data", "info", root),("data", "info", tmp_path/cat),tmp_path/"plan.toml"
    commands = [(info, 0), (("data", "check", root), 0), (("plan", "show", plan), 0), (("plan", "check", plan), 2),
        (no_info, 2)]
    for args,code in commands:
        r = cinic(*args, before=ascii_only)
        said = r.stdout+r.stderr
        assert r.returncode==code and escaped("ascii") in said and "Traceback" not in r.stderr, (args, said)
    as_json = json.loads(cinic("data", "info", root, "--json", before=ascii_only).stdout)
    assert as_json["classes"]==["dog", cat] and as_json["ignored"]==[f"test/dog/{cat}.txt"]
    for encoding,args in (("cp1252", info), ("ascii", no_info), ("ascii", ("--help",)), ("cp1252", ("data", "--help"))):
        env = {**ENV, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
        r = subprocess.run([sys.executable, "-m", "cinic_fastai.cli", *map(str, args)], capture_output=True, env=env)
        said = (r.stdout+r.stderr).decode(encoding)
        assert "Traceback" not in said and r.returncode==2*(args==no_info), said
        assert "--help" in args or escaped(encoding) in said, said

composed, decomposed = (unicodedata.normalize(o, "Käse") for o in ("NFC", "NFD"))

@posix
def test_composed_and_decomposed_names_are_one_class(tmp_path):
    "A folder zipped on a Mac (NFD) beside one from elsewhere (NFC); on APFS both names are one folder"
    root, images = tmp_path/"a", {f"{i}.png": encoded(Image.fromarray(np.roll(noise, i)), "PNG") for i in range(4)}
    for s,name in dict(train=composed, valid=decomposed, test=decomposed).items():
        folder_of(root, images, (name, "Zoo"), {s: s})
    folder_of(root, {"5.png": images["1.png"]}, (decomposed,), dict(train="train")) # both in one split
    both = (root/"train"/composed).samefile(root/"train"/decomposed)
    assert find_images(root).classes==[composed, "Zoo"]
    assert folder_info(root).counts["valid"]=={composed: 4, "Zoo": 4}
    pack = get_pack(root)
    assert pack.classes==[composed, "Zoo"] and pack.counts()==dict(train=9, valid=8, test=8)
    for i,f in enumerate(pack.files): # paths are the disk's
        assert (pack.images[i]==read_image(root/f)).all()
        assert unicodedata.normalize("NFC", f.split("/")[1])==pack.classes[pack.targs[i]]
    assert both or any(decomposed in f for f in pack.files)
    assert check_folder(root).ok and set(pack.frame()["label"])=={composed, "Zoo"}
    for s in ("valid", "test"): (root/s/decomposed).rename(root/s/composed)
    assert get_pack(root).classes==pack.classes

@posix
def test_split_and_import_compose_names(tmp_path):
    images = {f"{i}.png": encoded(Image.fromarray(np.roll(noise, i)), "PNG") for i in range(4)}
    folder_of(tmp_path/"flat", images, (composed, decomposed, "Zoo"), dict(all=""))
    pack = get_pack(split_folder(tmp_path/"flat", tmp_path/"split"))
    assert pack.classes==[composed, "Zoo"] and sum(pack.counts().values())==len(list((tmp_path/"flat").glob("*/*")))
    for s,name in dict(train=composed, dev=decomposed, test=decomposed).items():
        folder_of(tmp_path/"hub", images, (name, "Zoo"), {s: s})
    folder_of(tmp_path/"hub", images, (decomposed,), dict(train="train"))
    n = len(list((tmp_path/"hub").glob("*/*/*")))
    pack = get_pack(split_folder(tmp_path/"hub", tmp_path/"copied"))
    assert pack.classes==[composed, "Zoo"] and sum(pack.counts().values())==n
    assert {f.split("/")[1] for f in pack.files}=={composed, "Zoo"}

def test_digests_stay_where_pixels_do(tmp_path):
    "As the version before orientation, transparency and other formats had them"
    assert get_pack(tiny_folder(tmp_path/"a", n=2)).digest=="0b31fd96f344e50970d72c2c15710831"

# --- processes

def pack_slowly(root, q, start, pause):
    def slow(kind, **info):
        q.put(kind)
        time.sleep(pause)
    start.wait()
    q.put(get_pack(root, size=64, on_event=slow).digest)

def test_two_processes_packing_at_once(tmp_path):
    root = tiny_folder(tmp_path/"a", n=30, size=8)
    ctx = processes()
    q, start, got = ctx.Queue(), ctx.Barrier(2), []
    ps = [ctx.Process(target=pack_slowly, args=(root, q, start, .1)) for _ in range(2)]
    for p in ps: p.start()
    while sum(len(o)==32 for o in got)<2: got.append(q.get(timeout=60))
    for p in ps: p.join(60)
    assert [o for o in got if len(o)==32]==[get_pack(root, size=64).digest]*2
    assert got.count("progress")==4 # batches, by one of them
    left = sorted(o.name for o in cache_place(root, "packs").iterdir())
    assert left==[".pack-64.lock", "pack-64"] or os.name=="nt"

@posix
def test_killed_while_packing(tmp_path):
    root = tiny_folder(tmp_path/"a", n=30, size=8)
    ctx = processes()
    q, start = ctx.Queue(), ctx.Barrier(1)
    p = ctx.Process(target=pack_slowly, args=(root, q, start, 60.))
    p.start()
    assert q.get(timeout=60)=="progress"
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    place = cache_place(root, "packs")
    assert list(place.glob(".pack-64.*.part")) and not (place/"pack-64").exists()
    assert len(get_pack(root, size=64))==270
    assert not list(place.glob(".*.part")) and not list(root.glob(".*"))

def test_a_changed_folder_is_packed_again(tmp_path):
    root = tiny_folder(tmp_path/"a", n=2)
    first = get_pack(root)
    before = first.images[:].copy()
    f = root/str(first.files[0])
    Image.fromarray(noise).save(f)
    second = get_pack(root)
    assert (second.images[0]==noise).all() and second.digest!=first.digest
    if os.name!="nt": assert (first.images==before).all() # a pack that is open stays what it was
    (root/"train"/"cat"/"new.png").write_bytes(f.read_bytes())
    assert get_pack(root).counts()["train"]==7

@posix
def test_a_reader_sees_one_pack_or_another(tmp_path):
    root = tiny_folder(tmp_path/"a", n=4, size=8)
    get_pack(root, 8, dest=tmp_path/"p")
    stop = threading.Event()
    def repack():
        while not stop.is_set():
            x = np.random.default_rng().integers(0, 256, (8,8,3), dtype=np.uint8)
            Image.fromarray(x).save(root/"train"/"cat"/"photo-2.png")
            get_pack(root, 8, dest=tmp_path/"p")
    t, seen, reads, until = threading.Thread(target=repack, daemon=True), set(), 0, time.monotonic()+60
    t.start()
    try:
        # a slow machine may read 300 times before the first replacement
        while (reads<300 or len(seen)<2) and time.monotonic()<until:
            reads += 1
            try:
                pack = open_pack(tmp_path/"p")
                pack.verify()
                assert len(pack.files)==36
                seen.add(pack.digest)
            except DataError: pass # replaced meanwhile
    finally:
        stop.set()
        t.join()
    assert len(seen)>1

def limited_disk(root, q):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try: get_pack(root, size=64)
    except WriteError as e: q.put(str(e))

@posix
def test_no_room(tmp_path):
    root = tiny_folder(tmp_path/"a", n=10, size=8)
    ctx = processes()
    q = ctx.Queue()
    p = ctx.Process(target=limited_disk, args=(root, q))
    p.start()
    assert f"needs {2*90*64*64*3:,} bytes" in q.get(timeout=60)
    p.join()
    assert not list(cache_place(root, "packs").glob("*part*")) and len(get_pack(root, size=64))==90

@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid()==0, reason="root may write anywhere")
def test_read_only_place(tmp_path, monkeypatch):
    "Images in one are packed; a cache in one is named with the cure"
    root,closed = tiny_folder(tmp_path/"a", n=1),tmp_path/"cache"
    closed.mkdir()
    for o in (root, closed): o.chmod(0o555)
    try:
        assert get_pack(root).counts()["train"]==3
        monkeypatch.setenv("CINIC_CACHE", str(closed))
        with pytest.raises(WriteError, match="can't be written.*CINIC_CACHE"): get_pack(root)
        assert get_pack(root, dest=tmp_path/"p").counts()["train"]==3
    finally:
        for o in (root, closed): o.chmod(0o755)

def test_half_a_demo_set_is_refused_and_a_whole_one_used(tmp_path):
    demo = write_demo(tmp_path/"demo")
    assert write_demo(demo, on_event=lambda *a, **k: pytest.fail("written again"))==demo
    next((demo/"test"/"3").iterdir()).unlink()
    with pytest.raises(DataError, match="not empty"): write_demo(demo)
