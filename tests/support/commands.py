"""The command line in a process of its own, and whether that has ended."""

import json
import os
import subprocess
import sys
from pathlib import Path


def stepscale(
    cwd: Path, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stepscale.bench", *arguments]
    whole = os.environ | (environment or {})
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=whole)


def group_lives(group: int) -> bool:
    """Whether a process of the group still runs; one that has ended and waits to be reaped does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, its_group = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False


FORKING = """
import json, os, sys
import stepscale.bench.cli.cell
from stepscale.bench import __main__
for line in sys.stdin:
    folder, arguments = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        said = os.open("said", os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1), os.dup2(said, 2)
        sys.argv = ["stepscale", *arguments]
        sys.exit(__main__.main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forking:
    """Runs the command line in forks of one process that has loaded torch: a tenth of a start's time each."""

    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", FORKING], text=True, **pipes)  # type: ignore[call-overload]

    def __call__(self, cwd: Path, *arguments: str) -> tuple[int, str]:
        """Return the exit status and what was said on both streams."""
        self.process.stdin.write(json.dumps([str(cwd), arguments]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()), (cwd / "said").read_text()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
