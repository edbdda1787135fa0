"The net: run ids, points and tables are what they were before the rebuilding (`tools/net.py` freezes and compares)."
import importlib.util, json
from pathlib import Path
import pytest

_spec = importlib.util.spec_from_file_location("net", Path(__file__).resolve().parents[1]/"tools"/"net.py")
net = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(net)

TABLES = sorted(f.stem for f in (net.NET/"tables").glob("*.csv"))

def test_run_ids(): assert net.ids()==json.loads(net.frozen("ids.json"))

def same(a, b): return a==(pytest.approx(b, rel=1e-6) if isinstance(b, float) else b)

def test_points():
    "Random and grid points anywhere; a surrogate's only beside the libraries they were frozen with"
    there, here = json.loads(net.frozen("points.json")), net.points()
    beside = net.environment()==json.loads(net.frozen("environment.json"))
    assert list(there)==list(here)
    for name,kw in net.SEARCHES.items():
        n = None if beside or kw.get("strategy") else kw["random"]+len(kw.get("start", ()))
        assert len(there[name])==len(here[name])
        for a,b in zip(there[name][:n], here[name][:n]): assert all(same(a[k], b[k]) for k in {**a, **b})

@pytest.fixture(scope="module")
def found(tmp_path_factory): return net.tables(net.study_folder(tmp_path_factory.mktemp("net")))

def test_no_table_is_missing(found): assert {*TABLES}<={*found}

@pytest.mark.parametrize("name", TABLES)
def test_table(found, name): assert not net.table_error(name, net.frozen(f"tables/{name}.csv"), found[name])
