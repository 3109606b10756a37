#!/usr/bin/env bash
# What a GPU makes of it, in one command: its operations and the kernels of gpu/kernels held to the CPU, forward and backward,
# and so are Adam, generation and k-means by them; a training step of TIGER 13M, and one of LoRA on the shape of Qwen3-0.6B,
# beside PyTorch on the same device, eager and compiled (bf16); beam search inside the trie of all titles on that shape,
# beside `generate` of transformers with prefix_allowed_tokens_fn (bf16). Prints tokens and users a second, the share of
# PEAK_TFLOPS (989: dense bf16 of an H100), and the most memory that nvidia-smi saw in use.
# Needs a CUDA toolkit to build (cuda_toolkit.sh makes one), else PARITY, BENCH_TIGER, BENCH_LLM and BENCH_GENERATE name
# what was built elsewhere: the tests of sluice-gpu, and its benches tiger, llm_train and llm_generate, all with --features
# cuda. Peers as in tiger.sh.
# DEVICE=cpu PRECISION=f32 FEATURES= tries the script itself where there is no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
export DEVICE=${DEVICE:-cuda} PRECISION=${PRECISION:-bf16} FEATURES=${FEATURES---features cuda}
export PEAK_TFLOPS=${PEAK_TFLOPS:-989}
most=$(mktemp)
trap 'rm -f "$most"' EXIT

# Runs a command and says how much memory of the device was in use at most.
watched() {
    local watch=
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits --loop-ms=200 >"$most" &
        watch=$!
    fi
    "$@"
    if [[ -n "$watch" ]]; then
        kill "$watch"
        echo "  most memory in use on the device: $(sort -n "$most" | tail -1) MiB (Sluice and PyTorch, one after another)"
    fi
}

[[ "$DEVICE" == cpu ]] || nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
echo "== parity of operations and kernels on $DEVICE"
tests=(ops::parity kernels optim on_device residual --test-threads 1)
if [[ -n "${PARITY:-}" ]]; then
    SLUICE_DEVICE=$DEVICE "$PARITY" "${tests[@]}"
else
    # shellcheck disable=SC2086
    SLUICE_DEVICE=$DEVICE cargo test --release -p sluice-gpu $FEATURES --lib -- "${tests[@]}"
fi
echo "== TIGER 13M"
BENCH=${BENCH_TIGER:-} STEPS=${STEPS:-40} watched benches/tiger.sh
echo "== LoRA on the shape of Qwen3-0.6B"
BENCH=${BENCH_LLM:-} STEPS=${STEPS:-10} COMPILED=${COMPILED:-1} SHAPE=${SHAPE:-0.6b} watched benches/llm_train.sh
echo "== constrained generation"
if [[ "$DEVICE" == cpu ]]; then
    BENCH=${BENCH_GENERATE:-} USERS=${USERS:-2} AT_ONCE=2 PENALTIES=1 SHAPES=pairs watched benches/llm_generate.sh
else
    BENCH=${BENCH_GENERATE:-} USERS=${USERS:-32} AT_ONCE=16 PENALTIES=1 SHAPES=0.6b watched benches/llm_generate.sh
fi
