#!/usr/bin/env bash
# What a CUDA GPU is to show: its tests, and the rows of every benchmark, in $RESULTS/BENCHMARK-NAME.jsonl, NAME being
# that of the GPU; a suite gets a directory with its report. A part that was interrupted goes on where it stopped.
#
#   benchmarks/gpu.sh [tests|suites|train|ablation|infer|loader|sizes|share|peer|largest ...]
#
# Without a part: all of them. PEER_PATH=directory with arcface_torch's code puts it beside ours.
#
#   tests     the GPU test suite
#   suites    every published report: one rank's share on one GPU, then the whole job of eight GPUs on it
#   train     whole steps: IResNet-50 and 100 with 618 K and 2 M classes, full and sampled; ResNet-50 at 224 px beside a
#             plain PyTorch loop; one rank of 1, 2, 8 and 64
#   ablation  every setting that may bring speed, one at a time
#   infer     ResNet-50 by batch size in every engine
#   loader    images a second on the device, decoded by our threads and by DALI: four minutes on 16 cores
#   sizes     heads of 77 K to 10 M classes on one GPU, full and sampled
#   share     one rank's share of 80 M classes over 8 ranks (10 M x 512), batch 1,024, in every storage
#   peer      the same share and smaller ones beside arcface_torch
#   largest   the largest head that fits this GPU, up to 100 M classes
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-.venv/bin/python}
RESULTS=${RESULTS:-benchmarks/results}
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr '[:upper:] ' '[:lower:]-' || true)
gpu=${gpu#nvidia-}
gpu=${gpu:-gpu}
mkdir -p "$RESULTS"
beside=()
if [ -n "${PEER_PATH:-}" ]; then
    beside=(--peer arcface_torch --peer-path "$PEER_PATH")
else
    echo "PEER_PATH is not set: arcface_torch is left out"
fi

# bench NAME OPTIONS: a benchmark on the GPU, into its file.
bench() {
    "$PYTHON" -m megaclass bench "$1" --device cuda --output "$RESULTS/$1-$gpu.jsonl" "${@:2}"
}

head_steps() {
    bench head --embedding-dim 512 --batch-size 1024 --precision bf16 --timeout 1800 "$@"
}

faces() {
    bench train --dtype bfloat16 --timeout 1800 --recipe faces_r50 -i 50 -e 6 "$@"
}

photographs() {
    bench train --dtype bfloat16 --timeout 1800 --recipe resnet50_imagenet -b 256 -i 50 -e 6 "$@"
}

tests() {
    "$PYTHON" -m pytest -m gpu
}

suites() {
    for name in arcface-a100 partial-fc-v100 arcface-rtx3080 resnet50-nvidia resnet50-abci; do
        "$PYTHON" -m megaclass bench suite "$name" --fit --minutes 6 --device cuda --output "$RESULTS/suite-$name-$gpu"
    done
    "$PYTHON" -m megaclass bench suite arcface-a100 --fit --whole-job --minutes 6 --device cuda \
        --output "$RESULTS/suite-arcface-a100-whole-$gpu"
}

train() {
    faces --global-batch-size 1024 --backbone iresnet50,iresnet100 --num-classes 618K,2M --sample-rate 1,0.1 \
        ${beside[@]+"${beside[@]}"}
    photographs --peer pytorch
    faces --num-classes 618K --sample-rate 0.1 -b 128 --simulate-ranks 1,2,8,64
}

# All that take turns hold their memory at the same time: few of them, and a quarter of the batch.
ablation() {
    local values
    for values in speed.compile=none,blocks,whole speed.cuda_graphs=true,false precision.channels_last=true,false \
        precision.tf32=true,false head.kernels=auto,torch model.checkpoint_activations=true,false; do
        faces --global-batch-size 256 --num-classes 618K --one-at-a-time --set "$values"
    done
    for values in speed.compile=none,blocks,whole speed.cuda_graphs=true,false precision.channels_last=true,false; do
        photographs --one-at-a-time --set "$values"
    done
}

infer() {
    bench infer -b 1,8,64,256 --dtype float16,bfloat16 --engine eager,compiled,cudagraph
}

# A pass is to take long beside the batches that are in the making when it begins: about half a second on 16 cores.
loader() {
    bench loader --workload faces --batch-size 256 --batches 200 --rounds 7
    bench loader --workload imagenet --batch-size 256 --batches 30 --rounds 7
}

sizes() {
    head_steps --num-classes 77K,1M,10M --sample-rate 1,0.1 --storage bf16
}

share() {
    head_steps --num-classes 80M --simulate-ranks 8 --sample-rate 0.1,1 --storage fp32,bf16,int8_rowwise
}

# Its centres are drawn on the CPU, a minute and 20 GB for 10 M; so it is measured beside one storage only.
peer() {
    if [ ${#beside[@]} -gt 0 ]; then
        head_steps --num-classes 8M,16M,32M,80M --simulate-ranks 8 --sample-rate 0.1,1 --storage fp32 "${beside[@]}"
    fi
}

largest() {
    for classes in 100M 80M 60M 40M 30M 20M 10M; do
        head_steps --num-classes "$classes" --sample-rate 1,0.1 --storage int8_rowwise --steps 5
        if tail -n 1 "$RESULTS/head-$gpu.jsonl" | grep -q '"status": "ok"'; then
            return
        fi
    done
}

parts="tests suites train ablation infer loader sizes share peer largest"
for part in "${@:-$parts}"; do
    for name in $part; do
        if [[ " $parts " != *" $name "* ]]; then
            echo "benchmarks/gpu.sh: no part named $name; parts: $parts" >&2
            exit 2
        fi
        "$name"
    done
done
