"""Run the notebooks in a copy of the tree and compare what their cells print with what is stored

    python tools/check_outputs.py                      # all of them; `make test` does this
    python tools/check_outputs.py nbs/03_space.ipynb   # some
    python tools/check_outputs.py --avx2               # as a processor without AVX-512 would compute
    python tools/check_outputs.py --run                # only run them: other versions of libraries use other words
    python tools/check_outputs.py --store              # store them anew instead; `make outputs` does this

Whole numbers and words have to be the same, numbers with a fraction up to one unit of their third significant digit:
another processor adds in another order. White space, rules of tables and kinds of slashes don't count, pictures and
HTML count by their kind alone. A cell whose output can't repeat says why on a line `#| varies: why` and isn't compared;
neither is one that has nothing stored. Nothing that is stored may hold memory addresses, or paths of one machine.
Notebooks run on the CPU with one thread, so that machines with a GPU or more cores print the same.
"""
import argparse, json, math, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parents[1]
BESIDE = {".git", ".venv", "out", "data", "build", "dist", "_docs", "_proc"} # of the root; nothing is made from them
CACHES = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", ".pytest_cache", ".hypothesis", ".ruff_cache",
    "*.egg-info")
AVX2 = dict(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_ENABLE_INSTRUCTIONS="AVX2",
    OPENBLAS_CORETYPE="Haswell", NPY_DISABLE_CPU_FEATURES="AVX512_SPR AVX512_ICL AVX512_CNL AVX512_CLX AVX512_SKX")
ALIKE = dict(PYTHONWARNINGS="ignore", MPLBACKEND="Agg", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
OF_A_TERMINAL = {"COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR"}
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d*)?(?:[eE][-+]?\d+)?")
VARIES = re.compile(r"^#\s*\|\s*varies\b", re.M)
NOISE = 1e-5 # what rounding leaves of a zero
FOLDERS = "|".join(["/tmp/", "/home/", "/root/", "/Users/", "/var/folders/", "/private/", r"[A-Z]:\\+\w",
    re.escape(str(root))])
BLEMISHES = {"a memory address": re.compile(r"\bat 0x[0-9a-fA-F]{6,}\b"),
    "a path of one machine": re.compile(rf"(?<![\w.])(?:{FOLDERS})")}

# What cells hold

def _join(text): return text if isinstance(text, str) else "".join(text)

def kinds(
    cell:dict # Of a notebook
)->list[str]: # MIME types of its outputs in order, sorted within each; printed text apart
    "What kinds of output a cell has"
    return [" ".join(sorted(o["data"])) for o in cell.get("outputs", []) if "data" in o]

def texts(
    cell:dict # Of a notebook
)->str: # What it prints, then its results as plain text
    "A cell's output as text, without warnings and pictures"
    outputs = cell.get("outputs", [])
    printed = [_join(o["text"]) for o in outputs if o.get("name")=="stdout"]
    results = [o["data"] for o in outputs if "data" in o and not any(k.startswith("image/") for k in o["data"])]
    return "\n".join(printed+[_join(o.get("text/plain", "")) for o in results])

def blemishes(
    notebook:dict # With stored outputs
)->list[str]: # One for each output that would differ on the next machine or in the next run
    "What should not be stored"
    out = []
    for i,c in enumerate(notebook["cells"]):
        shown = texts(c)+"".join(_join(o["data"].get("text/html", "")) for o in c.get("outputs", []) if "data" in o)
        for what,rx in BLEMISHES.items():
            found = rx.search(shown)
            if found: out.append(f"cell {i} stores {what}, {found[0]}... Print something that repeats instead.")
    return out

# Comparing

def words_and_numbers(
    text:str # Of an output
)->list: # Words as they are, numbers as text, by turns
    "Take text apart, without what is only layout"
    text = re.sub(r"\\+", "/", text)
    text = re.sub(r"[-─━═┄┈]{2,}", "-", text)
    numbers = NUMBER.findall(text)
    words = [" ".join(o.split()) for o in NUMBER.split(text)]
    return [o for pair in zip(words, numbers+[""]) for o in pair]

def is_close(
    a:str, # A number or words
    b:str # Another
)->bool: # Whole numbers and words agree only when they are the same
    "Do two pieces of text agree?"
    if a==b: return True
    if not (NUMBER.fullmatch(a) and NUMBER.fullmatch(b) and any(set(o)&set(".eE") for o in (a, b))): return False
    x, y = (float(o.replace(",", "")) for o in (a, b))
    largest = max(abs(x), abs(y))
    if largest<NOISE: return True
    unit = 10.**(math.floor(math.log10(largest))-2)
    return abs(x-y)<=unit*(1+1e-9)

def same_text(
    a:str, # Stored
    b:str # Found
)->bool: # Does it say the same?
    "Compare two outputs word by word, number by number"
    left, right = words_and_numbers(a), words_and_numbers(b)
    return len(left)==len(right) and all(map(is_close, left, right))

