"The numbers of tables, page and model card against scikit-learn, file names and the plan `report`"
import pandas as pd, pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from cinic_fastai.core import SPLITS
from cinic_fastai.files import read_json, write_json
from cinic_fastai.results.page import rendered, write_page
from cinic_fastai.results.tables import (FULL_STUDY, REPORT_RUNS, REPORT_SEARCHES, REPORT_SPACES, REPORT_VOTERS, read_study, report_run, report_search, runs_table,
    study_store)
from cinic_fastai.runs import declared
from cinic_fastai.study.plan import parse_plan, read_plan, run_config, trial_config, with_options
from cinic_fastai.test_study import as_the_report, example_study
from test_page import read

NAMES = ("all", "(total)")

@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    "A finished study of two classes, 95 : 5 in each split, and its folder of images"
    from cinic_fastai.data.pack import get_pack
    from cinic_fastai.study.conduct import conduct
    from cinic_fastai.test_utils import tiny_folder
    images, out = tiny_folder(tmp_path_factory.mktemp("uneven"), n=19, classes=NAMES), tmp_path_factory.mktemp("study")/"out"
    for s in SPLITS:
        for f in sorted((images/s/NAMES[1]).iterdir())[1:]: f.unlink()
    plan = parse_plan("\n".join(['[study]', 'name = "uneven"', '[[run]]', 'name = "net"', 'group = "final"', 'model = "custom_cnn"', 'epochs = 1', 'bs = 8', 'lr = 1e-2']), "uneven")
    def again():
        with pytest.MonkeyPatch.context() as m:
            m.setattr("cinic_fastai.results.page.rendered", lambda figure: rendered({**figure, "draw": None}))
            conduct(plan, get_pack(images, size=32), out, data=dict(name="uneven"))
    again()
    return images, out, again

def test_unequal_classes(uneven):
    images, out, _ = uneven
    counts = {s: [len(list((images/s/c).iterdir())) for c in read_study(out)["data"]["classes"]] for s in SPLITS}
    assert read_study(out)["data"]["class_counts"]==counts and sorted(counts["train"])==[1,19]
    run = runs_table(out).iloc[0]
    d = study_store(out).probs(run.run_id, "test")
    preds = d["probs"].argmax(1)
    want = accuracy_score(d["targs"], preds), balanced_accuracy_score(d["targs"], preds), f1_score(d["targs"], preds, average="macro", zero_division=0)
    csv = pd.read_csv(out/"tables"/"runs.csv").iloc[0]
    assert csv[["test_acc", "test_balanced_acc", "test_macro_f1"]].tolist()==pytest.approx(want) and csv[["valid_majority_acc", "test_majority_acc"]].tolist()==[.95, .95]
    csv = pd.read_csv(out/"tables"/"table2_predictors.csv").iloc[0]
    assert csv[["test_acc", "balanced_acc", "macro_f1", "majority_acc"]].tolist()==pytest.approx((*want, .95))
    text = read(out/"report.html").text()
    assert "would give 95.0 % of the valid images; none of them is clearly above it" in text and "Guessing" not in text
    for v in want: assert f"{100*v:.1f} %" in text

def test_the_card_says_what_accuracy_is_worth(uneven):
    from cinic_fastai.results.predict import load_predictor, model_card
    _, out, _ = uneven
    run = runs_table(out).iloc[0]
    card = model_card(out, load_predictor(out))
    for words in ("the training images would give 95.0 %", f"the classes) is {100*run.test_balanced_acc:.1f} %", f"macro-F1 {100*run.test_macro_f1:.1f} %", "| (total) | 1 |", "| all | 19 |"):
        assert words in card, words

def test_a_record_from_before_learns_its_classes_by_split(uneven):
    _, out, again = uneven
    study = read_json(out/"study.json")
    counts = study["data"].pop("class_counts")
    write_json(out/"study.json", study)
    assert "most frequent class would give" not in read(write_page(out)).text() and runs_table(out).test_majority_acc.isna().all()
    again()
    assert read_study(out)["data"]["class_counts"]==counts

