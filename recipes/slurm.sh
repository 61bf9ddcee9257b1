#!/usr/bin/env bash
# The stages as SLURM jobs. Each is resumable: submit it again after a preemption, it goes on.
# The costly stages are arrays of PARTS jobs of one GPU each, without a scheduler: part I does every
# PARTS-th shard. The job after an array does what was left over and writes the summary.
# SIGTERM, two minutes before the walltime ends, lets a part finish its shard and exit with 75; it is
# then queued again. A stage that ends with failed items exits with 3, and the jobs after it wait for
# your decision ('inspect-shards failures RUN').
#   RUN=runs/refcoco CONFIG=recipes/refcoco.yaml PARTS=8 bash recipes/slurm.sh
set -euo pipefail
: "${RUN:?the run directory}" "${CONFIG:?the config}"
PARTS=${PARTS:-4}
OPTIONS="--config $CONFIG --run-dir $RUN"

submit() { sbatch --parsable --requeue --export=ALL "$@"; }
# part OPTIONS OF SBATCH -- COMMAND: an array of PARTS jobs. SLURM's signal goes to the shell, which
# hands it on to the stage and waits for it.
part() {
  local options=() ; while [ "$1" != -- ]; do options+=("$1"); shift; done ; shift
  submit "${options[@]}" --array="0-$((PARTS - 1))" --signal=B:TERM@120 --wrap "
    $* --shard-index \$SLURM_ARRAY_TASK_ID --num-shards $PARTS & stage=\$!
    trap 'kill -TERM \$stage' TERM
    wait \$stage; code=\$?
    if [ \$code -gt 128 ]; then wait \$stage; code=\$?; fi
    if [ \$code -eq 75 ]; then scontrol requeue \${SLURM_ARRAY_JOB_ID}_\$SLURM_ARRAY_TASK_ID; fi
    exit \$code"
}

data=$(submit --cpus-per-task=4 --wrap "prepare-data $OPTIONS")
parts=$(part --gpus=1 --dependency="afterok:$data" -- "sam-candidates $OPTIONS")
sam=$(submit --gpus=1 --dependency="afterany:$parts" --wrap "sam-candidates $OPTIONS")
# After the candidates, not beside them: a run directory has one driver, or the parts of one stage.
last=$(submit --gpus=1 --dependency="afterok:$sam" --wrap "train-student --round 0 $OPTIONS")
for round in 1 2; do
  parts=$(part --gpus=1 --dependency="afterok:$last" -- "predict-teacher --round $round $OPTIONS")
  last=$(submit --gpus=1 --dependency="afterany:$parts" --wrap "predict-teacher --round $round $OPTIONS")
  last=$(submit --cpus-per-task=8 --dependency="afterok:$last" --wrap "refine-labels --round $round --workers 8 $OPTIONS")
  last=$(submit --gpus=1 --dependency="afterok:$last" --wrap "train-student --round $round $OPTIONS")
  last=$(submit --gpus=1 --dependency="afterok:$last" --wrap "evaluate-student --round $round --split val $OPTIONS")
done
echo "the last job is $last"
