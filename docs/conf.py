"The site's settings for Sphinx; `tools/make_docs.py` builds it"
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

here = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="])
config.read(here.parent/"settings.ini", encoding="utf-8")
mathjax = Path(find_spec("sphinx-mathjax-offline").origin).parent/"static"/"mathjax"/"tex-svg.js" # without fonts

project = config["DEFAULT"]["lib_name"]
author = config["DEFAULT"]["author"]
release = version = run_path(str(here.parent/"cinic_fastai"/"__init__.py"))["__version__"]
extensions = ["myst_nb", "sphinx.ext.mathjax"]
nitpicky = True # of what prose refers to; types in signatures are mostly of other packages
nitpick_ignore_regex = [("py:(class|data|exc)", ".*")]
nb_execution_mode = "off"
nb_code_prompt_show = "Source"
nb_code_prompt_hide = "Source"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
add_module_names = False
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 100
html_theme = "furo"
html_title = project
html_static_path = [str(here/"site.css"), str(mathjax)]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_copyright = False
mathjax_path = mathjax.name