def test_any_class_name_works(tmp_path, monkeypatch):
    "Those of totals among them, in tables, words and figures"
    names = ("all", "(all)", "(total)", "total", "hem", "other")
    out = example_study(tmp_path, images=60, classes=names)
    shown = {"fig14_test_accuracy", "class_origin", "confusion"}
    monkeypatch.setattr("cinic_fastai.results.page.rendered", lambda figure: rendered(figure if figure["name"] in shown else {**figure, "draw": None}))
    page = read(write_page(out))
    assert page.stack==[] and {p.stem for p in (out/"figures").glob("*.png")}==shown
    for table in ("classes", "class_origin"):
        df = pd.read_csv(out/"tables"/f"{table}.csv", keep_default_na=False).query("predictor=='soft'")
        if table=="class_origin": df = df[df["origin"]=="(all)"]
        assert df["class"].tolist()==[*names, ""] and df["images"].tolist()==[10]*6+[60]

def test_the_report_is_the_plan_report():
    "What published numbers stand beside is what the plan says"
    plan = read_plan("report")
    assert {s.name: declared(trial_config(s, {})) for s in plan.searches}==REPORT_SEARCHES and {s.name: s.space for s in plan.searches}==REPORT_SPACES
    assert {(s.random, s.guided, s.strategy, s.batch, bool(s.start), bool(s.rungs)) for s in plan.searches}=={(FULL_STUDY["random"], FULL_STUDY["guided"], "gp", 1, False, False)}
    for s in plan.searches: assert report_search(dict(base=declared(trial_config(s, {})), space=s.space, random=s.random, guided=s.guided))==s.name
    assert {e.method: tuple(e.members) for e in plan.ensembles}==dict.fromkeys(("soft", "hard"), REPORT_VOTERS) and not any(e.temperature or e.member_temperature for e in plan.ensembles)
    found = {(r.group, r.name): report_run(run_config(p, r)) for p in [with_options(plan, published=True)] for r in p.runs}
    assert found.pop(("augmentation", "none"))=="resnet18"
    assert found=={(g, n): n if n in REPORT_RUNS else "" for g,n in found} and set(found.values())=={*REPORT_RUNS, ""}

def test_the_terminal_has_published_numbers_where_the_page_has(tmp_path, capsys):
    from typer import Exit
    from cinic_fastai.cli import _finish
    out = example_study(tmp_path, images=20)
    for said in (False, True):
        with pytest.raises(Exit): _finish(read_study(out), out, 1.) # trials failed
        text = capsys.readouterr().out
        assert ("published" in text, "0.694" in text)==(said, said) and "Test accuracy" in text
        as_the_report(out)

@pytest.mark.parametrize("options", [dict(scale=.5), dict(scale=2.)])
def test_a_scaled_report_is_not_the_report(options):
    p = with_options(read_plan("report"), published=True, **options)
    assert {report_run(run_config(p, r)) for r in p.runs}=={""}

def test_every_environment_is_told(tmp_path, monkeypatch):
    out = example_study(tmp_path, images=20)
    rid = read_study(out)["runs"][0]["run_id"]
    f = out/"runs"/rid/"env.json"
    write_json(f, read_json(f)|dict(device="cuda", precision="bf16", torch="2.6.0"))
    monkeypatch.setattr("cinic_fastai.results.page.rendered", lambda figure: rendered({**figure, "draw": None}))
    text = read(write_page(out)).text()
    for words in ("cpu (14 trainings), cuda (1 training)", "float32 (14 trainings), bf16 (1 training)", "2.15.0 (14 trainings), 2.6.0 (1 training)"): assert words in text, words
    assert len(pd.read_csv(out/"tables"/"environments.csv").query("what=='device'"))==2
