"What counts as a difference between a notebook's stored results and new ones (`tools/check_outputs.py`)."
import sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/"tools"))
from check_outputs import blemishes, differences, read, same_text # noqa: E402 (found once its folder is)

def code_cell(*outputs, source="x"): return dict(cell_type="code", source=[source], outputs=list(outputs))
def notebook(*cells): return dict(cells=list(cells))
def printed(text, name="stdout"): return dict(output_type="stream", name=name, text=text.splitlines(True))
def result(text, **data): return dict(output_type="execute_result", data={"text/plain": [text], **data})

def differ(a, b, **kw): return differences(notebook(code_cell(*a, **kw)), notebook(code_cell(*b, **kw)))

@pytest.mark.parametrize("a,b", [
    ("0.7234", "0.7239"), ("loss 1.2345e-3", "loss 1.2351e-03"), ("99.96 %", "100.01 %"), ("0.12449", "0.12451"),
    ("1,234.5 img/s", "1,235.1 img/s"), ("tensor([0.5000, 0.2500])", "tensor([0.50001, 0.25])"),
    ("gap 3e-08", "gap -1.2e-07"),
    ("a   0.5\n──────────\nb  0.25", "a 0.50\n────\nb    0.2500"),
    (r"tiny\train\cat", "tiny/train/cat"), ("a\r\nb", "a\nb")])
def test_last_digits_and_layout_do_not_count(a, b): assert same_text(a, b)

@pytest.mark.parametrize("a,b", [
    ("0.7234", "0.7334"), ("1078 images", "1079 images"), ("1e-3", "1e-2"), ("cat", "dog"),
    ("0.5 0.25", "0.5"), ("0.5", "nan"), ("-0.5", "0.5"), ("run a1b2c3", "run a1b2c4"),
    ("resnet18", "resnet34"), ("True", "False"), ("", "x")])
def test_changes_count(a, b): assert not same_text(a, b)

def test_a_changed_result_is_told_with_both():
    message, = differ([printed("accuracy 0.653\n")], [printed("accuracy 0.712\n")], source="show(accuracy)")
    assert all(o in message for o in ("cell 0", "show(accuracy)", "0.653", "0.712"))

def test_a_varying_cell_is_left_alone():
    assert not differ([printed("3.2 s")], [printed("9.9 s")], source="#| varies: a time\nx")

def test_a_cell_without_stored_output_is_left_alone(): assert not differ([], [printed("x")])

def test_a_lost_result_is_found(): assert differ([result("1")], [])

def test_pictures_and_html_count_by_their_kind():
    def figure(png): return result("<Figure size 400x300 with 1 Axes>", **{"image/png": png})
    assert not differ([figure("iVBOR")], [figure("other")])
    assert differ([figure("iVBOR")], [result("<Figure size 400x300 with 1 Axes>")])
    def table(html, text): return result(text, **{"text/html": [html]})
    assert not differ([table("<b>1</b>", "a 0.5")], [table("<i>2</i>", "a 0.5")])
    assert differ([table("<b>1</b>", "a 0.5")], [table("<b>1</b>", "a 0.6")])

def test_warnings_do_not_count(): assert not differ([result("1")], [printed("FutureWarning", "stderr"), result("1")])

@pytest.mark.parametrize("text", ["<object at 0x7f3a5c0d2e50>", "/tmp/tmpab12/out", "in '/home/me/x'", r"C:\Users\me",
    "/private/var/x", "PosixPath('/var/folders/zz/x')", f"{root}/nbs"])
def test_addresses_and_paths_are_blemishes(text):
    assert blemishes(notebook(code_cell(result(text), source="#| varies: it")))

@pytest.mark.parametrize("text", ["out/demo/report.html", "https://x.org/home/y", "0x1f", "a/tmp/b", "runs/6f0c1a"])
def test_other_paths_are_not(text): assert not blemishes(notebook(code_cell(printed(text))))

NOTEBOOKS = sorted(f for f in (root/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts)

@pytest.mark.parametrize("f", NOTEBOOKS, ids=lambda f: f.stem)
def test_nothing_stored_is_of_one_machine(f): assert not blemishes(read(f))
