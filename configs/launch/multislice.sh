#!/bin/bash
# Pretrain on two slices of 16 chips of v5e: eight hosts, one process each. The slices have a copy of the parameters
# each and exchange gradients over the data-centre network once an update (MeshConfig.dcn_data, the default).
set -euo pipefail
name=gpt zone=us-west4-a
repository=${1:?usage: multislice.sh URL-OF-THIS-REPOSITORY}

gcloud compute tpus queued-resources create "$name" --zone="$zone" --node-count=2 --node-prefix="$name" \
  --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite
state() {
  gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format="value(state.state)"
}
until [ "$(state)" = ACTIVE ]; do sleep 60; done

on_all_hosts() {
  gcloud alpha compute tpus queued-resources ssh "$name" --zone="$zone" --node=all --worker=all --command="$1"
}

on_all_hosts "git clone $repository gpt && cd gpt && python3 -m venv .venv &&
  .venv/bin/pip install --constraint constraints.txt --editable '.[tpu]'"
on_all_hosts "cd gpt && .venv/bin/python train.py --gin_file=configs/run/pretrain.gin --gin_file=configs/mesh/data.gin \
  --gin.TokenizerConfig.path=/shared/tokenizer --gin.DataConfig.token_store=/shared/store \
  --gin.RunConfig.output_dir=/shared/runs/pretrained"

gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet
