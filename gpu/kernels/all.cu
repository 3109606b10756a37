// All kernels, as one module.
#include "dropout.cu"
