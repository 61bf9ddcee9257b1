#!/usr/bin/env bash
# One round's training on several GPUs of one or more nodes. Preemption sends SIGTERM two minutes ahead:
# the running step ends, a checkpoint is saved, every process exits with 75, and the job is queued again
# and goes on from there. What a step computes does not depend on the number of processes, so the same
# run directory may go on with another number of nodes.
# Activate the environment first: it is exported. Account and partition are SBATCH_ACCOUNT and SBATCH_PARTITION.
#   RUN=runs/refcoco CONFIG=recipes/refcoco.yaml ROUND=1 sbatch --nodes=1 recipes/slurm_train.sh
#SBATCH --job-name=train-student
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
set -uo pipefail
: "${RUN:?the run directory}" "${CONFIG:?the config}" "${ROUND:?the round}"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

srun --kill-on-bad-exit=0 torchrun --no-python \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node=4 \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:$port" \
  train-student --round "$ROUND" --config "$CONFIG" --run-dir "$RUN" --set train.loader_workers=7
code=$?

if [ -d "$RUN/round-$ROUND/student/checkpoints" ] && [ ! -f "$RUN/round-$ROUND/student/student.json" ]; then
  # torchrun gives 1 for whatever its processes exit with; begun and not finished tells a preemption
  # from an error well enough, as long as there is progress.
  newest=$(ls -1 "$RUN/round-$ROUND/student/checkpoints" | tail -n 1)
  mark="$RUN/round-$ROUND/requeued-after"
  if [ "$(cat "$mark" 2>/dev/null)" != "$newest" ]; then
    echo "$newest" > "$mark"
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
