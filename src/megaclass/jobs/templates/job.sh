#!/bin/bash
# {{ name }}: {{ nodes }} x {{ devices }} devices, by megaclass {{ version }}. Submit it: {{ submit }}
{% if site.scheduler == "slurm" %}
#SBATCH --job-name={{ name }} --nodes={{ nodes }} --ntasks-per-node=1 --time={{ time }}
#SBATCH --output={{ output }}/{{ "%A-%a" if tasks else "%j" }}.log --open-mode=append
#SBATCH {{ "--array=1-%d" % tasks if tasks else "--requeue --signal=B:USR1@%d" % site.notice_s }}
{% elif site.scheduler == "pbs" %}
#PBS -N {{ name }} -l walltime={{ time }} -j oe -o {{ output }}/ -r y{{ " -J 1-%d" % tasks if tasks }}
{% else %}
#$ -N {{ name }} -S /bin/bash -l h_rt={{ time }} -j y -o {{ output }}/ -r y {{ "-t 1-%d" % tasks if tasks else "-notify" }}
{% endif %}
{% for line in resources %}
{{ prefix }} {{ line }}
{% endfor %}
# shellcheck disable=SC1090,SC1091,SC2317,SC2329 # files of the site; functions that other shells run
set -eo pipefail
cd {{ here | quote }}

prepare() {
    :
{% for line in setup %}
    {{ line }}
{% endfor %}
}

on_node() {
    prepare
{% if stage %}
    local began=$SECONDS data
    data=$({{ inside }}megaclass data stage {{ stage | quote }} {{ local }})
    echo "$(hostname): stage-in took $((SECONDS - began)) s"
{% endif %}
{% if tasks %}
    {{ inside }}{{ command }} --part "${{ task }}/{{ tasks }}" || status=$? # 1: the case was left out
    # One task after another, so that the last one finds the rows of all.
    flock {{ output }}/.lock {{ inside }}megaclass report {{ output }}
    exit "${status:-0}"
}

on_node
{% else %}
    exec {{ inside }}torchrun --nnodes {{ nodes }} --nproc-per-node {{ devices }} --max-restarts 3 \
        --rdzv-backend c10d --rdzv-endpoint "$first:$port" --rdzv-id "$job" \
        --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
        -m {{ command }}{{ ' --data.path "$data"' if stage }}
}

newest() {
    find {{ output }}/run/checkpoints -maxdepth 1 -name 'step-*' 2>/dev/null | sort | tail -n 1
}

job=${{ job }} first=$(hostname) told=""
port=$((20000 + ${job%%[!0-9]*} % 10000))
before=$(newest || true)
prepare
{{ launch }}bash -c "set -eo pipefail
    $(declare -p job first port; declare -f prepare on_node)
    on_node" &
child=$!

# The ranks end with a checkpoint; then the job goes back into the queue, or not.
tell() {
    [[ -n $told ]] || kill -USR1 "$child" 2>/dev/null || true
    told=${told:-$1}
}
{{ traps }}
while kill -0 "$child" 2>/dev/null; do
{% if site.scheduler != "slurm" %}
    [[ $SECONDS -lt {{ seconds }} || -n $told ]] || tell again
{% endif %}
    sleep 1 || true
done
status=0
wait "$child" || status=$?
if [[ $told = again && $status -ne 0 && $(newest || true) != "$before" ]]; then
    echo "told to end before the limit: it goes on from $(newest) when its turn comes again"
    {{ again or submit ~ " && exit 0" }}
fi
exit "$status"
{% endif %}
