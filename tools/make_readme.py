"Write README.md from nbs/index.ipynb: markdown cells as they are, code cells as code."
import posixpath, re
from pathlib import Path
from fastcore.nbio import read_nb

root = Path(__file__).resolve().parents[1]

def cell_text(
    cell # A notebook cell
)->str: # Markdown, empty for cells marked `#| hide`
    "One cell as markdown"
    source = cell.source.strip()
    if cell.cell_type=="markdown": return source
    if source.startswith("#| hide") or source.startswith("#| default_exp"): return ""
    code = "\n".join(l for l in source.splitlines() if not l.startswith("#|"))
    return f"```python\n{code}\n```"

def from_root(
    text:str # Markdown of a notebook in nbs/
)->str: # The same, with links as they are from the repository's root
    "Links that lead to the same files from one folder higher"
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", lambda m: f"]({posixpath.normpath('nbs/'+m[1])})", text)

def readme(
    nb:Path=root/"nbs"/"index.ipynb" # The notebook the README is made from
)->str: # Markdown
    "README.md as the notebook says it"
    note = "<!-- Made from nbs/index.ipynb by tools/make_readme.py (make readme); edit there. -->"
    texts = [from_root(cell_text(c)) for c in read_nb(nb).cells]
    return "\n\n".join([note, *(t for t in texts if t)])+"\n"

if __name__=="__main__":
    (root/"README.md").write_text(readme(), encoding="utf-8")
    print("README.md written.")
