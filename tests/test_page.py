"The page as a browser would read it: complete, self-contained, escaped"
import base64, hashlib, re, shutil
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree
import numpy as np, pytest
from cinic_fastai.files import line_of, read_json, read_lines, read_npz, write_json, write_npz, write_text
from cinic_fastai.report.facts import load_report
from cinic_fastai.report.render import Drawn, draw_figure
from cinic_fastai.report.words import fmt_pct
from cinic_fastai.report.render import make_report, report_markdown, write_page
from cinic_fastai.report.sections.overview import choice
from cinic_fastai.report.sections.setup import SETTINGS, effective
from cinic_fastai.report.words import READERS, TEMPLATES, Tally, fields_read, say
from cinic_fastai.results.plots.search import plot_dependence
from cinic_fastai.results.predictions import predictions, valid_score
from cinic_fastai.results.tables.predictors import ensembles_table
from cinic_fastai.config import config_fields
from cinic_fastai.example import as_the_report, example_study
from cinic_fastai.store import RunStore
from cinic_fastai.studyfolder import StudyFolder

FIGURES = ["fig03_architectures", "fig07_augmentation", "fig08_accuracy_augmentation", "fig09_loss_augmentation",
    "fig10_accuracy_alternative", "fig11_loss_alternative", "fig12_accuracy_final", "fig13_loss_final",
    "fig14_test_accuracy", "gap", "trials"]
SEARCHES = ["custom_cnn-sgd", "custom_cnn-adam", "resnet18-sgd", "resnet18-adam"]
LEARNT = ["importance", *(f"{kind}_{name}" for name in SEARCHES for kind in ("convergence", "dependence"))]
TABLES = ["table1_search", "table2_predictors", "runs", "histories", "trials", "classes", "gap", "soon", "environments"]
NEW_TABLES = ["controls", "convergence", "repeats", "dependence", "importance", "seeds", "claims"]
VOTED = ["ensembles", "leave_one_out", "disagreement", "calibration", "class_origin", "confusion"]
MAPS = ["reliability", "disagreement", "class_origin", "confusion"]
PHOTOS = {"fig07_augmentation", "mistakes", "confused_pairs"}
LOADS = {"src", "srcset", "href", "action", "data", "poster", "background", "formaction", "xlink:href"}
VOID = {"meta", "img", "br", "hr", "link", "input"}

class Page(HTMLParser):
    "Tags with their attributes, text by the tag around it, and tags that don't close"
    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.stack = [], [], []
        self.feed(html)
        self.close()
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID: self.stack.append(tag)
    def handle_endtag(self, tag):
        assert self.stack and self.stack[-1]==tag, f"</{tag}> closes {self.stack[-3:]}"
        self.stack.pop()
    def handle_data(self, data): self.texts.append((self.stack[-1] if self.stack else "", data))
    def all(self, tag): return [a for t,a in self.tags if t==tag]
    def text(self): return " ".join(d for t,d in self.texts if t not in ("style", "script")).replace("\u00a0", " ")

def read(path): return Page(path.read_text(encoding="utf-8"))

def undrawn(out):
    "The page with all its words and none of its pictures, which take longest"
    with pytest.MonkeyPatch.context() as m:
        m.setattr("cinic_fastai.report.render.draw_figure", lambda figure: Drawn(figure, {}))
        return read(write_page(out))

def test_every_figure_and_table_is_there(example):
    page = read(example/"report.html")
    files = {k: {p.stem for p in (example/"figures").glob(f"*.{k}")} for k in ("png", "svg")}
    assert files["png"]>=set(FIGURES+LEARNT+MAPS) and files["svg"]==files["png"]-PHOTOS
    assert {p.stem for p in (example/"tables").iterdir()}==set(TABLES+NEW_TABLES+VOTED)
    figures = {a["id"] for a in page.all("figure")}
    assert figures>=set(FIGURES+LEARNT+MAPS)
    assert len(page.all("img"))==len(figures)
    assert {a["id"] for a in page.all("table")}>={"size", "table1", "table2", "classes", "table-architectures",
        "table-augmentation",
        "table-final", "table-runs", "table-trials", "table-repeats", "table-environment", "ensembles",
        "leave-one-out", "origins", "seeds-seeds"}

