"Image folders, downloads and packs under servers, processes, kills and bad files"
import hashlib, io, multiprocessing as mp, os, re, signal, sys, tarfile, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import numpy as np, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from cinic_fastai.core import DataError, WriteError
from cinic_fastai.data import folder
from cinic_fastai.data.folder import check_folder, download, get_cinic, list_images, read_image, scan_folder, unpack, write_demo
from cinic_fastai.data.pack import get_pack, make_pack, open_pack
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
    monkeypatch.setattr(folder.time, "sleep", lambda s: None)
    s = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    s.data, s.asked, s.url = archive, [], f"http://127.0.0.1:{s.server_address[1]}"
    threading.Thread(target=s.serve_forever, args=(.02,), daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()

def get(server, dest, *paths, **kw):
    "`get_cinic` from paths of the test's server"
    sums = dict(size=len(server.data), md5=hashlib.md5(server.data).hexdigest())|kw
    return get_cinic(dest, urls=[server.url+p for p in paths], **sums)

def good(dest): return len(list_images(dest)[1])==27 and not [o for o in dest.parent.iterdir() if "part" in o.name or o.name==f"{dest.name}.tar.gz"]

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
    for o in ("404", f"offers {n-5:,} bytes, expected {n:,}", "its MD5 is", "sends more than", "get the file yourself", "cinic.tar.gz"):
        assert o in text
    assert not (tmp_path/"cinic").exists()

def test_nobody_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.time, "sleep", lambda s: None)
    with pytest.raises(DataError, match="can't be downloaded"): download(tmp_path/"a", ["http://127.0.0.1:9/x", "no address"], 10, "0")

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

evil_members = [member("../out.png"), member("train/../../out.png"), member("/abs/out.png"), member("..\\out.png"), member("C:/out.png"),
    member("train/link", tarfile.SYMTYPE, linkname="../../.."), member("train/hard", tarfile.LNKTYPE, linkname="/etc/passwd"),
    member("train/dev", tarfile.CHRTYPE, devmajor=1, devminor=3), member("train/pipe", tarfile.FIFOTYPE), member("../dir", tarfile.DIRTYPE)]

def sums(f): return dict(urls=(), size=f.stat().st_size, md5=hashlib.md5(f.read_bytes()).hexdigest())

@pytest.mark.parametrize("evil", evil_members, ids=lambda o: o[0].name)
def test_evil_members(tmp_path, evil):
    f = tar_of(tmp_path/"a.tar.gz", member("CINIC-10/train/cat/1.png"), evil)
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match="leads out of its folder"): get_cinic(tmp_path/"a", **sums(f))
    assert [o for o in snapshot(tmp_path) if not o.endswith(".lock")]==before

def test_a_bomb_and_too_many_entries(tmp_path):
    (tmp_path/"out").mkdir()
    f = tar_of(tmp_path/"a.tar.gz", *[member(f"train/cat/{i}.png", data=bytes(10**6)) for i in range(20)])
    with pytest.raises(DataError, match="not CINIC-10"): unpack(f, tmp_path/"out", max_bytes=10**7)
    with pytest.raises(DataError, match="not CINIC-10"): unpack(f, tmp_path/"out", max_files=19)

