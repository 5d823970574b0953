"""The first process of a container: ``python -IS contain.py SPEC``, started by ``unshare`` in new namespaces.

Builds the root that the service sees, waits until its network is there, gives up what the service may not have, and
becomes its command, or with ``init`` the parent of it. Only the standard library: it runs before anything is mounted.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

BIND, REC, REMOUNT, RDONLY = 4096, 16384, 32, 1  # linux/mount.h
PDEATHSIG, NO_NEW_PRIVS, CAPBSET_DROP, LAST = 1, 38, 24, 40  # linux/prctl.h, linux/capability.h
LIBC = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Call mount(2)."""
    words = [word.encode() or None for word in (source, target, kind)]
    if LIBC.mount(*words, ctypes.c_ulong(flags), data.encode() or None) != 0:
        raise OSError(ctypes.get_errno(), f"mount {source} at {target}: {os.strerror(ctypes.get_errno())}")


def build(root: str, spec: dict[str, Any]) -> None:
    """Mount an empty root and in it the system's programs, and what the service mounts."""
    mount("root", root, "tmpfs", 0, "mode=755")
    for name in ("bin", "sbin", "lib", "lib64"):
        if Path("/", name).is_symlink():
            Path(root, name).symlink_to(Path("/", name).readlink())
        elif Path("/", name).is_dir():
            bind(f"/{name}", f"{root}/{name}", True)
    for path in ("/usr", "/etc"):
        bind(path, root + path, True)
    Path(root, "dev").mkdir()
    mount("/dev", f"{root}/dev", "", BIND | REC)
    Path(root, "proc").mkdir()
    mount("proc", f"{root}/proc", "proc")
    for path in spec["tmpfs"]:
        Path(root + path).mkdir(parents=True, exist_ok=True)
        mount("tmpfs", root + path, "tmpfs", 0, "mode=1777")
    for source, target, read_only in spec["binds"]:
        bind(source, root + target, read_only)
    if spec["read_only"]:
        mount("", root, "", REMOUNT | RDONLY, "mode=755")


def bind(source: str, target: str, read_only: bool) -> None:
    """Show a file or a directory at another path."""
    if Path(source).is_dir():
        Path(target).mkdir(parents=True, exist_ok=True)
    elif not Path(target).exists():
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).touch()
    mount(source, target, "", BIND | REC)
    if read_only:
        mount("", target, "", BIND | REMOUNT | RDONLY)


def confine(spec: dict[str, Any]) -> None:
    """Drop capabilities and root, as the service declares."""
    if spec["no_capabilities"]:
        for capability in range(LAST + 1):
            LIBC.prctl(CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([])
    os.setresgid(*[spec["gid"]] * 3)
    os.setresuid(*[spec["uid"]] * 3)
    LIBC.prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # again: another user forgets what unshare asked for
    if spec["no_new_privileges"]:
        LIBC.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)


def run(spec: dict[str, Any]) -> None:
    """Replace this process by the command."""
    os.execvpe(spec["command"][0], spec["command"], spec["environment"])


def start(spec: dict[str, Any]) -> None:
    """Start the command, pass signals on, bury what ends, and end as it ends."""
    child = os.fork()
    if child == 0:
        run(spec)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(child, number))
    ended, status = os.wait()
    while ended != child:
        ended, status = os.wait()
    sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


def main(file: str) -> None:
    """Become a container."""
    spec = json.loads(Path(file).read_text())
    os.umask(0o022)
    build(spec["root"], spec)
    LIBC.sethostname(spec["hostname"].encode(), len(spec["hostname"]))
    if not sys.stdin.buffer.read(1):
        sys.exit("no network")
    os.chroot(spec["root"])
    os.chdir(spec["directory"])
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.environ["PATH"] = spec["environment"]["PATH"]  # where execvpe looks
    confine(spec)
    (start if spec["init"] else run)(spec)


if __name__ == "__main__":
    main(*sys.argv[1:])