def test_pictures_are_inside_and_say_what_they_show(example):
    for img in read(example/"report.html").all("img"):
        kind, data = img["src"].split(",", 1)
        data = base64.b64decode(data)
        if img["class"]=="photo": assert kind=="data:image/png;base64" and data.startswith(b"\x89PNG")
        else: assert kind=="data:image/svg+xml;base64" and only_within(data)
        assert len(img["alt"])>30 and int(img["width"])>0
        assert "nan" not in img["alt"].split()

def only_within(svg):
    "Is this SVG with letters as outlines, and does it refer to nothing but itself?"
    root = ElementTree.fromstring(svg)
    links = [v for o in root.iter() for k,v in o.attrib.items() if k.endswith("href")]
    return root.tag.endswith("}svg") and all(v.startswith("#") for v in links) and not {"text", "script",
        "image"}&{o.tag.split("}")[1] for o in root.iter()}

def test_nothing_is_loaded_from_elsewhere(example):
    html = (example/"report.html").read_text(encoding="utf-8")
    page = Page(html)
    targets = [v for _,a in page.tags for k,v in a.items() if k in LOADS]
    assert targets and all(v.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,", "#")) for v in targets)
    assert not {"link", "iframe", "object", "embed"}&{t for t,_ in page.tags}
    style = "".join(d for t,d in page.texts if t=="style")
    assert "url(" not in style and "@import" not in style and "http" not in style
    assert "default-src 'none'" in html

def test_the_only_script_is_the_one_that_sorts(example):
    page = read(example/"report.html")
    assert page.all("script")==[{}]
    script = "".join(d for t,d in page.texts if t=="script")
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv")=="Content-Security-Policy")
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "aria-sort" in script

def test_links_and_labels_lead_somewhere(example):
    page = read(example/"report.html")
    ids = [a["id"] for _,a in page.tags if "id" in a]
    assert len(ids)==len(set(ids))
    assert all(a["href"][1:] in ids for a in page.all("a"))
    assert all(a["aria-labelledby"] in ids for _,a in page.tags if "aria-labelledby" in a)

def test_headings_are_in_order(example):
    levels = [int(t[1]) for t,_ in read(example/"report.html").tags if t in ("h1", "h2", "h3")]
    assert levels[0]==1 and levels.count(1)==1
    assert all(b-a<=1 for a,b in zip(levels, levels[1:]))

def test_every_tag_closes(example): assert read(example/"report.html").stack==[]

@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    "The page of a study with the report's settings, on all of CINIC-10"
    return undrawn(as_the_report(example_study(tmp_path_factory.mktemp("reported"), images=50)))

def test_published_numbers_stand_beside_ours(reported):
    text = reported.text()
    for number in ("69.4 %", "68.8 %", "65.7 %", "64.9 %", "62.4 %", "62.6 %", "65.0 %", "66.0 %", "71.9 %", "34.8 %",
        "40.5 %", "46.1 %", "48.9 %", "≈ 53.0 %", "≈ 65.0 %", "3.158 × 10⁻³", "0.8547", "(≈ 45)"):
        assert number in text, number

def test_the_page_begins_with_the_answer(example):
    page = read(example/"report.html")
    ids = [a["id"] for t,a in page.tags if t=="section"]
    experiments = [o for o in ids if o.startswith(("experiment-", "group-"))]
    assert ids==["summary", "open", *experiments, "checks", "caution"]
    assert [a["id"] for t,a in page.tags if t=="details"]==["details", "checklist", "environment"]
    named = [f"experiment-{o}" for o in ("architectures", "augmentation", "search", "final", "ensembling")]
    assert [o for o in experiments if o in named]==named
    assert {a["href"] for a in page.all("a")}>={f"#{o}" for o in ids}
    text = page.text()
    assert text.index("chosen predictor, test")<text.index("What to take.")<text.index("Networks.")

def test_what_to_take_is_chosen_on_valid_images_alone(tmp_path):
    "Not the one that test images like best, and none where networks have seen the valid images"
    out = example_study(tmp_path/"one", images=200)
    best = choice(load_report(out))
    scores = {p.name: valid_score(p) for p in predictions(StudyFolder(out))}
    assert scores[best.name]==max(scores.values()) and fmt_pct(best.test_acc) in say(best, "brief")
    out = example_study(tmp_path/"blind", images=50, trials=(1,1))
    blind = with_fields(out, (), train_on="train+valid", select="last")
    assert "What to take." not in blind

def test_the_details_say_how_small_a_study_is(example):
    text = read(example/"report.html").text()
    assert text.index("Details")<text.index("This is a small study.")<text.index("Every training")
    for words in ("600 images instead of 270,000", "12 epochs instead of 150", "The full study trains 68 networks",
        "seed 42", "Epochs scaled by 0.1"):
        assert words in text, words

def test_every_run_can_be_traced(example):
    text, study = read(example/"report.html").text(), read_json(example/"study.json")
    assert all(r["run_id"] in text for r in study["runs"])
    assert all(s["best"]["run_id"] in text for s in study["searches"])
    assert study["command"] in text and "fastai" in text

def test_the_page_says_whether_a_search_helped(example):
    text = read(example/"report.html").text()
    for words in ("That is no difference that these seeds can show", "5 new seeds",
        "No control was run: whether the search beat random points can't be said.", "which saved 6 of 21 epochs",
            "compared at equal epochs only", "The surrogate took 0.2", "are one draw each",
            "told a stopped trial's accuracy plus the median of what finished trials gained"):
        assert words in text, words
    assert text.count("are one draw each")==1

def test_ensembles_stand_side_by_side(example):
    text = read(example/"report.html").text()
    for words in ("Ensembles side by side", "Greedy selection takes", "95 % interval +", "paired bootstrap",
        "McNemar", "Without one of the members", "before its temperature of",
        "Members, weights and temperatures are chosen on valid images alone."): assert words in text, words

def test_what_chooses_is_never_below_its_best_member_on_valid(tmp_path):
    "Greedy selection by accuracy, weighted voting by likelihood, and temperatures change no class"
    out = example_study(tmp_path, images=200)
    study = read_json(out/"study.json")
    ways = [dict(method=m, temperature=t, member_temperature=o) for m in ("soft", "greedy", "weighted")
        for t in (False, True) for o in (False, True)]
    study["ensembles"] = [dict(study["ensembles"][0],
        name=f"{w['method']} {w['temperature']} {w['member_temperature']}", **w) for w in ways]
    write_json(out/"study.json", study)
    d = ensembles_table(StudyFolder(out)).set_index("predictor")
    assert len(d)==12
    for o in (False, True):
        assert d.valid_acc[f"greedy {o} {o}"]>=d.best_valid_acc[f"greedy {o} {o}"]
        assert d.valid_nll[f"weighted {o} {o}"]<=d.best_valid_nll[f"weighted {o} {o}"]
        for m in ("soft", "greedy", "weighted"):
            plain, cooled = d.loc[f"{m} False {o}"], d.loc[f"{m} True {o}"]
            assert cooled.valid_acc==plain.valid_acc and cooled.test_acc==plain.test_acc
            assert cooled.valid_nll<=plain.valid_nll
    assert d.valid_acc["soft True False"]>=d.best_valid_acc["soft True False"]
    assert d.ece["soft True False"]<d.ece["soft False False"]
    assert undrawn(out).stack==[]

def test_several_seeds_have_a_mean_and_a_spread(example):
    page = read(example/"report.html")
    assert "“small-stem” over 3 seeds:" in page.text() and "interval of the mean" in page.text() and "±" in page.text()
    assert "but for the repeats of searches and “small-stem”" in page.text()

@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "The page of a study that is called as the report's are, on other images"
    return undrawn(example_study(tmp_path_factory.mktemp("photos"), images=50, trials=(1,1), origins=False))

def test_the_leak_is_said_beside_the_map(example, photos):
    html = (example/"report.html").read_text(encoding="utf-8")
    caption = html[html.index('id="class_origin"'):].split("</figcaption>")[0]
    assert "are training images of CIFAR-10" in caption
    assert "CIFAR-10's test images alone" in read(example/"report.html").text()
    assert "class_origin" not in {a["id"] for a in photos.all("figure")}

def test_no_published_number_stands_beside_other_images_or_settings(example, photos, reported):
    def cells(page): return [a for _,a in page.tags if "published" in a.get("class", "")]
    assert cells(reported) and reported.stack==[] and "How soon" not in photos.text()
    for page in (photos, read(example/"report.html")):
        assert not cells(page) and page.stack==[] and "No number of the report stands beside those here" in page.text()
        for number in ("3.158 × 10⁻³", "0.8547", "(≈ 45)", "≈ 53.0 %"): assert number not in page.text(), number

def with_repeats(out, change):
    "The page's text after the repeats of the search with a control were changed"
    study, store = read_json(out/"study.json"), RunStore(out/"runs")
    for r in study["searches"][3]["repeated"]:
        r.update(change(r))
        if r["valid_acc"] is None: shutil.rmtree(store.folder(r["run_id"]))
        else: answer_rightly(store, r["run_id"], r["valid_acc"])
    write_json(out/"study.json", study)
    return undrawn(out).text()

def answer_rightly(store, rid, share):
    "Let a training have such a share of the valid images right, the first ones"
    stored = store.probs(rid, "valid")
    n = len(stored["targs"])
    said = np.where(np.arange(n)<share*n, stored["targs"], (stored["targs"]+1)%10)
    write_npz(store.folder(rid)/"probs_valid.npz", **stored|dict(probs=np.eye(10, dtype=np.float32)[said]))
    store.finish(rid, store.done(rid))

def test_other_seeds_may_say_otherwise(tmp_path):
    out = example_study(tmp_path)
    alike = dict(zip(range(43, 48), (.45, .46, .47, .44, .455)))
    assert "no difference that these seeds can show" in with_repeats(out, lambda r: dict(valid_acc=alike[r["seed"]]))
    text = with_repeats(out, lambda r: dict(valid_acc=alike[r["seed"]]-.1*(r["of"]=="winner")))
    assert "did worse than random points" in text and "The search helped" not in text
    text = with_repeats(out, lambda r: dict(valid_acc=None, reason="The training loss became nan in epoch 1."))
    assert "one training each proves nothing" in text and "winner with seed 43" in text

def test_a_stopped_trial_is_never_the_best(tmp_path):
    out = example_study(tmp_path, images=50)
    journal = out/"searches"/"custom_cnn-adam.jsonl"
    (header, *trials), _ = read_lines(journal, "")
    next(t for t in trials if t["status"]=="stopped").update(accs=[.987], valid_acc=.987)
    write_text(journal, "".join(map(line_of, [header,*trials])))
    assert undrawn(out).text().count("98.7 %")==1 # in the table of all trials
    alts = [say(d, "alt") for d in make_report(load_report(out)).all_figures]
    assert len(alts)>20 and not [o for o in alts if "98.7" in o]

def test_a_folder_from_before(tmp_path):
    "No controls, no repeats, no stopped trials, no start points, no surrogate's seconds"
    page = undrawn(example_study(tmp_path, images=50, extras=False))
    assert {a["id"] for a in page.all("figure")}>=set(FIGURES+LEARNT) and page.stack==[]
    assert "told a stopped trial's accuracy" not in page.text()
    assert "There is no random search of the same size beside it" in page.text()
    assert "The surrogate took" not in page.text()
    assert {p.stem for p in (tmp_path/"tables").iterdir()}==set(TABLES+VOTED+["claims", "convergence", "dependence",
        "importance"])

def test_a_journal_without_its_space(tmp_path):
    "Nothing is learnt from it, everything else is there"
    out = example_study(tmp_path, images=50)
    for f in (out/"searches").iterdir():
        (header, *trials), _ = read_lines(f, "")
        write_text(f, "".join(map(line_of, [{k: v for k,v in header.items() if k!="space"}, *trials])))
    page = undrawn(out)
    assert "a surrogate needs four trials" in page.text() and {a["id"] for a in page.all("figure")}>=set(FIGURES)
    assert page.stack==[]

def test_leaks_are_said(example, tmp_path):
    text = read(example/"report.html").text()
    assert "weights that were trained there may have seen larger versions of test images" in text
    probs = next((example/"runs").glob("*/probs_test.npz"))
    cifar,rows = (read_npz(probs)[k] for k in ("origins", "rows"))
    own = np.isin(rows[cifar=="cifar"], read_npz(example/"samples.npz")["cifar_test_rows"])
    assert 0<own.sum()<len(own)
    assert f"{own.sum()} of the test images are test images of CIFAR-10, {(~own).sum()} its training images." in text
    plain = undrawn(example_study(tmp_path, images=50, state="unfinished", trials=(1,1), origins=False)).text()
    assert "Leak" not in plain and "is a name only" not in text

def written(out):
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in [out/"report.html", *(out/"figures").iterdir(),
        *(out/"tables").iterdir()]}

