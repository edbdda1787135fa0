"The page in a real browser: nothing is asked for elsewhere, it reads on a phone, paper and in the dark, tables sort."
import re, shutil
import pandas as pd, pytest
from cinic_fastai.core import duration
from cinic_fastai.report.words import fmt_sci

sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome",
    "google-chrome-stable"))), None)
pytestmark = pytest.mark.skipif(chromium is None, reason="no Chromium on the path")

A4 = 673 # CSS pixels of its width, less the page's margins

@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=120_000)
        yield browser
        browser.close()

@pytest.fixture
def opened(browser, example):
    "Opens the page; in the end nothing was said on the console and nothing asked for but the page itself"
    said, asked, contexts, url = [], [], [], (example/"report.html").as_uri()
    def guard(route):
        if route.request.url==url: return route.continue_()
        asked.append(route.request.url)
        route.abort()
    def opening(width=1440, dark=False, folded=False, **kw):
        contexts.append(browser.new_context(viewport=dict(width=width, height=900), color_scheme="dark"
            if dark else "light", **kw))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.route("**/*", guard)
        page.goto(url)
        if not folded: page.evaluate("document.querySelectorAll('details').forEach(o => o.open = true)")
        return page
    yield opening
    for c in contexts: c.close()
    assert (said, asked)==([], [])

def luminance(rgb):
    "Relative luminance by WCAG 2"
    r,g,b = (c/12.92 if c<=.04045 else ((c+.055)/1.055)**2.4 for c in (o/255 for o in rgb))
    return .2126*r+.7152*g+.0722*b

def contrast(a, b):
    "Contrast ratio of two colours by WCAG 2"
    lo,hi = sorted(map(luminance, (a, b)))
    return (hi+.05)/(lo+.05)

def rgb(colour): return [float(o) for o in re.findall(r"[\d.]+", colour)[:3]]

def test_contrast_of_known_colours():
    assert contrast((0, 0, 0), (255, 255, 255))==pytest.approx(21)
    assert contrast((0x76,)*3, (255,)*3)==pytest.approx(4.54, abs=.01) and contrast((0x77,)*3, (255,)*3)<4.5

TEXTS = """() => {
  const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.checkVisibility();
  const paper = e => {
    const c = getComputedStyle(e).backgroundColor;
    return /, 0\\)$/.test(c) && e.parentElement ? paper(e.parentElement) : c;
  };
  const seen = e => [getComputedStyle(e).color, paper(e), e.tagName];
  const all = [...document.body.querySelectorAll("*")].filter(own).map(seen);
  return [...new Map(all.map(o => [o.join(), o])).values()];
}"""

@pytest.mark.parametrize("dark", (False, True))
@pytest.mark.parametrize("width", (390, 1440))
def test_the_page_can_be_read(opened, width, dark):
    page = opened(width, dark)
    assert page.evaluate("document.documentElement.scrollWidth")<=width
    page.evaluate("() => Promise.all([...document.images].map(o => o.decode()))") # fails where one is broken
    sizes = page.evaluate("[...document.images].map(o => [o.naturalWidth, o.getBoundingClientRect().width])")
    assert len(sizes)>20 and all(natural>0 and shown>200 for natural,shown in sizes)
    looks = page.evaluate("[...document.images].map(o => getComputedStyle(o))"
        ".map(o => `${o.filter} on ${o.backgroundColor}`)")
    assert set(looks)=={"none on rgb(255, 255, 255)"} # colours of charts are the same in the dark
    colours = page.evaluate(TEXTS)
    assert len(colours)>8 and len({paper for _,paper,_ in colours})>1
    low = [(round(contrast(rgb(c), rgb(p)), 2), c, p, tag) for c,p,tag in colours if contrast(rgb(c), rgb(p))<4.5]
    assert not low
    assert (luminance(rgb(page.evaluate("getComputedStyle(document.body).backgroundColor")))<.1)==dark

def test_readers_without_eyes_find_their_way(opened):
    page = opened()
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(o => +o.tagName[1])")
    assert levels[0]==1 and levels.count(1)==1 and all(b-a<=1 for a,b in zip(levels, levels[1:]))
    assert all(len(o)>30 for o in page.evaluate("[...document.images].map(o => o.alt)"))
    assert all(page.evaluate("[...document.querySelectorAll('th')].map(o => o.textContent.trim() && o.scope)"))

def column(page, table, i): return page.locator(f"#{table} tbody tr > :nth-child({i+1})").all_inner_texts()

def heading(page, table, name):
    "A column's number, its heading and the button in it"
    names = page.locator(f"#{table} thead th").all_inner_texts()
    th = page.locator(f"#{table} thead th").nth(names.index(name))
    return names.index(name), th, th.locator("button")

