// All kernels, as one module.
#include "adam.cu"
#include "adapt.cu"
#include "dropout.cu"
#include "elementwise.cu"
#include "heads.cu"
#include "loss.cu"
#include "norm.cu"
#include "sums.cu"
