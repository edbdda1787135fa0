"Few classes, many, and classes of different size: figures, numbers, words and choices"
import itertools, math
import numpy as np, pytest
from matplotlib.axes import Axes
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, recall_score
from cinic_fastai.config import RunConfig, run_id
from cinic_fastai.data.loaders import balanced_order
from cinic_fastai.example import _Fit, _example_pack, example_study
from cinic_fastai.files import read_json
from cinic_fastai.plan_file import parse_plan
from cinic_fastai.record import best_first
from cinic_fastai.report import render
from cinic_fastai.report.facts import load_report
from cinic_fastai.report.render import Drawn, draw_figure, lay_out, make_report, page_html, write_page
from cinic_fastai.report.words import say
from cinic_fastai.results.metrics import majority_score
from cinic_fastai.results.plots.style import new_axes
from cinic_fastai.results.predictions import choose_predictor, predictions
from cinic_fastai.results.tables.predictors import MANY_CLASSES, TOTAL
from cinic_fastai.study.runner import StudyRunner, run_study
from cinic_fastai.study.trainer import StudyOptions
from cinic_fastai.studyfolder import StudyFolder
from cinic_fastai.test_utils import tiny_pack

BY_CLASS = {"fig14_test_accuracy", "class_origin", "confusion", "confused_pairs", "mistakes"}

def names(n): return tuple(f"golden retriever {i}" for i in range(n))

def study_of(folder, n, images=None, **settings):
    "A made-up study of `n` classes, as small as it can be"
    few = dict(epochs=1, trials=(1,1), origins=False, extras=False)
    return example_study(folder, classes=names(n), images=images or 4*n, **few|settings)

@pytest.fixture(scope="module", params=[2, 37, 101, 250])
def many(request, tmp_path_factory):
    "Such a study, its number of classes, and its report"
    out = study_of(tmp_path_factory.mktemp("classes"), request.param)
    return StudyFolder(out), request.param, make_report(load_report(out))

def figure_of(d):
    "A figure as `draw_figure` has it before it is written"
    made = d.plot(d.data, **(dict(ax=new_axes(*d.size)[0]) if d.size else {}))
    fig = made.figure if isinstance(made, Axes) else made
    lay_out(fig)
    fig.draw_without_rendering()
    return fig

def labels(axis): return [o for o in axis.get_ticklabels() if o.get_text()]

def overlaps(fig):
    "Names beside an axis that lie on each other"
    found = []
    for ax,axis in ((ax, axis) for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)):
        boxes = [(o.get_text(), o.get_window_extent()) for o in labels(axis)]
        found += [(a, b) for (a,x),(b,y) in itertools.combinations(boxes, 2) if x.overlaps(y)]
    return found

def test_names_are_drawn_where_they_fit(many):
    "None on another one, and not too few: twenty where there are more classes"
    study, n, report = many
    shown = {d.name: figure_of(d) for d in report.all_figures if d.name in BY_CLASS and d.kind=="chart"}
    assert set(shown)>={"fig14_test_accuracy", "confusion"}
    assert not {k: overlaps(fig) for k,fig in shown.items() if overlaps(fig)}
    rows = {k: len(labels(fig.axes[0].yaxis)) for k,fig in shown.items()}
    assert rows["fig14_test_accuracy"]==min(n, MANY_CLASSES)+1 and min(n, 12)<=rows["confusion"]<=MANY_CLASSES
    assert all(fig.get_size_inches()[1]<9 for fig in shown.values())

