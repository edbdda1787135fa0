"The command line in the process of the tests, where one of its own would add nothing but seconds."
import contextlib, io, sys, warnings
from typing import NamedTuple
import pytest
from conftest import ENV
from cinic_fastai.cli import main

class Ended(NamedTuple):
    "What `subprocess.run` would say"
    returncode: int
    stdout: str
    stderr: str

def cinic_here(*args, cwd=None, page=True):
    "Run `cinic`, with the environment that `cinic` in a process has; without `page` a study's page is not drawn"
    out,err = io.StringIO(),io.StringIO()
    with pytest.MonkeyPatch.context() as m, same_threads(), warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        for k,v in {**ENV, "GOMP_SPINCOUNT": "1000"}.items(): m.setenv(k, v)
        m.setattr(sys, "argv", ["cinic", *map(str, args)])
        if cwd: m.chdir(cwd)
        if not page: m.setattr("cinic_fastai.results.page.write_page", lambda *args: None)
        with pytest.raises(SystemExit) as e: main()
    return Ended(e.value.code or 0, out.getvalue(), err.getvalue())

@contextlib.contextmanager
def same_threads():
    "Give back the threads that a command takes for itself"
    before = torch.get_num_threads() if (torch := sys.modules.get("torch")) else None
    try: yield
    finally:
        if before: sys.modules["torch"].set_num_threads(before)