def test_the_same_folder_gives_the_same_bytes(example, tmp_path):
    again = example_study(tmp_path, images=200)
    write_page(again, jobs=2)
    assert written(again)==written(example)

def test_an_unfinished_study_says_what_is_left(tmp_path):
    page = read(write_page(example_study(tmp_path, images=50, state="unfinished")))
    text = page.text()
    parts = "4 of “final”, 4 of ResNet-18 Adam, 4 of ResNet-18 Adam (control) and 15 of ResNet-18 Adam (repeats)"
    assert f"27 of 63 trainings are left: {parts}." in text
    assert "its random control 0 of 7 trials: whether the search beat random points can't be said yet" in text
    assert "Pretrained weights for resnet18.tv_in1k" in text and "became nan in epoch 2" in text
    assert {a["id"] for a in page.all("figure")}>=set(FIGURES)
    assert 0<len(page.all("img"))<len(page.all("figure"))
    assert "Nothing to draw yet" in text and page.stack==[]

def test_a_study_that_has_not_started(tmp_path):
    page = read(write_page(example_study(tmp_path, state="fresh")))
    assert "Nothing is finished yet." in page.text() and page.all("img")==[] and page.stack==[]
    assert "nan" not in page.text().split()

@pytest.mark.slow
def test_a_single_epoch_can_be_seen(tmp_path):
    page = read(write_page(example_study(tmp_path, images=50, epochs=1)))
    assert {a["id"] for a in page.all("figure")}>=set(FIGURES) and len(page.all("img"))==len(page.all("figure"))

