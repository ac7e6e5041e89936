"""A Slurm of its own on this machine, several nodes that are all this host: ``python -m tests.slurm.cluster FOLDER``.

It needs Debian's packages slurmctld, slurmd, slurm-client and munge, and root. Nothing outside its folder is written
and no port is taken that another has. Each node has two CPUs on paper and a temporary folder of its own, so that what
holds a machine while it measures holds a node.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
PATIENCE_S = 60
HELD_S = 3
SETTINGS = {
    "ClusterName": "tests",
    "SlurmUser": "root",
    "SlurmdUser": "root",
    "AuthType": "auth/munge",
    "CredType": "cred/munge",
    "AccountingStorageType": "accounting_storage/none",
    "JobAcctGatherType": "jobacct_gather/none",
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "SwitchType": "switch/none",
    "MpiDefault": "none",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_CPU",
    "SchedulerParameters": "batch_sched_delay=0,sched_interval=1",
    "SlurmdParameters": "config_overrides",  # what a node is said to have counts, not what the host has
    "ReturnToService": "2",
    "KillWait": "2",
    "MinJobAge": "600",  # what has ended can be asked for that long
}
# submitit asks `sacct` for the states of jobs, which answers only where there is a data base of accounts
SACCT = """#!{python}
import re, subprocess, sys
print("JobID|State|NodeList")
for job in [word for asked, word in zip(sys.argv, sys.argv[1:]) if asked == "-j"]:
    told = subprocess.run(["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True).stdout
    for line in told.splitlines():
        facts = dict(re.findall(r"(\\w+)=(\\S*)", line))
        task = facts.get("ArrayTaskId")
        name = facts["JobId"] if task is None else facts["ArrayJobId"] + "_" + task
        print(name, facts["JobState"], facts.get("NodeList", ""), sep="|")
"""


class Cluster:
    """A Slurm in a folder.

    Args:
        folder: for its configuration, state and logs.
        nodes: how many.
    """

    def __init__(self, folder: Path, nodes: int = 4) -> None:
        self.folder, self.nodes = folder, [f"n{number + 1}" for number in range(nodes)]
        self.daemons = list[subprocess.Popen[bytes]]()
        self.pending = dict[str, float]()  # jobs, and since when
        tools = f"{folder / 'bin'}:{os.environ['PATH']}"
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": tools}

    def start(self) -> None:
        """Start its daemons, and wait until every node is idle.

        Raises:
            TimeoutError: they do not come up; the message says where they log.
        """
        for name in ("bin", "log", "state", "munge", *(f"spool/{node}" for node in self.nodes), *self._temporary()):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._configure()
        munge = self.folder / "munge"
        self._daemon(
            "munged", "--foreground", f"--key-file={munge / 'key'}", f"--socket={munge / 'socket'}",
            f"--pid-file={munge / 'pid'}", f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}", "--force",
        )  # fmt: skip
        self._await(lambda: (munge / "socket").exists())
        self._daemon("slurmctld", "-D", "-c")
        for node in self.nodes:
            self._daemon("slurmd", "-D", "-N", node)
        self._await(lambda: set(self.ask("sinfo", "-h", "-N", "-o", "%t").split()) == {"idle"})

    def stop(self) -> None:
        """End its jobs and its daemons."""
        self.ask("scancel", "--signal=KILL", "--full", "--user=root")
        self.ask("scancel", "--user=root")
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()

    def ask(self, *command: str) -> str:
        """Return what one of Slurm's commands prints, whatever its status."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout

    def jobs(self, state: str) -> list[str]:
        """Name the jobs in a state, as ``3_1``."""
        return self.ask("squeue", "-h", "-r", "-t", state, "-o", "%i").split()

    def release(self) -> None:
        """Have jobs that Slurm holds back for two minutes, as it does once they are requeued, start soon.

        A node refuses a job that is handed out in the second in which it was taken away, so that none starts at once.
        """
        now = time.monotonic()
        self.pending = {job: self.pending.get(job, now) for job in self.jobs("PENDING")}
        for job, since in self.pending.items():
            if now - since > HELD_S:
                self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    def idle(self) -> bool:
        """Whether no job is left; a Slurm that does not answer does not say so."""
        asked = subprocess.run(["squeue", "-h"], env=self.environment, capture_output=True, text=True)
        return asked.returncode == 0 and not asked.stdout

    def _temporary(self) -> list[str]:
        return [f"tmp/{node}" for node in self.nodes]

    def _configure(self) -> None:
        host, folder = socket.gethostname().split(".")[0], self.folder
        ports = free_ports(1 + len(self.nodes))
        places = {
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": str(ports[0]),
            "AuthInfo": f"socket={folder / 'munge' / 'socket'}",
            "StateSaveLocation": str(folder / "state"),
            "SlurmdSpoolDir": str(folder / "spool" / "%n"),
            "SlurmctldPidFile": str(folder / "slurmctld.pid"),
            "SlurmdPidFile": str(folder / "slurmd-%n.pid"),
            "SlurmctldLogFile": str(folder / "log" / "slurmctld"),
            "SlurmdLogFile": str(folder / "log" / "slurmd-%n"),
            "TaskProlog": str(folder / "bin" / "prolog"),
        }
        lines = [f"{name}={value}" for name, value in (SETTINGS | places).items()]
        for node, port in zip(self.nodes, ports[1:], strict=True):
            lines.append(f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000")
        lines.append(f"PartitionName=all Nodes={','.join(self.nodes)} Default=YES State=UP")
        lines.append(f"PartitionName=other Nodes={','.join(self.nodes)} State=UP")
        (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        (folder / "munge" / "key").write_bytes(secrets.token_bytes(1024))
        (folder / "munge" / "key").chmod(stat.S_IRUSR)
        tool(folder / "bin" / "prolog", f'#!/bin/sh\necho "export TMPDIR={folder}/tmp/$SLURMD_NODENAME"\n')
        tool(folder / "bin" / "sacct", SACCT.format(python=sys.executable))

    def _daemon(self, *command: str) -> None:
        name = "-".join(word for word in command if word.isalnum())
        with (self.folder / "log" / f"{name}.out").open("wb") as log:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL,
                                                 stdout=log, stderr=log, start_new_session=True))  # fmt: skip

    def _await(self, there: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not there():
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self.daemons):
                raise TimeoutError(f"Slurm does not come up; {self.folder / 'log'} says why")
            time.sleep(0.2)


def there_is_slurm() -> bool:
    """Whether this machine has all that a Slurm of one's own needs."""
    return all(shutil.which(name) for name in NEEDED) and os.getuid() == 0


def tool(path: Path, text: str) -> None:
    """Write a script."""
    path.write_text(text)
    path.chmod(0o755)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.cluster", description="Run a Slurm until interrupted.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=4)
    arguments = parser.parse_args()
    cluster = Cluster(arguments.folder.absolute(), arguments.nodes)
    try:
        cluster.start()
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']} PATH={cluster.folder / 'bin'}:$PATH", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
