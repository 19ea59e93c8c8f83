"""Small programs for the device's Python that need nothing there, sent within the command."""

from __future__ import annotations

import base64
import json
from typing import Any

# Must run on Python 2.7 and 3.4 too, which can then be refused in a sentence. Nothing is imported to see if it is
# there, nothing is written, and the bundle is read only while nobody measures.
PREFLIGHT = r"""
import hashlib, json, os, platform, sys, time

def importable(name):
    try:
        import importlib.util
        return importlib.util.find_spec(name) is not None
    except (AttributeError, ImportError, ValueError):
        pass
    try:
        import pkgutil
        return pkgutil.find_loader(name) is not None
    except (AttributeError, ImportError):
        return False

def text(path):
    try:
        with open(path) as file:
            return file.read()
    except (IOError, OSError):
        return None

def uptime():
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic() if hasattr(time, "monotonic") else 0.0

def locked(folder):
    import fcntl
    try:
        file = open(os.path.join(folder, "lock"), "r+")
    except (IOError, OSError):
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except (IOError, OSError):
        return True
    finally:
        file.close()

def digest(path):
    try:
        with open(path, "rb") as file:
            found = hashlib.sha256()
            for chunk in iter(lambda: file.read(1 << 20), b""):
                found.update(chunk)
            return found.hexdigest()
    except (IOError, OSError):
        return None

folder = os.path.join(os.path.expanduser("~"), P["folder"])
there = folder
while not os.path.exists(there):
    there = os.path.dirname(there)
space = os.statvfs(there)
busy = locked(folder)
bundle = os.path.join(folder, P["sha256"], "bundle.pyz")
facts = {
    "python": list(sys.version_info[:3]),
    "machine": platform.machine(),
    "modules": dict((name, importable(name)) for name in P["modules"]),
    "folder": folder,
    "writable": os.access(there, os.W_OK | os.X_OK) and os.path.isdir(there),
    "free": space.f_bavail * space.f_frsize,
    "locked": busy,
    "holder": text(os.path.join(folder, "lock.json")) if busy else None,
    "boot": (text("/proc/sys/kernel/random/boot_id") or "").strip() or None,
    "uptime": uptime(),
    "run_exists": os.path.isdir(os.path.join(folder, P["sha256"], P["run"])),
    "bundle": None if busy else digest(bundle),
}
sys.stdout.write("\nenergykd " + json.dumps(facts) + "\n")
"""

# Takes the bundle on standard input; what is not whole never gets its name.
INSTALL = r"""
import errno, glob, hashlib, json, os, sys, tempfile, time

def tell(**values):
    sys.stdout.write("\nenergykd " + json.dumps(values) + "\n")

home = os.path.join(os.path.expanduser("~"), P["folder"], P["sha256"])
partial = None
try:
    os.makedirs(home, exist_ok=True)
    for old in glob.glob(os.path.join(glob.escape(home), ".upload.*")):
        if abs(time.time() - os.path.getmtime(old)) > 3600:
            os.remove(old)
    handle, partial = tempfile.mkstemp(prefix=".upload.", dir=home)
    found, size = hashlib.sha256(), 0
    with open(handle, "wb") as file:
        for chunk in iter(lambda: sys.stdin.buffer.read(1 << 20), b""):
            file.write(chunk)
            found.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    if found.hexdigest() == P["sha256"]:
        os.replace(partial, os.path.join(home, "bundle.pyz"))
        tell(installed=size)
    else:
        tell(wrong=found.hexdigest(), received=size)
except OSError as error:
    tell(error=error.strerror or str(error), full=error.errno in (errno.ENOSPC, errno.EDQUOT))
finally:
    if partial and os.path.exists(partial):
        os.remove(partial)
    try:
        os.rmdir(home)
    except OSError:
        pass
"""

# In text, so that what login scripts write to standard output is not taken for a part of a file.
FETCH = r"""
import base64, json, os, sys

for name in P["names"]:
    path = os.path.join(os.path.expanduser("~"), P["folder"], P["sha256"], P["run"], name)
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(3 << 16), b""):
            told = json.dumps({"name": name, "piece": base64.b64encode(chunk).decode()})
            sys.stdout.write("energykd " + told + "\n")
"""


def words(script: str, **values: Any) -> list[str]:
    """Arguments that make Python run a script with ``P`` as its parameters.

    One line of letters, digits and a few signs, which every shell takes as it is once it is quoted.
    """
    program = f"import json\nP = json.loads({json.dumps(json.dumps(values))})\n{script}"
    encoded = base64.b64encode(program.encode()).decode()
    return ["-c", f"import base64; exec(base64.b64decode('{encoded}'))"]
