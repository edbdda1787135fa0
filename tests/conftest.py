"What several test files share: a tiny study as a user would run it, in a process of its own."
import atexit, contextlib, functools, json, multiprocessing as mp, os, runpy, shutil, signal, subprocess, sys, tempfile
from multiprocessing import forkserver
from multiprocessing.util import get_temp_dir
from pathlib import Path
from types import SimpleNamespace
import psutil, pytest

TINY_PLAN = """
[study]
name = "tiny"
seed = 1

[defaults]
model = "custom_cnn"
bs = 16
lr = 1e-2
epochs = 2

[[run]]
group = "architectures"
name = "custom_cnn"

[[run]]
group = "architectures"
name = "resnet18-pretrained"
model = "resnet18.tv_in1k"
pretrained = true
frozen_epochs = 1

[[search]]
name = "custom_cnn-sgd"
opt = "sgd"
policy = "advanced"
epochs = 1
random = 2
guided = 2
space = { bs = {log2=[2,4]}, lr = {log=[1e-3,1e-1]}, dropout = [0,0.2] }

[[run]]
group = "final"
name = "custom_cnn-sgd"
from = "search:custom_cnn-sgd"

[[run]]
group = "final"
name = "second"
from = "search:custom_cnn-sgd"
policy = "combined"
muon = 0.02
hard = 0.5

[[ensemble]]
name = "soft"
method = "soft"
members = ["custom_cnn-sgd", "second"]

[[ensemble]]
name = "hard"
method = "hard"
members = ["custom_cnn-sgd", "second"]
"""

# Equal bits need equal threads and kernels, here and in processes
os.environ |= {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
if os.environ.get("TESTS_START")=="spawn": os.environ["CINIC_START"] = "spawn"
if "TESTS_TMP" not in os.environ: # one for all workers, which are started with it; pytest's own folders stay beside it
    os.environ |= {"PYTEST_DEBUG_TEMPROOT": tempfile.gettempdir(), "TESTS_TMP": tempfile.mkdtemp()}
    get_temp_dir() # multiprocessing's own, which it misses where it goes before the process's end
    os.environ["TMPDIR"] = tempfile.tempdir = os.environ["TESTS_TMP"]
    os.environ.setdefault("CINIC_CACHE", tempfile.tempdir)
    atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)
ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
# `CINIC_START=spawn` tests a study's workers as on macOS, `TESTS_START=spawn` all processes as on Windows
FORKED = os.name!="nt" and os.environ.get("TESTS_START")!="spawn"

os.fsync = lambda fd: None # No test pulls the plug: a killed process's files are whole without waiting for the disk

def cinic(*args, cwd=None, before=None, input=None):
    "Run the command line in a process of its own, one that has torch already where it can; `before` is called in it"
    words = [*map(str, args)]
    if os.name=="nt" or input:
        command = [sys.executable, "-m", "cinic_fastai.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=ENV, cwd=cwd, input=input)
    with tempfile.TemporaryDirectory() as d:
        said = [Path(d)/"out", Path(d)/"err"]
        return _ended(started(*words, cwd=cwd, before=before, said=said), words, said)

def script(path, folder):
    "Run a script as `python path` does, in a process that has torch already; what it prints goes to `folder`"
    said = [folder/"stdout", folder/"stderr"]
    return _ended(_start(said, _script, str(path)), [str(path)], said)

def _ended(p, words, said):
    p.join()
    return subprocess.CompletedProcess(words, p.exitcode, *(f.read_text(encoding="utf-8") for f in said))

def started(*args, cwd=None, before=None, said=(os.devnull, os.devnull)):
    "Start the command line in a process forked from a server that has imported what every process needs"
    return _start(said, _main, [*map(str, args)], cwd, before)

def _start(said, do, *args):
    context = server()
    key = getattr(forkserver._forkserver, "_forkserver_authkey", None) # from Python 3.14 on
    p = context.Process(target=_begin, args=(said, key, do, *args))
    with _env(): p.start()
    return p

@contextlib.contextmanager
def _env():
    "Processes that are started in the block have the environment of all"
    with pytest.MonkeyPatch.context() as m:
        for k,v in ENV.items(): m.setenv(k, v)
        yield

def siblings(p):
    "A study's workers: they come from the server it comes from, or from itself"
    from cinic_fastai.study.workers import forks
    if forks(): return [o for o in psutil.Process(_parent()).children() if o.pid!=p.pid]
    with contextlib.suppress(psutil.NoSuchProcess): # it has just ended
        return [o for o in psutil.Process(p.pid).children() if "spawn_main" in " ".join(o.cmdline())]
    return []

def _parent():
    "Process that others come from"
    server()
    return forkserver._forkserver._forkserver_pid if FORKED else os.getpid()

@contextlib.contextmanager
def one_core():
    "All processes that are forked in the block may use one core"
    cores = os.sched_getaffinity(_parent())
    os.sched_setaffinity(_parent(), {min(cores)})
    try: yield
    finally: os.sched_setaffinity(_parent(), cores)

@contextlib.contextmanager
def limited(limit, soft):
    "All processes that are forked in the block are under a limit, as `psutil` names it"
    p = psutil.Process(_parent())
    before = p.rlimit(limit)
    p.rlimit(limit, (soft, before[1]))
    try: yield
    finally: p.rlimit(limit, before)

@functools.cache
def server():
    "A context of multiprocessing whose processes have torch from the start"
    if not FORKED: return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["cinic_fastai.cli", "cinic_fastai.all"])
    with _env(): forkserver.ensure_running()
    return context