def test_every_class_is_in_the_files(many):
    "Their numbers are scikit-learn's, and the map of confusions has every cell"
    study, n, report = many
    tables = load_report(study.out).tables
    done = [p for p in predictions(study) if p.done]
    assert len(done)>1
    for p in done:
        recall = recall_score(p.targs, p.preds, labels=range(n), average=None, zero_division=np.nan)
        found = tables.classes[(tables.classes.predictor==p.name)&(tables.classes["class"]!=TOTAL)]
        assert found["class"].tolist()==list(names(n)) and found.accuracy.to_numpy()==pytest.approx(recall, nan_ok=True)
        row = tables.table2_predictors.set_index("predictor").loc[p.name]
        assert row.balanced_acc==pytest.approx(balanced_accuracy_score(p.targs, p.preds))
        assert row.macro_f1==pytest.approx(f1_score(p.targs, p.preds, average="macro", zero_division=0))
        cells = tables.confusion[tables.confusion.predictor==p.name]
        wide = cells.pivot(index="class", columns="taken_for", values="images").reindex(names(n))[list(names(n))]
        assert (wide.fillna(0).to_numpy(int)==confusion_matrix(p.targs, p.preds, labels=range(n))).all()
    confused = next(d for d in report.all_figures if d.name=="confusion")
    assert figure_of(confused).axes[0].collections[0].get_array().size==n*n

def test_the_page_names_the_extremes_of_many_classes(many):
    study, n, report = many
    section = next(s for s in report.sections if s.key=="ensembling")
    table = next(t for t in section.tables if t.name=="classes")
    assert len(table.rows)==min(n, MANY_CLASSES)+1
    caption = f"The hardest and the easiest of {n} classes; all of them in tables/classes.csv."
    assert (caption in say(table, "caption"))==(n>MANY_CLASSES)
    if n<=MANY_CLASSES: return
    accs = load_report(study.out).tables.classes.query("`class`!=@TOTAL").groupby("class").accuracy.mean()
    named = table.rows.name[:-1]
    assert accs[named].is_monotonic_increasing and accs[named.iloc[0]]==accs.min() and accs[named.iloc[-1]]==accs.max()
    drawn = {d.name: draw_figure(d) if d.name in BY_CLASS else Drawn(d, {}) for d in report.all_figures}
    assert len(page_html(report, drawn).encode())<2_000_000

@pytest.mark.slow
def test_a_page_of_250_classes_is_a_small_file(tmp_path):
    page = write_page(study_of(tmp_path, 250, origins=True, extras=True, trials=(3,4), epochs=6, images=2500))
    assert page.stat().st_size<3_000_000

@pytest.mark.parametrize("counts", [(95, 5), (100, 20, 4)])
def test_classes_of_different_size(tmp_path, counts):
    "Scores that count each class the same stand beside accuracy, and the level to beat is said"
    out = study_of(tmp_path, len(counts), images=counts)
    study, f = StudyFolder(out), load_report(out)
    assert study.data.class_counts["test"]==list(counts) and majority_score(study.data, "test")==max(counts)/sum(counts)
    for p in (p for p in predictions(study) if p.done):
        row = f.tables.table2_predictors.set_index("predictor").loc[p.name]
        assert row.balanced_acc==pytest.approx(balanced_accuracy_score(p.targs, p.preds))
        assert f.tables.classes.query("predictor==@p.name").images.tolist()==[*counts, sum(counts)]
    report = make_report(f)
    assert not [o for d in report.all_figures if d.name in BY_CLASS and d.kind=="chart" for o in overlaps(figure_of(d))]
    level = f"{100*max(counts)/sum(counts):.1f}"
    assert f"the most frequent class gives {level}" in say(report.keys[1], "note").replace("\u00a0", " ")

