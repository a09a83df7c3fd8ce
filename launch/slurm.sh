#!/usr/bin/env bash
# Trains on a SLURM cluster, one process for each GPU:
#
#     sbatch --nodes=2 launch/slurm.sh --config=configs/cluster.py
#     sbatch --array=0-3 launch/slurm.sh --config=configs/cluster.py --sweep=TASK
#
# Submit it in the directory of the repository, with the environment in .venv; every node must see that directory. TASK
# stands for the number of the job in its array. Two minutes before its time limit a job saves; it is queued again until
# the run is finished. Change --gpus-per-node and --ntasks-per-node together.
#SBATCH --job-name=patterson_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -u
[ -n "${SLURM_CPUS_PER_TASK:-}" ] && export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun does not inherit it

[ -f .venv/bin/activate ] && . .venv/bin/activate
status=0
srun --kill-on-bad-exit=0 python run_experiment.py --distributed "${@/%=TASK/=${SLURM_ARRAY_TASK_ID:-0}}" || status=$?
if [ "$status" -eq 75 ]; then  # saved, but not finished
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
