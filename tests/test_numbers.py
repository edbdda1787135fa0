"The numbers of tables, page and model card against scikit-learn, file names and the plan `report`"
from dataclasses import replace
import pandas as pd, pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from cinic_fastai.core import SPLITS
from cinic_fastai.files import read_json, write_json
from cinic_fastai.record import JournalHeader
from cinic_fastai.report.render import Drawn, draw_figure
from cinic_fastai.report.render import write_page
from cinic_fastai.results.tables.published import FULL_STUDY, REPORT_RUNS, REPORT_SEARCHES, REPORT_SPACES, REPORT_VOTERS
from cinic_fastai.results.tables.published import beside_published, report_run, report_search
from cinic_fastai.results.tables.predictors import best_member
from cinic_fastai.results.predictions import predictions
from cinic_fastai.results.tables.runs import runs_table
from cinic_fastai.config import non_defaults
from cinic_fastai.plan_file import parse_plan, read_plan
from cinic_fastai.study.expand import run_config, trial_config
from cinic_fastai.study.expand import with_options
from cinic_fastai.example import as_the_report, example_study
from cinic_fastai.studyfolder import StudyFolder
from test_page import read

NAMES = ("all", "(total)")
PLAN = """
[study]
name = "uneven"
[[run]]
name = "net"
group = "final"
model = "custom_cnn"
epochs = 1
bs = 8
lr = 1e-2
"""

def shows(figures):
    "Draws these figures of a page and no others, which take longest"
    return lambda figure: draw_figure(figure) if figure.name in figures else Drawn(figure, {})

@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    "A finished study of two classes, 95 : 5 in each split, and its folder of images"
    from cinic_fastai.data.pack import get_pack
    from cinic_fastai.study.runner import run_study
    from cinic_fastai.study.trainer import StudyOptions
    from cinic_fastai.test_utils import tiny_folder
    images, out = tmp_path_factory.mktemp("uneven"), tmp_path_factory.mktemp("study")/"out"
    tiny_folder(images, n=19, classes=NAMES)
    for s in SPLITS:
        for f in sorted((images/s/NAMES[1]).iterdir())[1:]: f.unlink()
    plan = parse_plan(PLAN, "uneven")
    def again():
        with pytest.MonkeyPatch.context() as m:
            m.setattr("cinic_fastai.report.render.draw_figure", shows(()))
            run_study(plan, get_pack(images, size=32), out, StudyOptions(data_name="uneven"))
    again()
    return images, out, again

def test_unequal_classes(uneven):
    images, out, _ = uneven
    study = StudyFolder(out)
    counts = {s: [len(list((images/s/c).iterdir())) for c in study.data.classes] for s in SPLITS}
    assert study.data.class_counts==counts and sorted(counts["train"])==[1,19]
    run = runs_table(study).iloc[0]
    d = study.store.probs(run.run_id, "test")
    preds = d["probs"].argmax(1)
    f1 = f1_score(d["targs"], preds, average="macro", zero_division=0)
    want = accuracy_score(d["targs"], preds), balanced_accuracy_score(d["targs"], preds), f1
    csv = pd.read_csv(out/"tables"/"runs.csv").iloc[0]
    assert csv[["test_acc", "test_balanced_acc", "test_macro_f1"]].tolist()==pytest.approx(want)
    assert csv[["valid_majority_acc", "test_majority_acc"]].tolist()==[.95, .95]
    csv = pd.read_csv(out/"tables"/"table2_predictors.csv").iloc[0]
    assert csv[["test_acc", "balanced_acc", "macro_f1", "majority_acc"]].tolist()==pytest.approx((*want, .95))
    text = read(out/"report.html").text()
    assert "would give 95.0 % of the valid images; none of them is clearly above it" in text and "Guessing" not in text
    for v in want: assert f"{100*v:.1f} %" in text

def test_the_card_says_what_accuracy_is_worth(uneven):
    from cinic_fastai.results.predict import load_predictor
    from cinic_fastai.results.export import model_card
    _, out, _ = uneven
    run = runs_table(StudyFolder(out)).iloc[0]
    card = model_card(out, load_predictor(out))
    scores = f"the classes) is {100*run.test_balanced_acc:.1f} %, macro-F1 {100*run.test_macro_f1:.1f} %"
    level = "the training images would give 95.0 %"
    for words in (level, scores, "| (total) | 1 |", "| all | 19 |"): assert words in card, words

def test_a_record_from_before_learns_its_classes_by_split(uneven):
    _, out, again = uneven
    study = read_json(out/"study.json")
    counts = study["data"].pop("class_counts")
    write_json(out/"study.json", study)
    assert "most frequent class would give" not in read(write_page(out)).text()
    assert runs_table(StudyFolder(out)).test_majority_acc.isna().all()
    again()
    assert StudyFolder(out).data.class_counts==counts

