#!/usr/bin/env bash
# On a machine with a GPU and without the photographs: the tests of CUDA, then a family from packed records.
#
#   scripts/gpu.sh PACKED RESULTS [MINUTES]
#
# PACKED is what `train celeba --pack` wrote; the tokenizer and the upsampler are those of checkpoints/celeba.
# RESULTS gets cuda.json, train.jsonl and the releases; the private training state stays in a temporary folder.
# Needs what requirements.txt names for training (torch, transformers, safetensors, numpy, scipy, pillow, tqdm,
# dp-accounting), and pytest and hypothesis for the tests.
set -euo pipefail
packed=$1 results=$2 minutes=${3:-8}
state=$(mktemp -d)
mkdir -p "$results/celeba"
python -m pytest -q -m cuda tests/test_cuda.py -p no:cacheprovider --cuda-results "$results/cuda.json" ||
  echo "the tests of CUDA failed" >&2
cp -r checkpoints/celeba/tokenizer checkpoints/celeba/upsampler "$results/celeba"
python -m dpwg train celeba --packed "$packed" --minutes "$minutes" --device cuda \
  --run-folder "$state/celeba" --out "$results/celeba" >"$results/train.jsonl"
