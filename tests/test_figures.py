"What readers see in figures: many classes, and names in any script"
import io, warnings
import numpy as np, pandas as pd, pytest
from matplotlib import font_manager, rc_context
from PIL import Image
from cinic_fastai.report import render as figures
from cinic_fastai.report.facts import Figure
from cinic_fastai.report.words import say
from cinic_fastai.results.plots import style
from cinic_fastai.results.plots.predictors import plot_confusion
from cinic_fastai.results.plots.style import new_axes

def confusion(names, shares):
    "As `confusion_table` has it"
    rows = [(a, b, shares[i,j]) for i,a in enumerate(names) for j,b in enumerate(names)]
    return pd.DataFrame(rows, columns=["class", "taken_for", "share"])

def confusion_map(names, shares, height):
    "A figure of `confusion`"
    return plot_confusion(confusion(names, shares), new_axes(4.6, height)[0]).figure

def drawn(fig):
    "A figure's pixels as the page has them, RGB"
    figures.lay_out(fig)
    return np.asarray(Image.open(io.BytesIO(figures.png(fig))).convert("RGB")).astype(int)

@pytest.mark.parametrize("n", [20, 21, 101, 200])
def test_a_confusion_map_of_many_classes_shows_its_cells(n):
    "The middle of each cell has its share's colour, between the scale's ends; nothing lies over it"
    r = np.random.default_rng(n)
    shares = r.random((n,n))**8*(r.random((n,n))<.3)/4
    fig = confusion_map([f"golden_retriever_{i}" for i in range(n)], shares, 1+.27*20)
    ax = fig.axes[0]
    for o in ax.texts: o.set_visible(False) # the numbers of a small map
    x = drawn(fig)
    ends = [np.array([int(o[i:i+2], 16) for i in (1, 3, 5)]) for o in ("#F7F7F5", "#B5482A")]
    top = shares[~np.eye(n, dtype=bool)].max()
    want = ends[0]+(ends[1]-ends[0])*(shares/top)[...,None]
    at = ax.transData.transform([(j, i) for i in range(n) for j in range(n)]).round().astype(int)
    got = x[len(x)-1-at[:,1], at[:,0]].reshape(n, n, 3)
    off = abs(got-want).max(-1)[~np.eye(n, dtype=bool)]
    assert np.mean(off<=6)>.99, (np.mean(off<=6), off.max())
    box = ax.get_window_extent()
    above = x[:int(len(x)-box.y1)]
    assert above.mean()>225 and x[:,:int(box.x0)].mean()>225 # names side by side, not on top of each other
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert len(labels)<=20 and all(o.startswith("golden...") for o in labels) and ("named" in ax.get_ylabel())==(n>20)

def test_a_confusion_map_is_a_small_file():
    shares = np.random.default_rng(0).random((101,101))
    fig = confusion_map([str(i) for i in range(101)], shares, 6.4)
    figures.lay_out(fig)
    assert len(figures.svg(fig, "x"))<500_000

cat, dog = "\u732b", "\u72ac\u7c7b"

@pytest.fixture
def tiny_font(tmp_path):
    "A font of two letters, a square each, known to matplotlib for a while"
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    def square(a, b):
        pen = TTGlyphPen(None)
        pen.moveTo((a, a)); pen.lineTo((a, b)); pen.lineTo((b, b)); pen.lineTo((b, a)); pen.closePath()
        return pen.glyph()
    f = FontBuilder(1000, isTTF=True)
    letters = {ord(o): f"g{i}" for i,o in enumerate(cat+dog)}
    names = [".notdef", *letters.values()]
    f.setupGlyphOrder(names)
    f.setupCharacterMap(letters)
    f.setupGlyf({n: square(100, 900) for n in names})
    f.setupHorizontalMetrics({n: (1000, 100) for n in names})
    f.setupHorizontalHeader(ascent=900, descent=-100)
    f.setupNameTable(dict(familyName="Tiny Han", styleName="Regular"))
    f.setupOS2()
    f.setupPost()
    f.save(tmp_path/"tiny.ttf")
    font_manager.fontManager.addfont(tmp_path/"tiny.ttf")
    yield "Tiny Han"
    font_manager.fontManager.ttflist = [o for o in font_manager.fontManager.ttflist if o.name!="Tiny Han"]

def chart():
    "A figure with such names on its axes and inside"
    ax = plot_confusion(confusion([cat, dog, "bird"], np.full((3,3), 1/3)), new_axes()[0])
    with rc_context(style.STYLE): ax.text(0, 0, f"{dog} 93 %\nis: {cat}")
    return ax.figure

def texts(fig):
    return {o.get_text() for ax in fig.axes for o in (*ax.get_xticklabels(), *ax.get_yticklabels(), *ax.texts)}

def test_letters_that_no_font_has_are_numbered_and_named(monkeypatch):
    monkeypatch.setitem(style.STYLE, "font.family", ["DejaVu Sans"])
    with warnings.catch_warnings():
        warnings.simplefilter("error") # matplotlib warns of each box it draws
        made = figures.draw_figure(Figure("x", [1], lambda _: chart()))
    assert say(made, "numbered")==f"No font of this machine has these words' letters: [1] is {dog}, [2] is {cat}."
    fig = chart()
    assert style.number_words(fig)==[dog, cat]
    assert texts(fig)>={"[1]", "[2]", "bird", "[1] 93 %\nis: [2]"} and not any(cat in o or dog in o for o in texts(fig))
    figures.lay_out(fig)
    assert [o.get_text() for o in fig.axes[0].get_yticklabels()]==["[2]", "[1]", "bird"] # also once it is drawn

def test_letters_that_a_font_of_the_machine_has_are_drawn(monkeypatch, tiny_font):
    assert style.installed_fonts(("Nowhere Sans", tiny_font))==[tiny_font]
    monkeypatch.setitem(style.STYLE, "font.family", ["DejaVu Sans", tiny_font])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = figures.draw_figure(Figure("x", [1], lambda _: chart()))
        fig = new_axes(1, 1)[0].figure
        fig.axes[0].set_axis_off()
        with rc_context(style.STYLE): fig.axes[0].text(0, 0, cat, fontsize=36)
        ink = (drawn(fig).mean(-1)<128).sum()
    assert made.numbered==() and ink==pytest.approx((.8*36/72*200)**2, rel=.1) # the square

def test_fonts_that_are_installed_come_after_the_usual_one():
    "Other letters stay as they were"
    assert style.STYLE["font.family"][0]=="sans-serif" and style.STYLE["font.family"][1:]==style.installed_fonts()
