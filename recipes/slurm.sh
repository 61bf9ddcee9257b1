#!/usr/bin/env bash
# The whole job of a config as SLURM jobs, a stage each. Activate the environment first: it is exported.
#   RUN=runs/refcoco CONFIG=recipes/refcoco.yaml PARTS=8 bash recipes/slurm.sh
# What your site wants is said by sbatch's own variables: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, …
# GPU (default --gpus=1) holds the options of the jobs that use one; GPU= asks for none.
#
# The costly stages are arrays of PARTS jobs without a scheduler: part I does every PARTS-th shard. The job
# after an array does what was left over and prints the summary. Rounds, calibration and its folds are those
# of the config; the last job is run-rounds, which skips what is there, evaluates every round and writes
# summary.json and the contact sheet. rounds.stop decides while the job runs and is refused here. A training
# takes one GPU; recipes/slurm_train.sh trains a round on several, and the jobs here then skip it.
#
# SIGTERM, two minutes before the walltime ends, lets a stage finish its shard or step and exit with 75; it is
# then queued again. A stage that fails takes the jobs behind it out of the queue; submitted again, the jobs
# of what is done end at once. One that ends with failed items (a photo that cannot be read, a line of JSON
# that is none) exits with 3 and does the same: look at its log and at 'inspect-shards failures RUN', and
# then either mend them, or go on without them:
#   GO_ON=1 RUN=… CONFIG=… bash recipes/slurm.sh
set -euo pipefail
: "${RUN:?the run directory}" "${CONFIG:?the config}"
PARTS=${PARTS:-4} GO_ON=${GO_ON:-} GPU=${GPU---gpus=1}
OPTIONS="--config $CONFIG --run-dir $RUN"

run-rounds --dry-run $OPTIONS # refuses here, not in a job, what it can see of mistakes
said=$(python - "$CONFIG" <<'READ'
import sys
from pathlib import Path

from pipeline.config import load_document, parse_config
from refine.calibrate_config import CalibrateConfig
from train.config import RoundsConfig

sections = load_document(Path(sys.argv[1]), ())
rounds = parse_config(RoundsConfig, sections["rounds"], f"{sys.argv[1]}: rounds")
folds = parse_config(CalibrateConfig, sections["calibrate"], f"{sys.argv[1]}: calibrate").folds
print(rounds.rounds, folds if rounds.calibrate else 0, "fixed" if rounds.stop is None else "stop")
READ
)
read -r ROUNDS FOLDS LENGTH <<< "$said" # FOLDS is 0 where no round is calibrated
if [ "$LENGTH" = stop ]; then
  echo "$CONFIG: rounds.stop decides after every round, jobs are submitted before the first; take it out, or" \
    "give the whole job one node: sbatch --gpus=1 --wrap 'run-rounds $OPTIONS'" >&2
  exit 1
fi

# job OPTIONS OF SBATCH -- COMMAND: submits it and says its number. SLURM's signal goes to the shell,
# which hands it on to the stage and waits for it.
job() {
  local options=() ; while [ "$1" != -- ]; do options+=("$1"); shift; done ; shift
  sbatch --parsable --requeue --export=ALL --kill-on-invalid-dep=yes --signal=B:TERM@120 \
    --job-name="$1" "${options[@]}" --wrap "
    $* & stage=\$!
    trap 'kill -TERM \$stage' TERM
    wait \$stage; code=\$?
    if [ \$code -gt 128 ]; then wait \$stage; code=\$?; fi
    if [ \$code -eq 75 ]; then
      scontrol requeue \${SLURM_ARRAY_JOB_ID:+\${SLURM_ARRAY_JOB_ID}_}\${SLURM_ARRAY_TASK_ID:-\$SLURM_JOB_ID}
    fi
    if [ \$code -eq 3 ] && [ -n '$GO_ON' ]; then exit 0; fi
    exit \$code"
}
# A run directory has one driver, or the parts of one stage: every job comes after the one before, $last.
after() { last=$(job --dependency="afterok:$last" "$@"); }
array() { # of parts, and the job that does what they left
  local parts
  parts=$(job $GPU --dependency="afterok:$last" --array="0-$((PARTS - 1))" -- \
    "$@" --shard-index '$SLURM_ARRAY_TASK_ID' --num-shards "$PARTS")
  last=$(job $GPU --dependency="afterok:$last,afterany:$parts" -- "$@")
}

last=$(job --cpus-per-task=4 -- prepare-data $OPTIONS)
array sam-candidates $OPTIONS
after $GPU -- train-student --round 0 $OPTIONS
for fold in $(seq "$FOLDS"); do
  after $GPU -- train-student --fold "$fold/$FOLDS" $OPTIONS
  after $GPU -- predict-teacher --fold "$fold/$FOLDS" $OPTIONS
done
for round in $(seq "$ROUNDS"); do
  array predict-teacher --round "$round" $OPTIONS
  if [ "$FOLDS" -gt 0 ]; then after -- refine-labels calibrate --round "$round" --apply $OPTIONS; fi
  after --cpus-per-task=8 -- refine-labels --round "$round" --workers 8 $OPTIONS
  after $GPU -- train-student --round "$round" $OPTIONS
done
after $GPU -- run-rounds $OPTIONS
echo "the last job is $last"
