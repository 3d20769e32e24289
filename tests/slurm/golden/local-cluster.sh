#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=1
#SBATCH --error=JOBS/%j_batch.log
#SBATCH --job-name=jeoparda-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=JOBS/%j_batch.log
#SBATCH --partition=batch
#SBATCH --requeue
#SBATCH --signal=USR2@20
#SBATCH --time=00:10:00

# setup
trap : TERM USR1 USR2  # for the ranks: this shell outlives them, to put the job back into the queue
export OMP_NUM_THREADS=1
export OMPI_MCA_mpi_yield_when_idle=1
stopped=JOBS/${SLURM_JOB_ID}_stopped
rm -f "$stopped"
echo "jeoparda: attempt $((${SLURM_RESTART_COUNT:-0} + 1)) of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $(date)"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output JOBS/%j_%t_log.out --error JOBS/%j_%t_log.err --mpi=pmix --kill-on-bad-exit=1 --open-mode=append --cpus-per-task=1 PYTHON -u -m submitit.core._submit JOBS


# teardown
code=$?
[ $code -eq 0 ] && [ -e "$stopped" ] && code=75
# A rank was killed, or left because others were gone or stood still, and none by an error of its own,
# which would come again.
[ $code -ne 0 ] && awk '/^jeoparda: attempt/ { lost = mistake = 0 }
  /^srun: error: Node failure on / { lost = 1 }
  /^srun: error: .*: tasks? [0-9,-]+: / {
    if (/Out Of Memory/ || /Exited with exit code/ && !/exit code 75$/) mistake = 1
    else lost = 1
  } END { exit mistake || !lost }' JOBS/${SLURM_JOB_ID}_batch.log && code=75
# RUNNING: not cancelled meanwhile.
if [ $code -eq 75 ] && [ ${SLURM_RESTART_COUNT:-0} -lt 50 ] &&
  scontrol --oneliner show job "$SLURM_JOB_ID" | grep -q " JobState=RUNNING "; then
  echo "jeoparda: stopped early; back into the queue, to go on from its last checkpoint"
  scontrol requeue "$SLURM_JOB_ID" || exit $code
  sleep 30
fi
exit $code
