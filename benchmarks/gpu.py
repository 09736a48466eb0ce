"""What a CUDA GPU is to show, in parts: ``gpu.py [GROUP or PART ...]``, by default all of them.

Nothing stops the next part: each has a limit of time, and after each ``$OUT/summary.md`` (OUT: by default runs/gpu) is
written anew, beside a log, and rows from which a part that was broken off goes on. Groups 1, 2 and 3 take at most nine
minutes each: does it work, the goals, the rest. The others take hours; ``pack`` after them makes files of directories.

PEER_PATH: directory with arcface_torch's code, measured beside ours. REHEARSAL=1: sizes for an emulated device.
``make gpu-bundle`` before, for a machine without network and .git.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(os.environ.get("OUT", ROOT / "runs" / "gpu")).resolve()
BUNDLE, PICTURES = ROOT / "build" / "gpu-bundle", "build/gpu-pictures"  # the latter is told by rows
PEER, REHEARSAL = os.environ.get("PEER_PATH", ""), os.environ.get("REHEARSAL") == "1"
HEAD = "head --batch-size 1024 --precision bf16 --sample-rate 1,0.1"
SHARE = f"{HEAD} --simulate-ranks 8"  # of one of 8 ranks: 10 M x 512 of 80 M classes
BESIDE = f"{SHARE} --peer arcface_torch --peer-path '{PEER}'" if PEER else "echo left out: no PEER_PATH for"
FACES = "train --recipe faces_r50 --dtype bfloat16 --backbone iresnet50,iresnet100 --num-classes 618K"
PHOTOS = "train --recipe resnet50_imagenet --dtype bfloat16"
WAYS = "--one-at-a-time --set speed.compile=none,blocks,whole --set speed.cuda_graphs=true,false"
LAYOUT = "--set precision.channels_last=true,false"
MORE = "--set precision.tf32=true,false --set head.kernels=auto,torch --set model.checkpoint_activations=true,false"
NCU = "ncu --clock-control none --kernel-id ::regex:unit|pass|catch:3"  # the third launch of each
DRAW = "import sys, pathlib as p, megaclass.bench.photographs as m; m.write_images(p.Path(sys.argv[1]), "
DRAW += "sys.argv[2], int(sys.argv[3]), threads=16)"
SPILLS = f"for p in {'bf16' if REHEARSAL else 'bf16 tf32 fp32'}; do for s in fp32 bf16 int8_rowwise; do "
SPILLS += f"echo $p $s 0.1; done; done | xargs -n 3 -P 9 {sys.executable} tests/cuda/compiled.py 90 512"
TIMES = "python benchmarks/kernel_times.py"

# Group, name, limit in seconds, and a command, which begins with a benchmark of ours or a program.
TABLE = f"""
1 card 10 nvidia-smi
1 ceilings 40 {TIMES} ceilings
1 kernels 150 python -m pytest tests/cuda/test_kernels.py tests/cuda/test_heads.py -n 8
1 times 100 {TIMES} times --rows 1M,10M
1 ncu 60 {NCU} {TIMES} launches
1 spills 60 sh -c '{SPILLS}'
1 rest 120 python -m pytest tests/cuda -n 8 -m 'not gpu' --ignore-glob '*/test_[hk]e*.py'
2 head 120 {SHARE} --num-classes 80M --storage fp32,bf16 --steps 5
2 beside 110 {BESIDE} --num-classes 32M,16M --steps 5
2 faces 170 {FACES} -b 1024 -i 20 -e 3
2 photographs 60 {PHOTOS} -b 256 -i 20 -e 3
2 profile 80 {TIMES} profile --rows 10M
3 compiled 240 python -m pytest tests/cuda -m gpu
3 blocks 55 {PHOTOS} -b 256 -i 10 -e 3 --set speed.compile=none,blocks
3 graphs 30 {PHOTOS} -b 256 -i 10 -e 3 --speed.compile none --set speed.cuda_graphs=true,false
3 layout 30 {PHOTOS} -b 256 -i 10 -e 3 --speed.compile none {LAYOUT}
3 infer 60 infer -b 1,256 --dtype float16 --engine eager,compiled,cudagraph,onnx
3 pictures 15 sh -c 'rm -rf {PICTURES}; {sys.executable} -c "{DRAW}" {PICTURES} photograph {16 if REHEARSAL else 2000}'
3 stall 40 {PHOTOS} -b 256 -i 20 -e 3 --data-root {PICTURES}/records
3 int8 35 {SHARE} --num-classes 80M --storage int8_rowwise --steps 5
3 largest 35 {HEAD} --num-classes 100M --storage int8_rowwise --steps 5
long faces-all 7200 {FACES},2M --sample-rate 1,0.1 -b 1024 -i 50 -e 6
long photographs-peer 1800 {PHOTOS} -b 256 -i 50 -e 6 --peer pytorch
long ranks 3600 {FACES} --sample-rate 0.1 -b 128 --simulate-ranks 1,2,8,64 -i 50 -e 6
long ways-faces 3600 {FACES} -b 128 -i 50 -e 6 {WAYS} {LAYOUT} {MORE}
long ways-photographs 3600 {PHOTOS} -b 128 -i 50 -e 6 {WAYS} {LAYOUT}
long infer-all 1800 infer -b 1,8,64,256 --dtype float16,bfloat16 --engine eager,compiled,cudagraph
long loader 900 loader --workload faces,imagenet --batch-size 256 --rounds 7
long sizes 3600 {HEAD} --num-classes 77K,1M,10M --storage bf16
long shares 3600 {SHARE} --num-classes 80M --storage fp32,bf16,int8_rowwise
long peers 3600 {BESIDE} --num-classes 8M,16M,32M,80M
suites suite-whole 900 suite arcface-a100 --fit --minutes 6 --whole-job
"""
for suite in ("arcface-a100", "partial-fc-v100", "arcface-rtx3080", "resnet50-nvidia", "resnet50-abci"):
    TABLE += f"suites suite-{suite} 900 suite {suite} --fit --minutes 6\n"
TABLE += f"long pack 60 sh -c 'cd {OUT} && for one in */; do tar cf ${{one%/}}.tar $one && rm -r $one; done'"
PARTS = [line.split(maxsplit=3) for line in TABLE.strip().splitlines()]
GROUPS = {part[0]: [name for group, name, *_ in PARTS if group == part[0]] for part in PARTS}
LISTED = "".join(f"\n  {group}: {' '.join(names)}" for group, names in GROUPS.items())
# What a rehearsal says last, so that it counts; by a word of the command.
SMALL = {
    "head": "--num-classes 2K --batch-size 16 --steps 2 --warmup 1",
    "train": "-b 4 -i 1 -e 2 --image-size 32",
    "faces_r50": "--num-classes 400 --model.width 16",
    "infer": "-b 1 -i 2 --image-size 32",
    "loader": "--images 8 --batch-size 4 --batches 2 --rounds 2",
    "suite": "--minutes 0.1",
    "benchmarks/kernel_times.py": "--rows 200 --batch 8 --image-size 32",
    "pytest": "-n 2",
}
SKIPPED, BEGUN = (
    r"^(left out: |\d+ skipped)",
    r"\d passed|case 1 of",
)  # what tests and benchmarks say of all or of one
ENDS = {124: ", its limit", 137: ", its limit", 127: ", no such program"}
# Programs, NCCL, compiler and graphs, which an emulated device does not have.
NEED_GPU = ("card", "ncu", "beside", "compiled", "blocks", "graphs", "infer")


def words_of(name: str, command: str, gpu: str = "gpu") -> list[str]:
    first = command.split()[0]
    if first in ("head", "train", "infer", "loader", "suite"):
        rows = OUT / (f"{name}-{gpu}" if first == "suite" else f"{first}-{gpu}.jsonl")
        command = f"python -m megaclass bench {command} --device cuda --output {shlex.quote(str(rows))}"
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    return words + " ".join(SMALL[word] for word in words if REHEARSAL and word in SMALL).split()


def run(words: list[str], limit_s: str) -> tuple[int, list[str]]:
    """Exit status and lines, which the log has, too."""
    with (OUT / "log").open("ab+") as log:
        log.write(f"\n==== {shlex.join(words)}\n".encode())
        log.flush()
        start, words = log.tell(), ["timeout", "--foreground", "-s", "INT", "-k", "5", limit_s, *words]
        done = subprocess.run(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
        log.seek(start)
        return done.returncode, log.read().decode(errors="replace").rstrip().splitlines()


def surroundings() -> tuple[str, str]:
    """Sets the variables of the parts. Returns the name of the GPU, and of the source."""
    paths = [os.environ.get("PYTHONPATH", ""), str(ROOT / "src"), str(ROOT / "tests")]
    os.environ |= {"COLUMNS": "160", "PYTHONUNBUFFERED": "1"}
    if (BUNDLE / "revision").exists():
        os.environ["MEGACLASS_REVISION"] = (BUNDLE / "revision").read_text().strip()
        paths += [str(BUNDLE)] * (importlib.util.find_spec("simplejpeg") is None)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    facts = """
