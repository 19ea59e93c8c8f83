"""Stands for Slurm: its commands as scripts that run each job of an array as a process of this machine.

They take what submitit asks for and know no limits: all jobs of an array start at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

_SBATCH = """
import os, re, subprocess, sys
from pathlib import Path

here, script = Path(__file__).parent, Path(sys.argv[1]).resolve()
(here / "asked.sh").write_text(script.read_text())
array = re.search(r"--array=0-(\\d+)%\\d+", script.read_text())
for index in range(int(array[1]) + 1 if array else 1):
    job = f"7_{index}" if array else "7"
    which = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(index)} if array else {}
    again = here / f"requeued_{job}"
    command = f"while true; do bash {script}; rm {again} 2> {os.devnull} || break; done; touch {here}/ended_{job}"
    closed = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)  # submitit reads ours to their end
    subprocess.Popen(["bash", "-c", command], env=os.environ | {"SLURM_JOB_ID": job} | which, **closed)
print("Submitted batch job 7")
"""
_SRUN = """
import os, sys
from pathlib import Path

given = sys.argv[1:]
output = given[given.index("--output") + 1]
for sign, name in {"%A": "SLURM_ARRAY_JOB_ID", "%a": "SLURM_ARRAY_TASK_ID", "%j": "SLURM_JOB_ID"}.items():
    output = output.replace(sign, os.environ.get(name, ""))
log = os.open(output.replace("%t", "0"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1), os.dup2(log, 2)
command = given[given.index("--output") + 2 :]
os.execvp(command[0], command)
"""
_SCONTROL = """
import sys
from pathlib import Path

(Path(__file__).parent / f"requeued_{sys.argv[2]}").touch()
"""
_SACCT = """
from pathlib import Path

print("JobID|State|NodeList")
for path in Path(__file__).parent.glob("ended_*"):
    print(f"{path.name.removeprefix('ended_')}|COMPLETED|here")
"""


def write_commands(folder: Path) -> Path:
    """The commands in a folder for PATH; ``asked.sh`` in it will hold what sbatch was given last."""
    folder.mkdir()
    for name, code in {"sbatch": _SBATCH, "srun": _SRUN, "scontrol": _SCONTROL, "sacct": _SACCT}.items():
        path = folder / name
        path.write_text(f"#!{sys.executable}\n{code}")
        path.chmod(0o755)
    return folder
