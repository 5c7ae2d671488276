#!/bin/bash
# Pretrain on one TPU slice: 16 chips of v5e, four hosts, one process each, which find each other by its metadata.
# /shared is a directory that all hosts see, such as a Filestore mount; tokenizer and token store are in it.
set -euo pipefail
name=gpt zone=us-west4-a
repository=${1:?usage: tpu_vm.sh URL-OF-THIS-REPOSITORY}

gcloud compute tpus tpu-vm create "$name" --zone="$zone" \
  --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite

on_all_hosts() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

on_all_hosts "git clone $repository gpt && cd gpt && python3 -m venv .venv &&
  .venv/bin/pip install --constraint constraints.txt --editable '.[tpu]'"
# The same command continues the run after an interruption.
on_all_hosts "cd gpt && .venv/bin/python train.py --gin_file=configs/run/pretrain.gin \
  --gin.TokenizerConfig.path=/shared/tokenizer --gin.DataConfig.token_store=/shared/store \
  --gin.RunConfig.output_dir=/shared/runs/pretrained"

gcloud compute tpus tpu-vm delete "$name" --zone="$zone" --quiet
