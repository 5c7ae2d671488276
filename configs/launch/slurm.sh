#!/bin/bash
# Pretrain on two nodes of four GPUs, one process a GPU: sbatch configs/launch/slurm.sh, in the repository's directory.
# The processes find each other by what srun sets. /shared is a directory that all nodes see.
#SBATCH --job-name=gpt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# --signal: two minutes before the end of its time the run saves and exits with 75; it is put into the queue again.

code=0
srun --kill-on-bad-exit=1 .venv/bin/python train.py --gin_file=configs/run/pretrain.gin \
  --gin.TokenizerConfig.path=/shared/tokenizer --gin.DataConfig.token_store=/shared/store \
  --gin.RunConfig.output_dir=/shared/runs/pretrained || code=$?
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
