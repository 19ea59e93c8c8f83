"""Starts the processes of a stage with torchrun, as many as ``launcher`` in params.yaml asks for."""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.distributed import DistNetworkError
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.compute.device import choose_device
from pipeline.compute.distributed import started_by_torchrun
from pipeline.config import LauncherParams
from pipeline.errors import TrainingError
from pipeline.portable.text import first_line
from stages.common import ERROR_MESSAGES, only_one, run_program, stage_arguments, stage_name, stopped_by

# named, because torchrun would by default also handle signals that this process ignores
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_STDERR = "stderr.log"  # torchrun's name of the file


def run_together(stage: Callable[..., None], module: str, network: str | None = None) -> None:
    """Run a stage on params.yaml, in one process or in several; the rest as in :func:`stages.common.run_stage`.

    Args:
        module: name of the stage's program; each process runs it and reads its rank from the environment.
    """

    def program() -> None:
        params, *name = arguments = stage_arguments(network)
        device = choose_device(params.device)
        processes = _processes(params.launcher, device)
        if started_by_torchrun():
            stage(*arguments)
            return
        # several machines may share this folder, and run the stage in it together
        with only_one(stage, network) if params.launcher.machines == 1 else nullcontext():
            if processes * params.launcher.machines == 1:
                stage(*arguments)
            else:
                _start([module, *name], processes, params.launcher, device)

    run_program(program, log=stage_name(stage, network))


def _processes(launcher: LauncherParams, device: torch.device) -> int:
    if launcher.processes == "auto":
        return torch.cuda.device_count() if device.type == "cuda" else 1
    return launcher.processes


def _start(program: list[str], processes: int, launcher: LauncherParams, device: torch.device) -> None:
    """Run ``program``, a module and its arguments, in all processes of this machine; if one fails, show its error once
    and exit with its code."""
    if device.type == "cpu":
        # as many threads as cores in all processes together; torch would start that many in each
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the stage itself shows its error
    with tempfile.TemporaryDirectory(prefix="energykd-") as temporary:
        messages, logs = Path(temporary, "messages"), Path(temporary, "logs")
        messages.mkdir()
        os.environ[ERROR_MESSAGES] = str(messages)
        alone = launcher.machines == 1
        handled = [number.name for number in _END_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        config = LaunchConfig(
            min_nodes=launcher.machines,
            max_nodes=launcher.machines,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex if alone else "-".join(program),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0" if alone else str(launcher.rendezvous),
            max_restarts=0,
            monitor_interval=0.1,
            signals_to_handle=",".join(handled),
            # the first process shows its progress, the others do not
            logs_specs=DefaultLogsSpecs(str(logs), redirects=dict.fromkeys(range(1, processes), Std.ALL)),
        )
        try:
            elastic_launch(config, sys.executable)("-m", *program)
        except ChildFailedError as error:
            code = _exit_code(error)
            print(_error_message(messages, logs), file=sys.stderr)
            sys.exit(code)
        except (RendezvousError, DistNetworkError) as error:
            raise TrainingError(
                f"the machines did not meet at launcher.rendezvous {launcher.rendezvous} "
                f"({first_line(error)}); start the stage on all {launcher.machines} of them and check the address"
            ) from None
        except SignalException as error:
            print(stopped_by(error.sigval), file=sys.stderr)
            sys.exit(128 + error.sigval)
        finally:
            del os.environ[ERROR_MESSAGES]


def _exit_code(error: ChildFailedError) -> int:
    """Exit code of the process that failed; the others were then stopped by a signal."""
    codes = [failure.exitcode for failure in error.failures.values()]
    return max(codes) if max(codes) > 0 else 128 - min(codes, key=lambda code: (code == -signal.SIGTERM, code))


def _error_message(messages: Path, logs: Path) -> str:
    """Message of the first process that left one, else the standard error of the processes that are not shown."""
    left = sorted(messages.iterdir(), key=lambda path: int(path.name))
    if left:
        return f"error: {left[0].read_text(encoding='utf-8')}"
    written = "".join(path.read_text(errors="replace") for path in sorted(logs.rglob(_STDERR))).strip()
    return f"{written}\nerror: a process was stopped, perhaps for lack of memory; run the same command again to go on"