def test_a_class_that_a_split_lacks_is_named(tmp_path, monkeypatch):
    "Before the training and on the page; means over classes leave it out"
    monkeypatch.setattr(render, "draw_figure", lambda figure: Drawn(figure, {}))
    whole = _example_pack(("cat", "dog", "owl"), 60, False, 0)
    test = whole.rows["test"]
    pack = whole.using(whole.rows|dict(test=test[whole.targs[test]!=1]))
    plan, said = parse_plan("[study]\nname = 'x'\n[[run]]\nname = 'a'\nbs = 8\nepochs = 2"), []
    def hear(kind, **info): said.append(info.get("text", ""))
    run_study(plan, pack, tmp_path, StudyOptions(data_name="photos"), on_event=hear, stop=lambda: 0, fit=_Fit(0, False))
    assert any(o.startswith("No test image is of dog") for o in said)
    assert "No test image is of dog: nothing there tells" in (tmp_path/"report.html").read_text(encoding="utf-8")
    p = next(p for p in predictions(StudyFolder(tmp_path)) if p.done)
    table = load_report(tmp_path).tables.classes.set_index("class")
    assert math.isnan(table.accuracy["dog"]) and table.images["dog"]==0
    known = recall_score(p.targs, p.preds, labels=[0, 2], average="macro")
    balanced = load_report(tmp_path).tables.table2_predictors.balanced_acc[0]
    assert balanced==pytest.approx(known)

SCORED = """
[study]
name = "scored"
seed = 3
metric = "macro_f1"

[defaults]
model = "custom_cnn"
bs = 8
lr = 1e-2
epochs = 3
precision = "float32"

[[search]]
name = "rates"
random = 3
guided = 1
epochs = 2
space = { lr = {log=[1e-3,3e-2]} }

[[run]]
group = "final"
name = "weighted"
from = "search:rates"
class_weights = "balanced"

[[run]]
group = "final"
name = "drawn"
from = "search:rates"
sampling = "balanced"

[[run]]
group = "final"
name = "long"
epochs = 5

[[ensemble]]
name = "greedy"
method = "greedy"
members = ["weighted", "drawn", "long"]
"""

def f1(stored): return f1_score(stored["targs"], stored["probs"].argmax(1), average="macro", zero_division=0)

@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    "A study that trains for real and chooses by macro-F1, on 14 + 14 + 3 images a split"
    from cinic_fastai.train.fit import fit_run
    pack = tiny_pack(tmp_path_factory.mktemp("images"), n=14)
    kept = {s: np.concatenate([r[pack.targs[r]==c][:n] for c,n in enumerate((14, 14, 3))]) for s,r in pack.rows.items()}
    out = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as m:
        m.setattr(render, "write_page", lambda *args: None)
        run_study(parse_plan(SCORED), pack.using(kept), out, StudyOptions(device="cpu"), stop=lambda: 0, fit=fit_run)
    return StudyFolder(out)

def test_a_study_chooses_by_its_metric(scored):
    "Epochs, the best trial, and what to take are those of the highest macro-F1 on valid images, as scikit-learn has it"
    record, store = scored.record, scored.store
    assert record.metric=="macro_f1" and all(r.status=="done" for r in record.runs)
    ids = [*(r.run_id for r in record.runs), *(t.run_id for t in scored.journals["rates"].trials)]
    for rid in ids:
        done, history = store.done(rid), store.history(rid)
        assert store.config(rid).metric=="macro_f1" and {"valid_acc", "valid_macro_f1"}<={*done}
        assert done["valid_macro_f1"]==history.valid_macro_f1.max()==history.valid_macro_f1[done["best_epoch"]]
        assert done["valid_macro_f1"]==pytest.approx(f1(store.probs(rid, "valid")))
    trials = scored.journals["rates"].trials
    best = max(trials, key=lambda t: (f1(store.probs(t.run_id, "valid")), -t.valid_loss))
    assert record.searches[0].best.number==best.number==best_first(trials)[0].number
    assert [t.value for t in trials]==[t.told for t in trials]==[max(t.values) for t in trials]
    ps = {p.name: p for p in predictions(scored)}
    scores = {k: f1_score(p.valid[0].targs, p.vote(p.valid).argmax(1), average="macro") for k,p in ps.items()}
    assert scores[choose_predictor(list(ps.values())).name]==max(scores.values())
    members = [f1_score(m.targs, m.probs.argmax(1), average="macro") for m in ps["greedy"].valid]
    assert scores["greedy"]>=max(members)-1e-12