def differences(
    stored:dict, # Notebook
    found:dict # The same, run anew
)->list[str]: # One for each cell that differs
    "Compare a notebook's stored outputs with new ones"
    out = []
    for i,(a,b) in enumerate(zip(stored["cells"], found["cells"])):
        if not a.get("outputs") or VARIES.search(_join(a["source"])): continue
        if kinds(a)!=kinds(b): out.append(f"cell {i} stores {kinds(a)}, found {kinds(b)}")
        elif not same_text(texts(a), texts(b)):
            out.append(f"cell {i}\n{_join(a['source']).strip()}\n--- stored\n{texts(a)}\n--- found\n{texts(b)}")
    return out

# Running

def copy_tree(
    dest:Path # Folder to make
)->Path: # `dest`
    "Copy the sources, without what was made from them or lies beside them"
    def left_out(folder, names): return CACHES(folder, names)|(BESIDE&set(names) if Path(folder)==root else set())
    return Path(shutil.copytree(root, dest, ignore=left_out))

def script(name): return str(Path(sys.executable).with_name(name))

TEST = """
import os, sys, tempfile
from pathlib import Path
os.fsync = lambda fd: None # what notebooks write needn't outlive the machine
if hasattr(os, "fork"): # once, for all processes that are forked from this one
    import cinic_fastai.all
    from cinic_fastai.example import example_study
    for state in ("done", "unfinished"):
        with tempfile.TemporaryDirectory() as d: example_study(d, state=state)
from fastcore.parallel import parallel
from nbdev.config import get_config
from nbdev.test import test_nb
files = [Path(o).absolute() for o in sys.argv[1:]]
how = dict(method="spawn") if sys.platform=="darwin" or os.environ.get("CINIC_START")=="spawn" else {}
results = parallel(test_nb, files, skip_flags=get_config().tst_flags.split(), basepath=Path.cwd(), save=True,
    n_workers=min(2, len(files)-1), pause=.01, **how)
sys.exit(not all(passed for passed,_ in results))
"""

def run(
    tree:Path, # Root of the notebooks
    notebooks:list[Path], # To run, from there
    env:dict # More of the environment
)->bool: # Did all run to their end?
    "Run notebooks and store what they print; tutorials take longest and come first"
    own = {k: v for k,v in os.environ.items() if k not in OF_A_TERMINAL}
    names = sorted(map(str, notebooks), key=lambda o: "tutorials" not in o)
    with tempfile.TemporaryDirectory() as tmp: # with the gigabytes that notebooks leave there
        env = own|ALIKE|{"PYTHONPATH": str(tree), "CINIC_CACHE": tmp, "TMPDIR": tmp}|env
        return subprocess.run([sys.executable, "-c", TEST, *names], cwd=tree, env=env).returncode==0

def all_of(tree):
    found = (f.relative_to(tree) for f in (tree/"nbs").rglob("*.ipynb"))
    return sorted(f for f in found if ".ipynb_checkpoints" not in f.parts)

def read(f): return json.loads(f.read_text(encoding="utf-8"))

def store(
    notebooks:list[Path] # From the root; all where there are none
):
    "Store what notebooks print"
    if not run(root, notebooks or all_of(root), {}): sys.exit("A notebook failed.")
    for args in [["--fname", str(o)] for o in notebooks] or [[]]:
        subprocess.run([script("nbdev-clean"), *args], cwd=root, check=True)

def check(
    notebooks:list[Path], # From the root; all where there are none
    env:dict, # More of the environment
    compare:bool=True # Or only run them?
):
    "Compare what notebooks print with what is stored"
    with tempfile.TemporaryDirectory() as tmp:
        copy = copy_tree(Path(tmp)/root.name)
        names = notebooks or all_of(copy)
        ran = run(copy, names, env)
        found = names if compare else []
        wrong = {n: blemishes(read(root/n))+differences(read(root/n), read(copy/n)) for n in found}
    for n,found in wrong.items():
        for o in found: print(f"{n.as_posix()}, {o}\n")
    n = sum(map(len, wrong.values()))
    if n: sys.exit(f"{n} outputs differ from what is stored. Where they should, run `make outputs` and commit them; "
        "where they can't repeat, say why in the cell: `#| varies: why`.")
    if not ran: sys.exit("A notebook failed; see above.")
    print("Notebooks run, and print what is stored." if compare else "Notebooks run.")

if __name__=="__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("notebooks", nargs="*", type=Path, help="Notebooks to run; all where there are none.")
    p.add_argument("--avx2", action="store_true", help="Compute as a processor without AVX-512 does.")
    p.add_argument("--run", action="store_true", help="Compare nothing: an error in a notebook is what fails.")
    p.add_argument("--store", action="store_true", help="Store what they print, in place of comparing it.")
    args = p.parse_args()
    names = [f.resolve().relative_to(root) for f in args.notebooks]
    if args.store: store(names)
    else: check(names, AVX2 if args.avx2 else {}, not args.run)