def test_hostile_names_do_no_harm(tmp_path, monkeypatch):
    "In words, tables, and the figures that show them"
    evil = ('<script>alert("1")</script>', '"><img src=x onerror=alert(1)>', "$a_b^{c}$ $\\frac{$", "{{ 7*7 }}",
    "Ähre, \"quoted\"", "$broken",
        "../../etc", "100%", "a'b", "日本")
    out = example_study(tmp_path, images=60, trials=(1,1), classes=evil)
    study = read_json(out/"study.json")
    study["title"], study["command"] = "<b>bold</b> & more", "cinic study <x>"
    study["runs"][0]["group"] = "../<i>own</i>"
    study["data"]["skipped"] = ["<u>bad</u>.png"]
    write_json(out/"study.json", study)
    shown = {"fig07_augmentation", "fig14_test_accuracy", "class_origin", "confusion", "confused_pairs", "mistakes",
        "curves_----i-own--i-_accuracy"}
    monkeypatch.setattr("cinic_fastai.report.render.draw_figure", lambda figure: draw_figure(figure)
        if figure.name in shown else Drawn(figure, {}))
    page = read(write_page(out))
    assert {p.stem for p in (out/"figures").glob("*.png")}==shown
    assert not {"b onerror", "u", "i"}&{t for t,_ in page.tags} and page.all("script")==[{}]
    assert not [k for _,a in page.tags for k in a if k.startswith("on")]
    for name in evil: assert name in page.text(), name
    assert "49" not in [d.strip() for _,d in page.texts] and "<b>bold</b> & more" in page.text()
    assert all(p.parent==out/"figures" for p in (out/"figures").rglob("*.png"))
    assert all(only_within(p.read_bytes()) for p in (out/"figures").glob("*.svg"))
    assert page.stack==[]

