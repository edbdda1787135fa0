"""Check the links of a built site: pages, anchors, pictures, scripts, styles

    python tools/check_links.py _docs

Links that stay on the site have to lead to a file, and to an anchor where they name one. Others are not followed, but
nothing that a page needs to be shown (pictures, scripts, styles, fonts) may come from another place.
"""
import re, sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHOWN_WITH = {("img", "src"), ("script", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
NEVER_SHOWN = {"canonical", "next", "prev", "author", "license"} # kinds of `<link>` that load nothing
IN_CSS = re.compile(r"""url\(\s*['"]?([^'")]+)|@import\s+['"]([^'"]+)""")

@dataclass
class Page(HTMLParser):
    "What a page links to, and what can be linked to in it"
    links:list = field(default_factory=list) # `(tag, attribute, address)`
    anchors:set = field(default_factory=set)

    def __post_init__(self): HTMLParser.__init__(self)

    def handle_starttag(self, tag, attrs):
        own = dict(attrs)
        self.anchors |= {own[k] for k in ("id", "name") if own.get(k)}
        if tag=="link" and set((own.get("rel") or "").split())&NEVER_SHOWN: return
        self.links += [(tag, k, own[k]) for k in ("href", "src") if own.get(k)]

    handle_startendtag = handle_starttag

def read_page(
    file:Path # HTML
)->Page: # Parsed
    "A page's links and anchors"
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page

def is_elsewhere(address): return bool(urlsplit(address).scheme or address.startswith("//"))

def fault(
    file:Path, # Page
    link:tuple, # `(tag, attribute, address)` of it
    pages:dict, # Every page of the site by its file
    site:Path # Folder of the site
)->str: # Empty where there is none
    "What is wrong with a link"
    tag, attribute, address = link
    if address.startswith(("data:", "blob:")): return ""
    if is_elsewhere(address): return "comes from another place" if (tag, attribute) in SHOWN_WITH else ""
    parts = urlsplit(address)
    target = (file.parent/unquote(parts.path)).resolve() if parts.path else file
    if parts.path.startswith("/"): return "starts at the server's root"
    if target.is_dir(): target = target/"index.html"
    if not target.is_relative_to(site): return "leaves the site"
    if not target.is_file(): return "no such file"
    if not parts.fragment or target not in pages: return ""
    return "" if unquote(parts.fragment) in pages[target].anchors else "no such anchor"

def style_faults(
    file:Path # CSS
)->list[str]: # A line each
    "What a style sheet takes from elsewhere, or doesn't find"
    out = []
    for found in IN_CSS.findall(file.read_text(encoding="utf-8")):
        address = (found[0] or found[1]).strip()
        if address.startswith(("data:", "#")): continue
        if is_elsewhere(address): out.append(f"{address}: comes from another place")
        elif not (file.parent/urlsplit(address).path).is_file(): out.append(f"{address}: no such file")
    return out

def check(
    site:Path # Folder of HTML files
)->tuple[int, int, list[str]]: # Pages, links looked at, a line for each broken link
    "Look at every link of every page"
    site = site.resolve()
    pages = {f: read_page(f) for f in sorted(site.rglob("*.html"))}
    broken = []
    for file,page in pages.items():
        faults = {link[2]: fault(file, link, pages, site) for link in page.links}
        broken += [f"{file.relative_to(site)}: {address[:120]}: {what}" for address,what in faults.items() if what]
    for file in sorted(site.rglob("*.css")): broken += [f"{file.relative_to(site)}: {o}" for o in style_faults(file)]
    return len(pages), sum(len(p.links) for p in pages.values()), broken

def report(
    site:Path # Folder of HTML files
)->int: # Number of broken links
    "Print what was looked at and what is broken"
    pages, links, broken = check(site)
    for o in broken: print(o)
    size = sum(f.stat().st_size for f in site.rglob("*") if f.is_file())/1e6
    print(f"{pages} pages, {links:,} links, {len(broken)} broken, {size:.1f} MB: {site}")
    return len(broken)

if __name__=="__main__": sys.exit(bool(report(Path(sys.argv[1]))))
