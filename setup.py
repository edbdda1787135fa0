"Package metadata, read from settings.ini, the version from the package; pyproject.toml holds only the build system and nbdev's settings."
import re
from configparser import ConfigParser
from pathlib import Path
from runpy import run_path
from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here/"settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

def lines(key): return [o.strip() for o in cfg[key].splitlines() if o.strip()]
def readme():
    "The README, its links leading to the repository"
    text = (here/"README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((?!https?:)([^)]*\.png)", rf"]({cfg['url']}/raw/main/\1", text)
    return re.sub(r"\]\((?!https?:)", f"]({cfg['url']}/blob/main/", text)

setup(
    name=cfg["lib_name"], version=run_path(str(here/"cinic_fastai"/"__init__.py"))["__version__"], description=cfg["description"], keywords=cfg["keywords"].split(),
    author=cfg["author"], license=cfg["license"], python_requires=f">={cfg['min_python']}",
    url=cfg["url"], long_description=readme(), long_description_content_type="text/markdown",
    packages=find_packages(include=["cinic_fastai", "cinic_fastai.*"]),
    package_data={"cinic_fastai": ["py.typed", "plans/*.toml", "plans/*.json", "results/*.md", "study/*.toml", "report/templates/*", "report/templates/words/*"]},
    install_requires=lines("requirements"), extras_require={k: lines(f"{k}_requirements") for k in ("dev", "docs", "dask", "ray", "onnx", "tensorboard", "wandb", "parquet", "heic")},
    entry_points={"console_scripts": ["cinic=cinic_fastai.cli:main"], "nbdev": ["cinic_fastai=cinic_fastai._modidx:d"]},
    classifiers=["Programming Language :: Python :: 3", "Programming Language :: Python :: 3 :: Only",
                 "Programming Language :: Python :: 3.11", "Programming Language :: Python :: 3.12",
                 "Programming Language :: Python :: 3.13", "Framework :: Jupyter",
                 "Intended Audience :: Science/Research", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
)
