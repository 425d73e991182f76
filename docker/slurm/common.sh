# Shared by the scripts of this folder, which Slurm runs in the folder that they are submitted from:
# python, the way to the servers, checks before any work, and the end of the time limit.
#
# HERMESFLOW_PYTHON is the Python of the nodes, .venv/bin/python unless it is set.

fail() {
    echo "error: $*" >&2
    exit 2
}

PYTHON=${HERMESFLOW_PYTHON:-.venv/bin/python}
[ -x "$PYTHON" ] || fail "$PWD has no $PYTHON on $(hostname); run make install on a machine with" \
    "the Python of the nodes, or export HERMESFLOW_PYTHON before sbatch"

# Servers that were named before sbatch go first; `hermesflow up` writes the way to those of this folder.
if [ -z "${PREFECT_API_URL:-}" ] && [ -r .hermesflow/env ]; then
    . .hermesflow/env
fi
export DO_NOT_TRACK=true MLFLOW_DISABLE_TELEMETRY=true PREFECT_SERVER_ANALYTICS_ENABLED=false
export PREFECT_CLIENT_MAX_RETRIES=${PREFECT_CLIENT_MAX_RETRIES:-8} # outlasts a server's restart

# Check every node before any work: check_nodes COMMAND OPTIONS, see flows/slurm.py.
check_nodes() {
    srun --mpi=none --kill-on-bad-exit=1 --ntasks="$SLURM_NNODES" --ntasks-per-node=1 \
        "$PYTHON" -m flows.slurm "$@" ||
        fail "a node is not ready; the lines above say why, and nothing was begun"
}

# Run a step until it ends, or until Slurm announces the end of the time limit (#SBATCH --signal): then
# its processes get a signal. Usage: run_until_signal SIGNAL COMMAND; sets `announced` and `code`.
#
# Tasks get no variables of MPI, by which a process would seem to be one of many that train; and srun
# does not take the number of cores from sbatch by itself.
run_until_signal() {
    announced=
    ends_by=$1
    srun --mpi=none --kill-on-bad-exit=0 \
        ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "${@:2}" &
    child=$!
    trap 'announced=yes; end_step' USR1 TERM
    while true; do
        wait "$child" # comes back at a signal, too
        code=$?
        [ "$code" -gt 128 ] && kill -0 "$child" 2>/dev/null || break
    done
    trap '' USR1 TERM
}

# Signal the processes of the step. One for srun itself would have them killed at once.
end_step() {
    scancel --signal="$ends_by" "$SLURM_JOB_ID"
}

# Put this job back into the queue, where it keeps its number, unless it was cancelled: its steps get
# SIGTERM then, too.
requeue() {
    state=$(scontrol show job -o "$SLURM_JOB_ID" | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p')
    if [ "$state" != RUNNING ]; then
        echo "$1: job $SLURM_JOB_ID is $state and stays so" >&2
        exit 143
    fi
    echo "$1: job $SLURM_JOB_ID goes back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID" ||
        fail "Slurm does not requeue this job; submit it again, and the work goes on where it was"
    sleep 60 # Slurm ends this script
}
