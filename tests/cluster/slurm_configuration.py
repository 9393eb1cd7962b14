"""What SLURM is told about a cluster: slurm.conf, gres.conf, cgroup.conf."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

NETWORK = "10.77.0"  # exists only inside the namespaces
NODE_TIMEOUT_S = 6  # after which SLURM gives up a node whose daemon is silent

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}({network}.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge/munge.sock,cred_expire=5
CredType=cred/munge
# No cgroups, no affinity; what is said below counts, not the hardware.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
StateSaveLocation={home}/state
SlurmctldPidFile={home}/slurmctld.pid
SlurmctldLogFile={home}/log/slurmctld.log
SlurmdSpoolDir={home}/spool/%n
SlurmdPidFile={home}/slurmd.%n.pid
SlurmdLogFile={home}/log/slurmd.%n.log
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,\
bf_window=60,bf_min_age_reserve=0,requeue_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
CompleteWait=0
MinJobAge=600
SlurmctldTimeout=30
SlurmdTimeout={node_timeout_s}
MessageTimeout=5
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=2
"""


def write_configuration(home: Path, addresses: Mapping[str, str]) -> None:
    """Write what SLURM reads about these nodes into `home`."""
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={node} NodeAddr={address} CPUs=2 "
        "RealMemory=4000 Gres=gpu:2 State=UNKNOWN"
        for node, address in addresses.items()
    )
    text = CONFIGURATION.format(
        host=socket.gethostname().partition(".")[0], home=home, network=NETWORK,
        nodes=nodes, node_timeout_s=NODE_TIMEOUT_S,
    )  # fmt: skip
    (home / "slurm.conf").write_text(text)
    # Pretended GPUs: SLURM wants device files, and only sets variables.
    gres = f"NodeName={','.join(addresses)} Name=gpu File=/dev/tty[0-1]\n"
    (home / "gres.conf").write_text(gres)
    # A namespace's own /sys has no cgroups: a named plugin keeps slurmd from looking for them.
    (home / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
