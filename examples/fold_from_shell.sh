#!/usr/bin/env bash
# Fold a model from the shell: look first, fold, check once more, and use the JSON report.
# Run it from the repository's root, with bnfold[cpu] installed; the results go to the folder named (default: build).
set -euo pipefail

model=models/digits-darknet.onnx
build=${1:-build}
mkdir -p "$build"

# What would happen to each BatchNorm, and why; nothing is written.
bnfold inspect "$model"

# Fold, verify on onnxruntime's CPU provider, write. With --require-all a BatchNorm that has to stay is an error.
bnfold "$model" -o "$build/fused.onnx" --require-all

# The same for programs: one JSON report on stdout, nothing on stderr.
bnfold "$model" -o "$build/fused.onnx" --json --quiet > "$build/report.json"
python3 -c 'import json, sys; print(json.load(sys.stdin)["summary"])' < "$build/report.json"

# Leave the BatchNorms of the last stage alone, for instance because they will be trained further.
bnfold "$model" -o "$build/partly-fused.onnx" --keep '^/stage2/' --quiet

# Compare any two files of the same network, tensor by tensor.
bnfold verify "$model" "$build/fused.onnx" --shape images=5x1x8x8