def test_tables_sort_by_click(opened):
    page = opened()
    i,th,button = heading(page, "table-augmentation", "valid")
    first = column(page, "table-augmentation", 0)
    accs = [float(o.split()[0]) for o in column(page, "table-augmentation", i)]
    for order,expected in (("descending", sorted(accs, reverse=True)), ("ascending", sorted(accs))):
        button.click()
        assert th.get_attribute("aria-sort")==order
        assert [float(o.split()[0]) for o in column(page, "table-augmentation", i)]==expected
    button.click()
    assert th.get_attribute("aria-sort") is None and column(page, "table-augmentation", 0)==first
    heading(page, "table-augmentation", "run")[2].click()
    assert column(page, "table-augmentation", 0)==sorted(first)!=first
    button.click()
    assert page.locator("#table-augmentation [aria-sort]").all_inner_texts()==["valid"]

def test_tables_sort_by_keyboard(opened):
    page = opened()
    page.locator("[aria-labelledby=table-augmentation-caption][tabindex]").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('th').textContent")=="run"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle")=="solid"
    for key,order in (("Enter", "ascending"), ("Space", "descending")):
        page.keyboard.press(key)
        assert page.locator("#table-augmentation th").first.get_attribute("aria-sort")==order
    assert column(page, "table-augmentation", 0)==sorted(column(page, "table-augmentation", 0), reverse=True)

def test_numbers_sort_as_numbers(opened, example):
    "Against the numbers that the tables are made from"
    runs, trials, controls = (pd.read_csv(example/"tables"/f"{name}.csv") for name in ("runs", "trials", "controls"))
    trials = pd.concat([trials, controls[~controls["run_id"].isin(trials["run_id"])]])
    page = opened()
    for table,name,words,numbers in (("table-runs", "time", duration, runs["seconds"]), ("table-trials",
        "learning rate", fmt_sci, trials["lr"]),
            ("table-trials", "dropout", fmt_sci, trials["dropout"]), ("table-trials", "L2", fmt_sci, trials["wd"])):
        i,_,button = heading(page, table, name)
        for ascending in (False, True):
            button.click()
            # what is missing last
            assert column(page, table, i)==[words(x) for x in numbers.sort_values(ascending=ascending)]
    assert trials["dropout"].isna().any() and trials["dropout"].notna().any()

def test_totals_stay_below(opened):
    page = opened()
    for name in ("images", "class", "Soft voting"): heading(page, "classes", name)[2].click()
    assert page.locator("#classes tr").last.locator("th").inner_text()=="total"
    assert "total" not in column(page, "classes", 0)

def test_details_are_folded_away_but_on_paper(opened):
    page = opened(folded=True)
    assert not page.locator("#table-runs").is_visible() and page.locator("#summary").is_visible()
    page.locator("#details > summary").click()
    assert page.locator("#table-runs").is_visible() and not page.locator("#table-environment").is_visible()
    page.pdf()
    assert page.locator("#table-environment").is_visible()

def test_run_ids_lead_to_their_runs(opened):
    page = opened(folded=True)
    link = page.locator("#table-final td.code a").first
    link.click()
    row = page.locator("tr:target")
    assert row.locator("code").inner_text()==link.inner_text()
    assert row.locator("xpath=ancestor::table").get_attribute("id")=="table-runs"

def test_without_javascript_nothing_is_missing(opened):
    page = opened(java_script_enabled=False, folded=True)
    assert page.locator("thead button").count()==0 and not page.locator("#hint").is_visible()
    assert "valid" in page.locator("#table-augmentation thead").inner_text()
    assert page.locator("#summary li").first.is_visible()

def test_on_paper(opened):
    page = opened(A4)
    page.emulate_media(media="print")
    wide = page.evaluate("w => [...document.querySelectorAll('table, img')]"
        ".filter(o => o.getBoundingClientRect().right > w+1).map(o => o.id || o.alt)", A4)
    assert wide==[] # or else the browser shrinks everything
    assert not page.locator("nav").is_visible() and not page.locator("#hint").is_visible()
    assert page.evaluate("[...document.querySelectorAll('.table .scroll')]"
        ".every(o => getComputedStyle(o).overflowY === 'visible')")
    # boxes stay empty where a table goes on
    buttons = page.evaluate("[...document.querySelectorAll('thead button')].map(o => getComputedStyle(o).display)")
    assert set(buttons)=={"contents"}
    assert page.pdf(prefer_css_page_size=True)[:5]==b"%PDF-"

HARM = """() => {
  const script = document.createElement("script");
  script.textContent = "window.harm = 1";
  document.body.append(script);
  const images = "<img src=data:, onerror='window.harm = 2'><img src=https://example.org/x.png>";
  document.body.insertAdjacentHTML("beforeend", images);
}"""

def test_no_other_script_runs(browser, example):
    harm, failed = [], {}
    for url in ("about:blank", (example/"report.html").as_uri()):
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.on("requestfailed", lambda request: failed.update({request.url: request.failure}))
        page.goto(url)
        page.evaluate(HARM)
        page.wait_for_timeout(1000)
        harm.append(page.evaluate("window.harm"))
        page.close()
    assert harm[0] and harm[1] is None # it would on a page without a policy
    assert failed["https://example.org/x.png"]=="csp"
