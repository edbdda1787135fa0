"""fastai's and scikit-learn's part of `benchmarks.answer`, each in a process of its own

    python -m benchmarks.answer_peers fastai|scikit SETTINGS.json RESULT.json

Each side imports only itself. CPU time is this process's and that of its workers, when the training has ended.
"""
import json
import resource
import sys
import warnings
from pathlib import Path

def cpu_seconds()->float:
    "CPU time of this process and of all that it started and that have ended"
    used = [resource.getrusage(o) for o in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(o.ru_utime+o.ru_stime for o in used)

def fastai(
    root:str, # Folder of train, valid and test
    size:int, # Side that images are resized to
    epochs:int, # Of the training
    seed:int # Of everything random
)->dict: # Fields of a `Result`
    "ResNet-18 from scratch, as fastai's documentation trains: its augmentation, its one-cycle"
    import fastai.vision.all as f
    f.set_seed(seed, reproducible=True)
    dls = f.ImageDataLoaders.from_folder(root, train="train", valid="valid", item_tfms=f.Resize(size), num_workers=2,
        batch_tfms=[*f.aug_transforms(), f.Normalize()], device="cpu")
    learn = f.vision_learner(dls, f.resnet18, pretrained=False, metrics=f.accuracy)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs)
        cpu = cpu_seconds()
        valid = learn.validate()[1]
        test = learn.dls.test_dl(f.get_image_files(Path(root)/"test"), with_labels=True)
        words = f"vision_learner(resnet18, pretrained=False), Resize({size}), aug_transforms(), Normalize(), bs 64, " \
            f"fit_one_cycle({epochs})"
        return dict(settings=words, cpu=cpu, valid_acc=float(valid), test_acc=float(learn.validate(dl=test)[1]))

def pixels(
    folder:Path, # Classes, each a folder
    size:int=16 # Side that images are reduced to
)->tuple: # float32 `(n,3*size*size)` in [0, 1], names of classes `(n,)`
    "A split's images as rows of numbers"
    import numpy as np
    from PIL import Image
    files = sorted(folder.glob("*/*"))
    def reduced(f): return Image.open(f).convert("RGB").resize((size, size), Image.Resampling.BOX)
    rows = np.stack([np.asarray(reduced(f)).ravel() for f in files]).astype("float32")
    return rows/255, np.array([f.parent.name for f in files])

def estimators(
    seed:int # Of what is random
)->dict: # By name, the quick ones first
    "What people try on pixels"
    from sklearn.decomposition import PCA
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC
    lines = {f"logistic C={C:g}": make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=300))
        for C in (1e-3, 1e-2, .1, 1)}
    kinds = RandomForestClassifier, ExtraTreesClassifier
    forests = {f"{k.__name__}(1000)": k(1000, random_state=seed) for k in kinds}
    svms = {f"PCA({n}, whiten), SVC C={C}": make_pipeline(PCA(n, whiten=True, random_state=seed), SVC(C=C))
        for n in (50, 100) for C in (1, 3, 10)}
    return lines|svms|forests

def scikit(
    root:str, # Folder of train, valid and test
    budget:float, # CPU seconds, after which nothing new is begun
    seed:int # Of what is random
)->dict: # Fields of a `Result`
    "The best of several estimators on 16x16 pixels, by valid images"
    train,valid = (pixels(Path(root)/s) for s in ("train", "valid"))
    scores, best = {}, None
    for name,model in estimators(seed).items():
        if scores and cpu_seconds()>budget: break
        with warnings.catch_warnings():
            warnings.simplefilter("ignore") # not converged
            scores[name] = model.fit(*train).score(*valid)
        if scores[name]==max(scores.values()): best = name,model
    cpu = cpu_seconds()
    words = f"16x16 pixels, {best[0]}: the best on valid images of {', '.join(scores)}"
    return dict(settings=words, cpu=cpu, valid_acc=float(scores[best[0]]),
        test_acc=float(best[1].score(*pixels(Path(root)/"test"))))

if __name__=="__main__":
    side, settings, result = sys.argv[1:]
    told = dict(fastai=fastai, scikit=scikit)[side](**json.loads(Path(settings).read_text(encoding="utf-8")))
    Path(result).write_text(json.dumps(told), encoding="utf-8")