def test_any_class_name_works(tmp_path, monkeypatch):
    "Those of totals among them, in tables, words and figures"
    names = ("all", "(all)", "(total)", "total", "hem", "other")
    out = example_study(tmp_path, images=60, trials=(1,1), classes=names)
    shown = {"fig14_test_accuracy", "class_origin", "confusion"}
    monkeypatch.setattr("cinic_fastai.report.render.draw_figure", shows(shown))
    page = read(write_page(out))
    assert page.stack==[] and {p.stem for p in (out/"figures").glob("*.png")}==shown
    for table in ("classes", "class_origin"):
        df = pd.read_csv(out/"tables"/f"{table}.csv", keep_default_na=False).query("predictor=='soft'")
        if table=="class_origin": df = df[df["origin"]=="(all)"]
        assert df["class"].tolist()==[*names, ""] and df["images"].tolist()==[10]*6+[60]

def test_the_report_is_the_plan_report():
    "What published numbers stand beside is what the plan says"
    plan = read_plan("report")
    fixed = {s.name: non_defaults(trial_config(s, {})) for s in plan.searches}
    assert fixed==REPORT_SEARCHES and {s.name: s.space for s in plan.searches}==REPORT_SPACES
    for s in plan.searches:
        assert (s.random, s.guided)==(FULL_STUDY["random"], FULL_STUDY["guided"])
        assert (s.strategy, s.batch, bool(s.start), bool(s.rungs))==("gp", 1, False, False)
        assert report_search(JournalHeader(base=fixed[s.name], space=s.space, random=s.random, guided=s.guided))==s.name
    assert {e.method: tuple(e.members) for e in plan.ensembles}==dict.fromkeys(("soft", "hard"), REPORT_VOTERS)
    assert not any(e.temperature or e.member_temperature for e in plan.ensembles)
    p = with_options(plan, published=True)
    found = {(r.group, r.name): report_run(run_config(p, r)) for r in p.runs}
    assert found.pop(("augmentation", "none"))=="resnet18"
    assert found=={(g, n): n if n in REPORT_RUNS else "" for g,n in found} and set(found.values())=={*REPORT_RUNS, ""}

def test_the_terminal_has_published_numbers_where_the_page_has(tmp_path, capsys):
    from typer import Exit
    from cinic_fastai.cli.study import _finish
    out = example_study(tmp_path, images=20)
    for said in (False, True):
        with pytest.raises(Exit): _finish(out, 1.) # trials failed
        text = capsys.readouterr().out
        assert ("published" in text, "0.694" in text)==(said, said) and "Test accuracy" in text
        as_the_report(out)

@pytest.mark.parametrize("options", [dict(scale=.5), dict(scale=2.)])
def test_a_scaled_report_is_not_the_report(options):
    p = with_options(read_plan("report"), published=True, **options)
    assert {report_run(run_config(p, r)) for r in p.runs}=={""}

def test_every_environment_is_told(tmp_path, monkeypatch):
    out = example_study(tmp_path, images=20, trials=(1,1))
    rid = StudyFolder(out).record.runs[0].run_id
    f = out/"runs"/rid/"env.json"
    write_json(f, read_json(f)|dict(device="cuda", precision="bf16", versions=dict(torch="2.6.0")))
    monkeypatch.setattr("cinic_fastai.report.render.draw_figure", shows(()))
    text = read(write_page(out)).text()
    others = len(list((out/"runs").glob("*/env.json")))-1
    for a,b in (("cpu", "cuda"), ("float32", "bf16"), ("2.15.0", "2.6.0")):
        assert f"{a} ({others} trainings), {b} (1 training)" in text
    assert len(pd.read_csv(out/"tables"/"environments.csv").query("what=='device'"))==2

@pytest.mark.parametrize("change", [dict(size=64), dict(counts=dict(train=180_000, valid=45_000, test=45_000)),
    dict(counts=dict.fromkeys(SPLITS, 30_000))])
def test_other_sizes_and_splits_are_not_the_reports_images(tmp_path, change):
    out = as_the_report(example_study(tmp_path, images=20, trials=(1,1)))
    study = StudyFolder(out)
    assert beside_published(study.data) and not beside_published(study.data.model_copy(update=change))
    record = read_json(out/"study.json")
    write_json(out/"study.json", record|{"data": record["data"]|change})
    assert runs_table(StudyFolder(out)).published.isna().all()

def test_of_members_with_equal_accuracy_the_surer_one_is_best(tmp_path):
    "Whichever comes first"
    out = example_study(tmp_path, images=20, trials=(1,1))
    p = next(p for p in predictions(StudyFolder(out)) if p.name=="soft")
    sharp = p.valid[0]
    flat = replace(sharp, probs=.5*sharp.probs+.5/sharp.probs.shape[1])
    losses = [log_loss(o.targs, o.probs) for o in (sharp, flat)]
    better = losses.index(min(losses))
    assert best_member(replace(p, valid=(sharp, flat)))==better
    assert best_member(replace(p, valid=(flat, sharp)))==1-better
