"""A real Slurm on this machine: its controller, and two nodes of one CPU each."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

CONFIGURED = Path("/etc/slurm/slurm.conf")  # a job of a job looks there alone
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=5
SlurmctldPort=16817
SlurmctldPidFile={place}/slurmctld.pid
SlurmctldLogFile={place}/slurmctld.log
StateSaveLocation={place}/state
SlurmdPidFile={place}/slurmd-%n.pid
SlurmdLogFile={place}/slurmd-%n.log
SlurmdSpoolDir={place}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
SlurmdTimeout=10
KillWait=2
MinJobAge=3600
SchedulerParameters=sched_min_interval=200000
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=17001 CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=17002 CPUs=1 RealMemory=4000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """What keeps a Slurm from being brought up here; empty where nothing does."""
    if "PRUNING_TEST_SLURM" not in os.environ:
        return "'make test-cluster' runs it"
    lacking = [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]
    if lacking:
        return f"{', '.join(lacking)} not installed: apt-get install --no-install-recommends slurm-wlm munge"
    if os.geteuid() != 0:
        return "bringing Slurm's daemons up needs root"
    if CONFIGURED.exists():
        return f"{CONFIGURED} is there: this machine has a Slurm of its own"
    return ""


def said(*command: str) -> str:
    """What one of Slurm's commands prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def until(holds, seconds: float = 180.0, what: str = "") -> None:
    """Wait until a call says that something holds; the test fails where it does not in time."""
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, (
            f"{what or holds.__name__}: not within {seconds:.0f} s\n{said('squeue', '--long')}"
        )
        time.sleep(0.1)


def node(place: Path, name: str) -> None:
    """Start a node's daemon."""
    (place / f"spool-{name}").mkdir(exist_ok=True)
    subprocess.run(["slurmd", "-N", name], check=True, timeout=60)


def daemons(place: Path) -> None:
    """Start all daemons, and wait for both nodes."""
    host = said("hostname", "-s").strip()
    for folder in (place, *place.parents[:3]):
        folder.chmod(0o755)  # munged is another user
    (place / "state").mkdir()
    (place / "munge.key").write_bytes(os.urandom(128))
    (place / "munge.key").chmod(0o600)
    shutil.chown(place, "munge")
    shutil.chown(place / "munge.key", "munge")
    CONFIGURED.parent.mkdir(parents=True, exist_ok=True)
    CONFIGURED.write_text(CONFIGURATION.format(place=place, host=host))
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={place}/munge.{ending}" for option, ending in files.items()]
    subprocess.run(["runuser", "-u", "munge", "--", "munged", *options], check=True, timeout=60)
    subprocess.run(["slurmctld"], check=True, timeout=60)
    for name in ("n1", "n2"):
        node(place, name)
    until(lambda: said("sinfo", "-h", "-N", "-t", "idle").count("\n") == 2, 60, "two idle nodes")


def down(place: Path) -> None:
    """Stop all daemons and jobs."""
    subprocess.run(["scancel", "--me", "--signal=KILL"], check=False, timeout=60)
    for path in (*place.glob("slurmd-*.pid"), place / "slurmctld.pid", place / "munge.pid"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(path.read_text()), signal.SIGTERM)
    CONFIGURED.unlink(missing_ok=True)