def test_a_plan_of_ones_own(tmp_path):
    "Other names, other groups, no searches, no ensembles"
    out = example_study(tmp_path, images=50)
    study = read_json(out/"study.json")
    study["runs"] = study["runs"][:2]
    for r,name in zip(study["runs"], ("mine", "yours")): r.update(group="my nets", name=name)
    study.update(searches=[], ensembles=[], plan={"study": {"name": "own"}, "run": []})
    write_json(out/"study.json", study)
    page = undrawn(out)
    assert "“mine” reaches" in page.text() or "“yours” reaches" in page.text()
    assert {a["id"] for a in page.all("figure")}>={"curves_my-nets_accuracy", "curves_my-nets_loss"} and page.stack==[]

OTHER = dict(model="speednet", pretrained=True, weights="ab"*32, head="logistic", stem="small", size=64, softmax=True,
    dropout=.3,
width=2., whiten=False, dirac=False, policy="combined",
    interp="nearest", mix_alpha=.2, mix_per="batch", flip="random", shift=2, tta="flip", tta_share=.25,
    sizes=(16, 32), label_smoothing=.2, bs=32,
    opt="adam", lr=.5, mom=.5, nesterov=True, beta1=.5, beta2=.5,
    wd=.01, schedule="one-cycle", bias_lr=64., muon=.2, hard=.5,
    average=.9, epochs=7, frozen_epochs=3, frozen_lr=.7, precision="bf16",
    class_weights="balanced", sampling="balanced", metric="macro_f1",
    compile=True, channels_last=False, select="last", validate="last", train_on="train+valid", folds=5, seed=7,
    name="soft", method="hard") # Another value of every field that a statement may read

