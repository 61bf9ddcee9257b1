#!/usr/bin/env bash
# The stages as SLURM jobs. Each is resumable: submit it again after a preemption, it goes on.
# A stage that ends with failed items exits with 3, and the jobs after it wait for your decision.
#   RUN=runs/refcoco CONFIG=recipes/refcoco.yaml bash recipes/slurm.sh
set -euo pipefail
: "${RUN:?the run directory}" "${CONFIG:?the config}"
OPTIONS="--config $CONFIG --run-dir $RUN"
submit() { sbatch --parsable --requeue --export=ALL "$@"; }

data=$(submit --cpus-per-task=4 --wrap "prepare-data $OPTIONS")
sam=$(submit --gpus=1 --dependency="afterok:$data" --wrap "sam-candidates $OPTIONS")
last=$(submit --gpus=1 --dependency="afterok:$data" --wrap "train-student --round 0 $OPTIONS")
for round in 1 2; do
  last=$(submit --gpus=1 --dependency="afterok:$sam:$last" --wrap "predict-teacher --round $round $OPTIONS")
  last=$(submit --cpus-per-task=8 --dependency="afterok:$last" --wrap "refine-labels --round $round --workers 8 $OPTIONS")
  last=$(submit --gpus=1 --dependency="afterok:$last" --wrap "train-student --round $round $OPTIONS")
  last=$(submit --gpus=1 --dependency="afterok:$last" --wrap "evaluate-student --round $round --split val $OPTIONS")
done
echo "the last job is $last"