@pytest.mark.parametrize("harm", [lambda b: b[:len(b)//2], lambda b: b[:200]+bytes(50)+b[250:], lambda b: b"no archive", lambda b: b""])
def test_damaged_archive(archive, tmp_path, harm):
    f = tmp_path/"b.tar.gz"
    f.write_bytes(harm(archive))
    with pytest.raises(DataError, match="is damaged"): unpack(f, tmp_path/"out")

def test_archive_of_something_else(tmp_path):
    f = tar_of(tmp_path/"a.tar.gz", member("holiday/1.png"))
    with pytest.raises(DataError, match="does not hold an image folder"): get_cinic(tmp_path/"a", **sums(f))
    assert not (tmp_path/"a").exists()

# --- bad image folders

def png(x, **kw):
    buf = io.BytesIO()
    Image.fromarray(x).save(buf, "png", **kw)
    return buf.getvalue()

noise = np.random.default_rng(0).integers(0, 256, (32,32,3), dtype=np.uint8)
bad_files = dict(empty=b"", text=b"hello", cut=png(noise)[:500], gif=b"GIF89a"+bytes(100), flipped=png(noise)[:300]+b"\0"+png(noise)[301:],
    bomb=png(np.zeros((8000,8000), bool)))

@pytest.mark.parametrize("n_workers", [1, 2])
def test_bad_files_are_all_named(tmp_path, n_workers):
    root = tiny_folder(tmp_path/"a", n=2)
    for k,v in bad_files.items(): (root/"valid"/"cat"/f"{k}.png").write_bytes(v)
    with pytest.raises(DataError) as e: make_pack(root, n_workers=n_workers)
    assert f"{len(bad_files)} bad images" in str(e.value)
    for k in bad_files: assert f"valid/cat/{k}.png: " in str(e.value)
    assert not (root/".pack-32").exists()
    pack = make_pack(root, on_bad="skip", n_workers=n_workers)
    assert pack.skipped==sorted(f"valid/cat/{k}.png" for k in bad_files) and pack.manifest["skipped"]["valid/cat/empty.png"]=="empty file"
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
    assert {"train/cat/pipe.png", "train/cat/loop.png", "train/cat/nowhere.png"}<=set(pack.skipped) and pack.counts()["train"]==6
    (cat/"circle").symlink_to(root)
    assert scan_folder(root).problems==["train/cat/circle is a folder inside a class folder"]

@posix
def test_names(tmp_path):
    root = tiny_folder(tmp_path/"a", n=1, classes=("grüner Frosch", "plain", "with, comma"))
    for o in ("a b.png", 'quo"te.png', "línea\nnueva.png", "tab\t.PNG", "漢字.Jpeg"): (root/"train"/"plain"/o).write_bytes(png(noise))
    pack = get_pack(root)
    assert set(pack.files)=={o[2] for o in list_images(root)[1]} and "train/plain/línea\nnueva.png" in pack.files
    for i,f in enumerate(pack.files): assert (pack.images[i]==read_image(root/f)).all() and f.split("/")[1]==pack.classes[pack.targs[i]]
    if sys.platform=="linux":
        (Path(os.fsencode(root/"train"/"plain").decode())/os.fsdecode(b"\xff.png")).write_bytes(png(noise))
        with pytest.raises(DataError, match="not UTF-8") as e: get_pack(root)
        str(e.value).encode()

def test_layout_is_checked_before_work(tmp_path):
    root = tiny_folder(tmp_path/"a", n=1)
    (root/"valid").rename(root/"validation")
    (root/"train"/"frog").mkdir()
    with pytest.raises(DataError) as e: get_pack(root, on_event=lambda *a, **k: pytest.fail("work has begun"))
    for o in ("no folder 'valid' (did you mean 'validation'?)", "class 'frog' is missing in test", "train/frog has no images"):
        assert o in str(e.value)
    with pytest.raises(DataError, match="There is no folder"): get_pack(tmp_path/"nowhere")

@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 2000), new=st.binary(max_size=20), cut=st.integers(0, 3000))
def test_any_bytes_give_an_image_or_a_reason(tmp_path, at, new, cut):
    data = png(noise)
    (tmp_path/"x.png").write_bytes((data[:at]+new+data[at+len(new):])[:cut])
    try: assert read_image(tmp_path/"x.png", 32).shape==(32,32,3)
    except DataError as e: assert str(tmp_path) in str(e)

# --- processes

def pack_slowly(root, q, start, pause):
    def slow(kind, **info):
        q.put(kind)
        time.sleep(pause)
    start.wait()
    q.put(get_pack(root, size=64, on_event=slow).digest)

def test_two_processes_packing_at_once(tmp_path):
    root = tiny_folder(tmp_path/"a", n=30, size=8)
    ctx = mp.get_context("spawn")
    q, start, got = ctx.Queue(), ctx.Barrier(2), []
    ps = [ctx.Process(target=pack_slowly, args=(root, q, start, .1)) for _ in range(2)]
    for p in ps: p.start()
    while sum(len(o)==32 for o in got)<2: got.append(q.get(timeout=60))
    for p in ps: p.join(60)
    assert [o for o in got if len(o)==32]==[get_pack(root, size=64).digest]*2
    assert got.count("progress")==6 # two batches a split, by one of them
    assert sorted(o.name for o in root.iterdir() if o.name[0]==".")==[".pack-64", ".pack-64.lock"] or os.name=="nt"

@posix
def test_killed_while_packing(tmp_path):
    root = tiny_folder(tmp_path/"a", n=30, size=8)
    ctx = mp.get_context("spawn")
    q, start = ctx.Queue(), ctx.Barrier(1)
    p = ctx.Process(target=pack_slowly, args=(root, q, start, 60.))
    p.start()
    assert q.get(timeout=60)=="progress"
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    assert list(root.glob(".pack-64.*.part")) and not (root/".pack-64").exists()
    assert len(get_pack(root, size=64))==270
    assert not list(root.glob(".*.part"))

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
    make_pack(root, tmp_path/"p", size=8)
    stop = threading.Event()
    def repack():
        while not stop.is_set():
            Image.fromarray(np.random.default_rng().integers(0, 256, (8,8,3), dtype=np.uint8)).save(root/"train"/"cat"/"photo-2.png")
            make_pack(root, tmp_path/"p", size=8)
    t, seen, reads, until = threading.Thread(target=repack, daemon=True), set(), 0, time.monotonic()+60
    t.start()
    try:
        while (reads<300 or len(seen)<2) and time.monotonic()<until: # a slow machine may read 300 times before the first replacement
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
    ctx = mp.get_context("spawn")
    q = ctx.Queue()
    p = ctx.Process(target=limited_disk, args=(root, q))
    p.start()
    assert f"needs {90*64*64*3:,} bytes" in q.get(timeout=60)
    p.join()
    assert not [o for o in root.iterdir() if "part" in o.name] and len(get_pack(root, size=64))==90

@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid()==0, reason="root may write anywhere")
def test_read_only_place(tmp_path):
    root = tiny_folder(tmp_path/"a", n=1)
    root.chmod(0o555)
    try:
        with pytest.raises(WriteError, match="can't be written"): get_pack(root)
        assert get_pack(make_pack(root, tmp_path/"p").path).counts()["train"]==3
    finally: root.chmod(0o755)

def test_half_a_demo_set_is_refused_and_a_whole_one_used(tmp_path):
    demo = write_demo(tmp_path/"demo")
    assert write_demo(demo, on_event=lambda *a, **k: pytest.fail("written again"))==demo
    next((demo/"test"/"3").iterdir()).unlink()
    with pytest.raises(DataError, match="not empty"): write_demo(demo)