def settings(**fields):
    "Fields of two runs, as tables have them"
    known = {k: o.default for k,o in config_fields.items()}
    return [SimpleNamespace(**known|dict(name=n, method="soft")|fields) for n in ("a", "b")]

BASES = [settings(), *(settings(**{k: OTHER[k]}) for k in ("model", "opt", "policy", "pretrained", "frozen_epochs",
"tta", "softmax")), settings(model="custom_cnn"),
    settings(policy="simple"), settings(policy="advanced"), settings(name="resnet18-sgd"), settings(name="simple",
        policy="simple"), settings(name="hard"),
    settings(train_on="train+valid", select="last"), settings(name="resnet18-pretrained",
        pretrained=True), settings(width=2., whiten=False),
    [settings(select="last")[0], settings()[0]]]

def after(runs, field, every):
    "The same runs with another value of a field, in all of them or in the last one alone"
    return [SimpleNamespace(**vars(r)|{field: OTHER[field]}) if every or r is runs[-1] else r for r in runs]

def statements():
    "What is said of runs, by name: the fields it reads, and a function of runs that gives its words"
    def words(made): return str(made) if isinstance(made, bool) else say(made)
    def setting(name): return lambda runs: say(Tally(name, [*map(effective, runs)]))
    own = {name: (fields_read(name), setting(name)) for name in SETTINGS}
    return own|{name: (make.reads, lambda runs, make=make: words(make(runs))) for name,make in READERS.items()}

STATEMENTS = statements()

@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_follows_the_fields_it_names(name):
    "Each alone, in all runs and in one of them; no other field changes a word"
    reads, says = STATEMENTS[name]
    for field in OTHER:
        changed = [says(after(runs, field, every))!=says(runs) for runs in BASES for every in (True, False)]
        assert any(changed)==(field in reads), (field, reads)
        # these ask whether one does
        assert any(changed[::2])==any(changed[1::2]) or name in ("chooses_epochs", "coupled_l2", "has_views",
            "brackets"), field

def test_the_page_says_something_of_every_field():
    said = {k for reads,_ in STATEMENTS.values() for k in reads}-{"name", "method"}
    assert said=={*config_fields}-{"fold"} # one of `folds`

def told(out): return undrawn(out).text()

def with_fields(out, names, **fields):
    "Say in the store, and in the journals, that trainings had other fields"
    study = read_json(out/"study.json")
    for f in {out/"runs"/r["run_id"]/"config.json" for r in study["runs"] if not names or r["name"] in names}:
        write_json(f, read_json(f)|fields)
    for f in [] if names else (out/"searches").iterdir():
        (header, *trials), _ = read_lines(f, "")
        write_text(f, "".join(map(line_of, [header|{"base": header["base"]|fields}, *trials])))
    return told(out)

