#!/bin/bash
# mc-glyphs: 2 x 8 devices, by megaclass VERSION. Submit it: sbatch /home/me/runs/glyphs-job/job.sh
#SBATCH --job-name=mc-glyphs --nodes=2 --ntasks-per-node=1 --time=12:00:00
#SBATCH --output=/home/me/runs/glyphs-job/%j.log --open-mode=append
#SBATCH --requeue --signal=B:USR1@120
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
# shellcheck disable=SC1090,SC1091,SC2317,SC2329 # files of the site; functions that other shells run
set -eo pipefail
cd /home/me

prepare() {
    :
}

on_node() {
    prepare
    exec torchrun --nnodes 2 --nproc-per-node 8 --max-restarts 3 \
        --rdzv-backend c10d --rdzv-endpoint "$first:$port" --rdzv-id "$job" \
        --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
        -m megaclass train glyphs --resume --optim.lr 0.1 --run.output /home/me/runs/glyphs-job/run
}

newest() {
    find /home/me/runs/glyphs-job/run/checkpoints -maxdepth 1 -name 'step-*' 2>/dev/null | sort | tail -n 1
}

job=$SLURM_JOB_ID first=$(hostname) told=""
port=$((20000 + ${job%%[!0-9]*} % 10000))
before=$(newest || true)
prepare
srun --kill-on-bad-exit=1 --cpu-bind=none ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} bash -c "set -eo pipefail
    $(declare -p job first port; declare -f prepare on_node)
    on_node" &
child=$!

# The ranks end with a checkpoint; then the job goes back into the queue, or not.
tell() {
    [[ -n $told ]] || kill -USR1 "$child" 2>/dev/null || true
    told=${told:-$1}
}
trap 'tell again' USR1
while kill -0 "$child" 2>/dev/null; do
    sleep 1 || true
done
status=0
wait "$child" || status=$?
if [[ $told = again && $status -ne 0 && $(newest || true) != "$before" ]]; then
    echo "told to end before the limit: it goes on from $(newest) when its turn comes again"
    scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$status"

# mc-glyphs: 2 x 8 devices, by megaclass VERSION. Submit it: qsub /home/me/runs/glyphs-job/job.sh
#PBS -N mc-glyphs -l walltime=12:00:00 -j oe -o /home/me/runs/glyphs-job/ -r y
#PBS -l select=2:ngpus=8:mpiprocs=1
#PBS -l place=scatter:excl
job=$PBS_JOBID first=$(hostname) told=""
mpirun -np 2 --map-by ppr:1:node bash -c "set -eo pipefail
trap : TERM
    [[ $SECONDS -lt 43080 || -n $told ]] || tell again
    qsub /home/me/runs/glyphs-job/job.sh && exit 0
# mc-glyphs: 2 x 8 devices, by megaclass VERSION. Submit it: qsub /home/me/runs/glyphs-job/job.sh
#$ -N mc-glyphs -S /bin/bash -l h_rt=12:00:00 -j y -o /home/me/runs/glyphs-job/ -r y -notify
#$ -pe node 2
#$ -l gpu=8
job=$JOB_ID first=$(hostname) told=""
setsid mpirun -np 2 --map-by ppr:1:node bash -c "set -eo pipefail
trap 'tell again' USR1; trap 'tell end' USR2
    [[ $SECONDS -lt 43080 || -n $told ]] || tell again
    exit 99 # Grid Engine runs it again
