"""Packing an image folder beside a Pillow loop, voting beside scikit-learn's arithmetic"""
import multiprocessing
import tempfile
from pathlib import Path
import numpy as np
from PIL import Image
from cinic_fastai.seeds import rng
from cinic_fastai.data.pack import get_pack
from cinic_fastai.results.ensemble import hard_vote, soft_vote
from .figures import Bench, Row, by_turns, compare, compare_all, seconds

def pillow_batch(
    files:list[Path] # PNG or JPEG files
)->np.ndarray: # uint8 `(n,h,w,3)`
    "Decode files as one would by hand"
    return np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])

def pillow_loop(
    files:list[Path], # All to decode
    chunk:int=500 # Files handed over at once
)->int: # Images
    "Decode in two processes"
    chunks = [files[i:i+chunk] for i in range(0, len(files), chunk)]
    with multiprocessing.Pool(2) as pool: return sum(len(o) for o in pool.imap(pillow_batch, chunks))

def pack_rows(
    b:Bench, # Image folder
    name:str # Of the rows
)->list[Row]: # Packing, and opening what is packed
    "Packing beside a Pillow loop; opening beside decoding again"
    files = [b.root/f for f in b.pack.files]
    with tempfile.TemporaryDirectory() as tmp:
        def pack(): get_pack(b.root, b.pack.size, dest=Path(tmp)/"pack", n_workers=2)
        tasks = dict(ours=lambda: seconds(pack), bare=lambda: seconds(lambda: pillow_loop(files)))
        by_turns(tasks, 1) # files come from the disk once
        took = by_turns(tasks, b.reps)
    opened = [seconds(lambda: get_pack(b.root, size=b.pack.size)) for _ in range(b.reps)]
    speeds = {k: [len(files)/v for v in o] for k,o in took.items()}
    return [*compare_all(name, speeds, "img/s", f"{len(files):,} images in 2 processes; bare: a Pillow loop"),
        compare(f"{name}-open", "bare", opened, took["bare"], "s", "bare: decoding again")]

def sklearn_votes(
    members:np.ndarray # Probabilities `(m,n,c)`
)->tuple[np.ndarray,np.ndarray]: # Classes by soft and by hard vote
    "Both votes with the arithmetic of scikit-learn's `VotingClassifier`"
    hard = np.apply_along_axis(lambda o: np.argmax(np.bincount(o)), 1, members.argmax(2).T)
    return np.average(members, axis=0).argmax(1), hard

def vote_rows(
    b:Bench, # Repetitions
    name:str, # Of the row
    n:int=90_000 # Images
)->list[Row]: # One row
    "Soft and hard vote of four members"
    members = rng("bench", "vote").dirichlet(np.ones(10), (4,n)).astype(np.float32)
    def ours(): return soft_vote(list(members)).argmax(1), hard_vote(list(members))
    tasks = dict(ours=lambda: seconds(ours), bare=lambda: seconds(lambda: sklearn_votes(members)))
    note = f"soft and hard, 4 x {n:,} x 10; bare: scikit-learn's arithmetic"
    return compare_all(name, by_turns(tasks, b.reps), "s", note)