def test_where_the_report_is_silent_follows_the_runs(tmp_path):
    "What all do, what some do, and nothing on what none does"
    out = example_study(tmp_path/"all", images=50, trials=(1,1))
    text = with_fields(out, (), select="last", mix_alpha=.2, mix_per="batch", interp="nearest", seed=5)
    for words in ("keeps the weights of the last epoch;", "from Beta(0.2, 0.2), anew for each batch, and",
        "one resampling: nearest.", "Weights are kept from the last epoch", "scaled by 0.1, seed 5.",
            "accuracy on valid images after its last epoch"): assert words in text, words
    for words in ("the epoch with the highest", "the epoch of the highest", "Beta(1, 1)", "bilinear", "seeds 42",
        "Epochs, trials"):
        assert words not in text, words
    out = example_study(tmp_path/"one", images=50, trials=(1,1))
    text = with_fields(out, ("combined",), select="last", mix_alpha=.2, interp="nearest")
    for words in ("and the weights of the last epoch (1 run);",
        "and Beta(0.2, 0.2), anew for each image (1 run), and",
        "one resampling: bilinear (3 runs) and nearest (1 run)."):
        assert words in text, words
    text = with_fields(out, (), policy="none")
    for words in ("Beta(", "MixUp", "rotates", "resampling", "under mixing"): assert words not in text, words
    assert "adds L2 to the gradient" in text # trials do

def test_names_that_collide_with_the_reports(tmp_path):
    "A run called `resnet18` that isn't one, a hard vote called `soft`, a run called `none` with augmentation"
    out = example_study(tmp_path, images=50, trials=(1,1))
    study = read_json(out/"study.json")
    study["ensembles"][0]["method"] = "hard"
    write_json(out/"study.json", study)
    for name,fields in dict(resnet18=dict(model="vgg11"), none=dict(policy="simple"),
        simple=dict(policy="none")).items():
        rid = next(r["run_id"] for r in study["runs"] if r["name"]==name)
        write_json(out/"runs"/rid/"config.json", read_json(out/"runs"/rid/"config.json")|fields)
    text = told(out)
    for words in ("Soft voting is a name only: what voted is an ensemble by hard voting.",
        "ResNet-18 is a name only: what trained is vgg11", "“none” is a name only", "“simple” is a name only"):
        assert words in text, words
    gains = text.split("Against no augmentation that is")[1].split(" for “")[1:]
    assert gains[0].startswith("advanced”") and not [o for o in gains[:4] if o.startswith(("none”", "simple”"))]

def test_equal_trials_have_one_winner_everywhere(tmp_path):
    "Of two with the same accuracy the one with the lower loss, in words, table 1 and the star of its figure"
    out = example_study(tmp_path, images=50)
    journal = out/"searches"/"resnet18-sgd.jsonl"
    (header, *trials), _ = read_lines(journal, "")
    done = [t for t in trials if t["status"]=="done"]
    for t in done: t.update(valid_acc=.5, valid_loss=2.-.1*t["number"])
    write_text(journal, "".join(map(line_of, [header,*trials])))
    t, last = load_report(out).tables, done[-1]["number"]+1
    assert t.table1_search.set_index("search").number["resnet18-sgd"]+1==last
    assert f"Trial {last} of {len(trials)} is the best, with 50.0 %" in told(out)
    star = plot_dependence(t.dependence.query("search=='resnet18-sgd' and dimension=='bs'"),
        t.trials.query("search=='resnet18-sgd'")).axes[0].lines[-1]
    assert star.get_xdata()[0]==done[-1]["point"]["bs"]

def test_the_best_network_may_be_in_no_vote(tmp_path):
    out = example_study(tmp_path, images=200)
    study = read_json(out/"study.json")
    study["ensembles"] = [dict(study["ensembles"][0], members=["architectures/custom_cnn", "architectures/resnet18"])]
    write_json(out/"study.json", study)
    f = load_report(out)
    report, runs, best = make_report(f), f.tables.runs.set_index("name"), f.tables.table2_predictors.iloc[0]
    assert runs.test_acc.idxmax()=="resnet18-pretrained-adam" and runs.test_acc.max()>best.test_acc
    numbers = {say(k, "label"): (say(k, "value"), re.split("[,;]", say(k, "note"))[0]) for k in report.keys}
    wanted = fmt_pct(runs.test_acc.max()), "ResNet-18 pretrained Adam"
    assert runs.valid_acc.idxmax()=="resnet18-pretrained-adam"
    assert numbers["chosen predictor, test"]==numbers["chosen single network, test"]==wanted
    words = say(next(e.about for e in report.sections if e.key=="ensembling"), "results")
    assert "best predictor of table 2: " in words
    assert f"ResNet-18 pretrained Adam, which isn't one of them, reaches {wanted[0]}." in words

