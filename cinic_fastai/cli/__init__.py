"`cinic`: the command line; importing it makes every command known"
from .app import app, main # noqa: F401
from . import data, plan, study, train, use # noqa: F401
