#!/usr/bin/env bash
# Makes a training set on a SLURM cluster: all of it as one job, or a share of the simulations per task of an array.
#
#   sbatch --ntasks=64 --nodes=1 --mem=40G --time=12:00:00 scripts/run_data_generation.sh [FLAGS]
#   sbatch --array=0-15 --ntasks=16 --nodes=1 --mem=16G --time=04:00:00 scripts/run_data_generation.sh [FLAGS]
#   salloc --ntasks=16 …; bash scripts/run_data_generation.sh [FLAGS]
#
# FLAGS are those of process_simulations.py. Submitted again, it makes only what is missing. Nothing here needs editing:
# resources are flags of sbatch, and the rest is in the environment that it is submitted from:
#
#   BIND_NBODY_BASE, BIND_HYDRO_BASE, BIND_FOF_NBODY_BASE   folders of the simulations and catalogues
#   BIND_DATASET       folder of the data set
#   BIND_PARAM_FILE    parameter table; by default it is looked for
#   BIND_CONFIG        a YAML configuration, which may name all of these instead
#   BIND_PYTHON        Python of an environment with bind-data; by default the active one, else .venv of the repository
#   BIND_REPOSITORY    the repository; by default the one that this script lies in
#   BIND_SHARES        number of shares, where the array is not 0-N, as when some of its tasks are submitted again
#   SLURM_MPI_TYPE     srun's --mpi; by default what the MPI library of the environment needs
#
# docs/cluster.md has a worked example.

#SBATCH --job-name=bind-data
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

fail() {
    printf 'run_data_generation.sh: %s\n' "$@" >&2
    exit 2
}

# SLURM runs a copy of this script, and remembers where the original lies.
repository() {
    local original=${BASH_SOURCE[0]} candidate
    if [[ -n ${SLURM_JOB_ID:-} ]]; then
        candidate=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=\(.*run_data_generation\.sh\).*/\1/p' | head -n 1)
        [[ -n $candidate ]] && original=$candidate
    fi
    for candidate in "$(dirname "$original")/.." "${SLURM_SUBMIT_DIR:-.}"; do
        if [[ -f $candidate/process_simulations.py ]]; then
            (cd "$candidate" && pwd)
            return
        fi
    done
    fail "Cannot find process_simulations.py beside $original or in ${SLURM_SUBMIT_DIR:-$PWD}." \
        "Set BIND_REPOSITORY to the folder that holds it."
}

[[ -n ${SLURM_JOB_ID:-} ]] || fail \
    "This runs inside a SLURM job, and there is none here: SLURM_JOB_ID is not set." \
    "Submit it with 'sbatch $0', or run it inside salloc. Without SLURM: mpirun -n N python process_simulations.py."

home=${BIND_REPOSITORY:-$(repository)}
[[ -f $home/process_simulations.py ]] || fail \
    "BIND_REPOSITORY is $home, which has no process_simulations.py. Set it to the folder that holds it."

flags=()
if [[ -n ${BIND_CONFIG:-} ]]; then
    [[ -r $BIND_CONFIG ]] || fail "BIND_CONFIG is $BIND_CONFIG, which cannot be read. Set it to a YAML configuration."
    flags+=(--config "$BIND_CONFIG")
else
    missing=()
    for setting in BIND_NBODY_BASE:--nbody_base BIND_HYDRO_BASE:--hydro_base \
        BIND_FOF_NBODY_BASE:--fof_nbody_base BIND_DATASET:--output_base_root; do
        variable=${setting%%:*} flag=${setting#*:}
        [[ -n ${!variable:-} || " $* " == *" $flag"[\ =]* ]] || missing+=("$variable")
    done
    ((${#missing[@]} == 0)) || fail "Variables that are not set: ${missing[*]}." \
        "Export them before submitting, or set BIND_CONFIG to a configuration that names these folders."
fi

if [[ -n ${BIND_PYTHON:-} ]]; then
    python=$BIND_PYTHON
elif [[ -n ${VIRTUAL_ENV:-} ]]; then
    python=$VIRTUAL_ENV/bin/python
elif [[ -x $home/.venv/bin/python ]]; then
    python=$home/.venv/bin/python
else
    python=$(command -v python3) || fail "There is no python3 here. Set BIND_PYTHON to one that has bind-data."
fi
said=$("$python" -c 'import bind_core, storage, tasks, mpi4py' 2>&1) || fail \
    "The Python $python has no bind-data: ${said##*$'\n'}" \
    "Activate the environment that has it before submitting, or set BIND_PYTHON to its Python; on the compute nodes" \
    "it must be at the same path. 'make install' makes one in $home/.venv."

if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    shares=${BIND_SHARES:-$SLURM_ARRAY_TASK_COUNT}
    if [[ -z ${BIND_SHARES:-} ]] && ((SLURM_ARRAY_TASK_MIN != 0 || SLURM_ARRAY_TASK_MAX != shares - 1)); then
        fail "The array has $shares tasks, $SLURM_ARRAY_TASK_MIN to $SLURM_ARRAY_TASK_MAX, which are no shares of a whole." \
            "Submit --array=0-N; to submit some of its tasks again, set BIND_SHARES to the number that the whole array had."
    fi
    ((SLURM_ARRAY_TASK_ID < shares)) || fail \
        "Task $SLURM_ARRAY_TASK_ID of the array is none of $shares shares (BIND_SHARES): they are 0 to $((shares - 1))."
    flags+=(--share "$SLURM_ARRAY_TASK_ID/$shares")
fi

mpi=$(cd "$home" && "$python" -m tasks.slurm) || exit 2

# srun does not take this from sbatch by itself.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# Ctrl-C and scancel reach srun, which ends its ranks.
exec srun --kill-on-bad-exit=1 ${mpi:+"$mpi"} "$python" -m mpi4py "$home/process_simulations.py" ${flags[@]+"${flags[@]}"} "$@"