def test_the_mark_is_named_where_no_other_number_stands(example, photos):
    text = read(example/"report.html").text()
    assert "“How soon” takes one of its numbers, 69.4 %, as a mark" in text
    assert "here on valid images, and on other ones than those" in text
    assert "69.4 %" not in photos.text()

def test_a_leak_whose_size_is_not_known_yet(tmp_path):
    "A study that has not written its samples doesn't know which test images are CIFAR-10's"
    out = example_study(tmp_path, images=50, trials=(1,1))
    (out/"samples.npz").unlink()
    text = told(out)
    assert "some of the test images may be training images of CIFAR-10" in text and "0 of the test images" not in text

def test_what_some_trainings_had_is_not_said_of_all(tmp_path):
    out = example_study(tmp_path, images=50, trials=(1,1))
    f = out/"runs"/read_json(out/"study.json")["runs"][0]["run_id"]/"env.json"
    write_json(f, read_json(f)|dict(gpu="Some GPU"))
    assert "Some GPU (1 training)" in told(out)

def test_a_gap_that_cannot_be_compared_says_so(tmp_path):
    text = with_fields(example_study(tmp_path, images=50, trials=(1,1)), ("custom_cnn",), dropout=.2)
    assert "points for CustomCNN (trained with dropout, so not to be compared)" in text
    assert text.count("so not to be compared")==1

def test_fitted_is_what_was_fitted(tmp_path):
    "A soft vote with a temperature has no weights of its own"
    out = example_study(tmp_path, images=50, trials=(1,1))
    study = read_json(out/"study.json")
    study["ensembles"][0]["temperature"] = True
    write_json(out/"study.json", study)
    words = "Chosen on valid images: weights of Greedy selection and temperatures of Soft voting and Greedy selection."
    assert words in told(out)

def test_nothing_is_chosen_where_nothing_is_finished(tmp_path):
    text = told(example_study(tmp_path/"fresh", images=50, state="fresh"))
    assert "Nothing was chosen on valid images" in text
    text = with_fields(example_study(tmp_path/"blind", images=50, trials=(1,1)), ("custom_cnn-adam",),
        train_on="train+valid", select="last")
    assert "Epochs and trials were chosen on valid images" in text and "so nothing can be chosen by them." in text
    assert ".." not in text.split("Every training")[0].replace("...", "")

def test_markdown_says_what_the_page_says(example):
    "The same sentences, and the same cells, figures as links to those beside the page"
    md = report_markdown(make_report(load_report(example)))
    plain = re.sub(r"\\(.)", r"\1", md)
    page = read(example/"report.html")
    said = [d.strip() for t,d in page.texts if t in ("p", "li", "td") and len(d.strip())>60
        and not d.startswith("Tables sort")]
    assert len(said)>50 and not [o for o in said if o not in plain]
    links = re.findall(r"!\[.*?\]\((.*?)\)", md)
    assert len(links)==len(page.all("img")) and all((example/o).exists() for o in links)

def test_markdown_escapes_what_it_is_given(tmp_path):
    out = example_study(tmp_path, images=50, trials=(1,1))
    study = read_json(out/"study.json")
    study["title"] = "<b>*bold*</b> | `more`"
    write_json(out/"study.json", study)
    assert report_markdown(make_report(load_report(out))).startswith(r"# \<b\>\*bold\*\</b\> \| \`more\`")

def test_macros_of_statements_have_names_of_their_own():
    "A statement is said by the macro that is called like it, wherever that stands"
    names = [n for f in (TEMPLATES/"words").iterdir() for n in re.findall(r"macro ([a-zA-Z]\w*)\(",
        f.read_text(encoding="utf-8"))]
    assert len(names)>150 and len(names)==len(set(names))

def test_templates_are_short():
    assert all(len(f.read_text(encoding="utf-8").splitlines())<=200 for f in TEMPLATES.rglob("*.*"))
