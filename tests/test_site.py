"The site: its front page lists every notebook, definitions become reference, its links are checked."
import importlib.util
import re
import sys
from pathlib import Path
import pytest
import yaml

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/"tools"))
from check_links import check # noqa: E402 (found once its folder is)

SITE = ("sphinx", "myst_nb", "furo", "sphinx-mathjax-offline")
HTML = """<html><head><link rel="stylesheet" href="site.css"></head><body><h1 id="top">One</h1>
<a href="two.html">a page</a> <a href="two.html#here">an anchor</a> <a href="#top">up</a> <a href="https://example.org">away</a>
%s</body></html>"""

@pytest.fixture
def site(tmp_path):
    "Two pages whose links are right"
    (tmp_path/"site.css").write_text("p { color: red; background: url(data:image/png;base64,AA==) }", encoding="utf-8")
    (tmp_path/"two.html").write_text('<p id="here">Two</p>', encoding="utf-8")
    (tmp_path/"one.html").write_text(HTML%"", encoding="utf-8")
    return tmp_path

def test_right_links_pass(site): assert check(site)==(2, 5, [])

def test_names_become_links():
    pytest.importorskip("nbdev")
    from make_docs import linked
    names = {"mix_pair": ["m"], "Study": ["s"], "pretrained": ["n"], "draw": ["a", "b"]}
    def line(text, module="x"): return linked(text, module, names)
    assert line("A `Study`, `mix_pair()`")=="A {py:obj}`Study <s.Study>`, {py:obj}`mix_pair() <m.mix_pair>`"
    assert line("`draw`", "a")=="{py:obj}`draw <a.draw>`" and line("`pretrained`", "n")!="`pretrained`"
    code = "```\n`Study`\n```"
    for same in ("`draw`", "`pretrained`", "# `Study`", "| `mix_pair` | x |", "[`Study`](a.ipynb)", code):
        assert line(same)==same

@pytest.mark.parametrize("planted, said", [
    ('<a href="three.html">x</a>', "three.html: no such file"),
    ('<a href="two.html#there">x</a>', "two.html#there: no such anchor"),
    ('<a href="#bottom">x</a>', "#bottom: no such anchor"),
    ('<img src="missing.png">', "missing.png: no such file"),
    ('<img src="https://example.org/a.png">', "https://example.org/a.png: comes from another place"),
    ('<script src="//example.org/a.js"></script>', "//example.org/a.js: comes from another place"),
    ('<a href="/two.html">x</a>', "/two.html: starts at the server's root"),
    ('<a href="../outside.html">x</a>', "../outside.html: leaves the site"),
])
def test_broken_links_are_found(site, planted, said):
    (site/"one.html").write_text(HTML%planted, encoding="utf-8")
    assert check(site)[2]==[f"one.html: {said}"]

def test_styles_are_looked_into(site):
    (site/"site.css").write_text("@import 'https://example.org/f.css'; p { background: url(a.png) }", encoding="utf-8")
    assert check(site)[2]==["site.css: https://example.org/f.css: comes from another place",
        "site.css: a.png: no such file"]

def test_front_page_lists_every_notebook_once():
    text = (root/"docs"/"index.md").read_text(encoding="utf-8")
    trees = "\n".join(re.findall(r"^```\{toctree\}\n(.+?)^```", text, re.M|re.S))
    listed = re.findall(r"(?:^|<)(nbs/[\w./]+)>?$", trees, re.M)
    files = [p.relative_to(root) for p in (root/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    assert sorted(listed)==sorted(f.with_suffix("").as_posix() for f in files), "put new notebooks into docs/index.md"

CELL = '''#| export
class Mixer:
    "Mix pairs"
    def __init__(self,
        alpha:float=1., # Of Beta
    ): self.alpha = alpha

def mix_pair(
    x:Tensor, # Images `(bs,c,h,w)`
    how:str|None=None, # `cut` or `mix`
    **kwargs
)->Tensor: # As `x`
    "Blend images as `Mixer` says"
    return x

@patch
def mixed(self:Mixer,
    n:int # Of pairs
): "So many pairs"

def _own(): pass
'''

def test_definitions_become_reference():
    pytest.importorskip("nbdev")
    from fastcore.nbio import dict2nb, mk_cell
    from make_docs import lesson, names_of
    def notebook():
        cells = ["#| default_exp data.mix", CELL, "#| hide\nsecret = 1", "#| varies: time\nmix_pair(1)"]
        return dict2nb(dict(cells=[mk_cell("# Mixing", "markdown"), *map(mk_cell, cells)], metadata={}))
    found = lesson(notebook(), names_of([notebook()])).cells
    text = "\n".join(c.source for c in found)
    assert "py:module} cinic_fastai.data.mix" in text and "secret" not in text and "#|" not in text
    assert "{py:class} Mixer(alpha=1.0)" in text and "| `alpha` | `float` | `1.0` | Of Beta |" in text
    assert "{py:function} mix_pair(x, how=None, **kwargs) -> Tensor" in text
    assert r"| `how` | `str \| None` | `None` | `cut` or `mix` |" in text and "| *returns* | `Tensor` |" in text
    assert "{py:method} Mixer.mixed(n)" in text and "| `n` | `int` | Of pairs |" in text
    assert "{py:obj}`Mixer <cinic_fastai.data.mix.Mixer>`" in text and "py:function} _own" not in text
    assert [c.source for c in found if c.metadata.get("tags")==["hide-input"]]==["\n".join(CELL.splitlines()[1:])]

def test_workflow_pins_what_it_uses():
    jobs = yaml.safe_load((root/".github"/"workflows"/"docs.yml").read_text(encoding="utf-8"))["jobs"].values()
    uses = [s["uses"] for j in jobs for s in j["steps"] if "uses" in s]
    assert uses and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", u) for u in uses)

@pytest.mark.slow
@pytest.mark.skipif(not all(map(importlib.util.find_spec, SITE)), reason="the site's packages (docs) are not installed")
def test_site_builds(tmp_path):
    from make_docs import build
    demo = tmp_path/"report.html"
    demo.write_text("<h1>A study</h1>", encoding="utf-8")
    assert build(tmp_path/"site", demo)==0
    assert (tmp_path/"site"/"nbs"/"tutorials"/"by_hand.html").exists()
