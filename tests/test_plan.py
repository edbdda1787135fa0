"Plans: whatever stands in a file, it is a plan or one `PlanError` that says what is wrong."
import json, tomllib
from contextlib import nullcontext
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
import cinic_fastai
from cinic_fastai.core import PlanError
from cinic_fastai.config import config_fields
from cinic_fastai.study.expand import ablation_text
from cinic_fastai.plan_file import _read, parse_plan, plan_names, plan_text, read_plan
from cinic_fastai.plan_file import plan_schema
from cinic_fastai.study.expand import plan_problems, trainings, with_options
from cinic_fastai.study.expand import run_config

quick = settings(max_examples=150, deadline=None, derandomize=True, database=None)
words = st.sampled_from([*config_fields, "study", "defaults", "run", "search", "ensemble", "name", "from", "group",
    "space", "random", "guided", "batch", "strategy", "members", "method", "title", "log", "log2", "int", "choices",
    "sgd", "gp", "soft", "a", "search:a", "", "../a", "resnet18", "custom_cnn"])
scalars = st.one_of(words, st.booleans(), st.integers(-3, 600), st.integers(), st.floats(), st.text(max_size=5),
    st.dates())
values = st.recursive(scalars, lambda o: st.one_of(st.lists(o, max_size=3), st.dictionaries(words, o, max_size=3)),
    max_leaves=6)
tables = st.dictionaries(words.filter(lambda o: o!="model"), values, max_size=5) # unknown networks would load timm
lists = st.one_of(values, st.lists(tables, max_size=3))
plans = st.fixed_dictionaries(dict(study=st.one_of(values, tables)),
    optional=dict(defaults=st.one_of(values, tables), extra=values, run=lists, search=lists, ensemble=lists))
changes = [("=", "= ="), ("1", "-1"), ("0", ""), ('"', ""), ("[", ""), ("e", "x"), ("6", "6.5"), ("5", "99"), ("#", ""),
    ("name", "group"), ("2", "true")]

@quick
@given(plans)
def test_any_tables_are_checked(d):
    assert all(isinstance(o, str) for o in _read(d)[1])

@quick
@given(st.text(max_size=200))
def test_any_text_is_read(text):
    with pytest.raises(PlanError): parse_plan(text)

@quick
@given(st.data())
def test_demo_with_lines_changed(data):
    lines = plan_text("demo").splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, len(lines)-1))
        if "model" in lines[i]: continue
        old,new = data.draw(st.sampled_from(changes))
        lines[i] = lines[i].replace(old, new)
    try: plan = parse_plan("\n".join(lines), "changed.toml")
    except PlanError as e: assert str(e).startswith("changed.toml")
    else: assert trainings(plan) and isinstance(plan_problems(plan, dict(train=100, valid=100, test=100), 32), list)

def test_a_voter_without_a_name():
    "The run is told of, and so is the vote that misses it"
    before,name,after = plan_text("demo").rpartition('name = "resnet18-adam"')
    with pytest.raises(PlanError) as e: parse_plan(before+name.replace("name", "namx")+after, "changed.toml")
    for o in ("Unknown key 'namx' (did you mean 'name'?)", "no run is called 'resnet18-adam'"): assert o in str(e.value)

WRONG = {'method = "hard"': 'method = "hrad"', 'policy = "gentle"': 'policy = "gentel"',
    "wd = {log=[1e-5,1e-2]}, mom": "wd = {log=[0,1e-2]}, momm",
    "epochs = 50": "epochs = 0", "seed = 42 ": "seed = 4.2 "}
SAID = """[study]: seed = 4.2 is float
[defaults]: epochs = 0 is not above 0
[[run]] 8 'gentle': Unknown policy 'gentel' (did you mean 'gentle'?)
[[search]] 3 'resnet18-sgd': space.wd: log = [0, 0.01], expected [lo, hi], finite numbers with lo above 0
[[search]] 3 'resnet18-sgd': space.momm: Unknown key 'momm' (did you mean 'mom'?)
[[ensemble]] 2 'hard': Unknown method 'hrad' (did you mean 'hard'?)"""