import torch
from megaclass.results.machine import snapshot
found = snapshot()
print((found["gpu"] or "gpu") if torch.cuda.is_available() else "", found["revision"], sep="|")
"""
    found = subprocess.check_output([sys.executable, "-c", facts], text=True)
    gpu, _, revision = found.strip().partition("|")
    return gpu.lower().removeprefix("nvidia ").replace(" ", "-"), revision


def main(asked: list[str]) -> int:
    """1 where a part has failed, but for those of which a rehearsal says nothing."""
    known = {key: [part for part in PARTS if key in part[:2]] for part in PARTS for key in part[:2]}
    if unknown := sorted({*asked} - {*known}):
        print(f"gpu.py: no group or part {unknown[0]}; known, by group:{LISTED}", file=sys.stderr)
        return 2
    (gpu, revision), failed, ends = surroundings(), 0, [""]
    if not gpu:
        advice = "`make gpu-rehearsal` runs it on an emulated one, with a CPU build of PyTorch"
        print(f"gpu.py: PyTorch sees no CUDA GPU; {advice}", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    table = [
        f"# {'Rehearsal on ' * REHEARSAL}{gpu}, {revision}, {time.strftime('%Y-%m-%d %H:%M')}\n",
        "|part|how it ended|s, limit|last line|",
        "|-|-|-|-|",
    ]
    chosen = [part for word in asked for part in known[word]] if asked else PARTS[:-1]
    for _, name, limit_s, command in chosen:
        (OUT / "summary.md").write_text("\n".join([*table, f"|{name}|runs|||", *ends]))
        begin = time.monotonic()
        status, said = run(words_of(name, command, gpu), limit_s)
        nothing = status < 2 and re.search(SKIPPED, text := "\n".join(said), re.M) and not re.search(BEGUN, text)
        failed += status != 0 and not nothing and not (REHEARSAL and name in NEED_GPU)
        ended = "skipped" if nothing else f"rc {status}{ENDS.get(status, '')}"
        ended += "; says nothing of a GPU" * (REHEARSAL and name in NEED_GPU)
        of_rows = [line.strip() for line in said if re.match(r"  \S.*( ms|: | [TG]\S+/s)", line)]
        last = "; ".join(of_rows or said[-1:]).replace("|", "/")[:500]
        table.append(f"|{name}|{ended}|{time.monotonic() - begin:.0f}, {limit_s}|{last}|")
        ends += [f"\n## {name}\n\n```", *said[-100:], "```"]
        (OUT / "summary.md").write_text("\n".join([*table, *ends, ""]))
        print(table[-1], flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    if {"-h", "--help"} & {*sys.argv}:
        sys.exit(print(f"{__doc__}\nGroups and their parts:{LISTED}"))
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("gpu.py: interrupted; the summary holds what has ended")
