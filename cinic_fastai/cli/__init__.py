"`cinic`: the command line; importing it makes every command known"
from .app import app, main
from . import data, study, results, train

__all__ = ["app", "main", "data", "study", "results", "train"]
