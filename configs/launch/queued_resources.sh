#!/bin/bash
# As tpu_vm.sh, but spot capacity from the queue: the script waits for it, and asks again whenever it is taken away.
# The run loses what it did since its last checkpoint at most; save as often as you can afford to repeat.
set -euo pipefail
name=gpt zone=us-west4-a
repository=${1:?usage: queued_resources.sh URL-OF-THIS-REPOSITORY}

state() {
  gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format="value(state.state)"
}
on_all_hosts() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }
attempt() {
  on_all_hosts "test -d gpt || git clone $repository gpt; cd gpt && python3 -m venv .venv &&
    .venv/bin/pip install --constraint constraints.txt --editable '.[tpu]'" &&
  on_all_hosts "cd gpt && .venv/bin/python train.py --gin_file=configs/run/pretrain.gin \
    --gin.TokenizerConfig.path=/shared/tokenizer --gin.DataConfig.token_store=/shared/store \
    --gin.RunConfig.output_dir=/shared/runs/pretrained --gin.CheckpointConfig.save_every_steps=200"
}

for _ in $(seq 20); do  # not for ever: an error of the settings would come back every time
  gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
    --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot
  until [ "$(state)" = ACTIVE ]; do
    case "$(state)" in FAILED | SUSPENDED) break ;; esac
    sleep 60
  done
  if attempt; then finished=yes; fi
  gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet
  if [ "${finished:-no}" = yes ]; then exit 0; fi
done
exit 1