def test_what_others_call_a_setting():
    "In each table that may have it; others list what they know, once"
    text = '[study]\nname = "x"\nn_epochs = 3\n[defaults]\nweight_decay = 0.1\nnum_workers = 2\n' \
        '[[run]]\nname = "a"\narch = "custom_cnn"\n[[search]]\nname = "s"\nspace = {learning_rate = [0.1,1]}'
    with pytest.raises(PlanError) as e: parse_plan(text)
    said = str(e.value).splitlines()
    places = {"[defaults]": "weight_decay wd", "[[run]] 1 'a'": "arch model",
        "[[search]] 1 's': space.learning_rate": "learning_rate lr"}
    for place,words in places.items():
        word,ours = words.split()
        assert f"  {place}: Unknown key '{word}': here it is {ours}" in said
    assert any("num_workers': images lie in memory" in o for o in said)
    known = "name, title, seed, metric, track, threads, minutes, difference, ignore"
    assert f"  [study]: Unknown key 'n_epochs'. Known: {known}" in said

def test_every_error_is_listed_with_its_place():
    "One plan, an error in each of its tables"
    text = plan_text("report")
    for right,wrong in WRONG.items(): text = text.replace(right, wrong)
    with pytest.raises(PlanError) as e: parse_plan(text, "mine.toml")
    for o in SAID.splitlines(): assert o in str(e.value), o

@pytest.mark.parametrize("name", ["demo", "fast", "long", "quick", "report", "thorough"])
def test_shipped_plans(name):
    plan = read_plan(name)
    assert name in plan_names() and plan.name==name and plan.text==plan_text(name)
    assert len(trainings(plan))==dict(demo=40, fast=4, long=6, quick=2, report=68, thorough=612)[name]
    assert all(o.cfg.epochs>=1 for o in trainings(with_options(plan, scale=.001)))
    assert plan_text(name).isascii() # readable in any terminal

SCHEMA = Path(cinic_fastai.__file__).parent/"plans"/"plan.schema.json"

def test_the_schema_in_the_package_is_what_the_types_say():
    "Where it isn't: cinic plan schema > cinic_fastai/plans/plan.schema.json"
    assert json.loads(SCHEMA.read_text(encoding="utf-8"))==plan_schema()

def unfit(schema, value):
    "What a schema for objects, lists and closed tables doesn't allow, as far as keys and choices go"
    if isinstance(value, list): return [o for v in value for o in unfit(schema.get("items", {}), v)]
    if not isinstance(value, dict) or "properties" not in schema:
        return [value] if value not in schema.get("enum", [value]) else []
    known = schema["properties"]
    missing = [k for k in schema["required"] if k not in value]
    return missing+[o for k,v in value.items() for o in (unfit(known[k], v) if k in known else [k])]

@pytest.mark.parametrize("name", plan_names())
def test_a_shipped_plan_names_its_schema_and_fits_it(name):
    assert plan_text(name).startswith("#:schema plan.schema.json\n")
    plan = tomllib.loads(plan_text(name))
    assert unfit(plan_schema(), plan)==[]
    plan["run"][0] |= dict(polcy="none", opt="adm")
    assert unfit(plan_schema(), plan)==["polcy", "adm"] or unfit(plan_schema(), plan)==["adm", "polcy"]

def test_the_report_teaches_every_field():
    "The comments of the plan that users start from name all keys"
    text = plan_text("report")
    assert [o for o in config_fields if o not in text and o!="weights"]==[] # `weights` is filled in from --weights
    assert all(k in text for d in tomllib.loads(text)["search"] for k in d)

def test_names_that_only_timm_knows():
    def plan(model): return f"[study]\nname = 'x'\n[[run]]\nname = 'a'\nmodel = '{model}'"
    assert parse_plan(plan("convnext_atto")).runs[0].settings["model"]=="convnext_atto"
    for wrong,right in (("convnext_ato", "convnext_atto"), ("resnet18.tv_in1", "resnet18.tv_in1k"),
        ("custom_cn", "custom_cnn")):
        said = f"Unknown network '{wrong}' \\(did you mean '{right}'"
        with pytest.raises(PlanError, match=said): parse_plan(plan(wrong))
    space = "[[search]]\nname = 's'\nspace = {model = {choices = ['resnet18', 'resnet81']}}"
    with pytest.raises(PlanError, match="space.model: Unknown network 'resnet81'"):
        parse_plan(f"[study]\nname = 'x'\n{space}")

def seeds(plan): return {o.name: o.settings.get("seed") for o in plan.runs}

def test_another_seed_leaves_those_that_are_stated():
    "Also where a stated seed is the study's own"
    for n in (1, 2, 7): # `fast` has `[study] seed = 1`
        found = seeds(with_options(read_plan("fast"), seed=n))
        assert found=={"speednet-1": 1, "speednet-2": 2, "speednet-3": 3, "resnet18": n}
        modern = with_options(read_plan("modern"), seed=n)
        assert len(trainings(modern))==len(trainings(read_plan("modern")))
        assert all(v==int(k.rsplit("-", 1)[1]) for k,v in seeds(modern).items())
        assert {o.settings["seed"] for o in modern.searches}=={o.seed for o in modern.searches}=={n}
        ablation = with_options(parse_plan(ablation_text(read_plan("fast"), "speednet", {}, 3)), seed=n)
        assert sorted(seeds(ablation).values())==sorted([1, 2, 3]*(len(ablation.runs)//3))
    stated = "[study]\nname = 'x'\nseed = 5\n[[run]]\nname = 'a'\nseed = 42\n[[run]]\nname = 'b'\n" \
        "[[run]]\nname = 'c'\nseed = 5\n[[search]]\nname = 's'\nseed = 5\nspace = {lr = [0.1,1]}\n" \
        "[[run]]\nname = 'd'\nfrom = 'search:s'\n[[run]]\nname = 'e'\nfrom = 'search:s'\nseed = 5"
    plan = with_options(parse_plan(stated), seed=9)
    assert seeds(plan)=={"a": 42, "b": 9, "c": 5, "d": None, "e": 5}
    assert (plan.searches[0].seed, plan.searches[0].settings["seed"])==(5, 5)
    assert with_options(with_options(parse_plan(stated), seed=9), seed=5)==parse_plan(stated)
    with pytest.raises(PlanError, match="seed belongs in \\[study\\]"):
        parse_plan("[study]\nname = 'x'\n[defaults]\nseed = 3\n[[run]]\nname = 'a'")

VOTE = "[[ensemble]]\nname = 'v'\nmethod = 'soft'\nmembers = ['a', 'b']\n"

def test_a_shift_beyond_the_images_is_refused_before_work():
    run = '[study]\nname = "s"\n[[run]]\nname = "a"\nshift = 32\n' \
        '[[search]]\nname = "b"\nspace = { shift = {int=[1,40]} }'
    counts = dict(train=500, valid=500, test=500)
    assert plan_problems(parse_plan(run), counts, 64)==[]
    assert plan_problems(parse_plan(run), counts, 32)==["[[run]] 1 'a': shift reaches 32 of the images' 32 pixels",
        "[[search]] 1 'b': shift reaches 40 of the images' 32 pixels"]
    last = run.replace("shift = 32\n", "").replace("40", "4")+"\n[[run]]\nname = 'c'\nfrom = 'search:b'\nshift = 50"
    assert plan_problems(parse_plan(last), counts, 32)==["[[run]] 2 'c': shift reaches 50 of the images' 32 pixels"]

@pytest.mark.parametrize("runs,why", [("name = 'a'\n[[run]]\nname = 'b'\n"+VOTE, "'a' and 'b' are one training"),
    # A default that is written out
    ("name = 'a'\nseed = 1\nselect = 'best'\n[[run]]\nname = 'b'\nseed = 1\n"+VOTE, "'a' and 'b' are one training"),
    ("name = 'n-1'\nseed = 3\n[[run]]\nname = 'n-2'\nseed = 3\n", "'n-1' and 'n-2' are one training"),
    ("name = 'n-1'\n[[run]]\nname = 'n-2'\nseed = 1\n", ""), # not yet
    ("name = 'a'\nseed = 1\n[[run]]\nname = 'b'\nseed = 2\n"+VOTE, ""),
    ("name = 'none'\n[[run]]\ngroup = 'other'\nname = 'resnet18'\n", "")]) # as the report's ResNet-18
def test_one_training_counts_once(runs, why):
    "Neither a vote nor a mean over seeds takes a training twice, whatever it is called, wherever its seed comes from"
    def plan(): return parse_plan(f"[study]\nname = 'x'\nseed = 9\n[[run]]\n{runs}")
    with pytest.raises(PlanError, match=why) if why else nullcontext(): plan()

def test_a_seed_that_makes_two_runs_one():
    plan = parse_plan("[study]\nname = 'x'\nseed = 9\n[[run]]\nname = 'n-1'\n[[run]]\nname = 'n-2'\nseed = 1\n")
    assert seeds(with_options(plan, seed=3))=={"n-1": 3, "n-2": 1}
    with pytest.raises(PlanError, match="'n-1' and 'n-2' are one training"): with_options(plan, seed=1)

def test_runs_that_a_scale_makes_equal():
    "Names that end in numbers needn't be seeds: only equal seeds would count twice"
    plan = parse_plan("[study]\nname = 'x'\n[[run]]\nname = 'long-10'\nepochs = 10\n"
        "[[run]]\nname = 'long-20'\nepochs = 20")
    assert [o.settings["epochs"] for o in with_options(plan, scale=.01).runs]==[1, 1]

def test_seed_and_seeds():
    with pytest.raises(PlanError, match="1 error\n.*'a': seed and seeds are both given"):
        parse_plan("[study]\nname = 'x'\n[[run]]\nname = 'a'\nseed = 5\nseeds = [1, 2]")

BOTH = "train_on = 'train+valid'\n"
HELD = "[[run]]\nname = 'c'\ntrain_on = 'train'\n[[run]]\nname = 'd'\ntrain_on = 'train'\nseed = 2\n"
LOOK = "[[search]]\nname = 's'\ntrain_on = 'train'\nspace = {lr = [0.1,1]}\n"
def voted(method, members="'a', 'b'", more=""):
    return f"[[ensemble]]\nname = 'v'\nmethod = '{method}'\nmembers = [{members}]\n{more}\n"

def trained_on_both(defaults="", more=""):
    "A plan whose runs `a` and `b` train on valid images, too"
    runs = "[[run]]\nname = 'a'\n[[run]]\nname = 'b'\nseed = 2\n"
    return f"[study]\nname = 'x'\n[defaults]\n{BOTH}{defaults}{runs}{more}"

LAST = f"[[run]]\nname = 'f'\nfrom = 'search:s'\n{BOTH}"
CHOOSES = "a search chooses by valid images"
BEST = "select = 'best' needs valid images"

@pytest.mark.parametrize("text,why", [
    (trained_on_both(more="[[search]]\nname = 's'\nspace = {lr = [0.1,1]}"), CHOOSES),
    (trained_on_both(more="[[search]]\nname = 's'\nrungs = [1]\nstrategy = 'random'\nspace = {lr = [0.1,1]}"), CHOOSES),
    (f"[study]\nname = 'x'\n[[search]]\nname = 's'\n{BOTH}space = {{lr = [0.1,1]}}", CHOOSES),
    (trained_on_both("select = 'best'\n"), BEST),
    (trained_on_both(more="select = 'best'"), BEST),
    (trained_on_both(more=LOOK+f"select = 'best'\n{LAST}"), BEST),
    *((trained_on_both(more=voted(m)), "'a' trains on valid images too") for m in ("greedy", "weighted", "hard")),
    *((trained_on_both(more=voted("soft", more=f"{t} = true")), "'b' trains on valid images too")
        for t in ("temperature", "member_temperature")),
    (trained_on_both(more=HELD+voted("greedy", "'c', 'runs/b'")), "'runs/b' trains on valid images too"),
    (trained_on_both(more=LOOK+LAST+HELD+voted("weighted", "'c', 'f'")), "'f' trains on valid images too")])
def test_nothing_is_chosen_by_images_that_are_trained_on(text, why):
    with pytest.raises(PlanError, match=why): parse_plan(text)

def test_beside_runs_that_train_on_both():
    "Choices among runs that hold valid images back stay possible, and so does a last step with what a search found"
    votes = voted("greedy", "'c', 'd'", "temperature = true")+voted("soft", "'a', 'b', 'f'").replace("'v'", "'w'")
    plan = parse_plan(trained_on_both(more=LOOK+LAST+HELD+votes))
    chosen = {o.name: run_config(plan, o, dict(lr=.5)).select for o in plan.runs}
    assert chosen==dict(a="last", b="last", f="last", c="best", d="best")
    assert {o.settings.get("train_on") for o in read_plan("long").runs}=={None, "train+valid"}
