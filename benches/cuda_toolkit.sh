#!/usr/bin/env bash
# A CUDA 13.0 toolkit out of packages of PyPI, enough to build with `--features cuda` where none is installed; no GPU is
# needed for that. About 1.2 GB.
#   benches/cuda_toolkit.sh FOLDER && . FOLDER/env && cargo build --release --features cuda
# FOLDER/env sets what the build asks for; CUDA_COMPUTE_CAP is that of the GPU to build for (90: H100, H200; 80: A100).
# To run, a program built so finds the libraries in FOLDER/lib64, and NVIDIA's driver where the machine has it.
set -euo pipefail
folder=${1:?usage: benches/cuda_toolkit.sh FOLDER}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nvidia-cuda-nvcc==13.0.88 nvidia-cuda-runtime==13.0.96 \
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-nvrtc==13.0.88 \
    nvidia-curand==10.4.0.35 nvidia-cublas==13.1.0.3
cuda=$(echo "$folder"/venv/lib/python3*/site-packages/nvidia/cu13)
for part in bin include nvvm; do
    ln -sfn "$cuda/$part" "$folder/$part"
done
# Libraries under the names that a linker looks for.
mkdir -p "$folder/lib64"
for library in "$cuda"/lib/*; do
    ln -sf "$library" "$folder/lib64/"
    case $library in *.so.*) ln -sf "$library" "$folder/lib64/$(basename "${library%%.so.*}").so" ;; esac
done
# The driver's library is the machine's own. To link, its functions are needed by name alone; where there is no driver,
# they answer "no device", so that the same program starts and takes the CPU.
mkdir -p "$folder/no-driver"
grep -oE '\bcu[A-Z][A-Za-z0-9]*(_v[0-9]+)?(_ptsz|_ptds)?\b' "$cuda/include/cuda.h" | sort -u |
    sed 's/.*/int &(void) { return 100; }/' |
    cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$folder/no-driver/libcuda.so.1" -x c -
ln -sf "$folder/no-driver/libcuda.so.1" "$folder/lib64/libcuda.so"
cat >"$folder/env" <<END
export CUDA_HOME=$folder CUDA_PATH=$folder CUDARC_CUDA_VERSION=13000 CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-90}
export PATH=$folder/bin:\$PATH LIBRARY_PATH=$folder/lib64\${LIBRARY_PATH:+:\$LIBRARY_PATH}
export LD_LIBRARY_PATH=$folder/lib64\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}
ldconfig -p | grep -q libcuda.so.1 || LD_LIBRARY_PATH=\$LD_LIBRARY_PATH:$folder/no-driver
END
echo "next: . $folder/env && cargo build --release --features cuda"