def test_the_page_says_what_was_chosen_by(scored):
    f = load_report(scored.out)
    report = make_report(f)
    drawn = {d.name: Drawn(d, {}) for d in report.all_figures}
    html = page_html(report, drawn).replace("\u00a0", " ")
    for words in ("valid macro-F1", "the best predictor on valid images by macro-F1",
        "rare classes weighing more in the loss", "classes served equally often"): assert words in html, words
    assert "highest valid accuracy" not in html and "valid accuracy of each trial" not in html
    runs = f.tables.runs
    assert f.done("final")[0].valid_macro_f1==runs.valid_macro_f1.max()
    trials = f.tables.trials
    assert trials.best_so_far.tolist()==trials.valid_macro_f1.cummax().tolist()
    figure = next(d for d in report.all_figures if d.name=="trials")
    assert "valid macro-F1" in [o.get_text() for o in figure_of(figure).findobj() if hasattr(o, "get_text")]

def test_accuracy_leaves_everything_as_it_was(tmp_path):
    "Ids, files and tables of a study that says nothing of a metric"
    out = study_of(tmp_path, 3)
    study = StudyFolder(out)
    assert study.record.metric=="accuracy" and run_id(RunConfig(), "x")==run_id(RunConfig(metric="accuracy"), "x")
    assert run_id(RunConfig(), "x")!=run_id(RunConfig(metric="macro_f1"), "x")
    stored = [read_json(f) for f in out.glob("runs/*/done.json")]
    assert stored and not any("macro_f1" in k for o in stored for k in o)
    assert "score" not in (out/"searches"/"resnet18-adam.jsonl").read_text(encoding="utf-8")
    tables = vars(load_report(out).tables)
    assert not [k for k,df in tables.items() if {"valid_macro_f1", "valid_balanced_accuracy"}&{*df.columns}]

def test_a_made_up_study_by_balanced_accuracy(tmp_path):
    "Rungs, controls and repeats go by the score, too"
    text = """
    study = {name="made-up", metric="balanced_accuracy"}
    defaults = {model="custom_cnn", epochs=6}
    run = [{name="a"}, {name="b", bs=64}]
    [[search]]
    name = "s"
    random = 3
    guided = 2
    rungs = [2]
    factor = 2
    control = true
    repeats = 2
    space = {lr={log=[1e-4,3e-3]}}
    """
    pack = _example_pack(names(3), (40, 20, 4), False, 0)
    runner = StudyRunner(parse_plan(text), pack, tmp_path, StudyOptions(data_name="x"), fit=_Fit(0, False))
    runner.run()
    study = StudyFolder(tmp_path)
    done = [t for t in study.journals["s"].trials if t.status=="done"]
    assert [t.value for t in done]==pytest.approx([.9*max(t.accs) for t in done])
    repeated = study.record.searches[0].repeated
    assert repeated and all(r.value==pytest.approx(.9*r.valid_acc) for r in repeated)
    t = load_report(tmp_path).tables
    assert t.table1_search.valid_balanced_accuracy[0]==max(o.value for o in done)
    assert {"valid_balanced_accuracy"}<={*t.trials}&{*t.repeats}&{*t.runs}&{*t.convergence}&{*t.dependence}

@pytest.mark.parametrize("counts", [(95, 5), (100, 20, 4), (7,)*101])
def test_a_balanced_epoch(counts):
    "As long as ever, classes equally often, and over many epochs every image of a class alike"
    targs = np.repeat(range(len(counts)), counts)
    n, k = len(targs), len(counts)
    epochs = [balanced_order(targs, 5, e) for e in range(60)]
    for order in epochs:
        assert len(order)==len(set(order))==n and np.ptp(np.bincount(targs[order%n], minlength=k))<=1
    seen = np.bincount(np.concatenate(epochs)%n, minlength=n)
    assert all(seen[targs==c].mean()==pytest.approx(60*n/k/counts[c], rel=.05) for c in range(k))