@pytest.fixture(scope="session", autouse=True)
def server_first():
    "Who starts a process's one fork server decides what it knows: a study that a test carries out in here must not"
    server()

def pytest_runtest_setup(item):
    "What needs a GPU is skipped where there is none"
    if not item.get_closest_marker("cuda"): return
    import torch
    if not torch.cuda.is_available(): pytest.skip("there is no GPU")

def no_page():
    "Where a test looks at what else a study leaves"
    from cinic_fastai.report import render
    render.write_page = lambda *args: None

def no_figures():
    "Where a test looks at the page's words or tables: drawing takes most of its time"
    from cinic_fastai.report import render
    render.draw_figure = lambda figure: render.Drawn(figure, {})

def _begin(said, key, do, *args):
    "Direct what is printed to files, and do what the process is for"
    for fd,f in enumerate(said, 1): os.dup2(os.open(f, os.O_WRONLY|os.O_CREAT|os.O_APPEND), fd)
    if FORKED: _hear(key)
    do(*args)

def _hear(key):
    "Hear signals, as the server doesn't; workers come from the server that this process comes from"
    forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None
    forkserver._forkserver._forkserver_authkey = key
    for s,handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(s, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})

def _script(path): runpy.run_path(path, run_name="__main__")

def _main(words, cwd, before):
    "What such a process does"
    if cwd: os.chdir(cwd)
    if before: before()
    sys.argv = ["cinic", *words]
    from cinic_fastai.cli.app import main
    main()

@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    "Makes something in a folder once for all processes of the test run, which only read it"
    from filelock import FileLock
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ: root = root.parent
    def made(name, make):
        folder, whole = root/name, root/f"{name}.made"
        with FileLock(root/f"{name}.lock"):
            if not whole.exists(): make(folder)
            whole.touch()
        return folder
    return made

@pytest.fixture(scope="session")
def images(made_once):
    "A tiny image folder"
    from cinic_fastai.test_utils import tiny_folder
    return made_once("tiny", lambda folder: tiny_folder(folder, n=12))

@pytest.fixture(scope="session")
def plan_file(made_once):
    "A plan with every kind of step"
    return made_once("tiny.toml", lambda f: f.write_text(TINY_PLAN, encoding="utf-8"))

@pytest.fixture(scope="session")
def study(images, plan_file, made_once):
    "A finished tiny study and what the command printed"
    def make(folder):
        done = cinic("study", plan_file, "--data", images, "--out", folder/"out")
        assert done.returncode==0, done.stdout+done.stderr
        (folder/"said.json").write_text(json.dumps(dict(stdout=done.stdout, stderr=done.stderr)), encoding="utf-8")
    folder = made_once("study", make)
    said = json.loads((folder/"said.json").read_text(encoding="utf-8"))
    return folder/"out", SimpleNamespace(**said)

@pytest.fixture(scope="session")
def example(made_once):
    "A finished made-up study with its page"
    from cinic_fastai.report.render import write_page
    from cinic_fastai.example import example_study
    return made_once("example", lambda folder: write_page(example_study(folder, images=200)))
